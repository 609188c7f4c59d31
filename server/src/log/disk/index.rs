//! The index in memory: the locations of the live blocks of each inbox.
//!
//! Blocks of segments without an index frame are indexed one by one ("recent"). In a
//! sealed segment, one run represents all blocks of an inbox, and the index frame has
//! their locations. A block that was copied forward is recent while its old location may
//! still be in a run: the recent one wins. So does a merged block over those in its range.
//! The copied and merged blocks of a run are always a prefix of its live blocks, so that a
//! run needs no holes; a run is split before a merged block that would leave one.

use std::collections::VecDeque;
use std::sync::Arc;

use super::format::SegmentId;
use super::map::ByteMap;
use super::recent::{BlockRef, RecentBlocks};
use super::runs::{BlockRun, CutRuns, RunList, packed_runs, packed_start};
use super::segment::{Segment, Segments, units, units_least};
use super::table::BlockEntry;
use crate::log::InboxId;
use crate::sync::{RwLock, RwLockWriteGuard};

/// Parts of the index, each with its own lock.
const SHARDS: usize = 256;
/// Maximum runs and recent blocks of one [`Plan`].
const PLAN_RUNS: usize = 16;
const PLAN_BLOCKS: usize = 256;

/// The locations of the next blocks of an inbox.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Segments in order, each with the range of last numbers to read there: above
    /// the first, up to the second.
    pub(super) runs: Vec<(Arc<Segment>, u64, u64)>,
    /// Blocks in order, which win over those of a run in their range.
    pub(super) recent: Vec<(Arc<Segment>, BlockRef)>,
    /// Blocks up to this number are in the plan.
    pub(super) through: u64,
}

/// The index of an open log.
#[derive(Debug)]
pub(super) struct Index {
    /// Written by the thread of the log and, when a segment is sealed, by the
    /// maintenance thread; a lock is held for one inbox, or to seal one shard.
    shards: Box<[RwLock<IndexShard>]>,
    segments: Arc<Segments>,
}

#[derive(Debug, Default)]
struct IndexShard {
    recent: RecentBlocks,
    /// The packed runs of each inbox.
    sealed: ByteMap,
    buffer: Vec<u8>,
}

