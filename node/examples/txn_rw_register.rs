//! Maelstrom's `txn-rw-register`: transactions over registers, read committed
//! and totally available (`--consistency-models read-committed --availability
//! total`): a node executes a transaction on its own, even during a partition,
//! and passes its writes on through [`hark_node::gossip`].
//!
//! The writes of a transaction have one stamp, a Lamport time and the node; of
//! two writes to a register the later one wins on every node. A transaction
//! sees the writes of others only when they are done, and gets a later stamp
//! than all writes that it sees, so that no cycle of writes and reads arises. A
//! node stores its writes before it answers.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hark_node::gossip::{Gossip, Merge, Settings};
use hark_node::{Error, Json, Node, Request};
use serde::{Deserialize, Serialize};

/// A function, a key, and a value: `null` in a read that was not executed yet.
#[derive(Serialize, Deserialize)]
struct Op(Function, Json, Json);

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Function {
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "w")]
    Write,
}

#[derive(Serialize, Deserialize)]
struct Txn {
    txn: Vec<Op>,
}

/// A Lamport time, and the node whose time it is.
type Stamp = (u64, String);

#[derive(Clone, Serialize, Deserialize)]
struct Register {
    stamp: Stamp,
    value: Json,
}

impl Merge for Register {
    fn merge_with(&mut self, other: Self) -> Option<Self> {
        (self.stamp < other.stamp).then(|| {
            *self = other;
            self.clone()
        })
    }
}

/// The registers, by the JSON of their keys.
type Registers = BTreeMap<String, Register>;

pub(crate) fn program(node: &Node<()>) {
    let registers = Gossip::<_, Registers>::new(node, Settings::default());
    let stored = registers.clone();
    node.on_init(async move |node: Node<()>| match node.storage().scan("") {
        Ok(writes) => stored.merge(writes.into_iter().collect()),
        Err(error) => tracing::error!(%error, "stored registers are lost"),
    });
    node.handle("txn", async move |node: Node<()>, request: Request<Txn>| {
        execute(&node, &registers, request.body)
    });
}

/// Executes a transaction in one step.
fn execute(node: &Node<()>, registers: &Gossip<(), Registers>, mut txn: Txn) -> Result<Txn, Error> {
    let latest = registers
        .state()
        .values()
        .map(|register| register.stamp.0)
        .max();
    let stamp = (latest.unwrap_or_default() + 1, node.id().to_owned());
    let mut writes = Registers::new();
    for Op(function, key, value) in &mut txn.txn {
        let key = key.to_string();
        match function {
            Function::Read => {
                let state = registers.state();
                let register = writes.get(&key).or_else(|| state.get(&key));
                *value = Json::of(&register.map(|register| &register.value))?;
            }
            Function::Write => {
                writes.insert(
                    key,
                    Register {
                        stamp: stamp.clone(),
                        value: value.clone(),
                    },
                );
            }
        }
    }
    for (key, register) in &writes {
        node.storage().put(key, register)?;
    }
    registers.merge(writes);
    Ok(txn)
}

fn main() -> ExitCode {
    hark_node::main(program)
}
