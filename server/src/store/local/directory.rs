//! What other threads may know of the accounts: those whose creation has been
//! committed, and whose end has not.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hark_protocol::UserName;

use crate::store::{Account, AccountEntry, PasswordHash, Unavailable};

/// An account in the directory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Which account of its name.
    pub(super) incarnation: u64,
    /// What protects it, if anything does.
    pub(super) password: Option<PasswordHash>,
}

/// The directory. Only the commit thread changes it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    // A lock, since every connection looks names up. It is held for one
    // look-up, one page of names, or the changes of one commit.
    entries: RwLock<Entries>,
}

/// `None` where the store has closed.
type Entries = Option<BTreeMap<UserName, Entry>>;

impl Directory {
    /// Looks an account up.
    pub(super) fn account(&self, name: &UserName) -> Result<Option<AccountEntry>, Unavailable> {
        let entry = self.read().as_ref().ok_or(Unavailable)?.get(name).cloned();
        Ok(entry.map(|Entry { incarnation, password }| {
            let account = Account { name: name.clone(), incarnation };
            AccountEntry { account, password }
        }))
    }

    /// The names after `after`, at most `limit`.
    pub(super) fn names(&self, after: Option<&UserName>, limit: usize) -> Result<Vec<UserName>, Unavailable> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.read();
        let range = entries.as_ref().ok_or(Unavailable)?.range::<UserName, _>((after, Bound::Unbounded));
        Ok(range.take(limit).map(|(name, _)| name.clone()).collect())
    }

    /// Makes changes, and takes them out; `None` for a name that leaves.
    pub(super) fn change(&self, changes: &mut Vec<(UserName, Option<Entry>)>) {
        if changes.is_empty() {
            return;
        }
        let mut entries = self.write();
        let Some(entries) = &mut *entries else { return };
        for (name, entry) in changes.drain(..) {
            match entry {
                Some(entry) => entries.insert(name, entry),
                None => entries.remove(&name),
            };
        }
    }

    /// Begins anew with these. Those that come in the order of their names cost
    /// the least.
    pub(super) fn replace(&self, entries: impl Iterator<Item = (UserName, Entry)>) {
        // Outside of the lock, since it takes a while.
        let entries = Some(entries.collect());
        *self.write() = entries;
    }

    /// The store has closed: it cannot say any more.
    pub(super) fn close(&self) {
        *self.write() = None;
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        // Nothing panics while the lock is held.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
