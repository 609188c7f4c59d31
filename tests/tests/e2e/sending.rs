//! Section "Sending" of `docs/PROTOCOL.md` with the real server and over all
//! fronts: sessions, repeats, and crashes.

use hark_protocol::{Code, Frame, Reply, Request};
use hark_tests::{Front, Harkd, Wire, name, send};

hark_tests::through_all_fronts_on_all_stores! {
    sessions:
        hello_returns_version_and_largest_frame,
        immediate_repeat_is_stored_once,
        forgotten_id_is_a_bad_request,
        hello_closes_former_connection_of_its_session,
        pipelined_requests_take_effect_in_order;
    calls:
        repeat_gets_the_same_answer,
        repeat_is_answered_although_new_sends_are_refused,
        without_hello_a_repeat_is_a_new_message,
        text_length_bounds_are_enforced,
        invalid_user_or_pattern_is_refused;
    sample:
        hello_closes_former_connection_of_its_session,
        pipelined_requests_take_effect_in_order,
        repeat_gets_the_same_answer;
}

hark_tests::through_all_fronts!(mod http_to_websocket, Http, WebSocket,
    repeat_gets_the_same_answer,
    repeat_is_answered_although_new_sends_are_refused,
    without_hello_a_repeat_is_a_new_message,
    text_length_bounds_are_enforced);

hark_tests::through_all_fronts!(mod websocket_to_http, WebSocket, Http,
    repeat_gets_the_same_answer,
    repeat_is_answered_although_new_sends_are_refused,
    without_hello_a_repeat_is_a_new_message,
    text_length_bounds_are_enforced);

fn hello(session: &str) -> Request {
    Request::Hello {
        version: 1,
        session: session.parse().unwrap(),
    }
}

#[track_caller]
fn check_ok(reply: Reply) {
    assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
}

#[track_caller]
fn check_refused(reply: Reply, code: Code) {
    assert!(
        matches!(&reply, Reply::NotOk(refusal) if refusal.code == code),
        "{reply:?} is not {code}"
    );
}

async fn texts(front: Front, server: &Harkd, user: &str) -> Vec<String> {
    let mut wire = front.connect(server.address()).await;
    let mut texts = Vec::new();
    for _ in 0..wire.receive(user).await {
        texts.push(wire.message().await.text.to_string());
    }
    texts
}

async fn hello_returns_version_and_largest_frame(one: Front, other: Front) {
    let server = Harkd::builder().arg("--max-frame=5000").start();
    let mut wire = one.connect(server.address()).await;
    assert_eq!(wire.ok(hello("s")).await.as_hello(), Some((1, 5000)));
    wire.refused(hello("s"), Code::BadRequest).await;
    let mut late = other.connect(server.address()).await;
    late.ping().await;
    late.refused(hello("t"), Code::BadRequest).await;
    let mut newer = other.connect(server.address()).await;
    newer
        .refused(
            Request::Hello {
                version: 2,
                session: "u".parse().unwrap(),
            },
            Code::BadRequest,
        )
        .await;
}

async fn repeat_gets_the_same_answer(one: Front, other: Front) {
    let mut server = Harkd::start();
    let mut wire = one.hello(server.address(), "session").await;
    wire.create("bob").await;
    wire.write_all([
        (10, send("bob", "one")),
        (12, send("nobody", "lost")),
        (15, send("bob", "two")),
    ])
    .await;
    check_ok(wire.reply_to(10).await);
    check_refused(wire.reply_to(12).await, Code::NoSuchUser);
    check_ok(wire.reply_to(15).await);
    drop(wire);

    for front in [other, one] {
        let mut again = front.hello(server.address(), "session").await;
        // The refusal was decided as well: creating the user now does not
        // change the answer to the repeat.
        drop(
            again
                .ask(Request::Create {
                    user: name("nobody"),
                    password: None,
                })
                .await,
        );
        again
            .write_all([
                (10, send("bob", "one")),
                (12, send("nobody", "lost")),
                (15, send("bob", "two")),
            ])
            .await;
        check_ok(again.reply_to(10).await);
        check_refused(again.reply_to(12).await, Code::NoSuchUser);
        check_ok(again.reply_to(15).await);
        drop(again);
        server = server.kill_and_restart();
    }
    assert_eq!(texts(other, &server, "bob").await, ["one", "two"]);
    assert_eq!(texts(other, &server, "nobody").await, [""; 0]);
}

