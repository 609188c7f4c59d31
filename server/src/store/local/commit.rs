//! The commit thread: it takes everything that waits, decides each in the order
//! of arrival, writes one batch, waits for one sync, and then answers all. No
//! other thread decides anything or writes anything.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hark_protocol::SessionToken;
use tokio::sync::OwnedSemaphorePermit;

use super::changes::{Changes, Notice};
use super::engine::{Durability, Engine, EngineError, Opener};
use super::ledger::Ledger;
use super::load::Loaded;
use super::queue::{Acks, Command, Wait};
use super::recovery::{Recovered, Recovery};
use super::{LocalConfig, Shared, Sync};
use crate::store::{Append, Created, Decide, Fence, Outcome, Receiver, Unavailable};

/// Commands that are decided in one commit, at most.
const COMMANDS_MAX: usize = 4096;

/// Bytes of text that are written in one commit, at most, but for the last.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The state of the commit thread.
#[derive(Debug)]
pub(super) struct Committer {
    config: LocalConfig,
    shared: Arc<Shared>,
    opener: Arc<dyn Opener>,
    /// `None` after a failure, until it is open again.
    engine: Option<Box<dyn Engine>>,
    recovery: Option<Recovery>,
    ledger: Ledger,
    /// Notices of the commit that has failed.
    failed: Vec<Notice>,
    /// Changes of the next commit; empty but after a recovery, which has some
    /// of its own.
    changes: Changes,
    /// Decisions of the commit, empty between two: of sends, and all others.
    sent: Vec<Sent>,
    verdicts: Vec<Verdict>,
    /// The room of its messages, which are under way; empty between two.
    permits: Vec<OwnedSemaphorePermit>,
    /// Commands that are taken and not yet decided.
    backlog: VecDeque<Command>,
    /// Cursors that have been written, and that no sync has covered.
    cursors: HashMap<u64, u64>,
    acks_written: Instant,
    started: Instant,
}

/// The decision of a send, which waits for its commit.
#[derive(Debug)]
struct Sent {
    decide: Decide<Outcome>,
    outcome: Result<Outcome, Unavailable>,
    fence: Option<Fence>,
}

impl Sent {
    fn pronounce(self) {
        self.decide.decide(self.outcome);
    }

    fn withdraw(self) {
        if let Some(fence) = self.fence {
            fence.close();
        }
        self.decide.decide(Err(Unavailable));
    }
}

/// Any other decision that waits for its commit.
#[derive(Debug)]
enum Verdict {
    Created(Decide<Created>, Created),
    Flag(Decide<bool>, bool),
    Receiver(Decide<Option<Receiver>>, Option<Receiver>),
    Opened(SessionToken, Decide<bool>, bool),
}

impl Verdict {
    fn pronounce(self) {
        match self {
            Self::Created(decide, created) => decide.decide(Ok(created)),
            Self::Flag(decide, flag) | Self::Opened(_, decide, flag) => decide.decide(Ok(flag)),
            Self::Receiver(decide, receiver) => decide.decide(Ok(receiver)),
        }
    }

    fn withdraw(self) {
        match self {
            Self::Created(decide, _) => decide.decide(Err(Unavailable)),
            Self::Flag(decide, _) | Self::Opened(_, decide, _) => decide.decide(Err(Unavailable)),
            Self::Receiver(decide, _) => decide.decide(Err(Unavailable)),
        }
    }
}

/// A store that was asked to close, and has.
pub(super) struct Closed {
    decide: Decide<()>,
    outcome: Result<(), Unavailable>,
}

impl Closed {
    /// Says so.
    pub(super) fn pronounce(self) {
        self.decide.decide(self.outcome);
    }
}

impl Committer {
    /// For an engine that was just opened.
    pub(super) fn new(
        config: LocalConfig,
        shared: Arc<Shared>,
        opener: Arc<dyn Opener>,
        engine: Box<dyn Engine>,
        loaded: Loaded,
    ) -> Self {
        let now = Instant::now();
        let ledger = Ledger::new(config.clone(), Loaded::default(), Duration::ZERO);
        let mut committer = Self {
            config,
            shared,
            opener,
            engine: None,
            recovery: None,
            ledger,
            failed: Vec::new(),
            changes: Changes::default(),
            sent: Vec::new(),
            verdicts: Vec::new(),
            permits: Vec::new(),
            backlog: VecDeque::new(),
            cursors: HashMap::new(),
            acks_written: now,
            started: now,
        };
        committer.serve(engine, loaded);
        committer
    }

