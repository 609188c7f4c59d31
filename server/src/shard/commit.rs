//! The commit thread: it takes all waiting commands, decides them in order of arrival,
//! appends one frame, waits until it is durable, and then completes and notifies. No
//! other thread decides or appends.

mod administer;
mod devices;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;

use super::completion::{Completion, Sent};
use super::merge::MergedBlocks;
use super::open::OpenShard;
use super::queue::{Acks, ShardCommand, Wait};
use super::recovery::{Failed, Recovery};
use super::retention::Retention;
use super::rings::Rings;
use super::{ShardConfig, SharedShard, Sync};
use crate::ledger::{Changes, Checkpoint, Context, Ledger, SpaceUse, SubscriptionEnd};
use crate::log::{AppendError, Durability, Frame, Log, Opener, RECORD_BYTES_MAX};
use crate::metrics::StoreTotals;
use crate::store::{
    Account, Burst, Completer, DeviceId, Fence, NAMELESS, Operation, Position, QueuedSend,
    Unavailable, unix_ms,
};

/// Maximum commands in one commit.
const COMMANDS_MAX: usize = 4096;

/// Maximum bytes of text in one commit, unless it has a single text.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The texts of a frame, and its other records, each take at most this fraction of a
/// segment, so that the frame fits into one.
const TEXT_DIVISOR: u64 = 4;
const RECORDS_DIVISOR: u64 = 8;

/// How long acknowledgements may stay unsynced if no other record forces a sync. Until
/// then, their messages keep their space.
const ACKS_SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// The time between two moves of cursors in rooms.
const ROOM_ACKS_INTERVAL: Duration = Duration::from_secs(1);

/// The maximum number of devices whose cursors in rooms move in one commit.
const ROOM_ACKS_MAX: usize = 500;

/// How long the commit thread waits for commands before it checks whether the log needs
/// maintenance, and the interval during maintenance.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two looks at the use of space.
const SPACE_INTERVAL: Duration = Duration::from_millis(100);

/// The time between two updates of the sizes of the log in the metrics.
const USAGE_INTERVAL: Duration = Duration::from_secs(1);

/// The pause after a checkpoint that ran out of space.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(30);

/// If an append fails within this time after another failure, the log is reopened with a
/// delay.
const REPEATED_FAILURE: Duration = Duration::from_secs(60);

/// The state of the commit thread.
#[derive(Debug)]
pub(super) struct Committer {
    config: ShardConfig,
    shared: Arc<SharedShard>,
    opener: Arc<dyn Opener>,
    /// `None` after a failure, until the log is open again.
    log: Option<Box<dyn Log>>,
    recovery: Option<Recovery>,
    ledger: Ledger,
    /// Subscriptions ended by the commit that failed.
    lost: Vec<SubscriptionEnd>,
    /// Empty between commits.
    changes: Changes,
    checkpoint: Option<Checkpoint>,
    checkpoint_after: Instant,
    /// The log is compacted after the checkpoint.
    is_compaction_due: bool,
    /// Completions of this commit, of sends and of other commands. Empty between commits.
    sent: Vec<Sent>,
    completions: Vec<Completion>,
    /// The permits of the commit's messages. Empty between commits.
    permits: Vec<OwnedSemaphorePermit>,
    /// Messages for the attached members of rooms.
    rings: Rings,
    /// The merge in this commit. Empty between commits.
    merged: Option<MergedBlocks>,
    /// Commands that were taken and are not decided.
    backlog: VecDeque<ShardCommand>,
    /// Devices that were detached while no append was possible.
    detached: Vec<(Account, DeviceId)>,
    /// Cursors that were appended without a sync since.
    unsynced: HashMap<u64, Position>,
    /// The size of a segment of the log.
    segment_bytes: u64,
    space: Space,
    /// The use of space, and the time at which it was looked up.
    space_use: Option<(SpaceUse, Instant)>,
    /// A limit on space was reached in the last frame.
    was_short: bool,
    retention: Retention,
    failed: Option<Instant>,
    acks_committed: Instant,
    synced: Instant,
    /// The last frame was appended without a sync.
    has_unsynced: bool,
    started: Instant,
    /// The time at which all cursors in rooms were saved.
    room_acks_committed: Option<Instant>,
    /// The last time at which the sizes of the log went into the metrics.
    measured: Option<Instant>,
    /// The devices whose cursors in rooms are to be saved by the next commits.
    room_acks_due: usize,
    /// The running time of the store when this process started.
    running_before: Duration,
    /// The time for which the store was not open is counted.
    is_stop_counted: bool,
}