async fn repeat_is_answered_although_new_sends_are_refused(one: Front, other: Front) {
    let server = Harkd::builder().arg("--max-queued-messages=1").start();
    let mut wire = one.hello(server.address(), "session").await;
    wire.create("bob").await;
    wire.write_all([(100, send("bob", "one")), (101, send("bob", "two"))])
        .await;
    check_ok(wire.reply_to(100).await);
    check_refused(wire.reply_to(101).await, Code::QueueFull);
    drop(wire);
    let mut wire = other.hello(server.address(), "session").await;
    wire.write(100, send("bob", "one")).await;
    check_ok(wire.reply_to(100).await);
    assert_eq!(texts(other, &server, "bob").await, ["one"]);
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    let first = bob.message().await;
    bob.ack(first.sequence).await;
    wire.write(101, send("bob", "two")).await;
    check_refused(wire.reply_to(101).await, Code::QueueFull);
    wire.write(102, send("bob", "three")).await;
    check_ok(wire.reply_to(102).await);
    assert_eq!(texts(other, &server, "bob").await, ["three"]);
}

async fn immediate_repeat_is_stored_once(one: Front, other: Front) {
    let server = Harkd::start();
    let mut wire = one.hello(server.address(), "session").await;
    wire.create("bob").await;
    wire.write_all([(10, send("bob", "one")), (10, send("bob", "one"))])
        .await;
    check_ok(wire.reply_to(10).await);
    check_ok(wire.reply_to(10).await);
    assert_eq!(texts(other, &server, "bob").await, ["one"]);
}

async fn forgotten_id_is_a_bad_request(one: Front, other: Front) {
    let server = Harkd::start();
    let mut wire = one.hello(server.address(), "session").await;
    wire.create("bob").await;
    wire.write(10, send("bob", "one")).await;
    check_ok(wire.reply_to(10).await);
    let mut wire = other.hello(server.address(), "session").await;
    wire.write(9, send("bob", "zero")).await;
    check_refused(wire.reply_to(9).await, Code::BadRequest);
    assert_eq!(texts(other, &server, "bob").await, ["one"]);
}

async fn hello_closes_former_connection_of_its_session(one: Front, other: Front) {
    let server = Harkd::start();
    let mut former = one.hello(server.address(), "session").await;
    former.create("bob").await;
    former
        .write_all((100..200).map(|id| (id, send("bob", &id.to_string()))))
        .await;
    let mut latter = other.hello(server.address(), "session").await;
    // All accepted sends of the former connection are decided by now. Repeating
    // all in order and then sending a new one stores each once and in order.
    latter
        .write_all((100..201).map(|id| (id, send("bob", &id.to_string()))))
        .await;
    for id in 100..201 {
        check_ok(latter.reply_to(id).await);
    }
    while former.next().await.is_some() {}
    let expected: Vec<String> = (100..201).map(|id| id.to_string()).collect();
    assert_eq!(texts(other, &server, "bob").await, expected);
}

#[tokio::test]
async fn hello_closes_a_blocked_connection() {
    let server = Harkd::start();
    let mut former = Wire::hello(server.address(), "session").await;
    // Unread answers that fill all the buffers on the way.
    let user = |n: u32| name(&format!("{n:060}"));
    former
        .write_all((1..=1000).map(|id| {
            (
                id,
                Request::Create {
                    user: user(id),
                    password: None,
                },
            )
        }))
        .await;
    former.reply_to(1000).await;
    former
        .write_all((1001..=1400).map(|id| (id, Request::List { pattern: None })))
        .await;
    former.reply_to(1010).await;
    let _asleep = former.into_stream();
    let mut latter = Wire::hello(server.address(), "session").await;
    latter.ping().await;
}

async fn without_hello_a_repeat_is_a_new_message(one: Front, other: Front) {
    let server = Harkd::start();
    let mut wire = one.connect(server.address()).await;
    wire.create("bob").await;
    wire.write(5, send("bob", "one")).await;
    check_ok(wire.reply_to(5).await);
    wire.write(5, send("bob", "one")).await;
    check_ok(wire.reply_to(5).await);
    assert_eq!(texts(other, &server, "bob").await, ["one", "one"]);
}

#[tokio::test]
async fn sends_behind_refused_hello_are_not_stored() {
    let server = Harkd::builder().arg("--max-sessions=1").start();
    let mut first = Wire::hello(server.address(), "first").await;
    first.create("bob").await;
    let other = |version| Request::Hello {
        version,
        session: "other".parse().unwrap(),
    };
    for (hello, code) in [(other(1), Code::TooMany), (other(2), Code::BadRequest)] {
        let mut wire = Wire::connect(server.address()).await;
        wire.write(9, hello).await;
        wire.write(1, send("bob", "outside of its session")).await;
        check_refused(wire.reply_to(9).await, code);
        assert!(wire.next().await.is_none(), "the connection is closed");
    }
    assert_eq!(texts(Front::Native, &server, "bob").await, [""; 0]);
}

