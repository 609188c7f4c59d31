//! The accounts and tokens as visible to other threads: those that exist by committed
//! records.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use hark_protocol::UserName;
use hashbrown::HashTable;

use crate::ledger::AccountChange;
use crate::store::{
    Account, AccountEntry, AccountToken, PasswordHash, TokenDigest, Unavailable, UserLimits,
};
use crate::sync::RwLock;

/// The directory. Only the commit thread changes it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    // A lock, because every connection looks up names. It is held for one lookup, one
    // page of names, or the changes of one commit.
    /// `None` after the store has closed.
    entries: RwLock<Option<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    accounts: BTreeMap<UserName, DirectoryEntry>,
    /// The limits of single accounts, by their incarnations: few have any.
    limits: HashMap<u64, Arc<UserLimits>>,
    /// By their digests, which are compared in constant time.
    tokens: HashTable<AccountToken>,
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
        let entries = entries.as_ref().ok_or(Unavailable)?;
        let found = entries.accounts.get_key_value(name);
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
                limits: entries.limits.get(&entry.incarnation).cloned(),
            }
        }))
    }

    /// Looks up a token.
    pub(super) fn token(&self, digest: &TokenDigest) -> Result<Option<AccountToken>, Unavailable> {
        let entries = self.entries.read();
        let tokens = &entries.as_ref().ok_or(Unavailable)?.tokens;
        let found = tokens.find(hash(digest), |token| token.token.digest == *digest);
        Ok(found.cloned())
    }

    /// Returns the number of accounts.
    pub(super) fn len(&self) -> usize {
        let entries = self.entries.read();
        entries.as_ref().map_or(0, |entries| entries.accounts.len())
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
            .accounts
            .range::<UserName, _>((after, Bound::Unbounded));
        Ok(range.take(limit).map(|(name, _)| name.clone()).collect())
    }

    /// Applies the changes in order, and drains them.
    pub(super) fn change(&self, changes: &mut Vec<AccountChange>) {
        if changes.is_empty() {
            return;
        }
        let mut entries = self.entries.write();
        let Some(entries) = &mut *entries else {
            return;
        };
        for change in changes.drain(..) {
            match change {
                AccountChange::Present(account) => entries.insert(account),
                AccountChange::Ended(name) => entries.remove(&name),
                AccountChange::Token(token) => entries.set_token(*token),
                AccountChange::TokenEnded(digest) => entries.remove_token(&digest),
            }
        }
    }

    /// Replaces all accounts and tokens.
    pub(super) fn replace(
        &self,
        accounts: impl Iterator<Item = AccountEntry>,
        tokens: impl Iterator<Item = AccountToken>,
    ) {
        // Collected without the lock, because it takes a while.
        let mut entries = Entries::default();
        accounts.for_each(|account| entries.insert(account));
        tokens.for_each(|token| entries.set_token(token));
        *self.entries.write() = Some(entries);
    }

    /// Closes the directory. Later lookups fail.
    pub(super) fn close(&self) {
        *self.entries.write() = None;
    }
}

impl Entries {
    fn set_token(&mut self, token: AccountToken) {
        self.remove_token(&token.token.digest);
        let hash_of = |token: &AccountToken| hash(&token.token.digest);
        self.tokens.insert_unique(hash_of(&token), token, hash_of);
    }

    fn remove_token(&mut self, digest: &TokenDigest) {
        let found = self
            .tokens
            .find_entry(hash(digest), |token| token.token.digest == *digest);
        if let Ok(entry) = found {
            entry.remove();
        }
    }

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
        self.accounts.insert(account.name, entry);
    }

    fn remove(&mut self, name: &UserName) {
        if let Some(removed) = self.accounts.remove(name) {
            self.limits.remove(&removed.incarnation);
        }
    }
}

/// Returns a part of the digest: that of a random secret is as good as any hash.
fn hash(digest: &TokenDigest) -> u64 {
    let first = digest.as_bytes().first_chunk();
    first.map_or(0, |first| u64::from_le_bytes(*first))
}
