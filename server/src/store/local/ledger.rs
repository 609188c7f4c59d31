//! The rules of the local store: what becomes of an append, an account, a
//! session, an acknowledgement. A state machine without I/O and without a
//! clock: an operation changes the state at once and adds to [`Changes`] what
//! is to be written, and what is to be said once that is written. Where the
//! writing fails the whole ledger is thrown away and loaded again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Code, Sequence, SessionToken, UserName};

use super::changes::{Appended, Changes, Notice};
use super::engine::Table;
use super::load::Loaded;
use super::record::{self, Block, RESERVED_KEY};
use super::sessions::Sessions;
use super::{Entry, LocalConfig};
use crate::store::outcomes::Known;
use crate::store::{
    Account, Append, Created, End, Feed, Message, Outcome, PasswordHash, Position, Receiver, Unavailable,
};

/// Numbers that are set aside at a time. They are lost where the store ends.
const RESERVED_NUMBERS: u64 = 65_536;

/// What a message costs beside its text, in bytes, about.
const MESSAGE_BYTES: u64 = 24;

/// Where nothing is gathered.
const NOWHERE: usize = usize::MAX;

/// Accounts, inboxes, sessions and the counter, as they are after everything
/// that has been decided.
#[derive(Debug)]
pub(super) struct Ledger {
    config: LocalConfig,
    inboxes: HashMap<UserName, Inbox>,
    sessions: Sessions,
    numbers: Numbers,
    living_bytes: u64,
    dead_bytes: u64,
}

#[derive(Debug)]
struct Inbox {
    incarnation: u64,
    password: Option<PasswordHash>,
    /// The last message that is forgotten.
    head: Position,
    /// The last message.
    tail: Position,
    feed: Option<Feed>,
    /// Where its messages of this commit are gathered, if those are its own.
    gathered_at: usize,
}

/// The one counter of the store, for sequence numbers and incarnations.
#[derive(Debug)]
struct Numbers {
    next: u64,
    reserved: u64,
}

impl Ledger {
    /// The state that was loaded. Every session counts as used `now`.
    pub(super) fn new(config: LocalConfig, loaded: Loaded, now: Duration) -> Self {
        let mut sessions = Sessions::new(config.sessions_max);
        for (token, outcomes) in loaded.sessions {
            sessions.restore(token, outcomes, now);
        }
        let inboxes: HashMap<_, _> = loaded
            .accounts
            .into_iter()
            .map(|a| {
                let (incarnation, password) = (a.incarnation, a.password);
                (a.name, Inbox::new(incarnation, password, a.head, a.tail))
            })
            .collect();
        let living_bytes = inboxes.values().map(|inbox| inbox.cost_between(inbox.head, inbox.tail)).sum();
        Self {
            config,
            living_bytes,
            dead_bytes: loaded.message_bytes.saturating_sub(living_bytes),
            inboxes,
            sessions,
            numbers: Numbers { next: loaded.reserved, reserved: loaded.reserved },
        }
    }

    /// The accounts and their cursors.
    pub(super) fn cursors(&self) -> HashMap<u64, u64> {
        self.inboxes.values().map(|inbox| (inbox.incarnation, inbox.head.sequence.0)).collect()
    }

    /// Makes an account.
    pub(super) fn create(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        changes: &mut Changes,
    ) -> Created {
        if self.inboxes.contains_key(name) {
            return Created::Exists;
        }
        if self.inboxes.len() >= self.config.accounts_max {
            return Created::TooMany;
        }
        let incarnation = self.numbers.next(changes);
        let inbox = Inbox::new(incarnation, password, Position::default(), Position::default());
        inbox.write_account(name, changes);
        changes.begun.push(incarnation);
        self.inboxes.insert(name.clone(), inbox);
        Created::Created
    }

    /// Sets a password if it is still `old`; whether it was.
    pub(super) fn set_password(
        &mut self,
        account: &Account,
        old: Option<&PasswordHash>,
        new: PasswordHash,
        changes: &mut Changes,
    ) -> bool {
        let Some(inbox) = self.inbox(account).filter(|inbox| inbox.password.as_ref() == old) else {
            return false;
        };
        inbox.password = Some(new);
        inbox.write_account(&account.name, changes);
        true
    }

    /// Ends an account; whether it was there. Its messages die with it: nobody
    /// will ask for them under its incarnation any more.
    pub(super) fn delete(&mut self, account: &Account, changes: &mut Changes) -> bool {
        if self.inbox(account).is_none() {
            return false;
        }
        let Some(inbox) = self.inboxes.remove(&account.name) else { return false };
        self.bury(inbox.cost_between(inbox.head, inbox.tail));
        changes.batch.remove(Table::Accounts, account.name.as_str());
        changes.batch.remove(Table::Cursors, account.incarnation.to_be_bytes());
        changes.directory.push((account.name.clone(), None));
        changes.ended.push(account.incarnation);
        changes.awaited = true;
        if let Some(feed) = inbox.feed {
            changes.end(account, feed, End::Deleted);
        }
        true
    }

