//! The conveniences of the library: typed replies, forwarded answers, calls to
//! many nodes, tasks that are aborted, and timers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use hark_node::{
    AbortHandle, Answer, Error, ErrorCode, Json, Machine, Node, Reply, Request, Retry, Timer,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::{Ask, Driven, INIT, Log, SEED, error, line, ms, only_code};

#[derive(Serialize, Deserialize)]
struct Number {
    number: u64,
}

fn to_c1(body: Value) -> Vec<(String, Value)> {
    vec![("c1".to_owned(), body)]
}

#[test]
fn a_request_without_fields_is_a_unit() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("read", async |_, request: Request<()>| {
            assert_eq!(request.kind(), "read");
            Ok(())
        });
    });
    let out = driven.ask(
        "c1",
        &json!({"type": "read", "msg_id": 1, "key": "ignored"}),
    );
    assert_eq!(
        out,
        to_c1(json!({"type": "read_ok", "in_reply_to": 1, "msg_id": 1}))
    );
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Command {
    Put { key: Json, value: Json },
    Get { key: Json },
}

#[test]
fn the_type_of_a_request_selects_a_variant() {
    let mut driven = Driven::<BTreeMap<Json, Json>>::new(|node| {
        for kind in ["put", "get"] {
            node.handle(
                kind,
                async |node: Node<BTreeMap<Json, Json>>, request: Request<Command>| {
                    Ok(match request.body {
                        Command::Put { key, value } => node.state().insert(key, value),
                        Command::Get { key } => node.state().get(&key).cloned(),
                    }
                    .map_or_else(BTreeMap::new, |value| BTreeMap::from([("value", value)])))
                },
            );
        }
    });
    driven.ask(
        "c1",
        &json!({"type": "put", "msg_id": 1, "key": ["a", 1], "value": {"b": 2, "a": 1.5}}),
    );
    let out = driven.ask("c1", &json!({"type": "get", "msg_id": 1, "key": ["a", 1]}));
    let expected =
        json!({"type": "get_ok", "value": {"b": 2, "a": 1.5}, "in_reply_to": 1, "msg_id": 2});
    assert_eq!(out, to_c1(expected));
}

fn forwarding(node: &Node<()>) {
    node.handle("always", async |node: Node<()>, request: Request<Json>| {
        node.forward("n2", &request.body).await
    });
    node.handle(
        "sometimes",
        async |node: Node<()>, request: Request<Json>| {
            if request.src == "c1" {
                return Ok(Answer::Fields(Number { number: 7 }));
            }
            node.forward("n2", &request.body).await.map(Answer::Forward)
        },
    );
}

#[test]
fn a_handler_passes_a_reply_on_as_its_answer() {
    for kind in ["always", "sometimes"] {
        let mut driven = Driven::new(forwarding);
        let out = driven.ask("c2", &json!({"type": kind, "msg_id": 1}));
        assert_eq!(out, [("n2".to_owned(), json!({"type": kind, "msg_id": 1}))]);
        let out = driven.ask(
            "n2",
            &json!({"type": "other_ok", "x": [1], "in_reply_to": 1, "msg_id": 9}),
        );
        let expected = json!({"type": "other_ok", "x": [1], "in_reply_to": 1, "msg_id": 2});
        assert_eq!(out, [("c2".to_owned(), expected)]);
    }
    let mut driven = Driven::new(forwarding);
    let out = driven.ask("c1", &json!({"type": "sometimes", "msg_id": 1}));
    assert_eq!(
        out,
        to_c1(json!({"type": "sometimes_ok", "number": 7, "in_reply_to": 1, "msg_id": 1}))
    );
}

#[test]
fn an_error_of_serde_becomes_error_13() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("parse", async |_, request: Request<Json>| {
            Ok(request.body.parse::<Number>()?)
        });
        node.handle("refuse", async |_, request: Request<Json>| {
            request
                .body
                .parse::<Number>()
                .map_err(|error| Error::malformed(&error))
        });
    });
    assert_eq!(
        only_code(&driven.ask("c1", &json!({"type": "parse", "msg_id": 1}))),
        13
    );
    assert_eq!(
        only_code(&driven.ask("c1", &json!({"type": "refuse", "msg_id": 1}))),
        12
    );
}

/// A node with a state that has no default.
struct Name(String);

