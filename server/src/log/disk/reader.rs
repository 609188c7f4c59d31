//! Reads the blocks of an inbox, concurrent with appends.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::SharedLog;
use super::file::read_exact;
use super::format::{Extent, Salt, decode_block};
use super::index::Plan;
use super::recent::BlockRef;
use super::repair::{DamagedBlock, Visit};
use super::segment::Segment;
use super::table::{BlockEntry, Table};
use crate::log::{Block, InboxId, LogError, ReadError, Reader};

/// Maximum bytes of adjacent blocks read at once; a longer block is read alone.
const READ_BYTES: usize = 64 << 10;

impl Reader for SharedLog {
    fn read(
        &self,
        inbox: InboxId,
        after: u64,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut damage = None;
        visit_all(self, inbox, after, &mut |found| match found {
            Ok(block) => visit(block),
            Err(damaged) => {
                damage = Some(damaged);
                ControlFlow::Break(())
            }
        })?;
        match damage {
            None => Ok(()),
            // A log opened later may have reused the segment.
            Some(_) if self.is_closed() => Err(ReadError::Closed),
            Some(DamagedBlock {
                inbox, first, path, ..
            }) => Err(ReadError::Damaged { inbox, first, path }),
        }
    }
}

/// Visits the live blocks of an inbox with a number above `after`, in order, until
/// `visit` breaks. Includes damaged blocks.
pub(super) fn visit_all(
    shared: &SharedLog,
    inbox: InboxId,
    mut after: u64,
    visit: &mut Visit<'_>,
) -> Result<(), ReadError> {
    loop {
        if shared.is_closed() {
            return Err(ReadError::Closed);
        }
        let plan = shared.index.plan(inbox, after);
        let mut visitor = Visitor {
            shared,
            inbox,
            visit,
            adjacent: Vec::new(),
        };
        if visitor.visit_plan(&plan)?.is_break() || plan.through == u64::MAX {
            return Ok(());
        }
        after = plan.through;
    }
}

/// Visits the blocks of one inbox.
struct Visitor<'a> {
    shared: &'a SharedLog,
    inbox: InboxId,
    visit: &'a mut Visit<'a>,
    /// The next blocks to visit, adjacent in one segment.
    adjacent: Vec<(Arc<Segment>, BlockRef)>,
}

impl Visitor<'_> {
    fn visit_plan(&mut self, plan: &Plan) -> Result<ControlFlow<()>, ReadError> {
        let mut recent = plan.recent.iter().peekable();
        // The last number of the recent block before.
        let mut covered = 0;
        for (segment, start, end) in &plan.runs {
            let end = (*end).min(plan.through);
            let Some(table) = segment.table() else {
                continue;
            };
            let mut after = *start;
            for number in table.find(self.inbox, after)..table.page_count() {
                if after >= end || !table.may_hold(number, self.inbox) {
                    break;
                }
                for entry in self.page(segment, table, number, (after, end))? {
                    after = entry.last;
                    while let Some((segment, block)) =
                        recent.next_if(|(_, block)| block.first <= entry.first)
                    {
                        covered = block.last;
                        if self.push(segment, *block)?.is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                    // It was copied forward or merged otherwise.
                    let is_live = covered < entry.last;
                    if is_live && self.push(segment, entry.place(segment.id))?.is_break() {
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
    ) -> Result<Vec<BlockEntry>, ReadError> {
        let first = after.saturating_add(1);
        let page = table.page(&*segment.slot.file, segment.salt, number);
        let page = page.map_err(|source| self.failed(segment, first, source))?;
        let mut page = page.ok_or_else(|| self.damaged(segment, first))?;
        page.retain(|entry| entry.inbox == self.inbox && entry.last > after && entry.last <= end);
        Ok(page)
    }

    /// Visits a block, or defers it to be read together with later ones.
    fn push(
        &mut self,
        segment: &Arc<Segment>,
        block: BlockRef,
    ) -> Result<ControlFlow<()>, ReadError> {
        let length = |extent: Extent| extent.length as usize;
        let kept: usize = self
            .adjacent
            .iter()
            .map(|(_, block)| length(block.extent))
            .sum();
        let is_adjacent = self.adjacent.last().is_none_or(|(other, before)| {
            other.id == segment.id && before.extent.end() == u64::from(block.extent.offset)
        });
        if !(is_adjacent && kept + length(block.extent) <= READ_BYTES) && self.flush()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.adjacent.push((Arc::clone(segment), block));
        Ok(ControlFlow::Continue(()))
    }

    /// Reads and visits the deferred blocks.
    fn flush(&mut self) -> Result<ControlFlow<()>, ReadError> {
        let adjacent = std::mem::take(&mut self.adjacent);
        let Some((segment, first)) = adjacent.first() else {
            return Ok(ControlFlow::Continue(()));
        };
        let offset = u64::from(first.extent.offset);
        let length = adjacent
            .iter()
            .map(|(_, block)| block.extent.length as usize)
            .sum();
        let bytes = match read_exact(&*segment.slot.file, offset, length) {
            // The file has been truncated.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Bytes::new(),
            bytes => bytes
                .map_err(|source| self.failed(segment, first.first, source))?
                .into(),
        };
        for (segment, block) in &adjacent {
            let begin = (u64::from(block.extent.offset) - offset) as usize;
            let found = self.decode(&bytes, begin, segment.salt, block);
            let found = found.ok_or_else(|| DamagedBlock {
                inbox: self.inbox,
                first: block.first,
                last: block.last,
                path: segment.slot.path.clone(),
            });
            if (self.visit)(found).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Returns the block that begins at a place of the bytes, if it is intact.
    fn decode(&self, bytes: &Bytes, begin: usize, salt: Salt, block: &BlockRef) -> Option<Block> {
        let BlockRef {
            first,
            last,
            extent,
            ..
        } = *block;
        let end = begin + extent.length as usize;
        let payload = decode_block(bytes.get(begin..end)?, salt, self.inbox, (first, last))?;
        let payload = bytes.slice(begin + payload.start..begin + payload.end);
        Some(Block {
            inbox: self.inbox,
            first,
            last,
            payload,
        })
    }

    fn damaged(&self, segment: &Segment, first: u64) -> ReadError {
        // A log opened later may have reused the segment.
        if self.shared.is_closed() {
            return ReadError::Closed;
        }
        ReadError::Damaged {
            inbox: self.inbox,
            first,
            path: segment.slot.path.clone(),
        }
    }

    fn failed(&self, segment: &Segment, first: u64, source: std::io::Error) -> ReadError {
        // The file has been truncated.
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.damaged(segment, first);
        }
        ReadError::Failed(LogError {
            path: segment.slot.path.clone(),
            source,
        })
    }
}
