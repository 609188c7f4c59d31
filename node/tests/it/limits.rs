//! The rules that keep a node from becoming mute in the harness: a deadline for
//! each request, messages that wait for the first request, and bodies without
//! reserved names.

use std::time::Duration;

use hark_node::{Error, ErrorCode, Json, Node, REQUEST_TIMEOUT, Request, Responder};
use serde::Serialize;
use serde_json::{Value, json};

use crate::harness::{Ask, Driven, INIT, echo, error, ms, only_code};

const TIMED_OUT: &str = "no answer was ready in time";

fn to_c1(body: Value) -> Vec<(String, Value)> {
    vec![("c1".to_owned(), body)]
}

/// `sleep` answers after 10 s, `keep` never.
fn slow(node: &Node<Vec<Responder>>) {
    echo(node);
    node.handle("sleep", async |node: Node<Vec<Responder>>, _: Ask| {
        node.sleep(ms(10_000)).await;
        Ok(())
    });
    node.receive("keep", async |node: Node<Vec<Responder>>, request: Ask| {
        node.state().push(request.responder);
    });
    node.receive(
        "keep_for_a_second",
        async |node: Node<Vec<Responder>>, request: Ask| {
            request.responder.answer_within(ms(1_000));
            node.state().push(request.responder);
        },
    );
    node.receive("drop", async |_, _: Ask| ());
}

#[test]
fn a_request_is_answered_with_error_0_at_its_deadline() {
    for kind in ["sleep", "keep"] {
        let mut driven = Driven::new(slow);
        assert_eq!(driven.ask("c1", &json!({"type": kind, "msg_id": 1})), []);
        assert_eq!(driven.pass(REQUEST_TIMEOUT - ms(1)), []);
        assert_eq!(driven.pass(ms(1)), to_c1(error(0, TIMED_OUT, 1)));
    }
}

#[test]
fn a_late_answer_is_counted_and_never_written() {
    let mut driven = Driven::new(slow);
    driven.ask("c1", &json!({"type": "sleep", "msg_id": 1}));
    driven.ask("c1", &json!({"type": "keep", "msg_id": 2}));
    assert_eq!(driven.pass(REQUEST_TIMEOUT).len(), 2);
    let responder = driven.node.state().pop().unwrap();
    assert!(!responder.is_open());
    responder.reply(&());
    responder.reply_in_part("part", &()).unwrap();
    assert_eq!(driven.node.late_answers(), 1);
    assert_eq!(driven.pass(ms(60_000)), []);
    assert_eq!(driven.node.late_answers(), 2);
    driven.is_at_rest();
    driven.is_well();
}

#[test]
fn a_request_that_is_answered_leaves_no_deadline() {
    let mut driven = Driven::new(slow);
    driven.ask("c1", &json!({"type": "keep", "msg_id": 1}));
    assert_eq!(driven.machine.next_timeout(), Some(REQUEST_TIMEOUT));
    driven.node.state().pop().unwrap().reply(&());
    driven.output();
    driven.is_at_rest();
    // Nor does one that nothing can answer, or that wants no answer.
    assert_eq!(driven.ask("c1", &json!({"type": "drop", "msg_id": 1})), []);
    assert_eq!(driven.ask("c1", &json!({"type": "keep"})), []);
    driven.is_at_rest();
    driven.ask("c1", &json!({"type": "keep", "msg_id": 1}));
    driven.node.state().clear();
    driven.is_at_rest();
}

#[test]
fn a_deadline_is_what_the_program_sets() {
    let mut driven = Driven::new(slow);
    driven.ask("c1", &json!({"type": "keep_for_a_second", "msg_id": 1}));
    assert_eq!(driven.pass(ms(1_000)), to_c1(error(0, TIMED_OUT, 1)));
    driven.node.answer_within(ms(20_000));
    driven.ask("c1", &json!({"type": "sleep", "msg_id": 1}));
    let answer = json!({"type": "sleep_ok", "in_reply_to": 1, "msg_id": 2});
    assert_eq!(driven.pass(ms(20_000)), to_c1(answer));
    driven.node.answer_within(Duration::MAX);
    driven.ask("c1", &json!({"type": "keep", "msg_id": 1}));
    assert_eq!(driven.pass(ms(1_000_000)), []);
}

/// Talks to others as soon as it has a name.
fn eager(node: &Node<u32>) {
    echo(node);
    node.on_init(async |node: Node<u32>| {
        node.send("n2", "hello", &()).unwrap();
        node.rpc("n2", "ask", &(), |node, reply| {
            *node.state() += 1 + u32::from(reply.is_ok())
        })
        .unwrap();
        let reply = node.call::<()>("lin-kv", "ask", &()).await;
        *node.state() += 10 * u32::from(reply.is_ok());
    });
}

