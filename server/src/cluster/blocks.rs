//! [`Blocks`]: the live blocks of a shard, and the stream entries that hold them. It
//! knows neither cursors nor records.
//!
//! The payloads of recent blocks are in memory, up to a bound; the others are read from
//! the stream by the sequence of their entry. A block is young until its first copy, which is
//! appended before a snapshot, grouped by inbox; the snapshot names the places of all blocks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;

use bytes::Bytes;

use super::bugs::{Bug, is_planted};
use super::entry::Located;
use crate::ledger;
use crate::log::{Block, InboxId, ReadError, Reader};

/// The live blocks, by inbox and first number.
#[derive(Debug)]
pub(super) struct Blocks {
    /// In the order of their numbers.
    by_inbox: HashMap<InboxId, VecDeque<Kept>>,
    /// Young blocks and copies, by the sequence of their entry.
    young: BTreeSet<Place>,
    copies: BTreeSet<Place>,
    live_bytes: u64,
    cache_bytes_max: u64,
    /// Bytes of the payloads in memory.
    cached_bytes: u64,
    /// The inboxes of the blocks in memory, by their first number. The lowest one leaves
    /// first: it is the oldest, wherever its copy is.
    cached: BTreeMap<u64, InboxId>,
}

/// The sequence of an entry, an inbox, and the first number of a block.
type Place = (u64, InboxId, u64);

#[derive(Debug)]
struct Kept {
    first: u64,
    last: u64,
    sequence: u64,
    bytes: u32,
    /// `None` if it is only in the stream.
    payload: Option<Bytes>,
    is_copy: bool,
}

impl Kept {
    fn block(&self, inbox: InboxId) -> Option<Block> {
        let payload = self.payload.clone()?;
        Some(Block {
            inbox,
            first: self.first,
            last: self.last,
            payload,
        })
    }
}

impl Blocks {
    /// Returns an empty table whose payloads take at most `cache_bytes_max` of memory.
    pub(super) fn new(cache_bytes_max: u64) -> Self {
        Self {
            by_inbox: HashMap::new(),
            young: BTreeSet::new(),
            copies: BTreeSet::new(),
            live_bytes: 0,
            cache_bytes_max,
            cached_bytes: 0,
            cached: BTreeMap::new(),
        }
    }

    /// Adds a block of the entry at `sequence`. A copy replaces the blocks with the same
    /// messages.
    pub(super) fn insert(&mut self, sequence: u64, block: Block, is_copy: bool) {
        let Block {
            inbox,
            first,
            last,
            payload,
        } = block;
        let bytes = payload.len() as u32;
        self.add(
            inbox,
            Kept {
                first,
                last,
                sequence,
                bytes,
                payload: Some(payload),
                is_copy,
            },
        );
        self.cached_bytes += u64::from(bytes);
        self.cached.insert(first, inbox);
        self.shrink();
    }

    /// Adds a block that is only in the stream, as a copy.
    pub(super) fn insert_located(&mut self, located: &Located) {
        let Located {
            inbox,
            first,
            last,
            sequence,
            bytes,
        } = *located;
        if self
            .get(inbox, first)
            .is_some_and(|kept| kept.sequence == sequence)
        {
            return self.age((sequence, inbox, first));
        }
        self.add(
            inbox,
            Kept {
                first,
                last,
                sequence,
                bytes,
                payload: None,
                is_copy: true,
            },
        );
    }

    fn add(&mut self, inbox: InboxId, kept: Kept) {
        let blocks = self.by_inbox.entry(inbox).or_default();
        let from = blocks.partition_point(|other| other.first < kept.first);
        let to = blocks.partition_point(|other| other.first <= kept.last);
        let replaced: Vec<_> = blocks.drain(from..to).collect();
        let set = if kept.is_copy {
            &mut self.copies
        } else {
            &mut self.young
        };
        set.insert((kept.sequence, inbox, kept.first));
        self.live_bytes += u64::from(kept.bytes);
        blocks.insert(from, kept);
        replaced
            .iter()
            .for_each(|former| self.forget(inbox, former));
    }

