//! A log on disk: segments of frames that are written once, in order, and recycled when
//! none of their content is needed.
//!
//! | file | content |
//! | --- | --- |
//! | `folder.rs` | the folder of a store: format, lock, permissions |
//! | `file.rs` | the file operations that the log needs |
//! | `format.rs`, `meta.rs`, `table.rs`, `head.rs` | the formats of the files |
//! | `slots.rs`, `segment.rs` | files, and the segments that they hold |
//! | `index.rs`, `runs.rs`, `recent.rs`, `map.rs`, `build.rs` | the locations of the live blocks of each inbox |
//! | `scan.rs`, `recovery.rs` | an open: a torn end or damage, the replay |
//! | `writer.rs` | appends, and the change of segments |
//! | `reader.rs` | reads concurrent with appends |
//! | `snapshot.rs`, `repair.rs` | read-only access, and replacing damaged blocks |
//! | `salvage.rs` | reading a log that cannot be opened |
//! | `backup.rs` | copying a log beside appends |
//! | `maintenance.rs`, `copies.rs` | index frames, spare files, copies |
//!
//! This file has the limits: the size of a segment, and the reserve of free space.

pub(crate) mod backup;
mod bugs;
mod build;
mod copies;
mod file;
mod folder;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod head;
mod index;
mod maintenance;
mod map;
mod meta;
mod reader;
mod recent;
mod recovery;
pub mod repair;
mod runs;
pub mod salvage;
mod scan;
mod segment;
mod slots;
pub mod snapshot;
mod table;
mod varint;
mod writer;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use self::bugs::{Bug, is_planted};
use self::copies::{CopyItem, CopyQueue};
use self::file::{OsStorage, Storage};
use self::folder::Folder;
use self::format::{BlockRecord, CheckpointExtent, FrameContent, SegmentId};
use self::index::Index;
use self::maintenance::Runner;
use self::meta::{CheckpointEnd, Meta};
use self::recovery::{Recovered, Replay, recover};
use self::segment::{Segment, Segments, unit_bytes};
use self::slots::{Files, Spares};
use self::writer::{OpenSegment, Writer};
use super::{
    AppendError, CheckpointPart, Durability, Frame, InboxId, Log, LogCopy, LogError, OpenError,
    Opener, RECORD_BYTES_MAX, Reader, Usage,
};
use crate::sync::{Condvar, Mutex};

/// The usual size of a segment.
const SEGMENT_BYTES: u64 = 64 << 20;
/// A checkpoint is due if the log after the last one is longer than this many segments,
/// and than this many times the checkpoint.
const DUE_SEGMENTS: u64 = 2;
const DUE_CHECKPOINTS: u64 = 3;
/// The reserve of free space, in segments and in checkpoints: one segment for a frame
/// with messages, and two for appends that may use the reserve.
const RESERVE_SEGMENTS: u64 = 3;
const RESERVE_CHECKPOINTS: u64 = 2;
/// While the log is not full, there is room for a frame without messages that has this
/// many bytes, or this fraction of a segment. The rest is kept for appends that reclaim
/// space.
const RECORDS_ROOM: u64 = 2 * RECORD_BYTES_MAX as u64;
const RECORDS_DIVISOR: u64 = 4;

/// Opens the log of a store's folder.
#[derive(Debug)]
pub struct DiskOpener {
    path: PathBuf,
    config: DiskConfig,
    /// Keeps the folder locked from the first open on, so that no other process can
    /// take it between a failure and the next open. Held for a lookup.
    folder: Mutex<Option<Arc<Folder>>>,
}

/// The layout of a log.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The size of a segment in bytes; `None` for the store's current size. Existing
    /// segments of another size are still used.
    pub segment_bytes: Option<u64>,
    /// How long an open waits for another process to release the store.
    pub lock_timeout: Duration,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            segment_bytes: None,
            lock_timeout: folder::LOCK_TIMEOUT,
        }
    }
}

