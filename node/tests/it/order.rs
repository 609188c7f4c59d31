//! Messages are handled in order, and the same input gives the same output.

use std::io::{self, Read};
use std::rc::Rc;
use std::time::Duration;

use hark_node::{Error, Json, Node, Request};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::harness::{Ask, Driven, INIT, Log, echo, line, ms};

#[derive(Deserialize)]
struct Proxy {
    inner: Json,
}

#[derive(Serialize)]
struct Proxied {
    result: Json,
}

/// Passes a request on. It may wait long, as the clock is that of a machine that
/// may be busy.
async fn proxy(node: Node<()>, request: Request<Proxy>) -> Result<Proxied, Error> {
    let reply = node
        .forward("n2", &request.body.inner)
        .timeout(ms(600_000))
        .await?;
    Ok(Proxied { result: reply.body })
}

fn program(node: &Node<()>) {
    echo(node);
    node.answer_within(Duration::MAX);
    node.handle("proxy", proxy);
}

/// An action of a client or of the other node.
#[derive(Debug, Clone)]
enum Step {
    Echo {
        client: u8,
        value: u16,
    },
    Proxy {
        client: u8,
    },
    /// Answers one of the open calls, if there are any.
    Reply {
        which: prop::sample::Index,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4_u8, any::<u16>()).prop_map(|(client, value)| Step::Echo { client, value }),
        (0..4_u8).prop_map(|client| Step::Proxy { client }),
        any::<prop::sample::Index>().prop_map(|which| Step::Reply { which }),
    ];
    prop::collection::vec(step, 0..60)
}

/// Returns the input lines, and the output line of each.
fn conversation(steps: &[Step]) -> (Vec<String>, Vec<String>) {
    let (mut input, mut output, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for (request, step) in (100..).zip(steps) {
        let id = output.len() + 1;
        match step {
            Step::Echo { client, value } => {
                input.push(line(
                    &format!("c{client}"),
                    &json!({"type": "echo", "msg_id": request, "echo": value}),
                ));
                output.push(format!(
                    r#"{{"src": "n1", "dest": "c{client}", "body": {{"type": "echo_ok", "echo": {value}, "in_reply_to": {request}, "msg_id": {id}}}}}"#
                ));
            }
            Step::Proxy { client } => {
                let inner = json!({"type": "ask"});
                input.push(line(
                    &format!("c{client}"),
                    &json!({"type": "proxy", "msg_id": request, "inner": inner}),
                ));
                output.push(format!(
                    r#"{{"src": "n1", "dest": "n2", "body": {{"type": "ask", "msg_id": {id}}}}}"#
                ));
                open.push((*client, request, id));
            }
            Step::Reply { which } if !open.is_empty() => {
                let (client, request, call) = open.remove(which.index(open.len()));
                input.push(format!(
                    r#"{{"src":"n2","dest":"n1","body":{{"in_reply_to":{call},"type":"ask_ok"}}}}"#
                ));
                output.push(format!(
                    r#"{{"src": "n1", "dest": "c{client}", "body": {{"type": "proxy_ok", "result": {{"in_reply_to": {call}, "type": "ask_ok"}}, "in_reply_to": {request}, "msg_id": {id}}}}}"#
                ));
            }
            Step::Reply { .. } => {}
        }
    }
    (input, output)
}

/// A reader whose pieces have these sizes, in turn.
struct Pieces {
    bytes: io::Cursor<Vec<u8>>,
    sizes: Vec<usize>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes[self.read % self.sizes.len()].min(buffer.len());
        self.read += 1;
        self.bytes.read(&mut buffer[..size])
    }
}

