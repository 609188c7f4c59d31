//! The commit thread: it takes everything that waits, decides each command in the
//! order of arrival, appends one frame, waits until it is durable, and then
//! completes and notifies. No other thread decides or appends anything.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hark_protocol::SessionToken;
use tokio::sync::OwnedSemaphorePermit;

use super::open::Opened;
use super::queue::{Acks, Command, Wait};
use super::recovery::{Failed, Recovery};
use super::{ShardConfig, Shared, Sync};
use crate::ledger::{Changes, Checkpoint, Context, Ledger, SubscriptionEnd};
use crate::log::{AppendError, Durability, Frame, Log, Opener};
use crate::store::{Append, Completer, Created, Fence, Outcome, Position, Subscription, Unavailable};

/// Commands that are decided in one commit.
const COMMANDS_MAX: usize = 4096;

/// Bytes of text that are appended in one commit, unless it is one text alone.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The parts of a segment that the texts of a frame take at most, and its other
/// records: so it fits into one.
const TEXT_DIVISOR: u64 = 4;
const RECORDS_DIVISOR: u64 = 8;

/// How long acknowledgements may be without a sync, which nothing else asks for:
/// until then their messages keep their space.
const ACKS_SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// How long the commit thread waits for work before it looks whether the log has some
/// to do, and how long if it has.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(50);

/// How long after a checkpoint that found no space the next one is tried.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(30);

/// An append that fails so soon after another is no exception: the log is opened again
/// with a delay.
const REPEATED_FAILURE: Duration = Duration::from_secs(60);

/// The state of the commit thread.
#[derive(Debug)]
pub(super) struct Committer {
    config: ShardConfig,
    shared: Arc<Shared>,
    opener: Arc<dyn Opener>,
    /// `None` after a failure, until it is open again.
    log: Option<Box<dyn Log>>,
    recovery: Option<Recovery>,
    ledger: Ledger,
    /// Ends of subscriptions of the commit that failed.
    lost: Vec<SubscriptionEnd>,
    /// Empty between two commits.
    changes: Changes,
    checkpoint: Option<Checkpoint>,
    checkpoint_after: Instant,
    /// Completions of this commit, empty between two: of sends, and of the rest.
    sent: Vec<Sent>,
    completions: Vec<Completion>,
    /// The permits of its messages; empty between two.
    permits: Vec<OwnedSemaphorePermit>,
    /// Commands that were taken and are not decided.
    backlog: VecDeque<Command>,
    /// Cursors that were appended, and that no sync has covered.
    unsynced: HashMap<u64, Position>,
    /// The size of a segment of the log.
    segment_bytes: u64,
    space: Space,
    failed: Option<Instant>,
    acks_committed: Instant,
    synced: Instant,
    started: Instant,
    /// The running time when this process began.
    running_before: Duration,
}

/// The space that the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    Ample,
    /// Sends are refused.
    Low,
    /// Nothing can be appended but what reclaims space.
    None,
}

/// The completion of a send, which waits for its commit.
#[derive(Debug)]
pub(super) struct Sent {
    completer: Completer<Outcome>,
    outcome: Result<Outcome, Unavailable>,
    fence: Option<Fence>,
}

impl Sent {
    fn complete(self) {
        self.completer.complete(self.outcome);
    }

    /// Completes it as unknown, and lets no later send of its connection through.
    pub(super) fn fail(self) {
        if let Some(fence) = self.fence {
            fence.close();
        }
        self.completer.complete(Err(Unavailable));
    }
}

/// Any other completion that waits for its commit.
#[derive(Debug)]
pub(super) enum Completion {
    Created(Completer<Created>, Created),
    Flag(Completer<bool>, bool),
    Subscribed(Completer<Option<Subscription>>, Option<Subscription>),
    Opened(SessionToken, Completer<bool>, bool),
}

impl Completion {
    fn complete(self) {
        match self {
            Self::Created(completer, created) => completer.complete(Ok(created)),
            Self::Flag(completer, flag) | Self::Opened(_, completer, flag) => completer.complete(Ok(flag)),
            Self::Subscribed(completer, subscription) => completer.complete(Ok(subscription)),
        }
    }