#[test]
fn a_state_needs_no_default() {
    let program = |node: &Node<Name>| {
        node.handle("name", async |node: Node<Name>, _: Ask| {
            Ok(BTreeMap::from([("name", node.state().0.clone())]))
        });
    };
    let mut machine = Machine::with_state(Name("x".into()), program, SEED);
    machine.handle_line(ms(0), INIT.as_bytes());
    machine.handle_line(
        ms(0),
        line("c1", &json!({"type": "name", "msg_id": 1})).as_bytes(),
    );
    let mut out = Vec::new();
    machine.take_output(&mut out);
    assert!(String::from_utf8(out).unwrap().contains(r#""name": "x""#));
    let mut out = Vec::new();
    hark_node::run_with(INIT.as_bytes(), &mut out, Name("y".into()), program).unwrap();
    assert!(!out.is_empty());
}

/// Asks `n2`, `n3` and `n4`.
fn asking(node: &Node<()>) {
    node.handle("all", async |node: Node<()>, _: Ask| {
        let outcomes = node
            .call_all::<Number>(["n2", "n3", "n4"], "ask", &())
            .await;
        let text = |(dest, outcome): (String, Result<Number, Error>)| match outcome {
            Ok(Number { number }) => format!("{dest} {number}"),
            Err(error) => format!("{dest} error {}", i64::from(error.code)),
        };
        Ok(BTreeMap::from([(
            "outcomes",
            outcomes.into_iter().map(text).collect::<Vec<_>>(),
        )]))
    });
    node.handle("two", async |node: Node<()>, _: Ask| {
        let calls = node
            .call_all::<Number>(["n2", "n3", "n4"], "ask", &())
            .timeout(ms(100));
        let replies = calls.at_least(2).await?;
        Ok(BTreeMap::from([(
            "dests",
            replies
                .into_iter()
                .map(|(dest, _)| dest)
                .collect::<Vec<_>>(),
        )]))
    });
}

fn number(in_reply_to: i64, number: u64) -> Value {
    json!({"type": "ask_ok", "number": number, "in_reply_to": in_reply_to})
}

#[test]
fn a_call_to_all_yields_every_outcome_in_order() {
    let mut driven = Driven::new(asking);
    let out = driven.ask("c1", &json!({"type": "all", "msg_id": 1}));
    assert_eq!(
        out.iter().map(|(dest, _)| &**dest).collect::<Vec<_>>(),
        ["n2", "n3", "n4"]
    );
    assert_eq!(driven.ask("n4", &number(3, 4)), []);
    assert_eq!(driven.ask("n2", &number(1, 2)), []);
    let out = driven.pass(ms(1000));
    assert_eq!(out[0].1["outcomes"], json!(["n2 2", "n3 error 0", "n4 4"]));
    driven.is_at_rest();
}

#[test]
fn a_call_to_all_ends_with_enough_replies() {
    let mut driven = Driven::new(asking);
    driven.ask("c1", &json!({"type": "two", "msg_id": 1}));
    assert_eq!(driven.ask("n4", &number(3, 4)), []);
    let out = driven.ask("n2", &number(1, 2));
    assert_eq!(out[0].1["dests"], json!(["n4", "n2"]));
    // The third one is still awaited, so its reply is not late.
    assert_eq!(driven.node.pending(), 1);
    assert_eq!(driven.ask("n3", &number(2, 3)), []);
    assert_eq!(driven.node.late_replies(), 0);
    driven.is_at_rest();
}

#[test]
fn a_call_to_all_fails_once_enough_replies_cannot_come() {
    let mut driven = Driven::new(asking);
    driven.ask("c1", &json!({"type": "two", "msg_id": 1}));
    for id in [1, 2] {
        let refusal = json!({"type": "error", "code": 11, "text": "busy", "in_reply_to": id});
        let out = driven.ask(&format!("n{}", id + 1), &refusal);
        if id == 2 {
            let text = "0 of 2 replies came: busy (error 11)";
            assert_eq!(out, to_c1(error(0, text, 4)));
        }
    }
    driven.pass(ms(100));
    driven.is_at_rest();
}

#[test]
fn an_aborted_task_drops_all_it_holds() {
    let held = Rc::new(());
    let task: Rc<RefCell<Option<AbortHandle>>> = Rc::default();
    let (inner, slot) = (Rc::clone(&held), Rc::clone(&task));
    let mut driven = Driven::<u32>::new(move |node| {
        node.receive("start", async move |node: Node<u32>, _: Ask| {
            let (held, own) = (Rc::clone(&inner), node.clone());
            *slot.borrow_mut() = Some(node.spawn(async move {
                own.sleep(ms(10)).await;
                *own.state() += 1;
                drop(held);
            }));
        });
    });
    driven.ask("c1", &json!({"type": "start"}));
    driven.pass(ms(5));
    let handle = task.borrow().clone().unwrap();
    assert!(!handle.is_finished());
    handle.abort();
    assert!(handle.is_finished());
    driven.is_at_rest();
    assert_eq!((*driven.node.state(), Rc::strong_count(&held)), (0, 2));
    driven.ask("c1", &json!({"type": "start"}));
    driven.pass(ms(10));
    assert!(task.borrow().as_ref().unwrap().is_finished());
    assert_eq!(*driven.node.state(), 1);
}

#[test]
fn a_task_that_aborts_itself_ends_at_its_next_wait() {
    let mut driven = Driven::<u32>::new(|node| {
        node.receive("start", async |node: Node<u32>, _: Ask| {
            let handle: Rc<RefCell<Option<AbortHandle>>> = Rc::default();
            let (own, task) = (Rc::clone(&handle), node.clone());
            *handle.borrow_mut() = Some(node.spawn(async move {
                own.borrow().as_ref().unwrap().abort();
                *task.state() += 1;
                task.sleep(ms(1)).await;
                *task.state() += 1;
            }));
        });
    });
    driven.ask("c1", &json!({"type": "start"}));
    driven.pass(ms(10));
    assert_eq!(*driven.node.state(), 1);
    driven.is_at_rest();
}

#[test]
fn a_timeout_drops_the_future_and_is_error_0() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("impatient", async |node: Node<()>, _: Ask| {
            node.timeout(ms(10), node.call::<()>("n2", "ask", &()))
                .await?
        });
        node.handle("patient", async |node: Node<()>, _: Ask| {
            node.timeout(ms(10), node.sleep(ms(5))).await
        });
    });
    driven.ask("c1", &json!({"type": "impatient", "msg_id": 1}));
    assert_eq!(driven.machine.pending(), 1);
    assert_eq!(only_code(&driven.pass(ms(10))), 0);
    driven.is_at_rest();
    driven.ask("c1", &json!({"type": "patient", "msg_id": 1}));
    assert_eq!(driven.pass(ms(5)).len(), 1);
    driven.is_at_rest();
}