async fn pipelined_requests_take_effect_in_order(one: Front, other: Front) {
    let server = Harkd::start();
    let mut wire = one.connect(server.address()).await;
    let user = || name("bob");
    wire.write_all([
        (
            1,
            Request::Create {
                user: user(),
                password: None,
            },
        ),
        (2, send("bob", "one")),
        (
            3,
            Request::Login {
                user: user(),
                password: None,
            },
        ),
        (4, send("bob", "two")),
        (
            5,
            Request::Delete {
                user: user(),
                password: None,
            },
        ),
        (6, send("bob", "three")),
        (
            7,
            Request::Create {
                user: user(),
                password: None,
            },
        ),
        (8, send("bob", "four")),
        (9, Request::List { pattern: None }),
    ])
    .await;
    for id in [1, 2, 3, 4, 5, 7, 8] {
        check_ok(wire.reply_to(id).await);
    }
    check_refused(wire.reply_to(6).await, Code::NoSuchUser);
    assert_eq!(wire.reply_to(9).await, Reply::List(vec![user()]));
    check_ok(wire.reply_to(9).await);
    let mut wire = other.connect(server.address()).await;
    assert_eq!(wire.receive("bob").await, 1);
    let four = wire.message().await;
    assert_eq!(
        (&*four.text, four.sender),
        ("four", None),
        "the user who sent it has ended"
    );
}

async fn text_length_bounds_are_enforced(one: Front, other: Front) {
    let server = Harkd::start();
    let mut wire = one.connect(server.address()).await;
    wire.create("bob").await;
    let longest = "x".repeat(65_536 - 256);
    wire.sent("bob", "").await;
    wire.sent("bob", &longest).await;
    wire.refused(send("bob", &format!("{longest}x")), Code::TooLarge)
        .await;
    assert_eq!(texts(other, &server, "bob").await, ["", &longest]);
}

async fn invalid_user_or_pattern_is_refused(one: Front, other: Front) {
    let server = Harkd::start();
    for front in [one, other] {
        let mut client = front.connect(server.address()).await;
        client.refused(send("nobody", "x"), Code::NoSuchUser).await;
        client
            .refused(
                Request::Connect {
                    user: name("nobody"),
                    password: None,
                },
                Code::NoSuchUser,
            )
            .await;
        client
            .refused(
                Request::List {
                    pattern: Some("(".into()),
                },
                Code::BadPattern,
            )
            .await;
        client.ping().await;
    }
}

#[tokio::test]
async fn wrong_frame_length_is_a_protocol_error() {
    let server = Harkd::start();
    for length in [0_u32, 18, 65_537, 0x00ff_ffff, 0x00ff_fffe] {
        let mut wire = Wire::connect(server.address()).await;
        wire.write(1, Request::Ping).await;
        wire.write_bytes(&length.to_be_bytes()).await;
        check_ok(wire.reply_to(1).await);
        let Some(Frame {
            id: None,
            message: Reply::Error { failure, .. },
        }) = wire.next().await
        else {
            panic!("no error for {length}");
        };
        assert_eq!(failure.as_str(), "protocol");
        assert_eq!(wire.next().await, None);
    }
}

#[tokio::test]
async fn malformed_request_keeps_the_connection_open() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for (command, payload, code) in [
        ("sned", "bob,x", Code::UnknownCommand),
        ("send", "bob", Code::BadRequest),
        ("send", "b b,x", Code::BadName),
        ("create", "", Code::BadRequest),
        ("create", "bob,", Code::BadPassword),
        ("create", ",x", Code::BadName),
        ("list", "(", Code::BadPattern),
        ("ping", "x", Code::BadRequest),
        ("send", "\u{1}\u{2},x", Code::BadName),
    ] {
        let length = u32::try_from(19 + payload.len()).unwrap();
        let mut frame = [length.to_be_bytes(), 7_u32.to_be_bytes()].concat();
        frame.extend_from_slice(format!("{command:\0<15}{payload}").as_bytes());
        wire.write_bytes(&frame).await;
        check_refused(wire.reply_to(7).await, code);
    }
    wire.write(0, Request::Ping).await;
    let Some(Frame { id: None, message }) = wire.next().await else {
        panic!()
    };
    check_refused(message, Code::BadRequest);
    wire.ping().await;
}
