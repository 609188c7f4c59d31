//! Maelstrom's `g-counter`: a counter that only grows, in the service `seq-kv`.
//!
//! Each node stores the sum of its own increments, answers, and then writes
//! the sum under its own name in `seq-kv`; the counter is the sum of all.
//! Two pitfalls of a sequentially consistent store are avoided:
//!
//! - A read may see any state since the node's own last change. So a read
//!   first changes a key of its own.
//! - A write that timed out may take effect after the next one. So a sum is
//!   raised by compare-and-set, and never lowered.

use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use serde::{Deserialize, Serialize};

/// The time that an addition waits for more before the sum is written.
const LINGER: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct State {
    /// The increments at this node.
    sum: u64,
    /// The part of the sum that is in `seq-kv`.
    written: u64,
}

#[derive(Deserialize)]
struct Add {
    delta: u64,
}

#[derive(Serialize)]
struct ReadOk {
    value: u64,
}

pub(crate) fn program(node: &Node<State>) {
    match node.storage().get("sum") {
        Ok(sum) => node.state().sum = sum.unwrap_or_default(),
        Err(error) => tracing::error!(%error, "the stored sum is lost"),
    }
    node.handle("add", async |node: Node<State>, request: Request<Add>| {
        add(&node, request.body.delta)
    });
    node.handle("read", async |node: Node<State>, _: Request<()>| {
        read(&node).await
    });
    node.every(LINGER, async |node: Node<State>| {
        if let Err(error) = write(&node).await {
            tracing::debug!(%error, "writing the sum again");
        }
    });
}

fn add(node: &Node<State>, delta: u64) -> Result<(), Error> {
    let sum = node.state().sum.checked_add(delta);
    let sum =
        sum.ok_or_else(|| Error::new(ErrorCode::PreconditionFailed, "the counter is full"))?;
    node.storage().put("sum", &sum)?;
    node.state().sum = sum;
    Ok(())
}

/// Raises this node's sum in `seq-kv`.
async fn write(node: &Node<State>) -> Result<(), Error> {
    let State { sum, written } = *node.state();
    if sum > written {
        let raise = |before: Option<u64>| Ok(sum.max(before.unwrap_or_default()));
        node.seq_kv().update(node.id(), raise).await?;
        node.state().written = sum;
    }
    Ok(())
}

async fn read(node: &Node<State>) -> Result<ReadOk, Error> {
    let store = node.seq_kv();
    // Any other value makes this a change, after which no older state is seen.
    store
        .write(format!("read by {}", node.id()), node.random())
        .await?;
    let mut value = node.state().sum;
    for peer in node.peers() {
        value += store.find::<u64>(peer).await?.unwrap_or_default();
    }
    Ok(ReadOk { value })
}

fn main() -> ExitCode {
    hark_node::main(program)
}