impl Index {
    pub(super) fn new(segments: Arc<Segments>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            segments,
        }
    }

    /// Adds a block. It replaces a recent block with the same first number.
    pub(super) fn insert(&self, inbox: InboxId, block: BlockRef) {
        let mut shard = self.write(inbox);
        self.segments.add_live(block.segment, units(block.extent));
        let replaced = shard.recent.update(inbox, |recent| {
            if recent.back().is_none_or(|back| back.first < block.first) {
                recent.push_back(block);
                return None;
            }
            let at = recent.partition_point(|other| other.first < block.first);
            match recent
                .get_mut(at)
                .filter(|other| other.first == block.first)
            {
                Some(other) => Some(std::mem::replace(other, block)),
                None => {
                    recent.insert(at, block);
                    None
                }
            }
        });
        if let Some(replaced) = replaced {
            self.segments
                .remove_live(replaced.segment, units(replaced.extent));
        }
    }

    /// Adds a merged block. It replaces all live blocks in its range. Adds the segments
    /// that lost their last live block to `emptied`.
    pub(super) fn replace(&self, inbox: InboxId, block: BlockRef, emptied: &mut Vec<SegmentId>) {
        let mut guard = self.write(inbox);
        let IndexShard {
            recent,
            sealed,
            buffer,
        } = &mut *guard;
        self.segments.add_live(block.segment, units(block.extent));
        let mut replaced_units = units_least(block.extent);
        recent.update(inbox, |recent| {
            let start = recent.partition_point(|other| other.first < block.first);
            let end = recent.partition_point(|other| other.last <= block.last);
            for replaced in recent.drain(start..end.max(start)) {
                let units = units(replaced.extent);
                replaced_units = replaced_units.saturating_sub(units);
                self.remove_live(replaced.segment, units, emptied);
            }
            recent.insert(start, block);
        });
        let Some(packed) = sealed.get(inbox) else {
            return;
        };
        let CutRuns {
            list,
            added,
            removed,
        } = RunList::unpack(inbox, packed).cut(block.first, block.last, replaced_units);
        for run in added {
            self.segments.add_live(run.segment, run.units);
        }
        for run in removed {
            self.remove_live(run.segment, run.units, emptied);
        }
        set_runs(sealed, inbox, &list, buffer);
    }

    /// Adds the runs of an inbox, which has none. The caller adds their live units to
    /// the segments.
    pub(super) fn insert_runs(&self, inbox: InboxId, list: &RunList) {
        let mut guard = self.write(inbox);
        let IndexShard { sealed, buffer, .. } = &mut *guard;
        list.pack(inbox, buffer);
        sealed.set(inbox, buffer);
    }

    /// Removes the blocks of `inbox` up to a number. Adds the segments that lost their
    /// last live block to `emptied`.
    pub(super) fn release(&self, inbox: InboxId, through: u64, emptied: &mut Vec<SegmentId>) {
        self.release_in(&mut self.write(inbox), inbox, through, emptied);
    }

    /// Releases the blocks of each inbox by its cursor, all of them if it has none.
    pub(super) fn retain(
        &self,
        cursor: &mut dyn FnMut(InboxId) -> Option<u64>,
        emptied: &mut Vec<SegmentId>,
    ) {
        let mut inboxes = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.write();
            inboxes.clear();
            inboxes.extend(shard.inboxes());
            for &inbox in &inboxes {
                self.release_in(
                    &mut shard,
                    inbox,
                    cursor(inbox).unwrap_or(u64::MAX),
                    emptied,
                );
            }
        }
    }

    fn release_in(
        &self,
        shard: &mut IndexShard,
        inbox: InboxId,
        through: u64,
        emptied: &mut Vec<SegmentId>,
    ) {
        let IndexShard {
            recent,
            sealed,
            buffer,
        } = shard;
        if recent
            .first(inbox)
            .is_some_and(|block| block.last <= through)
        {
            recent.update(inbox, |blocks| {
                while let Some(block) = blocks.pop_front_if(|block| block.last <= through) {
                    self.remove_live(block.segment, units(block.extent), emptied);
                }
            });
        }
        let Some(packed) = sealed
            .get(inbox)
            .filter(|packed| packed_start(inbox, packed) < through)
        else {
            return;
        };
        let mut list = RunList {
            start: through,
            runs: Vec::new(),
        };
        for (_, run) in packed_runs(inbox, packed) {
            if run.last <= through {
                self.remove_live(run.segment, run.units, emptied);
            } else {
                list.runs.push(run);
            }
        }
        set_runs(sealed, inbox, &list, buffer);
    }

    fn remove_live(&self, segment: SegmentId, units: u64, emptied: &mut Vec<SegmentId>) {
        if self.segments.remove_live(segment, units) {
            emptied.push(segment);
        }
    }

    /// Returns every inbox that has a block.
    #[cfg(test)]
    pub(super) fn inboxes(&self) -> Vec<InboxId> {
        let mut inboxes = Vec::new();
        for shard in &self.shards {
            inboxes.extend(shard.read().inboxes());
        }
        inboxes.sort_unstable();
        inboxes.dedup();
        inboxes
    }

    /// Plans to read the blocks of `inbox` that hold a number above `after`.
    pub(super) fn plan(&self, inbox: InboxId, after: u64) -> Plan {
        let shard = self.shard(inbox).read();
        let mut plan = Plan {
            through: u64::MAX,
            ..Plan::default()
        };
        if let Some(packed) = shard.sealed.get(inbox) {
            let mut ranges = packed_runs(inbox, packed)
                .filter(|(_, run)| run.last > after)
                .peekable();
            for (start, run) in ranges.by_ref().take(PLAN_RUNS) {
                // A run keeps its segment among the segments.
                if let Some(segment) = self.segments.get(run.segment) {
                    plan.runs.push((segment, start.max(after), run.last));
                }
                plan.through = run.last;
            }
            if ranges.peek().is_none() {
                plan.through = u64::MAX;
            }
        }
        let recent = shard.recent.get(inbox);
        let start = recent.partition_point(|block| block.last <= after);
        for block in recent.range(start..) {
            if block.last > plan.through {
                break;
            }
            if plan.recent.len() == PLAN_BLOCKS {
                plan.through = plan.recent.last().map_or(after, |(_, block)| block.last);
                break;
            }
            if let Some(segment) = self.segments.get(block.segment) {
                plan.recent.push((segment, *block));
            }
        }
        plan
    }

    /// Returns the recent blocks of a segment, sorted by inbox and number.
    pub(super) fn recent_of(&self, segment: SegmentId) -> Vec<BlockEntry> {
        let mut entries = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            for inbox in shard.recent.inboxes() {
                let recent = shard.recent.get(inbox);
                let blocks = recent.iter().filter(|block| block.segment == segment);
                entries.extend(blocks.map(|block| BlockEntry {
                    inbox,
                    first: block.first,
                    last: block.last,
                    extent: block.extent,
                }));
            }
        }
        entries.sort_unstable();
        entries
    }

    /// Converts the recent blocks of a segment, which now has an index frame, into runs.
    /// Adds the segments that lost their last live block to `emptied`: all of their
    /// blocks had been copied.
    pub(super) fn seal(&self, segment: SegmentId, emptied: &mut Vec<SegmentId>) {
        for shard in &self.shards {
            let mut guard = shard.write();
            let IndexShard {
                recent,
                sealed,
                buffer,
            } = &mut *guard;
            let inboxes: Vec<_> = recent.inboxes().collect();
            for inbox in inboxes {
                let blocks = recent.get(inbox);
                let sealing = blocks_of(&blocks, segment);
                let Some(lowest) = blocks.front().filter(|_| !sealing.is_empty()) else {
                    continue;
                };
                let before = match sealed.get(inbox) {
                    Some(packed) => RunList::unpack(inbox, packed),
                    // The index frame may name blocks that were already released.
                    None => RunList {
                        start: lowest.first.saturating_sub(1),
                        runs: Vec::new(),
                    },
                };
                let list = merge(before, &sealing, |run| {
                    self.remove_live(run.segment, run.units, emptied)
                });
                set_runs(sealed, inbox, &list, buffer);
                recent.update(inbox, |blocks| {
                    blocks.retain(|block| block.segment != segment)
                });
            }
            recent.shrink();
        }
    }

    /// Returns whether a block in a sealed segment is live: neither released nor copied.
    pub(super) fn is_live_in(&self, entry: &BlockEntry, segment: SegmentId) -> bool {
        let shard = self.shard(entry.inbox).read();
        let Some(packed) = shard.sealed.get(entry.inbox) else {
            return false;
        };
        let is_in_run = packed_runs(entry.inbox, packed).any(|(start, run)| {
            run.segment == segment && start < entry.last && entry.last <= run.last
        });
        is_in_run && !covers(&shard.recent.get(entry.inbox), entry)
    }

    /// Removes the run of an inbox in a segment from which every live block was copied.
    pub(super) fn finish_copy(
        &self,
        inbox: InboxId,
        segment: SegmentId,
        emptied: &mut Vec<SegmentId>,
    ) {
        let mut guard = self.write(inbox);
        let IndexShard { sealed, buffer, .. } = &mut *guard;
        let Some(packed) = sealed.get(inbox) else {
            return;
        };
        let mut list = RunList::unpack(inbox, packed);
        list.runs.retain(|run| {
            let is_copied = run.segment == segment;
            if is_copied {
                self.remove_live(segment, run.units, emptied);
            }
            !is_copied
        });
        set_runs(sealed, inbox, &list, buffer);
    }

    fn shard(&self, inbox: InboxId) -> &RwLock<IndexShard> {
        // The hash table of a shard uses other bits of the same product.
        let number = (inbox.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "there are so many shards")]
        &self.shards[number]
    }

    fn write(&self, inbox: InboxId) -> RwLockWriteGuard<'_, IndexShard> {
        self.shard(inbox).write()
    }
}

