//! Commands of rooms and devices on the commit thread, and the acknowledgements of devices.

use std::sync::Arc;
use std::time::Instant;

use hark_protocol::{Code, DeviceName};

use super::{Committer, Completion, ROOM_ACKS_INTERVAL};
use crate::ledger::{Changes, Ledger};
use crate::shard::queue::{DeviceAcks, ShardCommand};
use crate::store::{Account, DeviceId, DeviceSubscription, NAMELESS, RoomCommand, RoomOperation};

impl Committer {
    /// Decides an operation of rooms, devices or tokens.
    pub(super) fn decide_room(&mut self, operation: RoomOperation) -> Option<Completion> {
        match operation {
            RoomOperation::Command {
                caller,
                origin,
                command,
                completer,
            } => {
                if let RoomCommand::Cursors(name) = &command {
                    self.take_acks_of(&caller, name.as_ref());
                    self.changes.effects.is_awaited = true;
                }
                let changes = &mut self.changes;
                let answer = self.ledger.command(&caller, origin, command, changes);
                Some(Completion::Room(completer, answer))
            }
            RoomOperation::Attach(account, name, completer) => {
                let attached = self.attach(account, &name);
                Some(Completion::Attached(completer, attached))
            }
            RoomOperation::TokenUse(account, digest) => {
                let changes = &mut self.changes;
                self.ledger.note_token_use(&account, &digest, changes);
                None
            }
            // They do not wait for a commit.
            RoomOperation::AcknowledgeInbox(..)
            | RoomOperation::AcknowledgeRoom(..)
            | RoomOperation::Read { .. }
            | RoomOperation::ReadBack { .. }
            | RoomOperation::Token(..) => None,
        }
    }

    /// Attaches a device of a user.
    fn attach(&mut self, account: Account, name: &DeviceName) -> Result<DeviceSubscription, Code> {
        // The former attachment may have acknowledged after this command was taken. From now
        // on, it cannot: the other one begins at these cursors.
        if let Some(device) = self.ledger.device(&account, name) {
            self.ledger.supersede(&account, device);
            self.take_acks(&account, device);
        }
        let attached = self.ledger.attach(&account, name, &mut self.changes)?;
        let (queue, device) = (Arc::clone(&self.shared.queue), attached.device);
        let detach = move || queue.push(ShardCommand::Detach(account.clone(), device));
        Ok(DeviceSubscription {
            inbox: attached.inbox.on_drop(detach),
            ..attached
        })
    }

    fn take_acks_of(&mut self, account: &Account, name: Option<&DeviceName>) {
        let device = match name {
            None => Some(NAMELESS),
            Some(name) => self.ledger.device(account, name),
        };
        if let Some(device) = device {
            self.take_acks(account, device);
        }
    }

    /// Decides the pending acknowledgements of a device.
    fn take_acks(&mut self, account: &Account, device: DeviceId) {
        let (ledger, changes) = (&mut self.ledger, &mut self.changes);
        let queue = &self.shared.queue;
        if let Some(position) = queue.take_ack(account, device) {
            ledger.acknowledge(account, device, position, changes);
        }
        if let Some(acks) = queue.take_room_acks_of(device) {
            acknowledge_rooms(ledger, device, acks, changes);
        }
    }

    /// Moves cursors in rooms, each at most once a second. Those of many devices are spread over
    /// several commits, so that none takes long.
    pub(super) fn acknowledge_rooms(&mut self, devices_max: usize) {
        let queue = &self.shared.queue;
        if self.room_acks_due == 0 {
            let committed = self.room_acks_committed;
            if committed.is_some_and(|committed| committed.elapsed() < ROOM_ACKS_INTERVAL) {
                return;
            }
            self.room_acks_due = queue.room_acks();
        }
        let bytes_max = self.record_bytes_max() / 2;
        let acks = queue.take_room_acks(devices_max);
        let taken = acks.len();
        let mut acks = acks.into_iter();
        while self.changes.record_bytes() < bytes_max
            && let Some((device, acks)) = acks.next()
        {
            acknowledge_rooms(&mut self.ledger, device, acks, &mut self.changes);
        }
        self.room_acks_due = match taken < devices_max {
            // The rest. Others may have been taken by an attachment.
            true => acks.len(),
            false => self.room_acks_due.saturating_sub(taken - acks.len()),
        };
        if self.room_acks_due == 0 {
            self.room_acks_committed = Some(Instant::now());
        }
        for (device, DeviceAcks { account, points }) in acks {
            for (room, point) in points {
                queue.acknowledge_room(&account, device, room, point);
            }
        }
    }
}

/// Moves the cursors of a device in rooms.
fn acknowledge_rooms(
    ledger: &mut Ledger,
    device: DeviceId,
    DeviceAcks { account, points }: DeviceAcks,
    changes: &mut Changes,
) {
    for place in points {
        ledger.acknowledge_room(&account, device, place, changes);
    }
}
