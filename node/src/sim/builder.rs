//! The parts of a cluster: its program, size, seed, network and bounds.

use std::time::Duration;

use super::cluster::Cluster;
use super::network::{Latency, Network, Reach};
use crate::machine::Machine;
use crate::node::Node;
use crate::storage::Storage;

/// The time after which a client gives up by default, as in the harness.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of nodes.
pub const NODES_MAX: usize = 1000;

/// The maximum number of steps of a cluster by default: messages that arrive,
/// timers and events.
pub const EVENTS_MAX: u64 = 10_000_000;

/// The maximum virtual time by default.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The maximum number of entries of a journal by default.
pub const JOURNAL_MAX: usize = 1 << 20;

/// The time in which the nodes start by default.
pub const STAGGER: Duration = Duration::from_millis(500);

/// A builder of a [`Cluster`].
#[must_use = "a builder makes a cluster when it is built"]
pub struct Builder {
    pub(super) make: Make,
    pub(super) nodes: usize,
    pub(super) seed: u64,
    pub(super) network: Network,
    pub(super) stagger: Duration,
    pub(super) allows_mute: bool,
    pub(super) client_timeout: Duration,
    pub(super) events_max: u64,
    pub(super) time_max: Duration,
    pub(super) journal_max: usize,
}

/// Makes a node from the seed of its random numbers and its storage.
pub(super) type Make = Box<dyn Fn(u64, Storage) -> Machine>;

impl Builder {
    pub(super) fn new<S: 'static>(
        state: impl Fn() -> S + 'static,
        program: impl Fn(&Node<S>) + 'static,
    ) -> Self {
        Self {
            make: Box::new(move |seed, storage| {
                Machine::with_storage(state(), storage, &program, seed)
            }),
            nodes: 1,
            seed: 0,
            network: Network::default(),
            stagger: STAGGER,
            allows_mute: false,
            client_timeout: CLIENT_TIMEOUT,
            events_max: EVENTS_MAX,
            time_max: TIME_MAX,
            journal_max: JOURNAL_MAX,
        }
    }

    /// Sets the number of nodes (`n1` and so on), 1 by default.
    pub const fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets the seed of everything random, 0 by default.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets all properties of the network.
    pub const fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Sets the latency of messages.
    pub const fn latency(mut self, latency: Latency) -> Self {
        self.network.latency = latency;
        self
    }

    /// Sets the fraction of messages that are lost.
    pub const fn loss(mut self, part: f64) -> Self {
        self.network.loss = part;
        self
    }

    /// Sets the fraction of messages that arrive twice.
    pub const fn duplication(mut self, part: f64) -> Self {
        self.network.duplication = part;
        self
    }

    /// Sets the fraction of messages that leave the order of their link.
    pub const fn reordering(mut self, part: f64) -> Self {
        self.network.reordering = part;
        self
    }

    /// Sets the links that loss, duplication and reordering apply to.
    pub const fn reach(mut self, reach: Reach) -> Self {
        self.network.reach = reach;
        self
    }

    /// Sets the time in which the nodes start: `n1` at its end, the others at
    /// random before that. With zero all start at once, at time 0.
    pub const fn stagger(mut self, time: Duration) -> Self {
        self.stagger = time;
        self
    }

    /// Lets the test continue if a node becomes mute, instead of failing it.
    pub const fn allow_mute(mut self) -> Self {
        self.allows_mute = true;
        self
    }

    /// Sets the time after which a client gives up.
    pub const fn client_timeout(mut self, timeout: Duration) -> Self {
        self.client_timeout = timeout;
        self
    }

    /// Sets the maximum number of steps.
    pub const fn events_max(mut self, events: u64) -> Self {
        self.events_max = events;
        self
    }

    /// Sets the maximum of the virtual time.
    pub const fn time_max(mut self, time: Duration) -> Self {
        self.time_max = time;
        self
    }

    /// Sets the maximum number of entries of the journal.
    pub const fn journal_max(mut self, entries: usize) -> Self {
        self.journal_max = entries;
        self
    }

    /// Builds the cluster, and lets time pass until all nodes are
    /// initialized.
    ///
    /// # Panics
    /// If there are no nodes or more than [`NODES_MAX`], if a part is not from 0
    /// to 1, if a latency ends before it begins, or if a node becomes mute.
    #[must_use]
    pub fn build(self) -> Cluster {
        assert!(
            (1..=NODES_MAX).contains(&self.nodes),
            "a cluster has 1 to {NODES_MAX} nodes"
        );
        self.network.assert_valid();
        Cluster::new(self)
    }
}
