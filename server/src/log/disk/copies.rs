//! Copies the live blocks of segments that are mostly dead, to reclaim their space.
//!
//! The maintenance thread reads blocks ahead, sorted by inbox, into a bounded queue; the
//! thread of the log takes a piece of it with each append. Copied blocks stay separate
//! but adjacent, so that the blocks of an inbox can be read together.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::file::read_exact;
use super::format::{BlockRecord, SegmentId, decode_block};
use super::index::Index;
use super::segment::{Segment, unit_bytes};
use super::table::BlockEntry;
use crate::log::InboxId;
use crate::sync::Mutex;

/// Maximum bytes read ahead.
const QUEUE_BYTES: usize = 1 << 20;
/// Bounds of the bytes that an append copies. Within them, it copies as many bytes as it
/// writes itself.
const PIECE_MIN: usize = 16 << 10;
const PIECE_MAX: usize = 256 << 10;
/// Maximum bytes copied by an append if copies are urgent, also as a fraction of a
/// segment.
const URGENT_MAX: u64 = 1 << 20;
const URGENT_DIVISOR: u64 = 16;

/// The next item to copy.
#[derive(Debug)]
pub(super) enum CopyItem {
    /// A block.
    Block {
        source: SegmentId,
        entry: BlockEntry,
        payload: Bytes,
    },
    /// The end of an inbox: all its blocks in the segment come before.
    Done { source: SegmentId, inbox: InboxId },
}

impl CopyItem {
    /// Returns the block to append, if the piece is one.
    pub(super) fn record(&self) -> Option<BlockRecord<'_>> {
        match self {
            Self::Block { entry, payload, .. } => Some(BlockRecord {
                inbox: entry.inbox,
                first: entry.first,
                last: entry.last,
                payload,
            }),
            Self::Done { .. } => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Block { payload, .. } => payload.len() + 64,
            Self::Done { .. } => 16,
        }
    }
}

/// Blocks that were read ahead.
#[derive(Debug)]
pub(super) struct CopyQueue {
    /// Filled by the maintenance thread, drained by the thread of the log.
    state: Mutex<CopyItems>,
    is_urgent: AtomicBool,
    /// Minimum bytes copied by an append if copies are urgent.
    urgent_bytes: usize,
}

#[derive(Debug, Default)]
struct CopyItems {
    pieces: VecDeque<CopyItem>,
    bytes: usize,
}

impl CopyQueue {
    pub(super) fn new(segment_bytes: u64) -> Self {
        let urgent_bytes = URGENT_MAX.min(segment_bytes / URGENT_DIVISOR) as usize;
        Self {
            state: Mutex::default(),
            is_urgent: false.into(),
            urgent_bytes,
        }
    }

    /// Sets whether appends copy more than their own size.
    pub(super) fn set_urgent(&self, is_urgent: bool) {
        self.is_urgent.store(is_urgent, Ordering::Relaxed);
    }

    /// Takes the pieces to copy with an append of `bytes`, without blocks that have been
    /// released or moved.
    pub(super) fn take(
        &self,
        bytes: usize,
        is_live: impl Fn(&BlockEntry, SegmentId) -> bool,
    ) -> Vec<CopyItem> {
        let mut state = self.state.lock();
        let least = if self.is_urgent.load(Ordering::Relaxed) {
            self.urgent_bytes
        } else {
            0
        };
        let mut budget = bytes.clamp(PIECE_MIN, PIECE_MAX).max(least);
        let mut taken = Vec::new();
        while let Some(piece) = state
            .pieces
            .pop_front_if(|piece| taken.is_empty() || piece.bytes() <= budget)
        {
            state.bytes -= piece.bytes();
            budget = budget.saturating_sub(piece.bytes());
            let is_wanted = match &piece {
                CopyItem::Block { source, entry, .. } => is_live(entry, *source),
                CopyItem::Done { .. } => true,
            };
            if is_wanted {
                taken.push(piece);
            }
        }
        taken
    }

