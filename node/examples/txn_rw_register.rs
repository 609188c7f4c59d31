//! Maelstrom's `txn-rw-register`: transactions over registers, read committed
//! and totally available (`--consistency-models read-committed --availability
//! total`): a node executes a transaction by itself, also during a partition.
//!
//! The writes of a transaction have one stamp, a Lamport time and the node; of
//! two writes to a register the later one wins on every node. A transaction
//! sees the writes of others only when they are done, and gets a later stamp
//! than all writes that it sees, so that no cycle of writes and reads arises. A node
//! stores the writes before it answers. They go to a few other nodes at once,
//! and now and then each node compares its registers with those of another.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, Json, Node, Request};
use serde::{Deserialize, Serialize};

/// The time that a write waits for more before they are passed on.
const LINGER: Duration = Duration::from_millis(50);

/// The number of nodes to which a node passes writes on.
const FANOUT: usize = 3;

/// The pause between two comparisons with another node.
const COMPARE: Duration = Duration::from_millis(500);

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

/// The registers, by the JSON of their keys.
type Registers = BTreeMap<String, Register>;

#[derive(Default)]
pub(crate) struct State {
    time: u64,
    all: Registers,
    /// Writes that were not passed on yet.
    fresh: Registers,
}

#[derive(Serialize, Deserialize)]
struct Merge {
    registers: Registers,
}

pub(crate) fn program(node: &Node<State>) {
    match node.storage().scan::<Register>("register/") {
        Ok(stored) => {
            let state = &mut *node.state();
            for (key, register) in stored {
                state.time = state.time.max(register.stamp.0);
                let key = key.strip_prefix("register/").unwrap_or(&key);
                state.all.insert(key.to_owned(), register);
            }
        }
        Err(error) => tracing::error!(%error, "stored registers are lost"),
    }
    node.handle("txn", async |node: Node<State>, request: Request<Txn>| execute(&node, request.body));
    node.receive("rumor", async |node: Node<State>, request: Request<Merge>| {
        if let Err(error) = merge(&node, request.body.registers) {
            tracing::error!(%error, "cannot store a write");
        }
    });
    node.handle("compare", async |node: Node<State>, request: Request<Merge>| {
        merge(&node, request.body.registers)?;
        Ok(Merge { registers: node.state().all.clone() })
    });
    node.every(COMPARE, async |node: Node<State>| {
        if let Err(error) = compare(&node).await {
            tracing::debug!(%error, "comparing with another node later");
        }
    });
}

/// Executes a transaction in one step.
fn execute(node: &Node<State>, mut txn: Txn) -> Result<Txn, Error> {
    let stamp = (node.state().time + 1, node.id().to_owned());
    let mut writes = Registers::new();
    for Op(function, key, value) in &mut txn.txn {
        let key = key.to_string();
        match function {
            Function::Read => {
                let state = node.state();
                let register = writes.get(&key).or_else(|| state.all.get(&key));
                *value = Json::of(&register.map(|register| &register.value))?;
            }
            Function::Write => {
                writes.insert(key, Register { stamp: stamp.clone(), value: value.clone() });
            }
        }
    }
    merge(node, writes)?;
    Ok(txn)
}

/// Takes writes that are later than those that are here, stores them, and
/// passes them on after the linger time.
fn merge(node: &Node<State>, registers: Registers) -> Result<(), Error> {
    let state = &mut *node.state();
    let is_idle = state.fresh.is_empty();
    for (key, theirs) in registers {
        state.time = state.time.max(theirs.stamp.0);
        if state.all.get(&key).is_none_or(|ours| ours.stamp < theirs.stamp) {
            node.storage().put(&format!("register/{key}"), &theirs)?;
            state.fresh.insert(key.clone(), theirs.clone());
            state.all.insert(key, theirs);
        }
    }
    if is_idle && !state.fresh.is_empty() {
        let node = node.clone();
        node.clone().spawn(async move {
            node.sleep(LINGER).await;
            pass_on(&node);
        });
    }
    Ok(())
}

fn pass_on(node: &Node<State>) {
    let rumor = Merge { registers: std::mem::take(&mut node.state().fresh) };
    for peer in (0..FANOUT).filter_map(|_| node.random_peer()) {
        if let Err(error) = node.send(peer, "rumor", &rumor) {
            tracing::error!(peer, %error, "cannot write a rumor");
        }
    }
}

/// Exchanges all registers with another node.
async fn compare(node: &Node<State>) -> Result<(), Error> {
    let Some(peer) = node.random_peer() else { return Ok(()) };
    let ours = Merge { registers: node.state().all.clone() };
    let theirs: Merge = node.call(peer, "compare", &ours).await?;
    merge(node, theirs.registers)
}

fn main() -> ExitCode {
    hark_node::main(program)
}
