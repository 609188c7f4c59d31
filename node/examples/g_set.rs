//! Maelstrom's `g-set`: a set that only grows. Every node has one, and now and
//! then tells another all that is in it; the union is what all come to have.
//!
//! An `add` is answered when a second node has the element, so that one crash
//! at a time loses nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use serde::{Deserialize, Serialize};

/// Between two times that a node tells another all it has.
const PAUSE: Duration = Duration::from_secs(1);

/// How long another node has to say that it has something too.
const TIMEOUT: Duration = Duration::from_millis(500);

/// So many other nodes are asked to have it too.
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

#[derive(Deserialize)]
struct Nothing {}

pub(crate) fn program(node: &Node<Set>) {
    node.handle("add", add);
    node.handle("merge", merge);
    node.handle("read", async |node: Node<Set>, _: Request<Nothing>| {
        Ok(Elements { value: node.state().clone() })
    });
    node.every(PAUSE, async |node| tell_somebody(&node));
}

async fn add(node: Node<Set>, request: Request<Add>) -> Result<(), Error> {
    let element = request.body.element;
    node.state().insert(element);
    let copy = Elements { value: Set::from([element]) };
    for _ in 0..ATTEMPTS {
        let Some(peer) = node.random_peer() else { return Ok(()) };
        match node.call(peer, "merge", &copy).timeout(TIMEOUT).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(peer, %error, "asking another"),
        }
    }
    // The element is here and may yet come to all.
    Err(Error::new(ErrorCode::Timeout, "no second node has it yet"))
}

fn tell_somebody(node: &Node<Set>) {
    let all = Elements { value: node.state().clone() };
    if let Some(peer) = node.random_peer()
        && let Err(error) = node.send(peer, "merge", &all)
    {
        tracing::warn!(peer, %error, "nothing was told");
    }
}

async fn merge(node: Node<Set>, request: Request<Elements>) -> Result<(), Error> {
    node.state().extend(request.body.value);
    Ok(())
}

fn main() -> ExitCode {
    hark_node::main(program)
}
