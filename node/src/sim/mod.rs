//! A cluster in a test: the nodes of one program, in one process, over a
//! simulated network, by virtual time and a seed.
//!
//! Nothing here reads a clock, waits, or draws a number that the seed does not
//! give, so the same seed gives the same journal, byte for byte, and a failure
//! that was seen once can be seen again. (It is for the program to do the same:
//! what it sends must not depend on the order of a `HashMap`.)
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
//!     // Nobody answers for a node that is down.
//!     cluster.apply(Event::crash("n2"));
//!     cluster.at(cluster.now() + Duration::from_secs(10), Event::restart("n2"));
//!     let reply: Result<Echo, Error> = cluster.call(client, "n2", "echo", &hello);
//!     assert!(reply.is_err(), "{}", cluster.journal().chart());
//! });
//! ```
//!
//! # Finding a bug
//! Here two versions of a counter keep their sum in `lin-kv`. One of them may
//! overwrite what another node has added between its `read` and its `write`.
//! That takes bad luck, which one run may not have, and a hundred seeds do:
//!
//! ```
//! use std::time::Duration;
//!
//! use hark_node::sim::{self, Cluster};
//! use hark_node::{Error, ErrorCode, Json, Node, Request};
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
//! fn mended(node: &Node<()>) {
//!     node.handle("add", async |node, request: Request<Value>| {
//!         let kv = node.lin_kv();
//!         loop {
//!             let sum: u64 = kv.find("sum").await?.unwrap_or_default();
//!             match kv.cas_or_create("sum", sum, sum + request.body.value).await {
//!                 Err(error) if error.code == ErrorCode::PreconditionFailed => {}
//!                 end => return end,
//!             }
//!         }
//!     });
//! }
//!
//! /// What three nodes make of 1 + 1 + 1, asked within 100 ms.
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
//!         cluster.wait::<Json>(operation).unwrap();
//!     }
//!     let key = serde_json::json!({"key": "sum"});
//!     let sum: Value = cluster.call(client, "lin-kv", "read", &key).unwrap();
//!     (sum.value, cluster)
//! }
//!
//! // The simulator finds it, and not with every seed.
//! let wrong = (0..100).filter(|seed| sum(with_bug, *seed).0 != 3).count();
//! assert!((1..100).contains(&wrong), "{wrong} of 100 seeds");
//!
//! // The mended version passes them all.
//! sim::check(0..100, |seed| {
//!     let (sum, _cluster) = sum(mended, seed);
//!     assert_eq!(sum, 3);
//! });
//! ```
//!
//! With the bug, the last four lines fail, and say why: they print the seed, the
//! command that runs this seed alone, and the end of the cluster's [`Chart`].
//! This is of seed 2, and `chart().only(&["n1", "n2", "lin-kv"])`: both nodes
//! read before the other has written.
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
//! # What goes over the network
//! Everything, with a [`Latency`] of its own: messages between nodes, requests
//! of clients and replies to them, and what goes to and from the services
//! `lin-kv`, `seq-kv`, `lww-kv` and `lin-tso`. Loss, duplication and reordering
//! concern messages between nodes alone, unless [`Reach`] says more: a client's
//! request that was lost says nothing about the program. A partition concerns
//! whom it names, services and clients too. What a node sends to itself only
//! takes its time. Unless it is told otherwise the network is kind: it takes
//! from 1 to 10 ms, and keeps each link's order.
//!
//! # Crash and restart
//! A node that crashes loses its state, its open calls and its timers, between
//! two messages that it handles, never within one. What it has put in its
//! [`Storage`](crate::Storage) stays. What it has sent before is
//! under way and arrives; what arrives while it is down is lost. When it is
//! restarted, the program is set up anew and gets `init` before anything else.
//!
//! A reply to its former life may come then. So that it cannot be taken for the
//! reply to another call, the `msg_id`s of each further life begin at a multiple
//! of 1,000,000,000, and not at 0 again: the node gets such a reply, counts it as
//! late ([`Node::late_replies`](crate::Node::late_replies)), and that is all.
//!
//! # Bounds
//! A test ends: a cluster panics with a reason beyond [`EVENTS_MAX`],
//! [`TIME_MAX`] or [`JOURNAL_MAX`], unless its builder was told other bounds. Only
//! a program that never waits for anything is not stopped.

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
