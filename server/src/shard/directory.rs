//! The accounts as visible to other threads: those that exist by committed records.

use std::collections::BTreeMap;
use std::ops::Bound;

use hark_protocol::UserName;

use crate::ledger::AccountChange;
use crate::store::{Account, AccountEntry, PasswordHash, Unavailable};
use crate::sync::RwLock;

/// The directory. Only the commit thread changes it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    // A lock, because every connection looks up names. It is held for one lookup, one
    // page of names, or the changes of one commit.
    entries: RwLock<Entries>,
}

/// `None` after the store has closed.
type Entries = Option<BTreeMap<UserName, DirectoryEntry>>;

#[derive(Debug)]
struct DirectoryEntry {
    incarnation: u64,
    password: Option<PasswordHash>,
}

impl Directory {
    /// Looks up an account.
    pub(super) fn account(&self, name: &UserName) -> Result<Option<AccountEntry>, Unavailable> {
        let entries = self.entries.read();
        let found = entries.as_ref().ok_or(Unavailable)?.get_key_value(name);
        Ok(found.map(|(name, entry)| {
            // The directory's copy of the name lives longer than the caller's.
            let account = Account {
                name: name.clone(),
                incarnation: entry.incarnation,
            };
            AccountEntry {
                account,
                password: entry.password.clone(),
            }
        }))
    }

    /// Returns the number of accounts.
    pub(super) fn len(&self) -> usize {
        self.entries.read().as_ref().map_or(0, BTreeMap::len)
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
            .range::<UserName, _>((after, Bound::Unbounded));
        Ok(range.take(limit).map(|(name, _)| name.clone()).collect())
    }

    /// Applies the changes in order, and drains them.
    pub(super) fn change(&self, changes: &mut Vec<AccountChange>) {
        if changes.is_empty() {
            return;
        }
        let mut entries = self.entries.write();
        let Some(entries) = &mut *entries else { return };
        for change in changes.drain(..) {
            match change {
                AccountChange::Present(account) => {
                    let (name, entry) = split(account);
                    entries.insert(name, entry)
                }
                AccountChange::Ended(name) => entries.remove(&name),
            };
        }
    }

    /// Replaces all accounts.
    pub(super) fn replace(&self, accounts: impl Iterator<Item = AccountEntry>) {
        // Collected without the lock, because it takes a while.
        let entries = Some(accounts.map(split).collect());
        *self.entries.write() = entries;
    }

    /// Closes the directory. Later lookups fail.
    pub(super) fn close(&self) {
        *self.entries.write() = None;
    }
}

fn split(AccountEntry { account, password }: AccountEntry) -> (UserName, DirectoryEntry) {
    (
        account.name,
        DirectoryEntry {
            incarnation: account.incarnation,
            password,
        },
    )
}
