//! Expiry: messages of inboxes that are older than the server keeps them, and accounts that
//! are not in use any more. Both are off unless the server has such a limit.
//!
//! Ages are those of the retention clock: the running time, and at most a day for each stop,
//! so that a wrong wall clock removes nothing. Numbers are assigned in order of time, so a
//! few [marks](AgeMark) tell the ages of all messages: those up to the last number of a mark
//! are at least as old as the mark. A message is kept for at most a sixteenth longer than it
//! should.
//!
//! When a mark expires, or accounts may have become idle, a sweep looks at all accounts, a
//! bounded number in each frame. If only a part of an inbox has expired, the ledger does not
//! know the position at which it ends: the shard looks it up in the log, and purges up to it.

use std::collections::VecDeque;
use std::time::Duration;

use super::changes::Changes;
use super::inboxes::Inbox;
use super::record::Record;
use super::{Ledger, seconds};
use crate::store::{Account, History, Position};

/// The part of a limit by which it may be exceeded.
const PRECISION: u32 = 16;

/// The accounts at which a frame looks.
const SWEEP_MAX: usize = 1000;

/// The accounts and inboxes that a frame removes or empties.
const REMOVED_MAX: usize = 100;

/// The limits on time; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expiry {
    /// How long an inbox keeps a message.
    pub messages_after: Option<Duration>,
    /// How long an account exists without use.
    pub accounts_after: Option<Duration>,
}

impl Expiry {
    /// No limits.
    pub const NONE: Self = Self {
        messages_after: None,
        accounts_after: None,
    };
}

/// The last number at an age of the retention clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AgeMark {
    pub(super) age: Duration,
    pub(super) last: u64,
}

/// Messages of an inbox that have expired: a part of it, up to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartlyExpired {
    /// The messages of the inbox.
    pub(crate) log: History,
    /// The messages up to this number have expired.
    pub(crate) through: u64,
}

/// The marks, in order, and the sweep.
#[derive(Debug, Default)]
pub(super) struct Expiries {
    marks: VecDeque<AgeMark>,
    /// The next slot of a sweep that is under way.
    sweep: Option<u32>,
    /// The number up to which messages had expired at the beginning of the latest sweep.
    swept: u64,
    /// The age at which the next sweep for idle accounts begins.
    sweep_at: Duration,
}

/// The fate of an account in a sweep.
enum Due {
    Idle(Account),
    Expired(Account, Position),
    Partly(PartlyExpired),
    Used(Account),
}

impl Expiries {
    /// Adds a mark, unless it is known already, as in a replay.
    pub(super) fn add(&mut self, mark: AgeMark) {
        let is_later = |last: &AgeMark| mark.age > last.age && mark.last >= last.last;
        if self.marks.back().is_none_or(is_later) {
            self.marks.push_back(mark);
        }
    }

    /// Returns all marks.
    pub(super) fn marks(&self) -> impl Iterator<Item = AgeMark> {
        self.marks.iter().copied()
    }

    /// Returns whether a mark is due.
    fn is_mark_due(&self, now: Duration, keep: Duration) -> bool {
        let since = |last: &AgeMark| now.saturating_sub(last.age);
        let last = self.marks.back();
        last.is_none_or(|last| since(last) >= step(keep))
    }

    /// Returns the number up to which all messages are at least so old, and drops the marks
    /// before it.
    fn expired(&mut self, now: Duration, keep: Duration) -> u64 {
        let is_old = |mark: &AgeMark| now.saturating_sub(mark.age) >= keep;
        while self.marks.get(1).is_some_and(is_old) {
            self.marks.pop_front();
        }
        let first = self.marks.front().copied();
        first.filter(is_old).map_or(0, |mark| mark.last)
    }
}

/// Returns the time in which one event is enough: ages are in whole seconds.
fn step(limit: Duration) -> Duration {
    (limit / PRECISION).max(Duration::from_secs(1))
}

impl Ledger {
    /// Returns whether a sweep is under way, which more frames would continue.
    pub(crate) const fn is_sweeping(&self) -> bool {
        self.expiries.sweep.is_some()
    }

    /// Notes that an account is in use, if idle ones expire.
    pub(crate) fn note_use(&mut self, account: &Account, changes: &mut Changes) {
        let (Some(limit), now) = (self.limits.expiry.accounts_after, self.age) else {
            return;
        };
        if let Some(inbox) = self.inboxes.get_mut(account) {
            inbox.note_use(now, limit, changes);
        }
    }

