//! A lane: a task that executes the operations on one name in order. It owns the cached
//! state of the account and its inbox, and ends after an idle time.
//!
//! At most one publication of a name is in flight, so messages keep their order; later
//! ones collect in the next atomic batch. Each publication is conditional on the last
//! message known here. A lane that loses a race against another server reads the inbox
//! again. So the sums in each message are exact, and with them quotas and queue counts,
//! and an abandoned publication can do no harm later.
//!
//! The condition also lets a send start before it is known whether another server has
//! deleted the account. The end marker is in the inbox before a delete is answered, so a
//! server that has not learned of the deletion loses the race and reads again. A send is
//! refused with `no-such-user` only after an update of the accounts that began after the
//! request.

mod accounts;
mod receiving;
mod sending;

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::UserName;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::Shared;
use super::engine::{Group, Lost, NotStored, random_id};
use super::reception::Reception;
use super::record::State;
use crate::store::{
    Account, Append, Completer, Created, End, Outcome, PasswordHash, Position, Publisher, Subscription,
    Unavailable,
};

/// The deadline of an operation, after which it ends as unavailable.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long an idle lane keeps its cache.
const IDLE: Duration = Duration::from_secs(10);

/// The linger of acknowledgements before they are persisted.
const ACKS_INTERVAL: Duration = Duration::from_secs(1);

/// The bounds of the backoff between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// An operation on a name.
#[derive(Debug)]
pub(super) enum Command {
    Create(Option<PasswordHash>, Completer<Created>),
    SetPassword {
        account: Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
        completer: Completer<bool>,
    },
    Delete(Account, Completer<bool>),
    Append(Append, Completer<Outcome>),
    Receive {
        account: Account,
        takes_over: bool,
        completer: Completer<Option<Subscription>>,
    },
    /// A new acknowledgement: see [`super::Cursors`].
    Acknowledged(Account),
    /// The receiver has disconnected.
    Released(Account),
    /// Another server asks to receive, and awaits a reply at this subject.
    Yield(Account, String),
    /// The account has ended.
    Ended(Account),
}

impl Command {
    /// Answers that the outcome is unknown.
    pub(super) fn refuse(self) {
        // Dropping any other command answers with `Unavailable`.
        if let Self::Append(append, completer) = self {
            if append.send_id.is_some() {
                append.fence.close();
            }
            completer.complete(Err(Unavailable));
        }
    }
}

/// A command and its deadline, [`PATIENCE`] after the request.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) deadline: Instant,
}

impl Job {
    pub(super) fn new(command: Command) -> Self {
        Self { command, deadline: Instant::now() + PATIENCE }
    }

    /// See [`Command::refuse`].
    pub(super) fn refuse(self) {
        self.command.refuse();
    }
}

/// The last message of an inbox.
#[derive(Debug, Clone, Copy)]
struct Tail {
    incarnation: u64,
    /// Its sequence, 0 for none. `position` has the sums up to it.
    last: u64,
    position: Position,
}

/// The state record of an inbox and its sequence.
#[derive(Debug, Clone, Copy)]
struct Written {
    incarnation: u64,
    revision: u64,
    state: State,
}

pub(super) struct Lane {
    shared: Arc<Shared>,
    name: UserName,
    jobs: mpsc::UnboundedReceiver<Job>,
    /// A job taken from the queue but not started.
    next: Option<Job>,
    tail: Option<Tail>,
    written: Option<Written>,
    reception: Option<Reception>,
    /// The previous receiver here, which has yet to learn of its takeover.
    former: Option<Publisher>,
    /// When to persist the acknowledgements of this account.
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

    /// Runs until the lane has been idle for a while, or the store closes.
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
            // A lane without a cache, for example of an unknown name, ends at once.
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
            Command::Append(append, completer) => self.append(append, completer, deadline).await,
            Command::Create(password, completer) => completer.complete(self.create(password, deadline).await),
            Command::SetPassword { account, old, new, completer } => {
                completer.complete(self.set_password(&account, old, new, deadline).await);
            }
            Command::Delete(account, completer) => self.delete(&account, completer, deadline).await,
            Command::Receive { account, takes_over, completer } => {
                completer.complete(self.receive(&account, takes_over, deadline).await);
                // The order matters if both belong to one connection: it has installed
                // the new subscription before the old one ends.
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

/// Acknowledgements.
impl Lane {
    fn save_soon(&mut self, account: Account) {
        if !self.save.as_ref().is_some_and(|(_, of)| *of == account) {
            self.save = Some((Instant::now() + ACKS_INTERVAL, account));
        }
    }

    /// Persists the acknowledgements, or schedules a retry.
    async fn save(&mut self, account: &Account) {
        self.save.take_if(|(_, of)| of == account);
        if self.try_save(account).await.is_err() {
            self.save_soon(account.clone());
        }
    }

    async fn save_until(&mut self, account: &Account, deadline: Instant) {
        while self.try_save(account).await.is_err() {
            if self.pause(deadline).await.is_err() {
                tracing::warn!(name = %self.name, "acknowledgements not persisted; messages may be delivered again");
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

    /// Returns the state record, read from the leader unless it is cached.
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
        let messages = vec![(random_id(), state.encode())];
        let group = Group { subject, expected: over.revision, messages };
        let stored = self.shared.state_publisher.publish(group).await?;
        self.written = Some(Written { incarnation: account.incarnation, revision: stored.sequence, state });
        Ok(())
    }
}

/// Backoff.
impl Lane {
    async fn pause(&mut self, deadline: Instant) -> Result<(), Unavailable> {
        if Instant::now() >= deadline {
            return Err(Unavailable);
        }
        self.pause_once().await;
        Ok(())
    }

    /// Doubles the pause until an operation succeeds.
    async fn pause_once(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Returns the later of two positions in an inbox.
pub(super) fn latest(one: Position, other: Position) -> Position {
    if one.sequence >= other.sequence { one } else { other }
}
