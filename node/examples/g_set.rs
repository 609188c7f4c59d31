//! Maelstrom's `g-set`: a set that only grows, on all nodes at once. Every
//! node is available during a partition; the sets converge after it,
//! through [`hark_node::gossip`].
//!
//! A node stores an element before it answers, so that no crash loses it.

use std::collections::BTreeSet;
use std::process::ExitCode;

use hark_node::gossip::{Gossip, Settings};
use hark_node::{Node, Request};
use serde::{Deserialize, Serialize};

type Set = BTreeSet<i64>;

#[derive(Deserialize)]
struct Add {
    element: i64,
}

#[derive(Serialize)]
struct ReadOk {
    value: Set,
}

pub(crate) fn program(node: &Node<()>) {
    let set = Gossip::<_, Set>::new(node, Settings::default());
    let stored = set.clone();
    node.on_init(
        async move |node: Node<()>| match node.storage().scan("element/") {
            Ok(elements) => {
                stored.merge(elements.into_iter().map(|(_, element)| element).collect())
            }
            Err(error) => tracing::error!(%error, "stored elements are lost"),
        },
    );
    let adds = set.clone();
    node.handle("add", async move |node: Node<()>, request: Request<Add>| {
        let element = request.body.element;
        node.storage()
            .put(&format!("element/{element}"), &element)?;
        adds.merge(Set::from([element]));
        Ok(())
    });
    node.handle("read", async move |_, _: Request<()>| {
        Ok(ReadOk {
            value: set.state().clone(),
        })
    });
}

fn main() -> ExitCode {
    hark_node::main(program)
}