    /// Decides and commits until it is asked to close. By then it has let go of
    /// everything. `None` where it just ended.
    pub(super) fn run(mut self) -> Option<Closed> {
        let mut taken = Vec::new();
        loop {
            let acks = self.shared.queue.take(self.wait(), &mut taken)?;
            self.backlog.extend(taken.drain(..));
            let closing = if self.engine.is_some() { self.commit(acks) } else { self.refuse() };
            if let Some(decide) = closing {
                let outcome = self.close();
                return Some(Closed { decide, outcome });
            }
        }
    }

    fn wait(&self) -> Wait {
        match &self.engine {
            Some(_) if !self.backlog.is_empty() => Wait::Not,
            Some(_) => Wait::ForAcksSince(self.acks_written),
            None => Wait::ForCommands,
        }
    }

    /// Decides what waits and commits it; yields who wants it closed next.
    fn commit(&mut self, acks: Acks) -> Option<Decide<()>> {
        let now = self.now();
        let mut changes = std::mem::take(&mut self.changes);
        self.ledger.forget_sessions(now, &mut changes);
        if !acks.is_empty() {
            self.acks_written = Instant::now();
        }
        for (account, position) in acks {
            self.ledger.acknowledge(&account, position, &mut changes);
        }
        let mut text_bytes = 0;
        let mut closing = None;
        while self.decided() < COMMANDS_MAX && text_bytes < TEXT_BYTES_MAX && closing.is_none() {
            match self.backlog.pop_front() {
                None => break,
                Some(Command::Close(decide)) => closing = Some(decide),
                Some(Command::Appends(mut appends)) => {
                    while self.decided() < COMMANDS_MAX && text_bytes < TEXT_BYTES_MAX {
                        let Some((append, decide)) = appends.next() else { break };
                        text_bytes += append.text.len();
                        self.append(append, decide, now, &mut changes);
                    }
                    if appends.len() > 0 {
                        self.backlog.push_front(Command::Appends(appends));
                    }
                }
                Some(command) => {
                    let verdict = self.decide(command, now, &mut changes);
                    self.verdicts.extend(verdict);
                }
            }
        }
        self.ledger.write_gathered(&mut changes);
        self.finish(changes);
        closing
    }

    /// What is decided in this commit, in commands.
    fn decided(&self) -> usize {
        self.sent.len() + self.verdicts.len()
    }

    fn append(&mut self, mut append: Append, decide: Decide<Outcome>, now: Duration, changes: &mut Changes) {
        let is_of_session = append.send_id.is_some();
        let outcome = self.ledger.append(&mut append, now, changes);
        if let Some(permit) = append.permit {
            hold(&mut self.permits, permit);
        }
        self.sent.push(Sent { decide, outcome, fence: is_of_session.then_some(append.fence) });
    }

    fn decide(&mut self, command: Command, now: Duration, changes: &mut Changes) -> Option<Verdict> {
        let ledger = &mut self.ledger;
        Some(match command {
            Command::Create(name, password, decide) => {
                Verdict::Created(decide, ledger.create(&name, password, changes))
            }
            Command::SetPassword { account, old, new, decide } => {
                Verdict::Flag(decide, ledger.set_password(&account, old.as_ref(), new, changes))
            }
            Command::Delete(account, decide) => Verdict::Flag(decide, ledger.delete(&account, changes)),
            Command::Receive { account, takes_over, decide } => {
                let may_receive = takes_over || ledger.is_free(&account);
                // Whoever has gone may have acknowledged after this was taken.
                if let Some(position) = self.shared.queue.take_ack(&account) {
                    ledger.acknowledge(&account, position, changes);
                }
                let receiver = may_receive.then(|| ledger.receive(&account, changes)).flatten();
                Verdict::Receiver(decide, receiver)
            }
            Command::OpenSession(token, from, decide) => {
                let opened = ledger.open_session(&token, from, now);
                Verdict::Opened(token, decide, opened)
            }
            Command::CloseSession(token) => {
                ledger.close_session(&token, now);
                return None;
            }
            Command::Appends(_) | Command::Recovered(_) | Command::Close(_) => {
                command.refuse();
                return None;
            }
        })
    }

