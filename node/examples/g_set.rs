//! Maelstrom's `g-set`: a set that only grows. Every node has a copy, and sends
//! it to a random other node five times a second; a node adds the elements that it receives.
//!
//! An `add` is answered when a second node has the element, so that one crash
//! at a time loses no element. Forty nodes converge in about 2 s.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use serde::{Deserialize, Serialize};

/// The time between two copies that a node sends.
const PAUSE: Duration = Duration::from_millis(200);

/// The time that another node has to store an element.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The number of other nodes that are asked to store an element, one by one.
const ATTEMPTS: u32 = 5;

type Set = BTreeSet<i64>;

#[derive(Deserialize)]
struct Add {
    element: i64,
}

#[derive(Serialize, Deserialize)]
struct Elements {
    value: Set,
}

pub(crate) fn program(node: &Node<Set>) {
    node.handle("add", add);
    node.handle("merge", merge);
    node.handle("read", async |node: Node<Set>, _: Request<()>| Ok(Elements { value: node.state().clone() }));
    node.every(PAUSE, async |node| gossip(&node));
}

async fn add(node: Node<Set>, request: Request<Add>) -> Result<(), Error> {
    let element = request.body.element;
    node.state().insert(element);
    let copy = Elements { value: Set::from([element]) };
    for _ in 0..ATTEMPTS {
        let Some(peer) = node.random_peer() else { return Ok(()) };
        match node.call(peer, "merge", &copy).timeout(TIMEOUT).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(peer, %error, "asking another node"),
        }
    }
    // The element is stored here, and may still reach the others.
    Err(Error::new(ErrorCode::Timeout, "no second node has it yet"))
}

fn gossip(node: &Node<Set>) {
    let all = Elements { value: node.state().clone() };
    if let Some(peer) = node.random_peer()
        && let Err(error) = node.send(peer, "merge", &all)
    {
        tracing::warn!(peer, %error, "gossip failed");
    }
}

async fn merge(node: Node<Set>, request: Request<Elements>) -> Result<(), Error> {
    node.state().extend(request.body.value);
    Ok(())
}

fn main() -> ExitCode {
    hark_node::main(program)
}
