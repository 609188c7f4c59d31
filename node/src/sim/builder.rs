//! What a cluster is made of: its program, its size, its seed, its network and
//! its bounds.

use std::time::Duration;

use super::cluster::Cluster;
use super::network::{Latency, Network, Reach};
use crate::machine::Machine;
use crate::node::Node;
use crate::storage::Storage;

/// How long a client waits for a reply unless the builder says otherwise.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// So many nodes a cluster has at most.
pub const NODES_MAX: usize = 1000;

/// So many things happen in a cluster at most (messages that arrive, timers,
/// events), unless the builder says otherwise.
pub const EVENTS_MAX: u64 = 10_000_000;

/// So much virtual time passes at most, unless the builder says otherwise.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// So many entries a journal has at most, unless the builder says otherwise.
pub const JOURNAL_MAX: usize = 1 << 20;

/// Makes a [`Cluster`].
#[must_use = "it makes a cluster when it is built"]
pub struct Builder {
    pub(super) make: Make,
    pub(super) nodes: usize,
    pub(super) seed: u64,
    pub(super) network: Network,
    pub(super) client_timeout: Duration,
    pub(super) events_max: u64,
    pub(super) time_max: Duration,
    pub(super) journal_max: usize,
}

/// Makes a node, from the seed of its random numbers and its storage.
pub(super) type Make = Box<dyn Fn(u64, Storage) -> Machine>;

impl Builder {
    pub(super) fn new<S: Default + 'static>(program: impl Fn(&Node<S>) + 'static) -> Self {
        Self {
            make: Box::new(move |seed, storage| Machine::with_storage(&program, seed, storage)),
            nodes: 1,
            seed: 0,
            network: Network::default(),
            client_timeout: CLIENT_TIMEOUT,
            events_max: EVENTS_MAX,
            time_max: TIME_MAX,
            journal_max: JOURNAL_MAX,
        }
    }

    /// So many nodes, `n1` and so on; 1 unless told otherwise.
    pub const fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// What everything random comes from; 0 unless told otherwise.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// All of the network at once.
    pub const fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// How long messages are under way.
    pub const fn latency(mut self, latency: Latency) -> Self {
        self.network.latency = latency;
        self
    }

    /// The part of the messages that is lost.
    pub const fn loss(mut self, part: f64) -> Self {
        self.network.loss = part;
        self
    }

    /// The part of the messages that arrives twice.
    pub const fn duplication(mut self, part: f64) -> Self {
        self.network.duplication = part;
        self
    }

    /// The part of the messages that does not keep its link's order.
    pub const fn reordering(mut self, part: f64) -> Self {
        self.network.reordering = part;
        self
    }

    /// Whom loss, duplication and reordering concern.
    pub const fn reach(mut self, reach: Reach) -> Self {
        self.network.reach = reach;
        self
    }

    /// How long a client waits for a reply.
    pub const fn client_timeout(mut self, timeout: Duration) -> Self {
        self.client_timeout = timeout;
        self
    }

    /// So many things happen at most.
    pub const fn events_max(mut self, events: u64) -> Self {
        self.events_max = events;
        self
    }

    /// So much virtual time passes at most.
    pub const fn time_max(mut self, time: Duration) -> Self {
        self.time_max = time;
        self
    }

    /// So many entries the journal has at most.
    pub const fn journal_max(mut self, entries: usize) -> Self {
        self.journal_max = entries;
        self
    }

    /// The cluster, at time 0, with all nodes initialised.
    ///
    /// # Panics
    /// With no node or more than [`NODES_MAX`], a part that is not from 0 to 1,
    /// or latencies that end before they begin.
    #[must_use]
    pub fn build(self) -> Cluster {
        assert!((1..=NODES_MAX).contains(&self.nodes), "a cluster has 1 to {NODES_MAX} nodes");
        self.network.assert_valid();
        Cluster::new(self)
    }
}
