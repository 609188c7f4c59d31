//! The deadlines of requests that are not answered yet. It reads no clock.

use std::collections::BTreeMap;
use std::rc::Weak;
use std::time::Duration;

use crate::request::Asker;

/// The open requests by deadline; those with equal deadlines are in the order
/// in which they were set. An entry lives as long as its request is open and
/// can be answered.
#[derive(Default)]
pub(crate) struct Deadlines {
    open: BTreeMap<Key, Weak<Asker>>,
    set: u64,
}

/// The time of a deadline, and its number.
pub(crate) type Key = (Duration, u64);

impl Deadlines {
    pub(crate) fn set(&mut self, at: Duration, request: Weak<Asker>) -> Key {
        self.set += 1;
        let key = (at, self.set);
        self.open.insert(key, request);
        key
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.open.remove(key);
    }

    /// Takes the requests whose deadline has passed, the earliest first.
    pub(crate) fn take_due(&mut self, now: Duration) -> Vec<Weak<Asker>> {
        let mut due = Vec::new();
        while let Some(entry) = self.open.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove());
        }
        due
    }

    /// Returns the time of the earliest deadline.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.open.first_key_value().map(|(key, _)| key.0)
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}