    /// Removes the blocks of `inbox` whose last number is at most `through`.
    pub(super) fn release(&mut self, inbox: InboxId, through: u64) {
        let Some(blocks) = self.by_inbox.get_mut(&inbox) else {
            return;
        };
        let count = blocks.partition_point(|kept| kept.last <= through);
        let released: Vec<_> = blocks.drain(..count).collect();
        if blocks.is_empty() {
            self.by_inbox.remove(&inbox);
        }
        released.iter().for_each(|kept| self.forget(inbox, kept));
    }

    fn forget(&mut self, inbox: InboxId, kept: &Kept) {
        let set = if kept.is_copy {
            &mut self.copies
        } else {
            &mut self.young
        };
        set.remove(&(kept.sequence, inbox, kept.first));
        self.live_bytes -= u64::from(kept.bytes);
        if kept.payload.is_some() {
            self.cached_bytes -= u64::from(kept.bytes);
            self.cached.remove(&kept.first);
        }
    }

    /// Releases the blocks of each inbox up to its cursor; `None` for an unknown inbox.
    pub(super) fn retain(&mut self, mut cursor: impl FnMut(InboxId) -> Option<u64>) {
        let inboxes: Vec<_> = self.by_inbox.keys().copied().collect();
        for inbox in inboxes {
            self.release(inbox, cursor(inbox).unwrap_or(u64::MAX));
        }
    }

    /// Drops the payloads of the oldest blocks that exceed the cache.
    fn shrink(&mut self) {
        while self.cached_bytes > self.cache_bytes_max
            && let Some((first, inbox)) = self.cached.pop_first()
        {
            if let Some(kept) = find(&mut self.by_inbox, inbox, first)
                && kept.payload.take().is_some()
            {
                self.cached_bytes -= u64::from(kept.bytes);
            }
        }
    }

    /// Adds the payloads of the live blocks of the entry at `sequence`, as far as the cache has
    /// room for them.
    pub(super) fn warm(&mut self, sequence: u64, blocks: &[Block]) {
        for block in blocks {
            let bytes = block.payload.len() as u64;
            if self.cached_bytes + bytes > self.cache_bytes_max {
                return;
            }
            let kept = find(&mut self.by_inbox, block.inbox, block.first);
            let is_same = |kept: &&mut Kept| {
                kept.sequence == sequence && kept.last == block.last && kept.payload.is_none()
            };
            if let Some(kept) = kept.filter(is_same) {
                kept.payload = Some(block.payload.clone());
                self.cached_bytes += bytes;
                self.cached.insert(block.first, block.inbox);
            }
        }
    }

    /// Returns copies of the oldest young blocks of entries before `sequence`, merged by
    /// inbox: at most `bytes_max`, but at least one if there is any. Blocks outside of the
    /// cache count as copies from now on.
    pub(super) fn young_before(&mut self, sequence: u64, bytes_max: usize) -> Vec<Block> {
        let (mut copies, mut bytes) = (Vec::new(), 0);
        let (mut exhausted, mut uncached) = (HashSet::new(), Vec::new());
        for place in self.young.range(..(sequence, 0, 0)) {
            let (_, inbox, first) = *place;
            let Some(blocks) = self
                .by_inbox
                .get(&inbox)
                .filter(|_| !exhausted.contains(&inbox))
            else {
                continue;
            };
            let from = blocks.partition_point(|kept| kept.first < first);
            let is_young = |kept: &&Kept| !kept.is_copy && kept.sequence < sequence;
            let young = blocks
                .range(from..)
                .take_while(is_young)
                .map_while(|kept| kept.block(inbox));
            let before = bytes;
            let fits = |block: &Block| {
                bytes += block.payload.len();
                bytes == block.payload.len() || bytes <= bytes_max
            };
            let young: Vec<_> = young.take_while(fits).collect();
            match young.is_empty() {
                true if bytes > before => break,
                true => uncached.push(*place),
                false => {
                    exhausted.insert(inbox);
                    copies.extend(ledger::merge(&young).unwrap_or(young));
                }
            }
            if bytes >= bytes_max {
                break;
            }
        }
        uncached.into_iter().for_each(|place| self.age(place));
        copies
    }