/// A node that notes when its timer fires.
fn alarm() -> (Driven<()>, Timer, Log) {
    let log = Log::default();
    let (events, slot) = (Rc::clone(&log), Rc::new(RefCell::new(None)));
    let timer = Rc::clone(&slot);
    let driven = Driven::<()>::new(move |node| {
        *slot.borrow_mut() = Some(node.timer(ms(100)));
        let timer: Timer = slot.borrow().clone().unwrap();
        node.on_init(async move |node: Node<()>| {
            loop {
                timer.fired().await;
                events.borrow_mut().push(format!("{:?}", node.now()));
            }
        });
    });
    let timer = timer.borrow().clone().unwrap();
    (driven, timer, log)
}

#[test]
fn a_timer_fires_once_unless_it_is_reset() {
    let (mut driven, timer, log) = alarm();
    assert_eq!(driven.pass(ms(1000)), []);
    assert_eq!(*log.borrow(), ["100ms"]);
    assert!(!timer.is_set());
    driven.is_at_rest();
    // Later than before, earlier than before, and not at all.
    timer.reset(ms(50));
    driven.pass(ms(20));
    timer.reset(ms(50));
    driven.pass(ms(40));
    timer.reset(ms(5));
    driven.pass(ms(0));
    driven.pass(ms(100));
    assert_eq!(*log.borrow(), ["100ms", "1.065s"]);
    timer.reset(ms(50));
    timer.stop();
    driven.pass(ms(100));
    assert_eq!(log.borrow().len(), 2);
    for _ in 0..1000 {
        timer.reset(ms(50));
        driven.pass(ms(1));
    }
    assert_eq!(log.borrow().len(), 2);
    driven.pass(ms(49));
    assert_eq!(log.borrow().len(), 3);
}

#[test]
fn a_timer_does_not_fire_after_the_end_of_the_input() {
    let (mut driven, _, log) = alarm();
    driven.end();
    driven.is_at_rest();
    driven.pass(ms(1000));
    assert!(log.borrow().is_empty());
}

#[test]
fn random_ranges_depend_on_the_seed() {
    let draw = || {
        let driven = Driven::<()>::new(|_| ());
        let node = driven.node;
        (0..50)
            .map(|_| node.random_range(ms(150)..ms(300)))
            .collect::<Vec<Duration>>()
    };
    let drawn = draw();
    assert_eq!(drawn, draw());
    assert!(drawn.iter().all(|time| (ms(150)..ms(300)).contains(time)));
    assert!(drawn.iter().any(|time| *time != drawn[0]));
}

#[test]
fn a_whole_reply_says_its_attempt() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("retry", async |node: Node<()>, _: Ask| {
            let reply = node
                .call::<Reply>("n2", "ask", &())
                .retry(Retry::default())
                .await?;
            let Number { number } = reply.parse()?;
            Ok(Number {
                number: number + u64::from(reply.attempts),
            })
        });
    });
    driven.ask("c1", &json!({"type": "retry", "msg_id": 1}));
    driven.pass(ms(500));
    let out = driven.ask("n2", &number(2, 40));
    assert_eq!(out[0].1["number"], 42);
    assert_eq!(ErrorCode::from(0), ErrorCode::Timeout);
}
