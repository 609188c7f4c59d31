//! The queue of the commit thread: commands in order of arrival, and the latest
//! acknowledgements of each device.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use super::merge::MergedBlocks;
use super::open::OpenShard;
use crate::store::{Account, DeviceId, Operation, Point, Position};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How long acknowledgements linger before they are committed on their own.
const ACKS_LINGER: Duration = Duration::from_millis(20);

/// A command for the commit thread.
#[derive(Debug)]
pub(super) enum ShardCommand {
    Operation(Operation),
    /// The attachment of a device has ended.
    Detach(Account, DeviceId),
    /// Blocks that replace older ones.
    Replace(Box<MergedBlocks>),
    /// The messages of a log up to a position have expired.
    Forget(u64, Position),
    /// The log is open again after a failure.
    Recovered(Box<OpenShard>),
}

impl ShardCommand {
    /// Completes the command as unavailable.
    pub(super) fn refuse(self) {
        match self {
            Self::Operation(operation) => operation.refuse(),
            Self::Detach(..) | Self::Replace(_) | Self::Forget(..) | Self::Recovered(_) => {}
        }
    }

    /// Returns whether the command stays queued while commits are stalled: it has no
    /// answer.
    const fn is_patient(&self) -> bool {
        matches!(
            self,
            Self::Operation(Operation::CloseSession(_)) | Self::Detach(..) | Self::Recovered(_)
        )
    }
}

/// Pending acknowledgements of inboxes: the latest one of each device.
pub(super) type Acks = HashMap<(Account, DeviceId), Position>;

/// Pending acknowledgements of rooms, by device.
pub(super) type RoomAcks = HashMap<DeviceId, DeviceAcks>;

/// The pending acknowledgements of rooms by one device.
#[derive(Debug)]
pub(super) struct DeviceAcks {
    /// The account of the device.
    pub(super) account: Account,
    /// The latest one of each room, in any order.
    pub(super) points: Vec<(u64, Point)>,
}

/// The queue. It is bounded by its callers: each append holds a permit, each connection
/// has few other commands in flight, and each device has one acknowledgement for each log.
#[derive(Debug, Default)]
pub(super) struct Queue {
    // A lock, because any thread may push. It is held for one push, or for taking
    // everything.
    state: Mutex<QueueState>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    commands: Vec<ShardCommand>,
    acks: Acks,
    /// They wait for another commit, or for the next second.
    room_acks: RoomAcks,
    /// The commit thread is asleep and must be woken.
    is_waiting: bool,
    /// The commit thread makes no progress: commands are refused at once.
    is_stalled: bool,
    /// The commit thread must end without a close.
    is_stopped: bool,
    /// The commit thread has ended.
    is_closed: bool,
}

/// The events that the commit thread waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// None: it has work left.
    Nothing,
    /// A command, acknowledgements that have lingered since the instant, or the end of
    /// the duration.
    AcksSince(Instant, Duration),
    /// A command, or the end of the duration. Acknowledgements stay queued.
    Commands(Option<Duration>),
}

impl Queue {
    /// Adds a command, or refuses it if the thread has ended or is stalled.
    pub(super) fn push(&self, command: ShardCommand) {
        let mut state = self.state.lock();
        if state.is_closed || (state.is_stalled && !command.is_patient()) {
            drop(state);
            return command.refuse();
        }
        state.commands.push(command);
        self.wake(state);
    }

    /// Returns undecided commands to the front of the queue.
    pub(super) fn put_back(&self, commands: impl Iterator<Item = ShardCommand>) {
        let mut commands: Vec<_> = commands.collect();
        if commands.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        commands.append(&mut state.commands);
        state.commands = commands;
    }

    /// Adds an acknowledgement.
    pub(super) fn acknowledge(&self, account: &Account, device: DeviceId, position: Position) {
        let mut state = self.state.lock();
        if state.is_closed {
            return;
        }
        let is_first = state.acks.is_empty();
        match state.acks.entry((account.clone(), device)) {
            Entry::Vacant(vacant) => {
                vacant.insert(position);
            }
            Entry::Occupied(mut occupied) if occupied.get().sequence < position.sequence => {
                occupied.insert(position);
            }
            Entry::Occupied(_) => {}
        }
        if is_first {
            self.wake(state);
        }
    }

