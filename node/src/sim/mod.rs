//! A cluster in a test: the nodes of one program, in one process, over a
//! simulated network, by virtual time and a seed.
//!
//! The cluster reads no clock and waits for nothing, and all its random numbers
//! come from the seed. So the same seed gives the same journal, byte for byte,
//! and a failure can be reproduced. (The program has to do the same: its messages
//! must not depend on the order of a `HashMap`.)
//!
//! ```
//! use std::time::Duration;
//!
//! use hark_node::sim::{self, Cluster, Event};
//! use hark_node::{Error, Json, Node, Request};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Echo {
//!     echo: String,
//! }
//!
//! fn program(node: &Node<()>) {
//!     node.handle("echo", async |_, request: Request<Echo>| Ok(request.body));
//! }
//!
//! sim::check(0..10, |seed| {
//!     let mut cluster = Cluster::builder(program).nodes(3).seed(seed).loss(0.1).build();
//!     let client = cluster.client();
//!     let hello = Echo { echo: "hello".into() };
//!     let reply: Echo = cluster.call(client, "n2", "echo", &hello).unwrap();
//!     assert_eq!(reply.echo, "hello");
//!
//!     // A node that is down does not answer.
//!     cluster.apply(Event::crash("n2"));
//!     cluster.at(cluster.now() + Duration::from_secs(10), Event::restart("n2"));
//!     let reply: Result<Echo, Error> = cluster.call(client, "n2", "echo", &hello);
//!     assert!(reply.is_err(), "{}", cluster.journal().chart());
//! });
//! ```
//!
//! # Finding a bug
//! Here are two versions of a counter that keeps its sum in `lin-kv`. The first
//! one may overwrite an increment of another node between its `read` and its
//! `write`. One run may miss that; a hundred seeds find it:
//!
//! ```
//! use std::time::Duration;
//!
//! use hark_node::sim::{self, Cluster};
//! use hark_node::{Node, Request};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Value {
//!     value: u64,
//! }
//!
//! fn with_bug(node: &Node<()>) {
//!     node.handle("add", async |node, request: Request<Value>| {
//!         let kv = node.lin_kv();
//!         let sum: u64 = kv.find("sum").await?.unwrap_or_default();
//!         kv.write("sum", sum + request.body.value).await
//!     });
//! }
//!
//! fn fixed(node: &Node<()>) {
//!     node.handle("add", async |node, request: Request<Value>| {
//!         let add = |sum: Option<u64>| Ok(sum.unwrap_or_default() + request.body.value);
//!         node.lin_kv().update("sum", add).await.map(drop)
//!     });
//! }
//!
//! /// Returns the sum of 1 + 1 + 1, added by three nodes within 100 ms.
//! fn sum(program: fn(&Node<()>), seed: u64) -> (u64, Cluster) {
//!     let mut cluster = Cluster::builder(program).nodes(3).seed(seed).build();
//!     let client = cluster.client();
//!     let mut added = Vec::new();
//!     for node in cluster.node_ids() {
//!         let pause = Duration::from_millis(cluster.random() % 50);
//!         cluster.run_for(pause);
//!         added.push(cluster.send(client, &node, "add", &Value { value: 1 }));
//!     }
//!     for operation in added {
//!         cluster.wait::<()>(operation).unwrap();
//!     }
//!     let key = serde_json::json!({"key": "sum"});
//!     let sum: Value = cluster.call(client, "lin-kv", "read", &key).unwrap();
//!     (sum.value, cluster)
//! }
//!
//! // The simulation finds it, and not with every seed.
//! let wrong = (0..100).filter(|seed| sum(with_bug, *seed).0 != 3).count();
//! assert!((1..100).contains(&wrong), "{wrong} of 100 seeds");
//!
//! // The fixed version passes them all.
//! sim::check(0..100, |seed| {
//!     let (sum, _cluster) = sum(fixed, seed);
//!     assert_eq!(sum, 3);
//! });
//! ```
//!
//! With the bug, the last four lines fail: they print the seed, the command that
//! runs this seed alone, and the end of the [`Chart`] of the cluster. This is
//! such a chart, with `only(&["n1", "n2", "lin-kv"])`: each node reads before the
//! other has written.
//!
//! ```text
//!     time/ms  n1      n2      lin-kv
//!      58.423  ●───────┼──────▶│        #7 {"type": "read", "key": "sum", "msg_id": 1} (9.516 ms)
//!      58.802  │       ●──────▶│        #9 {"type": "read", "key": "sum", "msg_id": 1} (6.993 ms)
//!      63.997  │◀──────┼───────●        #10 {"type": "error", "code": 20, "text": "the key does … (5.573 ms)
//!      64.383  │       │◀──────●        #11 {"type": "error", "code": 20, "text": "the key does … (5.580 ms)
//!      71.378  ●───────┼──────▶│        #12 {"type": "write", "key": "sum", "value": 1, "msg_id": 2} (7.380 ms)
//!      73.520  │       ●──────▶│        #13 {"type": "write", "key": "sum", "value": 1, "msg_id": 2} (9.137 ms)
//!      80.704  │       │◀──────●        #15 {"type": "write_ok", "in_reply_to": 2, "msg_id": 3} (7.184 ms)
//!      81.252  │◀──────┼───────●        #14 {"type": "write_ok", "in_reply_to": 2, "msg_id": 2} (9.874 ms)
//! ```
//!
//! # The network
//! All messages cross the network, each with a [`Latency`] of its own: between
//! nodes, between clients and nodes, and to and from the services `lin-kv`,
//! `seq-kv`, `lww-kv` and `lin-tso`. Loss, duplication and reordering apply only
//! to messages between nodes, unless [`Reach`] extends them: a lost request of a
//! client says nothing about the program. A partition applies to the parties that
//! it names, including services and clients. A message of a node to itself is
//! only delayed. By default the network is kind: it takes from 1 to 10 ms and
//! keeps the order of each link.
//!
//! # As harsh as the harness
//! - Nodes start one after the other in the first [`STAGGER`], `n1` last, and
//!   each gets `init` when it starts. The services start with the last node.
//! - A client has one request open on a connection. If no reply comes within 5 s
//!   it gives up, and its connection is closed and removed.
//! - A node that sends a message to a destination that does not exist is mute
//!   from then on: a closed client, a node or service that has not started, a
//!   wrong name. This fails the test with the reason, unless
//!   [`Builder::allow_mute`] lets it continue.
//! - `seq-kv` gives stale reads, even after a write of the value that was there.
//!   `lww-kv` ignores `create_if_not_exists`. An unknown request to a service is
//!   not answered.
//!
//! # Crash and restart
//! A node that crashes loses its state, its open calls and its timers, between
//! two messages that it handles, never within one. Its
//! [`Storage`](crate::Storage) stays. The messages that it has sent before still
//! arrive; messages that arrive while it is down are lost. When it is restarted,
//! the program is set up again, and `init` is its first message.
//!
//! A reply to its previous incarnation may arrive then. The `msg_id`s of each
//! further incarnation begin at a multiple of 1,000,000,000, so that such a reply
//! belongs to no call of the new incarnation: the node counts it as late
//! ([`Node::late_replies`](crate::Node::late_replies)) and drops it.
//!
//! # Bounds
//! Every test ends: a cluster panics with a reason beyond [`EVENTS_MAX`],
//! [`TIME_MAX`] or [`JOURNAL_MAX`], or the bounds of its builder. Only a program
//! that never waits is not stopped.

