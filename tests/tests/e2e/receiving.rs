//! Section "Receiving" of `docs/PROTOCOL.md`, sentence by sentence, with the
//! real server and over all fronts.

use hark_protocol::limits::WINDOW_MESSAGES_MAX;
use hark_protocol::{ByeReason, Code, Frame, Reply, Request, Sequence};
use hark_tests::{Client, Front, Harkd, Wire, name, send};

hark_tests::through_all_fronts_on_all_stores! {
    sessions:
        login_does_not_receive_and_does_not_take_over,
        repeated_connect_pushes_again_after_its_ok,
        other_login_and_disconnect_end_receiving,
        connect_ok_separates_pushes_of_two_users,
        ack_above_the_last_push_is_ignored,
        delete_ends_receiving_and_drops_the_queue,
        self_deletion_answers_ok_then_bye;
    calls:
        connect_delivers_queued_then_new_messages,
        anonymous_message_has_time_but_no_sender,
        unacknowledged_message_is_repeated_with_same_number,
        acknowledged_message_is_not_repeated_after_kill,
        later_connect_takes_over,
        receiver_gets_bye_on_account_deletion,
        receiver_gets_bye_on_shutdown;
    sample:
        connect_ok_separates_pushes_of_two_users,
        delete_ends_receiving_and_drops_the_queue,
        acknowledged_message_is_not_repeated_after_kill,
        later_connect_takes_over;
}

// An acknowledgement over HTTP counts without an open response, so a former receiver keeps
// its right to acknowledge.
hark_tests::through_all_fronts!(mod http_to_websocket, Http, WebSocket,
    connect_delivers_queued_then_new_messages,
    anonymous_message_has_time_but_no_sender,
    unacknowledged_message_is_repeated_with_same_number,
    acknowledged_message_is_not_repeated_after_kill,
    receiver_gets_bye_on_account_deletion,
    receiver_gets_bye_on_shutdown);

hark_tests::through_all_fronts!(mod websocket_to_http, WebSocket, Http,
    connect_delivers_queued_then_new_messages,
    anonymous_message_has_time_but_no_sender,
    unacknowledged_message_is_repeated_with_same_number,
    acknowledged_message_is_not_repeated_after_kill,
    later_connect_takes_over,
    receiver_gets_bye_on_account_deletion,
    receiver_gets_bye_on_shutdown);

const BYE_TAKEN_OVER: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::TakenOver));
const BYE_SHUTDOWN: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::Shutdown));
const BYE_DELETED: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::Deleted));

/// Starts a server with these users, and connects to it.
async fn with_users(front: Front, users: &[&str]) -> (Harkd, Client) {
    let server = Harkd::start();
    let mut client = front.connect(server.address()).await;
    for user in users {
        client.create(user).await;
    }
    (server, client)
}

fn connect(user: &str) -> Request {
    Request::Connect {
        user: name(user),
        password: None,
    }
}

fn login(user: &str) -> Request {
    Request::Login {
        user: name(user),
        password: None,
    }
}

fn delete(user: &str) -> Request {
    Request::Delete {
        user: name(user),
        password: None,
    }
}

async fn connect_delivers_queued_then_new_messages(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["alice", "bob"]).await;
    alice.ok(login("alice")).await;
    alice.sent("bob", "one, with a comma").await;
    alice.sent("bob", "two\nlines").await;

    let mut bob = other.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    let first = bob.message().await;
    assert_eq!(
        (&*first.text, first.sender),
        ("one, with a comma", Some(name("alice")))
    );
    assert_eq!(&*bob.message().await.text, "two\nlines");
    alice.sent("bob", "three").await;
    assert_eq!(&*bob.message().await.text, "three");
}

async fn anonymous_message_has_time_but_no_sender(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    let before = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    alice.sent("bob", "boo").await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    let message = bob.message().await;
    assert_eq!(message.sender, None);
    assert!(
        u128::from(message.time_ms).abs_diff(before) < 60_000,
        "{} and {before}",
        message.time_ms
    );
}

async fn login_does_not_receive_and_does_not_take_over(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["alice", "bob"]).await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    let mut other = other.connect(server.address()).await;
    other.ok(login("bob")).await;
    alice.sent("bob", "hello").await;
    assert_eq!(&*bob.message().await.text, "hello");
    assert!(other.is_quiet().await);
}

