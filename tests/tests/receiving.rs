//! What section "Receiving" of `docs/PROTOCOL.md` promises, sentence by
//! sentence, of the real server.

use hark_protocol::limits::{WINDOW_BYTES_MAX, WINDOW_MESSAGES_MAX};
use hark_protocol::{ByeReason, Code, Frame, Reply, Request, Sequence};
use hark_tests::{Harkd, Wire, name, send};

const BYE_TAKEN_OVER: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::TakenOver));
const BYE_DELETED: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::Deleted));

/// A server with the users, and a connection to it.
async fn with_users(users: &[&str]) -> (Harkd, Wire) {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for user in users {
        wire.create(user).await;
    }
    (server, wire)
}

fn connect(user: &str) -> Request {
    Request::Connect { user: name(user), password: None }
}

fn login(user: &str) -> Request {
    Request::Login { user: name(user), password: None }
}

fn delete(user: &str) -> Request {
    Request::Delete { user: name(user), password: None }
}

#[tokio::test]
async fn connect_delivers_what_is_queued_and_then_what_arrives() {
    let (server, mut alice) = with_users(&["alice", "bob"]).await;
    alice.ok(login("alice")).await;
    alice.sent("bob", "one, with a comma").await;
    alice.sent("bob", "two\nlines").await;

    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    let first = bob.message().await;
    assert_eq!((&*first.text, first.sender), ("one, with a comma", Some(name("alice"))));
    assert_eq!(&*bob.message().await.text, "two\nlines");
    alice.sent("bob", "three").await;
    assert_eq!(&*bob.message().await.text, "three");
}

#[tokio::test]
async fn a_message_from_nobody_has_no_sender_and_a_time_of_now() {
    let (_server, mut wire) = with_users(&["bob"]).await;
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    wire.sent("bob", "boo").await;
    wire.receive("bob").await;
    let message = wire.message().await;
    assert_eq!(message.sender, None);
    assert!(u128::from(message.time_ms).abs_diff(before) < 60_000, "{} and {before}", message.time_ms);
}

#[tokio::test]
async fn login_does_not_receive_and_does_not_take_over() {
    let (server, mut alice) = with_users(&["alice", "bob"]).await;
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let mut other = Wire::connect(server.address()).await;
    other.ok(login("bob")).await;
    alice.sent("bob", "hello").await;
    assert_eq!(&*bob.message().await.text, "hello");
    assert!(other.is_quiet().await);
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_with_the_same_number() {
    let (server, mut alice) = with_users(&["bob"]).await;
    for text in ["one", "two", "three"] {
        alice.sent("bob", text).await;
    }
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 3);
    let [one, two, three] = [bob.message().await, bob.message().await, bob.message().await];
    assert!(one.sequence < two.sequence && two.sequence < three.sequence);
    bob.ack(one.sequence).await;
    drop(bob);

    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    assert_eq!([bob.message().await, bob.message().await], [two, three.clone()]);
    bob.ack(three.sequence).await;
    assert_eq!(bob.receive("bob").await, 0, "an ack before a connect on the same connection counts");
    assert!(bob.is_quiet().await);
}

#[tokio::test]
async fn connect_again_on_the_same_connection_pushes_again_after_its_ok() {
    let (_server, mut wire) = with_users(&["bob"]).await;
    wire.sent("bob", "one").await;
    assert_eq!(wire.receive("bob").await, 1);
    let one = wire.message().await;
    assert_eq!(wire.receive("bob").await, 1, "and there is no bye: it takes over from itself");
    assert_eq!(wire.message().await, one);
}

#[tokio::test]
async fn a_later_connect_takes_over_and_the_former_stays_open_as_the_user() {
    let (server, mut alice) = with_users(&["alice", "bob"]).await;
    let mut former = Wire::connect(server.address()).await;
    former.receive("bob").await;
    alice.sent("bob", "one").await;
    let one = former.message().await;

    let mut latter = Wire::connect(server.address()).await;
    assert_eq!(latter.receive("bob").await, 1);
    assert_eq!(former.next().await, Some(BYE_TAKEN_OVER));
    assert_eq!(latter.message().await, one);
    alice.sent("bob", "two").await;
    let two = latter.message().await;
    assert!(former.is_quiet().await, "no further messages");

    // It is still bob, and its acks count for what it was pushed.
    former.sent("alice", "hi").await;
    former.ack(one.sequence).await;
    former.ack(two.sequence).await;
    alice.receive("alice").await;
    assert_eq!(alice.message().await.sender, Some(name("bob")));
    let mut again = Wire::connect(server.address()).await;
    assert_eq!(again.receive("bob").await, 1, "two was never pushed to the former");
    assert_eq!(again.message().await, two);
}

