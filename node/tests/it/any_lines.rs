//! The rules that hold for any input of the binary `hark-node`. The fuzz target
//! `lines` runs this.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hark_node::Machine;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[path = "../../src/bin/hark-node/tasks/mod.rs"]
pub(crate) mod tasks;

const INIT: &str = r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2"]}}"#;

/// The time in which every call and every idle stream ends.
const CALMED: Duration = Duration::from_secs(60 * 60);

/// The maximum number of messages of the node to itself for one line: the line
/// contains the bodies that it forwards, and each is sent at most three times.
const TO_ITSELF_MAX: usize = 10_000;

/// The sender and the id of a request.
type Asker = (String, i64);

/// Gives the bytes to a node, line by line, then lets the time pass. The node
/// writes messages alone, answers every request once and no other message, and
/// still answers in the end.
pub(crate) fn lines(data: &[u8]) {
    let mut node = Driven::new();
    for line in data.split(|byte| *byte == b'\n') {
        node.take(line);
    }
    node.calm_down();
    node.take(br#"{"src":"c9","dest":"n1","body":{"type":"echo","msg_id":-1,"echo":"well"}}"#);
    assert!(
        node.last
            .as_ref()
            .is_some_and(|last| last["dest"] == "c9" && last["body"]["echo"] == "well")
    );
    node.check_answers();
}

struct Driven {
    machine: Machine,
    now: Duration,
    next_id: i64,
    asked: BTreeMap<Asker, usize>,
    answered: BTreeMap<Asker, usize>,
    /// Requests for streams get several answers or none.
    streaming: BTreeSet<Asker>,
    last: Option<Value>,
}

impl Driven {
    fn new() -> Self {
        let mut node = Self {
            machine: Machine::new(tasks::program, 7),
            now: Duration::ZERO,
            next_id: 0,
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            streaming: BTreeSet::new(),
            last: None,
        };
        node.take(INIT.as_bytes());
        node
    }

    fn take(&mut self, line: &[u8]) {
        self.note(line);
        self.machine.handle_line(self.now, line);
        self.deliver();
    }

    /// Reads the output, and delivers the messages of the node to itself.
    fn deliver(&mut self) {
        let mut to_itself = 0;
        loop {
            let mut out = Vec::new();
            self.machine.take_output(&mut out);
            if out.is_empty() {
                return;
            }
            assert!(out.is_ascii() && out.ends_with(b"\n"));
            for line in out.split_inclusive(|byte| *byte == b'\n') {
                if self.read(line) {
                    to_itself += 1;
                    assert!(to_itself <= TO_ITSELF_MAX, "the node never comes to rest");
                    self.note(line);
                    self.machine.handle_line(self.now, line);
                }
            }
        }
    }

    /// Reads a message. Returns whether it is for the node itself.
    fn read(&mut self, line: &[u8]) -> bool {
        let said: Said = serde_json::from_slice(line).expect("the node writes messages alone");
        assert_eq!((&*said.src, said.body.msg_id), ("n1", self.next_id));
        self.next_id += 1;
        if let Some(id) = said.body.in_reply_to {
            *self.answered.entry((said.dest.clone(), id)).or_default() += 1;
        }
        // A message that is nested too deeply for this is not compared.
        self.last = serde_json::from_slice(line).ok();
        said.dest == "n1"
    }

    /// Notes the sender of a request.
    fn note(&mut self, line: &[u8]) {
        let Some((asker, kind)) = asker(line) else {
            return;
        };
        if kind.is_some_and(|kind| kind.starts_with("grpc_")) {
            self.streaming.insert(asker);
        } else {
            *self.asked.entry(asker).or_default() += 1;
        }
    }

    fn calm_down(&mut self) {
        let until = self.now + CALMED;
        while let Some(next) = self.machine.next_timeout().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.machine.handle_timeout(self.now);
            self.deliver();
        }
        assert_eq!(
            (self.machine.pending(), self.machine.next_timeout()),
            (0, None)
        );
    }

    fn check_answers(&self) {
        let is_plain = |(asker, _): &(&Asker, &usize)| !self.streaming.contains(asker);
        let asked: Vec<_> = self.asked.iter().filter(is_plain).collect();
        let answered: Vec<_> = self.answered.iter().filter(is_plain).collect();
        assert_eq!(asked, answered);
    }
}

#[derive(Deserialize)]
struct Said {
    src: String,
    dest: String,
    body: SaidBody,
}

#[derive(Deserialize)]
struct SaidBody {
    #[serde(rename = "type")]
    _kind: String,
    msg_id: i64,
    in_reply_to: Option<i64>,
}

#[derive(Deserialize)]
struct Heard<'a> {
    src: String,
    // Present at most once, with any value.
    #[serde(borrow, rename = "dest")]
    _dest: Option<&'a RawValue>,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct HeardBody<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    msg_id: Option<&'a RawValue>,
    #[serde(borrow)]
    in_reply_to: Option<&'a RawValue>,
}

/// Returns the sender and the type of a request, if they can be read.
fn asker(line: &[u8]) -> Option<(Asker, Option<String>)> {
    let Heard { src, body, .. } = object(std::str::from_utf8(line).ok()?)?;
    let HeardBody {
        kind,
        msg_id,
        in_reply_to,
    } = object(body.get())?;
    let is_reply = in_reply_to.is_some_and(|id| id.get().parse::<i64>().is_ok());
    let id = msg_id?.get().parse().ok().filter(|_| !is_reply)?;
    Some((
        (src, id),
        kind.and_then(|kind| serde_json::from_str(kind.get()).ok()),
    ))
}

/// Parses an object; serde alone would accept a list, too.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text)
        .ok()
        .filter(|_| text.trim_ascii_start().starts_with('{'))
}

#[test]
fn a_machine_answers_any_bytes_by_the_rules() {
    hark_seeds::check("lines", lines);
}
