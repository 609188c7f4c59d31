//! Maelstrom's `lin-kv`: a linearizable store of keys and values.
//!
//! The store is a state machine that [`hark_node::raft`] replicates. Writes
//! and compare-and-sets are entries of its log; a read takes none, because
//! the leader asks a majority whether it still leads.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::raft::{Raft, Settings, StateMachine};
use hark_node::{Error, ErrorCode, Json, Node, Request};
use serde::{Deserialize, Serialize};

/// Maelstrom's clients of this workload give up after 1 s.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(900);

/// The values, by the JSON of their keys.
#[derive(Default, Serialize, Deserialize)]
struct Store(BTreeMap<String, Json>);

#[derive(Clone, Serialize, Deserialize)]
enum Command {
    Write { key: String, value: Json },
    Cas { key: String, from: Json, to: Json },
}

impl StateMachine for Store {
    type Command = Command;
    type Reply = ();

    fn apply(&mut self, command: &Command) -> Result<(), Error> {
        match command {
            Command::Write { key, value } => {
                self.0.insert(key.clone(), value.clone());
            }
            Command::Cas { key, from, to } => {
                let value = self.0.get_mut(key).ok_or_else(|| missing(key))?;
                if value != from {
                    let text = format!("the value is {value}, not {from}");
                    return Err(Error::new(ErrorCode::PreconditionFailed, text));
                }
                value.clone_from(to);
            }
        }
        Ok(())
    }
}

fn missing(key: &str) -> Error {
    Error::new(ErrorCode::KeyDoesNotExist, format!("there is no key {key}"))
}

#[derive(Deserialize)]
struct Read {
    key: Json,
}

#[derive(Serialize)]
struct ReadOk {
    value: Json,
}

#[derive(Deserialize)]
struct Write {
    key: Json,
    value: Json,
}

#[derive(Deserialize)]
struct Cas {
    key: Json,
    from: Json,
    to: Json,
}

pub(crate) fn program(node: &Node<()>) {
    serve(
        node,
        Settings {
            request_timeout: REQUEST_TIMEOUT,
            ..Settings::default()
        },
    );
}

pub(crate) fn serve(node: &Node<()>, settings: Settings) {
    let raft = Raft::<_, Store>::new(node, settings);
    let reader = raft.clone();
    node.handle("read", async move |_, request: Request<Read>| {
        let key = request.body.key.to_string();
        let value = reader.read(|store| store.0.get(&key).cloned()).await?;
        value
            .map(|value| ReadOk { value })
            .ok_or_else(|| missing(&key))
    });
    let writer = raft.clone();
    node.handle("write", async move |_, request: Request<Write>| {
        let Write { key, value } = request.body;
        writer
            .propose(Command::Write {
                key: key.to_string(),
                value,
            })
            .await
    });
    node.handle("cas", async move |_, request: Request<Cas>| {
        let Cas { key, from, to } = request.body;
        raft.propose(Command::Cas {
            key: key.to_string(),
            from,
            to,
        })
        .await
    });
}

fn main() -> ExitCode {
    hark_node::main(program)
}
