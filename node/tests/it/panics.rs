//! A panic ends what panicked, and nothing else.

use hark_node::{Error, Json, Node};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::harness::{Ask, Driven, echo, error, ms};

/// Fields that cannot be written in the worst way.
struct Panicking;

impl Serialize for Panicking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("half", "of it")?;
        panic!("while it is written");
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

fn program(node: &Node<u32>) {
    echo(node);
    node.handle("at_once", async |node: Node<u32>, _: Ask| -> Result<()> {
        let mut state = node.state();
        *state += 1;
        panic!("with the state in hand");
    });
    node.handle(
        "after_a_wait",
        async |node: Node<u32>, _: Ask| -> Result<()> {
            node.sleep(ms(10)).await;
            *node.state() += 1;
            panic!("after a wait");
        },
    );
    node.handle("while_written", async |_, _: Ask| Ok(Panicking));
    node.receive("in_a_receiver", async |_, _: Ask| panic!("in a receiver"));
    node.handle("after_an_answer", async |_, request: Ask| -> Result<()> {
        request.responder.reply(&());
        panic!("after an answer");
    });
    node.receive("in_a_callback", async |node: Node<u32>, _: Ask| {
        node.rpc("n2", "ask", &(), |_, _| panic!("in a callback"))
            .unwrap();
    });
    node.receive("in_a_task", async |node: Node<u32>, _: Ask| {
        node.spawn(async { panic!("in a task") });
    });
}

const CRASHED: &str = "has panicked";

#[track_caller]
fn crashed(out: &[(String, Value)], kind: &str, msg_id: i64) {
    let text = format!("the handler of {kind} {CRASHED}");
    assert_eq!(out, [("c1".to_owned(), error(13, &text, msg_id))]);
}

#[test]
fn a_handler_that_panics_is_answered_with_13_and_gives_the_state_back() {
    let mut driven = Driven::new(program);
    crashed(
        &driven.ask("c1", &json!({"type": "at_once", "msg_id": 1})),
        "at_once",
        1,
    );
    assert_eq!(driven.ask("c1", &json!({"type": "at_once"})), []);
    assert_eq!(*driven.node.state(), 2);
    driven.is_well();
}

#[test]
fn a_panic_after_a_wait_is_answered_with_13() {
    let mut driven = Driven::new(program);
    assert_eq!(
        driven.ask("c1", &json!({"type": "after_a_wait", "msg_id": 1})),
        []
    );
    crashed(&driven.pass(ms(10)), "after_a_wait", 1);
    driven.is_well();
    driven.is_at_rest();
}

#[test]
fn fields_that_panic_leave_nothing_in_the_output() {
    let mut driven = Driven::new(program);
    crashed(
        &driven.ask("c1", &json!({"type": "while_written", "msg_id": 1})),
        "while_written",
        1,
    );
    driven.is_well();
}

#[test]
fn a_message_that_panics_while_it_is_sent_is_not_sent() {
    let mut driven = Driven::<()>::new(|node| {
        echo(node);
        node.receive("send", async |node: Node<()>, _: Ask| {
            node.send("n2", "x", &Panicking).unwrap()
        });
        node.receive("rpc", async |node: Node<()>, _: Ask| {
            node.rpc("n2", "x", &Panicking, |_, _| ()).unwrap();
        });
        node.handle("call", async |node: Node<()>, _: Ask| {
            node.call::<()>("n2", "x", &Panicking).await
        });
    });
    for (id, kind) in (1..).zip(["send", "rpc", "call"]) {
        crashed(
            &driven.ask("c1", &json!({"type": kind, "msg_id": 1})),
            kind,
            id,
        );
    }
    driven.is_well();
    driven.is_at_rest();
}

#[test]
fn a_panic_in_a_receiver_a_task_or_a_callback_is_answered_with_13() {
    let mut driven = Driven::new(program);
    crashed(
        &driven.ask("c1", &json!({"type": "in_a_receiver", "msg_id": 1})),
        "in_a_receiver",
        1,
    );
    crashed(
        &driven.ask("c1", &json!({"type": "in_a_task", "msg_id": 1})),
        "in_a_task",
        2,
    );
    driven.ask("c1", &json!({"type": "in_a_callback", "msg_id": 1}));
    crashed(
        &driven.ask("n2", &json!({"type": "ask_ok", "in_reply_to": 3})),
        "in_a_callback",
        4,
    );
    driven.is_well();
    driven.is_at_rest();
}

#[test]
fn a_panic_in_the_callback_of_a_call_that_timed_out_is_answered_with_13() {
    let mut driven = Driven::new(program);
    driven.ask("c1", &json!({"type": "in_a_callback", "msg_id": 1}));
    driven.ask("c2", &json!({"type": "in_a_callback", "msg_id": 1}));
    let out = driven.pass(ms(2000));
    assert_eq!(
        out.iter().map(|(dest, _)| dest).collect::<Vec<_>>(),
        ["c1", "c2"]
    );
    assert!(out.iter().all(|(_, body)| body["code"] == 13), "{out:?}");
    driven.is_at_rest();
}

#[test]
fn a_panic_after_the_answer_says_no_more() {
    let mut driven = Driven::new(program);
    let out = driven.ask("c1", &json!({"type": "after_an_answer", "msg_id": 1}));
    assert_eq!(
        out,
        [(
            "c1".to_owned(),
            json!({"type": "after_an_answer_ok", "in_reply_to": 1, "msg_id": 1})
        )]
    );
}

#[test]
fn a_panic_does_not_end_what_is_done_again_and_again() {
    let mut driven = Driven::<u32>::new(|node| {
        echo(node);
        node.every(ms(100), async |node: Node<u32>| {
            *node.state() += 1;
            if node.state().is_multiple_of(2) {
                node.sleep(ms(1)).await;
                panic!("every second time");
            }
        });
        node.on_init(async |_| panic!("on init"));
    });
    driven.pass(ms(1000));
    assert_eq!(*driven.node.state(), 9, "each panic came 1 ms late");
    driven.is_well();
}

#[test]
fn a_body_that_panics_while_it_is_read_is_answered_with_13() {
    struct Unreadable;
    impl<'de> serde::Deserialize<'de> for Unreadable {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
            panic!("while it is read");
        }
    }
    let mut driven = Driven::<()>::new(|node| {
        echo(node);
        node.handle("read", async |_, _: hark_node::Request<Unreadable>| {
            Ok::<_, Error>(None::<Json>)
        });
    });
    crashed(
        &driven.ask("c1", &json!({"type": "read", "msg_id": 1})),
        "read",
        1,
    );
    driven.is_well();
}