    /// Drops the marks that are not needed any more, after a replay.
    pub(super) fn prune_marks(&mut self) {
        if let Some(keep) = self.limits.expiry.messages_after {
            self.expiries.expired(self.age, keep);
        }
    }

    /// Continues the sweep, or begins one if it is due.
    pub(super) fn expire(&mut self, changes: &mut Changes) {
        let Expiry {
            messages_after,
            accounts_after,
        } = self.limits.expiry;
        let now = self.age;
        let mut expired = 0;
        if let Some(keep) = messages_after {
            if self.expiries.is_mark_due(now, keep) {
                let last = self.numbers.last();
                let mark = AgeMark { age: now, last };
                self.expiries.add(mark);
                changes.record(&Record::AgeMark(mark));
            }
            expired = self.expiries.expired(now, keep);
        }
        let expiries = &mut self.expiries;
        if expiries.sweep.is_none() {
            let is_idle_due = accounts_after.is_some() && now >= expiries.sweep_at;
            if expired <= expiries.swept && !is_idle_due {
                return;
            }
            expiries.swept = expired;
            expiries.sweep = Some(0);
            if let Some(limit) = accounts_after {
                expiries.sweep_at = now.saturating_add(step(limit));
            }
        }
        self.sweep(changes);
    }

    fn sweep(&mut self, changes: &mut Changes) {
        let Some(from) = self.expiries.sweep else {
            return;
        };
        let (mut due, mut next) = (Vec::new(), None);
        for (seen, (slot, inbox)) in self.inboxes.iter_from(from).enumerate() {
            if seen >= SWEEP_MAX || due.len() >= REMOVED_MAX {
                next = Some(slot);
                break;
            }
            match self.due_account(inbox) {
                Some(Due::Idle(account)) => due.push(Due::Idle(account)),
                used => due.extend(used.into_iter().chain(self.due_messages(inbox))),
            }
        }
        self.expiries.sweep = next;
        for due in due {
            match due {
                Due::Idle(account) => {
                    if self.delete(&account, changes) {
                        tracing::info!(user = %account.name, "idle account removed");
                    }
                }
                Due::Expired(account, through) => {
                    self.purge(account.incarnation, through, changes);
                }
                Due::Partly(partly) => changes.effects.partly_expired.push(partly),
                Due::Used(account) => self.note_use(&account, changes),
            }
        }
    }

    fn due_account(&self, inbox: &Inbox) -> Option<Due> {
        let limit = self.limits.expiry.accounts_after?;
        let used = Duration::from_secs(inbox.used_s.into());
        let unused = self.age.saturating_sub(used);
        // An account without a record is older than the limit.
        let is_used = inbox.used_s == 0 || inbox.devices.is_attached();
        if is_used {
            let is_due = inbox.used_s == 0 || unused >= step(limit);
            return is_due.then(|| Due::Used(inbox.account.clone()));
        }
        let is_idle = unused >= limit && !inbox.is_suspended;
        is_idle.then(|| Due::Idle(inbox.account.clone()))
    }

    fn due_messages(&self, inbox: &Inbox) -> Option<Due> {
        self.limits.expiry.messages_after?;
        let (head, tail, expired) = (inbox.log.head, inbox.log.tail, self.expiries.swept);
        if inbox.log.messages() == 0 || head.sequence.0 >= expired {
            return None;
        }
        if tail.sequence.0 <= expired {
            return Some(Due::Expired(inbox.account.clone(), tail));
        }
        let log = inbox.log.history();
        let through = expired;
        Some(Due::Partly(PartlyExpired { log, through }))
    }
}

impl Inbox {
    /// Notes that the account is in use, and writes that once in a while.
    pub(super) fn note_use(&mut self, now: Duration, limit: Duration, changes: &mut Changes) {
        let used = Duration::from_secs(self.used_s.into());
        if self.used_s == 0 || now.saturating_sub(used) >= step(limit) {
            self.used_s = age_s(now).max(1);
            changes.record(&Record::Used(self.log.id, self.used_s));
        }
    }
}

fn age_s(age: Duration) -> u32 {
    u32::try_from(seconds(age).as_secs()).unwrap_or(u32::MAX)
}
