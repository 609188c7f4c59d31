//! The parties on the network by name: clients, nodes and services.

use std::fmt;

use crate::kv::{LIN_KV, LIN_TSO, LWW_KV, SEQ_KV};

/// A sender and receiver of messages. The order is that of the columns of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Party {
    /// `c0` sends `init`.
    Client(usize),
    /// The first one, `n1`, is number 0.
    Node(usize),
    Service(Service),
    /// A name that no party has.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Service {
    LinKv,
    SeqKv,
    LwwKv,
    LinTso,
}

impl Party {
    /// Returns the party of this name, if there are this many nodes and clients
    /// besides `c0`.
    pub(super) fn named(name: &str, nodes: usize, clients: usize) -> Self {
        let number = |prefix| name.strip_prefix(prefix).and_then(number);
        match name {
            LIN_KV => Self::Service(Service::LinKv),
            SEQ_KV => Self::Service(Service::SeqKv),
            LWW_KV => Self::Service(Service::LwwKv),
            LIN_TSO => Self::Service(Service::LinTso),
            _ => match (number('n'), number('c')) {
                (Some(node @ 1..), _) if node <= nodes => Self::Node(node - 1),
                (_, Some(client)) if client <= clients => Self::Client(client),
                _ => Self::Unknown,
            },
        }
    }
}

/// Parses a number in the spelling in which it is printed.
fn number(digits: &str) -> Option<usize> {
    let is_plain = digits == "0" || !digits.starts_with(['0', '+']);
    digits.parse().ok().filter(|_| is_plain)
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(number) => write!(f, "c{number}"),
            Self::Node(index) => write!(f, "n{}", index + 1),
            Self::Service(Service::LinKv) => f.write_str(LIN_KV),
            Self::Service(Service::SeqKv) => f.write_str(SEQ_KV),
            Self::Service(Service::LwwKv) => f.write_str(LWW_KV),
            Self::Service(Service::LinTso) => f.write_str(LIN_TSO),
            Self::Unknown => f.write_str("?"),
        }
    }
}
