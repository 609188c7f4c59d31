//! [`Snapshots`]: the parts of a snapshot, when each is due, and the first
//! sequence that a replay needs.
//!
//! A snapshot is a series of entries in the shard's own stream, appended like all others:
//! first the live blocks of older entries, grouped by entry, then the state in pieces.
//! When its last part is stored, everything before its first part is purged.

use super::blocks::Blocks;
use super::bugs::{Bug, is_planted};
use super::{Config, timing};
use crate::ledger::{Changes, Checkpoint, Ledger};
use crate::log::{Block, CheckpointPart, Frame};

/// The snapshots of an owner.
#[derive(Debug)]
pub(super) struct Snapshots {
    entries_max: u64,
    bytes_max: u64,
    /// The first sequence that a replay needs.
    tail_first: u64,
    /// Bytes of the entries from that sequence on.
    tail_bytes: u64,
    under_way: Option<UnderWay>,
    /// Frames with commands since the last part.
    frames: u32,
}

#[derive(Debug)]
struct UnderWay {
    first: u64,
    is_begun: bool,
    checkpoint: Checkpoint,
    /// Bytes of the entries from its first part on.
    bytes: u64,
}

impl Snapshots {
    /// Returns the snapshots of a stream whose replay needs `tail_first` and later.
    pub(super) const fn new(config: &Config, tail_first: u64) -> Self {
        Self {
            entries_max: config.tail_entries_max,
            bytes_max: config.tail_bytes_max,
            tail_first,
            tail_bytes: 0,
            under_way: None,
            frames: 0,
        }
    }

    /// Returns whether the next entry, at `sequence`, should be a part instead of a frame
    /// with commands.
    pub(super) fn is_part_due(&self, sequence: u64, blocks: &Blocks, do_commands_wait: bool) -> bool {
        let entries = sequence.saturating_sub(self.tail_first);
        // Live blocks are copied with each snapshot, so it waits until half of the bytes
        // are dead.
        let bytes_max = self.bytes_max.max(2 * blocks.live_bytes());
        let is_due = self.under_way.is_some() || entries >= self.entries_max || self.tail_bytes >= bytes_max;
        let is_overdue = entries >= 2 * self.entries_max || self.tail_bytes >= 2 * bytes_max;
        is_due && (is_overdue || !do_commands_wait || self.frames >= timing::FRAMES_PER_PART)
    }

    /// Builds the next part, to be appended at `sequence`. All decisions of `ledger` must
    /// have been appended before.
    pub(super) fn next_part(
        &mut self,
        sequence: u64,
        ledger: &Ledger,
        blocks: &Blocks,
        changes: &mut Changes,
    ) -> Frame {
        self.frames = 0;
        let under_way = self.under_way.get_or_insert_with(|| UnderWay {
            first: sequence,
            is_begun: false,
            checkpoint: Checkpoint::default(),
            bytes: 0,
        });
        let is_first = !std::mem::replace(&mut under_way.is_begun, true);
        let copies = older_blocks(blocks, under_way.first);
        if !copies.is_empty() {
            let part = CheckpointPart { is_first, is_last: false };
            return Frame { blocks: copies, checkpoint: Some(part), ..ledger.empty_frame(changes) };
        }
        let piece = under_way.checkpoint.next_piece(ledger, changes);
        let part = CheckpointPart { is_first, is_last: under_way.checkpoint.is_complete() };
        Frame { checkpoint: Some(part), ..piece }
    }

    /// Records a stored entry. Returns a new first sequence that a replay needs, if it
    /// has changed.
    pub(super) fn stored(&mut self, sequence: u64, bytes: u64, part: Option<CheckpointPart>) -> Option<u64> {
        self.frames += u32::from(part.is_none());
        self.tail_bytes += bytes;
        let under_way = self.under_way.as_mut()?;
        under_way.bytes += bytes;
        if !part?.is_last {
            return None;
        }
        (self.tail_first, self.tail_bytes) = (under_way.first, under_way.bytes);
        self.under_way = None;
        if is_planted(Bug::CursorBeforeBlock) {
            self.tail_first = sequence;
        }
        (self.tail_first > 1).then_some(self.tail_first)
    }
}

fn older_blocks(blocks: &Blocks, first: u64) -> Vec<Block> {
    if is_planted(Bug::NoCopies) {
        return Vec::new();
    }
    blocks.oldest_before(first, timing::COPY_BYTES_MAX)
}
