//! Memory of the server for gRPC clients that do not read.

use std::time::Duration;

use futures::stream;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{ChatRequest, ConnectRequest, Send};
use hark_protocol::Request;
use hark_tests::{Harkd, Wire, name};
use tonic::transport::{Channel, Endpoint};

const MIB: u64 = 1024 * 1024;

/// Allowed growth of the server's memory for the peers of a test, in bytes.
const GROWTH_MAX: u64 = 64 * MIB;

/// Flow control window of a client's connection, in bytes. `h2` closes a
/// connection if the overhead of unread frames, accounted as up to 256 bytes
/// each, exceeds half of this window, so clients with many short unread answers
/// need a large one.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Returns a client whose streams have windows of 16 KiB.
async fn client(server: &Harkd) -> ChatClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address()))
        .unwrap()
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    ChatClient::new(endpoint.connect().await.unwrap())
}

/// Checks the growth of the server's memory, after it has settled.
async fn check_growth(server: &Harkd, before: u64) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let growth = server.resident_bytes().saturating_sub(before);
    println!("{} MiB more for clients that do not read", growth / MIB);
    assert!(growth < GROWTH_MAX, "{growth} bytes");
}

#[tokio::test]
async fn unread_messages_stay_in_the_store() {
    let server = Harkd::builder().arg("--sync=os").start();
    let (users, messages) = (16, 250);
    let mut wire = Wire::connect(server.address()).await;
    for user in 0..users {
        let user = format!("user{user}");
        wire.create(&user).await;
        for id in 1..=messages {
            wire.write(
                id,
                Request::Send {
                    user: name(&user),
                    text: "x".repeat(60_000).into(),
                },
            )
            .await;
        }
        wire.reply_to(messages).await;
    }
    let before = server.resident_bytes();
    let mut client = client(&server).await;
    let mut unread = Vec::new();
    // 240 MB in all.
    for user in 0..users {
        let request = ConnectRequest {
            user: format!("user{user}"),
            password: String::new(),
        };
        unread.push(client.connect(request).await.unwrap().into_inner());
    }
    check_growth(&server, before).await;
    drop(unread);
}

#[tokio::test]
async fn unread_answers_pause_reading_of_requests() {
    let server = Harkd::builder().arg("--sync=os").start();
    let before = server.resident_bytes();
    let mut client = client(&server).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        // A gigabyte for each client, generated on demand.
        let requests = stream::iter((1..=100_000).map(|id| {
            let send = Send {
                to: "nobody".to_owned(),
                text: "x".repeat(10_000),
            };
            ChatRequest {
                id,
                command: Some(Command::Send(send)),
            }
        }));
        unread.push(client.bi_di_chat(requests).await.unwrap().into_inner());
    }
    check_growth(&server, before).await;
    drop(unread);
}
