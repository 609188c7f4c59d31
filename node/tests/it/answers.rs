//! One answer for each request, as the protocol wants it.

use std::collections::BTreeMap;

use hark_node::{Error, ErrorCode, Json, Node, Request, Responder};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{Ask, Driven, INIT, echo, error, line, ms, only_code};

fn named(dest: &str, body: Value) -> Vec<(String, Value)> {
    vec![(dest.to_owned(), body)]
}

#[test]
fn a_request_before_init_gets_11() {
    let mut driven = Driven::<()>::unnamed(echo);
    let text = "the node is not initialized yet";
    for kind in ["echo", "unknown"] {
        let id = if kind == "echo" { 0 } else { 1 };
        let out = driven.ask("c1", &json!({"type": kind, "msg_id": 1, "echo": 1}));
        assert_eq!(out, named("c1", error(11, text, id)));
    }
    assert_eq!(driven.ask("c1", &json!({"type": "echo", "echo": 1})), []);
    let out = driven.take(INIT);
    assert!(
        out.contains(r#""type": "init_ok", "in_reply_to": 1, "msg_id": 2"#),
        "{out}"
    );
    driven.is_well();
}

#[test]
fn a_program_that_sends_before_init_gets_11() {
    let driven = Driven::<()>::unnamed(echo);
    let refused = [
        driven.node.send("n2", "x", &()).unwrap_err(),
        driven
            .node
            .rpc("n2", "x", &(), |_, _| panic!("it is called"))
            .unwrap_err(),
    ];
    assert!(
        refused
            .iter()
            .all(|error| error.code == ErrorCode::TemporarilyUnavailable),
        "{refused:?}"
    );
    driven.is_at_rest();
}

#[test]
fn init_gives_the_names() {
    let driven = Driven::<()>::new(echo);
    assert_eq!(driven.node.id(), "n1");
    assert_eq!(driven.node.node_ids(), ["n1", "n2"]);
    assert_eq!(driven.node.peers().collect::<Vec<_>>(), ["n2"]);
}

#[test]
fn a_second_init_is_refused_and_changes_nothing() {
    let mut driven = Driven::<()>::new(echo);
    let again = json!({"type": "init", "msg_id": 1, "node_id": "n7", "node_ids": ["n7"]});
    assert_eq!(
        driven.ask("c1", &again),
        named("c1", error(22, "the node is already initialized", 1))
    );
    assert_eq!(driven.node.id(), "n1");
    driven.is_well();
}

#[test]
fn an_init_that_is_wrong_gets_12_and_may_be_tried_again() {
    let mut driven = Driven::<()>::unnamed(echo);
    for body in [
        json!({"type": "init", "msg_id": 1}),
        json!({"type": "init", "msg_id": 1, "node_id": 7}),
        json!({"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": [1]}),
    ] {
        assert_eq!(only_code(&driven.ask("c1", &body)), 12, "{body}");
    }
    driven.take(INIT);
    driven.is_well();
}

#[test]
fn an_unknown_type_gets_10_once() {
    let mut driven = Driven::<()>::new(echo);
    let out = driven.ask("c1", &json!({"type": "nonsense", "msg_id": 1}));
    assert_eq!(
        out,
        named("c1", error(10, "there is no handler for nonsense", 1))
    );
}

#[derive(Deserialize)]
struct Number {
    number: u8,
}

#[test]
fn fields_that_are_missing_or_of_another_type_get_12_once() {
    let mut driven = Driven::<()>::new(|node| {
        echo(node);
        node.handle("number", async |_, request: Request<Number>| {
            Ok(BTreeMap::from([("number", request.body.number)]))
        });
        node.receive("got", async |_, request: Request<Number>| {
            request.responder.reply(&[request.body.number; 0]);
        });
    });
    for (kind, number) in [
        ("number", json!(null)),
        ("number", json!("1")),
        ("number", json!(256)),
        ("number", json!(-1)),
        ("number", json!([1])),
        ("got", json!(1.5)),
    ] {
        let out = driven.ask("c1", &json!({"type": kind, "msg_id": 1, "number": number}));
        assert_eq!(only_code(&out), 12, "{kind} {number}");
    }
    assert_eq!(
        only_code(&driven.ask("c1", &json!({"type": "number", "msg_id": 1}))),
        12
    );
    assert_eq!(
        only_code(&driven.ask("c1", &json!({"type": "echo", "msg_id": 1}))),
        12
    );
    let [(_, body)] = &*driven.ask("c1", &json!({"type": "number", "msg_id": 1, "number": 255}))
    else {
        panic!("it is not answered");
    };
    assert_eq!(body["number"], 255);
}

#[test]
fn fields_that_are_not_an_object_are_error_13() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("list", async |_, _: Ask| Ok([1, 2]));
        node.handle("text", async |_, _: Ask| Ok("text"));
        node.handle("null", async |_, _: Ask| Ok(None::<u8>));
    });
    for (kind, found, id) in [("list", "an array", 1), ("text", "a string", 2)] {
        let text = format!(
            "cannot write a {kind}_ok: its fields are {found}; a structure, a map or () is needed"
        );
        assert_eq!(
            driven.ask("c1", &json!({"type": kind, "msg_id": 1})),
            named("c1", error(13, &text, id))
        );
    }
    let out = driven.ask("c1", &json!({"type": "null", "msg_id": 1}));
    assert_eq!(
        out,
        named(
            "c1",
            json!({"type": "null_ok", "in_reply_to": 1, "msg_id": 3})
        )
    );
}

