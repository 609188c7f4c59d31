//! The end of the input, and streams that fail.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};

use hark_node::{CALL_TIMEOUT, Error, Node, Retry};
use serde_json::json;

use crate::harness::{Ask, Driven, INIT, Log, echo, line, ms, parsed};

fn program(node: &Node<u32>) {
    echo(node);
    node.handle("sleep", async |node: Node<u32>, _: Ask| {
        node.sleep(ms(20)).await;
        Ok(())
    });
    node.handle("call", async |node: Node<u32>, _: Ask| {
        node.call::<()>("n2", "ask", &()).await
    });
    node.handle("retry", async |node: Node<u32>, _: Ask| {
        node.call::<()>("n2", "ask", &())
            .retry(Retry::default())
            .await
    });
    node.receive("rpc", async |node: Node<u32>, _: Ask| {
        node.rpc("n2", "ask", &(), |_, _| panic!("the callback is called"))
            .unwrap();
    });
    node.handle("sleep_and_call", async |node: Node<u32>, _: Ask| {
        node.sleep(ms(20)).await;
        node.rpc("n2", "ask", &(), |_, _| panic!("the callback is called"))?;
        node.send("n2", "told", &())?;
        node.call::<()>("n2", "ask", &()).await
    });
    node.every(ms(1), async |node: Node<u32>| *node.state() += 1);
}

#[test]
fn open_calls_are_dropped_silently() {
    let mut driven = Driven::new(program);
    for kind in ["call", "retry", "rpc"] {
        assert_eq!(
            driven.ask("c1", &json!({"type": kind, "msg_id": 1})).len(),
            1
        );
    }
    driven.end();
    assert_eq!(driven.machine.next_timeout(), None);
    assert_eq!(driven.pass(ms(60_000)), []);
}

#[test]
fn a_sleeping_request_is_answered() {
    let mut driven = Driven::new(program);
    driven.ask("c1", &json!({"type": "sleep", "msg_id": 1}));
    driven.end();
    assert_eq!(driven.machine.next_timeout(), Some(ms(20)));
    let out = driven.pass(ms(20));
    assert_eq!(
        out,
        [(
            "c1".to_owned(),
            json!({"type": "sleep_ok", "in_reply_to": 1, "msg_id": 1})
        )]
    );
    driven.is_at_rest();
}

#[test]
fn repeated_actions_stop() {
    let mut driven = Driven::new(program);
    driven.pass(ms(5));
    assert_eq!(*driven.node.state(), 5);
    driven.end();
    driven.is_at_rest();
    driven.pass(ms(5));
    assert_eq!(*driven.node.state(), 5);
}

#[test]
fn a_running_action_ends_and_is_not_repeated() {
    let mut driven = Driven::<u32>::new(|node| {
        node.every(ms(1), async |node: Node<u32>| {
            node.sleep(ms(5)).await;
            *node.state() += 1;
        });
    });
    driven.pass(ms(3));
    driven.end();
    driven.pass(ms(60_000));
    assert_eq!(*driven.node.state(), 1);
    driven.is_at_rest();
}

#[test]
fn no_call_is_sent_after_the_end() {
    let mut driven = Driven::new(program);
    driven.ask("c1", &json!({"type": "sleep_and_call", "msg_id": 1}));
    driven.end();
    let out = driven.pass(ms(60_000));
    assert_eq!(out, [("n2".to_owned(), json!({"type": "told"}))]);
    driven.is_at_rest();
}

#[test]
fn a_pause_between_attempts_ends_with_the_input() {
    let mut driven = Driven::<()>::new(|node| {
        node.handle("retry", async |node: Node<()>, _: Ask| {
            let backoff = hark_node::Backoff {
                first: ms(1000),
                max: ms(1000),
            };
            let retry = Retry {
                backoff: Some(backoff),
                ..Retry::default()
            };
            node.call::<()>("n2", "ask", &()).retry(retry).await
        });
    });
    driven.ask("c1", &json!({"type": "retry", "msg_id": 1}));
    assert_eq!(driven.pass(ms(500)), []);
    driven.end();
    driven.is_at_rest();
}

/// What a node puts out for these lines.
fn run(lines: &[String]) -> String {
    let input = io::Cursor::new(lines.join("\n").into_bytes());
    let mut out = Vec::new();
    hark_node::run(input, &mut out, program).unwrap();
    String::from_utf8(out).unwrap()
}

