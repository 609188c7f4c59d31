//! [`Judge`]: the promise. It hears the requests of clients, their answers and the
//! messages that readers process, and knows neither servers nor streams.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use hark_protocol::Code;

use super::world::SHARDS;
use crate::cluster::ConnectionId;
use crate::ledger::{BlockContent, decode};
use crate::log::Block;
use crate::store::{Message, Outcome};

/// The duration of a deletion that has waited for the lapse of a server.
const LAPSE_MIN: Duration = Duration::from_secs(15);

/// All answers and messages.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// The outcome of each send of a session, with its recipient.
    outcomes: BTreeMap<(usize, u32), (String, Outcome)>,
    /// The messages that each reader processed, by number.
    read: BTreeMap<String, BTreeMap<u64, String>>,
    texts: HashMap<String, u64>,
    /// The id of the last stored message of each session and shard, by true time.
    stored: BTreeMap<(usize, u32), u32>,
    /// The sends that were answered `unavailable`, by connection.
    undecided: HashMap<ConnectionId, BTreeSet<u32>>,
    /// Sends that were refused for lack of space. Only a later send to the same shard makes
    /// that final, so a repeat may still be stored.
    without_space: BTreeSet<(usize, u32)>,
    /// The id of the last message of a session to a reader.
    latest: HashMap<(String, usize), u32>,
    account: Register,
    /// The versions of the password, by incarnation.
    passwords: BTreeMap<u64, Register>,
    /// Deleted incarnations of the account, and the times of the answers.
    deleted: BTreeMap<u64, Duration>,
    claims: BTreeSet<(u32, u64)>,
    /// The size of the run.
    pub(super) counts: Counts,
}

/// The size of a run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) stored: u64,
    pub(super) refused: u64,
    pub(super) read: u64,
    pub(super) repeats: u64,
    pub(super) unavailable: u64,
    pub(super) closed: u64,
    pub(super) takeovers: u64,
    pub(super) passwords: u64,
    pub(super) deletions: u64,
    /// Deletions that waited for the lapse of a server.
    pub(super) lapses: u64,
    pub(super) lists: u64,
    pub(super) without_space: u64,
    pub(super) claims: u64,
    pub(super) purges: u64,
    pub(super) gets: u64,
    pub(super) events: u64,
    pub(super) ended_at: Duration,
}

impl Counts {
    /// Adds the statistics of another run.
    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            stored,
            refused,
            read,
            repeats,
            unavailable,
            closed,
            ..
        } = other;
        self.stored += stored;
        self.refused += refused;
        self.read += read;
        self.repeats += repeats;
        self.unavailable += unavailable;
        self.closed += closed;
        let Self {
            takeovers,
            passwords,
            deletions,
            lapses,
            lists,
            without_space,
            ..
        } = other;
        self.takeovers += takeovers;
        self.passwords += passwords;
        self.deletions += deletions;
        self.lapses += lapses;
        self.lists += lists;
        self.without_space += without_space;
        let Self {
            claims,
            purges,
            gets,
            events,
            ended_at,
            ..
        } = other;
        self.claims += claims;
        self.purges += purges;
        self.gets += gets;
        self.events += events;
        self.ended_at += *ended_at;
    }
}

/// An increasing value, and the times at which it was known.
#[derive(Debug, Default)]
struct Register {
    known: Vec<(Duration, u64)>,
}

impl Register {
    /// Records that a client knows the value to be at least this.
    fn known(&mut self, now: Duration, value: u64) {
        self.known.push((now, value));
    }

    /// Checks a value that was requested at `asked_at`.
    fn check(&self, asked_at: Duration, value: u64, what: &str) {
        let least = self
            .known
            .iter()
            .filter(|(at, _)| *at <= asked_at)
            .map(|(_, value)| *value)
            .max();
        assert!(
            least.is_none_or(|least| value >= least),
            "stale answer: {what} {value}, asked for at {asked_at:?}, when {least:?} was known"
        );
    }
}

impl Judge {
    /// Records an answer to a send, which may be repeated.
    pub(super) fn answered(&mut self, (session, id): (usize, u32), to: &str, outcome: Outcome) {
        let former = self
            .outcomes
            .insert((session, id), (to.to_owned(), outcome));
        if let Some((_, former)) = former {
            assert_eq!(outcome, former, "the outcome of {session}:{id} to {to}");
            return;
        }
        match outcome {
            Outcome::Stored(_) => self.counts.stored += 1,
            Outcome::Refused(code) => {
                assert_eq!(
                    code,
                    Code::QueueFull,
                    "the outcome of {session}:{id} to {to}"
                );
                self.counts.refused += 1;
            }
        }
    }

    /// Records that a send of a connection was answered `unavailable`.
    pub(super) fn undecided(&mut self, connection: ConnectionId, id: u32) {
        self.undecided.entry(connection).or_default().insert(id);
    }

    /// Records that the messages of a frame are stored at this time. Checks that the sends of
    /// a session to this shard are stored in order of their ids, and none after an earlier
    /// send of its connection was answered `unavailable`, except for those that were answered
    /// so as well.
    pub(super) fn stored(&mut self, shard: u32, blocks: &[Block]) {
        let mut messages = BTreeMap::new();
        for block in blocks {
            let Ok(BlockContent::Messages(of_block)) = decode(block) else {
                panic!("a malformed block")
            };
            for message in of_block.map(Result::unwrap) {
                messages.insert(
                    message.position.sequence,
                    std::str::from_utf8(message.text).unwrap(),
                );
            }
        }
        for text in messages.into_values() {
            let Some((session, id)) = send_of(text) else {
                continue;
            };
            if !self.without_space.contains(&(session, id)) {
                let former = self.stored.insert((session, shard), id);
                assert!(
                    former < Some(id),
                    "{session}:{id} is stored after {former:?}"
                );
            }
            let connection = text.rsplit(':').next().unwrap().parse().unwrap();
            if let Some(undecided) = self.undecided.get(&connection) {
                let is_late = *undecided.first().unwrap() < id && !undecided.contains(&id);
                assert!(
                    !is_late,
                    "{text} is stored after {undecided:?} were unavailable"
                );
            }
        }
    }

