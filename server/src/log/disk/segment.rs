//! The segments of an open log, by their use.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::file::StorageFile;
use super::format::{BLOCK_HEAD_MAX, Extent, HEADER_SPAN, Salt, SegmentId};
use super::table::Table;
use crate::sync::RwLock;

/// Bytes of a unit, in which live blocks are counted.
const UNIT_BYTES: u32 = 16;

/// Returns the units of a block, at least one.
pub(super) fn units(extent: Extent) -> u64 {
    extent.length.div_ceil(UNIT_BYTES).max(1).into()
}

/// Returns the units that blocks have at least if a merged one replaces them.
pub(super) fn units_least(merged: Extent) -> u64 {
    let payload = merged.length.saturating_sub(BLOCK_HEAD_MAX as u32);
    (payload / UNIT_BYTES).into()
}

/// Returns the bytes of some units.
pub(super) fn unit_bytes(units: u64) -> u64 {
    units * u64::from(UNIT_BYTES)
}

/// A file that can hold a segment.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn StorageFile>,
    pub(super) size: u64,
}

impl Slot {
    /// Ensures that an open finds no segment in the file.
    pub(super) fn blank(&self) -> io::Result<()> {
        self.file.write_at(&[0; 2 * HEADER_SPAN], 0)?;
        self.file.sync()
    }
}

/// One use of a segment. A reader that holds a reference keeps it from being
/// recycled.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) slot: Slot,
    pub(super) salt: Salt,
    /// The end of the last frame; 0 while frames are appended.
    end: AtomicU64,
    /// Units of live blocks. Written under the lock of the index shard that holds
    /// the blocks.
    live: AtomicU64,
    table: OnceLock<Table>,
    /// No index frame is written: it failed, or there is no room for it.
    is_unindexed: AtomicBool,
    /// It was copied forward, or cannot be.
    is_unmovable: AtomicBool,
}

impl Segment {
    pub(super) fn new(
        id: SegmentId,
        slot: Slot,
        salt: Salt,
        end: u64,
        table: Option<Table>,
    ) -> Self {
        Self {
            id,
            slot,
            salt,
            end: end.into(),
            live: AtomicU64::new(0),
            table: table.map(OnceLock::from).unwrap_or_default(),
            is_unindexed: AtomicBool::new(false),
            is_unmovable: AtomicBool::new(false),
        }
    }

    /// Returns the end of its frames, if it takes no more frames.
    pub(super) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Acquire)).filter(|&end| end > 0)
    }

    /// Records that no frame is appended after `end`.
    pub(super) fn finish(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Returns the index frame, if it exists.
    pub(super) fn table(&self) -> Option<&Table> {
        self.table.get()
    }

    pub(super) fn set_table(&self, table: Table) {
        // A segment is sealed by one thread, once.
        let _ = self.table.set(table);
    }

    /// Records that the segment will have no index frame.
    pub(super) fn set_unindexed(&self) {
        self.is_unindexed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the segment still needs its index frame.
    pub(super) fn is_unsealed(&self) -> bool {
        self.end().is_some() && self.table().is_none() && !self.is_unindexed.load(Ordering::Relaxed)
    }

    /// Records that the segment was copied forward or cannot be.
    pub(super) fn set_unmovable(&self) {
        self.is_unmovable.store(true, Ordering::Relaxed);
    }

    /// Returns whether the segment can be copied forward.
    pub(super) fn is_movable(&self) -> bool {
        !self.is_unmovable.load(Ordering::Relaxed)
    }

    /// Returns the units of live blocks.
    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn add_live(&self, units: u64) {
        self.live.fetch_add(units, Ordering::Relaxed);
    }

    /// Returns whether no live block is left.
    pub(super) fn remove_live(&self, units: u64) -> bool {
        let before = self.live.fetch_sub(units, Ordering::Relaxed);
        debug_assert!(
            before >= units,
            "segment {} had {before} live units, not {units}",
            self.id
        );
        before == units
    }
}

/// The segments of an open log.
#[derive(Debug, Default)]
pub(super) struct Segments {
    /// Changed by the thread of the log; held for a lookup.
    by_id: RwLock<BTreeMap<SegmentId, Arc<Segment>>>,
}

impl Segments {
    pub(super) fn get(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.by_id.read().get(&id).cloned()
    }

    pub(super) fn insert(&self, segment: Arc<Segment>) {
        self.by_id.write().insert(segment.id, segment);
    }

    pub(super) fn remove(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.by_id.write().remove(&id)
    }

    /// Returns the segments that satisfy a condition, the oldest first.
    pub(super) fn select(&self, is_wanted: impl Fn(&Segment) -> bool) -> Vec<Arc<Segment>> {
        let by_id = self.by_id.read();
        by_id
            .values()
            .filter(|segment| is_wanted(segment))
            .cloned()
            .collect()
    }

    /// Sums a figure over all segments.
    pub(super) fn sum(&self, figure: impl Fn(&Segment) -> u64) -> u64 {
        let by_id = self.by_id.read();
        by_id.values().map(|segment| figure(segment)).sum()
    }

    pub(super) fn add_live(&self, id: SegmentId, units: u64) {
        let by_id = self.by_id.read();
        if let Some(segment) = by_id.get(&id) {
            segment.add_live(units);
        }
    }

    /// Returns whether no live block is left.
    pub(super) fn remove_live(&self, id: SegmentId, units: u64) -> bool {
        let by_id = self.by_id.read();
        by_id
            .get(&id)
            .is_some_and(|segment| segment.remove_live(units))
    }
}
