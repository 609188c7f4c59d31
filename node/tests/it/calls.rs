//! Calls and callbacks: their outcomes, and that they leave nothing behind.

use std::cell::RefCell;
use std::future::IntoFuture as _;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hark_node::{
    Backoff, CALL_TIMEOUT, Error, ErrorCode, Json, Node, RPC_TIMEOUT, Reply, Request, Retry,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::{Ask, Driven, Log, echo, error, line, ms, only_code, parsed, text_of};

#[derive(Serialize)]
struct Attempts {
    attempts: u32,
}

fn attempts(reply: Reply) -> Attempts {
    Attempts {
        attempts: reply.attempts,
    }
}

fn program(node: &Node<()>) {
    echo(node);
    node.handle("call", async |node: Node<()>, _: Ask| {
        node.call("n2", "ask", &()).await.map(attempts)
    });
    node.handle("retry", async |node: Node<()>, _: Ask| {
        node.call("n2", "ask", &())
            .retry(Retry::default())
            .await
            .map(attempts)
    });
}

fn calling(kind: &str) -> Driven<()> {
    let mut driven = Driven::new(program);
    let out = driven.ask("c1", &json!({"type": kind, "msg_id": 1}));
    assert_eq!(out, asks([1]));
    assert_eq!(driven.machine.pending(), 1);
    driven
}

/// The requests to `n2`.
fn asks<const N: usize>(ids: [i64; N]) -> [(String, Value); N] {
    ids.map(|id| ("n2".to_owned(), json!({"type": "ask", "msg_id": id})))
}

fn to_c1(body: Value) -> [(String, Value); 1] {
    [("c1".to_owned(), body)]
}

fn reply(in_reply_to: i64) -> Value {
    json!({"type": "ask_ok", "in_reply_to": in_reply_to})
}

#[test]
fn a_call_yields_its_reply() {
    let mut driven = calling("call");
    driven.is_well();
    let out = driven.ask("n2", &reply(1));
    assert_eq!(
        out,
        to_c1(json!({"type": "call_ok", "attempts": 1, "in_reply_to": 1, "msg_id": 3}))
    );
    driven.is_at_rest();
}

#[test]
fn a_call_that_is_not_answered_yields_error_0() {
    let mut driven = calling("call");
    assert_eq!(driven.pass(CALL_TIMEOUT - ms(1)), []);
    assert_eq!(
        driven.pass(ms(1)),
        to_c1(error(0, "no reply came in time", 2))
    );
    driven.is_at_rest();
}

#[test]
fn a_late_reply_and_a_double_are_counted_and_change_nothing() {
    let mut driven = calling("call");
    driven.pass(CALL_TIMEOUT);
    for late in 1..=3 {
        assert_eq!(driven.ask("n2", &reply(1)), []);
        assert_eq!(driven.node.late_replies(), late);
    }
    assert_eq!(driven.ask("n2", &reply(-5)), []);
    assert_eq!(
        driven.ask(
            "n2",
            &json!({"type": "error", "in_reply_to": 77, "msg_id": 3})
        ),
        []
    );
    assert_eq!(driven.node.late_replies(), 5);
    driven.is_well();
}

#[test]
fn an_error_reply_keeps_its_code_whatever_else_it_says() {
    for (reply, expected) in [
        (
            json!({"type": "error", "code": 0, "text": "zero"}),
            error(0, "zero", 2),
        ),
        (
            json!({"type": "error", "code": 22, "text": "no"}),
            error(22, "no", 2),
        ),
        (
            json!({"type": "error", "code": -3, "text": "é"}),
            error(-3, "é", 2),
        ),
        (json!({"type": "error", "code": 30}), error(30, "", 2)),
        (
            json!({"type": "error", "code": 30, "text": null, "more": []}),
            error(30, "", 2),
        ),
        (
            json!({"type": "error", "text": "which?"}),
            error(13, "which?", 2),
        ),
        (json!({"type": "error", "code": null}), error(13, "", 2)),
    ] {
        let mut driven = calling("call");
        let mut reply = reply;
        reply["in_reply_to"] = json!(1);
        assert_eq!(driven.ask("n2", &reply), to_c1(expected));
        driven.is_at_rest();
    }
    for code in [json!("22"), json!(1.5)] {
        let out = calling("call").ask(
            "n2",
            &json!({"type": "error", "code": code, "in_reply_to": 1}),
        );
        assert_eq!(only_code(&out), 13, "code {code} is unknown");
    }
}

#[test]
fn a_retry_has_a_new_id_and_says_which_attempt_was_answered() {
    let mut driven = calling("retry");
    assert_eq!(driven.pass(ms(499)), []);
    assert_eq!(driven.pass(ms(1)), asks([2]));
    assert_eq!(driven.machine.pending(), 1);
    // The first attempt is over: its reply is late.
    assert_eq!(driven.ask("n2", &reply(1)), []);
    let out = driven.ask("n2", &reply(2));
    assert_eq!(
        out,
        to_c1(json!({"type": "retry_ok", "attempts": 2, "in_reply_to": 1, "msg_id": 3}))
    );
    assert_eq!(driven.node.late_replies(), 1);
    driven.is_at_rest();
}

#[test]
fn after_the_last_attempt_a_retry_ends_with_error_0() {
    let mut driven = calling("retry");
    let [second, third] = asks([2, 3]);
    let [failure] = to_c1(error(0, "RPC failed after 3 attempts", 4));
    assert_eq!(driven.pass(ms(10_000)), [second, third, failure]);
    driven.is_at_rest();
}

#[test]
fn only_indefinite_errors_are_retried() {
    for code in [0, 13, 1000, 1234] {
        let mut driven = calling("retry");
        for id in 1..=2 {
            let out = driven.ask(
                "n2",
                &json!({"type": "error", "code": code, "text": "", "in_reply_to": id}),
            );
            assert_eq!(out, asks([id + 1]), "code {code}");
        }
        let out = driven.ask(
            "n2",
            &json!({"type": "error", "code": code, "text": "", "in_reply_to": 3}),
        );
        assert_eq!(
            out,
            to_c1(error(0, "RPC failed after 3 attempts", 4)),
            "code {code}"
        );
        driven.is_at_rest();
    }
    for code in [1, 10, 11, 12, 14, 20, 21, 22, 30, 999, -1] {
        let mut driven = calling("retry");
        let out = driven.ask(
            "n2",
            &json!({"type": "error", "code": code, "text": "no", "in_reply_to": 1}),
        );
        assert_eq!(out, to_c1(error(code, "no", 2)), "code {code}");
        driven.is_at_rest();
    }
}

#[test]
fn one_attempt_ends_with_its_own_error() {
    for attempts in [0, 1] {
        let mut driven = Driven::<()>::new(|node| {
            node.handle("once", async move |node: Node<()>, _: Ask| {
                let retry = Retry {
                    attempts,
                    timeout: ms(5),
                    ..Retry::default()
                };
                node.call::<()>("n2", "ask", &()).retry(retry).await
            });
        });
        driven.ask("c1", &json!({"type": "once", "msg_id": 1}));
        assert_eq!(
            driven.pass(ms(5)),
            to_c1(error(0, "no reply came in time", 2))
        );
    }
}

/// Returns the pauses between a failed attempt and the next one.
fn pauses(backoff: Backoff, attempts: u32, requests: u32) -> Vec<Vec<Duration>> {
    let timeout = ms(10);
    let retry = Retry {
        attempts,
        timeout,
        backoff: Some(backoff),
    };
    let mut driven = Driven::<()>::new(|node| {
        node.handle("retry", async move |node: Node<()>, _: Ask| {
            node.call::<()>("n2", "ask", &()).retry(retry).await
        });
    });
    let mut pauses = vec![Vec::new(); attempts as usize - 1];
    for _ in 0..requests {
        driven.ask("c1", &json!({"type": "retry", "msg_id": 1}));
        for pauses in &mut pauses {
            assert_eq!(driven.pass(timeout), []);
            let failed = driven.now;
            let next = driven.machine.next_timeout().unwrap();
            assert_eq!(driven.pass(next - failed).len(), 1);
            pauses.push(next - failed);
        }
        assert_eq!(only_code(&driven.pass(timeout)), 0);
        driven.is_at_rest();
    }
    pauses
}

#[test]
fn pauses_are_random_within_bounds_that_double() {
    let backoff = Backoff {
        first: ms(100),
        max: ms(350),
    };
    for (pauses, longest) in pauses(backoff, 5, 100).iter().zip([100, 200, 350, 350]) {
        let longest = ms(longest);
        assert!(pauses.iter().all(|pause| *pause <= longest), "{pauses:?}");
        assert!(
            pauses.iter().any(|pause| *pause < longest / 4),
            "{pauses:?}"
        );
        assert!(
            pauses.iter().any(|pause| *pause > longest * 3 / 4),
            "{pauses:?}"
        );
    }
}

#[test]
fn pauses_are_the_same_for_the_same_seed() {
    let backoff = Backoff {
        first: ms(100),
        max: ms(350),
    };
    assert_eq!(pauses(backoff, 5, 3), pauses(backoff, 5, 3));
}

#[test]
fn a_callback_gets_the_reply_the_error_or_error_0() {
    let log = Log::default();
    let events = Rc::clone(&log);
    let mut driven = Driven::<()>::new(move |node| {
        node.receive("rpc", async move |node: Node<()>, _: Ask| {
            let events = Rc::clone(&events);
            node.rpc("n2", "ask", &(), move |_, end| {
                events.borrow_mut().push(text_of(&end))
            })
            .unwrap();
        });
    });
    for id in 1..=4 {
        assert_eq!(driven.ask("c1", &json!({"type": "rpc"})), asks([id]));
    }
    driven.ask("n2", &json!({"type": "ask_ok", "in_reply_to": 3}));
    driven.ask(
        "n2",
        &json!({"type": "error", "code": 1, "text": "gone", "in_reply_to": 1}),
    );
    assert_eq!(driven.node.pending(), 2);
    assert_eq!(driven.pass(RPC_TIMEOUT - ms(1)), []);
    assert_eq!(driven.node.pending(), 2);
    driven.pass(ms(1));
    assert_eq!(
        *log.borrow(),
        [
            r#"{"in_reply_to":3,"type":"ask_ok"}"#,
            "gone (error 1)",
            "no reply came in time (error 0)",
            "no reply came in time (error 0)",
        ]
    );
    driven.is_at_rest();
}

#[test]
fn a_callback_may_call_again() {
    fn again(node: &Node<u32>, end: Result<Json, Error>) {
        let count = *node.state();
        *node.state() += 1;
        assert_eq!(end.is_err(), count > 0);
        if count < 3 {
            node.rpc("n2", "ask", &(), again).unwrap();
        }
    }
    let mut driven = Driven::<u32>::new(|node| {
        node.receive("rpc", async |node: Node<u32>, _: Ask| {
            node.rpc("n2", "ask", &(), again).unwrap()
        });
    });
    driven.ask("c1", &json!({"type": "rpc"}));
    assert_eq!(driven.ask("n2", &reply(1)), asks([2]));
    assert_eq!(driven.pass(ms(60_000)), asks([3, 4]));
    assert_eq!(*driven.node.state(), 4);
    driven.is_at_rest();
}

#[test]
fn a_call_that_is_dropped_leaves_nothing_behind() {
    let mut driven = Driven::<()>::new(|node| {
        echo(node);
        // The first answer of two.
        node.handle("race", async |node: Node<()>, _: Ask| {
            let mut first = pin!(node.call("n2", "ask", &()).into_future());
            let mut second = pin!(node.call("n3", "ask", &()).into_future());
            std::future::poll_fn(|cx| match first.as_mut().poll(cx) {
                Poll::Pending => second.as_mut().poll(cx),
                ready => ready,
            })
            .await
            .map(attempts)
        });
        node.handle("impatient", async |node: Node<()>, _: Ask| {
            let mut call = pin!(node.call::<()>("n2", "ask", &()).into_future());
            let mut wait = pin!(node.sleep(ms(1)));
            std::future::poll_fn(|cx| {
                assert!(call.as_mut().poll(cx).is_pending());
                wait.as_mut().poll(cx)
            })
            .await;
            Ok(())
        });
        node.handle("never", async |node: Node<()>, _: Ask| {
            drop(node.call::<()>("n2", "ask", &()));
            Ok(())
        });
    });
    assert_eq!(
        driven
            .ask("c1", &json!({"type": "race", "msg_id": 1}))
            .len(),
        2
    );
    assert_eq!(driven.machine.pending(), 2);
    assert_eq!(driven.ask("n3", &reply(2)).len(), 1);
    driven.is_at_rest();
    assert_eq!(driven.ask("n2", &reply(1)), []);
    assert_eq!(driven.node.late_replies(), 1);

    driven.ask("c1", &json!({"type": "impatient", "msg_id": 1}));
    assert_eq!(driven.pass(ms(1)).len(), 1);
    driven.is_at_rest();

    // A call that is not awaited is not sent.
    assert_eq!(
        driven
            .ask("c1", &json!({"type": "never", "msg_id": 1}))
            .len(),
        1
    );
    driven.is_at_rest();
}

#[test]
fn many_calls_that_time_out_leave_nothing_behind() {
    const CALLS: i64 = 3_000;
    let mut driven = Driven::new(program);
    for _ in 0..CALLS {
        driven.ask("c1", &json!({"type": "call", "msg_id": 1}));
    }
    assert_eq!(driven.machine.pending(), CALLS as usize);
    let out = driven.pass(CALL_TIMEOUT);
    assert_eq!(out.len(), CALLS as usize);
    assert!(out.iter().all(|(_, body)| body["code"] == 0));
    driven.is_at_rest();
}

#[derive(Deserialize)]
struct Forward {
    body: Json,
}

#[test]
fn an_invalid_body_is_not_forwarded() {
    let outcomes: Rc<RefCell<Vec<Error>>> = Rc::default();
    let errors = Rc::clone(&outcomes);
    let mut driven = Driven::<()>::new(move |node| {
        node.handle(
            "forward",
            async move |node: Node<()>, request: Request<Forward>| {
                let refused =
                    node.forward_rpc("n2", &request.body.body, |_, _| panic!("it is called"));
                errors.borrow_mut().push(refused.unwrap_err());
                node.forward("n2", &request.body.body)
                    .retry(Retry::default())
                    .await
                    .map(|_| ())
            },
        );
    });
    for body in [
        "null",
        "1",
        "\"x\"",
        "[]",
        "{}",
        r#"{"type": 1}"#,
        r#"{"type": "x", "\u0074ype": "y"}"#,
    ] {
        let line = r#"{"src": "c1", "body": {"type": "forward", "msg_id": 1, "body": BODY}}"#
            .replace("BODY", body);
        assert_eq!(only_code(&parsed(&driven.take(line))), 12, "{body}");
    }
    assert!(
        outcomes
            .borrow()
            .iter()
            .all(|error| error.code == ErrorCode::MalformedRequest)
    );
    assert_eq!(outcomes.borrow().len(), 7);
    driven.is_at_rest();
}

#[test]
fn a_reply_that_is_not_as_expected_is_error_13() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("call", async |node: Node<()>, _: Ask| {
            node.call::<Forward>("n2", "ask", &()).await.map(|_| ())
        });
    });
    driven.ask("c1", &json!({"type": "call", "msg_id": 1}));
    assert_eq!(only_code(&driven.ask("n2", &reply(1))), 13);
}

