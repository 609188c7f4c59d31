//! Stores and refuses messages to a name.

use bytes::Bytes;
use hark_protocol::{Code, Sequence};
use tokio::time::Instant;

use super::{Command, Job, Lane, PATIENCE, PAUSE_MIN, Tail, latest};
use crate::store::cluster::engine::{
    BATCH_MESSAGES_MAX, Found, Group, Lost, MessageId, NotStored, Stored, random_id,
};
use crate::store::cluster::record::{END, Letter, Told, decode_message, decode_refusal, encode_refusal};
use crate::store::cluster::setup::KEPT;
use crate::store::{Account, AccountEntry, Append, Completer, Outcome, Position, SendId, Unavailable};

/// Maximum bytes of text in one batch, which has at least one message.
const BATCH_BYTES_MAX: usize = 512 * 1024;

/// A message to be stored.
struct Item {
    append: Append,
    completer: Completer<Outcome>,
    deadline: Instant,
    id: MessageId,
    /// It was published with an unknown outcome.
    tried: bool,
}

impl Lane {
    pub(super) async fn append(&mut self, append: Append, completer: Completer<Outcome>, deadline: Instant) {
        let mut items = vec![Item::new(append, completer, deadline)];
        self.gather(&mut items);
        let mut one_by_one = false;
        let mut was_lost = false;
        loop {
            items = self.without_hopeless(items);
            if items.is_empty() {
                return;
            }
            match self.store(&mut items, one_by_one).await {
                Ok(()) if was_lost => {
                    // The notification of a message with a lost answer may be lost as
                    // well.
                    if let Some(entry) = self.shared.directory.account(&self.name) {
                        self.shared.tell(&entry.account, Told::Stored).await;
                    }
                }
                Ok(()) => {}
                Err(NotStored::Moved) => self.tail = None,
                Err(NotStored::HoldsRepeat) => one_by_one = true,
                Err(error) => {
                    self.tail = None;
                    was_lost |= error == NotStored::Lost;
                    // A busy engine may accept single messages.
                    one_by_one |= error == NotStored::Busy;
                    self.pause_once().await;
                }
            }
        }
    }

    /// Adds waiting appends as far as they fit into one batch.
    fn gather(&mut self, items: &mut Vec<Item>) {
        let mut bytes: usize = items.iter().map(|item| item.append.text.len()).sum();
        while items.len() < BATCH_MESSAGES_MAX && bytes < BATCH_BYTES_MAX && self.next.is_none() {
            match self.jobs.try_recv() {
                Ok(Job { command: Command::Append(append, completer), deadline }) => {
                    bytes += append.text.len();
                    items.push(Item::new(append, completer, deadline));
                }
                Ok(other) => self.next = Some(other),
                Err(_) => return,
            }
        }
    }

