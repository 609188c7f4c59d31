//! The journal of a cluster: all events in order, with virtual times. Only the
//! cluster appends to it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeBounds;
use std::time::Duration;

use super::chart::Chart;
use super::party::Party;
use crate::message;

/// The number of a message in its journal.
pub(super) type Number = usize;

/// All messages with their outcomes, and all events of the nodes.
///
/// Printed, it has one line for each, with the time in milliseconds, the number
/// of the message, and its body when it is sent.
pub struct Journal {
    pub(super) messages: Vec<Record>,
    pub(super) entries: Vec<Entry>,
    entries_max: usize,
}

/// A sent message.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) sent_at: Duration,
    pub(super) src: Party,
    pub(super) dest: Party,
    pub(super) kind: String,
    /// It expects a reply.
    pub(super) is_request: bool,
    /// The whole line.
    pub(super) line: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: Duration,
    pub(super) what: What,
}

/// The event of an entry.
#[derive(Debug)]
pub(super) enum What {
    Sent(Number),
    Delivered(Number),
    /// The message will arrive twice.
    Doubled(Number),
    Lost(Number, Loss),
    /// From outside, as text.
    Event(String),
}

/// The reason for which a message did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// By chance.
    Chance,
    /// The link was cut.
    Cut,
    /// The node was down.
    Down,
    /// There is no party of that name, or no longer.
    UnknownDestination,
    /// The sender is mute: the harness does not read its output any more.
    Mute,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chance => "by chance",
            Self::Cut => "the link is cut",
            Self::Down => "the node is down",
            Self::UnknownDestination => "there is no such party",
            Self::Mute => "the sender is mute",
        })
    }
}

/// The number of messages in a span of time, and of their fates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests of clients.
    pub operations: u64,
    /// Messages between nodes, each counted once when it is sent.
    pub between_nodes: u64,
    /// Messages between nodes and services.
    pub with_services: u64,
    /// The messages between nodes, by type.
    pub kinds: BTreeMap<String, u64>,
    /// All deliveries, including those to clients, of `init`, and second ones.
    pub delivered: u64,
    /// All messages that will arrive twice.
    pub doubled: u64,
    /// All losses, by reason.
    pub lost: BTreeMap<Loss, u64>,
}

impl Stats {
    /// Returns the number of messages between nodes for each request of a client;
    /// 0 if there was none.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a journal has fewer than 2^53 messages"
    )]
    pub fn per_operation(&self) -> f64 {
        if self.operations == 0 {
            0.0
        } else {
            self.between_nodes as f64 / self.operations as f64
        }
    }

    /// Returns the number of losses for this reason.
    #[must_use]
    pub fn lost(&self, why: Loss) -> u64 {
        self.lost.get(&why).copied().unwrap_or_default()
    }

    fn count_sent(&mut self, record: &Record) {
        match (record.src, record.dest) {
            (Party::Client(1..), _) => self.operations += 1,
            (Party::Node(_), Party::Node(_)) => {
                self.between_nodes += 1;
                match self.kinds.get_mut(&record.kind) {
                    Some(count) => *count += 1,
                    None => drop(self.kinds.insert(record.kind.clone(), 1)),
                }
            }
            (Party::Service(_), _) | (_, Party::Service(_)) => self.with_services += 1,
            _ => {}
        }
    }
}

impl Journal {
    pub(super) const fn new(entries_max: usize) -> Self {
        Self {
            messages: Vec::new(),
            entries: Vec::new(),
            entries_max,
        }
    }

    /// Counts the events in a span of time, or all with `..`.
    #[must_use]
    pub fn stats(&self, span: impl RangeBounds<Duration>) -> Stats {
        let mut stats = Stats::default();
        for entry in self.entries.iter().filter(|entry| span.contains(&entry.at)) {
            match &entry.what {
                What::Sent(number) => {
                    if let Some(record) = self.messages.get(*number) {
                        stats.count_sent(record);
                    }
                }
                What::Delivered(_) => stats.delivered += 1,
                What::Doubled(_) => stats.doubled += 1,
                What::Lost(_, why) => *stats.lost.entry(*why).or_default() += 1,
                What::Event(_) => {}
            }
        }
        stats
    }

    /// Returns the journal as a sequence chart: a column for each party, a row for
    /// each message.
    #[must_use]
    pub const fn chart(&self) -> Chart<'_> {
        Chart::new(self)
    }

    pub(super) fn send(&mut self, record: Record) -> Number {
        let number = self.messages.len();
        self.note(record.sent_at, What::Sent(number));
        self.messages.push(record);
        number
    }

    pub(super) fn note(&mut self, at: Duration, what: What) {
        let max = self.entries_max;
        assert!(
            self.entries.len() < max,
            "the journal has {max} entries at {at:?}, which is all it may have: \
             the nodes do not come to rest, or `Builder::journal_max` is too low"
        );
        self.entries.push(Entry { at, what });
    }
}

impl Record {
    /// Returns the body.
    pub(super) fn body(&self) -> &str {
        message::parse(&self.line).map_or("", |message| message.body)
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            write!(f, "{:>14.6} ", Millis(entry.at))?;
            match &entry.what {
                What::Sent(number) => match self.messages.get(*number) {
                    Some(record) => {
                        writeln!(
                            f,
                            "#{number} {} -> {} {}",
                            record.src,
                            record.dest,
                            record.body()
                        )?;
                    }
                    None => writeln!(f, "#{number}")?,
                },
                What::Delivered(number) => writeln!(f, "#{number} is delivered")?,
                What::Doubled(number) => writeln!(f, "#{number} will arrive twice")?,
                What::Lost(number, why) => writeln!(f, "#{number} is lost: {why}")?,
                What::Event(text) => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}

/// A time in milliseconds; the precision is the number of decimals, up to 6.
pub(super) struct Millis(pub(super) Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(6).min(6);
        let (whole, nanos) = (self.0.as_millis(), self.0.subsec_nanos() % 1_000_000);
        let fraction = format!("{nanos:06}");
        let text = format!("{whole}.{}", fraction.get(..decimals).unwrap_or_default());
        f.pad_integral(true, "", &text)
    }
}
