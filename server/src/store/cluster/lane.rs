//! What is done with one name, in order: a task that owns what this server
//! knows of the account and its inbox, as long as there is something to do.
//!
//! At most one publication of a name is under way, so nothing overtakes: what
//! comes meanwhile waits and goes as one atomic batch. Each publication is on
//! the condition that the last message of the inbox is the one that is known
//! here; whoever loses a race against another server looks again. So the sums
//! in each message are exact, and with them the quota and the count of what is
//! queued, and a publication that was given up can do no harm later.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hark_protocol::{Code, Sequence, UserName};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::engine::{ATTEMPT, BATCH_MESSAGES_MAX, Found, Lost, MessageId, NotStored};
use super::reception::{Claim, Reception};
use super::record::{
    AccountRecord, AliveRecord, Letter, State, Told, decode_message, decode_refusal, encode_refusal,
};
use super::setup::{ENDED_KEPT, KEPT};
use crate::store::{
    Account, Append, Created, Decide, End, Feed, Outcome, PasswordHash, Position, Receiver, SendId,
    Unavailable,
};

/// How long something is tried before it ends as unavailable.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long an idle lane stays, for what it knows.
const IDLE: Duration = Duration::from_secs(10);

/// How long acknowledgements wait for company before they are written.
const ACKS_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of text in one batch, at most, but at least one message.
const BATCH_BYTES_MAX: usize = 512 * 1024;

/// The pauses between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Something to do for a name.
#[derive(Debug)]
pub(super) enum Command {
    Create(Option<PasswordHash>, Decide<Created>),
    SetPassword {
        account: Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
        decide: Decide<bool>,
    },
    Delete(Account, Decide<bool>),
    Append(Append, Decide<Outcome>),
    Receive {
        account: Account,
        takes_over: bool,
        decide: Decide<Option<Receiver>>,
    },
    /// Something was acknowledged: see [`super::Cursors`].
    Acknowledged(Account),
    /// Whoever received has gone.
    Released(Account),
    /// Another server wants to receive, and waits for a reply at this subject.
    Yield(Account, String),
    /// The account has ended.
    Ended(Account),
}

impl Command {
    /// Decides that it is unknown what becomes of it.
    pub(super) fn refuse(self) {
        // What else is dropped is unavailable by that.
        if let Self::Append(append, decide) = self {
            if append.send_id.is_some() {
                append.fence.close();
            }
            decide.decide(Err(Unavailable));
        }
    }
}

/// A command, and until when it may be tried.
#[derive(Debug)]
pub(super) struct Job {
    command: Command,
    deadline: Instant,
}

impl Job {
    pub(super) fn new(command: Command) -> Self {
        Self { command, deadline: Instant::now() + PATIENCE }
    }
}

/// The last message of an inbox.
#[derive(Debug, Clone, Copy)]
struct Tail {
    incarnation: u64,
    /// Its number, 0 for none, and the sums up to there.
    last: u64,
    position: Position,
}

/// The state of an inbox as it is written, and the number of that message.
#[derive(Debug, Clone, Copy)]
struct Written {
    incarnation: u64,
    revision: u64,
    state: State,
}

/// A message that is to be stored.
struct Item {
    append: Append,
    decide: Decide<Outcome>,
    deadline: Instant,
    id: MessageId,
    /// It was published, and may be stored.
    tried: bool,
}