    /// Completes it as unknown. Returns the session that was opened and is not in use.
    pub(super) fn fail(self) -> Option<SessionToken> {
        match self {
            Self::Created(completer, _) => completer.complete(Err(Unavailable)),
            Self::Flag(completer, _) => completer.complete(Err(Unavailable)),
            Self::Subscribed(completer, _) => completer.complete(Err(Unavailable)),
            Self::Opened(token, completer, is_open) => {
                completer.complete(Err(Unavailable));
                return is_open.then_some(token);
            }
        }
        None
    }
}

/// A shard that was asked to close, and has.
pub(super) struct Closed {
    completer: Completer<()>,
    outcome: Result<(), Unavailable>,
}

impl Closed {
    /// Answers.
    pub(super) fn complete(self) {
        self.completer.complete(self.outcome);
    }
}

impl Committer {
    /// Returns a committer for a log that was just opened.
    pub(super) fn new(
        config: ShardConfig,
        shared: Arc<Shared>,
        opener: Arc<dyn Opener>,
        opened: Opened,
    ) -> Self {
        let now = Instant::now();
        let Opened { log, ledger } = opened;
        let mut committer = Self {
            running_before: ledger.running(),
            config,
            shared,
            opener,
            log: None,
            recovery: None,
            ledger,
            lost: Vec::new(),
            changes: Changes::default(),
            checkpoint: None,
            checkpoint_after: now,
            sent: Vec::new(),
            completions: Vec::new(),
            permits: Vec::new(),
            backlog: VecDeque::new(),
            unsynced: HashMap::new(),
            segment_bytes: log.segment_bytes(),
            space: Space::Ample,
            failed: None,
            acks_committed: now,
            synced: now,
            started: now,
        };
        committer.serve(log);
        committer
    }

    /// Decides and commits until it is asked to close. By then everything is
    /// released. `None` if it was stopped.
    pub(super) fn run(mut self) -> Option<Closed> {
        let mut taken = Vec::new();
        loop {
            let acks = self.shared.queue.take(self.wait(), &mut taken)?;
            self.backlog.extend(taken.drain(..));
            self.shared.progress.begin();
            self.note_space();
            let closing = match &self.log {
                Some(_) if self.space != Space::None => self.commit(acks),
                _ => self.wait_for_space(acks),
            };
            self.shared.progress.end(&self.shared.queue);
            if let Some(completer) = closing {
                let outcome = self.close();
                return Some(Closed { completer, outcome });
            }
        }
    }

    fn wait(&self) -> Wait {
        match &self.log {
            Some(_) if self.checkpoint.is_some() => Wait::Nothing,
            Some(_) if self.space == Space::None => Wait::Commands(Some(IDLE_INTERVAL)),
            Some(log) => {
                let has_work = log.has_pending_work();
                let timeout = if has_work { MAINTENANCE_INTERVAL } else { IDLE_INTERVAL };
                Wait::AcksSince(self.acks_committed, timeout)
            }
            None => Wait::Commands(None),
        }
    }

    /// Decides what waits and commits it. Returns a request to close.
    fn commit(&mut self, acks: Acks) -> Option<Completer<()>> {
        let context = Context { running: self.now(), is_low_on_space: self.space != Space::Ample };
        self.ledger.begin(context, &mut self.changes);
        if !acks.is_empty() {
            self.acks_committed = Instant::now();
        }
        self.acknowledge(acks);
        let closing = self.decide_backlog(context);
        // The watchdog finds it there, if this commit takes too long.
        self.shared.queue.put_back(self.backlog.drain(..));
        self.finish();
        self.continue_checkpoint();
        closing
    }

    /// Moves cursors, as many as fit beside other records. The rest has to wait.
    fn acknowledge(&mut self, acks: Acks) {
        let bytes_max = self.record_bytes_max() / 2;
        let mut acks = acks.into_iter();
        while self.changes.record_bytes() < bytes_max
            && let Some((account, position)) = acks.next()
        {
            self.ledger.acknowledge(&account, position, &mut self.changes);
        }
        acks.for_each(|(account, position)| self.shared.queue.acknowledge(&account, position));
    }