    /// Stores a message, or refuses it, or yields what was decided before.
    pub(super) fn append(
        &mut self,
        append: &mut Append,
        now: Duration,
        changes: &mut Changes,
    ) -> Result<Outcome, Unavailable> {
        if append.fence.is_closed() {
            return Err(Unavailable);
        }
        let Some(send) = append.send_id.take() else { return Ok(self.decide(append, changes)) };
        let known = self.sessions.look_up(&send.session, send.id.value(), send.from, now);
        Ok(match known {
            None => Outcome::Refused(Code::TooMany),
            Some(Known::Decided(outcome)) => outcome,
            Some(Known::LeftOut) if send.in_order => Outcome::Refused(Code::BadRequest),
            Some(Known::Old) => Outcome::Refused(Code::BadRequest),
            Some(Known::New | Known::LeftOut) => {
                let outcome = self.decide(append, changes);
                self.sessions.record(&send.session, send.id.value(), outcome, now);
                changes.awaited = true;
                outcome
            }
        })
    }

    fn decide(&mut self, append: &mut Append, changes: &mut Changes) -> Outcome {
        self.store(append, changes).map_or_else(Outcome::Refused, Outcome::Stored)
    }

    /// Stores a message, whose text it takes, unless there is something against
    /// it.
    fn store(&mut self, append: &mut Append, changes: &mut Changes) -> Result<Sequence, Code> {
        if let Some(code) = append.refusal {
            return Err(code);
        }
        let sender = append.sender.take().filter(|sender| self.is_alive(sender));
        let inbox = self.inboxes.get_mut(&append.to).ok_or(Code::NoSuchUser)?;
        if sender.is_none() && !append.from_nobody {
            return Err(Code::Denied);
        }
        let bytes = append.text.len() as u64;
        if inbox.queued_messages() >= self.config.queued_messages_max
            || inbox.queued_bytes().saturating_add(bytes) > self.config.queued_bytes_max
        {
            return Err(Code::QueueFull);
        }
        let position = Position {
            sequence: Sequence(self.numbers.next(changes)),
            messages: inbox.tail.messages + 1,
            bytes: inbox.tail.bytes + bytes,
        };
        self.living_bytes += inbox.cost_between(inbox.tail, position);
        let (sender, text) = (sender.map(|sender| sender.name), std::mem::take(&mut append.text));
        inbox.gather(Message { position, sender, time_ms: append.time_ms, text }, changes);
        changes.awaited = true;
        Ok(position.sequence)
    }

    /// Whether nobody receives.
    pub(super) fn is_free(&mut self, account: &Account) -> bool {
        self.inbox(account).is_some_and(|inbox| inbox.feed.as_ref().is_none_or(Feed::is_ended))
    }

    /// Begins to receive; who did before is told.
    pub(super) fn receive(&mut self, account: &Account, changes: &mut Changes) -> Option<Receiver> {
        let inbox = self.inbox(account)?;
        let (feed, receiver) = Receiver::new(account.clone(), inbox.queued_messages(), inbox.head);
        // What comes from here on is for another.
        inbox.gathered_at = NOWHERE;
        if let Some(former) = inbox.feed.replace(feed) {
            changes.end(account, former, End::TakenOver);
        }
        Some(receiver)
    }

    /// Forgets every message up to `position`.
    pub(super) fn acknowledge(&mut self, account: &Account, position: Position, changes: &mut Changes) {
        let Some(inbox) = self.inbox(account) else { return };
        // A position from elsewhere must not lead beyond the inbox.
        let position = if position.sequence < inbox.tail.sequence { position } else { inbox.tail };
        if position.sequence <= inbox.head.sequence {
            return;
        }
        let cost = inbox.cost_between(inbox.head, position);
        inbox.head = position;
        let key = inbox.incarnation.to_be_bytes();
        changes.batch.put(Table::Cursors, key, record::encode_cursor(&key, position));
        changes.cursors.push((inbox.incarnation, position.sequence.0));
        self.bury(cost);
    }

    /// Counts a connection of a session; false where there is no room for one.
    pub(super) fn open_session(
        &mut self,
        session: &SessionToken,
        from: Option<IpAddr>,
        now: Duration,
    ) -> bool {
        self.sessions.open(session, from, now)
    }

    /// Counts a connection of a session less.
    pub(super) fn close_session(&mut self, session: &SessionToken, now: Duration) {
        self.sessions.close(session, now);
    }

    /// Forgets the sessions whose time has come.
    pub(super) fn forget_sessions(&mut self, now: Duration, changes: &mut Changes) {
        for token in self.sessions.forget_idle(now) {
            changes.batch.remove(Table::Sessions, token.as_str());
        }
    }

    /// Adds what is written once for all decisions: the messages of each inbox,
    /// and the sessions' outcomes.
    pub(super) fn write_gathered(&mut self, changes: &mut Changes) {
        for block in changes.appended.iter_mut().filter_map(|appended| appended.block.take()) {
            let (key, value) = block.finish();
            changes.batch.put(Table::Messages, key, value);
        }
        self.sessions.write_changed(|token, outcomes| {
            let key = token.as_str();
            changes.batch.put(Table::Sessions, key, record::encode_session(key.as_bytes(), outcomes));
        });
    }