async fn unacknowledged_message_is_repeated_with_same_number(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    for text in ["one", "two", "three"] {
        alice.sent("bob", text).await;
    }
    let mut bob = other.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 3);
    let [first, second, third] = [
        bob.message().await,
        bob.message().await,
        bob.message().await,
    ];
    assert!(first.sequence < second.sequence && second.sequence < third.sequence);
    bob.ack(first.sequence).await;
    drop(bob);

    let mut bob = one.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    assert_eq!(
        [bob.message().await, bob.message().await],
        [second, third.clone()]
    );
    bob.ack(third.sequence).await;
    assert_eq!(
        bob.receive("bob").await,
        0,
        "an ack before a connect on the same connection counts"
    );
    assert!(bob.is_quiet().await);
}

async fn acknowledged_message_is_not_repeated_after_kill(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    for text in ["one", "two"] {
        alice.sent("bob", text).await;
    }
    let mut bob = other.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    let [first, second] = [bob.message().await, bob.message().await];
    bob.ack(first.sequence).await;
    // A crash may lose an ack, but none that precedes an answered request.
    bob.sent("bob", "three").await;
    let server = server.kill_and_restart();
    let mut bob = one.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    assert_eq!(bob.message().await, second);
    let third = bob.message().await;
    assert!(
        third.sequence > second.sequence && &*third.text == "three",
        "{third:?}"
    );
}

async fn repeated_connect_pushes_again_after_its_ok(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    alice.sent("bob", "one").await;
    let mut bob = other.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 1);
    let message = bob.message().await;
    assert_eq!(
        bob.receive("bob").await,
        1,
        "no bye: it takes over from itself"
    );
    assert_eq!(bob.message().await, message);
}

async fn later_connect_takes_over(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["alice", "bob"]).await;
    let mut former = one.connect(server.address()).await;
    former.receive("bob").await;
    alice.sent("bob", "one").await;
    let first = former.message().await;

    let mut latter = other.connect(server.address()).await;
    assert_eq!(latter.receive("bob").await, 1);
    assert_eq!(former.next().await, Some(BYE_TAKEN_OVER));
    assert_eq!(latter.message().await, first);
    alice.sent("bob", "two").await;
    let two = latter.message().await;
    assert!(former.is_quiet().await, "no further messages");

    // It is still logged in as bob, and its acks count for its pushes.
    former.sent("alice", "hi").await;
    former.ack(first.sequence).await;
    former.ack(two.sequence).await;
    alice.receive("alice").await;
    assert_eq!(alice.message().await.sender, Some(name("bob")));
    let mut again = other.connect(server.address()).await;
    // Two was never pushed to the former, but over HTTP any number counts.
    let left = u64::from(one != Front::Http);
    assert_eq!(again.receive("bob").await, left);
    if left > 0 {
        assert_eq!(again.message().await, two);
    }
}

async fn other_login_and_disconnect_end_receiving(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["alice", "bob"]).await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    bob.ok(login("bob")).await;
    alice.sent("bob", "one").await;
    let first = bob.message().await;
    bob.ok(login("alice")).await;
    alice.sent("bob", "two").await;
    assert!(bob.is_quiet().await);
    bob.ack(first.sequence).await;

    assert_eq!(
        bob.receive("bob").await,
        1,
        "the ack after the login counted for bob"
    );
    let two = bob.message().await;
    bob.ok(Request::Disconnect).await;
    bob.ack(two.sequence).await;
    alice.sent("bob", "three").await;
    assert!(bob.is_quiet().await);
    bob.sent("alice", "from nobody").await;
    assert_eq!(bob.receive("bob").await, 1);
    alice.receive("alice").await;
    assert_eq!(alice.message().await.sender, None);
}

async fn connect_ok_separates_pushes_of_two_users(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["alice", "bob"]).await;
    for n in 0..300 {
        let texts = [format!("a{n}"), format!("b{n}")];
        alice
            .write_all([
                (2 * n + 1, send("alice", &texts[0])),
                (2 * n + 2, send("bob", &texts[1])),
            ])
            .await;
    }
    alice.reply_to(600).await;
    let mut wire = other.connect(server.address()).await;
    wire.write_all([(1, connect("alice")), (2, connect("bob"))])
        .await;
    let mut seen = String::new();
    for _ in 0..2 + WINDOW_MESSAGES_MAX {
        match wire.next().await.unwrap() {
            Frame { id: Some(id), .. } => seen.push_str(&id.to_string()),
            Frame {
                message: Reply::String(delivery),
                ..
            } => seen.push_str(&delivery.text[..1]),
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.starts_with('1'), "{seen}");
    let (before, after) = seen.split_once('2').expect("an ok to the second");
    assert!(!before.contains('b') && !after.contains('a'), "{seen}");
}

