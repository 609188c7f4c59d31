//! `pending_count` and `send_fire_forget`: the number of open calls, and a call
//! whose reply is ignored. The library expires it after 2 s.

use hark_node::{Error, Json, Node, Request};
use serde::{Deserialize, Serialize};

pub(crate) fn register(node: &Node<()>) {
    node.handle("pending_count", pending_count);
    node.handle("send_fire_forget", send_fire_forget);
}

#[derive(Deserialize)]
struct Nothing {}

#[derive(Serialize)]
struct Count {
    count: usize,
}

async fn pending_count(node: Node<()>, _: Request<Nothing>) -> Result<Count, Error> {
    Ok(Count {
        count: node.pending(),
    })
}

#[derive(Deserialize)]
struct FireForget {
    target: String,
    payload: Json,
}

#[derive(Serialize)]
struct Sent {
    pending: usize,
}

async fn send_fire_forget(node: Node<()>, request: Request<FireForget>) -> Result<Sent, Error> {
    let FireForget { target, payload } = request.body;
    node.forward_rpc(&target, &payload, |_, _| ())?;
    Ok(Sent {
        pending: node.pending(),
    })
}
