//! What is done with one name, in order: a task that owns what this server
//! knows of the account and its inbox, as long as there is something to do.
//!
//! At most one publication of a name is under way, so nothing overtakes: what
//! comes meanwhile waits and goes as one atomic batch. Each publication is on
//! the condition that the last message of the inbox is the one that is known
//! here; whoever loses a race against another server looks again. So the sums
//! in each message are exact, and with them the quota and the count of what is
//! queued, and a publication that was given up can do no harm later.
//!
//! The same condition lets a send begin before it is known whether the account
//! has ended at another server: an end is written into the inbox before a delete
//! is answered, so whoever has not heard of it loses the race against it, and
//! looks again. That there is no such account is only said when this is known of
//! a moment after the send was asked for.

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

/// How long something is tried before it ends as unavailable.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long an idle lane stays, for what it knows.
const IDLE: Duration = Duration::from_secs(10);

/// How long acknowledgements wait for company before they are written.
const ACKS_INTERVAL: Duration = Duration::from_secs(1);

/// The pauses between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Something to do for a name.
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
        if let Self::Append(append, completer) = self {
            if append.send_id.is_some() {
                append.fence.close();
            }
            completer.complete(Err(Unavailable));
        }
    }
}

/// A command, and until when it may be tried: [`PATIENCE`] from when it was
/// asked for.
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
    former: Option<Publisher>,
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
            Command::Append(append, completer) => self.append(append, completer, deadline).await,
            Command::Create(password, completer) => completer.complete(self.create(password, deadline).await),
            Command::SetPassword { account, old, new, completer } => {
                completer.complete(self.set_password(&account, old, new, deadline).await);
            }
            Command::Delete(account, completer) => self.delete(&account, completer, deadline).await,
            Command::Receive { account, takes_over, completer } => {
                completer.complete(self.receive(&account, takes_over, deadline).await);
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
        let messages = vec![(random_id(), state.encode())];
        let group = Group { subject, expected: over.revision, messages };
        let stored = self.shared.state_publisher.publish(group).await?;
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

/// Returns the later of two places in an inbox.
pub(super) fn latest(one: Position, other: Position) -> Position {
    if one.sequence >= other.sequence { one } else { other }
}
