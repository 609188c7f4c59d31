//! What happens to a cluster from outside, at a time or at once.

use std::fmt;

use super::network::Network;

/// A fault, or its end. Names are those of nodes (`n1`), services (`lin-kv`)
/// and clients (`c1`).
#[derive(Debug, Clone)]
pub enum Event {
    /// The links between these groups are cut, in both directions; those of who
    /// is in no group are not. A message is lost that is sent over a cut link,
    /// and one that would arrive over it.
    Partition(Vec<Vec<String>>),
    /// The links between two parts of the nodes, at random, are cut.
    Split,
    /// The links between this node and all others are cut.
    Isolate(String),
    /// The links from the first to the second are cut, in this direction alone.
    Block(Vec<String>, Vec<String>),
    /// No link is cut any more.
    Heal,
    /// A node ends, and its state is lost. Nothing, if it is down.
    Crash(String),
    /// A node begins anew. Nothing, if it is not down.
    Restart(String),
    /// The network does this from now on to what is sent.
    Network(Network),
    /// All faults end: loss, duplication, reordering and cuts, and who is down
    /// is restarted.
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
                network.latency, network.loss, network.duplication, network.reordering, network.reach
            ),
            Self::Calm => f.write_str("all faults end"),
        }
    }
}
