//! [`Cursors`]: the acknowledged positions of the inboxes, for readers.

use std::collections::HashMap;

use crate::store::Position;
use crate::sync::RwLock;

/// The cursors by incarnation, without those at the start of an inbox.
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
    /// Returns the cursor of an inbox.
    pub(super) fn get(&self, incarnation: u64) -> Position {
        self.cursors
            .read()
            .get(&incarnation)
            .copied()
            .unwrap_or_default()
    }

    /// Replaces all cursors.
    pub(super) fn replace(&self, cursors: impl Iterator<Item = (u64, Position)>) {
        // Collected without the lock, because it takes a while.
        let cursors = cursors
            .filter(|(_, cursor)| *cursor != Position::default())
            .collect();
        *self.cursors.write() = cursors;
    }

    /// Records moved cursors and ended accounts.
    pub(super) fn advance(&self, moved: &[(u64, Position)], ended: &[u64]) {
        if moved.is_empty() && ended.is_empty() {
            return;
        }
        let mut cursors = self.cursors.write();
        cursors.extend(moved.iter().copied());
        for incarnation in ended {
            cursors.remove(incarnation);
        }
    }
}