/// The free space of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    Ample,
    /// Sends are refused.
    Low,
    /// Only appends that reclaim space are possible.
    None,
}

/// A closed shard, and the request to close it.
pub(super) struct Closed {
    completer: Completer<()>,
    outcome: Result<(), Unavailable>,
}

impl Closed {
    /// Completes the request to close.
    pub(super) fn complete(self) {
        self.completer.complete(self.outcome);
    }
}

impl Committer {
    /// Returns a committer for a newly opened log.
    pub(super) fn new(
        config: ShardConfig,
        shared: Arc<SharedShard>,
        opener: Arc<dyn Opener>,
        opened: OpenShard,
    ) -> Self {
        let now = Instant::now();
        let OpenShard { log, ledger } = opened;
        let mut committer = Self {
            running_before: ledger.running(),
            is_stop_counted: false,
            room_acks_committed: None,
            measured: None,
            room_acks_due: 0,
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
            is_compaction_due: false,
            sent: Vec::new(),
            completions: Vec::new(),
            permits: Vec::new(),
            rings: Rings::default(),
            merged: None,
            backlog: VecDeque::new(),
            detached: Vec::new(),
            unsynced: HashMap::new(),
            segment_bytes: log.segment_bytes(),
            space: Space::Ample,
            space_use: None,
            was_short: false,
            retention: Retention::default(),
            failed: None,
            acks_committed: now,
            synced: now,
            has_unsynced: false,
            started: now,
        };
        committer.serve(log);
        committer
    }

