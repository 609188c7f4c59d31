//! Builds the index of a log at its open, from index frames and frames.
//!
//! The index frames are sorted, so they are merged in bounded pieces, and never loaded as
//! a whole.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use super::bugs::{Bug, is_planted};
use super::format::SegmentId;
use super::index::Index;
use super::recent::BlockRef;
use super::runs::{BlockRun, RunList};
use super::scan::Placed;
use super::segment::{Segment, Segments, units};
use super::table::{BlockEntry, Table, TableReader};
use super::writer::OpenSegment;
use crate::log::InboxId;

/// Pages of index frames merged at a time; one in tests, whose logs are small.
const PIECE_PAGES: usize = if cfg!(test) { 1 } else { 64 };

/// The segments of a log and the blocks in them.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    segments: Segments,
    sealed: Vec<Arc<Segment>>,
    /// Blocks of segments without an index frame.
    recent: Vec<FoundBlock>,
}

/// Inbox and first number of a block.
type Key = (InboxId, u64);

/// A block that was found in a segment.
#[derive(Debug, Clone, Copy)]
struct FoundBlock {
    inbox: InboxId,
    block: BlockRef,
    is_sealed: bool,
}

impl FoundBlock {
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
        let found = places.iter().map(|&(inbox, block)| FoundBlock {
            inbox,
            block,
            is_sealed: false,
        });
        self.recent.extend(found);
    }

    /// Adds the segment of the open.
    pub(super) fn add_opened(&mut self, opened: &OpenSegment) {
        self.segments.insert(opened.segment());
        self.add_recent(&opened.places);
    }

    /// Builds the index. If a number has several blocks, because all but one were copied
    /// forward or merged, the newest wins, which has the widest range.
    pub(super) fn build(mut self) -> io::Result<(Arc<Segments>, Index)> {
        let segments = Arc::new(std::mem::take(&mut self.segments));
        let index = Index::new(Arc::clone(&segments));
        self.recent.sort_unstable_by_key(FoundBlock::key);
        self.sealed.sort_unstable_by_key(|segment| segment.id);
        let tables = self.sealed.iter().filter_map(|segment| segment.table());
        let mut bounds: Vec<_> = tables.flat_map(Table::fences).copied().collect();
        bounds.sort_unstable();
        let bounds: Vec<_> = bounds
            .into_iter()
            .skip(PIECE_PAGES)
            .step_by(PIECE_PAGES)
            .collect();
        // Two halves of the inboxes, in parallel.
        let middle = bounds.get(bounds.len() / 2).map(|&(inbox, _)| (inbox, 0));
        let below = bounds.partition_point(|&bound| middle.is_none_or(|middle| bound < middle));
        let (low, high) = bounds.split_at(below);
        let results = std::thread::scope(|scope| {
            let builder = &self;
            let index = &index;
            let other = middle
                .map(|middle| scope.spawn(move || builder.merge(index, Some(middle), high, None)));
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
    fn merge(
        &self,
        index: &Index,
        from: Option<Key>,
        bounds: &[Key],
        to: Option<Key>,
    ) -> io::Result<()> {
        let below = |bound: Option<Key>| {
            self.recent
                .partition_point(|found| bound.is_none_or(|bound| found.key() < bound))
        };
        let mut taken = from.map_or(0, |from| below(Some(from)));
        let count = self.sealed.len();
        let mut sources: Vec<_> = self
            .sealed
            .iter()
            .map(|segment| Source::new(segment, count))
            .collect();
        if let Some(from) = from {
            sources
                .iter_mut()
                .try_for_each(|source| source.reader.skip_below(from))?;
        }
        let mut inbox = InboxBuilder::new(index);
        let mut piece = BlockBatch::default();
        for bound in bounds.iter().copied().map(Some).chain([to]) {
            piece.found.clear();
            for source in &mut sources {
                source.take_below(bound, &mut piece.found)?;
            }
            let end = below(bound);
            piece
                .found
                .extend(self.recent.get(taken..end).unwrap_or_default());
            taken = end;
            piece.visit(&mut |found| inbox.push(found), &mut |copied| {
                if let Ok(number) =
                    sources.binary_search_by_key(&copied.block.segment, |source| source.segment.id)
                    && let Some(source) = sources.get_mut(number)
                {
                    source.units -= units(copied.block.extent);
                }
            });
        }
        inbox.finish();
        sources
            .iter()
            .for_each(|source| source.segment.add_live(source.units));
        Ok(())
    }
}

/// Blocks of some inboxes, in order of their segments.
#[derive(Default)]
struct BlockBatch {
    found: Vec<FoundBlock>,
    /// Each block by its index in `found`, in order of the inboxes.
    order: Vec<(InboxId, u32)>,
    /// The blocks of one inbox.
    group: Vec<FoundBlock>,
    /// The last block that was visited: a later batch may have blocks in its range.
    last: Option<FoundBlock>,
}

impl BlockBatch {
    /// Visits the blocks in order of inboxes and numbers, without those in the range of a
    /// newer one. Calls `drop_copied` with those of the others that an index frame names.
    fn visit(
        &mut self,
        visit: &mut dyn FnMut(&FoundBlock),
        drop_copied: &mut dyn FnMut(&FoundBlock),
    ) {
        let Self {
            found,
            order,
            group,
            last,
        } = self;
        order.clear();
        order.extend(
            found
                .iter()
                .zip(0..)
                .map(|(found, number)| (found.inbox, number)),
        );
        // Stable: it merges the sorted parts.
        order.sort_by_key(|&(inbox, _)| inbox);
        for numbers in order.chunk_by(|one, other| one.0 == other.0) {
            group.clear();
            group.extend(
                numbers
                    .iter()
                    .filter_map(|&(_, number)| found.get(number as usize)),
            );
            if !group.is_sorted_by(|one, other| one.block.last < other.block.first) {
                let newest = |block: &BlockRef| Reverse((block.segment, block.extent.offset));
                let order = |block: &BlockRef| (block.first, Reverse(block.last), newest(block));
                group.sort_by_key(|found| order(&found.block));
            }
            for found in &*group {
                let is_replaced = last.is_some_and(|last| {
                    last.inbox == found.inbox
                        && found.block.last <= last.block.last
                        && (found.block.first == last.block.first || !is_planted(Bug::RevivedParts))
                });
                if !is_replaced {
                    visit(found);
                    *last = Some(*found);
                } else if found.is_sealed {
                    drop_copied(found);
                }
            }
        }
    }
}

/// Returns the locations of the blocks in frames of a segment.
pub(super) fn places(segment: SegmentId, placed: &[Placed<'_>]) -> Vec<(InboxId, BlockRef)> {
    let mut places = Vec::new();
    for Placed { offset, frame, .. } in placed {
        places.extend(frame.blocks.iter().map(|block| {
            let mut extent = block.extent;
            extent.offset += *offset as u32;
            let (first, last) = (block.record.first, block.record.last);
            (
                block.record.inbox,
                BlockRef {
                    first,
                    last,
                    segment,
                    extent,
                },
            )
        }));
    }
    places
}

/// Reads the index frame of one segment.
struct Source<'a> {
    segment: &'a Segment,
    reader: TableReader<'a>,
    /// Units of the blocks that were read and not copied elsewhere.
    units: u64,
}

impl<'a> Source<'a> {
    fn new(segment: &'a Segment, count: usize) -> Self {
        let reader = TableReader::new(segment.table(), &*segment.slot.file, segment.salt, count);
        Self {
            segment,
            reader,
            units: 0,
        }
    }

    fn take_below(&mut self, bound: Option<Key>, found: &mut Vec<FoundBlock>) -> io::Result<()> {
        let Self {
            segment,
            reader,
            units: live,
        } = self;
        reader.take_below(bound, &mut |entry: BlockEntry| {
            *live += units(entry.extent);
            found.push(FoundBlock {
                inbox: entry.inbox,
                block: entry.place(segment.id),
                is_sealed: true,
            });
        })
    }
}

/// Builds one inbox after the other from their blocks in order.
struct InboxBuilder<'a> {
    index: &'a Index,
    inbox: InboxId,
    list: RunList,
    /// The segment of the previous block.
    before: Option<SegmentId>,
}

impl<'a> InboxBuilder<'a> {
    fn new(index: &'a Index) -> Self {
        Self {
            index,
            inbox: 0,
            list: RunList::default(),
            before: None,
        }
    }

    fn push(&mut self, found: &FoundBlock) {
        if self.inbox != found.inbox {
            self.finish();
            self.inbox = found.inbox;
        }
        let block = found.block;
        if self.before.is_none() {
            self.list.start = block.first.saturating_sub(1);
        }
        if found.is_sealed {
            let run = BlockRun {
                segment: block.segment,
                last: block.last,
                units: units(block.extent),
            };
            self.list
                .push_block(run, self.before == Some(block.segment));
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
