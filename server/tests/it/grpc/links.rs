//! Connections: their limits, and their end.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use hark_grpc::v1::chat_reply::Reply;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{Bye, Credentials, Idempotency, List, ListRequest, Ok, Ping, SendRequest};
use hark_server::chat::{Rates, Rules};
use hark_server::limit::Rate;
use hark_server::server::ConnectionLimits;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::raw::{Raw, SETTINGS};
use super::server::{LIMITS, RULES, Server, Session, Subscription, code, to};

#[tokio::test]
async fn connection_over_the_limit_is_refused_over_grpc() {
    let server = Server::start_with(
        RULES,
        ConnectionLimits {
            connections_max: 1,
            ..LIMITS
        },
    )
    .await;
    let mut client = server.client_and(&["bob"]).await;
    let refused = server
        .client()
        .await
        .send(to("bob", "x"))
        .await
        .unwrap_err();
    assert_eq!(code(&refused), (Code::ResourceExhausted, "too-many"));
    client.send(to("bob", "x")).await.unwrap();
}

#[tokio::test]
async fn connection_over_the_rate_is_refused_with_a_delay() {
    let limits = ConnectionLimits {
        connects: Rate::per_second(1),
        on_loopback: true,
        ..LIMITS
    };
    let server = Server::start_with(RULES, limits).await;
    let mut first = server.client_and(&["bob"]).await;
    // Four more pass at once, and one each second: some of twelve are too early even on
    // a slow machine.
    let sends = (0..12).map(|_| async { server.client().await.send(to("bob", "x")).await });
    // A refused connection is closed after a moment, perhaps before its call has come.
    let is_answered = |status: &Status| status.code() == Code::ResourceExhausted;
    let refused: Vec<_> = join_all(sends)
        .await
        .into_iter()
        .filter_map(Result::err)
        .filter(is_answered)
        .collect();
    assert!((1..=8).contains(&refused.len()), "{refused:?}");
    for status in refused {
        assert_eq!(code(&status), (Code::ResourceExhausted, "rate-limited"));
        assert_eq!(status.metadata().get("hark-retry-after-s").unwrap(), "1");
    }
    first.send(to("bob", "x")).await.unwrap();
}

/// Makes a hundred sends at once, and retries refused ones after their delay. Every one is
/// stored once.
async fn check_too_fast(rates: Rates, login: Option<Credentials>) {
    let server = Server::start_with(Rules { rates, ..RULES }, LIMITS).await;
    let mut client = server.client_and(&["bob", "eve"]).await;
    let mut left: Vec<u32> = (1..=100).collect();
    let mut rounds = 0;
    while !left.is_empty() {
        let calls = left.iter().map(|&id| {
            let idempotency = Some(Idempotency {
                session: "session".to_owned(),
                id,
            });
            let request = SendRequest {
                login: login.clone(),
                idempotency,
                ..to("bob", &id.to_string())
            };
            let mut client = client.clone();
            async move { client.send(request).await.map_err(|status| (id, status)) }
        });
        let refused: Vec<_> = join_all(calls)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        left = refused.iter().map(|(id, _)| *id).collect();
        let mut longest = Duration::ZERO;
        for (_, status) in refused {
            assert_eq!(code(&status), (Code::ResourceExhausted, "rate-limited"));
            let wait = status
                .get_details_retry_info()
                .unwrap()
                .retry_delay
                .unwrap();
            assert!((1..=5).contains(&wait.as_secs()), "{wait:?}");
            longest = longest.max(wait);
        }
        rounds += 1;
        tokio::time::sleep(longest).await;
    }
    assert!((2..20).contains(&rounds), "{rounds} rounds");
    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 100);
    let mut texts = BTreeSet::new();
    for _ in 0..100 {
        texts.insert(bob.message().await.text);
    }
    assert_eq!(texts.len(), 100);
}

#[tokio::test]
async fn calls_over_the_rate_of_a_connection_are_retried() {
    let rates = Rates {
        commands: Rate::per_second(10),
        on_loopback: true,
        ..Rates::NONE
    };
    check_too_fast(rates, None).await;
}

