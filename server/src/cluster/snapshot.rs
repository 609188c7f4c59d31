//! [`Snapshots`]: the parts of a snapshot, when each is due, the stretches of the stream
//! that are still needed, and the first sequence that a replay needs.
//!
//! A snapshot is a series of entries in the shard's own stream, appended like all others:
//! copies of young blocks, merged by inbox; copies of older blocks, if the stream is too
//! long; the places of all other blocks; and the state in pieces. Before its first part,
//! the stream holds only copies of blocks. A stretch of it without live blocks is purged.

use std::collections::VecDeque;

use super::blocks::Blocks;
use super::bugs::{Bug, is_planted};
use super::entry::{Content, Index, Located, Stretch};
use super::{Config, timing};
use crate::ledger::{Changes, Checkpoint, Ledger};
use crate::log::{Block, CheckpointPart, Frame};

/// The snapshots of an owner.
#[derive(Debug)]
pub(super) struct Snapshots {
    config: Config,
    history: History,
    /// Bytes of the newest complete snapshot.
    last_bytes: u64,
    under_way: Option<UnderWay>,
    /// Frames with commands since the last part.
    frames: u32,
}

/// The stretches of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    /// The stretches before the newest complete snapshot, oldest first.
    pub(super) stretches: VecDeque<Stretch>,
    /// The entries from its beginning on: a replay needs them.
    pub(super) tail: Stretch,
    /// The first sequence of the newest complete snapshot; 0 if there is none.
    pub(super) snapshot: u64,
}

#[derive(Debug)]
struct UnderWay {
    first: u64,
    is_begun: bool,
    stage: Stage,
    /// Copies in entries before this sequence are appended again.
    reclaimed_before: u64,
    /// An entry that was read for its copies.
    read: Option<(u64, Vec<Block>)>,
    /// The last place in the index.
    located: Option<Located>,
    checkpoint: Checkpoint,
    /// Bytes of the entries from its first part on.
    bytes: u64,
    /// Bytes of its parts.
    part_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Copies of young blocks.
    Young,
    /// Copies of older blocks.
    Reclaim,
    /// The places of blocks.
    Index { is_first: bool },
    /// The state.
    State,
}

/// The next part of a snapshot.
#[derive(Debug)]
pub(super) enum Part {
    /// An entry to append.
    Content(Content),
    /// The entry at this sequence must be read first.
    Read(u64),
}

impl Snapshots {
    /// Returns the snapshots of a stream with this history.
    pub(super) const fn new(config: Config, history: History) -> Self {
        Self {
            config,
            history,
            last_bytes: 0,
            under_way: None,
            frames: 0,
        }
    }

    /// Returns the first sequence of the newest complete snapshot; 0 if there is none.
    pub(super) const fn snapshot(&self) -> u64 {
        self.history.snapshot
    }

    /// Returns whether the next entry, at `sequence`, should be a part instead of a frame
    /// with commands.
    pub(super) fn is_part_due(
        &self,
        sequence: u64,
        blocks: &Blocks,
        do_commands_wait: bool,
    ) -> bool {
        let Config {
            tail_entries_max,
            tail_bytes_max,
            ..
        } = self.config;
        let Stretch { first, bytes } = self.history.tail;
        let entries = sequence.saturating_sub(first);
        // A snapshot waits until it is small beside the entries that it replaces.
        let bytes_max = tail_bytes_max.max(2 * self.last_bytes);
        let is_due = self.under_way.is_some()
            || entries >= tail_entries_max
            || bytes >= bytes_max
            || self.reclaimed_before(blocks) > 0;
        let is_overdue = entries >= 2 * tail_entries_max || bytes >= 2 * bytes_max;
        is_due && (is_overdue || !do_commands_wait || self.frames >= timing::FRAMES_PER_PART)
    }

    /// Builds the next part, to be appended at `sequence`. All decisions of `ledger` must
    /// have been appended before.
    pub(super) fn next_part(
        &mut self,
        sequence: u64,
        ledger: &Ledger,
        blocks: &mut Blocks,
        changes: &mut Changes,
    ) -> Part {
        let reclaimed_before = if self.under_way.is_none() {
            self.reclaimed_before(blocks)
        } else {
            0
        };
        let under_way = self.under_way.get_or_insert_with(|| UnderWay {
            first: sequence,
            is_begun: false,
            stage: Stage::Young,
            reclaimed_before,
            read: None,
            located: None,
            checkpoint: Checkpoint::default(),
            bytes: 0,
            part_bytes: 0,
        });
        let part = under_way.next_part(&self.history, ledger, blocks, changes);
        if matches!(part, Part::Content(_)) {
            self.frames = 0;
        }
        part
    }

    /// Takes an entry that was read for its copies.
    pub(super) fn handle_read(&mut self, sequence: u64, blocks: Vec<Block>) {
        if let Some(under_way) = &mut self.under_way {
            under_way.read = Some((sequence, blocks));
        }
    }

    /// Records a stored entry, which is a part of a snapshot if `is_part`.
    pub(super) fn stored(&mut self, sequence: u64, bytes: u64, is_part: bool) {
        self.frames += u32::from(!is_part);
        self.history.tail.bytes += bytes;
        let Some(under_way) = &mut self.under_way else {
            return;
        };
        under_way.bytes += bytes;
        under_way.part_bytes += bytes * u64::from(is_part);
        if !under_way.checkpoint.is_complete() {
            return;
        }
        self.last_bytes = under_way.part_bytes;
        let first = if is_planted(Bug::CursorBeforeBlock) {
            sequence
        } else {
            under_way.first
        };
        self.history.complete(first, under_way.bytes);
        self.under_way = None;
    }

