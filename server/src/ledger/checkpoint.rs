//! [`Checkpoint`]: the state as records, in pieces that are appended between commits.
//!
//! Changes between pieces are safe. Records hold absolute values, and each change after
//! the first piece has a later record; so a piece may hold the state before or after a
//! change. Inboxes and sessions keep their slots; a new one may be skipped, because it
//! has a record of its own.

use super::Ledger;
use super::changes::Changes;
use super::devices::Devices;
use super::inboxes::Inbox;
use super::record::Record;
use super::rooms::RoomPlace;
use crate::log::{CheckpointPart, Frame};

/// Size at which a piece takes no more records.
const PIECE_BYTES_MAX: usize = 256 * 1024;

/// A checkpoint that is under way.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    stage: Stage,
    /// The next slot.
    slot: u32,
    /// The next place among the rooms.
    rooms: RoomPlace,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Counter,
    Inboxes,
    Rooms,
    Sessions,
    Complete,
}

impl Checkpoint {
    /// Returns whether the last piece was built.
    pub(crate) const fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Complete)
    }

    /// Builds the next piece as a separate frame. All decisions of `ledger` must have
    /// been appended before.
    pub(crate) fn next_piece(&mut self, ledger: &Ledger, changes: &mut Changes) -> Frame {
        self.next_piece_of(PIECE_BYTES_MAX, ledger, changes)
    }

    /// Builds the next piece, of about `bytes_max`.
    pub(super) fn next_piece_of(
        &mut self,
        bytes_max: usize,
        ledger: &Ledger,
        changes: &mut Changes,
    ) -> Frame {
        let is_first = self.stage == Stage::Counter;
        changes.begin(ledger.clock());
        if is_first {
            changes.record(&Record::Counter(ledger.numbers.reserved()));
            if ledger.wall_recorded_ms > 0 {
                changes.record(&Record::Wall(ledger.wall_recorded_ms));
                changes.record(&Record::Stopped(ledger.stopped));
            }
            for mark in ledger.expiries.marks() {
                changes.record(&Record::AgeMark(mark));
            }
            self.stage = Stage::Inboxes;
        }
        if self.stage == Stage::Inboxes {
            let inboxes = ledger.inboxes.iter_from(self.slot);
            let records = inboxes.map(|(slot, inbox)| (slot, records_of(inbox)));
            self.take(records, bytes_max, changes, Stage::Rooms);
        }
        if self.stage == Stage::Rooms
            && ledger.rooms.write_from(&mut self.rooms, bytes_max, changes)
        {
            self.stage = Stage::Sessions;
        }
        if self.stage == Stage::Sessions && changes.record_bytes() < bytes_max {
            let sessions = ledger.sessions.records_from(self.slot);
            let records = sessions.map(|session| (session.slot, vec![Record::Session(session)]));
            self.take(records, bytes_max, changes, Stage::Complete);
        }
        let part = CheckpointPart {
            is_first,
            is_last: self.is_complete(),
        };
        Frame {
            checkpoint: Some(part),
            ..changes.take_whole_frame(ledger.time_ms)
        }
    }

    fn take(
        &mut self,
        records: impl Iterator<Item = (u32, Vec<Record>)>,
        bytes_max: usize,
        changes: &mut Changes,
        next: Stage,
    ) {
        for (slot, records) in records {
            if changes.record_bytes() >= bytes_max {
                self.slot = slot;
                return;
            }
            records.iter().for_each(|record| changes.record(record));
        }
        (self.stage, self.slot) = (next, 0);
    }
}

/// Returns the records of an account, its devices, and what it has beside them.
fn records_of(inbox: &Inbox) -> Vec<Record> {
    let id = inbox.log.id;
    let mut records = vec![Record::Account(inbox.record())];
    if let Devices::Nameless(device) = &inbox.devices {
        records.push(Record::Connected(id, device.seen_s));
    }
    let devices = inbox.devices.entries().iter();
    records.extend(devices.map(|device| Record::Device(id, device.state.clone())));
    if inbox.used_s > 0 {
        records.push(Record::Used(id, inbox.used_s));
    }
    if let Some(profile) = &inbox.profile {
        if !profile.blocked.is_empty() {
            records.push(Record::Blocked(id, profile.blocked.clone()));
        }
        if profile.started.count > 0 {
            records.push(Record::Started(id, profile.started));
        }
        if let Some(limits) = &profile.limits {
            records.push(Record::Limits(id, **limits));
        }
        let tokens = profile.tokens.0.iter();
        records.extend(tokens.map(|token| Record::Token(id, token.clone())));
    }
    records
}