    /// Records that a send is refused for lack of space.
    pub(super) fn refused_for_space(&mut self, session: usize, id: u32) {
        self.counts.without_space += 1;
        self.without_space.insert((session, id));
    }

    /// Records that a reader processes a message, and checks that numbers increase.
    pub(super) fn read(&mut self, reader: &str, message: &Message) {
        let (number, text) = (message.position.sequence.0, message.text.to_string());
        self.counts.read += 1;
        assert_eq!(
            self.texts.insert(content_of(&text).to_owned(), number),
            None,
            "{text} is in the store twice"
        );
        if let Some((session, id)) = send_of(&text) {
            let former = self.latest.insert((reader.to_owned(), session), id);
            assert!(
                former < Some(id),
                "{session}:{id} is read by {reader} after {former:?}"
            );
        }
        let former = self
            .read
            .entry(reader.to_owned())
            .or_default()
            .insert(number, text);
        assert_eq!(former, None, "the number {number} is used twice");
    }

    /// Checks that a message with an old number duplicates a processed one.
    pub(super) fn repeated(&mut self, reader: &str, message: &Message) {
        self.counts.repeats += 1;
        let text = self
            .read
            .get(reader)
            .and_then(|read| read.get(&message.position.sequence.0));
        let is_known = text.is_some_and(|text| *text == *message.text);
        assert!(
            is_known,
            "{message:?} comes to {reader} late or under a number that was used: {text:?}"
        );
    }

    /// Records that the password of an incarnation was set to this version.
    pub(super) fn password_set(&mut self, now: Duration, incarnation: u64, version: u64) {
        self.counts.passwords += 1;
        self.passwords
            .entry(incarnation)
            .or_default()
            .known(now, version);
    }

    /// Checks the result of a lookup: an incarnation and a version of its password.
    pub(super) fn found(
        &mut self,
        asked_at: Duration,
        now: Duration,
        incarnation: u64,
        version: u64,
    ) {
        self.account.check(asked_at, incarnation, "incarnation");
        self.account.known(now, incarnation);
        let password = self.passwords.entry(incarnation).or_default();
        password.check(asked_at, version, "password");
        password.known(now, version);
    }

    /// Records that the deletion of an incarnation was answered.
    pub(super) fn deleted(&mut self, asked_at: Duration, now: Duration, incarnation: u64) {
        self.counts.deletions += 1;
        self.counts.lapses += u64::from(now - asked_at >= LAPSE_MIN);
        self.deleted.entry(incarnation).or_insert(now);
        self.account.known(now, incarnation + 1);
    }

    /// Checks a stored message that an account sent at `asked_at`.
    pub(super) fn sent_as(&self, asked_at: Duration, incarnation: u64) {
        let deleted_at = self.deleted.get(&incarnation);
        assert!(
            deleted_at.is_none_or(|deleted_at| asked_at < *deleted_at),
            "a connection acts at {asked_at:?} as an account that was deleted at {deleted_at:?}"
        );
    }

    /// Records that the owner of a shard has announced its claim.
    pub(super) fn claimed(&mut self, shard: u32, sequence: u64) {
        self.counts.claims += u64::from(self.claims.insert((shard, sequence)));
    }

    /// Checks that no shard was claimed more often than this.
    pub(super) fn check_claims(&self, max: usize) {
        for shard in 0..SHARDS as u32 {
            let claims = self.claims.iter().filter(|(of, _)| *of == shard).count();
            assert!(claims <= max, "shard {shard} was claimed {claims} times");
        }
    }

    /// Returns whether readers have processed all stored messages.
    pub(super) fn is_complete(&self) -> bool {
        self.missing().next().is_none()
    }

    fn missing(&self) -> impl Iterator<Item = (&(usize, u32), &(String, Outcome))> {
        self.outcomes
            .iter()
            .filter(|((session, id), (to, outcome))| {
                let Outcome::Stored(number) = outcome else {
                    return false;
                };
                let text = self.read.get(to).and_then(|read| read.get(&number.0));
                text.is_none_or(|text| content_of(text) != format!("{session}:{id}:{to}"))
            })
    }

    /// Checks that all messages answered `ok` were read, and no refused ones.
    pub(super) fn check(&self) {
        let missing: Vec<_> = self.missing().collect();
        assert!(missing.is_empty(), "answered and not read: {missing:?}");
        for ((session, id), (to, outcome)) in &self.outcomes {
            let is_read = self.texts.contains_key(&format!("{session}:{id}:{to}"));
            assert!(
                is_read || matches!(outcome, Outcome::Refused(_)),
                "{session}:{id} to {to}"
            );
            assert!(
                !is_read || matches!(outcome, Outcome::Stored(_)),
                "{session}:{id} to {to}"
            );
        }
        assert!(self.counts.stored > 0, "a run that compares nothing");
    }
}

/// Returns the text of a send without the connection that it came over.
fn content_of(text: &str) -> &str {
    let (content, _) = text.rsplit_once(':').unwrap_or((text, ""));
    content
}

/// Returns the session and the id of a send by its text.
fn send_of(text: &str) -> Option<(usize, u32)> {
    let mut parts = text.split(':');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
