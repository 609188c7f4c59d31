//! Reads the blocks of an inbox beside the appends.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use super::file::read_exact;
use super::format::{Extent, decode_block};
use super::index::{BlockRef, Plan};
use super::segment::Segment;
use super::table::{Entry, Table};
use crate::log::{Block, InboxId, LogError, ReadError, Reader};

/// Adjacent blocks that are read at once, in bytes; a longer one is read alone.
const READ_BYTES: usize = 64 << 10;

impl Reader for Shared {
    fn read(
        &self,
        inbox: InboxId,
        mut after: u64,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        loop {
            if self.is_closed() {
                return Err(ReadError::Closed);
            }
            let plan = self.index.plan(inbox, after);
            let mut visitor = Visitor { shared: self, inbox, visit, adjacent: Vec::new() };
            if visitor.visit_plan(&plan)?.is_break() || plan.through == u64::MAX {
                return Ok(());
            }
            after = plan.through;
        }
    }
}

/// Visits the blocks of one inbox.
struct Visitor<'a> {
    shared: &'a Shared,
    inbox: InboxId,
    visit: &'a mut dyn FnMut(Block) -> ControlFlow<()>,
    /// Blocks to visit next, which lie side by side in one segment.
    adjacent: Vec<(Arc<Segment>, BlockRef)>,
}

impl Visitor<'_> {
    fn visit_plan(&mut self, plan: &Plan) -> Result<ControlFlow<()>, ReadError> {
        let mut recent = plan.recent.iter().peekable();
        for (segment, start, end) in &plan.runs {
            let end = (*end).min(plan.through);
            let Some(table) = segment.table() else { continue };
            let mut after = *start;
            for number in table.find(self.inbox, after)..table.page_count() {
                if after >= end || !table.may_hold(number, self.inbox) {
                    break;
                }
                for entry in self.page(segment, table, number, (after, end))? {
                    after = entry.last;
                    while let Some((segment, block)) = recent.next_if(|(_, block)| block.first < entry.first) {
                        if self.push(segment, *block)?.is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                    let is_copied = recent.peek().is_some_and(|(_, block)| block.first == entry.first);
                    if !is_copied && self.push(segment, entry.place(segment.id))?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
        for (segment, block) in recent {
            if self.push(segment, *block)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.flush()
    }

    /// Reads the entries of a page whose last number is in a range: above the first
    /// number, up to the second.
    fn page(
        &self,
        segment: &Segment,
        table: &Table,
        number: usize,
        (after, end): (u64, u64),
    ) -> Result<Vec<Entry>, ReadError> {
        let first = after.saturating_add(1);
        let page = table.page(&*segment.slot.file, segment.salt, number);
        let page = page.map_err(|source| self.failed(segment, first, source))?;
        let mut page = page.ok_or_else(|| self.damaged(segment, first))?;
        page.retain(|entry| entry.inbox == self.inbox && entry.last > after && entry.last <= end);
        Ok(page)
    }

    /// Visits a block, or keeps it to be read with the ones after it.
    fn push(&mut self, segment: &Arc<Segment>, block: BlockRef) -> Result<ControlFlow<()>, ReadError> {
        let length = |extent: Extent| extent.length as usize;
        let kept: usize = self.adjacent.iter().map(|(_, block)| length(block.extent)).sum();
        let is_adjacent = self.adjacent.last().is_none_or(|(other, before)| {
            other.id == segment.id && before.extent.end() == u64::from(block.extent.offset)
        });
        if !(is_adjacent && kept + length(block.extent) <= READ_BYTES) && self.flush()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.adjacent.push((Arc::clone(segment), block));
        Ok(ControlFlow::Continue(()))
    }

    /// Reads and visits the blocks that were kept.
    fn flush(&mut self) -> Result<ControlFlow<()>, ReadError> {
        let adjacent = std::mem::take(&mut self.adjacent);
        let Some((segment, first)) = adjacent.first() else { return Ok(ControlFlow::Continue(())) };
        let offset = u64::from(first.extent.offset);
        let length = adjacent.iter().map(|(_, block)| block.extent.length as usize).sum();
        let bytes = read_exact(&*segment.slot.file, offset, length);
        let bytes = Bytes::from(bytes.map_err(|source| self.failed(segment, first.first, source))?);
        for (segment, block) in &adjacent {
            let begin = (u64::from(block.extent.offset) - offset) as usize;
            let coded = bytes.slice(begin..begin + block.extent.length as usize);
            let payload = decode_block(&coded, segment.salt, self.inbox, (block.first, block.last));
            let payload = payload.ok_or_else(|| self.damaged(segment, block.first))?;
            let payload = coded.slice(payload);
            let block = Block { inbox: self.inbox, first: block.first, last: block.last, payload };
            if (self.visit)(block).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn damaged(&self, segment: &Segment, first: u64) -> ReadError {
        // A log that was opened after this one may have taken the segment for itself.
        if self.shared.is_closed() {
            return ReadError::Closed;
        }
        ReadError::Damaged { inbox: self.inbox, first, path: segment.slot.path.clone() }
    }

    fn failed(&self, segment: &Segment, first: u64, source: std::io::Error) -> ReadError {
        // The file is shorter than it was.
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.damaged(segment, first);
        }
        ReadError::Failed(LogError { path: segment.slot.path.clone(), source })
    }
}