#[test]
fn ids_are_values_whatever_they_are() {
    let mut driven = Driven::<()>::new(echo);
    for id in [0, -1, i64::MIN, i64::MAX] {
        let out = driven.ask("c1", &json!({"type": "echo", "msg_id": id, "echo": 0}));
        assert!(
            matches!(&*out, [(_, body)] if body["in_reply_to"] == id),
            "{out:?}"
        );
    }
}

#[test]
fn a_request_without_an_id_is_handled_and_not_answered() {
    let mut driven = Driven::<u32>::new(|node| {
        node.handle("count", async |node: Node<u32>, _: Ask| {
            *node.state() += 1;
            Ok(())
        });
        node.handle("fail", async |_, _: Ask| {
            Err::<(), _>(Error::new(ErrorCode::Abort, "no"))
        });
    });
    assert_eq!(
        driven.ask("c1", &json!({"type": "count", "msg_id": null})),
        []
    );
    assert_eq!(
        driven.ask(
            "c1",
            &json!({"type": "count", "msg_id": null, "in_reply_to": null})
        ),
        []
    );
    assert_eq!(driven.ask("c1", &json!({"type": "count"})), []);
    assert_eq!(driven.ask("c1", &json!({"type": "fail"})), []);
    assert_eq!(driven.ask("c1", &json!({"type": "unknown"})), []);
    assert_eq!(*driven.node.state(), 3);
}

#[test]
fn an_error_goes_out_with_its_code_and_text() {
    let mut driven = Driven::<()>::new(|node| {
        for code in [0, 1, 13, 30, 999, 1000, -5] {
            node.handle(&format!("fail{code}"), async move |_, _: Ask| {
                Err::<(), _>(Error::new(ErrorCode::from(code), "as told"))
            });
        }
    });
    for (id, code) in (1..).zip([0, 1, 13, 30, 999, 1000, -5]) {
        let out = driven.ask("c1", &json!({"type": format!("fail{code}"), "msg_id": 1}));
        assert_eq!(out, named("c1", error(code, "as told", id)));
    }
}

#[test]
fn only_the_first_answer_is_sent() {
    let mut driven = Driven::<Vec<Responder>>::new(|node| {
        node.handle("twice", async |_, request: Ask| {
            request.responder.reply_as("first", &());
            request
                .responder
                .fail(&Error::new(ErrorCode::Abort, "second"));
            Ok(())
        });
        node.receive("later", async |node: Node<Vec<Responder>>, request: Ask| {
            node.state().push(request.responder);
        });
        node.handle("now", async |node: Node<Vec<Responder>>, _: Ask| {
            let body: Json =
                serde_json::from_str(r#"{"msg_id": 4, "type": "passed", "b": 1, "a": 2}"#).unwrap();
            for responder in &*node.state() {
                assert!(responder.is_open());
                responder.reply_in_part("part", &()).unwrap();
                responder.clone().forward(&body);
                responder.reply_in_part("part", &()).unwrap();
                assert!(!responder.is_open());
            }
            Ok(())
        });
    });
    let out = driven.ask("c1", &json!({"type": "twice", "msg_id": 1}));
    assert_eq!(
        out,
        named(
            "c1",
            json!({"type": "first", "in_reply_to": 1, "msg_id": 1})
        )
    );
    assert_eq!(driven.ask("c1", &json!({"type": "later", "msg_id": 5})), []);
    let out = driven.take(line("c2", &json!({"type": "now", "msg_id": 6})));
    assert_eq!(
        out,
        concat!(
            r#"{"src": "n1", "dest": "c1", "body": {"type": "part", "in_reply_to": 5, "msg_id": 2}}"#,
            "\n",
            r#"{"src": "n1", "dest": "c1", "body": {"type": "passed", "b": 1, "a": 2, "in_reply_to": 5, "msg_id": 3}}"#,
            "\n",
            r#"{"src": "n1", "dest": "c2", "body": {"type": "now_ok", "in_reply_to": 6, "msg_id": 4}}"#,
            "\n",
        )
    );
}

#[test]
fn a_second_handler_of_a_type_takes_the_place_of_the_first() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("echo", async |_, _: Ask| {
            Err::<(), _>(Error::new(ErrorCode::Abort, "the first"))
        });
        echo(node);
    });
    driven.is_well();
}

mod long {
    use super::*;

    #[test]
    fn requests_are_refused_with_11_while_too_many_tasks_wait() {
        const TASKS_MAX: usize = 1 << 20;
        let mut driven = Driven::<()>::new(|node| {
            echo(node);
            node.receive("fill", async |node: Node<()>, _: Ask| {
                for _ in 0..TASKS_MAX {
                    let sleep = node.sleep(ms(10));
                    node.spawn(sleep);
                }
            });
        });
        assert_eq!(driven.ask("c1", &json!({"type": "fill"})), []);
        let out = driven.ask("c1", &json!({"type": "echo", "msg_id": 1, "echo": 1}));
        assert_eq!(
            out,
            named("c1", error(11, "too many requests are under way", 1))
        );
        driven.pass(ms(10));
        driven.is_at_rest();
        driven.is_well();
    }
}