    /// Completes items past their deadline, and those of fenced connections, as
    /// unavailable.
    fn without_hopeless(&self, items: Vec<Item>) -> Vec<Item> {
        let now = Instant::now();
        let (hopeless, rest): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|item| item.deadline <= now || item.is_fenced());
        for item in hopeless {
            self.decide(item, Err(Unavailable));
        }
        rest
    }

    /// Completes as many items as it can: refusals, and either all other items or the
    /// first of them.
    async fn store(&mut self, items: &mut Vec<Item>, one_by_one: bool) -> Result<(), NotStored> {
        let Some(entry) = self.recipient(items).await? else {
            return self.refuse_all(items, Code::NoSuchUser).await;
        };
        let account = entry.account;
        let mut position = self.tail(&account).await?.position;
        let expected = self.tail(&account).await?.last;
        let cursor = self.cursor_for(&account, position, items).await?;
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(item) = items.get(at) {
            let after = Position {
                sequence: Sequence(0),
                messages: position.messages + 1,
                bytes: position.bytes + item.append.text.len() as u64,
            };
            if let Some(code) = self.objection(item, cursor, after) {
                self.refuse(items, at, code).await?;
                continue;
            }
            if one_by_one && at > 0 {
                break;
            }
            messages.push((item.id.clone(), self.letter(&item.append, after)));
            position = after;
            at += 1;
        }
        self.publish(items, &account, expected, messages, position).await
    }

    /// Returns the account of this name. Returns `None` only after an update of the
    /// accounts that began after the last item was requested.
    async fn recipient(&self, items: &[Item]) -> Result<Option<AccountEntry>, NotStored> {
        let found = self.shared.directory.account(&self.name);
        let asked_at = items.iter().map(|item| item.deadline - PATIENCE).max();
        match asked_at.filter(|_| found.is_none()) {
            Some(asked_at) => {
                self.shared.refresh(asked_at).await.map_err(|Lost| NotStored::Lost)?;
                Ok(self.shared.directory.account(&self.name))
            }
            None => Ok(found),
        }
    }

    async fn publish(
        &mut self,
        items: &mut Vec<Item>,
        account: &Account,
        expected: u64,
        messages: Vec<(MessageId, Bytes)>,
        position: Position,
    ) -> Result<(), NotStored> {
        let count = messages.len();
        if count == 0 {
            return Ok(());
        }
        let group = Group { subject: self.shared.names.inbox(account), expected, messages };
        let stored = self.shared.publish_to_inbox(&self.name, group).await;
        if stored == Err(NotStored::Lost) {
            items.iter_mut().take(count).for_each(|item| item.tried = true);
        }
        let Stored { sequence: last, duplicate } = stored?;
        self.pause = PAUSE_MIN;
        self.tail = (!duplicate).then_some(Tail { incarnation: account.incarnation, last, position });
        if duplicate {
            // A duplicate is reported only for a single message.
            let outcome = self.outcome_at(last).await?;
            items.drain(..count).for_each(|item| self.decide(item, Ok(outcome)));
            return Ok(());
        }
        // The sequences of a group are consecutive.
        let first = (last + 1).saturating_sub(count as u64);
        for (sequence, item) in (first..).zip(items.drain(..count)) {
            self.decide(item, Ok(Outcome::Stored(Sequence(sequence))));
        }
        Ok(())
    }

    fn letter(&self, append: &Append, after: Position) -> Bytes {
        let sender = append.sender.as_ref().filter(|sender| self.shared.directory.is_alive(sender));
        Letter {
            messages: after.messages,
            bytes: after.bytes,
            time_ms: append.time_ms,
            sender: sender.map(|sender| &sender.name),
            text: &append.text,
        }
        .encode()
    }

    /// Returns the code with which the item must be refused, if any.
    fn objection(&self, item: &Item, cursor: Position, after: Position) -> Option<Code> {
        let append = &item.append;
        if append.refusal.is_some() {
            return append.refusal;
        }
        let has_sender = append.sender.as_ref().is_some_and(|sender| self.shared.directory.is_alive(sender));
        if !has_sender && !append.from_nobody {
            return Some(Code::Denied);
        }
        (!self.shared.config.holds(cursor, after)).then_some(Code::QueueFull)
    }

    async fn refuse_all(&mut self, items: &mut Vec<Item>, code: Code) -> Result<(), NotStored> {
        while let Some(item) = items.first() {
            let code = item.append.refusal.unwrap_or(code);
            self.refuse(items, 0, code).await?;
        }
        Ok(())
    }

    /// Refuses the item at this index, unless it already has an outcome. The refusal is
    /// stored under the send's id, so that a later attempt at any server finds it, and
    /// cannot store the message behind later ones.
    async fn refuse(&mut self, items: &mut Vec<Item>, at: usize, code: Code) -> Result<(), NotStored> {
        let Some(item) = items.get(at) else { return Ok(()) };
        let mut outcome = Outcome::Refused(code);
        if item.append.send_id.is_some() || item.tried {
            let (subject, bytes) = (self.shared.names.refusals(&self.name), encode_refusal(code));
            let stored = self.shared.engine.publish_for(KEPT, &subject, &item.id, None, bytes).await?;
            if stored.duplicate {
                outcome = self.outcome_at(stored.sequence).await?;
            }
        }
        let item = items.remove(at);
        self.decide(item, Ok(outcome));
        Ok(())
    }

    /// Returns the outcome recorded by the message with this sequence.
    async fn outcome_at(&self, sequence: u64) -> Result<Outcome, NotStored> {
        let stream = self.shared.names.inbox_stream_of(&self.name);
        let found = self.shared.engine.message(&stream, sequence).await.map_err(|Lost| NotStored::Lost)?;
        let found = found.ok_or(NotStored::Busy)?;
        if found.subject != self.shared.names.refusals(&self.name) {
            return Ok(Outcome::Stored(Sequence(sequence)));
        }
        decode_refusal(&found.payload).map(Outcome::Refused).map_err(|error| {
            tracing::error!(%error, name = %self.name, sequence, "unreadable refusal record");
            NotStored::Busy
        })
    }

    fn decide(&self, item: Item, outcome: Result<Outcome, Unavailable>) {
        let Item { append, completer, .. } = item;
        if outcome.is_err() && append.send_id.is_some() {
            append.fence.close();
        }
        // The sender is answered before its repeats.
        completer.complete(outcome);
        if let Some(id) = &append.send_id {
            self.shared.sends.decided(id, outcome);
        }
    }

    /// Returns the last message of the inbox, read from the leader unless it is cached.
    pub(super) async fn tail(&mut self, account: &Account) -> Result<Tail, NotStored> {
        if let Some(tail) = self.tail.filter(|tail| tail.incarnation == account.incarnation) {
            return Ok(tail);
        }
        let stream = self.shared.names.inbox_stream_of(&account.name);
        let subject = self.shared.names.inbox(account);
        let last = self.shared.engine.last(&stream, &subject).await.map_err(|Lost| NotStored::Lost)?;
        let incarnation = account.incarnation;
        let tail = match last {
            Some(Found { payload, .. }) if payload == END => return Err(self.learn_of_end(account).await),
            Some(Found { sequence, payload, .. }) => {
                let message = decode_message(sequence, payload).map_err(|error| {
                    tracing::error!(%error, name = %self.name, sequence, "unreadable message");
                    NotStored::Busy
                })?;
                Tail { incarnation, last: sequence, position: message.position }
            }
            None => {
                // All messages were acknowledged and deleted: the sums continue from the
                // cursor.
                self.written = None;
                Tail { incarnation, last: 0, position: self.written(account).await?.state.cursor }
            }
        };
        self.tail = Some(tail);
        Ok(tail)
    }

    /// Updates the accounts after an end marker was found. The account's record is
    /// written before the marker, so the update includes it.
    async fn learn_of_end(&self, account: &Account) -> NotStored {
        match self.shared.refresh(Instant::now()).await {
            Ok(()) if !self.shared.directory.is_alive(account) => NotStored::Moved,
            Ok(()) => NotStored::Busy,
            Err(Lost) => NotStored::Lost,
        }
    }

    /// Returns the cursor, read again if the cached one would exceed the limits for these
    /// items.
    async fn cursor_for(
        &mut self,
        account: &Account,
        tail: Position,
        items: &[Item],
    ) -> Result<Position, NotStored> {
        let here = self.shared.cursors.of(account);
        let written = self.written.filter(|written| written.incarnation == account.incarnation);
        let known = latest(here, written.map(|written| written.state.cursor).unwrap_or_default());
        let bytes: usize = items.iter().map(|item| item.append.text.len()).sum();
        let after = Position {
            messages: tail.messages + items.len() as u64,
            bytes: tail.bytes + bytes as u64,
            ..tail
        };
        if self.shared.config.holds(known, after) {
            return Ok(known);
        }
        // The receiver may be at another server.
        self.written = None;
        Ok(latest(here, self.written(account).await?.state.cursor))
    }
}

impl Item {
    fn new(append: Append, completer: Completer<Outcome>, deadline: Instant) -> Self {
        let id = append.send_id.as_ref().map_or_else(random_id, session_id);
        Self { append, completer, deadline, id, tried: false }
    }

    fn is_fenced(&self) -> bool {
        self.append.send_id.is_some() && self.append.fence.is_closed()
    }
}

/// Returns the id of a send, the same for every attempt at every server.
fn session_id(id: &SendId) -> MessageId {
    format!("s.{}.{}", id.session.as_str(), id.id.value())
}