proptest! {
    #[test]
    fn any_interleaving_is_answered_in_order(steps in steps()) {
        let (input, output) = conversation(&steps);
        let mut driven = Driven::new(program);
        let answers: Vec<String> = input.iter().map(|line| driven.take(line).trim_end().to_owned()).collect();
        prop_assert_eq!(answers, output);
    }

    #[test]
    fn input_in_any_pieces_gives_the_same_bytes(
        steps in steps(),
        sizes in prop::collection::vec(1..300_usize, 1..10),
    ) {
        let (input, output) = conversation(&steps);
        let text = format!("{INIT}\n{}", input.join("\r\n"));
        let mut bytes = Vec::new();
        let pieces = Pieces { bytes: io::Cursor::new(text.into_bytes()), sizes, read: 0 };
        hark_node::run(pieces, &mut bytes, program).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        prop_assert_eq!(lines, output);
    }
}

#[test]
fn handlers_run_in_turn_to_their_first_wait() {
    let log = Log::default();
    let events = Rc::clone(&log);
    let mut driven = Driven::<()>::new(move |node| {
        node.receive("go", async move |node: Node<()>, request: Ask| {
            let (name, events) = (request.src, Rc::clone(&events));
            let task = node.clone();
            events.borrow_mut().push(format!("{name} begins"));
            task.spawn(async move {
                events.borrow_mut().push(format!("{name} is spawned"));
                node.sleep(ms(10)).await;
                events.borrow_mut().push(format!("{name} has slept"));
            });
        });
    });
    for client in ["a", "b", "c"] {
        driven.ask(client, &json!({"type": "go"}));
    }
    driven.pass(ms(10));
    assert_eq!(
        *log.borrow(),
        [
            "a begins",
            "a is spawned",
            "b begins",
            "b is spawned",
            "c begins",
            "c is spawned",
            "a has slept",
            "b has slept",
            "c has slept",
        ]
    );
}

#[test]
fn timers_of_one_time_fire_in_order() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("sleep", async |node: Node<()>, request: Ask| {
            node.sleep(ms(if *request.src < *"m" { 20 } else { 10 }))
                .await;
            Ok(())
        });
    });
    for client in ["c", "x", "b", "y", "a", "z"] {
        driven.ask(client, &json!({"type": "sleep", "msg_id": 1}));
    }
    let order: Vec<String> = driven
        .pass(ms(100))
        .into_iter()
        .map(|(dest, _)| dest)
        .collect();
    assert_eq!(order, ["x", "y", "z", "c", "b", "a"]);
}

#[test]
fn init_is_answered_before_on_init_tasks_send() {
    let mut driven = Driven::<()>::unnamed(|node| {
        for kind in ["first", "second"] {
            node.on_init(async move |node: Node<()>| node.send("n2", kind, &()).unwrap());
        }
    });
    assert_eq!(
        driven.take(INIT),
        concat!(
            r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#,
            "\n",
        )
    );
    assert_eq!(
        driven.take(line("c1", &json!({"type": "anything"}))),
        concat!(
            r#"{"src": "n1", "dest": "n2", "body": {"type": "first"}}"#,
            "\n",
            r#"{"src": "n1", "dest": "n2", "body": {"type": "second"}}"#,
            "\n",
        )
    );
    driven
        .node
        .on_init(async |node: Node<()>| node.send("n2", "third", &()).unwrap());
    assert_eq!(driven.pass(ms(0)).len(), 1);
}

#[test]
fn waits_of_zero_length_do_not_block_the_node() {
    let mut driven = Driven::<u32>::new(|node| {
        echo(node);
        node.every(ms(0), async |node: Node<u32>| *node.state() += 1);
        node.receive("loop", async |node: Node<u32>, _: Ask| {
            let task = node.clone();
            node.spawn(async move {
                loop {
                    task.sleep(ms(0)).await;
                }
            });
        });
    });
    driven.ask("c1", &json!({"type": "loop"}));
    for turn in 0..3 {
        assert_eq!(*driven.node.state(), turn);
        driven.is_well();
        assert_eq!(driven.machine.next_timeout(), Some(ms(0)));
        driven.machine.handle_timeout(ms(0));
    }
}