impl IndexShard {
    /// Returns every inbox that has a block, some of them twice.
    fn inboxes(&self) -> impl Iterator<Item = InboxId> {
        self.recent.inboxes().chain(self.sealed.inboxes())
    }
}

/// Sets the runs of an inbox, which is removed if it has none.
fn set_runs(sealed: &mut ByteMap, inbox: InboxId, list: &RunList, buffer: &mut Vec<u8>) {
    if list.runs.is_empty() {
        sealed.remove(inbox);
    } else {
        list.pack(inbox, buffer);
        sealed.set(inbox, buffer);
    }
}

/// Returns whether a block is, or lies in the range of, a recent one.
fn covers(recent: &VecDeque<BlockRef>, entry: &BlockEntry) -> bool {
    let next = recent.partition_point(|block| block.first <= entry.first);
    let before = next.checked_sub(1).and_then(|before| recent.get(before));
    before.is_some_and(|block| entry.last <= block.last)
}

/// Returns the blocks of one segment, and whether each directly follows the previous one,
/// without a block of another segment between them.
fn blocks_of(recent: &VecDeque<BlockRef>, segment: SegmentId) -> Vec<(BlockRef, bool)> {
    let mut blocks = Vec::new();
    let mut is_adjacent = false;
    for block in recent {
        if block.segment == segment {
            blocks.push((*block, is_adjacent));
        }
        is_adjacent = block.segment == segment;
    }
    blocks
}

