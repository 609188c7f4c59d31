//! The ledger: the rules of accounts, inboxes, cursors, remembered outcomes, quotas and
//! numbers, as a state machine without I/O, clock or randomness.
//!
//! An operation decides, changes the state at once, and adds the resulting records and
//! effects to [`Changes`]. There is no undo: if the append fails, the ledger is dropped
//! and replayed from the log. Replaying the records gives the same state.
//!
//! | file | content |
//! | --- | --- |
//! | `changes` | the results of decisions: one frame, and its effects |
//! | `inboxes` | accounts and their inboxes |
//! | `sessions`, `dedup` | send sessions and the outcomes of their sends |
//! | `numbers` | the counter |
//! | `record`, `block`, `bytes` | encoding of records and messages |
//! | `replay`, `checkpoint` | the state from records, and as records |
//! | `import` | accounts and messages with existing numbers |
//! | `slots` | slots that stay fixed during a checkpoint |

mod block;
mod bytes;
mod changes;
mod checkpoint;
mod dedup;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod import;
mod inboxes;
mod numbers;
mod record;
mod replay;
mod sessions;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::{Code, Sequence, SessionToken, UserName};

use self::inboxes::{Inbox, Inboxes};
use self::numbers::Numbers;
use self::record::{AccountRecord, Record};
use self::sessions::Sessions;
use crate::log::{Block, Frame};
use crate::store::{
    Account, AccountEntry, Append, Created, End, InboxInfo, Message, Outcome, PasswordHash,
    Position, Publisher, Subscription,
};

pub(crate) use self::block::{BlockContent, Gap, decode, measure, merge};
pub(crate) use self::bytes::Malformed;
pub(crate) use self::changes::{AccountChange, Changes, SubscriptionEnd};
pub(crate) use self::checkpoint::Checkpoint;
pub(crate) use self::dedup::Known;
pub(crate) use self::import::Imported;
#[cfg(feature = "cluster")]
pub(crate) use self::numbers::NUMBERS_PER_SECOND_BITS;
pub use self::numbers::{COUNTER_MAX, WrongClock};
pub(crate) use self::numbers::{counter_at, until_next_second};
pub(crate) use self::replay::Replay;

/// The limits of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Maximum number of accounts.
    pub(crate) accounts_max: usize,
    /// Maximum number of open or remembered sessions.
    pub(crate) sessions_max: usize,
    /// Maximum number of unacknowledged messages in an inbox.
    pub(crate) queued_messages_max: u64,
    /// Maximum bytes of their texts.
    pub(crate) queued_bytes_max: u64,
}

/// The environment of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    /// The running time of the store. It never decreases, not even over a restart.
    pub(crate) running: Duration,
    /// Free space is below the reserve: no message is stored.
    pub(crate) is_low_on_space: bool,
}

/// Accounts, inboxes, sessions and the counter, including all decisions of the frame
/// under construction.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    inboxes: Inboxes,
    sessions: Sessions,
    numbers: Numbers,
    /// The time of the last message, in milliseconds since 1970.
    time_ms: u64,
    running: Duration,
    /// Named senders have been checked by the caller: their accounts may be in other
    /// shards.
    are_senders_vouched_for: bool,
}

impl Ledger {
    /// Returns a ledger without accounts whose numbers come after `counter`.
    pub(crate) fn new(limits: Limits, counter: u64) -> Self {
        Self {
            limits,
            inboxes: Inboxes::default(),
            sessions: Sessions::new(limits.sessions_max),
            numbers: Numbers::after(counter),
            time_ms: 0,
            running: Duration::ZERO,
            are_senders_vouched_for: false,
        }
    }

    /// Trusts named senders from now on: their accounts may be in other shards, whose
    /// owners have checked them.
    #[cfg(feature = "cluster")]
    pub(crate) const fn vouch_for_senders(&mut self) {
        self.are_senders_vouched_for = true;
    }

    /// Returns the running time of the last frame.
    pub(crate) const fn running(&self) -> Duration {
        self.running
    }

    /// Returns the last assigned number.
    pub(crate) const fn counter(&self) -> u64 {
        self.numbers.last()
    }

    /// Begins a frame, and forgets expired sessions.
    pub(crate) fn begin(&mut self, context: Context, changes: &mut Changes) {
        self.running = self.running.max(context.running);
        changes.begin(self.time_ms, self.running, self.numbers.last());
        self.sessions.forget_idle(self.running, |forgotten| {
            if forgotten.is_recorded {
                changes.record(&Record::SessionEnd(forgotten.slot));
            }
        });
    }

