//! [`Live`]: which messages are still wanted, shared by the commit thread,
//! which knows, with readers and with compaction, which must not drop one.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The accounts that there are, each with its cursor: the sequence number up
/// to which its messages are forgotten.
///
/// It lags behind in one direction only. An account enters before its first
/// message is written; a cursor moves, and an account leaves, only after that
/// has been committed durably. So what it calls dead stays dead, whatever
/// crashes.
#[derive(Debug, Default)]
pub(in crate::store::local) struct Live {
    // A lock, since compaction and readers have threads of their own. It is
    // held for one look-up or for the changes of one commit.
    cursors: RwLock<Option<HashMap<u64, u64>>>,
}

/// What is known of the messages of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::local) enum Fate {
    /// It is not known yet who lives: all must be kept.
    Unknown,
    /// The account lives, and this is its cursor.
    After(u64),
    /// The account has ended.
    Dead,
}

impl Fate {
    /// Whether the message of this number may be dropped for good.
    pub(in crate::store::local) const fn is_dead(self, sequence: u64) -> bool {
        match self {
            Self::Unknown => false,
            Self::After(cursor) => sequence <= cursor,
            Self::Dead => true,
        }
    }
}

impl Live {
    /// What is known of an account.
    pub(in crate::store::local) fn fate(&self, incarnation: u64) -> Fate {
        match &*self.read() {
            None => Fate::Unknown,
            Some(cursors) => cursors.get(&incarnation).map_or(Fate::Dead, |cursor| Fate::After(*cursor)),
        }
    }

    /// Whether it is known who lives: the engine is open, and loaded.
    pub(in crate::store::local) fn is_known(&self) -> bool {
        self.read().is_some()
    }

    /// Nothing is known any more, until the next [`Self::load`].
    pub(in crate::store::local) fn forget(&self) {
        *self.write() = None;
    }

    /// These are all the accounts that there are, with their cursors.
    pub(in crate::store::local) fn load(&self, cursors: HashMap<u64, u64>) {
        *self.write() = Some(cursors);
    }

    /// Accounts that are about to begin.
    pub(in crate::store::local) fn begin(&self, incarnations: &[u64]) {
        if incarnations.is_empty() {
            return;
        }
        if let Some(cursors) = &mut *self.write() {
            cursors.extend(incarnations.iter().map(|incarnation| (*incarnation, 0)));
        }
    }

    /// Cursors that have moved durably, and accounts that have ended durably.
    pub(in crate::store::local) fn advance(&self, moved: impl Iterator<Item = (u64, u64)>, ended: &[u64]) {
        if let Some(cursors) = &mut *self.write() {
            for (incarnation, cursor) in moved {
                cursors.entry(incarnation).and_modify(|c| *c = cursor.max(*c));
            }
            for incarnation in ended {
                cursors.remove(incarnation);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<HashMap<u64, u64>>> {
        // Nothing panics while the lock is held.
        self.cursors.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<HashMap<u64, u64>>> {
        self.cursors.write().unwrap_or_else(PoisonError::into_inner)
    }
}