    /// Whether the dead messages outweigh the living ones, and are so many bytes.
    pub(super) const fn is_merge_due(&self, dead_bytes_min: u64) -> bool {
        self.dead_bytes >= dead_bytes_min && self.dead_bytes > self.living_bytes
    }

    /// The dead messages are being cleared away.
    pub(super) const fn merge_began(&mut self) {
        self.dead_bytes = 0;
    }

    /// Takes over what outlives a failure of the engine: who receives, which
    /// sessions are open, and what was acknowledged. `failed` are the notices
    /// that were never delivered, since their changes may not have been made.
    pub(super) fn succeed(
        &mut self,
        former: Self,
        failed: Vec<Notice>,
        now: Duration,
        changes: &mut Changes,
    ) {
        for (token, open) in former.sessions.open_counts() {
            self.sessions.reopen(token, open, now);
        }
        let mut feeds = HashMap::new();
        for (name, inbox) in former.inboxes {
            let account = Account { name, incarnation: inbox.incarnation };
            self.acknowledge(&account, inbox.head, changes);
            if let Some(feed) = inbox.feed {
                feeds.insert(account, feed);
            }
        }
        // The first to be replaced, or to be ended, was the one that received.
        for notice in failed.into_iter().rev() {
            feeds.insert(notice.account, notice.feed);
        }
        for (account, feed) in feeds {
            self.reattach(&account, feed);
        }
    }

    fn reattach(&mut self, account: &Account, feed: Feed) {
        match self.inbox(account) {
            Some(inbox) => inbox.feed.insert(feed).lagged(),
            None => feed.end(End::Deleted),
        }
    }

    fn inbox(&mut self, account: &Account) -> Option<&mut Inbox> {
        self.inboxes.get_mut(&account.name).filter(|inbox| inbox.incarnation == account.incarnation)
    }

    fn is_alive(&self, account: &Account) -> bool {
        self.inboxes.get(&account.name).is_some_and(|inbox| inbox.incarnation == account.incarnation)
    }

    fn bury(&mut self, bytes: u64) {
        self.living_bytes = self.living_bytes.saturating_sub(bytes);
        self.dead_bytes = self.dead_bytes.saturating_add(bytes);
    }
}

impl Inbox {
    const fn new(incarnation: u64, password: Option<PasswordHash>, head: Position, tail: Position) -> Self {
        Self { incarnation, password, head, tail, feed: None, gathered_at: NOWHERE }
    }

    /// Adds the next message to those of this commit.
    fn gather(&mut self, message: Message, changes: &mut Changes) {
        let takes =
            |appended: &Appended| appended.block.as_ref().is_some_and(|block| block.takes(self.incarnation));
        if !changes.appended.get(self.gathered_at).is_some_and(takes) {
            self.gathered_at = changes.appended.len();
            self.feed.take_if(|feed| feed.is_ended());
            let news = self.feed.clone().map(|feed| (feed, Vec::new()));
            changes.appended.push(Appended { block: Some(Block::after(self.tail, self.incarnation)), news });
        }
        self.tail = message.position;
        let Some(Appended { block, news }) = changes.appended.get_mut(self.gathered_at) else { return };
        if let Some(block) = block {
            block.push(&message);
        }
        if let Some((_, messages)) = news {
            messages.push(Arc::new(message));
        }
    }

    const fn queued_messages(&self) -> u64 {
        self.tail.messages.saturating_sub(self.head.messages)
    }

    const fn queued_bytes(&self) -> u64 {
        self.tail.bytes.saturating_sub(self.head.bytes)
    }

    /// What the messages between two positions cost in space.
    fn cost_between(&self, from: Position, to: Position) -> u64 {
        to.messages.saturating_sub(from.messages) * MESSAGE_BYTES + to.bytes.saturating_sub(from.bytes)
    }

    fn entry(&self) -> Entry {
        Entry { incarnation: self.incarnation, password: self.password.clone() }
    }

    fn write_account(&self, name: &UserName, changes: &mut Changes) {
        let value =
            record::encode_account(name.as_str().as_bytes(), self.incarnation, self.password.as_ref());
        changes.batch.put(Table::Accounts, name.as_str(), value);
        changes.directory.push((name.clone(), Some(self.entry())));
        changes.awaited = true;
    }
}

impl Numbers {
    fn next(&mut self, changes: &mut Changes) -> u64 {
        if self.next >= self.reserved {
            self.reserved = self.next + RESERVED_NUMBERS;
            let value = record::encode_number(RESERVED_KEY, self.reserved);
            changes.batch.put(Table::Meta, RESERVED_KEY, value);
            changes.reserved = true;
        }
        // 0 stands for the place before the first message.
        self.next += 1;
        self.next
    }
}
