//! `Connect` and `Ack`.

use std::time::Duration;

use futures::FutureExt;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::{AckRequest, ConnectRequest, DeleteRequest};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::server::{Server, Subscription, code, to};

async fn ack(client: &mut ChatClient<Channel>, receipt: &str, sequence: u64) -> Result<(), Status> {
    let request = AckRequest {
        receipt: receipt.to_owned(),
        room: None,
        sequence,
    };
    client.ack(request).await.map(drop)
}

/// Waits until the server has noticed the cancellation of a stream.
async fn ended(client: &mut ChatClient<Channel>, receipt: &str) {
    while let Ok(()) = ack(client, receipt, 0).await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_unacknowledged_messages_come_again() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    client.send(to("bob", "queued")).await.unwrap();
    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 1);
    let first = bob.message().await;
    client.send(to("bob", "live")).await.unwrap();
    let second = bob.message().await;
    assert_eq!((&*first.text, &*second.text), ("queued", "live"));
    // Over another connection.
    ack(
        &mut server.client().await,
        &connected.receipt,
        first.sequence,
    )
    .await
    .unwrap();

    drop(bob);
    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 1);
    assert_eq!(bob.message().await, second);
}

#[tokio::test]
async fn at_most_256_messages_come_without_an_ack_and_an_ack_makes_room() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    for nth in 0..300 {
        client.send(to("bob", &nth.to_string())).await.unwrap();
    }
    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    let mut last = 0;
    for nth in 0..256 {
        let message = bob.message().await;
        assert_eq!(message.text, nth.to_string());
        last = message.sequence;
    }
    // A reply after this follows every push before it.
    client.send(to("bob", "300")).await.unwrap();
    assert!(bob.next().now_or_never().is_none());
    ack(&mut client, &connected.receipt, last).await.unwrap();
    for nth in 256..=300 {
        assert_eq!(bob.message().await.text, nth.to_string());
    }
}

#[tokio::test]
async fn ack_of_an_unsent_message_is_refused() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    client.send(to("bob", "hello")).await.unwrap();
    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    let message = bob.message().await;
    let above = ack(&mut client, &connected.receipt, message.sequence + 1)
        .await
        .unwrap_err();
    assert_eq!(code(&above), (Code::InvalidArgument, "bad-request"));
    let unknown = ack(&mut client, "receipt", message.sequence)
        .await
        .unwrap_err();
    assert_eq!(code(&unknown), (Code::InvalidArgument, "bad-request"));
    drop(bob);
    let (_bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 1);
}

#[tokio::test]
async fn taken_over_stream_ends_after_its_acknowledgements() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    client.send(to("bob", "hello")).await.unwrap();
    let (mut former, receipt) = Subscription::connect(&mut client, "bob").await;
    let message = former.message().await;
    let (mut latter, _) = Subscription::connect(&mut server.client().await, "bob").await;
    assert_eq!(latter.message().await, message);
    former.bye("taken-over").await;
    ack(&mut client, &receipt.receipt, message.sequence)
        .await
        .unwrap();
    assert_eq!(former.next().await, None);
    let refused = ack(&mut client, &receipt.receipt, message.sequence)
        .await
        .unwrap_err();
    assert_eq!(code(&refused), (Code::InvalidArgument, "bad-request"));

    let (_latest, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 0);
}

#[tokio::test]
async fn stream_of_a_deleted_account_ends() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    client.send(to("bob", "hello")).await.unwrap();
    let (mut bob, _) = Subscription::connect(&mut client, "bob").await;
    bob.message().await;
    client
        .delete(DeleteRequest {
            user: "bob".to_owned(),
            password: String::new(),
            login: None,
        })
        .await
        .unwrap();
    bob.bye("deleted").await;
    assert_eq!(bob.next().await, None);
}

#[tokio::test]
async fn cancelled_stream_receives_no_more() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let (bob, connected) = Subscription::connect(&mut client, "bob").await;
    ack(&mut client, &connected.receipt, 0).await.unwrap();
    drop(bob);
    ended(&mut client, &connected.receipt).await;
}

#[tokio::test]
async fn unread_stream_blocks_no_other_and_can_be_cancelled() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob", "eve"]).await;
    for _ in 0..32 {
        client.send(to("bob", &"x".repeat(60_000))).await.unwrap();
    }
    let (bob, connected) = Subscription::connect(&mut client, "bob").await;
    // On the same connection.
    let (mut eve, _) = Subscription::connect(&mut client, "eve").await;
    for nth in 0..100 {
        client.send(to("eve", &nth.to_string())).await.unwrap();
        assert_eq!(eve.message().await.text, nth.to_string());
    }
    drop(bob);
    ended(&mut client, &connected.receipt).await;
}

#[tokio::test]
async fn stream_ends_at_its_deadline() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut request = Request::new(ConnectRequest {
        user: "bob".to_owned(),
        password: String::new(),
    });
    request.set_timeout(Duration::from_millis(300));
    let mut bob = client.connect(request).await.unwrap().into_inner();
    assert!(bob.message().await.unwrap().is_some());
    assert_eq!(
        bob.message().await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
}