    /// Returns pieces that could not be appended.
    pub(super) fn put_back(&self, pieces: Vec<CopyItem>) {
        let mut state = self.state.lock();
        for piece in pieces.into_iter().rev() {
            state.bytes += piece.bytes();
            state.pieces.push_front(piece);
        }
    }

    /// Returns whether there is room for more.
    pub(super) fn has_room(&self) -> bool {
        self.state.lock().bytes < QUEUE_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().pieces.is_empty()
    }

    fn push(&self, piece: CopyItem) {
        let mut state = self.state.lock();
        state.bytes += piece.bytes();
        state.pieces.push_back(piece);
    }
}

/// Returns whether a segment should be copied forward: less than half of it is live.
pub(super) fn is_mostly_dead(segment: &Segment) -> bool {
    unit_bytes(segment.live()) < segment.slot.size / 2 && can_copy(segment)
}

/// Returns whether a compaction copies a segment: an eighth of it is not live.
pub(super) fn is_partly_dead(segment: &Segment) -> bool {
    unit_bytes(segment.live()) < segment.slot.size / 8 * 7 && can_copy(segment)
}

fn can_copy(segment: &Segment) -> bool {
    segment.live() > 0 && segment.table().is_some() && segment.is_movable()
}

/// Reads one segment ahead.
#[derive(Debug)]
pub(super) struct CopyJob {
    source: Arc<Segment>,
    page: usize,
    inbox: Option<InboxId>,
    /// The inbox whose blocks stay, from a damaged one on: the copies of an inbox must be
    /// a prefix of its live blocks.
    stopped: Option<InboxId>,
}

impl CopyJob {
    pub(super) fn new(source: Arc<Segment>) -> Self {
        Self {
            source,
            page: 0,
            inbox: None,
            stopped: None,
        }
    }

    /// Reads the next page of the index frame and the live blocks that it names.
    /// Returns whether the segment is done.
    pub(super) fn step(&mut self, index: &Index, queue: &CopyQueue) -> io::Result<bool> {
        let (source, file) = (&self.source, &*self.source.slot.file);
        let Some(table) = source
            .table()
            .filter(|table| self.page < table.page_count())
        else {
            if let Some(inbox) = self.inbox.filter(|_| self.inbox != self.stopped) {
                queue.push(CopyItem::Done {
                    source: source.id,
                    inbox,
                });
            }
            source.set_unmovable();
            return Ok(true);
        };
        if source.live() == 0 {
            return Ok(true);
        }
        let entries = table.page(file, source.salt, self.page)?;
        for entry in entries.ok_or(io::ErrorKind::InvalidData)? {
            let before = self
                .inbox
                .replace(entry.inbox)
                .filter(|&before| before != entry.inbox);
            if let Some(before) = before.filter(|&before| self.stopped != Some(before)) {
                queue.push(CopyItem::Done {
                    source: source.id,
                    inbox: before,
                });
            }
            if self.stopped == Some(entry.inbox) || !index.is_live_in(&entry, source.id) {
                continue;
            }
            let bytes = Bytes::from(read_exact(
                file,
                entry.extent.offset.into(),
                entry.extent.length as usize,
            )?);
            let Some(payload) =
                decode_block(&bytes, source.salt, entry.inbox, (entry.first, entry.last))
            else {
                let (path, BlockEntry { inbox, first, .. }) = (source.slot.path.display(), entry);
                tracing::warn!(%path, inbox, first, "damaged block keeps its segment");
                self.stopped = Some(inbox);
                continue;
            };
            queue.push(CopyItem::Block {
                source: source.id,
                entry,
                payload: bytes.slice(payload),
            });
        }
        self.page += 1;
        Ok(false)
    }

    /// Abandons the segment, which cannot be read.
    pub(super) fn abandon(self, error: &io::Error) {
        self.source.set_unmovable();
        let path = self.source.slot.path.display();
        tracing::warn!(%path, %error, "segment cannot be copied forward");
    }
}
