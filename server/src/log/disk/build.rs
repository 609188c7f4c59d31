//! Builds the index of a log that is opened, from index frames and frames.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use super::format::SegmentId;
use super::index::{BlockRef, Index};
use super::runs::{Run, RunList};
use super::scan::Placed;
use super::segment::{Segment, Segments, units};
use super::table::{Entry, Table};
use super::writer::Opened;
use crate::log::InboxId;

/// The segments of a log and the blocks in them.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    segments: Segments,
    blocks: Vec<Found>,
}

/// A block that was found in a segment.
#[derive(Debug)]
struct Found {
    inbox: InboxId,
    block: BlockRef,
    is_sealed: bool,
}

impl IndexBuilder {
    /// Adds a segment and the blocks that its index frame names. Returns whether it
    /// has an index frame; if not, its blocks are to be added from its frames.
    pub(super) fn add_sealed(&mut self, segment: Segment) -> io::Result<bool> {
        let before = self.blocks.len();
        let mut visit = |entry: Entry| {
            let block = entry.place(segment.id);
            self.blocks.push(Found { inbox: entry.inbox, block, is_sealed: true });
        };
        let end = segment.end().unwrap_or(0);
        let table = Table::load(&*segment.slot.file, segment.salt, segment.slot.size, end, &mut visit)?;
        let is_sealed = table.is_some();
        match table {
            Some(table) => segment.set_table(table),
            None => self.blocks.truncate(before),
        }
        self.segments.insert(Arc::new(segment));
        Ok(is_sealed)
    }

    /// Adds a segment without an index frame.
    pub(super) fn add_unsealed(&mut self, segment: Segment) {
        self.segments.insert(Arc::new(segment));
    }

    /// Adds the blocks of frames of a segment.
    pub(super) fn add_frames(&mut self, segment: SegmentId, placed: &[Placed<'_>]) {
        for Placed { offset, frame, .. } in placed {
            self.blocks.extend(frame.blocks.iter().map(|block| {
                let mut extent = block.extent;
                extent.offset += *offset as u32;
                let (first, last) = (block.record.first, block.record.last);
                let block_ref = BlockRef { first, last, segment, extent };
                Found { inbox: block.record.inbox, block: block_ref, is_sealed: false }
            }));
        }
    }

    /// Adds the segment of the open.
    pub(super) fn add_opened(&mut self, opened: &Opened) {
        self.segments.insert(opened.segment());
        let found = opened.places.iter().map(|&(inbox, block)| Found { inbox, block, is_sealed: false });
        self.blocks.extend(found);
    }

    /// Builds the index. Of several blocks with the same number, of which all but
    /// one were copied forward, it takes the newest.
    pub(super) fn build(mut self) -> (Arc<Segments>, Index) {
        let segments = Arc::new(self.segments);
        let index = Index::new(Arc::clone(&segments));
        let newest = |found: &Found| Reverse((found.block.segment, found.block.extent.offset));
        self.blocks.sort_unstable_by_key(|found| (found.inbox, found.block.first, newest(found)));
        self.blocks.dedup_by_key(|found| (found.inbox, found.block.first));
        for inbox in self.blocks.chunk_by(|a, b| a.inbox == b.inbox) {
            build_inbox(&index, inbox);
        }
        (segments, index)
    }
}

fn build_inbox(index: &Index, blocks: &[Found]) {
    let mut list = RunList::default();
    let mut before = None;
    for Found { inbox, block, is_sealed } in blocks {
        if *is_sealed {
            let run = Run { segment: block.segment, last: block.last, units: units(block.extent) };
            list.push_block(run, before == Some(block.segment));
        } else {
            index.insert(*inbox, *block);
        }
        before = Some(block.segment);
    }
    if let (Some(found), false) = (blocks.first(), list.runs.is_empty()) {
        index.insert_runs(found.inbox, &list);
    }
}
