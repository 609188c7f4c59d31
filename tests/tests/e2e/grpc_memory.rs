//! What clients of gRPC that do not read can make the server keep in memory.

use std::time::Duration;

use futures::stream;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{ChatRequest, ConnectRequest, Send};
use hark_protocol::Request;
use hark_tests::{Harkd, Wire, name};
use tonic::transport::{Channel, Endpoint};

const MIB: u64 = 1024 * 1024;

/// What the server may take for the peers of a test, and for itself meanwhile.
const GROWTH_MAX: u64 = 64 * MIB;

/// What a client takes on all of its streams before they are read. `h2` closes a
/// connection when what its unread frames have less than 256 bytes each comes to
/// half of this: so a client that does not read many short answers says so.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A client whose streams take no more than 16 KiB each before they are read.
async fn client(server: &Harkd) -> ChatClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address()))
        .unwrap()
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    ChatClient::new(endpoint.connect().await.unwrap())
}

/// How much memory the server takes more, once it does no more for who does not
/// read.
async fn check_growth(server: &Harkd, before: u64) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let growth = server.resident_bytes().saturating_sub(before);
    println!("{} MiB more for clients that do not read", growth / MIB);
    assert!(growth < GROWTH_MAX, "{growth} bytes");
}

#[tokio::test]
async fn messages_that_are_not_read_stay_in_the_store() {
    let server = Harkd::builder().arg("--sync=os").start();
    let (users, messages) = (16, 250);
    let mut wire = Wire::connect(server.address()).await;
    for user in 0..users {
        let user = format!("user{user}");
        wire.create(&user).await;
        for id in 1..=messages {
            wire.write(id, Request::Send { user: name(&user), text: "x".repeat(60_000).into() }).await;
        }
        wire.reply_to(messages).await;
    }
    let before = server.resident_bytes();
    let mut client = client(&server).await;
    let mut unread = Vec::new();
    // 240 MB in all.
    for user in 0..users {
        let request = ConnectRequest { user: format!("user{user}"), password: String::new() };
        unread.push(client.connect(request).await.unwrap().into_inner());
    }
    check_growth(&server, before).await;
    drop(unread);
}

#[tokio::test]
async fn requests_whose_answers_are_not_read_stay_at_the_client() {
    let server = Harkd::builder().arg("--sync=os").start();
    let before = server.resident_bytes();
    let mut client = client(&server).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        // A gigabyte each, made when the server takes it.
        let requests = stream::iter((1..=100_000).map(|id| {
            let send = Send { to: "nobody".to_owned(), text: "x".repeat(10_000) };
            ChatRequest { id, command: Some(Command::Send(send)) }
        }));
        unread.push(client.bi_di_chat(requests).await.unwrap().into_inner());
    }
    check_growth(&server, before).await;
    drop(unread);
}