impl DiskOpener {
    /// Opens the log in `path`, and creates it if there is none.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_config(path, DiskConfig::default())
    }

    /// Opens the log in `path` with another layout.
    pub fn with_config(path: impl Into<PathBuf>, config: DiskConfig) -> Self {
        Self {
            path: path.into(),
            config,
            folder: Mutex::default(),
        }
    }

    /// Returns the folder, locked. It is in use while another log of this opener is open.
    fn folder(&self) -> Result<Arc<Folder>, OpenError> {
        let mut held = self.folder.lock();
        match held.take_if(|folder| Arc::strong_count(folder) == 1) {
            Some(folder) => {
                folder.verify()?;
                Ok(Arc::clone(held.insert(folder)))
            }
            None if held.is_some() => Err(OpenError::InUse {
                path: self.path.clone(),
                pid: Some(std::process::id()),
            }),
            None => Ok(Arc::clone(held.insert(Arc::new(Folder::open(
                &self.path,
                self.config.lock_timeout,
            )?)))),
        }
    }
}

impl Opener for DiskOpener {
    fn open(&self, replay: &mut Replay<'_>) -> Result<Box<dyn Log>, OpenError> {
        let folder = self.folder()?;
        let storage = Arc::new(OsStorage::new(&folder.log()));
        let mut log = DiskLog::open(storage, self.config.segment_bytes, replay)
            .map_err(|error| error.of_store(&self.path))?;
        let runner = Runner::start(&log.shared);
        log.runner = Some(runner.map_err(|source| OpenError::Io {
            path: self.path.clone(),
            source,
        })?);
        log.folder = Some(folder);
        Ok(Box::new(log))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The state that readers and the maintenance share with the thread of the log.
#[derive(Debug)]
struct SharedLog {
    files: Files,
    segments: Arc<Segments>,
    index: Index,
    copies: CopyQueue,
    /// Segments that lost their last live block when another segment was sealed, or to a
    /// merged block.
    emptied: Mutex<Vec<SegmentId>>,
    /// The oldest segment that a replay needs.
    tail_start: AtomicU32,
    /// The active segment is a quarter full.
    is_filling: AtomicBool,
    is_closed: AtomicBool,
    /// Segments before this one are copied even if few of their blocks are dead; 0 if there is
    /// no compaction.
    compact_before: AtomicU32,
    /// The maintenance has panicked.
    has_panicked: AtomicBool,
    /// Whether the maintenance was woken since its last wait.
    woken: Mutex<bool>,
    wake: Condvar,
}

impl SharedLog {
    fn new(files: Files, segments: Arc<Segments>, index: Index, tail_start: SegmentId) -> Self {
        let copies = CopyQueue::new(files.segment_bytes);
        Self {
            files,
            segments,
            index,
            copies,
            emptied: Mutex::default(),
            tail_start: tail_start.into(),
            is_filling: false.into(),
            is_closed: false.into(),
            compact_before: 0.into(),
            has_panicked: false.into(),
            woken: Mutex::default(),
            wake: Condvar::default(),
        }
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn wake(&self) {
        *self.woken.lock() = true;
        self.wake.notify_all();
    }

    /// Waits until the maintenance is woken, or until the timeout.
    fn wait(&self, timeout: Duration) {
        let woken = self.woken.lock();
        *self
            .wake
            .wait_timeout_while(woken, timeout, |woken| !*woken) = false;
    }
}

/// An open log.
#[derive(Debug)]
struct DiskLog {
    shared: Arc<SharedLog>,
    writer: Writer,
    checkpoint: CheckpointExtent,
    begun: Option<Begun>,
    /// Segments without live blocks that no frame has freed yet.
    emptied: BTreeSet<SegmentId>,
    /// Segments that a frame has freed, with its commit, until that is synced.
    freeing: VecDeque<(SegmentId, u64)>,
    /// Freed segments that a reader may still hold.
    held: Vec<Arc<Segment>>,
    /// Bytes of the sealed segments that a replay needs.
    tail_bytes: u64,
    is_failed: bool,
    /// Ends before the folder is unlocked.
    runner: Option<Runner>,
    folder: Option<Arc<Folder>>,
}

/// A checkpoint whose parts are being appended.
#[derive(Debug, Clone, Copy)]
struct Begun {
    first: u64,
    segment: SegmentId,
    bytes: u64,
}

impl DiskLog {
    /// Opens the log in a storage, without maintenance.
    fn open(
        storage: Arc<dyn Storage>,
        segment_bytes: Option<u64>,
        replay: &mut Replay<'_>,
    ) -> Result<Self, OpenError> {
        let mut recovered = recover(&*storage, replay)?;
        slots::remove_unfinished(&*storage).map_err(|source| OpenError::Io {
            path: storage.path(""),
            source,
        })?;
        let own = if recovered.segment_bytes > 0 {
            recovered.segment_bytes
        } else {
            SEGMENT_BYTES
        };
        let segment_bytes = segment_bytes.unwrap_or(own);
        let (blank, freed) = (
            std::mem::take(&mut recovered.blank),
            std::mem::take(&mut recovered.freed),
        );
        let spares = Spares::new(blank, freed, recovered.next_name, segment_bytes);
        let files = Files::new(storage, spares, segment_bytes);
        let opened = OpenSegment::begin(&files, &mut recovered)?;
        let Recovered {
            head,
            checkpoint,
            mut index,
            ..
        } = recovered;
        index.add_opened(&opened);
        let io = |source| OpenError::Io {
            path: files.storage.path(""),
            source,
        };
        let (segments, index) = index.build().map_err(io)?;
        let shared = Arc::new(SharedLog::new(files, segments, index, opened.tail_start));
        let writer = Writer::new(Arc::clone(&shared), head, checkpoint, opened);
        let emptied = shared
            .segments
            .select(|segment| segment.live() == 0 && segment.id != writer.active());
        let mut log = Self {
            shared,
            writer,
            checkpoint,
            begun: None,
            emptied: emptied.iter().map(|segment| segment.id).collect(),
            freeing: VecDeque::new(),
            held: Vec::new(),
            tail_bytes: 0,
            is_failed: false,
            runner: None,
            folder: None,
        };
        log.count_tail();
        Ok(log)
    }

    fn try_append(
        &mut self,
        frame: &Frame,
        copies: &[CopyItem],
        durability: Durability,
    ) -> Result<(), AppendError> {
        let blocks: Vec<_> = frame
            .blocks
            .iter()
            .map(BlockRecord::from)
            .chain(copies.iter().filter_map(CopyItem::record))
            .chain(frame.merged.iter().map(BlockRecord::from))
            .collect();
        let freed = self.take_freed();
        // Each of these numbers takes at most ten bytes.
        let meta_bytes = 10 * (4 + freed.len() + 2 * self.live_count(frame.checkpoint));
        let active = self.writer.active();
        self.writer.make_room(meta_bytes, &frame.records, &blocks)?;
        if self.writer.active() != active {
            self.note_ended(active);
        }
        let (begun, end) = self.next_part(frame.checkpoint, frame.records.len() as u64);
        let commit = self.writer.next_commit();
        let part = frame.checkpoint.filter(|_| begun.is_some());
        let meta = Meta {
            freed,
            checkpoint: end,
        };
        let content = FrameContent {
            commit,
            synced: self.writer.synced(),
            previous: self.writer.previous_check(),
            part,
            meta: &meta.encode(),
            records: &frame.records,
            blocks: &blocks,
        };
        self.writer
            .append(&content, frame.merged.len(), durability)?;
        self.note_appended(commit, meta, begun);
        Ok(())
    }

    /// Returns the state of the checkpoint after a frame with a part of it, and the end
    /// of the checkpoint if this is the last part.
    fn next_part(
        &self,
        part: Option<CheckpointPart>,
        bytes: u64,
    ) -> (Option<Begun>, Option<CheckpointEnd>) {
        let Some(part) = part else {
            return (self.begun, None);
        };
        let new = Begun {
            first: self.writer.next_commit(),
            segment: self.writer.active(),
            bytes: 0,
        };
        let begun = if part.is_first { Some(new) } else { self.begun };
        let begun = begun.map(|begun| Begun {
            bytes: begun.bytes + bytes,
            ..begun
        });
        let end = begun.filter(|_| part.is_last).map(|begun| {
            let live = self
                .shared
                .segments
                .select(|segment| segment.id < begun.segment && segment.live() > 0);
            let live = live
                .iter()
                .map(|segment| (segment.id, segment.end().unwrap_or(0)))
                .collect();
            CheckpointEnd {
                first: begun.first,
                bytes: begun.bytes,
                live,
            }
        });
        (begun, end)
    }

    fn live_count(&self, part: Option<CheckpointPart>) -> usize {
        if part.is_some_and(|part| part.is_last) {
            self.shared.segments.select(|_| true).len()
        } else {
            0
        }
    }

    /// Takes the segments that the next frame frees.
    fn take_freed(&mut self) -> Vec<SegmentId> {
        let mut sealed = self.shared.emptied.lock();
        self.emptied.extend(sealed.drain(..));
        drop(sealed);
        let tail_start = self.shared.tail_start.load(Ordering::Relaxed);
        self.emptied.range(..tail_start).copied().collect()
    }

    /// Records that a segment takes no more frames.
    fn note_ended(&mut self, id: SegmentId) {
        if self
            .shared
            .segments
            .get(id)
            .is_some_and(|segment| segment.live() == 0)
        {
            self.emptied.insert(id);
        }
        self.count_tail();
        self.shared.wake();
    }

    fn note_appended(&mut self, commit: u64, meta: Meta, begun: Option<Begun>) {
        for id in meta.freed {
            self.emptied.remove(&id);
            self.freeing.push_back((id, commit));
        }
        self.begun = begun;
        if let (Some(end), Some(begun)) = (meta.checkpoint, begun) {
            self.checkpoint = CheckpointExtent {
                first: end.first,
                last: commit,
                bytes: end.bytes,
            };
            self.writer.set_checkpoint(self.checkpoint);
            self.begun = None;
            self.shared
                .tail_start
                .store(begun.segment, Ordering::Relaxed);
            self.count_tail();
        }
        self.reclaim();
    }

    /// Recycles the segments that were freed by a synced frame and that no reader
    /// holds.
    fn reclaim(&mut self) {
        let synced = if is_planted(Bug::RecycledEarly) {
            u64::MAX
        } else {
            self.writer.synced()
        };
        while let Some((id, _)) = self.freeing.pop_front_if(|(_, commit)| *commit <= synced) {
            self.held.extend(self.shared.segments.remove(id));
        }
        if self.held.is_empty() {
            return;
        }
        for segment in std::mem::take(&mut self.held) {
            if is_planted(Bug::RecycledUnderReader) {
                self.shared.files.spares.give(segment.slot.clone());
                continue;
            }
            match Arc::try_unwrap(segment) {
                Ok(segment) => self.shared.files.spares.give(segment.slot),
                Err(segment) => self.held.push(segment),
            }
        }
        self.shared.wake();
    }

    fn count_tail(&mut self) {
        let start = self.shared.tail_start.load(Ordering::Relaxed);
        let active = self.writer.active();
        let is_tail = |segment: &Segment| segment.id >= start && segment.id != active;
        self.tail_bytes = self.shared.segments.sum(|segment| {
            if is_tail(segment) {
                segment.slot.size
            } else {
                0
            }
        });
    }

    /// Finishes the copies that were appended.
    fn finish_copies(&mut self, copies: &[CopyItem]) {
        let mut emptied = Vec::new();
        for copy in copies {
            if let CopyItem::Done { source, inbox } = copy {
                self.shared.index.finish_copy(*inbox, *source, &mut emptied);
            }
        }
        self.note_emptied(emptied);
        self.shared.wake();
    }

    /// Returns whether the maintenance has panicked: the next append fails.
    fn has_panicked(&self) -> bool {
        self.shared.has_panicked.load(Ordering::Acquire)
    }

    fn note_emptied(&mut self, emptied: Vec<SegmentId>) {
        let active = self.writer.active();
        self.emptied
            .extend(emptied.into_iter().filter(|&id| id != active));
    }
}

impl Log for DiskLog {
    fn append(&mut self, frame: Frame, durability: Durability) -> Result<(), AppendError> {
        if self.is_failed || self.has_panicked() {
            return Err(self
                .writer
                .error(std::io::Error::other("the log has already failed"))
                .into());
        }
        let bytes = frame.records.len()
            + frame
                .blocks
                .iter()
                .map(|block| block.payload.len())
                .sum::<usize>();
        // The index frame of a segment leaves out the blocks that were merged into another
        // one, so that one must not be lost.
        let durability = if frame.merged.is_empty() {
            durability
        } else {
            Durability::Machine
        };
        let index = &self.shared.index;
        let mut copies = self.shared.copies.take(bytes, |entry, source| {
            index.is_live_in(entry, source) || is_planted(Bug::RevivedCopy)
        });
        let mut result = self.try_append(&frame, &copies, durability);
        if matches!(result, Err(AppendError::NoSpace)) && !copies.is_empty() {
            // The frame may fit without copies.
            self.shared.copies.put_back(std::mem::take(&mut copies));
            result = self.try_append(&frame, &copies, durability);
        }
        match result {
            Ok(()) if copies.is_empty() => {}
            Ok(()) => self.finish_copies(&copies),
            Err(AppendError::NoSpace) => return Err(AppendError::NoSpace),
            Err(error) => {
                self.is_failed = true;
                return Err(error);
            }
        }
        if let Some(runner) = &mut self.runner {
            runner.step();
        }
        Ok(())
    }

    fn release(&mut self, inbox: InboxId, through: u64) {
        let mut emptied = Vec::new();
        self.shared.index.release(inbox, through, &mut emptied);
        self.note_emptied(emptied);
    }

    fn retain(&mut self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>) {
        let mut emptied = Vec::new();
        self.shared.index.retain(cursor, &mut emptied);
        self.note_emptied(emptied);
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.shared) as Arc<dyn Reader>
    }

    fn is_checkpoint_due(&self) -> bool {
        let due = (DUE_SEGMENTS * self.shared.files.segment_bytes)
            .max(DUE_CHECKPOINTS * self.checkpoint.bytes);
        // A checkpoint allows the segments before it to be freed.
        let is_held_up = self.is_low_on_space() && self.has_space_after_checkpoint();
        is_held_up || self.tail_bytes + self.writer.offset() > due
    }

    fn has_pending_work(&self) -> bool {
        let tail_start = self.shared.tail_start.load(Ordering::Relaxed);
        let is_free = |id: &SegmentId| *id < tail_start;
        let emptied = self.shared.emptied.lock();
        self.has_panicked()
            || emptied.iter().chain(&self.emptied).any(is_free)
            || !self.shared.copies.is_empty()
            || !self.freeing.is_empty()
            || !self.held.is_empty()
    }

    fn segment_bytes(&self) -> u64 {
        self.shared.files.segment_bytes
    }

    fn is_low_on_space(&self) -> bool {
        let reserve = RESERVE_SEGMENTS * self.shared.files.segment_bytes
            + RESERVE_CHECKPOINTS * self.checkpoint.bytes;
        self.shared.files.available_bytes() < reserve
    }

    fn is_full(&self) -> bool {
        let room = RECORDS_ROOM.min(self.shared.files.segment_bytes / RECORDS_DIVISOR);
        !self.writer.has_room(room as usize, 0) && !self.shared.files.has_segment()
    }

    fn usage(&self) -> Usage {
        let live = self.shared.segments.sum(Segment::live);
        let held: u64 = self.held.iter().map(|segment| segment.slot.size).sum();
        let files = self.shared.segments.sum(|segment| segment.slot.size);
        Usage {
            live_bytes: unit_bytes(live),
            file_bytes: files + held + self.shared.files.spares.bytes(),
            spare_bytes: held + self.shared.files.spares.bytes(),
            free_bytes: Some(self.shared.files.free_bytes()),
        }
    }

    fn compact(&mut self) {
        let tail_start = self.shared.tail_start.load(Ordering::Relaxed);
        self.shared
            .compact_before
            .store(tail_start, Ordering::Relaxed);
        self.shared.wake();
    }

    fn has_space_after_checkpoint(&self) -> bool {
        self.tail_bytes > 0 && !self.emptied.is_empty()
    }

    fn copy(&self) -> Option<Box<dyn LogCopy>> {
        Some(self.copied())
    }

    fn close(mut self: Box<Self>) -> Result<(), LogError> {
        if self.is_failed {
            Ok(())
        } else {
            self.writer.sync()
        }
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.shared.wake();
    }
}

#[cfg(test)]
mod tests;