mod long {
    use super::*;

    #[test]
    fn calls_beyond_the_bound_are_refused_with_11() {
        const CALLS_MAX: usize = 1 << 20;
        let mut driven = Driven::<()>::new(|node| {
            echo(node);
            node.handle(
                "fill",
                async |node: Node<()>, _: Ask| -> Result<(), Error> {
                    loop {
                        node.rpc("n2", "ask", &(), |_, _| ())?;
                    }
                },
            );
            node.handle("call", async |node: Node<()>, _: Ask| {
                node.call("n2", "ask", &()).await.map(attempts)
            });
        });
        let out = driven.take(line("c1", &json!({"type": "fill", "msg_id": 1})));
        assert_eq!(
            (out.lines().count(), driven.machine.pending()),
            (CALLS_MAX + 1, CALLS_MAX)
        );
        let refusal = out.lines().next_back().unwrap();
        assert_eq!(only_code(&parsed(&format!("{refusal}\n"))), 11);
        assert_eq!(
            only_code(&driven.ask("c1", &json!({"type": "call", "msg_id": 1}))),
            11
        );
        driven.is_well();
        assert_eq!(driven.pass(RPC_TIMEOUT), []);
        driven.is_at_rest();
        assert_eq!(
            driven
                .ask("c1", &json!({"type": "call", "msg_id": 1}))
                .len(),
            1
        );
    }
}