#[test]
fn messages_wait_for_the_first_request() {
    let mut driven = Driven::<u32>::unnamed(eager);
    let out = driven.take(INIT);
    assert_eq!(out.lines().count(), 1, "{out}");
    // Longer than calls wait: their time has not begun.
    assert_eq!(driven.pass(ms(5_000)), []);
    assert_eq!(driven.take(INIT).lines().count(), 1);
    let out = driven.ask("c1", &json!({"type": "echo", "echo": 1, "msg_id": 1}));
    let dests: Vec<&str> = out.iter().map(|(dest, _)| &**dest).collect();
    assert_eq!(dests, ["n2", "n2", "lin-kv", "c1"]);
    let ids: Vec<Option<i64>> = out
        .iter()
        .map(|(_, body)| body["msg_id"].as_i64())
        .collect();
    assert_eq!(ids, [None, Some(1), Some(2), Some(4)]);
    driven.pass(ms(999));
    assert_eq!(driven.node.pending(), 2);
    for id in [1, 2] {
        driven.ask("n2", &json!({"type": "ask_ok", "in_reply_to": id}));
    }
    assert_eq!(*driven.node.state(), 12);
    driven.is_at_rest();
}

#[test]
fn messages_that_wait_are_bounded() {
    let mut driven = Driven::<()>::unnamed(echo);
    driven.take(INIT);
    let text = "x".repeat(100_000);
    let refused = (0..20).map(|_| driven.node.send("n2", "told", &json!({"text": text})));
    let codes: Vec<ErrorCode> = refused
        .filter_map(Result::err)
        .map(|error| error.code)
        .collect();
    assert_eq!(codes, [ErrorCode::TemporarilyUnavailable; 9]);
    let out = driven.ask("c9", &json!({"type": "echo", "msg_id": 1, "echo": 1}));
    assert_eq!(out.len(), 12);
    assert_eq!(
        driven.node.send("n2", "told", &json!({"text": text})),
        Ok(())
    );
}

#[test]
fn a_message_that_wants_no_answer_has_no_id() {
    let mut driven = Driven::<()>::new(|node| {
        node.receive("tell", async |node: Node<()>, _: Ask| {
            node.send("n2", "told", &json!({"x": 1})).unwrap()
        });
    });
    let out = driven.ask("c1", &json!({"type": "tell"}));
    assert_eq!(out, [("n2".to_owned(), json!({"type": "told", "x": 1}))]);
}

#[derive(Serialize)]
struct Typed {
    #[serde(rename = "type")]
    kind: u8,
}

#[test]
fn reserved_names_are_refused_with_a_clear_error() {
    let mut driven = Driven::<()>::new(|node| {
        echo(node);
        node.handle("typed", async |_, _: Ask| Ok(Typed { kind: 1 }));
        node.handle("map", async |_, _: Ask| Ok(json!({"a": 1, "msg_id": 2})));
        node.handle("json", async |_, _: Ask| {
            Ok(Json::of(&json!({"in_reply_to": 1}))?)
        });
        node.handle("nested", async |_, _: Ask| {
            Ok(json!({"a": {"type": 1}, "b": [{"msg_id": 1}]}))
        });
        node.handle("send", async |node: Node<()>, _: Ask| {
            node.send("n2", "x", &Typed { kind: 1 })
        });
        node.handle("call", async |node: Node<()>, _: Ask| {
            node.call::<()>("n2", "x", &Typed { kind: 1 }).await
        });
    });
    for (kind, name) in [
        ("typed", "type"),
        ("map", "msg_id"),
        ("json", "in_reply_to"),
    ] {
        let out = driven.ask("c1", &json!({"type": kind, "msg_id": 1}));
        let text =
            format!("cannot write a {kind}_ok: the field name {name} is reserved; choose another");
        assert_eq!((only_code(&out), &out[0].1["text"]), (13, &json!(text)));
    }
    for kind in ["send", "call"] {
        assert_eq!(
            only_code(&driven.ask("c1", &json!({"type": kind, "msg_id": 1}))),
            13
        );
    }
    let out = driven.ask("c1", &json!({"type": "nested", "msg_id": 1}));
    assert_eq!(out[0].1["type"], "nested_ok");
    driven.is_well();
}

#[test]
fn a_return_value_must_be_an_object() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("list", async |_, _: Ask| Ok([1, 2]));
        node.handle("number", async |_, _: Request<()>| Ok::<_, Error>(7));
    });
    for (kind, found) in [("list", "an array"), ("number", "a number")] {
        let out = driven.ask("c1", &json!({"type": kind, "msg_id": 1}));
        let text = format!(
            "cannot write a {kind}_ok: its fields are {found}; a structure, a map or () is needed"
        );
        assert_eq!((only_code(&out), &out[0].1["text"]), (13, &json!(text)));
    }
}
