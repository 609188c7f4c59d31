//! The binary speaks Maelstrom's lines: the test is the network, a client and `lin-kv`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// A node, with all that it needs around it.
struct Node {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    values: BTreeMap<String, Value>,
    sent: u64,
}

impl Node {
    fn start(workload: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_hark-workload"))
            .arg(workload)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (
            process.stdin.take().unwrap(),
            process.stdout.take().unwrap(),
        );
        let mut node = Self {
            process,
            input,
            output: BufReader::new(output),
            values: BTreeMap::new(),
            sent: 0,
        };
        let init = json!({"type": "init", "node_id": "n1", "node_ids": ["n1"]});
        assert_eq!(node.ask(init)["type"], "init_ok");
        node
    }

    /// Sends a request of the client. Returns the body of its answer, and serves `lin-kv`
    /// until then.
    fn ask(&mut self, mut body: Value) -> Value {
        self.sent += 1;
        body["msg_id"] = json!(self.sent);
        self.send("c1", &body);
        loop {
            let mut line = String::new();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "the node has ended"
            );
            let mut message: Value = serde_json::from_str(&line).unwrap();
            let body = message["body"].take();
            match message["dest"].as_str() {
                Some("lin-kv") => {
                    let reply = self.apply(&body);
                    self.send("lin-kv", &reply);
                }
                Some("c1") => {
                    assert_eq!(body["in_reply_to"], self.sent, "{line}");
                    return body;
                }
                _ => panic!("a message to another node: {line}"),
            }
        }
    }

    /// Repeats a request until it is answered without an error.
    fn ask_until_done(&mut self, body: &Value) -> Value {
        for _ in 0..20 {
            let answer = self.ask(body.clone());
            if answer["type"] != "error" {
                return answer;
            }
        }
        panic!("{body} is never done")
    }

    fn send(&mut self, src: &str, body: &Value) {
        let line = json!({"src": src, "dest": "n1", "body": body});
        writeln!(self.input, "{line}").unwrap();
    }

    /// Carries out a request to `lin-kv`.
    fn apply(&mut self, body: &Value) -> Value {
        let key = body["key"].to_string();
        let current = self.values.get(&key).cloned();
        let error = |code| json!({"type": "error", "code": code, "text": "no"});
        let mut reply = match (body["type"].as_str().unwrap(), current) {
            ("read", Some(value)) => json!({"type": "read_ok", "value": value}),
            ("cas", Some(value)) if value != body["from"] => error(22),
            ("cas", None) if body["create_if_not_exists"] != true => error(20),
            ("read", None) => error(20),
            (kind, _) => {
                let value = if kind == "cas" {
                    &body["to"]
                } else {
                    &body["value"]
                };
                self.values.insert(key, value.clone());
                json!({"type": format!("{kind}_ok")})
            }
        };
        reply["in_reply_to"] = body["msg_id"].clone();
        reply
    }

    /// Ends the input, and checks that the node ends in order.
    fn end(mut self) {
        drop(self.input);
        assert!(self.process.wait().unwrap().success());
    }
}

#[test]
fn log_is_sent_polled_and_committed() {
    let mut node = Node::start("kafka");
    let sent = [7, 8].map(|msg| {
        let body = json!({"type": "send", "key": "k1", "msg": msg});
        node.ask_until_done(&body)["offset"].as_u64().unwrap()
    });
    assert!(sent[0] < sent[1], "{sent:?}");
    let polled = node.ask_until_done(&json!({"type": "poll", "offsets": {"k1": 0, "k2": 0}}));
    assert_eq!(polled["msgs"], json!({"k1": [[sent[0], 7], [sent[1], 8]]}));
    node.ask_until_done(&json!({"type": "commit_offsets", "offsets": {"k1": sent[1]}}));
    // An older offset changes nothing.
    node.ask_until_done(&json!({"type": "commit_offsets", "offsets": {"k1": sent[0]}}));
    let listed =
        node.ask_until_done(&json!({"type": "list_committed_offsets", "keys": ["k1", "k2"]}));
    assert_eq!(listed["offsets"], json!({"k1": sent[1]}));
    node.end();
}

#[test]
fn queue_gives_messages_until_they_are_acknowledged() {
    let mut node = Node::start("queue");
    node.ask_until_done(&json!({"type": "create", "user": "ann"}));
    let send =
        json!({"type": "send", "session": "s1", "messages": [[1, "ann", "x"], [2, "ann", "y"]]});
    let numbers = node.ask_until_done(&send)["numbers"].clone();
    // A repeat has the same outcome.
    assert_eq!(node.ask_until_done(&send)["numbers"], numbers);
    let receive = |acknowledged: &Value| json!({"type": "receive", "user": "ann", "acknowledged": acknowledged});
    for _ in 0..2 {
        let received = node.ask_until_done(&receive(&json!(0)));
        assert_eq!(
            received["messages"],
            json!([[numbers[0], "x"], [numbers[1], "y"]])
        );
    }
    let received = node.ask_until_done(&receive(&numbers[1]));
    assert_eq!(received["messages"], json!([]));
    node.end();
}

#[test]
fn unknown_workload_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_hark-workload"))
        .arg("echo")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("kafka or queue"));
}
