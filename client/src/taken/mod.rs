//! Which messages a reader has taken, so that one that comes again is dropped.
//!
//! A number alone does not do. Numbers are never used twice on one store, but
//! a throw-away server starts again at 1, and a reader that only remembers
//! "everything up to 500" would silently swallow its first 500 messages. So a
//! message is known by its number *and* its time, and a `Window` holds the
//! last [`REMEMBERED`] of them. The server pushes at most 256 messages that
//! are not acknowledged, so the window holds every message whose ack can have
//! been lost with a link. A server that crashed may have lost more acks than
//! that; what comes again from before the window is recognised by being both
//! lower in number and not later in time than the last one forgotten. Nothing
//! else is ever dropped.

mod file;

pub use file::FileTaken;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use hark_protocol::limits::WINDOW_MESSAGES_MAX;
use hark_protocol::{Delivery, Sequence, UserName};

/// Messages that are remembered for each user: five windows of the server.
pub const REMEMBERED: usize = 5 * WINDOW_MESSAGES_MAX;

/// What a message is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taken {
    /// Its number in the inbox.
    pub sequence: Sequence,
    /// When the server took it, in milliseconds since 1970.
    pub time_ms: u64,
}

impl From<&Delivery> for Taken {
    fn from(delivery: &Delivery) -> Self {
        Self { sequence: delivery.sequence, time_ms: delivery.time_ms }
    }
}

/// Remembers what was taken, for each user of one server.
///
/// Both functions may block for as long as a small file takes.
pub trait TakenStore: fmt::Debug + Send + Sync {
    /// The last messages that `user` has taken, in the order in which they
    /// were: at least the last [`REMEMBERED`] and the one before them.
    ///
    /// # Errors
    /// Where they cannot be read. That none was taken yet is no error.
    fn load(&self, user: &UserName) -> io::Result<Vec<Taken>>;

    /// Remembers one more; it survives the end of this process from then on.
    ///
    /// # Errors
    /// Where it cannot be written. It then counts as not taken.
    fn record(&self, user: &UserName, taken: Taken) -> io::Result<()>;
}

/// Remembers for as long as it lives.
#[derive(Debug, Default)]
pub struct MemoryTaken {
    // A lock, since messages are taken on any task; held for one operation.
    users: Mutex<HashMap<UserName, VecDeque<Taken>>>,
}

impl TakenStore for MemoryTaken {
    fn load(&self, user: &UserName) -> io::Result<Vec<Taken>> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(users.get(user).map(|all| all.iter().copied().collect()).unwrap_or_default())
    }

    fn record(&self, user: &UserName, taken: Taken) -> io::Result<()> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let all = users.entry(user.clone()).or_default();
        if all.len() > REMEMBERED {
            all.pop_front();
        }
        all.push_back(taken);
        Ok(())
    }
}

/// The last messages that one user has taken.
#[derive(Debug, Default)]
pub(crate) struct Window {
    recent: VecDeque<Taken>,
    /// The last one that no longer fits in `recent`.
    forgotten: Option<Taken>,
    /// No number in `recent` is above this one.
    highest: Sequence,
}

impl FromIterator<Taken> for Window {
    fn from_iter<I: IntoIterator<Item = Taken>>(all: I) -> Self {
        let mut window = Self::default();
        all.into_iter().for_each(|taken| window.insert(taken));
        window
    }
}

impl Window {
    pub(crate) fn insert(&mut self, taken: Taken) {
        if self.recent.len() == REMEMBERED {
            self.forgotten = self.recent.pop_front();
        }
        self.recent.push_back(taken);
        self.highest = self.highest.max(taken.sequence);
    }

    /// Whether this message has been taken.
    pub(crate) fn contains(&self, message: Taken) -> bool {
        let is_forgotten = |gone: Taken| message.sequence <= gone.sequence && message.time_ms <= gone.time_ms;
        // What is above everything, which is nearly all, needs no search.
        (message.sequence <= self.highest && self.recent.contains(&message))
            || self.forgotten.is_some_and(is_forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(sequence: u64, time_ms: u64) -> Taken {
        Taken { sequence: Sequence(sequence), time_ms }
    }

    #[test]
    fn what_was_taken_is_known_however_long_ago() {
        let window: Window = (1..=5_000).map(|n| taken(n, 10 * n)).collect();
        assert!((1..=5_000).all(|n| window.contains(taken(n, 10 * n))));
        assert!(!window.contains(taken(5_001, 50_010)));
    }

    #[test]
    fn a_server_that_starts_again_at_1_loses_no_message() {
        let mut window: Window = (1..=5_000).map(|n| taken(n, 10 * n)).collect();
        for n in 1..=9_000 {
            let again = taken(n, 60_000 + n);
            assert!(!window.contains(again), "message {n} of the new store");
            window.insert(again);
            assert!(window.contains(again));
        }
        assert!((1..=9_000).all(|n| window.contains(taken(n, 60_000 + n))));
    }

    #[test]
    fn a_gap_within_the_window_is_not_taken() {
        let window: Window = [taken(1, 1), taken(3, 3)].into_iter().collect();
        assert!(!window.contains(taken(2, 2)));
    }
}