    /// Returns the sequence before which the stream is to be purged now, if there is any.
    pub(super) fn purge(&mut self, blocks: &Blocks) -> Option<u64> {
        let first = blocks
            .first_sequence()
            .filter(|_| !is_planted(Bug::LiveBlocksPurged));
        let needed = first.map_or(self.history.snapshot, |first| {
            first.min(self.history.snapshot)
        });
        let mut before = None;
        while let Some(end) = self.history.end_of(0).filter(|end| *end <= needed) {
            self.history.stretches.pop_front();
            before = Some(end);
        }
        before
    }

    /// Returns the sequence before which copies are to be appended again, because the
    /// stream is longer than the cache, twice the live bytes and the slack together; 0 if it
    /// is not.
    fn reclaimed_before(&self, blocks: &Blocks) -> u64 {
        let Config {
            tail_bytes_max,
            slack_bytes,
            ..
        } = self.config;
        let History {
            stretches, tail, ..
        } = &self.history;
        let mut bytes = tail.bytes + stretches.iter().map(|stretch| stretch.bytes).sum::<u64>();
        let bytes_max = tail_bytes_max + 2 * (blocks.live_bytes() + self.last_bytes) + slack_bytes;
        let mut before = 0;
        for (at, stretch) in stretches.iter().enumerate() {
            // One snapshot does not grow much longer than the others.
            if bytes <= bytes_max || blocks.copied_bytes_before(before) >= tail_bytes_max {
                break;
            }
            bytes -= stretch.bytes;
            before = self.history.end_of(at).unwrap_or(before);
        }
        before
    }

    /// Returns the bytes of the stream.
    #[cfg(test)]
    pub(super) fn stream_bytes(&self) -> u64 {
        let History {
            stretches, tail, ..
        } = &self.history;
        tail.bytes + stretches.iter().map(|stretch| stretch.bytes).sum::<u64>()
    }
}

impl History {
    /// Records that the snapshot that begins with `first` is complete. `bytes` are those of
    /// the entries from there on.
    pub(super) fn complete(&mut self, first: u64, bytes: u64) {
        let former = self.tail;
        self.stretches.push_back(Stretch {
            bytes: former.bytes.saturating_sub(bytes),
            ..former
        });
        (self.tail, self.snapshot) = (Stretch { first, bytes }, first);
    }

    /// Returns the sequence that follows a stretch.
    fn end_of(&self, at: usize) -> Option<u64> {
        self.stretches.get(at)?;
        Some(
            self.stretches
                .get(at + 1)
                .map_or(self.tail.first, |next| next.first),
        )
    }
}

impl UnderWay {
    fn next_part(
        &mut self,
        history: &History,
        ledger: &Ledger,
        blocks: &mut Blocks,
        changes: &mut Changes,
    ) -> Part {
        if self.stage == Stage::Young {
            let copies = match is_planted(Bug::NoCopies) {
                true => Vec::new(),
                false => blocks.young_before(self.first, timing::COPY_BYTES_MAX),
            };
            if !copies.is_empty() || !self.is_begun {
                return self.copies(copies, ledger, changes);
            }
            self.stage = Stage::Reclaim;
        }
        if self.stage == Stage::Reclaim {
            match self.reclaim(blocks) {
                Some(Ok(copies)) => return self.copies(copies, ledger, changes),
                Some(Err(sequence)) => return Part::Read(sequence),
                None => self.stage = Stage::Index { is_first: true },
            }
        }
        if let Stage::Index { is_first } = self.stage {
            return Part::Content(Content::Index(self.index(is_first, history, blocks)));
        }
        let piece = self.checkpoint.next_piece(ledger, changes);
        let part = CheckpointPart {
            is_first: false,
            is_last: self.checkpoint.is_complete(),
        };
        Part::Content(Content::Frame(Frame {
            checkpoint: Some(part),
            ..piece
        }))
    }

    fn copies(&mut self, blocks: Vec<Block>, ledger: &Ledger, changes: &mut Changes) -> Part {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let checkpoint = Some(CheckpointPart {
            is_first,
            is_last: false,
        });
        Part::Content(Content::Frame(Frame {
            blocks,
            checkpoint,
            ..ledger.empty_frame(changes)
        }))
    }

    /// Returns the copies of the next entry, or the sequence of an entry to be read.
    fn reclaim(&mut self, blocks: &Blocks) -> Option<Result<Vec<Block>, u64>> {
        let (sequence, copies) = blocks.oldest_copies(self.reclaimed_before)?;
        if let Some(copies) = copies {
            return Some(Ok(copies));
        }
        let Some((_, read)) = self.read.take_if(|(read, _)| *read == sequence) else {
            return Some(Err(sequence));
        };
        let copies = blocks.live_at(sequence, read);
        if copies.is_empty() {
            tracing::error!(sequence, "an entry lacks its blocks: its stretch is kept");
            self.reclaimed_before = 0;
            return None;
        }
        Some(Ok(copies))
    }

    fn index(&mut self, is_first: bool, history: &History, blocks: &Blocks) -> Index {
        let mut index = Index::default();
        if is_first {
            let mut history = history.clone();
            history.complete(self.first, self.bytes);
            index.stretches = history.stretches.into();
        }
        if !is_planted(Bug::NoIndex) {
            index.blocks =
                blocks.located(self.located.as_ref(), self.first, timing::INDEX_BLOCKS_MAX);
        }
        self.stage = match index.blocks.len() < timing::INDEX_BLOCKS_MAX {
            true => Stage::State,
            false => Stage::Index { is_first: false },
        };
        self.located = index.blocks.last().copied();
        index
    }
}
