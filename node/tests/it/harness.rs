//! A machine with its clock, and its input and output as messages.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use hark_node::{Error, Json, Machine, Node, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) const SEED: u64 = 7;

pub(crate) const INIT: &str = r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2"]}}"#;

/// A node `n1` that a test drives.
pub(crate) struct Driven<S> {
    pub(crate) machine: Machine,
    pub(crate) node: Node<S>,
    pub(crate) now: Duration,
}

impl<S: Default + 'static> Driven<S> {
    pub(crate) fn unnamed(program: impl FnOnce(&Node<S>)) -> Self {
        let mut handle = None;
        let machine = Machine::new(
            |node: &Node<S>| {
                program(node);
                handle = Some(node.clone());
            },
            SEED,
        );
        Self {
            machine,
            node: handle.unwrap(),
            now: Duration::ZERO,
        }
    }

    /// A node that has its name, and whose next message gets the id 1.
    #[track_caller]
    pub(crate) fn new(program: impl FnOnce(&Node<S>)) -> Self {
        let mut driven = Self::unnamed(program);
        let out = driven.take(INIT);
        assert_eq!(
            out,
            r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#
                .to_owned()
                + "\n"
        );
        driven
    }

    /// Handles a line, and returns the output as text.
    pub(crate) fn take(&mut self, line: impl AsRef<[u8]>) -> String {
        self.machine.handle_line(self.now, line.as_ref());
        self.output()
    }

    /// Handles a body from `src`, and returns the output: destinations and bodies.
    pub(crate) fn ask(&mut self, src: &str, body: &Value) -> Vec<(String, Value)> {
        parsed(&self.take(line(src, body)))
    }

    /// Lets time pass, and returns the output.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<(String, Value)> {
        let until = self.now + time;
        while let Some(next) = self.machine.next_timeout().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.machine.handle_timeout(self.now);
        }
        self.now = until;
        self.machine.handle_timeout(until);
        parsed(&self.output())
    }

    pub(crate) fn end(&mut self) {
        self.machine.handle_end(self.now);
    }

    pub(crate) fn output(&mut self) -> String {
        let mut out = Vec::new();
        self.machine.take_output(&mut out);
        assert!(out.is_ascii());
        String::from_utf8(out).unwrap()
    }

    /// Checks that no call is open and no timer is set.
    #[track_caller]
    pub(crate) fn is_at_rest(&self) {
        assert_eq!(self.machine.pending(), 0);
        assert_eq!(self.machine.next_timeout(), None);
    }

    /// Checks that the node still answers.
    #[track_caller]
    pub(crate) fn is_well(&mut self) {
        let answer = self.ask("c9", &json!({"type": "echo", "msg_id": -1, "echo": "well"}));
        let [(dest, body)] = &*answer else {
            panic!("{answer:?}")
        };
        assert_eq!(
            (&**dest, &body["echo"], &body["in_reply_to"]),
            ("c9", &json!("well"), &json!(-1))
        );
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Echo {
    pub(crate) echo: Json,
}

/// Answers `echo`.
pub(crate) fn echo<S: 'static>(node: &Node<S>) {
    node.handle("echo", async |_, request: Request<Echo>| Ok(request.body));
}

/// A request without fields.
#[derive(Deserialize)]
pub(crate) struct Nothing {}

pub(crate) type Ask = Request<Nothing>;

/// Events in order, for programs without output.
pub(crate) type Log = Rc<RefCell<Vec<String>>>;

/// The outcome of a call as text.
pub(crate) fn text_of(outcome: &Result<Json, Error>) -> String {
    match outcome {
        Ok(body) => body.text().to_owned(),
        Err(error) => error.to_string(),
    }
}

pub(crate) fn line(src: &str, body: &Value) -> String {
    json!({"src": src, "dest": "n1", "body": body}).to_string()
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Returns the destinations and bodies of whole lines that are all from `n1`.
#[track_caller]
pub(crate) fn parsed(text: &str) -> Vec<(String, Value)> {
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let message = |line: &str| {
        let message: Value = serde_json::from_str(line).expect(line);
        assert_eq!(message["src"], "n1", "{line}");
        (
            message["dest"].as_str().expect(line).to_owned(),
            message["body"].clone(),
        )
    };
    text.lines().map(message).collect()
}

/// The body of an error that answers message 1.
pub(crate) fn error(code: i64, text: &str, msg_id: i64) -> Value {
    json!({"type": "error", "code": code, "text": text, "in_reply_to": 1, "msg_id": msg_id})
}

/// Returns the code of the only answer.
#[track_caller]
pub(crate) fn only_code(out: &[(String, Value)]) -> i64 {
    let [(_, body)] = out else { panic!("{out:?}") };
    assert_eq!(body["type"], "error", "{body}");
    body["code"].as_i64().unwrap()
}