async fn ack_above_the_last_push_is_ignored(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    alice.sent("bob", "one").await;
    let mut bob = other.connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 1);
    let message = bob.message().await;
    bob.ack(Sequence(message.sequence.0 + 1)).await;
    bob.ack(Sequence(u64::MAX)).await;
    assert_eq!(bob.receive("bob").await, 1);
    server.wait_for_log("ack ignored");
}

#[tokio::test]
async fn malformed_ack_is_bad_request_with_id_0() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    let mut frame = vec![0, 0, 0, 21, 0, 0, 0, 0];
    frame.extend_from_slice(b"ack\0\0\0\0\0\0\0\0\0\0\0\0no");
    wire.write_bytes(&frame).await;
    let Some(Frame {
        id: None,
        message: Reply::NotOk(refusal),
    }) = wire.next().await
    else {
        panic!()
    };
    assert_eq!(refusal.code, Code::BadRequest);
    wire.ping().await;
}

async fn delete_ends_receiving_and_drops_the_queue(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    alice.sent("bob", "unread").await;
    let unread = bob.message().await;
    assert_eq!(alice.ok(delete("bob")).await.as_deleted(), Some(true));
    assert_eq!(bob.next().await, Some(BYE_DELETED));
    assert_eq!(alice.ok(delete("bob")).await.as_deleted(), Some(false));
    alice.refused(send("bob", "x"), Code::NoSuchUser).await;
    alice.refused(connect("bob"), Code::NoSuchUser).await;

    // A new account of the same name shares neither messages, acks nor logins
    // with the former one, and has higher numbers.
    alice.create("bob").await;
    alice.sent("bob", "new").await;
    bob.ack(unread.sequence).await;
    bob.sent("bob", "from the old one").await;
    assert_eq!(alice.receive("bob").await, 2);
    let new = alice.message().await;
    assert_eq!(&*new.text, "new");
    assert!(new.sequence > unread.sequence);
    assert_eq!(alice.message().await.sender, None);
}

async fn self_deletion_answers_ok_then_bye(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    for _ in 0..20 {
        let mut bob = other.connect(server.address()).await;
        bob.receive("bob").await;
        bob.write(7, delete("bob")).await;
        let first = bob.next().await.unwrap();
        assert_eq!(
            (first.id.map(|id| id.value()), bob.next().await),
            (Some(7), Some(BYE_DELETED)),
            "{first:?}"
        );
        bob.ping().await;
        alice.create("bob").await;
    }
}

async fn receiver_gets_bye_on_account_deletion(one: Front, other: Front) {
    let (server, mut alice) = with_users(one, &["bob"]).await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    alice.ok(delete("bob")).await;
    assert_eq!(bob.next().await, Some(BYE_DELETED));
    alice.refused(send("bob", "x"), Code::NoSuchUser).await;
}

async fn receiver_gets_bye_on_shutdown(one: Front, other: Front) {
    let (mut server, mut alice) = with_users(one, &["alice", "bob"]).await;
    alice.receive("alice").await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    server.signal("TERM");
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.next().await, Some(BYE_SHUTDOWN));
        assert_eq!(client.next().await, None);
    }
    assert!(server.wait().success());
}

#[tokio::test]
async fn slow_reader_is_cheap_and_delays_no_other() {
    let (server, mut alice) = with_users(Front::Native, &["slow", "bob"]).await;
    let mut slow = Wire::connect(server.address()).await;
    slow.receive("slow").await;
    let _asleep = slow.into_stream();
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let before = server.resident_bytes();
    let text = "x".repeat(1000);
    for _ in 0..20 {
        alice
            .write_all((1..=1000).map(|id| (id, send("slow", &text))))
            .await;
        alice.reply_to(1000).await;
        while !matches!(alice.next().await, Some(Frame { id: Some(id), .. }) if id.value() == 999) {
        }
        alice.sent("bob", "still here").await;
        let message = bob.message().await;
        bob.ack(message.sequence).await;
    }
    // 20 MB were sent to a client that does not read; the store keeps some in
    // memory.
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 120 << 20, "grown by {} KiB", grown >> 10);
}