    /// Runs commits until the shard is asked to close, and releases all handles of the log.
    /// Returns `None` if it was stopped instead.
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
            Some(_) if self.room_acks_due > 0 => Wait::Nothing,
            Some(log) => {
                let has_work = log.has_pending_work() || self.ledger.is_sweeping();
                let timeout = if has_work {
                    MAINTENANCE_INTERVAL
                } else {
                    IDLE_INTERVAL
                };
                Wait::AcksSince(self.acks_committed, timeout)
            }
            None => Wait::Commands(None),
        }
    }

    /// Decides and commits all waiting commands. Returns a request to close.
    fn commit(&mut self, acks: Acks) -> Option<Completer<()>> {
        let context = Context {
            running: self.now(),
            wall_ms: unix_ms(SystemTime::now()),
            is_low_on_space: self.space != Space::Ample,
            space: self.space_use(),
        };
        self.ledger.begin(context, &mut self.changes);
        self.note_limit();
        if !std::mem::replace(&mut self.is_stop_counted, true) {
            self.ledger.count_stop(&mut self.changes);
        }
        if !acks.is_empty() {
            self.acks_committed = Instant::now();
        }
        for (account, device) in self.detached.drain(..) {
            self.ledger.detach(&account, device, &mut self.changes);
        }
        self.acknowledge(acks);
        self.acknowledge_rooms(ROOM_ACKS_MAX);
        let closing = self.decide_backlog(context);
        if closing.is_some() {
            self.room_acks_committed = None;
            self.acknowledge_rooms(usize::MAX);
        }
        // If this commit stalls, the watchdog refuses these as well.
        self.shared.queue.put_back(self.backlog.drain(..));
        self.finish();
        self.merged = None;
        self.continue_checkpoint();
        closing
    }

    /// Moves as many cursors as fit beside other records, and queues the rest.
    fn acknowledge(&mut self, acks: Acks) {
        let bytes_max = self.record_bytes_max() / 2;
        let mut acks = acks.into_iter();
        while self.changes.record_bytes() < bytes_max
            && let Some(((account, device), position)) = acks.next()
        {
            self.ledger
                .acknowledge(&account, device, position, &mut self.changes);
        }
        self.put_back_acks(acks);
    }

    fn put_back_acks(&self, acks: impl Iterator<Item = ((Account, DeviceId), Position)>) {
        for ((account, device), position) in acks {
            self.shared.queue.acknowledge(&account, device, position);
        }
    }

    /// Decides as much of the backlog as fits into one frame.
    fn decide_backlog(&mut self, context: Context) -> Option<Completer<()>> {
        let mut text_bytes = 0;
        while self.has_room() {
            match self.backlog.pop_front()? {
                ShardCommand::Operation(Operation::Close(completer)) => return Some(completer),
                ShardCommand::Operation(Operation::Appends(Burst { fence, sends })) => {
                    let mut sends = sends.into_iter();
                    while self.has_room()
                        && let Some(next) = sends.as_slice().first()
                        && self.has_room_for_text(text_bytes, next.append.text.len())
                        && let Some(send) = sends.next()
                    {
                        text_bytes += send.append.text.len();
                        self.append(send, &fence, context);
                    }
                    if sends.len() > 0 {
                        let sends = sends.collect();
                        let rest = Operation::Appends(Burst { fence, sends });
                        self.backlog.push_front(ShardCommand::Operation(rest));
                        return None;
                    }
                }
                ShardCommand::Replace(merged) => {
                    let bytes = merged.blocks.iter().map(|block| block.payload.len()).sum();
                    if !self.has_room_for_text(text_bytes, bytes) {
                        self.backlog.push_front(ShardCommand::Replace(merged));
                        return None;
                    }
                    text_bytes += bytes;
                    self.replace(*merged);
                }
                ShardCommand::Operation(operation) => {
                    let completion = self.decide(operation, context.running);
                    self.completions.extend(completion);
                }
                ShardCommand::Detach(account, device) => {
                    self.ledger.detach(&account, device, &mut self.changes);
                }
                ShardCommand::Forget(log, through) => {
                    self.ledger.purge(log, through, &mut self.changes);
                }
                // Sent only while there is no log.
                ShardCommand::Recovered(_) => {}
            }
        }
        None
    }

    fn has_room(&self) -> bool {
        self.sent.len() + self.completions.len() < COMMANDS_MAX
            && self.changes.record_bytes() < self.record_bytes_max()
            && !self.changes.is_full()
    }

    /// Returns whether the frame has room for another text.
    fn has_room_for_text(&self, text_bytes: usize, next: usize) -> bool {
        let bytes_max = TEXT_BYTES_MAX.min((self.segment_bytes / TEXT_DIVISOR) as usize);
        text_bytes == 0 || text_bytes + next <= bytes_max
    }

    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX.min((self.segment_bytes / RECORDS_DIVISOR) as usize)
    }

    fn append(&mut self, send: QueuedSend, fence: &Fence, context: Context) {
        let fence_of_session = send.append.send_id.is_some().then(|| fence.clone());
        let outcome = if fence.is_closed() {
            Err(Unavailable)
        } else {
            let outcome = self.ledger.append(send.append, context, &mut self.changes);
            Ok(outcome)
        };
        if let Some(permit) = send.permit {
            hold(&mut self.permits, permit);
        }
        self.sent.push(Sent {
            completer: send.completer,
            outcome,
            fence: fence_of_session,
        });
    }

    /// Replaces blocks by merged ones, as far as they fit into a frame. Merging is not
    /// worth the reserve of free space.
    fn replace(&mut self, mut merged: MergedBlocks) {
        if self.space != Space::Ample || !self.shared.readers.is_current(&merged.log) {
            return;
        }
        let mut room = (self.segment_bytes / TEXT_DIVISOR) as usize;
        let blocks = std::mem::take(&mut merged.blocks).into_iter();
        let fitting = blocks.take_while(|block| {
            let fits = block.payload.len() <= room;
            room = room.saturating_sub(block.payload.len());
            fits
        });
        self.ledger
            .replace_blocks(merged.inbox, fitting, &mut self.changes);
        self.merged = Some(merged);
    }

    fn decide(&mut self, operation: Operation, now: Duration) -> Option<Completion> {
        let (ledger, changes) = (&mut self.ledger, &mut self.changes);
        Some(match operation {
            Operation::Create(name, password, completer) => {
                Completion::Created(completer, ledger.create(&name, password, changes))
            }
            Operation::SetPassword {
                account,
                old,
                new,
                completer,
            } => Completion::Flag(
                completer,
                ledger.set_password(&account, old.as_ref(), new, changes),
            ),
            Operation::Delete(account, completer) => {
                Completion::Flag(completer, ledger.delete(&account, changes))
            }
            Operation::Subscribe {
                account,
                takes_over,
                completer,
            } => {
                let may_subscribe = takes_over || ledger.is_free(&account);
                // The former subscription may have acknowledged after this command was
                // taken.
                if let Some(position) = self.shared.queue.take_ack(&account, NAMELESS) {
                    ledger.acknowledge(&account, NAMELESS, position, changes);
                }
                // Acknowledgements without a takeover are awaited.
                changes.effects.is_awaited |= !takes_over;
                let subscription = may_subscribe
                    .then(|| ledger.subscribe(&account, changes))
                    .flatten();
                Completion::Subscribed(completer, subscription)
            }
            Operation::Room(operation) => return self.decide_room(operation),
            Operation::OpenSession(token, from, completer) => {
                let is_open = ledger.open_session(&token, from, now);
                Completion::Opened(token, completer, is_open)
            }
            Operation::CloseSession(token) => {
                ledger.close_session(&token, now);
                return None;
            }
            Operation::Admin(operation) => return self.administer(operation),
            Operation::OnTakeover(..) => return None,
            Operation::Account(..)
            | Operation::Names(..)
            | Operation::Appends(_)
            | Operation::Read { .. }
            | Operation::Acknowledge(..)
            | Operation::Close(_) => {
                operation.refuse();
                return None;
            }
        })
    }

    /// Appends the frame, updates the directory, completes the commands, and then notifies.
    /// In this order, a client that learns of a change also finds it, and the client that
    /// made the change is answered before others are notified.
    ///
    /// Sends are completed in reverse order: a connection waits for its first send, and
    /// so wakes when all of them are complete.
    fn finish(&mut self) {
        let frame = self.ledger.finish(&mut self.changes);
        let is_maintenance = frame.is_none() && self.is_maintenance_due();
        let frame =
            frame.or_else(|| is_maintenance.then(|| self.ledger.finish_empty(&mut self.changes)));
        if let Some(frame) = frame {
            let durability = if is_maintenance {
                Durability::Machine
            } else {
                self.durability()
            };
            let messages = self.sent.len();
            self.shared
                .in_flight
                .put(&mut self.sent, &mut self.completions);
            let began = Instant::now();
            let appended = self.append_frame(frame, durability);
            let metrics = &self.shared.metrics;
            metrics.record_commit(began.elapsed(), messages);
            let now = self.now();
            for token in self
                .shared
                .in_flight
                .take(&mut self.sent, &mut self.completions)
            {
                self.ledger.close_session(&token, now);
            }
            if let Err(error) = appended {
                return self.fail(&error);
            }
            self.release(durability);
        }
        self.shared
            .directory
            .change(&mut self.changes.effects.accounts);
        let rings = self.changes.effects.rings.drain(..);
        self.shared.open_rings.add(rings);
        self.sent.drain(..).rev().for_each(Sent::complete);
        self.completions.drain(..).for_each(Completion::complete);
        self.permits.clear();
        self.expire_partly();
        self.measure();
        let effects = &mut self.changes.effects;
        effects.publish();
        self.rings
            .publish(effects.said.drain(..), &self.shared.fan_out);
        effects.clear();
    }

    /// Updates the metrics.
    fn measure(&mut self) {
        let metrics = &self.shared.metrics;
        let totals = &self.changes.totals;
        metrics.set_totals(&StoreTotals {
            queued_messages: totals.queued_messages,
            queued_bytes: totals.queued_bytes,
            oldest_unread: totals.oldest_unread(self.now()),
            rooms: self.ledger.room_count() as u64,
            members: totals.members,
            devices: totals.devices,
        });
        if self
            .measured
            .is_none_or(|at| at.elapsed() >= USAGE_INTERVAL)
            && let Some(log) = &self.log
        {
            self.measured = Some(Instant::now());
            metrics.set_usage(&log.usage());
        }
    }

    /// Returns whether a frame is due although no command was decided: space is also
    /// reclaimed without traffic, and a command may await a sync of earlier frames.
    fn is_maintenance_due(&self) -> bool {
        let is_unsynced = !self.unsynced.is_empty()
            && (self.refuses_sends() || self.synced.elapsed() >= ACKS_SYNC_INTERVAL);
        let is_awaited = self.changes.effects.is_awaited
            && self.config.sync == Sync::Always
            && self.has_unsynced;
        is_unsynced || is_awaited || self.log.as_ref().is_some_and(|log| log.has_pending_work())
    }

    /// Updates the state of free space, and logs a change.
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
        self.shared
            .is_open
            .store(space != Space::None, Ordering::Release);
        self.shared
            .is_low_on_space
            .store(self.refuses_sends(), Ordering::Release);
    }

    fn refuses_sends(&self) -> bool {
        self.space != Space::Ample || self.ledger.is_short_of_space()
    }

    /// Returns the use of space, which is looked up once in a while.
    fn space_use(&mut self) -> SpaceUse {
        if let Some((space, at)) = self.space_use
            && at.elapsed() < SPACE_INTERVAL
        {
            return space;
        }
        let usage = self.log.as_ref().map(|log| log.usage()).unwrap_or_default();
        let space = SpaceUse {
            used_bytes: usage.used_bytes(),
            free_bytes: usage.free_bytes,
        };
        self.space_use = Some((space, Instant::now()));
        space
    }

    /// Logs when a limit on space is reached or left.
    fn note_limit(&mut self) {
        let is_short = self.ledger.is_short_of_space();
        if std::mem::replace(&mut self.was_short, is_short) == is_short {
            return;
        }
        let (used_bytes, free_bytes) = self
            .space_use
            .map_or((0, None), |(space, _)| (space.used_bytes, space.free_bytes));
        if is_short {
            tracing::warn!(
                used_bytes,
                free_bytes,
                "limit on space reached: sends are refused"
            );
        } else {
            tracing::info!(used_bytes, free_bytes, "below the limit on space again");
        }
    }

    /// Looks up where the expired parts of inboxes end, one batch at a time. Those that find
    /// no place come again with the next sweep.
    fn expire_partly(&mut self) {
        let expired = std::mem::take(&mut self.changes.effects.partly_expired);
        self.retention.look_up(expired, &self.shared);
    }

    /// Answers commands while no append is possible. Acknowledgements wait. Returns a
    /// request to close.
    fn wait_for_space(&mut self, acks: Acks) -> Option<Completer<()>> {
        self.put_back_acks(acks.into_iter());
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
                effects.is_awaited
                    || effects.is_reserving
                    || self.synced.elapsed() >= ACKS_SYNC_INTERVAL
            }
            Sync::Os => effects.is_reserving,
        };
        if is_synced {
            Durability::Machine
        } else {
            Durability::Process
        }
    }

    fn append_frame(&mut self, frame: Frame, durability: Durability) -> Result<(), AppendError> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        log.append(frame, durability)?;
        self.has_unsynced = durability != Durability::Machine;
        if !self.has_unsynced {
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Hides acknowledged messages from readers. Once their records are durable, releases
    /// these messages and those of deleted accounts.
    fn release(&mut self, durability: Durability) {
        let effects = &mut self.changes.effects;
        effects.ended_rings.iter().for_each(|ring| ring.end_log());
        self.shared
            .readers
            .cursors
            .advance(&effects.heads, &effects.ended);
        self.unsynced.extend(effects.heads.drain(..));
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

    /// Appends the next part of a checkpoint, if one is due or under way.
    fn continue_checkpoint(&mut self) {
        let Some(log) = &self.log else { return };
        // While a limit on space is reached, a checkpoint is worth every segment.
        let is_wanted = log.is_checkpoint_due()
            || (self.ledger.is_short_of_space() && log.has_space_after_checkpoint());
        if self.checkpoint.is_none() && !(is_wanted && Instant::now() >= self.checkpoint_after) {
            return;
        }
        let checkpoint = self.checkpoint.get_or_insert_default();
        let piece = checkpoint.next_piece(&self.ledger, &mut self.changes);
        let is_complete = checkpoint.is_complete();
        let durability = if is_complete {
            Durability::Machine
        } else {
            Durability::Process
        };
        match self.append_frame(piece, durability) {
            Ok(()) if is_complete => {
                self.checkpoint = None;
                self.release(Durability::Machine);
                if std::mem::take(&mut self.is_compaction_due)
                    && let Some(log) = &mut self.log
                {
                    log.compact();
                }
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

    /// Handles a failed append: the ledger is ahead of the log, so both are dropped and
    /// rebuilt.
    fn fail(&mut self, error: &AppendError) {
        tracing::error!(%error, "append failed: reopening the store");
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
        let failed = Failed {
            log: self.log.take(),
            counter,
            is_repeated,
        };
        self.recovery = Some(Recovery::start(opener, failed, limits, queue));
    }

    /// Refuses commands while there is no log. Returns a request to close.
    fn refuse(&mut self) -> Option<Completer<()>> {
        let now = self.now();
        while let Some(command) = self.backlog.pop_front() {
            match command {
                ShardCommand::Operation(Operation::Close(completer)) => return Some(completer),
                ShardCommand::Operation(Operation::CloseSession(token)) => {
                    self.ledger.close_session(&token, now);
                }
                ShardCommand::Recovered(opened) => {
                    self.recovery = None;
                    self.recover(*opened);
                    self.shared.queue.put_back(self.backlog.drain(..));
                    tracing::info!("store available again");
                    return None;
                }
                ShardCommand::Detach(account, device) => self.detached.push((account, device)),
                other => other.refuse(),
            }
        }
        None
    }

    fn recover(&mut self, opened: OpenShard) {
        let now = self.now();
        let former = std::mem::replace(&mut self.ledger, opened.ledger);
        let lost = std::mem::take(&mut self.lost);
        let acks = self.ledger.inherit_from(former, lost, now);
        let acks = acks.into_iter();
        self.put_back_acks(acks.map(|(account, device, position)| ((account, device), position)));
        self.serve(opened.log);
    }

    /// Resumes service from an open log, whose ledger is in place.
    fn serve(&mut self, log: Box<dyn Log>) {
        self.changes.totals = self.ledger.count(self.now());
        let (accounts, tokens) = (self.ledger.accounts(), self.ledger.account_tokens());
        self.shared.directory.replace(accounts, tokens);
        self.shared.readers.cursors.replace(self.ledger.heads());
        self.shared.readers.set(Some(log.reader()));
        self.log = Some(log);
        self.shared.is_open.store(true, Ordering::Release);
    }

    fn close(&mut self) -> Result<(), Unavailable> {
        self.shared.readers.set(None);
        let Some(log) = self.log.take() else {
            return Err(Unavailable);
        };
        log.close().map_err(|error| {
            tracing::error!(%error, "unclean close of the store: the next start recovers it");
            Unavailable
        })
    }

    /// Returns the running time of the store.
    fn now(&self) -> Duration {
        self.running_before + self.started.elapsed()
    }
}

/// Adds a permit, merged into the last one if both belong to one semaphore: releasing many
/// permits at once costs as much as releasing one.
fn hold(permits: &mut Vec<OwnedSemaphorePermit>, permit: OwnedSemaphorePermit) {
    match permits.last_mut() {
        Some(last) if Arc::ptr_eq(last.semaphore(), permit.semaphore()) => last.merge(permit),
        _ => permits.push(permit),
    }
}

impl Drop for Committer {
    /// Answers all pending commands, even after a panic.
    fn drop(&mut self) {
        self.recovery = None;
        self.shared.readers.set(None);
        self.shared.is_open.store(false, Ordering::Release);
        self.shared.directory.close();
        self.backlog.drain(..).for_each(ShardCommand::refuse);
        self.shared.queue.close();
    }
}
