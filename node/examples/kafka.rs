//! Maelstrom's `kafka`: logs of messages, with the offsets up to which
//! consumers have processed them.
//!
//! The logs are a state machine that [`hark_node::raft`] replicates: a message
//! that was answered keeps its offset through all faults. A poll reads the
//! node's own copy, which may lag but never has a gap, so that consumers
//! continue while a majority cannot be reached.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hark_node::raft::{Raft, Settings, StateMachine};
use hark_node::{Error, Json, Node, Request};
use serde::{Deserialize, Serialize};

/// The maximum number of messages of one key in a reply.
const POLL_MAX: usize = 100;

type Offsets = BTreeMap<String, u64>;

#[derive(Default, Serialize, Deserialize)]
struct Logs {
    /// The messages of each key; the offset of the first one is 0.
    messages: BTreeMap<String, Vec<Json>>,
    committed: Offsets,
}

#[derive(Clone, Serialize, Deserialize)]
enum Command {
    Send { key: String, msg: Json },
    Commit(Offsets),
}

impl StateMachine for Logs {
    type Command = Command;
    /// The offset of a message.
    type Reply = Option<u64>;

    fn apply(&mut self, command: &Command) -> Result<Option<u64>, Error> {
        match command {
            Command::Send { key, msg } => {
                let log = self.messages.entry(key.clone()).or_default();
                log.push(msg.clone());
                Ok(u64::try_from(log.len() - 1).ok())
            }
            Command::Commit(offsets) => {
                for (key, offset) in offsets {
                    let committed = self.committed.entry(key.clone()).or_default();
                    *committed = (*committed).max(*offset);
                }
                Ok(None)
            }
        }
    }
}

impl Logs {
    /// The messages of a key from an offset on, with their offsets.
    fn poll(&self, key: &str, from: u64) -> Vec<(u64, Json)> {
        let skipped = usize::try_from(from).unwrap_or(usize::MAX);
        let log = self.messages.get(key).map_or(&[][..], Vec::as_slice);
        (from..)
            .zip(log.iter().skip(skipped).take(POLL_MAX).cloned())
            .collect()
    }
}

#[derive(Deserialize)]
struct Send {
    key: String,
    msg: Json,
}

#[derive(Serialize)]
struct SendOk {
    offset: u64,
}

#[derive(Serialize, Deserialize)]
struct OffsetsOf {
    offsets: Offsets,
}

#[derive(Serialize)]
struct PollOk {
    msgs: BTreeMap<String, Vec<(u64, Json)>>,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

pub(crate) fn program(node: &Node<()>) {
    let raft = Raft::<_, Logs>::new(node, Settings::default());
    let producer = raft.clone();
    node.handle("send", async move |_, request: Request<Send>| {
        let Send { key, msg } = request.body;
        let offset = producer.propose(Command::Send { key, msg }).await?;
        Ok(SendOk {
            offset: offset.unwrap_or_default(),
        })
    });
    let copy = raft.clone();
    node.handle("poll", async move |_, request: Request<OffsetsOf>| {
        let offsets = request.body.offsets;
        let poll = |logs: &Logs| {
            let polled = offsets
                .iter()
                .map(|(key, from)| (key.clone(), logs.poll(key, *from)));
            polled
                .filter(|(_, messages)| !messages.is_empty())
                .collect()
        };
        Ok(PollOk {
            msgs: copy.peek(poll),
        })
    });
    let consumer = raft.clone();
    node.handle(
        "commit_offsets",
        async move |_, request: Request<OffsetsOf>| {
            consumer
                .propose(Command::Commit(request.body.offsets))
                .await
                .map(drop)
        },
    );
    node.handle(
        "list_committed_offsets",
        async move |_, request: Request<Keys>| {
            let keys = request.body.keys;
            let list = |logs: &Logs| {
                let committed = |key: &String| Some((key.clone(), *logs.committed.get(key)?));
                keys.iter().filter_map(committed).collect()
            };
            Ok(OffsetsOf {
                offsets: raft.read(list).await?,
            })
        },
    );
}

fn main() -> ExitCode {
    hark_node::main(program)
}
