//! External events of a cluster, and their effects on nodes and links.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::cluster::Cluster;
use super::network::Network;
use super::party::Party;

/// A fault, or its end. Names are those of nodes (`n1`), services (`lin-kv`)
/// and clients (`c1`).
#[derive(Debug, Clone)]
pub enum Event {
    /// The links between these groups are cut, in both directions. A message that
    /// is sent over a cut link, or would arrive over it, is lost.
    Partition(Vec<Vec<String>>),
    /// The links between two random parts of the nodes are cut.
    Split,
    /// The links between this node and all others are cut.
    Isolate(String),
    /// The links from the first group to the second are cut, only in this
    /// direction.
    Block(Vec<String>, Vec<String>),
    /// All links are healed.
    Heal,
    /// A node ends, and its state is lost; its storage stays. No effect if it is
    /// down.
    Crash(String),
    /// A node starts again. No effect if it is not down.
    Restart(String),
    /// The network changes for all messages from now on.
    Network(Network),
    /// All faults end: loss, duplication, reordering and cuts, and all nodes that
    /// are down are restarted.
    Calm,
}

impl Event {
    /// [`Event::Partition`]
    #[must_use]
    pub fn partition(groups: &[&[&str]]) -> Self {
        Self::Partition(groups.iter().map(|group| owned(group)).collect())
    }

    /// [`Event::Isolate`]
    pub fn isolate(node: impl Into<String>) -> Self {
        Self::Isolate(node.into())
    }

    /// [`Event::Block`]
    #[must_use]
    pub fn block(from: &[&str], to: &[&str]) -> Self {
        Self::Block(owned(from), owned(to))
    }

    /// [`Event::Crash`]
    pub fn crash(node: impl Into<String>) -> Self {
        Self::Crash(node.into())
    }

    /// [`Event::Restart`]
    pub fn restart(node: impl Into<String>) -> Self {
        Self::Restart(node.into())
    }
}

impl Cluster {
    /// Plans an event for a virtual time, or for now if that time has passed.
    ///
    /// # Panics
    /// At that time, if the event names a party that does not exist.
    pub fn at(&mut self, time: Duration, event: Event) {
        self.plan_event(time, event);
    }

    /// Applies an event now.
    ///
    /// # Panics
    /// If the event names a party that does not exist.
    pub fn apply(&mut self, event: Event) {
        self.note(event.to_string());
        match event {
            Event::Partition(groups) => self.partition(&groups),
            Event::Split => self.split(),
            Event::Isolate(node) => {
                let others = self
                    .node_ids()
                    .into_iter()
                    .filter(|id| *id != node)
                    .collect();
                self.partition(&[vec![node], others]);
            }
            Event::Block(from, to) => self.block(&from, &to),
            Event::Heal => self.links.heal(),
            Event::Crash(node) => self.crash(self.index(&node)),
            Event::Restart(node) => self.restart(self.index(&node)),
            Event::Network(network) => {
                network.assert_valid();
                self.links.network = network;
            }
            Event::Calm => {
                self.links.heal();
                self.links.network = self.links.network.without_faults();
                for node in self.node_ids() {
                    self.restart(self.index(&node));
                }
            }
        }
    }

    fn partition(&mut self, groups: &[Vec<String>]) {
        for (index, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(index + 1) {
                self.block(group, other);
                self.block(other, group);
            }
        }
    }

    fn block(&mut self, from: &[String], to: &[String]) {
        for from in from {
            for to in to {
                let (from, to) = (self.party(from), self.party(to));
                self.links.cut(from, to);
            }
        }
    }

    fn split(&mut self) {
        let mut nodes = self.node_ids();
        if nodes.len() > 1 {
            nodes.shuffle(&mut self.random);
            let second = nodes.split_off(self.random.random_range(1..nodes.len()));
            self.note(format!("{} | {}", nodes.join(" "), second.join(" ")));
            self.partition(&[nodes, second]);
        }
    }

    /// Returns the party that a test names.
    fn party(&self, name: &str) -> Party {
        let party = self.named(name);
        assert!(
            party != Party::Unknown,
            "there is no {name} in this cluster"
        );
        party
    }

    #[expect(clippy::panic, reason = "a wrong name is a fault of the test")]
    pub(super) fn index(&self, name: &str) -> usize {
        match self.party(name) {
            Party::Node(index) => index,
            _ => panic!("{name} is no node"),
        }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(groups) => {
                let groups: Vec<_> = groups.iter().map(|group| group.join(" ")).collect();
                write!(f, "partition: {}", groups.join(" | "))
            }
            Self::Split => f.write_str("the nodes are split"),
            Self::Isolate(node) => write!(f, "{node} is isolated"),
            Self::Block(from, to) => write!(f, "blocked: {} to {}", from.join(" "), to.join(" ")),
            Self::Heal => f.write_str("all links are healed"),
            Self::Crash(node) => write!(f, "{node} crashes"),
            Self::Restart(node) => write!(f, "{node} is restarted"),
            Self::Network(network) => write!(
                f,
                "the network: {:?}, loss {}, duplication {}, reordering {}, reach {:?}",
                network.latency,
                network.loss,
                network.duplication,
                network.reordering,
                network.reach
            ),
            Self::Calm => f.write_str("all faults end"),
        }
    }
}