    /// Completes the frame; `None` if there is nothing to append.
    pub(crate) fn finish(&self, changes: &mut Changes) -> Option<Frame> {
        changes.take_frame(self.time_ms)
    }

    /// Completes a frame without changes.
    pub(crate) fn finish_empty(&self, changes: &mut Changes) -> Frame {
        changes.take_whole_frame(self.time_ms)
    }

    /// Returns a frame without changes, outside of any other frame.
    #[cfg(feature = "cluster")]
    pub(crate) fn empty_frame(&self, changes: &mut Changes) -> Frame {
        changes.begin(self.time_ms, self.running, self.numbers.last());
        changes.take_whole_frame(self.time_ms)
    }

    /// Creates an account.
    pub(crate) fn create(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        changes: &mut Changes,
    ) -> Created {
        if self.inboxes.contains(name) {
            return Created::Exists;
        }
        if self.inboxes.len() >= self.limits.accounts_max {
            return Created::TooMany;
        }
        self.insert(name, password, Position::default(), changes)
    }

    fn insert(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        cursor: Position,
        changes: &mut Changes,
    ) -> Created {
        let incarnation = self.next_number(changes);
        let record = AccountRecord {
            name: name.clone(),
            incarnation,
            password,
            is_suspended: false,
            cursor,
            tail: cursor,
        };
        let slot = self.inboxes.insert(Inbox::new(record));
        let Some(inbox) = slot.and_then(|slot| self.inboxes.at(slot)) else {
            return Created::TooMany;
        };
        inbox.write(changes);
        Created::Created
    }

    /// Sets a password if it is still `old`. Returns whether it was.
    pub(crate) fn set_password(
        &mut self,
        account: &Account,
        old: Option<&PasswordHash>,
        new: PasswordHash,
        changes: &mut Changes,
    ) -> bool {
        let inbox = self.inboxes.get_mut(account);
        let Some(inbox) = inbox.filter(|inbox| inbox.password.as_ref() == old) else {
            return false;
        };
        inbox.password = Some(new);
        inbox.write(changes);
        true
    }

    /// Suspends or resumes an account. Returns false if it has ended.
    pub(crate) fn set_suspended(
        &mut self,
        account: &Account,
        is_suspended: bool,
        changes: &mut Changes,
    ) -> bool {
        let Some(inbox) = self.inboxes.get_mut(account) else {
            return false;
        };
        if inbox.is_suspended != is_suspended {
            inbox.is_suspended = is_suspended;
            inbox.write(changes);
        }
        true
    }

    /// Returns the inboxes of these names, without those that do not exist.
    pub(crate) fn inspect(&self, names: &[UserName]) -> Vec<InboxInfo> {
        let inboxes = names.iter().filter_map(|name| self.inboxes.get(name));
        inboxes.map(Inbox::info).collect()
    }

    /// Returns the number of accounts.
    pub(crate) fn account_count(&self) -> usize {
        self.inboxes.len()
    }

    /// Ends an account and its messages. Returns whether it existed.
    pub(crate) fn delete(&mut self, account: &Account, changes: &mut Changes) -> bool {
        if !self.inboxes.is_alive(account) {
            return false;
        }
        let Some(inbox) = self.inboxes.remove(&account.name) else {
            return false;
        };
        changes.record(&Record::AccountEnd(account.incarnation));
        let effects = &mut changes.effects;
        effects
            .accounts
            .push(AccountChange::Ended(account.name.clone()));
        effects.ended.push(account.incarnation);
        effects.is_awaited = true;
        if let Some(publisher) = inbox.publisher {
            effects.end(account, publisher, End::Deleted);
        }
        true
    }

