//! Builds the index of a log that is opened, from index frames and frames.
//!
//! The index frames are sorted, so they are merged a bounded piece at a time, and
//! never lie in memory as a whole.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use super::format::SegmentId;
use super::index::{BlockRef, Index};
use super::runs::{Run, RunList};
use super::scan::Placed;
use super::segment::{Segment, Segments, units};
use super::table::{Entry, Table, TableReader};
use super::writer::Opened;
use crate::log::InboxId;

/// Pages of index frames that are merged at once; few in a test, whose logs are small.
const PIECE_PAGES: usize = if cfg!(test) { 1 } else { 64 };

/// The segments of a log and the blocks in them.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    segments: Segments,
    sealed: Vec<Arc<Segment>>,
    /// Blocks of segments without an index frame.
    recent: Vec<Found>,
}

/// Inbox and first number of a block.
type Key = (InboxId, u64);

/// A block that was found in a segment.
#[derive(Debug, Clone, Copy)]
struct Found {
    inbox: InboxId,
    block: BlockRef,
    is_sealed: bool,
}

impl Found {
    fn key(&self) -> Key {
        (self.inbox, self.block.first)
    }
}

impl IndexBuilder {
    /// Adds a segment. Returns whether it has an index frame; if not, its blocks are
    /// to be added from its frames.
    pub(super) fn add_sealed(&mut self, segment: Segment) -> io::Result<bool> {
        let end = segment.end().unwrap_or(0);
        let table = Table::load(&*segment.slot.file, segment.salt, segment.slot.size, end)?;
        let is_sealed = table.is_some();
        table.into_iter().for_each(|table| segment.set_table(table));
        let segment = Arc::new(segment);
        self.segments.insert(Arc::clone(&segment));
        if is_sealed {
            self.sealed.push(segment);
        }
        Ok(is_sealed)
    }

    /// Adds a segment without an index frame.
    pub(super) fn add_unsealed(&mut self, segment: Segment) {
        self.segments.insert(Arc::new(segment));
    }

    /// Adds the blocks of frames of a segment.
    pub(super) fn add_frames(&mut self, segment: SegmentId, placed: &[Placed<'_>]) {
        self.add_recent(&places(segment, placed));
    }

    fn add_recent(&mut self, places: &[(InboxId, BlockRef)]) {
        let found = places.iter().map(|&(inbox, block)| Found { inbox, block, is_sealed: false });
        self.recent.extend(found);
    }

    /// Adds the segment of the open.
    pub(super) fn add_opened(&mut self, opened: &Opened) {
        self.segments.insert(opened.segment());
        self.add_recent(&opened.places);
    }

    /// Builds the index. Of several blocks with the same number, of which all but
    /// one were copied forward, it takes the newest.
    pub(super) fn build(mut self) -> io::Result<(Arc<Segments>, Index)> {
        let segments = Arc::new(std::mem::take(&mut self.segments));
        let index = Index::new(Arc::clone(&segments));
        self.recent.sort_unstable_by_key(Found::key);
        let tables = self.sealed.iter().filter_map(|segment| segment.table());
        let mut bounds: Vec<_> = tables.flat_map(Table::fences).copied().collect();
        bounds.sort_unstable();
        let bounds: Vec<_> = bounds.into_iter().skip(PIECE_PAGES).step_by(PIECE_PAGES).collect();
        // Two halves of the inboxes, side by side.
        let middle = bounds.get(bounds.len() / 2).map(|&(inbox, _)| (inbox, 0));
        let below = bounds.partition_point(|&bound| middle.is_none_or(|middle| bound < middle));
        let (low, high) = bounds.split_at(below);
        let results = std::thread::scope(|scope| {
            let builder = &self;
            let index = &index;
            let other =
                middle.map(|middle| scope.spawn(move || builder.merge(index, Some(middle), high, None)));
            let one = self.merge(index, None, low, middle);
            (one, other.map(|other| other.join()))
        });
        results.0?;
        if let Some(other) = results.1 {
            other.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok((segments, index))
    }

    /// Merges the blocks from one key to another, in pieces that end at `bounds`.
    fn merge(&self, index: &Index, from: Option<Key>, bounds: &[Key], to: Option<Key>) -> io::Result<()> {
        let below = |bound: Option<Key>| {
            self.recent.partition_point(|found| bound.is_none_or(|bound| found.key() < bound))
        };
        let mut taken = from.map_or(0, |from| below(Some(from)));
        let mut sources: Vec<_> = self.sealed.iter().map(|segment| Source::new(segment)).collect();
        if let Some(from) = from {
            sources.iter_mut().try_for_each(|source| source.reader.skip_below(from))?;
        }
        let mut inbox = InboxBuilder::new(index);
        let mut piece: Vec<Found> = Vec::new();
        for bound in bounds.iter().copied().map(Some).chain([to]) {
            piece.clear();
            for source in &mut sources {
                source.take_below(bound, &mut piece)?;
            }
            let end = below(bound);
            piece.extend(self.recent.get(taken..end).unwrap_or_default());
            taken = end;
            // Stable: it merges the sorted parts.
            piece.sort_by_key(|found| {
                (found.key(), Reverse((found.block.segment, found.block.extent.offset)))
            });
            piece.dedup_by_key(|found| found.key());
            piece.iter().for_each(|found| inbox.push(found));
        }
        inbox.finish();
        Ok(())
    }
}

/// Returns the places of the blocks in frames of a segment.
pub(super) fn places(segment: SegmentId, placed: &[Placed<'_>]) -> Vec<(InboxId, BlockRef)> {
    let mut places = Vec::new();
    for Placed { offset, frame, .. } in placed {
        places.extend(frame.blocks.iter().map(|block| {
            let mut extent = block.extent;
            extent.offset += *offset as u32;
            let (first, last) = (block.record.first, block.record.last);
            (block.record.inbox, BlockRef { first, last, segment, extent })
        }));
    }
    places
}

/// Reads the index frame of one segment.
struct Source<'a> {
    segment: SegmentId,
    reader: TableReader<'a>,
}

impl<'a> Source<'a> {
    fn new(segment: &'a Segment) -> Self {
        let table = segment.table();
        Self { segment: segment.id, reader: TableReader::new(table, &*segment.slot.file, segment.salt) }
    }

    fn take_below(&mut self, bound: Option<Key>, piece: &mut Vec<Found>) -> io::Result<()> {
        self.reader.take_below(bound, &mut |entry: Entry| {
            piece.push(Found { inbox: entry.inbox, block: entry.place(self.segment), is_sealed: true });
        })
    }
}

/// Builds one inbox after the other from their blocks in order.
struct InboxBuilder<'a> {
    index: &'a Index,
    inbox: InboxId,
    list: RunList,
    /// The segment of the block before.
    before: Option<SegmentId>,
}

impl<'a> InboxBuilder<'a> {
    fn new(index: &'a Index) -> Self {
        Self { index, inbox: 0, list: RunList::default(), before: None }
    }

    fn push(&mut self, found: &Found) {
        if self.inbox != found.inbox {
            self.finish();
            self.inbox = found.inbox;
        }
        let block = found.block;
        if found.is_sealed {
            let run = Run { segment: block.segment, last: block.last, units: units(block.extent) };
            self.list.push_block(run, self.before == Some(block.segment));
        } else {
            self.index.insert(found.inbox, block);
        }
        self.before = Some(block.segment);
    }

    /// Adds the runs of the inbox to the index.
    fn finish(&mut self) {
        if !self.list.runs.is_empty() {
            self.index.insert_runs(self.inbox, &self.list);
        }
        self.list.runs.clear();
        self.before = None;
    }
}
