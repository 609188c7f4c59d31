//! Maelstrom's `unique-ids`: every node generates ids that are unique in the
//! cluster. The nodes need no messages for it, so no fault stops them.
//!
//! An id is the name of the node, a random number drawn at its start, and a
//! counter. A node that was restarted counts from the beginning with another
//! number.

use std::process::ExitCode;

use hark_node::{Error, Node, Request};
use serde::Serialize;

#[derive(Default)]
pub(crate) struct State {
    run: u64,
    given: u64,
}

#[derive(Serialize)]
struct GenerateOk {
    id: String,
}

pub(crate) fn program(node: &Node<State>) {
    node.on_init(async |node: Node<State>| node.state().run = node.random());
    node.handle("generate", generate);
}

async fn generate(node: Node<State>, _: Request<()>) -> Result<GenerateOk, Error> {
    let mut state = node.state();
    state.given += 1;
    Ok(GenerateOk {
        id: format!("{}-{:016x}-{}", node.id(), state.run, state.given),
    })
}

fn main() -> ExitCode {
    hark_node::main(program)
}
