//! [`Cursors`]: up to where the inboxes are acknowledged, for readers.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::store::Position;

/// The cursors of the inboxes that have one, by incarnation.
///
/// A cursor moves here before its blocks are released in the log. So whatever a
/// reader misses, since it was released, lies below the cursor that it finds here
/// afterwards.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    // A lock, since readers have threads of their own. It is held for one look-up
    // or for the cursors of one commit.
    cursors: RwLock<HashMap<u64, Position>>,
}

impl Cursors {
    /// Returns the cursor of an inbox.
    pub(super) fn get(&self, incarnation: u64) -> Position {
        self.read().get(&incarnation).copied().unwrap_or_default()
    }

    /// Begins anew with these.
    pub(super) fn replace(&self, cursors: impl Iterator<Item = (u64, Position)>) {
        // Outside of the lock, since it takes a while.
        let cursors = cursors.filter(|(_, cursor)| *cursor != Position::default()).collect();
        *self.write() = cursors;
    }

    /// Notes cursors that moved, and accounts that ended.
    pub(super) fn advance(&self, moved: &[(u64, Position)], ended: &[u64]) {
        if moved.is_empty() && ended.is_empty() {
            return;
        }
        let mut cursors = self.write();
        cursors.extend(moved.iter().copied());
        for incarnation in ended {
            cursors.remove(incarnation);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Position>> {
        // Nothing panics while the lock is held.
        self.cursors.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Position>> {
        self.cursors.write().unwrap_or_else(PoisonError::into_inner)
    }
}