/// Merges blocks of a newer segment into the runs. Calls `drop_run` for a run whose last
/// block was copied there.
fn merge(
    before: RunList,
    blocks: &[(BlockRef, bool)],
    mut drop_run: impl FnMut(BlockRun),
) -> RunList {
    let mut list = RunList {
        start: before.start,
        runs: Vec::with_capacity(before.runs.len() + 1),
    };
    let mut runs = before.runs.into_iter().peekable();
    for &(block, mut is_adjacent) in blocks {
        while let Some(run) = runs.next_if(|run| run.last < block.last) {
            list.runs.push(run);
            is_adjacent = false;
        }
        if let Some(run) = runs.next_if(|run| run.last == block.last) {
            drop_run(run);
        }
        let run = BlockRun {
            segment: block.segment,
            last: block.last,
            units: units(block.extent),
        };
        list.push_block(run, is_adjacent);
    }
    list.runs.extend(runs);
    list
}

#[cfg(test)]
mod tests {
    use super::super::file::{OsStorage, Storage as _};
    use super::super::format::{Extent, Salt};
    use super::super::segment::Slot;
    use super::*;

    #[test]
    fn index_takes_ninety_bytes_for_ten_messages() {
        // The tables of the shards are as full as with a million: a little less than half,
        // the worst case.
        const INBOXES: u64 = 125_000;
        let index = Index::new(Arc::default());
        let extent = Extent {
            offset: 40 << 20,
            length: 140,
        };
        for number in 0..INBOXES {
            let inbox = (1 << 51) + 3 * number;
            let start = inbox + (1 << 40);
            // As if each of ten segments had a block of it; two fifths have one in the
            // active segment, too.
            let run = |run: u64| BlockRun {
                segment: 100 + run as SegmentId,
                last: start + (run + 1) * 1_000_000,
                units: 9,
            };
            index.insert_runs(
                inbox,
                &RunList {
                    start,
                    runs: (0..10).map(run).collect(),
                },
            );
            if number % 5 < 2 {
                let first = start + 11_000_000;
                index.insert(
                    inbox,
                    BlockRef {
                        first,
                        last: first,
                        segment: 110,
                        extent,
                    },
                );
            }
        }
        let bytes =
            |shard: &IndexShard| shard.sealed.allocated_bytes() + shard.recent.packed_bytes();
        let bytes: usize = index.shards.iter().map(|shard| bytes(&shard.read())).sum();
        println!("{} bytes for each inbox", bytes as u64 / INBOXES);
        assert!(bytes as u64 <= 90 * INBOXES, "{bytes} bytes");
    }

    #[test]
    fn merging_frees_the_units_of_a_run() {
        const BLOCKS: u64 = 1000;
        const MERGED: u64 = 100;
        let segments = Arc::new(Segments::default());
        let index = Index::new(Arc::clone(&segments));
        let folder = tempfile::tempdir().unwrap();
        let storage = OsStorage::new(folder.path());
        for id in [1, 2] {
            let name = format!("{id}.segment");
            let slot = Slot {
                path: storage.path(&name),
                file: storage.create(&name).unwrap(),
                name,
                size: 1 << 20,
            };
            segments.insert(Arc::new(Segment::new(id, slot, Salt::random(), 0, None)));
        }
        // Blocks of 160 bytes, of which the heads are a fourth, in a sealed segment.
        let length = 160;
        for number in 1..=BLOCKS {
            index.insert(7, block(1, 10 * number, 10 * number, length));
        }
        index.seal(1, &mut Vec::new());
        let units = || segments.get(1).map_or(0, |segment| segment.live());
        let before = units();
        assert_eq!(before, BLOCKS * 10);
        let mut emptied = Vec::new();
        for first in (1..BLOCKS).step_by(MERGED as usize) {
            let last = first + MERGED - 1;
            let merged = block(2, 10 * first, 10 * last, MERGED as u32 * 120);
            index.replace(7, merged, &mut emptied);
            assert!(units() <= before, "{} units", units());
            if last < BLOCKS {
                assert!(emptied.is_empty());
                assert!(units() >= (BLOCKS - last) * 10, "too few units");
            }
        }
        assert!(units() <= before / 3, "{} units", units());
        index.release(7, 10 * BLOCKS, &mut emptied);
        assert_eq!((units(), &*emptied), (0, &[2, 1][..]));
    }

    fn block(segment: SegmentId, first: u64, last: u64, length: u32) -> BlockRef {
        BlockRef {
            first,
            last,
            segment,
            extent: Extent { offset: 0, length },
        }
    }
}
