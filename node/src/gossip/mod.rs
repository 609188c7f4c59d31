//! Gossip: a state that each node changes on its own, and that converges to
//! the same state on all nodes. No node waits for another, so each is
//! available during a partition.
//!
//! A program defines the type of the state, which implements [`Merge`], and
//! shares it through a [`Gossip`]:
//!
//! ```
//! use std::collections::BTreeSet;
//! use std::time::Duration;
//!
//! use hark_node::gossip::{Gossip, Settings};
//! use hark_node::sim::Cluster;
//! use hark_node::{Node, Request};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Add {
//!     element: i64,
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct ReadOk {
//!     value: BTreeSet<i64>,
//! }
//!
//! fn program(node: &Node<()>) {
//!     let set = Gossip::new(node, Settings::default());
//!     let adds = set.clone();
//!     node.handle("add", async move |_, request: Request<Add>| {
//!         adds.merge(BTreeSet::from([request.body.element]));
//!         Ok(())
//!     });
//!     node.handle("read", async move |_, _: Request<()>| Ok(ReadOk { value: set.state().clone() }));
//! }
//!
//! let mut cluster = Cluster::builder(program).nodes(5).seed(7).build();
//! let client = cluster.client();
//! cluster.call::<()>(client, "n1", "add", &Add { element: 3 }).unwrap();
//! cluster.run_for(Duration::from_secs(2));
//! let read: ReadOk = cluster.call(client, "n5", "read", &()).unwrap();
//! assert_eq!(read.value, BTreeSet::from([3]));
//! ```
//!
//! New parts of the state go to a few random nodes, and from there to others
//! ("rumor mongering"). Now and then each node compares its state with that of
//! another, which repairs lost rumors ("anti-entropy").
//!
//! The state is only in memory. A program puts a change into the node's
//! [`Storage`](crate::Storage) before it answers, and merges the stored
//! changes when it starts; the changes of other nodes return through
//! comparisons.

mod merge;

pub use merge::Merge;

use std::cell::{Ref, RefCell};
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::node::Node;
use crate::request::Request;

const RUMOR: &str = "gossip_rumor";
const COMPARE: &str = "gossip_compare";

/// The settings of a [`Gossip`].
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The time that a new part waits for more before it is passed on.
    pub linger: Duration,
    /// The number of nodes to which a node passes new parts on.
    pub fanout: usize,
    /// The pause between two comparisons with another node.
    pub compare: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(50),
            fanout: 3,
            compare: Duration::from_millis(500),
        }
    }
}

/// A state that is shared with the other nodes. Clones are handles to the same
/// state. A node has one.
pub struct Gossip<S, T> {
    shared: Rc<Shared<S, T>>,
}

impl<S, T> Clone for Gossip<S, T> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }
}

struct Shared<S, T> {
    node: Node<S>,
    settings: Settings,
    state: RefCell<T>,
    /// The parts that were not passed on yet.
    fresh: RefCell<Option<T>>,
}

/// A version of the state, or a part of it.
#[derive(Serialize, Deserialize)]
struct Version<T> {
    state: T,
}

impl<S: 'static, T: Merge + Default> Gossip<S, T> {
    /// Shares the default of a state.
    pub fn new(node: &Node<S>, settings: Settings) -> Self {
        let shared = Shared {
            node: node.clone(),
            settings,
            state: RefCell::default(),
            fresh: RefCell::default(),
        };
        let gossip = Self {
            shared: Rc::new(shared),
        };
        gossip.register();
        gossip
    }

    /// Borrows the state as this node knows it. Do not hold it across an
    /// `.await`.
    #[must_use]
    pub fn state(&self) -> Ref<'_, T> {
        self.shared.state.borrow()
    }

    /// Merges a change, and passes it on if it is new.
    pub fn merge(&self, change: T) {
        let Some(new) = self.shared.state.borrow_mut().merge_with(change) else {
            return;
        };
        if let Some(fresh) = &mut *self.shared.fresh.borrow_mut() {
            // Its existing parts are passed on, too.
            drop(fresh.merge_with(new));
            return;
        }
        self.shared.fresh.replace(Some(new));
        let gossip = self.clone();
        self.shared.node.spawn(async move {
            gossip
                .shared
                .node
                .sleep(gossip.shared.settings.linger)
                .await;
            gossip.pass_on();
        });
    }

    fn register(&self) {
        let node = &self.shared.node;
        let gossip = self.clone();
        node.receive(RUMOR, async move |_, request: Request<Version<T>>| {
            gossip.merge(request.body.state)
        });
        let gossip = self.clone();
        node.handle(COMPARE, async move |_, request: Request<Version<T>>| {
            let mut theirs = request.body.state;
            gossip.merge(theirs.clone());
            Ok(Version {
                state: theirs.merge_with(gossip.state().clone()),
            })
        });
        let gossip = self.clone();
        node.every(self.shared.settings.compare, async move |_| {
            if let Err(error) = gossip.compare().await {
                tracing::debug!(%error, "comparing with another node later");
            }
        });
    }

    fn pass_on(&self) {
        let Some(state) = self.shared.fresh.take() else {
            return;
        };
        let rumor = Version { state };
        for peer in (0..self.shared.settings.fanout).filter_map(|_| self.shared.node.random_peer())
        {
            if let Err(error) = self.shared.node.send(peer, RUMOR, &rumor) {
                tracing::error!(peer, %error, "cannot write a rumor");
            }
        }
    }

    /// Exchanges the parts that either of two nodes lacks.
    async fn compare(&self) -> Result<(), Error> {
        let Some(peer) = self.shared.node.random_peer() else {
            return Ok(());
        };
        let call = {
            let ours = Version {
                state: &*self.state(),
            };
            self.shared
                .node
                .call::<Version<Option<T>>>(peer, COMPARE, &ours)
        };
        if let Some(missing) = call.await?.state {
            self.merge(missing);
        }
        Ok(())
    }
}
