//! The accounts as this server knows them: a copy in memory, updated before each use.
//!
//! The leader of the account stream returns the changes after the last one known here. An
//! empty answer proves that the copy was current at some moment after the request. A
//! lookup, and a send to an unknown account, therefore wait for one such answer, which
//! all concurrent requests share. A send to an account that existed moments ago does not
//! wait: if the account was deleted meanwhile, the end marker in its inbox refuses the
//! append.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::UserName;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::engine::{Engine, Found, Lost};
use super::record::{AccountRecord, Existence, Names};
use super::setup::ENDED_KEPT;
use crate::store::{Account, AccountEntry, PasswordHash};

/// Limits of one page when many accounts are read.
const PAGE_MESSAGES: usize = 1000;
const PAGE_BYTES: usize = 1024 * 1024;

/// The maximum age of the copy for a send that does not wait. An older copy means that
/// updates are late; sends then wait like every other request.
const FRESH: Duration = Duration::from_secs(5);

/// The accounts.
#[derive(Debug)]
pub(super) struct Directory {
    /// One reader at a time: a slower second reader could restore an account that the
    /// first one has removed.
    turn: Semaphore,
    // A lock, because many tasks read it. It is held for one lookup, or one page of names
    // or changes.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<UserName, Known>,
    /// The number of existing accounts.
    alive: usize,
    /// The sequence up to which all changes are read.
    read_up_to: u64,
    /// Accounts deleted by a change beyond `read_up_to`: they stay in `known`, so that an
    /// older change cannot restore them.
    ended: Vec<UserName>,
    /// The copy reflects the cluster at some moment after this.
    known_at: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    /// The sequence of the last change.
    revision: u64,
    alive: Option<Alive>,
}

#[derive(Debug)]
struct Alive {
    incarnation: u64,
    password: Option<PasswordHash>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), state: Mutex::default() }
    }
}

impl Directory {
    /// Returns the account of this name.
    pub(super) fn account(&self, name: &UserName) -> Option<AccountEntry> {
        let state = self.lock();
        let alive = state.known.get(name)?.alive.as_ref()?;
        let account = Account { name: name.clone(), incarnation: alive.incarnation };
        Some(AccountEntry { account, password: alive.password.clone() })
    }

    /// Returns whether this incarnation of the account exists.
    pub(super) fn is_alive(&self, account: &Account) -> bool {
        let state = self.lock();
        let alive = state.known.get(&account.name).and_then(|known| known.alive.as_ref());
        alive.is_some_and(|alive| alive.incarnation == account.incarnation)
    }

    /// Returns whether the recipient and the sender, if any, existed within the last
    /// [`FRESH`].
    pub(super) fn knows(&self, to: &UserName, sender: Option<&Account>) -> bool {
        let state = self.lock();
        let alive = |name| state.known.get(name).and_then(|known| known.alive.as_ref());
        state.known_at.is_some_and(|at| at.elapsed() <= FRESH)
            && alive(to).is_some()
            && sender.is_none_or(|sender| {
                alive(&sender.name).is_some_and(|alive| alive.incarnation == sender.incarnation)
            })
    }

    /// Returns the number of accounts.
    pub(super) fn len(&self) -> usize {
        self.lock().alive
    }