    /// Stores or refuses a message, or returns its remembered outcome. A refusal for lack
    /// of space is remembered only when a later send of the session gets an outcome: from
    /// then on, a repeat would be out of order.
    pub(crate) fn append(
        &mut self,
        mut append: Append,
        context: Context,
        changes: &mut Changes,
    ) -> Outcome {
        let Some(send) = append.send_id.take() else {
            return self.decide(append, context, changes);
        };
        let (id, now) = (send.id.value(), context.running);
        match self.sessions.look_up(&send.session, id, send.from, now) {
            None => Outcome::Refused(Code::TooMany),
            Some((_, Known::Decided(outcome))) => outcome,
            Some((_, Known::Skipped)) if send.in_order => Outcome::Refused(Code::BadRequest),
            Some((_, Known::Expired)) => Outcome::Refused(Code::BadRequest),
            Some((slot, Known::New | Known::Skipped)) => {
                let outcome = self.decide(append, context, changes);
                if outcome != Outcome::Refused(Code::NoSpace) {
                    for run in self.sessions.take_deferred(slot, id) {
                        for deferred in run.ids() {
                            self.remember(slot, deferred, run.outcome, now, changes);
                        }
                    }
                    self.remember(slot, id, outcome, now, changes);
                } else if send.in_order {
                    self.sessions.defer(slot, id, outcome);
                }
                outcome
            }
        }
    }

    fn remember(
        &mut self,
        slot: u32,
        id: u32,
        outcome: Outcome,
        now: Duration,
        changes: &mut Changes,
    ) {
        if let Some(session) = self.sessions.record(slot, id, outcome, now) {
            changes.record(&Record::Session(session));
        }
        changes.record_outcome(slot, id, outcome);
        changes.effects.is_awaited = true;
    }

    fn decide(&mut self, append: Append, context: Context, changes: &mut Changes) -> Outcome {
        self.store(append, context, changes)
            .map_or_else(Outcome::Refused, Outcome::Stored)
    }

    /// Stores a message, unless a rule forbids it.
    fn store(
        &mut self,
        append: Append,
        context: Context,
        changes: &mut Changes,
    ) -> Result<Sequence, Code> {
        if let Some(code) = append.refusal {
            return Err(code);
        }
        let is_vouched_for = self.are_senders_vouched_for;
        let mut is_suspended = false;
        let sender = append.sender.filter(|sender| {
            let own = self.inboxes.get(&sender.name);
            let own = own.filter(|own| own.account.incarnation == sender.incarnation);
            is_suspended = own.is_some_and(|own| own.is_suspended);
            is_vouched_for || own.is_some()
        });
        if is_suspended {
            return Err(Code::Denied);
        }
        let inbox = self.inboxes.by_name(&append.to).ok_or(Code::NoSuchUser)?;
        if sender.is_none() && !append.allow_anonymous {
            return Err(Code::Denied);
        }
        let bytes = append.text.len() as u64;
        if inbox.queued_messages() >= self.limits.queued_messages_max
            || inbox.queued_bytes().saturating_add(bytes) > self.limits.queued_bytes_max
        {
            return Err(Code::QueueFull);
        }
        if context.is_low_on_space {
            return Err(Code::NoSpace);
        }
        let sequence = Sequence(next_number(&mut self.numbers, changes));
        let position = Position {
            sequence,
            messages: inbox.tail.messages + 1,
            bytes: inbox.tail.bytes + bytes,
        };
        self.time_ms = self.time_ms.max(append.time_ms);
        let sender = sender.map(|sender| sender.name);
        inbox.push(
            Message {
                position,
                sender,
                time_ms: self.time_ms,
                text: append.text,
            },
            changes,
        );
        changes.effects.is_awaited = true;
        Ok(sequence)
    }

    /// Returns whether the inbox of an account has no subscription.
    pub(crate) fn is_free(&mut self, account: &Account) -> bool {
        self.inboxes
            .get_mut(account)
            .is_some_and(|inbox| inbox.publisher.as_ref().is_none_or(Publisher::is_ended))
    }

    /// Subscribes to an inbox, and ends its former subscription. Returns `None` if the
    /// account has ended.
    pub(crate) fn subscribe(
        &mut self,
        account: &Account,
        changes: &mut Changes,
    ) -> Option<Subscription> {
        let inbox = self.inboxes.get_mut(account)?;
        let (publisher, subscription) =
            Subscription::new(account.clone(), inbox.queued_messages(), inbox.cursor);
        if let Some(former) = inbox.publisher.replace(publisher) {
            changes.effects.end(account, former, End::TakenOver);
        }
        Some(subscription)
    }

    /// Forgets all messages up to `position`.
    pub(crate) fn acknowledge(
        &mut self,
        account: &Account,
        position: Position,
        changes: &mut Changes,
    ) {
        let Some(inbox) = self.inboxes.get_mut(account) else {
            return;
        };
        // A position from outside must not exceed the end of the inbox.
        let position = if position.sequence < inbox.tail.sequence {
            position
        } else {
            inbox.tail
        };
        if position.sequence <= inbox.cursor.sequence {
            return;
        }
        inbox.cursor = position;
        changes.record(&Record::Cursor(account.incarnation, position));
        changes
            .effects
            .cursors
            .push((account.incarnation, position));
    }