    /// Writes what was decided, and then says it. In this order: whoever hears
    /// of a change finds it, and whoever made it hears of it first.
    ///
    /// Of the sends the last comes first: a connection waits for its first one,
    /// and so wakes when it has them all.
    fn finish(&mut self, mut changes: Changes) {
        self.shared.live.begin(&changes.begun);
        if let Err(error) = self.write(&mut changes) {
            return self.fail(&error, changes);
        }
        self.shared.directory.change(&mut changes.directory);
        self.sent.drain(..).rev().for_each(Sent::pronounce);
        self.verdicts.drain(..).for_each(Verdict::pronounce);
        self.permits.clear();
        changes.tell();
        changes.clear();
        self.changes = changes;
        if let Some(engine) = &mut self.engine
            && self.ledger.is_merge_due(engine.dead_bytes_min())
            && self.cursors.is_empty()
        {
            engine.compact();
            self.ledger.merge_began();
        }
    }

    fn write(&mut self, changes: &mut Changes) -> Result<(), EngineError> {
        let batch = &mut changes.batch;
        let Some(engine) = self.engine.as_mut().filter(|_| !batch.changes.is_empty()) else { return Ok(()) };
        let synced = match self.config.sync {
            // A merge must not drop what an acknowledgement that could still be
            // lost has freed, so it waits for a sync.
            Sync::Always => changes.awaited || self.ledger.is_merge_due(engine.dead_bytes_min()),
            Sync::Os => changes.reserved,
        };
        let durability = if synced { Durability::Machine } else { Durability::Process };
        engine.commit(batch, durability)?;
        self.cursors.extend(changes.cursors.drain(..));
        if synced || self.config.sync == Sync::Os {
            self.shared.live.advance(self.cursors.drain(), &changes.ended);
        }
        Ok(())
    }

    /// The engine has failed: nobody knows what has become of this commit, nor
    /// is anything decided before it is known.
    fn fail(&mut self, error: &EngineError, changes: Changes) {
        tracing::error!(%error, "the store has failed; it is being recovered");
        let now = self.now();
        self.sent.drain(..).for_each(Sent::withdraw);
        for verdict in self.verdicts.drain(..) {
            if let Verdict::Opened(token, _, true) = &verdict {
                self.ledger.close_session(token, now);
            }
            verdict.withdraw();
        }
        self.permits.clear();
        self.failed = changes.notices;
        self.cursors.clear();
        self.shared.live.forget();
        self.shared.readers.set(None);
        let (opener, queue) = (Arc::clone(&self.opener), Arc::clone(&self.shared.queue));
        self.recovery = Some(Recovery::start(opener, self.engine.take(), queue));
    }

    /// Answers while there is no engine; yields who wants it closed.
    fn refuse(&mut self) -> Option<Decide<()>> {
        let now = self.now();
        while let Some(command) = self.backlog.pop_front() {
            match command {
                Command::Close(decide) => return Some(decide),
                Command::CloseSession(token) => self.ledger.close_session(&token, now),
                Command::Recovered(recovered) => {
                    let Recovered { engine, loaded } = *recovered;
                    self.recovery = None;
                    self.serve(engine, loaded);
                    tracing::info!("the store is available again");
                    return None;
                }
                other => other.refuse(),
            }
        }
        None
    }

    /// Begins to serve what was loaded.
    fn serve(&mut self, engine: Box<dyn Engine>, loaded: Loaded) {
        let now = self.now();
        self.shared.directory.replace(loaded.directory());
        let former = std::mem::replace(&mut self.ledger, Ledger::new(self.config.clone(), loaded, now));
        let failed = std::mem::take(&mut self.failed);
        self.shared.live.load(self.ledger.cursors());
        self.shared.readers.set(Some(engine.reader()));
        self.changes = Changes::default();
        self.ledger.succeed(former, failed, now, &mut self.changes);
        self.engine = Some(engine);
    }

    fn close(&mut self) -> Result<(), Unavailable> {
        self.shared.readers.set(None);
        let Some(engine) = self.engine.take() else { return Err(Unavailable) };
        engine.close().map_err(|error| {
            tracing::error!(%error, "the store could not be closed in order; it recovers at the next start");
            Unavailable
        })
    }

    /// The time that the store has been running.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Adds a permit to those of its kind: to give back many at once costs as much
/// as to give back one.
fn hold(permits: &mut Vec<OwnedSemaphorePermit>, permit: OwnedSemaphorePermit) {
    match permits.last_mut() {
        Some(last) if Arc::ptr_eq(last.semaphore(), permit.semaphore()) => last.merge(permit),
        _ => permits.push(permit),
    }
}

impl Drop for Committer {
    /// However it ends, nobody is left waiting.
    fn drop(&mut self) {
        self.recovery = None;
        self.shared.readers.set(None);
        self.shared.live.forget();
        self.shared.directory.close();
        self.backlog.drain(..).for_each(Command::refuse);
        self.shared.queue.close();
    }
}