/// The types of whole lines.
fn kinds(text: &str) -> Vec<String> {
    parsed(text)
        .iter()
        .map(|(_, body)| body["type"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_node_on_streams_answers_and_ends() {
    let ask = |kind: &str, id: u32| line("c1", &json!({"type": kind, "msg_id": id, "echo": 1}));
    let requests = [
        ("sleep", 1),
        ("call", 2),
        ("rpc", 3),
        ("retry", 4),
        ("echo", 5),
    ];
    let mut lines = vec![INIT.to_owned()];
    lines.extend(requests.map(|(kind, id)| ask(kind, id)));
    assert_eq!(
        kinds(&run(&lines)),
        ["init_ok", "ask", "ask", "ask", "echo_ok", "sleep_ok"]
    );
}

#[test]
fn an_empty_input_is_no_error() {
    assert_eq!(run(&[]), "");
    assert_eq!(run(&["\r\n\n  \n".to_owned()]), "");
}

#[test]
fn a_last_line_counts_without_its_end() {
    let out = run(&[
        INIT.to_owned() + "\r",
        line("c1", &json!({"type": "echo", "msg_id": 1, "echo": 1})),
    ]);
    assert_eq!(out.lines().count(), 2);
}

/// An input that goes on for as long as the test wants.
struct Typed(Receiver<Vec<u8>>);

impl Read for Typed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Ok(bytes) = self.0.recv() else {
            return Ok(0);
        };
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// An output that fails from its n-th write on.
struct Failing {
    writes: usize,
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self
            .writes
            .checked_sub(1)
            .ok_or(io::ErrorKind::BrokenPipe)?;
        self.writes = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_fails_ends_the_node_though_its_input_is_open() {
    for writes in [0, 1] {
        let (keyboard, input) = mpsc::channel();
        let first = line("c1", &json!({"type": "echo", "echo": 1}));
        keyboard
            .send(format!("{INIT}\n{first}\n").into_bytes())
            .unwrap();
        let begun = |node: &Node<u32>| {
            program(node);
            node.on_init(async |node: Node<u32>| {
                node.sleep(ms(1)).await;
                node.send("n2", "told", &()).unwrap();
            });
        };
        let error = hark_node::run(Typed(input), Failing { writes }, begun).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        drop(keyboard);
    }
}

#[test]
fn a_failed_input_ends_the_node_after_its_answers() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let asked = line("c1", &json!({"type": "sleep", "msg_id": 1}));
    let input = io::Cursor::new(format!("{INIT}\n{asked}\n").into_bytes()).chain(Broken);
    let mut out = Vec::new();
    let error = hark_node::run(input, &mut out, program).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(parsed(&String::from_utf8(out).unwrap()).len(), 2);
}

#[test]
fn the_time_of_a_call_begins_after_the_output_was_taken() {
    /// An output that takes as long as a call waits.
    struct Slow<'a>(&'a mut Vec<u8>);
    impl Write for Slow<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            std::thread::sleep(CALL_TIMEOUT);
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // So long that its answer is written before the next line is handled.
    let long = line(
        "c1",
        &json!({"type": "echo", "msg_id": 1, "echo": "x".repeat(100_000)}),
    );
    let call = line("c1", &json!({"type": "call", "msg_id": 2}));
    let input = io::Cursor::new([INIT, &long, &call].join("\n").into_bytes());
    let mut out = Vec::new();
    hark_node::run(input, Slow(&mut out), program).unwrap();
    let kinds: Vec<_> = parsed(&String::from_utf8(out).unwrap())
        .iter()
        .map(|(_, body)| body["type"].to_string())
        .collect();
    assert_eq!(
        kinds,
        [r#""init_ok""#, r#""echo_ok""#, r#""ask""#],
        "the call has not timed out"
    );
}

#[test]
fn an_answer_is_written_before_the_node_waits_for_more() {
    struct Heard(mpsc::Sender<Vec<u8>>);
    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !bytes.is_empty() {
                self.0.send(bytes.to_vec()).unwrap();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (keyboard, input) = mpsc::channel();
    let (output, screen) = mpsc::channel();
    let node = std::thread::spawn(move || hark_node::run(Typed(input), Heard(output), program));
    keyboard.send(format!("{INIT}\n").into_bytes()).unwrap();
    let mut answers = vec![screen.recv().unwrap()];
    for id in 1..=3 {
        let asked = line("c1", &json!({"type": "sleep", "msg_id": id}));
        keyboard.send(format!("{asked}\n").into_bytes()).unwrap();
        answers.push(screen.recv().unwrap());
    }
    assert_eq!(
        parsed(&String::from_utf8(answers.concat()).unwrap()).len(),
        4
    );
    drop(keyboard);
    node.join().unwrap().unwrap();
}

#[test]
fn a_task_may_be_woken_by_another_thread() {
    let (keyboard, input) = mpsc::channel();
    keyboard
        .send(
            format!(
                "{INIT}\n{}\n",
                line("c1", &json!({"type": "wait", "msg_id": 1}))
            )
            .into_bytes(),
        )
        .unwrap();
    let keyboard = Rc::new(Cell::new(Some(keyboard)));
    let mut out = Vec::new();
    hark_node::run(Typed(input), &mut out, |node: &Node<()>| {
        node.handle("wait", async move |_, _: Ask| {
            let mut thread = None;
            let mut is_woken = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut is_woken, true) {
                    return std::task::Poll::Ready(());
                }
                let waker = cx.waker().clone();
                thread = Some(std::thread::spawn(move || waker.wake()));
                std::task::Poll::Pending
            })
            .await;
            thread.unwrap().join().unwrap();
            drop(keyboard.take());
            Ok::<(), Error>(())
        });
    })
    .unwrap();
    assert_eq!(parsed(&String::from_utf8(out).unwrap()).len(), 2);
}

#[test]
fn a_panic_at_the_end_is_answered() {
    let log = Log::default();
    let events = Rc::clone(&log);
    let mut driven = Driven::<()>::new(move |node| {
        node.handle(
            "sleep",
            async move |node: Node<()>, _: Ask| -> Result<(), Error> {
                node.sleep(ms(1)).await;
                events.borrow_mut().push("awake".to_owned());
                panic!("at the end");
            },
        );
    });
    driven.ask("c1", &json!({"type": "sleep", "msg_id": 1}));
    driven.end();
    assert_eq!(crate::harness::only_code(&driven.pass(ms(1))), 13);
    assert_eq!(*log.borrow(), ["awake"]);
}

mod long {
    use super::*;

    #[test]
    fn a_line_of_32_mib_is_answered() {
        let long = "x".repeat(32 * 1024 * 1024);
        let out = run(&[
            INIT.to_owned(),
            line("c1", &json!({"type": "echo", "msg_id": 1, "echo": long})),
            line("c1", &json!({"type": "echo", "msg_id": 2, "echo": "short"})),
        ]);
        let [_, (_, first), (_, second)] = &*parsed(&out) else {
            panic!("not three lines")
        };
        assert!(first["echo"] == json!(long));
        assert_eq!(second["echo"], "short");
    }
}
