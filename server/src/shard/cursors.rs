//! [`Cursors`]: the heads of the inboxes and rooms, for readers.

use std::collections::HashMap;

use crate::store::Position;
use crate::sync::RwLock;

/// The heads by the ids of the logs, without those at the start of a log.
///
/// A cursor moves here before its blocks are released in the log. So if a reader misses a
/// released block, the cursor that it reads afterwards covers the block.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    // A lock, because readers run on other threads. It is held for one lookup, or for the
    // cursors of one commit.
    cursors: RwLock<HashMap<u64, Position>>,
}

impl Cursors {
    /// Returns the head of a log.
    pub(super) fn get(&self, log: u64) -> Position {
        self.cursors.read().get(&log).copied().unwrap_or_default()
    }

    /// Replaces all cursors.
    pub(super) fn replace(&self, cursors: impl Iterator<Item = (u64, Position)>) {
        // Collected without the lock, because it takes a while.
        let cursors = cursors
            .filter(|(_, cursor)| *cursor != Position::default())
            .collect();
        *self.cursors.write() = cursors;
    }

    /// Records moved heads and ended logs.
    pub(super) fn advance(&self, moved: &[(u64, Position)], ended: &[u64]) {
        if moved.is_empty() && ended.is_empty() {
            return;
        }
        let mut cursors = self.cursors.write();
        cursors.extend(moved.iter().copied());
        for log in ended {
            cursors.remove(log);
        }
    }
}