    /// Decides as much of the backlog as fits into one frame.
    fn decide_backlog(&mut self, context: Context) -> Option<Completer<()>> {
        let mut text_bytes = 0;
        while self.has_room() {
            match self.backlog.pop_front()? {
                Command::Close(completer) => return Some(completer),
                Command::Appends(mut appends) => {
                    while self.has_room()
                        && let Some((next, _)) = appends.as_slice().first()
                        && self.has_room_for_text(text_bytes, next.text.len())
                        && let Some((append, completer)) = appends.next()
                    {
                        text_bytes += append.text.len();
                        self.append(append, completer, context);
                    }
                    if appends.len() > 0 {
                        self.backlog.push_front(Command::Appends(appends));
                        return None;
                    }
                }
                command => {
                    let completion = self.decide(command, context.running);
                    self.completions.extend(completion);
                }
            }
        }
        None
    }

    fn has_room(&self) -> bool {
        self.sent.len() + self.completions.len() < COMMANDS_MAX
            && self.changes.record_bytes() < self.record_bytes_max()
            && !self.changes.is_full()
    }

    /// Returns whether another text fits beside those of the frame.
    fn has_room_for_text(&self, text_bytes: usize, next: usize) -> bool {
        let bytes_max = TEXT_BYTES_MAX.min((self.segment_bytes / TEXT_DIVISOR) as usize);
        text_bytes == 0 || text_bytes + next <= bytes_max
    }

    fn record_bytes_max(&self) -> usize {
        (self.segment_bytes / RECORDS_DIVISOR) as usize
    }

    fn append(&mut self, mut append: Append, completer: Completer<Outcome>, context: Context) {
        let is_of_session = append.send_id.is_some();
        let outcome = self.ledger.append(&mut append, context, &mut self.changes);
        if let Some(permit) = append.permit {
            hold(&mut self.permits, permit);
        }
        self.sent.push(Sent { completer, outcome, fence: is_of_session.then_some(append.fence) });
    }

