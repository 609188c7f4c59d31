//! [`Checkpoint`]: the state as records, in pieces that are appended between commits.
//!
//! Changes between pieces are safe. Records hold absolute values, and each change after
//! the first piece has a later record; so a piece may hold the state before or after a
//! change. Inboxes and sessions keep their slots; a new one may be skipped, because it
//! has a record of its own.

use super::Ledger;
use super::changes::Changes;
use super::record::Record;
use crate::log::{CheckpointPart, Frame};

/// Size at which a piece takes no more records.
const PIECE_BYTES_MAX: usize = 256 * 1024;

/// A checkpoint that is under way.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    stage: Stage,
    /// The next slot.
    slot: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Counter,
    Inboxes,
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
        changes.begin(ledger.time_ms, ledger.running, ledger.numbers.last());
        if is_first {
            changes.record(&Record::Counter(ledger.numbers.reserved()));
            self.stage = Stage::Inboxes;
        }
        if self.stage == Stage::Inboxes {
            let inboxes = ledger.inboxes.iter_from(self.slot);
            let records = inboxes.map(|(slot, inbox)| (slot, Record::Account(inbox.record())));
            self.take(records, bytes_max, changes, Stage::Sessions);
        }
        if self.stage == Stage::Sessions && changes.record_bytes() < bytes_max {
            let sessions = ledger.sessions.records_from(self.slot);
            let records = sessions.map(|session| (session.slot, Record::Session(session)));
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
        records: impl Iterator<Item = (u32, Record)>,
        bytes_max: usize,
        changes: &mut Changes,
        next: Stage,
    ) {
        for (slot, record) in records {
            if changes.record_bytes() >= bytes_max {
                self.slot = slot;
                return;
            }
            changes.record(&record);
        }
        (self.stage, self.slot) = (next, 0);
    }
}
