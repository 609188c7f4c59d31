//! Maelstrom's `g-set`: a set that only grows, on all nodes at once. Every node
//! is available during a partition; the sets converge after it.
//!
//! A node stores an element before it answers, so that no crash loses it. New
//! elements go to a few other nodes at once, and from there to others
//! ("rumor mongering"). Now and then each node compares its set with that of
//! another, which repairs lost rumors ("anti-entropy").

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, Node, Request};
use serde::{Deserialize, Serialize};

/// The time that a new element waits for more before they are passed on.
const LINGER: Duration = Duration::from_millis(50);

/// The number of nodes to which a node passes new elements on.
const FANOUT: usize = 3;

/// The pause between two comparisons with another node.
const COMPARE: Duration = Duration::from_millis(500);

type Set = BTreeSet<i64>;

#[derive(Default)]
pub(crate) struct State {
    all: Set,
    /// Elements that were not passed on yet.
    fresh: Set,
}

#[derive(Deserialize)]
struct Add {
    element: i64,
}

#[derive(Serialize, Deserialize)]
struct Elements {
    value: Set,
}

pub(crate) fn program(node: &Node<State>) {
    match node.storage().scan::<i64>("element/") {
        Ok(stored) => node.state().all.extend(stored.into_iter().map(|(_, element)| element)),
        Err(error) => tracing::error!(%error, "stored elements are lost"),
    }
    node.handle("add", async |node: Node<State>, request: Request<Add>| {
        let element = request.body.element;
        node.storage().put(&format!("element/{element}"), &element)?;
        learn(&node, Set::from([element]));
        Ok(())
    });
    node.handle("read", async |node: Node<State>, _: Request<()>| {
        Ok(Elements { value: node.state().all.clone() })
    });
    node.receive("rumor", async |node: Node<State>, request: Request<Elements>| {
        learn(&node, request.body.value);
    });
    node.handle("compare", async |node: Node<State>, request: Request<Elements>| {
        let theirs = request.body.value;
        let missing = node.state().all.difference(&theirs).copied().collect();
        learn(&node, theirs);
        Ok(Elements { value: missing })
    });
    node.every(COMPARE, async |node: Node<State>| {
        if let Err(error) = compare(&node).await {
            tracing::debug!(%error, "comparing with another node later");
        }
    });
}

/// Takes elements, and passes the new ones on after the linger time.
fn learn(node: &Node<State>, elements: Set) {
    let state = &mut *node.state();
    let is_idle = state.fresh.is_empty();
    state.fresh.extend(elements.into_iter().filter(|element| state.all.insert(*element)));
    if is_idle && !state.fresh.is_empty() {
        let node = node.clone();
        node.clone().spawn(async move {
            node.sleep(LINGER).await;
            pass_on(&node);
        });
    }
}

fn pass_on(node: &Node<State>) {
    let rumor = Elements { value: std::mem::take(&mut node.state().fresh) };
    for peer in (0..FANOUT).filter_map(|_| node.random_peer()) {
        if let Err(error) = node.send(peer, "rumor", &rumor) {
            tracing::error!(peer, %error, "cannot write a rumor");
        }
    }
}

/// Exchanges the elements that either of two nodes lacks.
async fn compare(node: &Node<State>) -> Result<(), Error> {
    let Some(peer) = node.random_peer() else { return Ok(()) };
    let ours = Elements { value: node.state().all.clone() };
    let missing: Elements = node.call(peer, "compare", &ours).await?;
    learn(node, missing.value);
    Ok(())
}

fn main() -> ExitCode {
    hark_node::main(program)
}
