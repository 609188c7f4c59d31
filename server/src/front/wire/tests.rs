//! Tests of the wire front over streams in memory.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hark_protocol::UserName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter, DuplexStream};
use tokio::task::JoinHandle;

use super::*;
use crate::chat::{Chat, ShutdownSignal};
use crate::config::Cli;
use crate::shard::{ShardConfig, ShardStore};
use crate::store::{Position, ReadLimit, Store as _};

const PING: &[u8] = b"\0\0\0\x13\0\0\0\x07ping\0\0\0\0\0\0\0\0\0\0\0";
const OK: &[u8] = b"\0\0\0\x13\0\0\0\x07ok\0\0\0\0\0\0\0\0\0\0\0\0\0";

const TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one connection in the native framing over a stream that buffers until it is
/// flushed, as TLS may.
fn serve(store: Arc<ShardStore>) -> (DuplexStream, JoinHandle<io::Result<()>>) {
    let rules = <Cli as clap::Parser>::parse_from(["harkd"]).serve.rules();
    let chat = Chat::new(store, rules);
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let connection =
        ClientConnection::new(Arc::new(chat), address, Arc::<ShutdownSignal>::default());
    let (client, ours) = tokio::io::duplex(1024);
    let framing = Framing::native(1024);
    let wire = Wire::new(
        BufWriter::new(ours),
        framing,
        connection,
        Duration::from_secs(60),
    );
    (client, tokio::spawn(wire.run()))
}

fn memory() -> Arc<ShardStore> {
    Arc::new(
        ShardStore::memory(ShardConfig {
            numbers_after: Some(0),
            ..ShardConfig::DEFAULT
        })
        .unwrap(),
    )
}

fn frame(id: u32, command: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(19 + payload.len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    bytes.extend(id.to_be_bytes());
    bytes.extend(command.as_bytes());
    bytes.resize(4 + 19, 0);
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn send_behind_a_refused_hello_is_not_stored() {
    let hello = |payload: &[u8]| frame(1, "hello", payload);
    let refused = [
        hello(b""),
        hello(b"1"),
        hello(b"one,token"),
        hello(b"1,no token"),
        hello(b"1,\xff"),
        hello(b"2,token"),
        frame(0, "hello", b"1,token"),
        [frame(7, "ping", b""), hello(b"1,token")].concat(),
        [hello(b"1,token"), hello(b"1,token")].concat(),
    ];
    for hello in refused {
        let store = memory();
        let bob: UserName = "bob".parse().unwrap();
        store.create(&bob, None).await.unwrap();
        let account = store.account(&bob).await.unwrap().unwrap().account;
        let (mut client, serving) = serve(Arc::clone(&store));
        let send = frame(2, "send", b"bob,outside of its session");
        client.write_all(&[&*hello, &*send].concat()).await.unwrap();
        let mut replies = Vec::new();
        tokio::time::timeout(TIMEOUT, client.read_to_end(&mut replies))
            .await
            .unwrap()
            .unwrap();
        let shown = String::from_utf8_lossy(&hello);
        let refusal = b"notok\0\0\0\0\0\0\0\0\0\0bad-request,";
        assert_eq!(
            replies
                .windows(refusal.len())
                .filter(|part| part == refusal)
                .count(),
            1,
            "{shown:?}"
        );
        drop(client);
        serving.await.unwrap().unwrap();
        let limit = ReadLimit {
            messages: 1,
            bytes: 1,
        };
        assert_eq!(
            store
                .read(&account, Position::default(), limit)
                .await
                .unwrap()
                .messages,
            [],
            "{shown:?}"
        );
    }
}

#[tokio::test]
async fn output_is_flushed_and_shut_down() {
    let (mut client, serving) = serve(memory());
    for _ in 0..2 {
        client.write_all(PING).await.unwrap();
        let mut reply = [0; OK.len()];
        tokio::time::timeout(TIMEOUT, client.read_exact(&mut reply))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(reply, OK);
    }
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    serving.await.unwrap().unwrap();
}