    /// Returns at most `limit` names after `after`, in byte order.
    pub(super) fn names(&self, after: Option<&UserName>, limit: usize) -> Vec<UserName> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.lock();
        let names = state.known.range::<UserName, _>((from, Bound::Unbounded));
        names.filter(|(_, known)| known.alive.is_some()).map(|(name, _)| name.clone()).take(limit).collect()
    }

    /// Applies a change, unless a later one is known. Returns the account that it ended,
    /// if any.
    pub(super) fn apply(&self, name: UserName, revision: u64, record: AccountRecord) -> Option<Account> {
        let alive = match record.is {
            Existence::Alive(alive) => {
                Some(Alive { incarnation: alive.incarnation(revision), password: alive.password })
            }
            Existence::Ended(_) => None,
        };
        self.lock().apply(name, Known { revision, alive })
    }

    /// Updates the copy to a state of the cluster later than `since`. Returns the
    /// accounts that have ended.
    pub(super) async fn refresh(
        &self,
        engine: &Engine,
        names: &Names,
        since: Instant,
    ) -> Result<Vec<Account>, Lost> {
        let _turn = self.turn.acquire().await.map_err(|_| Lost)?;
        if self.lock().known_at.is_some_and(|at| at >= since) {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let (stream, subjects) = (names.accounts_stream(), names.accounts());
        let mut ended = self.forget_if_too_old();
        loop {
            let from = self.lock().read_up_to + 1;
            let Some(first) = engine.next(&stream, &subjects, from).await? else {
                self.lock().is_up_to_date(began);
                return Ok(ended);
            };
            ended.extend(self.read(names, first));
            // The rest comes in pages. A replica may lack the latest changes; the loop
            // then asks the leader for them.
            let from = self.lock().read_up_to + 1;
            let page = engine.page(&stream, &subjects, from, PAGE_MESSAGES, PAGE_BYTES).await?;
            ended.extend(page.found.into_iter().filter_map(|found| self.read(names, found)));
        }
    }

    fn read(&self, names: &Names, found: Found) -> Option<Account> {
        let decoded = names
            .parse_account(&found.subject)
            .and_then(|name| Ok((name, AccountRecord::decode(&found.payload)?)));
        let ended = match decoded {
            Ok((name, record)) => self.apply(name, found.sequence, record),
            Err(error) => {
                tracing::error!(%error, subject = found.subject, "unreadable account record");
                None
            }
        };
        let mut state = self.lock();
        state.read_up_to = state.read_up_to.max(found.sequence);
        ended
    }

    /// Clears the copy if it is too old. The cluster drops the records of deleted
    /// accounts after [`ENDED_KEPT`], so a server that was disconnected for long must
    /// read everything again; an account absent from the result was deleted.
    fn forget_if_too_old(&self) -> Vec<Account> {
        let mut state = self.lock();
        if state.known_at.is_none_or(|at| at.elapsed() <= ENDED_KEPT / 2) {
            return Vec::new();
        }
        tracing::warn!("account cache expired; reading all accounts");
        let former = std::mem::take(&mut *state);
        let account = |(name, known): (UserName, Known)| {
            known.alive.map(|alive| Account { name, incarnation: alive.incarnation })
        };
        former.known.into_iter().filter_map(account).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, name: UserName, change: Known) -> Option<Account> {
        let former = self.known.get(&name);
        if former.is_some_and(|former| former.revision >= change.revision) {
            return None;
        }
        let was = former.and_then(|former| former.alive.as_ref()).map(|alive| alive.incarnation);
        let is = change.alive.as_ref().map(|alive| alive.incarnation);
        self.alive = self.alive + usize::from(is.is_some()) - usize::from(was.is_some());
        if is.is_none() {
            self.ended.push(name.clone());
        }
        self.known.insert(name.clone(), change);
        was.filter(|_| was != is).map(|incarnation| Account { name, incarnation })
    }

    fn is_up_to_date(&mut self, since: Instant) {
        self.known_at = Some(since);
        for name in std::mem::take(&mut self.ended) {
            match self.known.get(&name) {
                Some(known) if known.alive.is_none() && known.revision <= self.read_up_to => {
                    self.known.remove(&name);
                }
                Some(known) if known.alive.is_none() => self.ended.push(name),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::AliveRecord;
    use super::*;

    fn name(text: &str) -> UserName {
        text.parse().unwrap()
    }

    const ENDED: AccountRecord = AccountRecord { mark: 0, is: Existence::Ended(5) };

    fn alive(made_by: Option<u64>, password: Option<PasswordHash>) -> AccountRecord {
        AccountRecord { mark: 0, is: Existence::Alive(AliveRecord { made_by, password }) }
    }

    #[test]
    fn an_older_change_brings_nobody_back() {
        let directory = Directory::default();
        assert_eq!(directory.apply(name("bob"), 5, alive(None, None)), None);
        let bob = directory.account(&name("bob")).unwrap().account;
        assert_eq!((bob.incarnation, directory.len()), (5, 1));
        assert_eq!(directory.apply(name("bob"), 7, ENDED), Some(bob.clone()));
        assert_eq!(directory.apply(name("bob"), 5, alive(None, None)), None);
        assert!(!directory.is_alive(&bob) && directory.account(&name("bob")).is_none());
        assert_eq!((directory.len(), directory.names(None, 9).len()), (0, 0));
        directory.lock().is_up_to_date(Instant::now());
        assert_eq!(directory.lock().known.len(), 1, "it was not read yet");
        directory.lock().read_up_to = 7;
        directory.lock().is_up_to_date(Instant::now());
        assert_eq!(directory.lock().known.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_send_waits_unless_both_ends_were_there_a_moment_ago() {
        let directory = Directory::default();
        directory.apply(name("bob"), 5, alive(None, None));
        directory.apply(name("amy"), 6, alive(None, None));
        let amy = |incarnation| Account { name: name("amy"), incarnation };
        assert!(!directory.knows(&name("bob"), None), "nothing was read yet");
        directory.lock().is_up_to_date(Instant::now());
        assert!(directory.knows(&name("bob"), None) && directory.knows(&name("bob"), Some(&amy(6))));
        assert!(!directory.knows(&name("eve"), None) && !directory.knows(&name("bob"), Some(&amy(4))));
        tokio::time::advance(FRESH + Duration::from_millis(1)).await;
        assert!(!directory.knows(&name("bob"), None));
    }

    #[test]
    fn a_password_changes_no_incarnation_and_a_new_account_does() {
        let directory = Directory::default();
        directory.apply(name("bob"), 5, alive(None, None));
        let hash = PasswordHash::new("hash");
        let protected = alive(Some(5), Some(hash.clone()));
        assert_eq!(directory.apply(name("bob"), 8, protected), None);
        let entry = directory.account(&name("bob")).unwrap();
        assert_eq!((entry.account.incarnation, entry.password), (5, Some(hash)));
        // A new account replaced the record of the deletion before it was read.
        assert_eq!(directory.apply(name("bob"), 12, alive(None, None)), Some(entry.account));
        assert_eq!(directory.account(&name("bob")).unwrap().account.incarnation, 12);
        assert_eq!(directory.len(), 1);
    }
}
