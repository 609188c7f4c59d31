//! A log in memory. It holds blocks until they are released, and no records: each open
//! begins with an empty log.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::hash::IdHasher;
use super::{
    AppendError, Block, Durability, Frame, InboxId, Log, LogError, OpenError, Opener, ReadError,
    Reader, Usage,
};
use crate::sync::RwLock;

/// Blocks that a reader copies under one lock.
const PAGE_BLOCKS: usize = 256;

/// Bounds a frame as on disk.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Opens logs in memory.
#[derive(Debug, Default)]
pub struct MemoryOpener;

impl Opener for MemoryOpener {
    fn open(
        &self,
        _: &mut dyn FnMut(&[u8]) -> Result<(), OpenError>,
    ) -> Result<Box<dyn Log>, OpenError> {
        Ok(Box::new(MemoryLog::default()))
    }

    fn path(&self) -> &Path {
        Path::new("")
    }
}

/// A log in memory.
#[derive(Debug, Default)]
struct MemoryLog {
    shared: Arc<SharedBlocks>,
}

#[derive(Debug, Default)]
struct SharedBlocks {
    /// Written by the thread of the log, read by readers from any thread; held
    /// while a page of blocks is copied, without their payloads.
    blocks: RwLock<InboxBlocks>,
}

#[derive(Debug, Default)]
struct InboxBlocks {
    by_inbox: HashMap<InboxId, VecDeque<Block>, IdHasher>,
    live_bytes: u64,
    is_closed: bool,
}

impl Log for MemoryLog {
    fn append(&mut self, frame: Frame, _: Durability) -> Result<(), AppendError> {
        if frame.blocks.is_empty() && frame.merged.is_empty() {
            return Ok(());
        }
        let mut blocks = self.shared.blocks.write();
        for block in frame.blocks {
            blocks.live_bytes += block.payload.len() as u64;
            blocks
                .by_inbox
                .entry(block.inbox)
                .or_default()
                .push_back(block);
        }
        for block in frame.merged {
            blocks.replace(block);
        }
        Ok(())
    }

    fn release(&mut self, inbox: InboxId, through: u64) {
        self.shared.blocks.write().release(inbox, through);
    }

    fn retain(&mut self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>) {
        let mut blocks = self.shared.blocks.write();
        let inboxes: Vec<_> = blocks.by_inbox.keys().copied().collect();
        for inbox in inboxes {
            let through = cursor(inbox).unwrap_or(u64::MAX);
            blocks.release(inbox, through);
        }
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.shared) as Arc<dyn Reader>
    }

    fn is_checkpoint_due(&self) -> bool {
        false
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }

    fn is_low_on_space(&self) -> bool {
        false
    }

    fn is_full(&self) -> bool {
        false
    }

    fn has_pending_work(&self) -> bool {
        false
    }

    fn usage(&self) -> Usage {
        Usage {
            live_bytes: self.shared.blocks.read().live_bytes,
            ..Usage::default()
        }
    }

    fn close(self: Box<Self>) -> Result<(), LogError> {
        Ok(())
    }
}

impl Drop for MemoryLog {
    fn drop(&mut self) {
        *self.shared.blocks.write() = InboxBlocks {
            is_closed: true,
            ..InboxBlocks::default()
        };
    }
}

impl InboxBlocks {
    /// Replaces all blocks in the range of a merged one.
    fn replace(&mut self, merged: Block) {
        let blocks = self.by_inbox.entry(merged.inbox).or_default();
        let start = blocks.partition_point(|block| block.first < merged.first);
        let end = blocks.partition_point(|block| block.last <= merged.last);
        for replaced in blocks.drain(start..end.max(start)) {
            self.live_bytes -= replaced.payload.len() as u64;
        }
        self.live_bytes += merged.payload.len() as u64;
        blocks.insert(start, merged);
    }

    fn release(&mut self, inbox: InboxId, through: u64) {
        let Some(blocks) = self.by_inbox.get_mut(&inbox) else {
            return;
        };
        while let Some(block) = blocks.pop_front_if(|block| block.last <= through) {
            self.live_bytes -= block.payload.len() as u64;
        }
        if blocks.is_empty() {
            self.by_inbox.remove(&inbox);
        }
    }
}

impl SharedBlocks {
    fn page(&self, inbox: InboxId, after: u64) -> Result<Vec<Block>, ReadError> {
        let blocks = self.blocks.read();
        if blocks.is_closed {
            return Err(ReadError::Closed);
        }
        let Some(blocks) = blocks.by_inbox.get(&inbox) else {
            return Ok(Vec::new());
        };
        let start = blocks.partition_point(|block| block.last <= after);
        Ok(blocks.range(start..).take(PAGE_BLOCKS).cloned().collect())
    }
}

impl Reader for SharedBlocks {
    fn read(
        &self,
        inbox: InboxId,
        mut after: u64,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        loop {
            let page = self.page(inbox, after)?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.last;
            for block in page {
                if visit(block).is_break() {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryOpener;

    crate::log::contract::contract!(MemoryOpener);
}
