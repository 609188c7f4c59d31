//! The record of the messages that a reader has seen, which is used to drop
//! repeats.
//!
//! A sequence number alone does not suffice. Numbers are never reused within
//! one store, but a new store may start from 1, and a reader that remembers
//! only "everything up to 500" would silently drop its first 500 messages.
//! Messages are therefore identified by number *and* time, and a `Window` holds
//! the last [`REMEMBERED`] of them. The server keeps at most 256 messages
//! unacknowledged, so the window covers every message whose ack may be lost
//! with a link. A server that crashed may have lost more acks; a repeat from
//! before the window is recognized because neither its number nor its time
//! exceeds that of the last message dropped from the window. No other message
//! is dropped.

mod file;

pub use file::FileSeenStore;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Mutex;

use hark_protocol::limits::WINDOW_MESSAGES_MAX;
use hark_protocol::{Delivery, RoomName, Sequence, UserName};

use crate::sync::lock;

/// Number of messages remembered for each log of a user: five windows of the server.
pub const REMEMBERED: usize = 5 * WINDOW_MESSAGES_MAX;

/// Identity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// Sequence number.
    pub sequence: Sequence,
    /// Time at which the server accepted it, in milliseconds since the Unix
    /// epoch.
    pub time_ms: u64,
}

impl From<&Delivery> for MessageId {
    fn from(delivery: &Delivery) -> Self {
        Self {
            sequence: delivery.sequence,
            time_ms: delivery.time_ms,
        }
    }
}

/// The record of seen messages, for each log of each user of one server. A log
/// is a room, or the inbox.
///
/// Both functions may block for a small file operation.
pub trait SeenStore: fmt::Debug + Send + Sync {
    /// Returns the last messages of a log that `user` has seen, in order: at
    /// least the last [`REMEMBERED`] and the one before them.
    ///
    /// # Errors
    /// If they cannot be read. An empty record is not an error.
    fn load(&self, user: &UserName, room: Option<&RoomName>) -> io::Result<Vec<MessageId>>;

    /// Records a message durably against the end of this process.
    ///
    /// # Errors
    /// If it cannot be written. The message does not count as seen in that
    /// case.
    fn record(
        &self,
        user: &UserName,
        room: Option<&RoomName>,
        message: MessageId,
    ) -> io::Result<()>;
}

/// A log of a user: a room, or the inbox.
type LogKey = (UserName, Option<RoomName>);

/// A record in memory.
#[derive(Debug, Default)]
pub struct MemorySeenStore {
    // A lock because messages are taken on any task; held for one operation.
    logs: Mutex<HashMap<LogKey, VecDeque<MessageId>>>,
}

impl SeenStore for MemorySeenStore {
    fn load(&self, user: &UserName, room: Option<&RoomName>) -> io::Result<Vec<MessageId>> {
        let logs = lock(&self.logs);
        Ok(logs
            .get(&(user.clone(), room.cloned()))
            .map(|all| all.iter().copied().collect())
            .unwrap_or_default())
    }

    fn record(
        &self,
        user: &UserName,
        room: Option<&RoomName>,
        message: MessageId,
    ) -> io::Result<()> {
        let mut logs = lock(&self.logs);
        let all = logs.entry((user.clone(), room.cloned())).or_default();
        if all.len() > REMEMBERED {
            all.pop_front();
        }
        all.push_back(message);
        Ok(())
    }
}

/// The last messages of a log that one user has seen.
#[derive(Debug, Default)]
pub(crate) struct Window {
    recent: VecDeque<MessageId>,
    /// The last message that was dropped from `recent`.
    forgotten: Option<MessageId>,
    /// Upper bound of the numbers in `recent`.
    highest: Sequence,
}

impl FromIterator<MessageId> for Window {
    fn from_iter<I: IntoIterator<Item = MessageId>>(all: I) -> Self {
        let mut window = Self::default();
        all.into_iter().for_each(|message| window.insert(message));
        window
    }
}

impl Window {
    pub(crate) fn insert(&mut self, message: MessageId) {
        if self.recent.len() == REMEMBERED {
            self.forgotten = self.recent.pop_front();
        }
        self.recent.push_back(message);
        self.highest = self.highest.max(message.sequence);
    }

    /// Returns whether the message has been seen.
    pub(crate) fn contains(&self, message: MessageId) -> bool {
        let is_forgotten =
            |gone: MessageId| message.sequence <= gone.sequence && message.time_ms <= gone.time_ms;
        // Most messages are above the highest number and need no search.
        (message.sequence <= self.highest && self.recent.contains(&message))
            || self.forgotten.is_some_and(is_forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence: u64, time_ms: u64) -> MessageId {
        MessageId {
            sequence: Sequence(sequence),
            time_ms,
        }
    }

    #[test]
    fn seen_messages_are_recognized_at_any_age() {
        let window: Window = (1..=5_000).map(|n| message(n, 10 * n)).collect();
        assert!((1..=5_000).all(|n| window.contains(message(n, 10 * n))));
        assert!(!window.contains(message(5_001, 50_010)));
    }

    #[test]
    fn new_store_with_lower_numbers_loses_no_message() {
        let mut window: Window = (1..=5_000).map(|n| message(n, 10 * n)).collect();
        for n in 1..=9_000 {
            let again = message(n, 60_000 + n);
            assert!(!window.contains(again), "message {n} of the new store");
            window.insert(again);
            assert!(window.contains(again));
        }
        assert!((1..=9_000).all(|n| window.contains(message(n, 60_000 + n))));
    }

    #[test]
    fn gap_within_the_window_is_unseen() {
        let window: Window = [message(1, 1), message(3, 3)].into_iter().collect();
        assert!(!window.contains(message(2, 2)));
    }
}
