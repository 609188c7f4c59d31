//! What other threads may know of the accounts: those whose creation has been
//! committed, and whose end has not.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hark_protocol::UserName;

use crate::store::{Account, AccountEntry, PasswordHash};

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
    entries: RwLock<BTreeMap<UserName, Entry>>,
}

impl Directory {
    /// Looks an account up.
    pub(super) fn account(&self, name: &UserName) -> Option<AccountEntry> {
        let entry = self.read().get(name).cloned()?;
        let account = Account { name: name.clone(), incarnation: entry.incarnation };
        Some(AccountEntry { account, password: entry.password })
    }

    /// The names after `after`, at most `limit`.
    pub(super) fn names(&self, after: Option<&UserName>, limit: usize) -> Vec<UserName> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.read();
        entries
            .range::<UserName, _>((after, Bound::Unbounded))
            .take(limit)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Makes changes; `None` for a name that leaves.
    pub(super) fn change(&self, changes: Vec<(UserName, Option<Entry>)>) {
        if changes.is_empty() {
            return;
        }
        let mut entries = self.write();
        for (name, entry) in changes {
            match entry {
                Some(entry) => entries.insert(name, entry),
                None => entries.remove(&name),
            };
        }
    }

    /// Begins anew with these.
    pub(super) fn replace(&self, entries: impl Iterator<Item = (UserName, Entry)>) {
        // Outside of the lock, since it takes a while.
        let entries = entries.collect();
        *self.write() = entries;
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<UserName, Entry>> {
        // Nothing panics while the lock is held.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<UserName, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
