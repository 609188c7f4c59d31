//! The locations of blocks in segments without an index frame: one by one, in a few bytes
//! each for the many inboxes with few blocks.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use super::format::{Extent, SegmentId};
use super::map::ByteMap;
use super::varint;
use crate::log::InboxId;
use crate::log::hash::IdHasher;

/// The maximum number of an inbox's blocks that are packed.
const FEW: usize = 4;

/// The place of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRef {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) segment: SegmentId,
    pub(super) extent: Extent,
}

/// The recent blocks of some inboxes, each in order of their numbers.
#[derive(Debug, Default)]
pub(super) struct RecentBlocks {
    few: ByteMap,
    many: HashMap<InboxId, VecDeque<BlockRef>, IdHasher>,
    buffer: Vec<u8>,
}

impl RecentBlocks {
    /// Returns the blocks of an inbox.
    pub(super) fn get(&self, inbox: InboxId) -> Cow<'_, VecDeque<BlockRef>> {
        match self.many.get(&inbox) {
            Some(blocks) => Cow::Borrowed(blocks),
            None => Cow::Owned(self.unpack_few(inbox)),
        }
    }

    /// Returns the first block of an inbox.
    pub(super) fn first(&self, inbox: InboxId) -> Option<BlockRef> {
        match self.many.get(&inbox) {
            Some(blocks) => blocks.front().copied(),
            None => packed_blocks(inbox, self.few.get(inbox)?).next(),
        }
    }

    /// Changes the blocks of an inbox.
    pub(super) fn update<T>(
        &mut self,
        inbox: InboxId,
        change: impl FnOnce(&mut VecDeque<BlockRef>) -> T,
    ) -> T {
        if let Some(blocks) = self.many.get_mut(&inbox) {
            let result = change(blocks);
            if blocks.len() <= FEW / 2 {
                let blocks = self.many.remove(&inbox).unwrap_or_default();
                self.set_few(inbox, &blocks);
            }
            return result;
        }
        let mut blocks = self.unpack_few(inbox);
        let result = change(&mut blocks);
        if blocks.len() <= FEW {
            self.set_few(inbox, &blocks);
        } else {
            self.few.remove(inbox);
            self.many.insert(inbox, blocks);
        }
        result
    }

    fn unpack_few(&self, inbox: InboxId) -> VecDeque<BlockRef> {
        let packed = self.few.get(inbox).unwrap_or_default();
        packed_blocks(inbox, packed).collect()
    }

    fn set_few(&mut self, inbox: InboxId, blocks: &VecDeque<BlockRef>) {
        if blocks.is_empty() {
            self.few.remove(inbox);
        } else {
            pack(inbox, blocks, &mut self.buffer);
            self.few.set(inbox, &self.buffer);
        }
    }

    /// Returns every inbox with a block, in any order.
    pub(super) fn inboxes(&self) -> impl Iterator<Item = InboxId> {
        self.few.inboxes().chain(self.many.keys().copied())
    }

    /// Returns the memory of the packed blocks.
    #[cfg(test)]
    pub(super) fn packed_bytes(&self) -> usize {
        self.few.allocated_bytes()
    }

    /// Releases memory after most blocks were removed.
    pub(super) fn shrink(&mut self) {
        if self.many.len() < self.many.capacity() / 4 {
            self.many.shrink_to(2 * self.many.len());
        }
    }
}

fn pack(inbox: InboxId, blocks: &VecDeque<BlockRef>, buffer: &mut Vec<u8>) {
    buffer.clear();
    // The numbers of an inbox begin after that of its account.
    let (mut number, mut segment) = (inbox, 0);
    for block in blocks {
        varint::put_difference(buffer, block.first, number);
        varint::put(buffer, block.last.wrapping_sub(block.first));
        varint::put_difference(buffer, block.segment.into(), segment);
        varint::put(buffer, block.extent.offset.into());
        varint::put(buffer, block.extent.length.into());
        (number, segment) = (block.first, block.segment.into());
    }
}

fn packed_blocks(inbox: InboxId, packed: &[u8]) -> impl Iterator<Item = BlockRef> {
    let mut rest = packed;
    let (mut number, mut segment) = (inbox, 0);
    std::iter::from_fn(move || {
        let first = varint::take_difference(&mut rest, number)?;
        let last = varint::take(&mut rest)?.wrapping_add(first);
        let id = varint::take_difference(&mut rest, segment)?;
        let extent = Extent {
            offset: varint::take_u32(&mut rest)?,
            length: varint::take_u32(&mut rest)?,
        };
        (number, segment) = (first, id);
        Some(BlockRef {
            first,
            last,
            segment: id as SegmentId,
            extent,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A block that is added, or the number of blocks that are removed.
    fn change() -> impl Strategy<Value = (InboxId, Result<BlockRef, usize>)> {
        let block = (
            1u64..1 << 53,
            0u64..1 << 53,
            any::<SegmentId>(),
            any::<u32>(),
            any::<u32>(),
        );
        let block = block.prop_map(|(first, span, segment, offset, length)| BlockRef {
            first,
            last: first + span,
            segment,
            extent: Extent { offset, length },
        });
        (
            0u64..4,
            prop_oneof![3 => block.prop_map(Ok), 1 => (0usize..12).prop_map(Err)],
        )
    }

    proptest! {
        #[test]
        fn blocks_are_as_in_a_plain_map(changes in prop::collection::vec(change(), 0..80)) {
            let mut recent = RecentBlocks::default();
            let mut model: BTreeMap<InboxId, VecDeque<BlockRef>> = BTreeMap::new();
            for (inbox, change) in changes {
                let apply = |blocks: &mut VecDeque<BlockRef>| match change {
                    Ok(block) => blocks.push_back(block),
                    Err(count) => drop(blocks.drain(..count.min(blocks.len()))),
                };
                recent.update(inbox, apply);
                apply(model.entry(inbox).or_default());
                model.retain(|_, blocks| !blocks.is_empty());
                recent.shrink();
                let mut inboxes: Vec<_> = recent.inboxes().collect();
                inboxes.sort_unstable();
                prop_assert!(inboxes.iter().eq(model.keys()));
                for inbox in 0..4 {
                    let expected = model.get(&inbox).cloned().unwrap_or_default();
                    prop_assert_eq!(recent.first(inbox), expected.front().copied());
                    prop_assert_eq!(recent.get(inbox).into_owned(), expected);
                }
            }
        }
    }
}
