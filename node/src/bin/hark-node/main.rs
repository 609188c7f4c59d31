//! hark-node: a Maelstrom node that does all the tasks.

use std::process::ExitCode;

use hark_node::{Json, Node, Request};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Echo {
    echo: Json,
}

fn main() -> ExitCode {
    hark_node::main(|node: &Node<()>| {
        node.handle("echo", async |_, request: Request<Echo>| Ok(request.body));
    })
}