#[tokio::test]
async fn login_as_somebody_else_and_disconnect_end_the_reception() {
    let (server, mut alice) = with_users(&["alice", "bob"]).await;
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    bob.ok(login("bob")).await;
    alice.sent("bob", "one").await;
    let one = bob.message().await;
    bob.ok(login("alice")).await;
    alice.sent("bob", "two").await;
    assert!(bob.is_quiet().await);
    bob.ack(one.sequence).await;

    assert_eq!(bob.receive("bob").await, 1, "the ack after the login counted for bob");
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

#[tokio::test]
async fn the_ok_to_a_connect_stands_between_the_pushes_for_the_two_users() {
    let (_server, mut wire) = with_users(&["alice", "bob"]).await;
    for n in 0..300 {
        wire.sent("alice", &format!("a{n}")).await;
        wire.sent("bob", &format!("b{n}")).await;
    }
    wire.write_all([(1, connect("alice")), (2, connect("bob"))]).await;
    let mut seen = String::new();
    for _ in 0..2 + WINDOW_MESSAGES_MAX {
        match wire.next().await.unwrap() {
            Frame { id: Some(id), .. } => seen.push_str(&id.to_string()),
            Frame { message: Reply::String(delivery), .. } => seen.push_str(&delivery.text[..1]),
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.starts_with('1'), "{seen}");
    let (before, after) = seen.split_once('2').expect("an ok to the second");
    assert!(!before.contains('b') && !after.contains('a'), "{seen}");
}

#[tokio::test]
async fn an_ack_above_what_was_pushed_is_ignored() {
    let (server, mut wire) = with_users(&["bob"]).await;
    wire.sent("bob", "one").await;
    assert_eq!(wire.receive("bob").await, 1);
    let one = wire.message().await;
    wire.ack(Sequence(one.sequence.0 + 1)).await;
    wire.ack(Sequence(u64::MAX)).await;
    assert_eq!(wire.receive("bob").await, 1);
    assert!(server.log().contains("ignoring an ack"), "{}", server.log());
}

#[tokio::test]
async fn an_ack_that_is_no_number_is_a_bad_request_with_id_0() {
    let (_server, mut wire) = with_users(&[]).await;
    let mut frame = vec![0, 0, 0, 21, 0, 0, 0, 0];
    frame.extend_from_slice(b"ack\0\0\0\0\0\0\0\0\0\0\0\0no");
    wire.write_bytes(&frame).await;
    let Some(Frame { id: None, message: Reply::NotOk(refusal) }) = wire.next().await else { panic!() };
    assert_eq!(refusal.code, Code::BadRequest);
    wire.ping().await;
}

#[tokio::test]
async fn the_window_is_256_messages() {
    let (_server, mut wire) = with_users(&["bob"]).await;
    wire.write_all((1..=1000).map(|id| (id, send("bob", &id.to_string())))).await;
    wire.reply_to(1000).await;
    let mut bob = Wire::connect(_server.address()).await;
    assert_eq!(bob.receive("bob").await, 1000);
    let mut last = Sequence(0);
    for n in 1..=WINDOW_MESSAGES_MAX {
        let message = bob.message().await;
        assert_eq!(message.text, *n.to_string());
        last = message.sequence;
    }
    assert!(bob.is_quiet().await);
    bob.ack(last).await;
    assert_eq!(&*bob.message().await.text, "257");
}

#[tokio::test]
async fn the_window_is_a_mebibyte_but_at_least_one_message() {
    let server = Harkd::builder().arg("--max-frame=4000000").start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let big = "x".repeat(3_000_000);
    wire.sent("bob", &big).await;
    wire.sent("bob", &"y".repeat(WINDOW_BYTES_MAX - 10)).await;
    wire.sent("bob", "0123456789").await;
    wire.sent("bob", "z").await;
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let first = bob.message().await;
    assert_eq!(first.text, big);
    assert!(bob.is_quiet().await);
    bob.ack(first.sequence).await;
    bob.message().await;
    let third = bob.message().await;
    assert_eq!(&*third.text, "0123456789");
    assert!(bob.is_quiet().await, "a byte more than a mebibyte");
    bob.ack(third.sequence).await;
    assert_eq!(&*bob.message().await.text, "z");
}

#[tokio::test]
async fn delete_ends_the_reception_and_drops_the_queue() {
    let (server, mut alice) = with_users(&["bob"]).await;
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    alice.sent("bob", "unread").await;
    let unread = bob.message().await;
    assert_eq!(alice.ok(delete("bob")).await.as_deleted(), Some(true));
    assert_eq!(bob.next().await, Some(BYE_DELETED));
    assert_eq!(alice.ok(delete("bob")).await.as_deleted(), Some(false));
    alice.refused(send("bob", "x"), Code::NoSuchUser).await;
    alice.refused(connect("bob"), Code::NoSuchUser).await;

    // A new account of the name is another one: no mail, no ack, no identity of
    // the old one, and higher numbers.
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

#[tokio::test]
async fn whoever_deletes_itself_gets_the_ok_and_then_the_bye() {
    for _ in 0..20 {
        let (_server, mut bob) = with_users(&["bob"]).await;
        bob.receive("bob").await;
        bob.write(7, delete("bob")).await;
        let first = bob.next().await.unwrap();
        assert_eq!(
            (first.id.map(|id| id.value()), bob.next().await),
            (Some(7), Some(BYE_DELETED)),
            "{first:?}"
        );
        bob.ping().await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_costs_little() {
    let (server, mut alice) = with_users(&["slow", "bob"]).await;
    let mut slow = Wire::connect(server.address()).await;
    slow.receive("slow").await;
    let _asleep = slow.into_stream();
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let before = server.resident_bytes();
    let text = "x".repeat(1000);
    for _ in 0..20 {
        alice.write_all((1..=1000).map(|id| (id, send("slow", &text)))).await;
        alice.reply_to(1000).await;
        while !matches!(alice.next().await, Some(Frame { id: Some(id), .. }) if id.value() == 999) {}
        alice.sent("bob", "still here").await;
        let message = bob.message().await;
        bob.ack(message.sequence).await;
    }
    // 20 MB were sent to who does not read; the engine keeps some in memory.
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 120 << 20, "grown by {} KiB", grown >> 10);
}