pub(super) struct Lane {
    shared: Arc<Shared>,
    name: UserName,
    jobs: mpsc::UnboundedReceiver<Job>,
    /// A job that was taken and not begun.
    next: Option<Job>,
    tail: Option<Tail>,
    written: Option<Written>,
    reception: Option<Reception>,
    /// Who received here until now, and has not been told that it does no more.
    former: Option<Feed>,
    /// When acknowledgements are to be written, for the account of this number.
    save: Option<(Instant, Account)>,
    pause: Duration,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, name: UserName, jobs: mpsc::UnboundedReceiver<Job>) -> Self {
        Self {
            shared,
            name,
            jobs,
            next: None,
            tail: None,
            written: None,
            reception: None,
            former: None,
            save: None,
            pause: PAUSE_MIN,
        }
    }

    /// Works until there has been nothing to do for a while, or the store
    /// closes.
    pub(super) async fn run(mut self) {
        while let Some(job) = self.next_job().await {
            self.carry_out(job).await;
        }
        if let Some((_, account)) = self.save.take() {
            self.save_until(&account, Instant::now() + PATIENCE).await;
        }
        self.let_go(None).await;
    }

    async fn next_job(&mut self) -> Option<Job> {
        if let Some(job) = self.next.take() {
            return Some(job);
        }
        loop {
            // Where there is no such account nothing is known, and nothing stays.
            let stays = if self.tail.is_some() || self.written.is_some() { IDLE } else { Duration::ZERO };
            let idle_at = Instant::now() + stays;
            let wake_at = self.save.as_ref().map_or(idle_at, |(at, _)| *at);
            tokio::select! {
                biased;
                job = self.jobs.recv() => return job,
                () = sleep_until(wake_at) => {}
            }
            if let Some((_, account)) = self.save.take() {
                self.save(&account).await;
            } else if self.reception.is_none() && self.shared.end_lane(&self.name, &self.jobs) {
                return None;
            }
        }
    }

    async fn carry_out(&mut self, job: Job) {
        let deadline = job.deadline;
        match job.command {
            Command::Append(append, decide) => self.append(append, decide, deadline).await,
            Command::Create(password, decide) => decide.decide(self.create(password, deadline).await),
            Command::SetPassword { account, old, new, decide } => {
                decide.decide(self.set_password(&account, old, new, deadline).await);
            }
            Command::Delete(account, decide) => self.delete(&account, decide, deadline).await,
            Command::Receive { account, takes_over, decide } => {
                decide.decide(self.receive(&account, takes_over, deadline).await);
                // Not before, since the connection may be the same: by now it
                // has replaced what has ended.
                if let Some(former) = self.former.take() {
                    former.end(End::TakenOver);
                }
            }
            Command::Acknowledged(account) => self.save_soon(account),
            Command::Released(account) => self.released(&account).await,
            Command::Yield(account, reply) => self.yield_reception(&account, reply).await,
            Command::Ended(account) => self.ended(&account).await,
        }
    }
}

