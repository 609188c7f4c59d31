//! `proxy` and `relay`: requests that are forwarded, and their replies passed
//! back. An error of the target is passed back with its code.

use hark_node::{Error, Json, Node, Request, Retry};
use serde::{Deserialize, Serialize};

pub(crate) fn register(node: &Node<()>) {
    node.handle("proxy", proxy);
    node.handle("relay", relay);
}

#[derive(Deserialize)]
struct Proxy {
    target: String,
    inner: Json,
}

#[derive(Serialize)]
struct Proxied {
    result: Json,
}

/// Forwards a request once, and waits 1 s.
async fn proxy(node: Node<()>, request: Request<Proxy>) -> Result<Proxied, Error> {
    let Proxy { target, inner } = request.body;
    let reply = node.forward(&target, &inner).await?;
    Ok(Proxied { result: reply.body })
}

#[derive(Deserialize)]
struct Relay {
    target: String,
    payload: Json,
}

#[derive(Serialize)]
struct Relayed {
    attempts: u32,
    result: Json,
}

/// Forwards a request up to three times, and waits 500 ms each time.
async fn relay(node: Node<()>, request: Request<Relay>) -> Result<Relayed, Error> {
    let Relay { target, payload } = request.body;
    let reply = node
        .forward(&target, &payload)
        .retry(Retry::default())
        .await?;
    Ok(Relayed {
        attempts: reply.attempts,
        result: reply.body,
    })
}
