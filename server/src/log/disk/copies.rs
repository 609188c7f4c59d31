//! Copies the live blocks of segments that are mostly dead, so that their space
//! can be used again.
//!
//! The maintenance thread reads blocks ahead, sorted by inbox, into a bounded
//! queue; the thread of the log takes a piece of it with each append. Copied blocks
//! stay separate and lie side by side, so that the blocks of an inbox are read at
//! once.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::file::read_exact;
use super::format::{BlockRecord, SegmentId, decode_block};
use super::index::Index;
use super::segment::{Segment, unit_bytes};
use super::table::Entry;
use crate::log::InboxId;

/// Bytes that are read ahead.
const QUEUE_BYTES: usize = 1 << 20;
/// Bytes that an append copies beside its own: as many as its own, between these.
const PIECE_MIN: usize = 16 << 10;
const PIECE_MAX: usize = 256 << 10;
/// Bytes that an append copies at most if copies are urgent, also as a part of a
/// segment.
const URGENT_MAX: u64 = 1 << 20;
const URGENT_DIVISOR: u64 = 16;

/// The next thing to copy.
#[derive(Debug)]
pub(super) enum Piece {
    /// A block.
    Block { source: SegmentId, entry: Entry, payload: Bytes },
    /// The end of an inbox: all its blocks of the segment came before.
    Done { source: SegmentId, inbox: InboxId },
}

impl Piece {
    /// The block to append, if it is one.
    pub(super) fn record(&self) -> Option<BlockRecord<'_>> {
        match self {
            Self::Block { entry, payload, .. } => {
                Some(BlockRecord { inbox: entry.inbox, first: entry.first, last: entry.last, payload })
            }
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
    /// Filled by the maintenance thread, emptied by the thread of the log.
    state: Mutex<State>,
    is_urgent: AtomicBool,
    /// Bytes that an append copies at least if copies are urgent.
    urgent_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

impl CopyQueue {
    pub(super) fn new(segment_bytes: u64) -> Self {
        let urgent_bytes = URGENT_MAX.min(segment_bytes / URGENT_DIVISOR) as usize;
        Self { state: Mutex::default(), is_urgent: false.into(), urgent_bytes }
    }

    /// Sets whether appends copy more than their own size.
    pub(super) fn set_urgent(&self, is_urgent: bool) {
        self.is_urgent.store(is_urgent, Ordering::Relaxed);
    }

    /// Takes what an append of `bytes` copies beside its own: the blocks that are
    /// still live where they were read.
    pub(super) fn take(&self, bytes: usize, is_live: impl Fn(&Entry, SegmentId) -> bool) -> Vec<Piece> {
        let mut state = self.state();
        let least = if self.is_urgent.load(Ordering::Relaxed) { self.urgent_bytes } else { 0 };
        let mut budget = bytes.clamp(PIECE_MIN, PIECE_MAX).max(least);
        let mut taken = Vec::new();
        while let Some(piece) = state.pieces.pop_front_if(|piece| taken.is_empty() || piece.bytes() <= budget)
        {
            state.bytes -= piece.bytes();
            budget = budget.saturating_sub(piece.bytes());
            let is_wanted = match &piece {
                Piece::Block { source, entry, .. } => is_live(entry, *source),
                Piece::Done { .. } => true,
            };
            if is_wanted {
                taken.push(piece);
            }
        }
        taken
    }

    /// Puts back what could not be appended.
    pub(super) fn put_back(&self, pieces: Vec<Piece>) {
        let mut state = self.state();
        for piece in pieces.into_iter().rev() {
            state.bytes += piece.bytes();
            state.pieces.push_front(piece);
        }
    }

    /// Whether there is room for more.
    pub(super) fn has_room(&self) -> bool {
        self.state().bytes < QUEUE_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().pieces.is_empty()
    }

    fn push(&self, piece: Piece) {
        let mut state = self.state();
        state.bytes += piece.bytes();
        state.pieces.push_back(piece);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a segment is to be copied forward: less than half of it is alive.
pub(super) fn is_mostly_dead(segment: &Segment) -> bool {
    let live = unit_bytes(segment.live());
    live > 0 && live < segment.slot.size / 2 && segment.table().is_some() && segment.is_movable()
}

/// Reads one segment ahead.
#[derive(Debug)]
pub(super) struct CopyJob {
    source: Arc<Segment>,
    page: usize,
    inbox: Option<InboxId>,
    /// The inbox whose blocks stay from a damaged one on: the copies of an inbox are the
    /// first of its live blocks.
    stopped: Option<InboxId>,
}

impl CopyJob {
    pub(super) fn new(source: Arc<Segment>) -> Self {
        Self { source, page: 0, inbox: None, stopped: None }
    }

    /// Reads the next page of the index frame and the live blocks that it names.
    /// Returns whether the segment is done.
    pub(super) fn step(&mut self, index: &Index, queue: &CopyQueue) -> io::Result<bool> {
        let (source, file) = (&self.source, &*self.source.slot.file);
        let Some(table) = source.table().filter(|table| self.page < table.page_count()) else {
            if let Some(inbox) = self.inbox.filter(|_| self.inbox != self.stopped) {
                queue.push(Piece::Done { source: source.id, inbox });
            }
            source.set_unmovable();
            return Ok(true);
        };
        if source.live() == 0 {
            return Ok(true);
        }
        let entries = table.page(file, source.salt, self.page)?;
        for entry in entries.ok_or(io::ErrorKind::InvalidData)? {
            let before = self.inbox.replace(entry.inbox).filter(|&before| before != entry.inbox);
            if let Some(before) = before.filter(|&before| self.stopped != Some(before)) {
                queue.push(Piece::Done { source: source.id, inbox: before });
            }
            if self.stopped == Some(entry.inbox) || !index.is_live_in(&entry, source.id) {
                continue;
            }
            let bytes =
                Bytes::from(read_exact(file, entry.extent.offset.into(), entry.extent.length as usize)?);
            let Some(payload) = decode_block(&bytes, source.salt, entry.inbox, (entry.first, entry.last))
            else {
                let (path, Entry { inbox, first, .. }) = (source.slot.path.display(), entry);
                tracing::warn!(%path, inbox, first, "damaged block keeps its segment");
                self.stopped = Some(inbox);
                continue;
            };
            queue.push(Piece::Block { source: source.id, entry, payload: bytes.slice(payload) });
        }
        self.page += 1;
        Ok(false)
    }

    /// Gives the segment up: it cannot be read.
    pub(super) fn abandon(self, error: &io::Error) {
        self.source.set_unmovable();
        let path = self.source.slot.path.display();
        tracing::warn!(%path, %error, "segment cannot be copied forward");
    }
}