mod builder;
mod chart;
mod check;
mod client;
mod cluster;
mod event;
mod journal;
mod linear;
mod network;
mod party;
mod services;
mod stores;

pub use builder::{Builder, CLIENT_TIMEOUT, EVENTS_MAX, JOURNAL_MAX, NODES_MAX, STAGGER, TIME_MAX};
pub use chart::{CHART_ROWS_MAX, Chart};
pub use check::{SEED_VARIABLE, check};
pub use client::{Client, Operation};
pub use cluster::Cluster;
pub use event::Event;
pub use journal::{Journal, Loss, Stats};
pub use linear::{Invocation, is_linearizable};
pub use network::{Latency, Network, Reach};

#[cfg(test)]
mod tests {
    use super::{Builder, Cluster};
    use crate::node::Node;

    /// Nodes that do not wait for the first request before they send.
    fn impatient(dest: &'static str) -> Builder {
        Cluster::builder(move |node: &Node<()>| {
            node.on_init(async move |node: Node<()>| {
                node.core().open();
                node.send(dest, "hello", &()).unwrap();
            });
        })
    }

    #[test]
    #[should_panic(expected = "is mute: it has sent hello to n1, which has not started yet")]
    fn a_message_to_a_node_that_has_not_started_fails_the_test() {
        drop(impatient("n1").nodes(3).build());
    }

    #[test]
    #[should_panic(expected = "is mute: it has sent hello to lin-kv, which has not started yet")]
    fn a_message_to_a_service_that_has_not_started_fails_the_test() {
        drop(impatient("lin-kv").build());
    }
}
