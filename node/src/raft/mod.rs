//! A replicated state machine by Raft (<https://raft.github.io/raft.pdf>): the
//! nodes of the cluster apply the same commands in the same order, as long as a
//! majority of them is up and connected.
//!
//! A program defines a [`StateMachine`] and serves it with a [`Raft`]:
//!
//! ```
//! use std::time::Duration;
//!
//! use hark_node::raft::{Raft, Settings, StateMachine};
//! use hark_node::sim::Cluster;
//! use hark_node::{Error, Node, Request};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter {
//!     value: i64,
//! }
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Add {
//!     delta: i64,
//! }
//!
//! impl StateMachine for Counter {
//!     type Command = Add;
//!     type Reply = i64;
//!
//!     fn apply(&mut self, add: &Add) -> Result<i64, Error> {
//!         self.value += add.delta;
//!         Ok(self.value)
//!     }
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Value {
//!     value: i64,
//! }
//!
//! fn program(node: &Node<()>) {
//!     let raft = Raft::<_, Counter>::new(node, Settings::default());
//!     let writes = raft.clone();
//!     node.handle("add", async move |_, request: Request<Add>| {
//!         Ok(Value { value: writes.propose(request.body).await? })
//!     });
//!     node.handle("read", async move |_, _: Request<()>| {
//!         Ok(Value { value: raft.read(|counter| counter.value).await? })
//!     });
//! }
//!
//! let mut cluster = Cluster::builder(program).nodes(3).seed(7).build();
//! let client = cluster.client();
//! for (node, sum) in [("n1", 5), ("n2", 10)] {
//!     let reply: Value = cluster.call(client, node, "add", &Add { delta: 5 }).unwrap();
//!     assert_eq!(reply.value, sum);
//! }
//! ```
//!
//! # Features
//! - **Elections** with randomized timeouts, and a trial vote before each, so
//!   that a server that was cut off does not depose a leader when it comes
//!   back. A leader that does not hear from a majority steps down.
//! - **Replication** with one message in flight to each follower; entries that
//!   accumulate meanwhile go into the next one.
//! - **Commit** only of entries of the leader's own term; each term begins with
//!   its own entry.
//! - **Snapshots**: after [`Settings::snapshot_after`] entries the state takes
//!   their place, and is sent to followers that need removed entries.
//! - **Reads** without an entry: the leader asks a majority whether it still
//!   leads, and the server that received the read answers once it has applied
//!   all entries that were committed by then.
//! - **Requests** at any server: it forwards them to the leader, repeatedly
//!   until [`Settings::request_timeout`]. Each is applied at most once, however
//!   often it arrives: the replicated state remembers the outcomes that a
//!   server may still ask for.
//!
//! # Storage
//! Term, vote, entries and snapshot are in the node's
//! [`Storage`](crate::Storage) before any message that depends on them is sent.
//! The commit index is learned from the leader after a crash. Membership is
//! fixed to the nodes that `init` names.

mod bugs;
mod election;
mod log;
mod message;
mod replicated;
mod replication;
mod requests;
mod server;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::error::Error;
use crate::node::Node;
use crate::request::Request;
use crate::timers::Timer;
use server::Server;

/// The state that is replicated. Snapshots are its JSON.
pub trait StateMachine: Default + Serialize + DeserializeOwned + 'static {
    /// A change of the state.
    type Command: Clone + Serialize + DeserializeOwned + 'static;
    /// The reply to a command.
    type Reply: Clone + Serialize + DeserializeOwned + 'static;

    /// Applies a command. The result must depend only on the state and the
    /// command, because every server applies it.
    ///
    /// # Errors
    /// The error that is the outcome of the command; it leaves the state
    /// unchanged, so its code is a definite one.
    fn apply(&mut self, command: &Self::Command) -> Result<Self::Reply, Error>;
}

/// The timing and the bounds of a [`Raft`].
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The pause between two messages of a leader without work.
    pub heartbeat: Duration,
    /// A follower that hears from no leader for one to two times this long
    /// becomes a candidate. It must exceed a round trip and a few heartbeats.
    pub election_timeout: Duration,
    /// The time after which an undecided request fails.
    pub request_timeout: Duration,
    /// The number of entries after which a snapshot takes their place.
    pub snapshot_after: u64,
    /// The maximum number of entries in one message.
    pub batch_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_secs(4),
            snapshot_after: 1000,
            batch_max: 256,
        }
    }
}

