//! The fuzz target `http`: arbitrary bytes as a connection of HTTP/1.1.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a target fails by panicking"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use clap::Parser as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Http;
use super::head::{BodyLength, Head};
use crate::chat::{Chat, ShutdownSignal};
use crate::config::Cli;
use crate::front::first_bytes::{FirstBytes, Protocol};
use crate::logging::Watchers;
use crate::shard::{ShardConfig, ShardStore};

/// How long a connection may take whose client has sent everything and closed its side.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The capacity of the stream in each direction, in bytes: more than any response.
const STREAM_BYTES: usize = 1 << 20;

/// Returns a front over a store in memory that all inputs share.
fn front() -> &'static Http {
    static FRONT: OnceLock<Http> = OnceLock::new();
    FRONT.get_or_init(|| {
        let arguments = Cli::parse_from(["harkd"]).serve;
        let store = ShardStore::memory(ShardConfig {
            accounts_max: 100,
            queued_messages_max: 100,
            numbers_after: Some(0),
            ..ShardConfig::DEFAULT
        });
        let chat = Arc::new(Chat::new(Arc::new(store.unwrap()), arguments.rules()));
        Http::new(
            &chat,
            &arguments.settings(&Watchers::default(), None),
            Arc::default(),
        )
    })
}

/// Serves the bytes as one connection.
///
/// # Panics
/// If the first bytes select another protocol once there are more of them, if the
/// connection does not end, or if an ambiguous request gets another response than 400.
pub fn http(data: &[u8]) {
    let all = FirstBytes::of(data);
    for end in 0..data.len().min(32) {
        let known = FirstBytes::of(data.get(..end).unwrap_or_default());
        if known != FirstBytes::Incomplete && known != all {
            panic!("{known:?} becomes {all:?}");
        }
    }
    if all != FirstBytes::Known(Protocol::Http1) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let response = runtime.block_on(async {
        let exchanged = tokio::time::timeout(TIMEOUT, exchange(data));
        exchanged
            .await
            .unwrap_or_else(|_| panic!("the connection does not end"))
    });
    assert!(
        response.is_empty() || response.starts_with(b"HTTP/1."),
        "not a response: {}",
        response.escape_ascii()
    );
    if let Head::Complete {
        length: BodyLength::Ambiguous,
        ..
    } = Head::parse(data)
    {
        assert!(
            response.is_empty()
                || response.starts_with(b"HTTP/1.1 400")
                || response.starts_with(b"HTTP/1.0 400"),
            "an ambiguous request gets {}",
            response.escape_ascii()
        );
    }
}

/// Returns the output of a connection.
async fn exchange(data: &[u8]) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(STREAM_BYTES);
    client.write_all(data).await.unwrap();
    client.shutdown().await.unwrap();
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let shutdown = Arc::<ShutdownSignal>::default();
    let serving = async {
        // An error of the stream is an end like another; a WebSocket ends here.
        drop(front().serve(server, BytesMut::new(), peer, shutdown).await);
    };
    let mut response = Vec::new();
    let reading = client.read_to_end(&mut response);
    let (_, read) = tokio::join!(serving, reading);
    read.unwrap();
    response
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_connection_ends_with_responses() {
        hark_seeds::check("http", super::http);
    }
}