/// Accounts.
impl Lane {
    async fn create(
        &mut self,
        password: Option<PasswordHash>,
        deadline: Instant,
    ) -> Result<Created, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            if let Some(found) = found.filter(|found| found.alive.is_some()) {
                let is_ours = tried && found.mark == mark;
                self.shared.directory.apply(self.name.clone(), revision, found);
                return match (is_ours, tried) {
                    (true, _) => Ok(Created::Created),
                    (false, false) => Ok(Created::Exists),
                    (false, true) => Err(Unavailable),
                };
            }
            if !tried && self.shared.directory.len() >= self.shared.config.accounts_max {
                return Ok(Created::TooMany);
            }
            let alive = AliveRecord { made_by: None, password: password.clone() };
            let record = AccountRecord { mark, alive: Some(alive) };
            match self.write_account(revision, &record).await {
                Ok(sequence) => {
                    self.shared.directory.apply(self.name.clone(), sequence, record);
                    self.tail = Some(Tail { incarnation: sequence, last: 0, position: Position::default() });
                    let state = State::default();
                    self.written = Some(Written { incarnation: sequence, revision: 0, state });
                    return Ok(Created::Created);
                }
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    async fn set_password(
        &mut self,
        account: &Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            let Some(found) = found else { return undecided_if(tried, false) };
            if tried && found.mark == mark {
                self.shared.directory.apply(self.name.clone(), revision, found);
                return Ok(true);
            }
            let is_as_before = found.alive.as_ref().is_some_and(|alive| {
                alive.incarnation(revision) == account.incarnation && alive.password == old
            });
            if !is_as_before {
                self.shared.directory.apply(self.name.clone(), revision, found);
                return undecided_if(tried, false);
            }
            let alive = AliveRecord { made_by: Some(account.incarnation), password: Some(new.clone()) };
            let record = AccountRecord { mark, alive: Some(alive) };
            match self.write_account(revision, &record).await {
                Ok(sequence) => {
                    self.shared.directory.apply(self.name.clone(), sequence, record);
                    return Ok(true);
                }
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    async fn delete(&mut self, account: &Account, decide: Decide<bool>, deadline: Instant) {
        let deleted = self.try_delete(account, deadline).await;
        // Whoever deletes itself gets the answer before the end.
        let revision = match deleted {
            Ok(revision) => {
                decide.decide(Ok(revision.is_some()));
                revision
            }
            Err(unavailable) => return decide.decide(Err(unavailable)),
        };
        if let Some(revision) = revision {
            let ended = AccountRecord { mark: 0, alive: None };
            self.shared.directory.apply(self.name.clone(), revision, ended);
            self.ended(account).await;
            self.shared.tell(account, Told::Ended).await;
        }
    }

    /// The number of the message that says so, if the account was there.
    async fn try_delete(&mut self, account: &Account, deadline: Instant) -> Result<Option<u64>, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            if tried && found.as_ref().is_some_and(|found| found.mark == mark) {
                return Ok(Some(revision));
            }
            let alive = found.and_then(|found| found.alive);
            if alive.is_none_or(|alive| alive.incarnation(revision) != account.incarnation) {
                return undecided_if(tried, None);
            }
            let record = AccountRecord { mark, alive: None };
            match self.write_account(revision, &record).await {
                Ok(sequence) => return Ok(Some(sequence)),
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    /// What the cluster has about this name, and the number of that message.
    async fn account_record(
        &mut self,
        deadline: Instant,
    ) -> Result<(u64, Option<AccountRecord>), Unavailable> {
        let (stream, subject) = (self.shared.names.accounts_stream(), self.shared.names.account(&self.name));
        loop {
            match self.shared.engine.last(&stream, &subject).await {
                Ok(None) => return Ok((0, None)),
                Ok(Some(found)) => {
                    let record = AccountRecord::decode(&found.payload).map_err(|error| {
                        tracing::error!(%error, name = %self.name, "the account cannot be read");
                        Unavailable
                    })?;
                    return Ok((found.sequence, Some(record)));
                }
                Err(Lost) => self.pause(deadline).await?,
            }
        }
    }

    async fn write_account(&mut self, revision: u64, record: &AccountRecord) -> Result<u64, NotStored> {
        let subject = self.shared.names.account(&self.name);
        let (engine, id, bytes) = (&self.shared.engine, random_id(), record.encode());
        let stored = if record.alive.is_some() {
            engine.publish(&subject, &id, revision, bytes).await
        } else {
            engine.publish_for(ENDED_KEPT, &subject, &id, Some(revision), bytes).await
        };
        stored.map(|stored| stored.sequence)
    }

    /// Another try, or none where the time is over.
    async fn tried(
        &mut self,
        error: NotStored,
        tried: &mut bool,
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        *tried |= error == NotStored::Lost;
        self.pause(deadline).await
    }
}

/// Sending.
impl Lane {
    async fn append(&mut self, append: Append, decide: Decide<Outcome>, deadline: Instant) {
        let mut items = vec![Item::new(append, decide, deadline)];
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
                    // The one who told of it may have failed before it did.
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
                    // What a full engine does not take as a batch it may take alone.
                    one_by_one |= error == NotStored::Busy;
                    self.pause_once().await;
                }
            }
        }
    }

    /// Takes along what waits behind it, as far as it fits into one batch.
    fn gather(&mut self, items: &mut Vec<Item>) {
        let mut bytes: usize = items.iter().map(|item| item.append.text.len()).sum();
        while items.len() < BATCH_MESSAGES_MAX && bytes < BATCH_BYTES_MAX && self.next.is_none() {
            match self.jobs.try_recv() {
                Ok(Job { command: Command::Append(append, decide), deadline }) => {
                    bytes += append.text.len();
                    items.push(Item::new(append, decide, deadline));
                }
                Ok(other) => self.next = Some(other),
                Err(_) => return,
            }
        }
    }

    /// Decides those that were tried for too long, and those whose connection
    /// stores nothing more.
    fn without_hopeless(&self, items: Vec<Item>) -> Vec<Item> {
        let now = Instant::now();
        let (hopeless, rest): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|item| item.deadline <= now || item.is_fenced());
        for item in hopeless {
            self.decide(item, Err(Unavailable));
        }
        rest
    }