    fn age(&mut self, place: Place) {
        let (_, inbox, first) = place;
        if let Some(kept) = find(&mut self.by_inbox, inbox, first) {
            kept.is_copy = true;
            self.young.remove(&place);
            self.copies.insert(place);
        }
    }

    /// Returns the sequence of the oldest entry with a copy, and its copies as far as they
    /// are in memory, if it is before `sequence`.
    pub(super) fn oldest_copies(&self, sequence: u64) -> Option<(u64, Option<Vec<Block>>)> {
        let (oldest, ..) = *self.copies.first().filter(|(at, ..)| *at < sequence)?;
        let of_entry = self.copies.range((oldest, 0, 0)..(oldest + 1, 0, 0));
        let blocks = of_entry.map(|(_, inbox, first)| self.get(*inbox, *first)?.block(*inbox));
        Some((oldest, blocks.collect()))
    }

    /// Returns these blocks as far as they are live at `sequence`.
    pub(super) fn live_at(&self, sequence: u64, mut blocks: Vec<Block>) -> Vec<Block> {
        blocks.retain(|block| {
            self.get(block.inbox, block.first)
                .is_some_and(|kept| kept.sequence == sequence && kept.last == block.last)
        });
        blocks
    }

    /// Returns the places of blocks after `after`, in entries before `sequence`: at most
    /// `count`.
    pub(super) fn located(
        &self,
        after: Option<&Located>,
        sequence: u64,
        count: usize,
    ) -> Vec<Located> {
        let from = after.map_or((0, 0, 0), |last| {
            (last.sequence, last.inbox, last.first + 1)
        });
        let to = (sequence, 0, 0);
        if from >= to {
            return Vec::new();
        }
        let young = self.young.range(from..to);
        let young = young.filter(|_| !is_planted(Bug::YoungNotIndexed));
        let mut places: Vec<_> = young
            .take(count)
            .chain(self.copies.range(from..to).take(count))
            .collect();
        places.sort_unstable();
        places.truncate(count);
        let located = places.into_iter().filter_map(|(sequence, inbox, first)| {
            let Kept { last, bytes, .. } = *self.get(*inbox, *first)?;
            Some(Located {
                inbox: *inbox,
                first: *first,
                last,
                sequence: *sequence,
                bytes,
            })
        });
        located.collect()
    }

    /// Returns the sequence of the entry to read if the first block of an inbox beyond
    /// `after` is not in memory.
    pub(super) fn uncached_after(&self, inbox: InboxId, after: u64) -> Option<u64> {
        let blocks = self.by_inbox.get(&inbox)?;
        let kept = blocks.get(blocks.partition_point(|kept| kept.last <= after))?;
        kept.payload.is_none().then_some(kept.sequence)
    }

    /// Returns the first sequence with a live block.
    pub(super) fn first_sequence(&self) -> Option<u64> {
        [&self.young, &self.copies]
            .into_iter()
            .filter_map(|set| set.first())
            .map(|(at, ..)| *at)
            .min()
    }

    /// Returns the bytes of the live copies in entries before `sequence`.
    pub(super) fn copied_bytes_before(&self, sequence: u64) -> u64 {
        let places = self.copies.range(..(sequence, 0, 0));
        places
            .filter_map(|(_, inbox, first)| Some(u64::from(self.get(*inbox, *first)?.bytes)))
            .sum()
    }

    /// Returns the bytes of all payloads.
    pub(super) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    fn get(&self, inbox: InboxId, first: u64) -> Option<&Kept> {
        let blocks = self.by_inbox.get(&inbox)?;
        blocks
            .get(blocks.partition_point(|kept| kept.first < first))
            .filter(|kept| kept.first == first)
    }