#[tokio::test]
async fn calls_over_the_rate_of_a_user_are_retried() {
    let rates = Rates {
        user_commands: Rate::per_second(20),
        on_loopback: true,
        ..Rates::NONE
    };
    check_too_fast(
        rates,
        Some(Credentials {
            user: "eve".to_owned(),
            password: String::new(),
        }),
    )
    .await;
}

#[tokio::test]
async fn draining_server_answers_requests_and_says_bye() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob", "eve"]).await;
    let (mut bob, _) = Subscription::connect(&mut client, "bob").await;
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
async fn ack_after_bye_counts() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    client.send(to("bob", "hello")).await.unwrap();
    let mut session = Session::open(&mut client).await;
    assert_eq!(session.connect(1, "bob").await, 1);
    let message = session.message().await;
    let store = server.store();
    let stopped = server.stop();
    session.bye("shutdown").await;
    session.say(0, Command::Ack(message.sequence));
    assert_eq!(session.next().await, None);
    stopped.await.unwrap();

    let server = Server::start_on(store, RULES, LIMITS).await;
    let (_bob, connected) = Subscription::connect(&mut server.client().await, "bob").await;
    assert_eq!(connected.queued, 0);
}

#[tokio::test]
async fn sends_are_answered_before_bye() {
    const SENDS: u32 = 2000;
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut session = Session::open(&mut client).await;
    session.ok(SENDS + 1, Command::Ping(Ping {})).await;
    for id in 1..=SENDS {
        session.send(id, "bob", "hello");
    }
    session.stored(1).await;
    let store = server.store();
    let stopped = server.stop();
    let mut answered = 1;
    loop {
        match session.next().await.unwrap() {
            (0, bye) => {
                break assert_eq!(
                    bye,
                    Reply::Bye(Bye {
                        reason: "shutdown".to_owned()
                    })
                );
            }
            (
                id,
                Reply::Ok(Ok {
                    sequence: Some(_), ..
                }),
            ) => assert_eq!(id, answered + 1),
            other => panic!("{other:?} is neither"),
        }
        answered += 1;
    }
    assert_eq!(session.next().await, None);
    stopped.await.unwrap();
    let server = Server::start_on(store, RULES, LIMITS).await;
    let (_bob, connected) = Subscription::connect(&mut server.client().await, "bob").await;
    assert_eq!(connected.queued, u64::from(answered));
}

#[tokio::test]
async fn stream_cancelled_during_the_drain_does_not_delay_it() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob", "eve"]).await;
    client.send(to("bob", "hello")).await.unwrap();
    let mut bob = Session::open(&mut client).await;
    assert_eq!(bob.connect(1, "bob").await, 1);
    bob.message().await;
    let (mut eve, _) = Subscription::connect(&mut client, "eve").await;
    let stopped = server.stop();
    eve.bye("shutdown").await;
    // The server waits for the acknowledgement that it owes.
    drop(bob);
    assert_eq!(eve.next().await, None);
    stopped.await.unwrap();
}

#[tokio::test]
async fn streams_over_the_limit_wait() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let opening = (0..400).map(|id| {
        let mut client = client.clone();
        async move {
            let mut session = Session::open(&mut client).await;
            session.send(1 + id, "bob", "hello");
            session.end();
            session.stored(1 + id).await;
            assert_eq!(session.next().await, None);
        }
    });
    join_all(opening).await;
    let (_bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 400);
}

#[tokio::test]
async fn client_that_never_reads_does_not_block_the_drain() {
    let limits = ConnectionLimits {
        drain_timeout: Duration::from_millis(200),
        ..LIMITS
    };
    let server = Server::start_with(RULES, limits).await;
    let mut client = server.client_and(&["bob"]).await;
    for _ in 0..32 {
        client.send(to("bob", &"x".repeat(60_000))).await.unwrap();
    }
    let (_unread, _) = Subscription::connect(&mut client, "bob").await;
    let sending = Session::open(&mut client).await;
    for id in 1..=5000 {
        sending.say(
            id,
            Command::List(List {
                pattern: String::new(),
            }),
        );
    }
    tokio::time::timeout(Duration::from_secs(5), server.stop())
        .await
        .unwrap()
        .unwrap();
    client.list(ListRequest::default()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn silent_client_does_not_delay_the_drain() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    raw.next_of(SETTINGS).await.unwrap();
    let begun = Instant::now();
    server.stop().await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn unread_streams_do_not_block_their_connection() {
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
