//! [`Snapshots`]: the parts of a snapshot, when each is due, the stretches of the stream
//! that are still needed, and the first sequence that a replay needs.
//!
//! A snapshot is a series of entries in the shard's own stream, appended like all others: the
//! places of all blocks before it, and the state in pieces. A replay begins with its first
//! part, and reads no block before it. Before a snapshot, the owner appends copies of young
//! blocks, merged by inbox, and of older blocks, if the stream is too long. A stretch of the
//! stream without live blocks is purged.

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
    /// The last entry was a frame with commands.
    is_frame_last: bool,
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
    stage: Stage,
    /// Young blocks in entries before this sequence are copied, up to a bound.
    copied_before: u64,
    /// Bytes of these copies so far.
    copied_bytes: u64,
    /// Copies in entries before this sequence are appended again.
    reclaimed_before: u64,
    /// The sequence of its first part; `None` before that is built.
    first: Option<u64>,
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
    /// The first part, without content.
    Begin,
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
            is_frame_last: true,
        }
    }

    /// Returns the first sequence of the newest complete snapshot; 0 if there is none.
    pub(super) const fn snapshot(&self) -> u64 {
        self.history.snapshot
    }

    /// Returns whether the next entry, at `sequence`, should be a part instead of a frame
    /// with commands. While commands wait, every other entry is one.
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
        // Nor is one taken for each frame if copies do not shorten the stream.
        let is_grown = bytes >= self.last_bytes + tail_bytes_max / 4;
        let is_due = self.under_way.is_some()
            || entries >= tail_entries_max
            || bytes >= bytes_max
            || (is_grown && self.reclaimed_before(blocks) > 0);
        is_due && (self.is_frame_last || !do_commands_wait)
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
            stage: Stage::Young,
            copied_before: sequence,
            copied_bytes: 0,
            reclaimed_before,
            first: None,
            read: None,
            located: None,
            checkpoint: Checkpoint::default(),
            bytes: 0,
            part_bytes: 0,
        });
        let copied_bytes_max = self.config.tail_bytes_max;
        under_way
            .copy(copied_bytes_max, ledger, blocks, changes)
            .unwrap_or_else(|| {
                Part::Content(under_way.next_part(sequence, &self.history, ledger, blocks, changes))
            })
    }

    /// Takes an entry that was read for its copies.
    pub(super) fn handle_read(&mut self, sequence: u64, blocks: Vec<Block>) {
        if let Some(under_way) = &mut self.under_way {
            under_way.read = Some((sequence, blocks));
        }
    }

    /// Records a stored entry, which is a part of a snapshot if `is_part`.
    pub(super) fn stored(&mut self, sequence: u64, bytes: u64, is_part: bool) {
        self.is_frame_last = !is_part;
        self.history.tail.bytes += bytes;
        let Some(under_way) = &mut self.under_way else {
            return;
        };
        let Some(first) = under_way.first else {
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
            first
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
    /// stream is longer than two tails, twice the live bytes and the slack together; 0 if it
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
        let live_bytes = blocks.live_bytes() + self.last_bytes;
        let bytes_max = 2 * (tail_bytes_max + live_bytes) + slack_bytes;
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
    /// Returns the next copies, or the entry to be read for them; `None` if there are no more.
    fn copy(
        &mut self,
        bytes_max: u64,
        ledger: &Ledger,
        blocks: &mut Blocks,
        changes: &mut Changes,
    ) -> Option<Part> {
        if self.stage == Stage::Young {
            let copies = match self.copied_bytes < bytes_max {
                true => blocks.young_before(self.copied_before, timing::COPY_BYTES_MAX),
                false => Vec::new(),
            };
            let bytes = copies.iter().map(|block| block.payload.len() as u64);
            self.copied_bytes += bytes.sum::<u64>();
            if !copies.is_empty() {
                return Some(Part::Content(entry_of(copies, false, ledger, changes)));
            }
            self.stage = Stage::Reclaim;
        }
        if self.stage == Stage::Reclaim {
            match self.reclaim(blocks) {
                Some(Ok(copies)) => {
                    return Some(Part::Content(entry_of(copies, false, ledger, changes)));
                }
                Some(Err(sequence)) => return Some(Part::Read(sequence)),
                None => self.stage = Stage::Begin,
            }
        }
        None
    }

    /// Returns the next part, to be appended at `sequence`.
    fn next_part(
        &mut self,
        sequence: u64,
        history: &History,
        ledger: &Ledger,
        blocks: &Blocks,
        changes: &mut Changes,
    ) -> Content {
        let first = *self.first.get_or_insert(sequence);
        match self.stage {
            Stage::Young | Stage::Reclaim | Stage::Begin => {
                self.stage = Stage::Index { is_first: true };
                entry_of(Vec::new(), true, ledger, changes)
            }
            Stage::Index { is_first } => {
                Content::Index(self.index(first, is_first, history, blocks))
            }
            Stage::State => {
                let piece = self.checkpoint.next_piece(ledger, changes);
                let part = CheckpointPart {
                    is_first: false,
                    is_last: self.checkpoint.is_complete(),
                };
                Content::Frame(Frame {
                    checkpoint: Some(part),
                    ..piece
                })
            }
        }
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

    fn index(&mut self, first: u64, is_first: bool, history: &History, blocks: &Blocks) -> Index {
        let mut index = Index::default();
        if is_first {
            let mut history = history.clone();
            history.complete(first, self.bytes);
            index.stretches = history.stretches.into();
        }
        if !is_planted(Bug::NoIndex) {
            index.blocks = blocks.located(self.located.as_ref(), first, timing::INDEX_BLOCKS_MAX);
        }
        self.stage = match index.blocks.len() < timing::INDEX_BLOCKS_MAX {
            true => Stage::State,
            false => Stage::Index { is_first: false },
        };
        self.located = index.blocks.last().copied();
        index
    }
}

/// Returns an entry with copies of blocks.
fn entry_of(blocks: Vec<Block>, is_first: bool, ledger: &Ledger, changes: &mut Changes) -> Content {
    let checkpoint = Some(CheckpointPart {
        is_first,
        is_last: false,
    });
    Content::Frame(Frame {
        blocks,
        checkpoint,
        ..ledger.empty_frame(changes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::LIMITS;

    #[test]
    fn parts_take_turns_with_waiting_commands() {
        let config = Config {
            tail_entries_max: 4,
            ..Config::new(LIMITS)
        };
        let blocks = Blocks::new(0);
        let mut snapshots = Snapshots::new(config, History::default());
        assert!(!snapshots.is_part_due(3, &blocks, false));
        for sequence in [4, 6, 8] {
            assert!(snapshots.is_part_due(sequence, &blocks, true));
            snapshots.stored(sequence, 10, true);
            assert!(!snapshots.is_part_due(sequence + 1, &blocks, true));
            assert!(snapshots.is_part_due(sequence + 1, &blocks, false));
            snapshots.stored(sequence + 1, 10, false);
        }
    }
}