    /// Returns the number of blocks.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.copies.len()
    }

    /// Returns the bytes of the payloads in memory.
    #[cfg(test)]
    pub(super) const fn cached_bytes(&self) -> u64 {
        self.cached_bytes
    }
}

fn find(
    by_inbox: &mut HashMap<InboxId, VecDeque<Kept>>,
    inbox: InboxId,
    first: u64,
) -> Option<&mut Kept> {
    let blocks = by_inbox.get_mut(&inbox)?;
    let at = blocks.partition_point(|kept| kept.first < first);
    blocks.get_mut(at).filter(|kept| kept.first == first)
}

/// The blocks together with some that were read from the stream.
#[derive(Debug)]
pub(super) struct WithRead<'b> {
    pub(super) blocks: &'b Blocks,
    pub(super) read: &'b [Block],
}

impl Reader for WithRead<'_> {
    /// Reads blocks up to the first one that is neither in memory nor read.
    fn read(
        &self,
        inbox: InboxId,
        after: u64,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let Some(blocks) = self.blocks.by_inbox.get(&inbox) else {
            return Ok(());
        };
        let from = blocks.partition_point(|kept| kept.last <= after);
        for kept in blocks.range(from..) {
            let is_same = |block: &&Block| {
                (block.inbox, block.first, block.last) == (inbox, kept.first, kept.last)
            };
            let block = kept
                .block(inbox)
                .or_else(|| self.read.iter().find(is_same).cloned());
            let Some(block) = block else {
                return Err(ReadError::NotCached {
                    inbox,
                    first: kept.first,
                });
            };
            if visit(block).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Sequence;

    use super::*;
    use crate::ledger::Gap;
    use crate::store::Position;

    /// Returns a block with a gap: its payload is valid and short.
    fn block(inbox: u64, first: u64, last: u64) -> Block {
        let end = Position {
            sequence: Sequence(last),
            messages: 9,
            bytes: 9,
        };
        Gap {
            first,
            end,
            messages: 1,
            bytes: 1,
        }
        .block(inbox)
    }

    fn blocks(cache_bytes_max: u64) -> Blocks {
        let mut blocks = Blocks::new(cache_bytes_max);
        for (sequence, first) in [(1, 10), (2, 20), (3, 30)] {
            blocks.insert(sequence, block(7, first, first + 5), false);
        }
        blocks
    }

    fn read(blocks: &Blocks, inbox: u64, after: u64) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        let visit = &mut |block: Block| {
            seen.push((block.first, block.last));
            ControlFlow::Continue(())
        };
        // It ends at a block that is not in memory.
        let _ = WithRead { blocks, read: &[] }.read(inbox, after, visit);
        seen
    }

    #[test]
    fn block_that_was_read_stays_while_there_is_room() {
        let payload = block(7, 10, 15).payload.len() as u64;
        let mut blocks = blocks(2 * payload);
        assert_eq!(blocks.uncached_after(7, 0), Some(1));
        blocks.warm(1, &[block(7, 10, 15)]);
        assert_eq!(blocks.uncached_after(7, 0), Some(1), "the cache is full");
        blocks.release(7, 15);
        blocks.insert_located(&Located {
            inbox: 8,
            first: 5,
            last: 6,
            sequence: 4,
            bytes: payload as u32,
        });
        blocks.release(7, 25);
        blocks.warm(3, &[block(8, 5, 6)]);
        assert_eq!(blocks.uncached_after(8, 0), Some(4), "of another entry");
        blocks.warm(4, &[block(8, 5, 6), block(9, 1, 2)]);
        assert_eq!(blocks.uncached_after(8, 0), None);
        assert_eq!(blocks.cached_bytes(), 2 * payload);
    }

    #[test]
    fn places_of_young_blocks_and_copies_are_listed_in_order() {
        let mut blocks = blocks(100);
        blocks.insert(4, block(7, 10, 15), true);
        let mut places = Vec::new();
        while let [next] = &blocks.located(places.last(), 4, 1)[..] {
            places.push(*next);
        }
        let sequences = places.iter().map(|place| place.sequence);
        assert!(sequences.eq([2, 3]));
        let all = blocks.located(None, 9, 9);
        assert!(all.iter().map(|place| place.first).eq([20, 30, 10]));
    }

    #[test]
    fn copies_replace_blocks_and_keep_their_order() {
        let mut blocks = blocks(100);
        let young = blocks.young_before(3, 100);
        assert_eq!(young, [block(7, 10, 15), block(7, 20, 25)]);
        assert_eq!(blocks.young_before(3, 1).len(), 1, "at least one");
        blocks.release(7, 15);
        blocks.insert(4, young[1].clone(), true);
        assert_eq!(read(&blocks, 7, 0), [(20, 25), (30, 35)]);
        assert_eq!(read(&blocks, 7, 22), [(20, 25), (30, 35)]);
        assert_eq!(read(&blocks, 7, 25), [(30, 35)]);
        assert!(blocks.young_before(3, 100).is_empty());
        assert_eq!((blocks.len(), blocks.first_sequence()), (2, Some(3)));
        // A merged copy replaces all blocks in its range.
        blocks.insert(5, block(7, 20, 35), true);
        assert_eq!((read(&blocks, 7, 0), blocks.len()), (vec![(20, 35)], 1));
    }

    #[test]
    fn blocks_of_absent_inboxes_are_released() {
        let mut blocks = Blocks::new(100);
        blocks.insert(1, block(7, 10, 15), false);
        blocks.insert(1, block(8, 16, 16), true);
        blocks.retain(|inbox| (inbox == 7).then_some(14));
        assert_eq!(
            (read(&blocks, 7, 0), read(&blocks, 8, 0)),
            (vec![(10, 15)], vec![])
        );
        blocks.retain(|_| Some(15));
        assert_eq!(
            (blocks.len(), blocks.live_bytes(), blocks.cached_bytes()),
            (0, 0, 0)
        );
    }

    #[test]
    fn oldest_payloads_leave_the_cache() {
        let bytes = block(7, 10, 15).payload.len() as u64;
        let mut blocks = blocks(2 * bytes);
        assert_eq!(
            (blocks.cached_bytes(), blocks.live_bytes()),
            (2 * bytes, 3 * bytes)
        );
        assert_eq!(
            (blocks.uncached_after(7, 0), blocks.uncached_after(7, 15)),
            (Some(1), None)
        );
        assert!(read(&blocks, 7, 0).is_empty());
        let first = [block(7, 10, 15)];
        let mut count = 0;
        let visit = &mut |_| {
            count += 1;
            ControlFlow::Continue(())
        };
        WithRead {
            blocks: &blocks,
            read: &first,
        }
        .read(7, 0, visit)
        .unwrap();
        assert_eq!(count, 3);
        // It cannot be merged, and is only named by the index.
        assert_eq!(blocks.young_before(3, 100), [block(7, 20, 25)]);
        let located = blocks.located(None, 2, 10);
        assert_eq!(
            located,
            [Located {
                inbox: 7,
                first: 10,
                last: 15,
                sequence: 1,
                bytes: bytes as u32
            }]
        );
        assert!(blocks.located(located.last(), 2, 10).is_empty());
        assert_eq!(blocks.oldest_copies(2), Some((1, None)));
        assert_eq!(
            blocks.live_at(1, vec![block(7, 10, 15), block(7, 20, 25)]),
            first
        );
    }

    #[test]
    fn index_restores_the_places_of_blocks() {
        let mut blocks = Blocks::new(100);
        blocks.insert(5, block(7, 20, 25), false);
        let located = |first, sequence| Located {
            inbox: 7,
            first,
            last: first + 5,
            sequence,
            bytes: 9,
        };
        blocks.insert_located(&located(10, 2));
        blocks.insert_located(&located(20, 5));
        assert_eq!((blocks.len(), blocks.uncached_after(7, 0)), (2, Some(2)));
        assert_eq!(read(&blocks, 7, 15), [(20, 25)], "it stays in memory");
        assert!(blocks.young_before(9, 100).is_empty());
    }
}
