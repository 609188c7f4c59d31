//! The fate of a message between two parties: the time of its arrival, a second
//! arrival, or its loss. It knows no messages, and not which nodes are down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::party::Party;

/// The time that messages are in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latency {
    /// Always the same.
    Constant(Duration),
    /// Uniformly distributed between these two.
    Uniform(Duration, Duration),
    /// Exponentially distributed with this mean, at most 20 times the mean.
    Exponential(Duration),
}

/// The longest of exponential latencies, in means.
const EXPONENTIAL_MAX: f64 = 20.0;

impl Latency {
    fn draw(self, random: &mut SmallRng) -> Duration {
        match self {
            Self::Constant(latency) => latency,
            Self::Uniform(min, max) => random.random_range(min..=max),
            Self::Exponential(mean) => {
                let uniform: f64 = random.random();
                mean.mul_f64((-(1.0 - uniform).ln()).min(EXPONENTIAL_MAX))
            }
        }
    }
}

/// The links to which loss, duplication and reordering apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Links between nodes.
    Nodes,
    /// Also links between nodes and services.
    Services,
    /// Also links to clients.
    Everyone,
}

/// The properties of the network.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// The latency of each message, 1 to 10 ms by default.
    pub latency: Latency,
    /// The fraction of messages that are lost, from 0 to 1; 0 by default.
    pub loss: f64,
    /// The fraction that arrive twice, from 0 to 1, each time with its own
    /// latency; 0 by default.
    pub duplication: f64,
    /// The fraction that leave the order of their link, from 0 to 1; 0 by
    /// default. Such a message takes one to three times its latency, waits for
    /// no other message and delays none. All others arrive in the order of
    /// sending.
    pub reordering: f64,
    /// The links to which these three apply, those between nodes by default.
    pub reach: Reach,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency: Latency::Uniform(Duration::from_millis(1), Duration::from_millis(10)),
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            reach: Reach::Nodes,
        }
    }
}

impl Network {
    /// Returns the same network without loss, duplication and reordering.
    #[must_use]
    pub fn without_faults(self) -> Self {
        Self {
            latency: self.latency,
            ..Self::default()
        }
    }

    pub(super) fn assert_valid(&self) {
        if let Latency::Uniform(min, max) = self.latency {
            assert!(min <= max, "a latency from {min:?} to {max:?} is none");
        }
        let parts = [
            ("loss", self.loss),
            ("duplication", self.duplication),
            ("reordering", self.reordering),
        ];
        for (name, part) in parts {
            assert!(
                (0.0..=1.0).contains(&part),
                "{name} is a part of all messages, from 0 to 1, not {part}"
            );
        }
    }

    fn concerns(&self, from: Party, to: Party) -> bool {
        let reach = |party| match party {
            Party::Node(_) => Reach::Nodes,
            Party::Service(_) => Reach::Services,
            Party::Client(_) | Party::Unknown => Reach::Everyone,
        };
        from != to && reach(from).max(reach(to)) <= self.reach
    }
}

/// The fate of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Cut,
    Arrives {
        at: Duration,
        /// The time of a second arrival.
        again_at: Option<Duration>,
    },
}

type Link = (Party, Party);

/// The links between all parties, each with a direction.
pub(super) struct Links {
    pub(super) network: Network,
    cut: BTreeSet<Link>,
    /// The arrival of the last message in order on each link.
    last: BTreeMap<Link, Duration>,
    random: SmallRng,
}

impl Links {
    pub(super) fn new(network: Network, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self {
            network,
            cut: BTreeSet::new(),
            last: BTreeMap::new(),
            random,
        }
    }

    pub(super) fn cut(&mut self, from: Party, to: Party) {
        self.cut.insert((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(super) fn is_cut(&self, from: Party, to: Party) -> bool {
        self.cut.contains(&(from, to))
    }

    pub(super) fn send(&mut self, now: Duration, from: Party, to: Party) -> Fate {
        let network = self.network;
        let is_concerned = network.concerns(from, to);
        if self.is_cut(from, to) {
            Fate::Cut
        } else if is_concerned && self.random.random_bool(network.loss) {
            Fate::Lost
        } else {
            let at = self.arrival(now, (from, to), is_concerned);
            let is_doubled = is_concerned && self.random.random_bool(network.duplication);
            let again_at = is_doubled.then(|| self.arrival(now, (from, to), true));
            Fate::Arrives { at, again_at }
        }
    }

    fn arrival(&mut self, now: Duration, link: Link, is_concerned: bool) -> Duration {
        let latency = self.network.latency.draw(&mut self.random);
        if is_concerned && self.random.random_bool(self.network.reordering) {
            return now.saturating_add(latency.mul_f64(self.random.random_range(1.0..3.0)));
        }
        let last = self.last.entry(link).or_default();
        *last = now.saturating_add(latency).max(*last);
        *last
    }
}