    fn decide(&mut self, command: Command, now: Duration) -> Option<Completion> {
        let (ledger, changes) = (&mut self.ledger, &mut self.changes);
        Some(match command {
            Command::Create(name, password, completer) => {
                Completion::Created(completer, ledger.create(&name, password, changes))
            }
            Command::SetPassword { account, old, new, completer } => {
                Completion::Flag(completer, ledger.set_password(&account, old.as_ref(), new, changes))
            }
            Command::Delete(account, completer) => {
                Completion::Flag(completer, ledger.delete(&account, changes))
            }
            Command::Subscribe { account, takes_over, completer } => {
                let may_subscribe = takes_over || ledger.is_free(&account);
                // The former subscription may have acknowledged after this was taken.
                if let Some(position) = self.shared.queue.take_ack(&account) {
                    ledger.acknowledge(&account, position, changes);
                }
                let subscription = may_subscribe.then(|| ledger.subscribe(&account, changes)).flatten();
                Completion::Subscribed(completer, subscription)
            }
            Command::OpenSession(token, from, completer) => {
                let is_open = ledger.open_session(&token, from, now);
                Completion::Opened(token, completer, is_open)
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

    /// Appends the frame, and then completes and notifies. In this order: a client
    /// that hears of a change finds it, and the one that made it hears of it first.
    ///
    /// Of the sends the last is completed first: a connection waits for its first
    /// one, and so wakes when all are completed.
    fn finish(&mut self) {
        let frame = self.ledger.finish(&mut self.changes);
        let is_maintenance = frame.is_none() && self.is_maintenance_due();
        let frame = frame.or_else(|| is_maintenance.then(|| self.ledger.finish_empty(&mut self.changes)));
        if let Some(frame) = frame {
            let durability = if is_maintenance { Durability::Machine } else { self.durability() };
            self.shared.in_flight.put(&mut self.sent, &mut self.completions);
            let appended = self.append_frame(frame, durability);
            let now = self.now();
            for token in self.shared.in_flight.take(&mut self.sent, &mut self.completions) {
                self.ledger.close_session(&token, now);
            }
            if let Err(error) = appended {
                return self.fail(&error);
            }
            self.release(durability);
        }
        self.shared.directory.change(&mut self.changes.effects.accounts);
        self.sent.drain(..).rev().for_each(Sent::complete);
        self.completions.drain(..).for_each(Completion::complete);
        self.permits.clear();
        self.changes.effects.publish();
        self.changes.effects.clear();
    }

    /// Returns whether a frame is to be appended although nothing was decided: space
    /// is reclaimed without traffic, too.
    fn is_maintenance_due(&self) -> bool {
        let is_unsynced = !self.unsynced.is_empty()
            && (self.space != Space::Ample || self.synced.elapsed() >= ACKS_SYNC_INTERVAL);
        is_unsynced || self.log.as_ref().is_some_and(|log| log.has_pending_work())
    }

    /// Looks up the space that the log has, and reports a change.
    fn note_space(&mut self) {
        let Some(log) = &self.log else { return };
        self.segment_bytes = log.segment_bytes();
        let space = match (log.is_full(), log.is_low_on_space()) {
            (true, _) => Space::None,
            (_, true) => Space::Low,
            _ => Space::Ample,
        };
        if std::mem::replace(&mut self.space, space) != space {
            match space {
                Space::None => tracing::error!("disk full: the store is unavailable"),
                Space::Low => tracing::warn!("low on disk space: sends are refused"),
                Space::Ample => tracing::info!("disk space available again"),
            }
        }
        self.shared.is_open.store(space != Space::None, Ordering::Release);
    }

    /// Answers while nothing can be appended. Acknowledgements wait. Returns a request
    /// to close.
    fn wait_for_space(&mut self, acks: Acks) -> Option<Completer<()>> {
        acks.into_iter().for_each(|(account, position)| self.shared.queue.acknowledge(&account, position));
        let closing = self.refuse();
        if self.log.as_ref().is_some_and(|log| log.has_pending_work()) {
            match self.append_frame(Frame::default(), Durability::Machine) {
                Ok(()) => self.release(Durability::Machine),
                Err(AppendError::NoSpace) => {}
                Err(error) => self.fail(&error),
            }
        }
        self.continue_checkpoint();
        closing
    }

    fn durability(&self) -> Durability {
        let effects = &self.changes.effects;
        let is_synced = match self.config.sync {
            Sync::Always => {
                effects.is_awaited || effects.is_reserving || self.synced.elapsed() >= ACKS_SYNC_INTERVAL
            }
            Sync::Os => effects.is_reserving,
        };
        if is_synced { Durability::Machine } else { Durability::Process }
    }

    fn append_frame(&mut self, frame: Frame, durability: Durability) -> Result<(), AppendError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(frame, durability)?;
        if durability == Durability::Machine {
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Hides acknowledged messages from readers, and releases them, and those of
    /// accounts that ended, once the frame that says so is as durable as the rest.
    fn release(&mut self, durability: Durability) {
        let effects = &mut self.changes.effects;
        self.shared.readers.cursors.advance(&effects.cursors, &effects.ended);
        self.unsynced.extend(effects.cursors.drain(..));
        if durability == Durability::Process && self.config.sync == Sync::Always {
            return;
        }
        let Some(log) = &mut self.log else { return };
        for (incarnation, cursor) in self.unsynced.drain() {
            log.release(incarnation, cursor.sequence.0);
        }
        for incarnation in &effects.ended {
            log.release(*incarnation, u64::MAX);
        }
    }

    /// Appends the next piece of a checkpoint, if one is due or under way.
    fn continue_checkpoint(&mut self) {
        let Some(log) = &self.log else { return };
        if self.checkpoint.is_none() && !(log.is_checkpoint_due() && Instant::now() >= self.checkpoint_after)
        {
            return;
        }
        let checkpoint = self.checkpoint.get_or_insert_default();
        let piece = checkpoint.next_piece(&self.ledger, &mut self.changes);
        let is_complete = checkpoint.is_complete();
        let durability = if is_complete { Durability::Machine } else { Durability::Process };
        match self.append_frame(piece, durability) {
            Ok(()) if is_complete => {
                self.checkpoint = None;
                self.release(Durability::Machine);
            }
            Ok(()) => {}
            Err(AppendError::NoSpace) => {
                tracing::warn!("checkpoint abandoned: no space left");
                self.checkpoint = None;
                self.checkpoint_after = Instant::now() + CHECKPOINT_RETRY;
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Handles a failed append: the ledger is ahead of the log, so both are dropped
    /// and opened again.
    fn fail(&mut self, error: &AppendError) {
        tracing::error!(%error, "append failed: opening the store again");
        let now = self.now();
        self.sent.drain(..).for_each(Sent::fail);
        for completion in self.completions.drain(..) {
            if let Some(token) = completion.fail() {
                self.ledger.close_session(&token, now);
            }
        }
        self.permits.clear();
        self.lost = std::mem::take(&mut self.changes.effects.ends);
        self.changes.effects.clear();
        self.checkpoint = None;
        self.unsynced.clear();
        self.shared.is_open.store(false, Ordering::Release);
        self.shared.readers.set(None);
        let (opener, queue) = (Arc::clone(&self.opener), Arc::clone(&self.shared.queue));
        let (limits, counter) = (self.config.limits(), self.ledger.counter());
        let failed_before = self.failed.replace(Instant::now());
        let is_repeated = failed_before.is_some_and(|at| at.elapsed() < REPEATED_FAILURE);
        let failed = Failed { log: self.log.take(), counter, is_repeated };
        self.recovery = Some(Recovery::start(opener, failed, limits, queue));
    }

    /// Answers while there is no log. Returns a request to close.
    fn refuse(&mut self) -> Option<Completer<()>> {
        let now = self.now();
        while let Some(command) = self.backlog.pop_front() {
            match command {
                Command::Close(completer) => return Some(completer),
                Command::CloseSession(token) => self.ledger.close_session(&token, now),
                Command::Recovered(opened) => {
                    self.recovery = None;
                    self.recover(*opened);
                    self.shared.queue.put_back(self.backlog.drain(..));
                    tracing::info!("store available again");
                    return None;
                }
                other => other.refuse(),
            }
        }
        None
    }

    fn recover(&mut self, opened: Opened) {
        let now = self.now();
        let former = std::mem::replace(&mut self.ledger, opened.ledger);
        let lost = std::mem::take(&mut self.lost);
        for (account, position) in self.ledger.inherit_from(former, lost, now) {
            self.shared.queue.acknowledge(&account, position);
        }
        self.serve(opened.log);
    }

    /// Serves from an open log, whose ledger is in place.
    fn serve(&mut self, log: Box<dyn Log>) {
        self.shared.directory.replace(self.ledger.accounts());
        let cursors = self.ledger.inboxes();
        let cursors = cursors.map(|(entry, cursor, _)| (entry.account.incarnation, cursor));
        self.shared.readers.cursors.replace(cursors);
        self.shared.readers.set(Some(log.reader()));
        self.log = Some(log);
        self.shared.is_open.store(true, Ordering::Release);
    }

    fn close(&mut self) -> Result<(), Unavailable> {
        self.shared.readers.set(None);
        let Some(log) = self.log.take() else { return Err(Unavailable) };
        log.close().map_err(|error| {
            tracing::error!(%error, "cannot close the store in order: it recovers at the next start");
            Unavailable
        })
    }

    /// Returns the running time of the store.
    fn now(&self) -> Duration {
        self.running_before + self.started.elapsed()
    }
}

/// Adds a permit to the others of its kind: to release many at once costs as much
/// as to release one.
fn hold(permits: &mut Vec<OwnedSemaphorePermit>, permit: OwnedSemaphorePermit) {
    match permits.last_mut() {
        Some(last) if Arc::ptr_eq(last.semaphore(), permit.semaphore()) => last.merge(permit),
        _ => permits.push(permit),
    }
}

impl Drop for Committer {
    /// Answers every command, however the thread ends.
    fn drop(&mut self) {
        self.recovery = None;
        self.shared.readers.set(None);
        self.shared.is_open.store(false, Ordering::Release);
        self.shared.directory.close();
        self.backlog.drain(..).for_each(Command::refuse);
        self.shared.queue.close();
    }
}