    /// Decides as many of the items as it can: those to be refused, and either
    /// all the others or the first of them.
    async fn store(&mut self, items: &mut Vec<Item>, one_by_one: bool) -> Result<(), NotStored> {
        let Some(entry) = self.shared.directory.account(&self.name) else {
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

    async fn publish(
        &mut self,
        items: &mut Vec<Item>,
        account: &Account,
        expected: u64,
        mut messages: Vec<(MessageId, Bytes)>,
        position: Position,
    ) -> Result<(), NotStored> {
        let count = messages.len();
        let subject = self.shared.names.inbox(account);
        let stored = match (messages.pop(), count) {
            (None, _) => return Ok(()),
            (Some((id, bytes)), 1) => {
                let stored = self.shared.engine.publish(&subject, &id, expected, bytes).await;
                stored.map(|stored| (stored.sequence, stored.duplicate))
            }
            (Some(last), _) => {
                messages.push(last);
                let stored = self.shared.engine.publish_batch(&subject, expected, messages).await;
                stored.map(|sequence| (sequence, false))
            }
        };
        if stored == Err(NotStored::Lost) {
            items.iter_mut().take(count).for_each(|item| item.tried = true);
        }
        let (last, duplicate) = stored?;
        self.pause = PAUSE_MIN;
        self.tail = (!duplicate).then_some(Tail { incarnation: account.incarnation, last, position });
        let outcome = if duplicate { self.outcome_at(last).await? } else { Outcome::Stored };
        for item in items.drain(..count) {
            self.decide(item, Ok(outcome));
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

    /// What speaks against it, unless it was decided before.
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

    /// Refuses the item at this place, unless it was decided before. The refusal
    /// is stored where another try, at whatever server, would have to be: under
    /// its id. So none of them is stored any more, behind what was sent later.
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

    /// How the send was decided that the message of this number tells of.
    async fn outcome_at(&self, sequence: u64) -> Result<Outcome, NotStored> {
        let stream = self.shared.names.inbox_stream_of(&self.name);
        let found = self.shared.engine.message(&stream, sequence).await.map_err(|Lost| NotStored::Lost)?;
        let found = found.ok_or(NotStored::Busy)?;
        if found.subject != self.shared.names.refusals(&self.name) {
            return Ok(Outcome::Stored);
        }
        decode_refusal(&found.payload).map(Outcome::Refused).map_err(|error| {
            tracing::error!(%error, name = %self.name, sequence, "a refusal cannot be read");
            NotStored::Busy
        })
    }

    fn decide(&self, item: Item, outcome: Result<Outcome, Unavailable>) {
        let Item { append, decide, .. } = item;
        if outcome.is_err() && append.send_id.is_some() {
            append.fence.close();
        }
        // First whoever sent it, then whoever waits for it.
        decide.decide(outcome);
        if let Some(id) = &append.send_id {
            self.shared.sends.decided(id, outcome);
        }
    }

    /// The last message of the inbox, from the leader where it is not known.
    async fn tail(&mut self, account: &Account) -> Result<Tail, NotStored> {
        if let Some(tail) = self.tail.filter(|tail| tail.incarnation == account.incarnation) {
            return Ok(tail);
        }
        let stream = self.shared.names.inbox_stream_of(&account.name);
        let subject = self.shared.names.inbox(account);
        let last = self.shared.engine.last(&stream, &subject).await.map_err(|Lost| NotStored::Lost)?;
        let incarnation = account.incarnation;
        let tail = match last {
            Some(Found { sequence, payload, .. }) => {
                let message = decode_message(sequence, payload).map_err(|error| {
                    tracing::error!(%error, name = %self.name, sequence, "a message cannot be read");
                    NotStored::Busy
                })?;
                Tail { incarnation, last: sequence, position: message.position }
            }
            None => {
                // All that there was is acknowledged and gone: the sums go on from there.
                self.written = None;
                Tail { incarnation, last: 0, position: self.written(account).await?.state.cursor }
            }
        };
        self.tail = Some(tail);
        Ok(tail)
    }

    /// What is acknowledged, as exactly as it matters for these items.
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
        // The reader may be at another server.
        self.written = None;
        Ok(latest(here, self.written(account).await?.state.cursor))
    }
}

/// Receiving.
impl Lane {
    async fn receive(
        &mut self,
        account: &Account,
        takes_over: bool,
        deadline: Instant,
    ) -> Result<Option<Receiver>, Unavailable> {
        loop {
            if !self.shared.directory.is_alive(account) {
                return Ok(None);
            }
            match self.try_receive(account, takes_over).await {
                Ok(receiver) => return Ok(receiver),
                Err(NotStored::Moved) => {}
                Err(_) => {
                    self.tail = None;
                    self.pause(deadline).await?;
                }
            }
        }
    }

    async fn try_receive(
        &mut self,
        account: &Account,
        takes_over: bool,
    ) -> Result<Option<Receiver>, NotStored> {
        let is_here = self.reception.as_ref().is_some_and(|reception| !reception.is_ended());
        if is_here && !takes_over {
            return Ok(None);
        }
        if let Some(reception) = self.reception.take() {
            self.former = Some(reception.stop().await);
        }
        if !is_here && self.is_elsewhere(account, takes_over).await? {
            return Ok(None);
        }
        // Whoever received at another server has written what was acknowledged.
        self.written = None;
        let written = self.written(account).await?;
        let cursor = latest(self.shared.cursors.of(account), written.state.cursor);
        let claim = State { cursor, reception: rand::random() };
        self.write_state(account, written, claim).await?;
        let claimed = self.written(account).await?.revision;
        let subscription = self.shared.subscribe(account).await.map_err(|Lost| NotStored::Lost)?;
        // What is read from here on comes after the subscription, which no event
        // from then on passes by.
        self.written = None;
        let is_still_ours = self.written(account).await?.state.reception == claim.reception;
        self.tail = None;
        let tail = self.tail(account).await?;
        let queued = tail.position.messages.saturating_sub(cursor.messages);
        let (feed, receiver) = Receiver::new(account.clone(), queued, cursor);
        let guard = CancellationToken::new();
        let receiver = receiver.releasing(guard.clone().drop_guard());
        if !is_still_ours {
            feed.end(End::TakenOver);
        }
        let claim = Claim { account: account.clone(), reception: claim.reception, revision: claimed };
        self.reception = Some(Reception::begin(&self.shared, claim, subscription, feed, guard, tail.last));
        Ok(Some(receiver))
    }

    /// Whether somebody receives at another server, and goes on to.
    async fn is_elsewhere(&self, account: &Account, takes_over: bool) -> Result<bool, NotStored> {
        let told = if takes_over { Told::Yield } else { Told::Probe };
        let subject = self.shared.names.tell(account, told);
        match self.shared.engine.ask(&subject, Bytes::new()).await {
            Ok(None) => Ok(false),
            Ok(Some(_)) => Ok(!takes_over),
            // It will see the claim once it can.
            Err(Lost) if takes_over => Ok(false),
            Err(Lost) => Err(NotStored::Lost),
        }
    }

    async fn released(&mut self, account: &Account) {
        if self.receives_for(account) && self.reception.as_ref().is_some_and(Reception::is_ended) {
            self.let_go(None).await;
        }
        self.save(account).await;
    }

    async fn yield_reception(&mut self, account: &Account, reply: String) {
        if self.receives_for(account) {
            if let Some(reception) = &self.reception {
                reception.end(End::TakenOver);
            }
            self.save_until(account, Instant::now() + ATTEMPT / 2).await;
            self.let_go(None).await;
        }
        self.shared.publish(reply).await;
    }

    async fn ended(&mut self, account: &Account) {
        if self.receives_for(account) {
            self.let_go(Some(End::Deleted)).await;
        }
        self.tail = self.tail.filter(|tail| tail.incarnation != account.incarnation);
        self.written = self.written.filter(|written| written.incarnation != account.incarnation);
        self.save.take_if(|(_, of)| of == account);
        self.shared.cursors.forget(account);
        self.shared.sweeper.ended(account);
    }

    fn receives_for(&self, account: &Account) -> bool {
        self.reception.as_ref().is_some_and(|reception| reception.account() == account)
    }

    /// Ends the reception here, if there is one, and waits until the cluster
    /// has been told.
    async fn let_go(&mut self, end: Option<End>) {
        if let Some(reception) = self.reception.take() {
            if let Some(end) = end {
                reception.end(end);
            }
            drop(reception.stop().await);
        }
    }
}

/// Acknowledgements.
impl Lane {
    fn save_soon(&mut self, account: Account) {
        if !self.save.as_ref().is_some_and(|(_, of)| *of == account) {
            self.save = Some((Instant::now() + ACKS_INTERVAL, account));
        }
    }

    /// Writes what is acknowledged, or tries again later.
    async fn save(&mut self, account: &Account) {
        self.save.take_if(|(_, of)| of == account);
        if self.try_save(account).await.is_err() {
            self.save_soon(account.clone());
        }
    }

    async fn save_until(&mut self, account: &Account, deadline: Instant) {
        while self.try_save(account).await.is_err() {
            if self.pause(deadline).await.is_err() {
                tracing::warn!(name = %self.name, "what was acknowledged lately may come again");
                return;
            }
        }
    }

    async fn try_save(&mut self, account: &Account) -> Result<(), NotStored> {
        if !self.shared.directory.is_alive(account) {
            self.shared.cursors.forget(account);
            return Ok(());
        }
        let cursor = self.shared.cursors.begin_to_write(account);
        let written = self.written(account).await?;
        if cursor.sequence > written.state.cursor.sequence {
            self.write_state(account, written, State { cursor, ..written.state }).await?;
            self.shared.sweeper.acknowledged(account, cursor.sequence);
        }
        Ok(())
    }

    /// The state as it is written, from the leader where it is not known.
    async fn written(&mut self, account: &Account) -> Result<Written, NotStored> {
        if let Some(written) = self.written.filter(|written| written.incarnation == account.incarnation) {
            return Ok(written);
        }
        let written = self.shared.state(account).await.map_err(|Lost| NotStored::Lost)?;
        let (revision, state) = written;
        let written = Written { incarnation: account.incarnation, revision, state };
        self.written = Some(written);
        Ok(written)
    }

    async fn write_state(&mut self, account: &Account, over: Written, state: State) -> Result<(), NotStored> {
        let subject = self.shared.names.state(account);
        self.written = None;
        let stored =
            self.shared.engine.publish(&subject, &random_id(), over.revision, state.encode()).await?;
        self.written = Some(Written { incarnation: account.incarnation, revision: stored.sequence, state });
        Ok(())
    }
}

/// Waiting.
impl Lane {
    async fn pause(&mut self, deadline: Instant) -> Result<(), Unavailable> {
        if Instant::now() >= deadline {
            return Err(Unavailable);
        }
        self.pause_once().await;
        Ok(())
    }

    /// Each pause is longer than the last, until something succeeds.
    async fn pause_once(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

impl Item {
    fn new(append: Append, decide: Decide<Outcome>, deadline: Instant) -> Self {
        let id = append.send_id.as_ref().map_or_else(random_id, session_id);
        Self { append, decide, deadline, id, tried: false }
    }

    fn is_fenced(&self) -> bool {
        self.append.send_id.is_some() && self.append.fence.is_closed()
    }
}

/// The same for every try of a send, at every server.
fn session_id(id: &SendId) -> MessageId {
    format!("s.{}.{}", id.session.as_str(), id.id.value())
}

fn random_id() -> MessageId {
    format!("r.{:032x}", rand::random::<u128>())
}

/// What a change comes to that was refused, where an earlier try may have been
/// carried out.
fn undecided_if<T>(tried: bool, refused: T) -> Result<T, Unavailable> {
    if tried { Err(Unavailable) } else { Ok(refused) }
}

fn latest(one: Position, other: Position) -> Position {
    if one.sequence >= other.sequence { one } else { other }
}