    /// Replaces blocks of an inbox by merged ones, except those that are acknowledged by
    /// now. Changes no quota and notifies no subscription.
    pub(crate) fn replace_blocks(
        &mut self,
        account: &Account,
        merged: impl IntoIterator<Item = Block>,
        changes: &mut Changes,
    ) {
        let Some(inbox) = self.inboxes.get_mut(account) else {
            return;
        };
        for block in merged {
            if block.last > inbox.cursor.sequence.0 {
                changes.add_merged(block);
            }
        }
    }

    /// Adds a connection to a session. Returns whether there is room for the session.
    pub(crate) fn open_session(
        &mut self,
        session: &SessionToken,
        from: Option<IpAddr>,
        now: Duration,
    ) -> bool {
        self.sessions.open(session, from, now)
    }

    /// Removes a connection from a session.
    pub(crate) fn close_session(&mut self, session: &SessionToken, now: Duration) {
        self.sessions.close(session, now);
    }

    /// Inherits subscriptions and open sessions from the ledger before a failure of the
    /// log. `lost` are unpublished ends of subscriptions, whose changes may be lost.
    /// Returns the acknowledgements to repeat.
    pub(crate) fn inherit_from(
        &mut self,
        former: Self,
        lost: Vec<SubscriptionEnd>,
        now: Duration,
    ) -> Vec<(Account, Position)> {
        for (token, open) in former.sessions.open_counts() {
            self.sessions.reopen(token, open, now);
        }
        let mut acks = Vec::new();
        let mut subscriptions = HashMap::new();
        for Inbox {
            account,
            cursor,
            publisher,
            ..
        } in former.inboxes.into_inboxes()
        {
            if self
                .inboxes
                .get_mut(&account)
                .is_some_and(|inbox| inbox.cursor.sequence < cursor.sequence)
            {
                acks.push((account.clone(), cursor));
            }
            if let Some(publisher) = publisher {
                subscriptions.insert(account, publisher);
            }
        }
        // The subscription that was replaced or ended first is the committed one.
        for end in lost.into_iter().rev() {
            subscriptions.insert(end.account, end.publisher);
        }
        for (account, publisher) in subscriptions {
            match self.inboxes.get_mut(&account) {
                Some(inbox) => inbox.publisher.insert(publisher).lagged(),
                None => publisher.end(End::Deleted),
            }
        }
        acks
    }

    /// Looks up an account.
    pub(crate) fn account(&self, name: &UserName) -> Option<AccountEntry> {
        self.inboxes.get(name).map(Inbox::entry)
    }

    /// Returns the cursor and the last position of an inbox; `None` if its account has
    /// ended.
    #[cfg(feature = "cluster")]
    pub(crate) fn positions(&self, account: &Account) -> Option<(Position, Position)> {
        let inbox = self.inboxes.get(&account.name);
        let inbox = inbox.filter(|inbox| inbox.account.incarnation == account.incarnation)?;
        Some((inbox.cursor, inbox.tail))
    }

    /// Returns the accounts in any order.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = AccountEntry> {
        self.inboxes.iter_from(0).map(|(_, inbox)| inbox.entry())
    }

    /// Returns the accounts with the cursors and the last positions of their inboxes.
    pub(crate) fn inboxes(&self) -> impl Iterator<Item = (AccountEntry, Position, Position)> {
        self.inboxes
            .iter_from(0)
            .map(|(_, inbox)| (inbox.entry(), inbox.cursor, inbox.tail))
    }

    /// Moves the last position of an inbox to a later one.
    pub(crate) fn raise_tail(&mut self, account: &Account, tail: Position) {
        if let Some(inbox) = self.inboxes.get_mut(account)
            && inbox.tail.sequence < tail.sequence
        {
            inbox.tail = tail;
        }
    }

    fn next_number(&mut self, changes: &mut Changes) -> u64 {
        next_number(&mut self.numbers, changes)
    }
}

fn next_number(numbers: &mut Numbers, changes: &mut Changes) -> u64 {
    let (number, bound) = numbers.next();
    if let Some(bound) = bound {
        reserve(bound, changes);
    }
    number
}

fn reserve(bound: u64, changes: &mut Changes) {
    changes.record(&Record::Counter(bound));
    changes.effects.is_reserving = true;
}
