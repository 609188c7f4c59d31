//! A stream in `lin-kv`, as two nodes see it.

use std::rc::Rc;

use bytes::Bytes;
use hark_node::sim::{Client, Cluster, Event};
use hark_node::{Json, Node, Request};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::LogRequest;
use crate::cluster::maelstrom::stream::Stream;

const ID: u64 = 3;

#[derive(Serialize, Deserialize)]
enum Asked {
    Append(String, Option<u64>),
    Read(u64),
    Get(u64),
    Purge(u64),
}

#[derive(Deserialize)]
struct Ask {
    asked: Asked,
}

impl From<Asked> for LogRequest {
    fn from(asked: Asked) -> Self {
        let id = ID;
        match asked {
            Asked::Append(text, after) => {
                let bytes = Bytes::from(text);
                Self::Append { id, bytes, after }
            }
            Asked::Read(from) => Self::Read {
                id,
                from,
                messages_max: 100,
            },
            Asked::Get(sequence) => Self::Get { id, sequence },
            Asked::Purge(before) => Self::Purge { before },
        }
    }
}

fn program(node: &Node<()>) {
    let stream = Rc::new(Stream::new(0));
    node.handle("ask", async move |node: Node<()>, request: Request<Ask>| {
        let reply = stream
            .carry_out(&node.lin_kv(), request.body.asked.into())
            .await;
        Ok(json!({"reply": format!("{reply:?}")}))
    });
}

struct Streams {
    cluster: Cluster,
    client: Client,
}

impl Streams {
    fn new(seed: u64) -> Self {
        let mut cluster = Cluster::builder(program).nodes(2).seed(seed).build();
        let client = cluster.client();
        Self { cluster, client }
    }

    #[track_caller]
    fn check(&mut self, node: &str, asked: Asked, expected: &str) {
        let body = json!({"asked": asked});
        let reply: Json = self.cluster.call(self.client, node, "ask", &body).unwrap();
        let reply = reply.to_string();
        assert!(reply.contains(expected), "{reply} is not {expected}");
    }

    /// Appends this number of messages.
    fn fill(&mut self, count: u64) {
        for after in 0..count {
            let stored = format!("sequence: {} ", after + 1);
            self.check(
                "n1",
                Asked::Append(format!("m{}", after + 1), Some(after)),
                &stored,
            );
        }
    }
}

#[test]
fn append_after_another_sequence_is_refused() {
    let mut streams = Streams::new(1);
    let append = |text: &str, after| Asked::Append(text.to_owned(), after);
    streams.check("n1", append("a", Some(0)), "Stored { id: 3, sequence: 1 }");
    streams.check("n2", append("b", Some(0)), "Refused { id: 3, last: 1 }");
    streams.check("n2", append("b", Some(1)), "Stored { id: 3, sequence: 2 }");
    streams.check("n1", append("c", None), "Stored { id: 3, sequence: 3 }");
    streams.check(
        "n1",
        Asked::Read(2),
        r#"first: 1, messages: [b\"b\", b\"c\"], last: 3"#,
    );
}

#[test]
fn purged_messages_are_gone_for_all_nodes() {
    let mut streams = Streams::new(2);
    streams.fill(10);
    streams.check(
        "n2",
        Asked::Read(9),
        r#"first: 1, messages: [b\"m9\", b\"m10\"], last: 10"#,
    );
    for before in [4, 8, 6] {
        streams.check("n1", Asked::Purge(before), "None");
    }
    streams.check("n2", Asked::Read(1), "first: 8, messages: [], last: 10");
    streams.check(
        "n2",
        Asked::Read(10),
        r#"first: 8, messages: [b\"m10\"], last: 10"#,
    );
    streams.check("n1", Asked::Get(7), "bytes: None");
    streams.check("n1", Asked::Get(8), r#"bytes: Some(b\"m8\")"#);
    streams.check(
        "n2",
        Asked::Append("x".to_owned(), Some(5)),
        "Refused { id: 3, last: 10 }",
    );
}

#[test]
fn first_and_last_are_found_from_nothing() {
    let mut streams = Streams::new(3);
    streams.fill(100);
    streams.check("n1", Asked::Purge(71), "None");
    streams.cluster.apply(Event::crash("n1"));
    streams.cluster.apply(Event::restart("n1"));
    streams.check(
        "n1",
        Asked::Read(u64::MAX),
        "first: 71, messages: [], last: 100",
    );
    streams.check("n2", Asked::Append("x".to_owned(), None), "sequence: 101 ");
}

#[test]
fn one_of_two_appends_at_once_is_stored() {
    let mut streams = Streams::new(4);
    let client = streams.client;
    let asked = ["n1", "n2"].map(|node| {
        let body = json!({"asked": Asked::Append(node.to_owned(), Some(0))});
        streams.cluster.send(client, node, "ask", &body)
    });
    let replies = asked.map(|asked| {
        let reply: Json = streams.cluster.wait(asked).unwrap();
        reply.to_string()
    });
    let stored = replies
        .iter()
        .filter(|reply| reply.contains("Stored"))
        .count();
    assert_eq!(stored, 1, "{replies:?}");
}