    /// Adds an acknowledgement of a room. It does not wake the commit thread.
    pub(super) fn acknowledge_room(
        &self,
        account: &Account,
        device: DeviceId,
        room: u64,
        point: Point,
    ) {
        let mut state = self.state.lock();
        if state.is_closed {
            return;
        }
        let acks = state.room_acks.entry(device).or_insert_with(|| DeviceAcks {
            account: account.clone(),
            points: Vec::new(),
        });
        match acks.points.iter_mut().find(|(other, _)| *other == room) {
            Some((_, latest)) if latest.number < point.number => *latest = point,
            Some(_) => {}
            None => acks.points.push((room, point)),
        }
    }

    /// Returns the number of devices with pending acknowledgements of rooms.
    pub(super) fn room_acks(&self) -> usize {
        self.state.lock().room_acks.len()
    }

    /// Takes the pending acknowledgements of rooms by at most so many devices.
    pub(super) fn take_room_acks(&self, devices_max: usize) -> RoomAcks {
        let mut state = self.state.lock();
        if state.room_acks.len() <= devices_max {
            return std::mem::take(&mut state.room_acks);
        }
        let devices: Vec<_> = state.room_acks.keys().take(devices_max).copied().collect();
        let acks = devices
            .into_iter()
            .filter_map(|device| state.room_acks.remove_entry(&device));
        acks.collect()
    }

    /// Takes the pending acknowledgements of rooms by this device.
    pub(super) fn take_room_acks_of(&self, device: DeviceId) -> Option<DeviceAcks> {
        self.state.lock().room_acks.remove(&device)
    }

    /// Takes the pending acknowledgement of this device.
    pub(super) fn take_ack(&self, account: &Account, device: DeviceId) -> Option<Position> {
        self.state.lock().acks.remove(&(account.clone(), device))
    }

    /// Refuses queued and later commands that have an answer, until [`Self::resume`].
    pub(super) fn stall(&self) {
        let mut state = self.state.lock();
        state.is_stalled = true;
        let (patient, refused) = std::mem::take(&mut state.commands)
            .into_iter()
            .partition(ShardCommand::is_patient);
        state.commands = patient;
        drop(state);
        let refused: Vec<ShardCommand> = refused;
        refused.into_iter().for_each(ShardCommand::refuse);
    }

    /// Accepts commands again.
    pub(super) fn resume(&self) {
        self.state.lock().is_stalled = false;
    }

    /// Returns whether commands are refused because the thread makes no progress.
    pub(super) fn is_stalled(&self) -> bool {
        self.state.lock().is_stalled
    }

    /// Asks the thread to end without a close.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.is_stopped = true;
        self.wake(state);
    }

    /// Closes the queue: refuses queued and later commands.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let commands = std::mem::take(&mut state.commands);
        state.acks.clear();
        state.room_acks.clear();
        drop(state);
        commands.into_iter().for_each(ShardCommand::refuse);
    }

    /// Waits for an event, and takes everything queued. `commands` must be empty; its
    /// memory is reused. Returns `None` if the thread must end.
    pub(super) fn take(&self, wait: Wait, commands: &mut Vec<ShardCommand>) -> Option<Acks> {
        let begun = Instant::now();
        let mut state = self.state.lock();
        loop {
            if state.is_stopped {
                return None;
            }
            let limit = match wait {
                _ if !state.commands.is_empty() => break,
                Wait::Nothing => break,
                Wait::AcksSince(since, _) if !state.acks.is_empty() => {
                    Some(ACKS_LINGER.saturating_sub(since.elapsed()))
                }
                Wait::AcksSince(_, timeout) => Some(timeout.saturating_sub(begun.elapsed())),
                Wait::Commands(timeout) => {
                    timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()))
                }
            };
            if limit.is_some_and(|limit| limit.is_zero()) {
                break;
            }
            state = self.wait(state, limit);
        }
        std::mem::swap(&mut state.commands, commands);
        match wait {
            Wait::Commands(_) => Some(Acks::new()),
            Wait::Nothing | Wait::AcksSince(..) => Some(std::mem::take(&mut state.acks)),
        }
    }

    fn wait<'s>(
        &self,
        mut state: MutexGuard<'s, QueueState>,
        limit: Option<Duration>,
    ) -> MutexGuard<'s, QueueState> {
        state.is_waiting = true;
        let mut state = match limit {
            None => self.arrived.wait(state),
            Some(limit) => self.arrived.wait_timeout(state, limit),
        };
        state.is_waiting = false;
        state
    }

    fn wake(&self, mut state: MutexGuard<'_, QueueState>) {
        let is_waiting = std::mem::take(&mut state.is_waiting);
        drop(state);
        if is_waiting {
            self.arrived.notify_one();
        }
    }
}