/// A server of the cluster on a node. Clones are handles to the same server.
pub struct Raft<S, M: StateMachine> {
    shared: Rc<Shared<S, M>>,
}

impl<S, M: StateMachine> Clone for Raft<S, M> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }
}

struct Shared<S, M: StateMachine> {
    node: Node<S>,
    settings: Settings,
    server: RefCell<Server<M>>,
    /// Fires when no leader was heard from for too long.
    election: Timer,
    /// Wakes the tasks that wait for a change of the server.
    changed: Notify,
}

impl<S: 'static, M: StateMachine> Raft<S, M> {
    /// Registers a server with a node. It continues from the node's storage.
    ///
    /// # Panics
    /// If the storage holds something else under Raft's keys.
    #[expect(
        clippy::panic,
        reason = "a server that has lost its log must not vote or lead"
    )]
    pub fn new(node: &Node<S>, settings: Settings) -> Self {
        let server = match Server::load(node.storage()) {
            Ok(server) => server,
            Err(error) => panic!("cannot start Raft: {error}; give the node another storage"),
        };
        let shared = Shared {
            node: node.clone(),
            settings,
            server: RefCell::new(server),
            election: node.timer(settings.election_timeout),
            changed: Notify::new(),
        };
        let raft = Self {
            shared: Rc::new(shared),
        };
        raft.register();
        raft
    }

    /// Passes the state as known to this server, which may lag behind, to
    /// `look`.
    pub fn peek<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        look(&self.shared.server.borrow().replicated.machine)
    }

    fn register(&self) {
        self.serve(message::VOTE, Self::handle_vote);
        self.serve(message::APPEND, Self::handle_append);
        self.serve(message::INSTALL, Self::handle_install);
        let raft = self.clone();
        self.shared.node.handle(
            message::PROPOSE,
            async move |_, request: Request<message::Propose<_>>| {
                raft.handle_propose(request.body).await
            },
        );
        let raft = self.clone();
        self.shared
            .node
            .handle(message::READ_INDEX, async move |_, _: Request<()>| {
                raft.handle_read_index().await
            });
        let raft = self.clone();
        self.shared
            .node
            .on_init(async move |_| raft.keep_electing().await);
    }

    /// Answers messages of a type without waiting.
    fn serve<B, R>(&self, kind: &str, handler: fn(&Self, &str, B) -> Result<R, Error>)
    where
        B: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let raft = self.clone();
        self.shared
            .node
            .handle(kind, async move |_, request: Request<B>| {
                handler(&raft, &request.src, request.body)
            });
    }

    fn now(&self) -> Duration {
        self.shared.node.now()
    }

    fn notify(&self) {
        self.shared.changed.notify_waiters();
    }

    /// Waits for this time, but not after the end of the input.
    async fn pause(&self, wait: Duration) {
        self.shared.node.timer(wait).fired().await;
    }

    /// Waits until `look` finds something; `None` at the deadline.
    async fn until<T>(
        &self,
        deadline: Duration,
        look: impl Fn(&Server<M>) -> Option<T>,
    ) -> Option<T> {
        loop {
            let changed = self.shared.changed.notified();
            let found = look(&self.shared.server.borrow());
            let left = deadline.saturating_sub(self.now());
            if found.is_some() || left.is_zero() {
                return found;
            }
            // At the deadline it looks once more.
            self.shared
                .node
                .timeout(left, changed)
                .await
                .unwrap_or_default();
        }
    }
}
