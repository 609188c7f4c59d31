//! The accounts as visible to other threads: those that exist by committed records.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use hark_protocol::UserName;

use crate::ledger::AccountChange;
use crate::store::{Account, AccountEntry, PasswordHash, Unavailable, UserLimits};
use crate::sync::RwLock;

/// The directory. Only the commit thread changes it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    // A lock, because every connection looks up names. It is held for one lookup, one
    // page of names, or the changes of one commit.
    entries: RwLock<Entries>,
}

/// `None` after the store has closed.
type Entries = Option<Accounts>;

#[derive(Debug, Default)]
struct Accounts {
    by_name: BTreeMap<UserName, DirectoryEntry>,
    /// The limits of single accounts, by their incarnations: few have any.
    limits: HashMap<u64, Arc<UserLimits>>,
}

#[derive(Debug)]
struct DirectoryEntry {
    incarnation: u64,
    password: Option<PasswordHash>,
    is_suspended: bool,
}

impl Directory {
    /// Looks up an account.
    pub(super) fn account(&self, name: &UserName) -> Result<Option<AccountEntry>, Unavailable> {
        let entries = self.entries.read();
        let accounts = entries.as_ref().ok_or(Unavailable)?;
        let found = accounts.by_name.get_key_value(name);
        Ok(found.map(|(name, entry)| {
            // The directory's copy of the name lives longer than the caller's.
            let account = Account {
                name: name.clone(),
                incarnation: entry.incarnation,
            };
            AccountEntry {
                account,
                password: entry.password.clone(),
                is_suspended: entry.is_suspended,
                limits: accounts.limits.get(&entry.incarnation).cloned(),
            }
        }))
    }

    /// Returns the number of accounts.
    pub(super) fn len(&self) -> usize {
        self.entries
            .read()
            .as_ref()
            .map_or(0, |accounts| accounts.by_name.len())
    }

    /// Returns at most `limit` names after `after`.
    pub(super) fn names(
        &self,
        after: Option<&UserName>,
        limit: usize,
    ) -> Result<Vec<UserName>, Unavailable> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.entries.read();
        let range = entries
            .as_ref()
            .ok_or(Unavailable)?
            .by_name
            .range::<UserName, _>((after, Bound::Unbounded));
        Ok(range.take(limit).map(|(name, _)| name.clone()).collect())
    }

    /// Applies the changes in order, and drains them.
    pub(super) fn change(&self, changes: &mut Vec<AccountChange>) {
        if changes.is_empty() {
            return;
        }
        let mut entries = self.entries.write();
        let Some(accounts) = &mut *entries else {
            return;
        };
        for change in changes.drain(..) {
            match change {
                AccountChange::Present(account) => accounts.insert(account),
                AccountChange::Ended(name) => accounts.remove(&name),
            }
        }
    }

    /// Replaces all accounts.
    pub(super) fn replace(&self, accounts: impl Iterator<Item = AccountEntry>) {
        // Collected without the lock, because it takes a while.
        let mut all = Accounts::default();
        accounts.for_each(|account| all.insert(account));
        *self.entries.write() = Some(all);
    }

    /// Closes the directory. Later lookups fail.
    pub(super) fn close(&self) {
        *self.entries.write() = None;
    }
}

impl Accounts {
    fn insert(&mut self, entry: AccountEntry) {
        let AccountEntry {
            account,
            password,
            is_suspended,
            limits,
        } = entry;
        let incarnation = account.incarnation;
        match limits {
            Some(limits) => drop(self.limits.insert(incarnation, limits)),
            None => drop(self.limits.remove(&incarnation)),
        }
        let entry = DirectoryEntry {
            incarnation,
            password,
            is_suspended,
        };
        self.by_name.insert(account.name, entry);
    }

    fn remove(&mut self, name: &UserName) {
        if let Some(removed) = self.by_name.remove(name) {
            self.limits.remove(&removed.incarnation);
        }
    }
}
