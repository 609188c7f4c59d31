//! The programs that the simulated nodes run.

use std::collections::BTreeSet;
use std::time::Duration;

use hark_node::sim::{Client, Cluster};
use hark_node::{Error, ErrorCode, Json, Node, Request, Retry};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, Clone, Copy)]
pub(crate) struct Number {
    pub(crate) number: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) numbers: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shower {
    pub(crate) dest: String,
    pub(crate) count: u64,
    pub(crate) pause_ms: u64,
}

/// `shower` sends numbers to another node, `numbers` returns the received ones in
/// order.
pub(crate) fn numbers(node: &Node<Vec<u64>>) {
    node.receive(
        "number",
        async |node: Node<Vec<u64>>, request: Request<Number>| {
            node.state().push(request.body.number);
        },
    );
    node.handle("numbers", async |node, _: Request<Json>| {
        Ok(Numbers {
            numbers: node.state().clone(),
        })
    });
    node.handle("shower", async |node, request: Request<Shower>| {
        let Shower {
            dest,
            count,
            pause_ms,
        } = request.body;
        for number in 0..count {
            node.send(&dest, "number", &Number { number })?;
            if pause_ms > 0 {
                node.sleep(Duration::from_millis(pause_ms)).await;
            }
        }
        Ok(())
    });
}

pub(crate) fn shower(cluster: &mut Cluster, client: Client, dest: &str, count: u64, pause_ms: u64) {
    let shower = Shower {
        dest: dest.into(),
        count,
        pause_ms,
    };
    let _: Json = cluster.call(client, "n1", "shower", &shower).unwrap();
    cluster.run_for(Duration::from_secs(1));
}

/// Returns the numbers that have reached a node.
pub(crate) fn come(cluster: &mut Cluster, client: Client, node: &str) -> Vec<u64> {
    cluster
        .call::<Numbers>(client, node, "numbers", &())
        .unwrap()
        .numbers
}

/// Spreads each number to all nodes, and counts them in `lin-kv`.
pub(crate) fn gossip(node: &Node<BTreeSet<u64>>) {
    node.handle("add", async |node, request: Request<Number>| {
        spread(&node, request.body.number);
        count(&node).await
    });
    node.handle("gossip", async |node, request: Request<Number>| {
        spread(&node, request.body.number);
        Ok(())
    });
    node.handle("numbers", async |node, _: Request<Json>| {
        Ok(Numbers {
            numbers: node.state().iter().copied().collect(),
        })
    });
}

fn spread(node: &Node<BTreeSet<u64>>, number: u64) {
    if !node.state().insert(number) {
        return;
    }
    for peer in node.peers() {
        let call = node
            .call::<()>(peer, "gossip", &Number { number })
            .retry(Retry::default());
        node.spawn(async move { drop(call.await) });
    }
}

async fn count(node: &Node<BTreeSet<u64>>) -> Result<(), Error> {
    let kv = node.lin_kv();
    loop {
        let count: u64 = kv.find("count").await?.unwrap_or_default();
        match kv.cas_or_create("count", count, count + 1).await {
            Err(error) if error.code == ErrorCode::PreconditionFailed => {}
            end => return end,
        }
    }
}
