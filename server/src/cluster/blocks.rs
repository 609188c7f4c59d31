//! [`Blocks`]: the live blocks of a shard, and the stream entries that hold them. It
//! knows neither cursors nor records.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};

use crate::log::{Block, InboxId, ReadError, Reader};

/// The live blocks, by inbox and first number.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    by_inbox: HashMap<InboxId, BTreeMap<u64, Kept>>,
    /// The same blocks, by the sequence of their entry.
    by_sequence: BTreeSet<(u64, InboxId, u64)>,
    live_bytes: u64,
}

#[derive(Debug)]
struct Kept {
    sequence: u64,
    block: Block,
}

impl Blocks {
    /// Adds a block of the entry at `sequence`, replacing the block that it is a copy of.
    pub(super) fn insert(&mut self, sequence: u64, block: Block) {
        let (inbox, first) = (block.inbox, block.first);
        self.live_bytes += block.payload.len() as u64;
        let former = self.by_inbox.entry(inbox).or_default().insert(first, Kept { sequence, block });
        if let Some(former) = former {
            self.live_bytes -= former.block.payload.len() as u64;
            self.by_sequence.remove(&(former.sequence, inbox, first));
        }
        self.by_sequence.insert((sequence, inbox, first));
    }

    /// Removes the blocks of `inbox` whose last number is at most `through`.
    pub(super) fn release(&mut self, inbox: InboxId, through: u64) {
        let Some(blocks) = self.by_inbox.get_mut(&inbox) else { return };
        while let Some(entry) = blocks.first_entry().filter(|entry| entry.get().block.last <= through) {
            let Kept { sequence, block } = entry.remove();
            self.live_bytes -= block.payload.len() as u64;
            self.by_sequence.remove(&(sequence, inbox, block.first));
        }
        if blocks.is_empty() {
            self.by_inbox.remove(&inbox);
        }
    }

    /// Releases the blocks of each inbox up to its cursor; `None` for an unknown inbox.
    pub(super) fn retain(&mut self, mut cursor: impl FnMut(InboxId) -> Option<u64>) {
        let inboxes: Vec<_> = self.by_inbox.keys().copied().collect();
        for inbox in inboxes {
            self.release(inbox, cursor(inbox).unwrap_or(u64::MAX));
        }
    }

    /// Returns the oldest blocks of entries before `sequence`: at most `bytes_max`, but at
    /// least one if there is any.
    pub(super) fn oldest_before(&self, sequence: u64, bytes_max: usize) -> Vec<Block> {
        let mut bytes = 0;
        let places = self.by_sequence.iter().take_while(|(at, ..)| *at < sequence);
        let blocks = places.filter_map(|(_, inbox, first)| self.by_inbox.get(inbox)?.get(first));
        let taken = blocks.take_while(|kept| {
            let is_first = bytes == 0;
            bytes += kept.block.payload.len();
            is_first || bytes <= bytes_max
        });
        taken.map(|kept| kept.block.clone()).collect()
    }

    /// Returns the bytes of all payloads.
    pub(super) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Returns the number of blocks.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_sequence.len()
    }
}

impl Reader for Blocks {
    fn read(
        &self,
        inbox: InboxId,
        after: u64,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let Some(blocks) = self.by_inbox.get(&inbox) else { return Ok(()) };
        // The block with this number may begin before it.
        let from = blocks.range(..=after).next_back().map_or(0, |(first, _)| *first);
        for (_, kept) in blocks.range((Bound::Included(from), Bound::Unbounded)) {
            if kept.block.last > after && visit(kept.block.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn block(inbox: u64, first: u64, last: u64) -> Block {
        Block { inbox, first, last, payload: Bytes::from_static(b"payload") }
    }

    fn read(blocks: &Blocks, inbox: u64, after: u64) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        let visit = &mut |block: Block| {
            seen.push((block.first, block.last));
            ControlFlow::Continue(())
        };
        blocks.read(inbox, after, visit).unwrap();
        seen
    }

    #[test]
    fn copies_replace_blocks_and_keep_their_order() {
        let mut blocks = Blocks::default();
        for (sequence, first) in [(1, 10), (2, 20), (3, 30)] {
            blocks.insert(sequence, block(7, first, first + 5));
        }
        let old = blocks.oldest_before(3, 100);
        assert_eq!(old, [block(7, 10, 15), block(7, 20, 25)]);
        assert_eq!(blocks.oldest_before(3, 1).len(), 1, "at least one");
        blocks.release(7, 15);
        blocks.insert(4, old[1].clone());
        assert_eq!(read(&blocks, 7, 0), [(20, 25), (30, 35)]);
        assert_eq!(read(&blocks, 7, 22), [(20, 25), (30, 35)]);
        assert_eq!(read(&blocks, 7, 25), [(30, 35)]);
        assert!(blocks.oldest_before(3, 100).is_empty());
        assert_eq!((blocks.len(), blocks.live_bytes()), (2, 14));
    }

    #[test]
    fn blocks_of_absent_inboxes_are_released() {
        let mut blocks = Blocks::default();
        blocks.insert(1, block(7, 10, 15));
        blocks.insert(1, block(8, 16, 16));
        blocks.retain(|inbox| (inbox == 7).then_some(14));
        assert_eq!((read(&blocks, 7, 0), read(&blocks, 8, 0)), (vec![(10, 15)], vec![]));
        blocks.retain(|_| Some(15));
        assert_eq!((blocks.len(), blocks.live_bytes()), (0, 0));
    }
}
