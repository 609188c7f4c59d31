//! Connections: how many, how they end, and what does not end them.

use std::time::Duration;

use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{List, ListRequest, Ping};
use hark_server::server::Limits;
use tonic::Code;

use crate::server::{LIMITS, RULES, Receiver, Server, Session, code, to};

#[tokio::test]
async fn a_connection_too_many_is_refused_in_its_own_words() {
    let server = Server::start_with(RULES, Limits { connections_max: 1, ..LIMITS }).await;
    let mut client = server.client_and(&["bob"]).await;
    let refused = server.client().await.send(to("bob", "x")).await.unwrap_err();
    assert_eq!(code(&refused), (Code::ResourceExhausted, "too-many"));
    client.send(to("bob", "x")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_says_bye_and_answers_what_is_under_way() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob", "eve"]).await;
    let (mut bob, _) = Receiver::connect(&mut client, "bob").await;
    let mut session = Session::open(&mut client).await;
    assert_eq!(session.connect(1, "eve").await, 0);
    let mut idle = Session::open(&mut client).await;
    idle.ok(1, Command::Ping(Ping {})).await;

    let stopped = server.stop();
    bob.bye("shutdown").await;
    assert_eq!(bob.next().await, None);
    session.bye("shutdown").await;
    assert_eq!(session.next().await, None);
    idle.bye("shutdown").await;
    assert_eq!(idle.next().await, None);
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_keep_a_server_from_stopping() {
    let limits = Limits { drain_timeout: Duration::from_millis(200), ..LIMITS };
    let server = Server::start_with(RULES, limits).await;
    let mut client = server.client_and(&["bob"]).await;
    for _ in 0..32 {
        client.send(to("bob", &"x".repeat(60_000))).await.unwrap();
    }
    let (_unread, _) = Receiver::connect(&mut client, "bob").await;
    let sending = Session::open(&mut client).await;
    for id in 1..=5000 {
        sending.say(id, Command::List(List { pattern: String::new() }));
    }
    tokio::time::timeout(Duration::from_secs(5), server.stop()).await.unwrap().unwrap();
    client.list(ListRequest::default()).await.unwrap_err();
}

#[tokio::test]
async fn streams_that_are_not_read_do_not_hold_up_a_connection() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut unread = Vec::new();
    for _ in 0..50 {
        let session = Session::open(&mut client).await;
        for id in 1..=200 {
            session.send(id, "nobody", &"x".repeat(10_000));
        }
        unread.push(session);
    }
    for nth in 0..10 {
        client.send(to("bob", &nth.to_string())).await.unwrap();
    }
    for session in &mut unread {
        for id in 1..=200 {
            assert_eq!(session.next().await.unwrap().0, id);
        }
    }
}
