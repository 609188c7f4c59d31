//! Maelstrom's `txn-list-append`: transactions over lists, strict serializable
//! (`--consistency-models strict-serializable`, Maelstrom's default).
//!
//! A transaction is one command of a state machine that [`hark_node::raft`]
//! replicates, so the order of the log is the order of the transactions. One
//! that only reads takes no entry: the leader confirms that it still leads.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hark_node::raft::{Raft, Settings, StateMachine};
use hark_node::{Error, ErrorCode, Json, Node, Request};
use serde::{Deserialize, Serialize};

/// A function, a key, and a value: `null` in a read that was not executed yet.
#[derive(Clone, Serialize, Deserialize)]
struct Op(Function, Json, Json);

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Function {
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "append")]
    Append,
}

#[derive(Clone, Serialize, Deserialize)]
struct Txn {
    txn: Vec<Op>,
}

/// The lists, by the JSON of their keys.
#[derive(Default, Serialize, Deserialize)]
struct Lists(BTreeMap<String, Vec<Json>>);

impl Lists {
    fn read(&self, key: &Json) -> Result<Json, Error> {
        let unwritable = |error: serde_json::Error| Error::new(ErrorCode::Abort, error.to_string());
        Json::of(&self.0.get(&key.to_string())).map_err(unwritable)
    }

    /// Executes a transaction that only reads.
    fn look(&self, txn: &Txn) -> Result<Txn, Error> {
        let read = |op: &Op| -> Result<Op, Error> { Ok(Op(op.0, op.1.clone(), self.read(&op.1)?)) };
        Ok(Txn {
            txn: txn.txn.iter().map(read).collect::<Result<_, _>>()?,
        })
    }
}

impl StateMachine for Lists {
    type Command = Txn;
    type Reply = Txn;

    fn apply(&mut self, txn: &Txn) -> Result<Txn, Error> {
        let mut done = txn.clone();
        for Op(function, key, value) in &mut done.txn {
            match function {
                Function::Read => *value = self.read(key)?,
                Function::Append => self
                    .0
                    .entry(key.to_string())
                    .or_default()
                    .push(value.clone()),
            }
        }
        Ok(done)
    }
}

pub(crate) fn program(node: &Node<()>) {
    let raft = Raft::<_, Lists>::new(node, Settings::default());
    node.handle("txn", async move |_, request: Request<Txn>| {
        let txn = request.body;
        if txn.txn.iter().all(|op| op.0 == Function::Read) {
            return raft.read(|lists| lists.look(&txn)).await?;
        }
        raft.propose(txn).await
    });
}

fn main() -> ExitCode {
    hark_node::main(program)
}
