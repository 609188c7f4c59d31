//! Appends frames to the active segment, and begins new segments.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::SharedLog;
use super::format::{
    BlockRecord, CheckpointExtent, Extent, FRAME_MAX, FRAMES_START, FrameContent, FrameLink,
    Header, Previous, Salt, SegmentId,
};
use super::head::{Head, HeadFile};
use super::recent::BlockRef;
use super::recovery::{CarriedFrame, Recovered, Resume};
use super::segment::{Segment, Slot};
use super::slots::Files;
use super::table::{PAGE_BYTES, max_bytes, max_entry_bytes};
use crate::log::{AppendError, Durability, InboxId, LogError, OpenError};

/// Returns whether an error means that there is no space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<SharedLog>,
    head: HeadFile,
    active: Arc<Segment>,
    /// The end of the last frame in the active segment.
    offset: u64,
    /// The start of the last frame that was appended.
    #[cfg(test)]
    frame_start: u64,
    /// The use of the next segment.
    next_id: SegmentId,
    /// Maximum size of the index frame of the active segment, without its fixed part.
    index_bytes: usize,
    /// The last frame.
    link: FrameLink,
    /// The last commit that is on stable storage.
    synced: u64,
    checkpoint: CheckpointExtent,
    buffer: Vec<u8>,
    extents: Vec<Extent>,
}

/// The segment of an open: it holds the carried frames and is on stable storage.
#[derive(Debug)]
pub(super) struct OpenSegment {
    active: Arc<Segment>,
    offset: u64,
    next_id: SegmentId,
    index_bytes: usize,
    link: FrameLink,
    /// The oldest segment that a replay needs.
    pub(super) tail_start: SegmentId,
    /// The blocks to be indexed.
    pub(super) places: Vec<(InboxId, BlockRef)>,
}

impl OpenSegment {
    /// Begins a segment after the recovered log, or continues the newest one if there is
    /// no space for another.
    pub(super) fn begin(files: &Files, recovered: &mut Recovered) -> Result<Self, OpenError> {
        let carried = Carried::encode(recovered);
        let length = carried.bytes.len() - FRAMES_START as usize;
        let resume = recovered.resume.take();
        match (files.take_blank(length, carried.index_bytes), resume) {
            (Ok(slot), _) => Self::begin_in(slot, files, recovered, carried),
            (Err(error), Some(resume)) if is_full(&error) => {
                tracing::warn!("no space for a new segment: continuing in the last one");
                Self::resume(files, recovered, resume)
            }
            (Err(source), _) => Err(OpenError::Io {
                path: files.storage.path(""),
                source,
            }),
        }
    }

    fn begin_in(
        slot: Slot,
        files: &Files,
        recovered: &Recovered,
        carried: Carried,
    ) -> Result<Self, OpenError> {
        let Carried {
            salt,
            mut bytes,
            index_bytes,
            link,
            places,
        } = carried;
        let Recovered {
            next_id: id,
            previous,
            checkpoint,
            tail_start,
            ..
        } = *recovered;
        let carried = recovered.carried.last().map_or(0, |frame| frame.commit);
        let header = Header {
            id,
            size: slot.size,
            salt,
            previous,
            carried,
            checkpoint,
        };
        bytes.splice(..FRAMES_START as usize, header.encode());
        slot.file
            .write_at(&bytes, 0)
            .and_then(|()| slot.file.sync())
            .and_then(|()| {
                recovered.head.write(Head {
                    id,
                    segment_bytes: files.segment_bytes,
                })
            })
            .map_err(|source| OpenError::Io {
                path: files.storage.path(""),
                source,
            })?;
        let active = Arc::new(Segment::new(id, slot, salt, 0, None));
        let (offset, next_id) = (bytes.len() as u64, id.saturating_add(1));
        Ok(Self {
            active,
            offset,
            next_id,
            index_bytes,
            link,
            tail_start: tail_start.unwrap_or(id),
            places,
        })
    }

    /// Rewrites the newest segment in place, so that data that may exist only in the page
    /// cache reaches stable storage.
    fn resume(files: &Files, recovered: &Recovered, resume: Resume) -> Result<Self, OpenError> {
        let Resume {
            id,
            is_named,
            slot,
            mut bytes,
            end,
            ..
        } = resume;
        let head = Head {
            id,
            segment_bytes: files.segment_bytes,
        };
        // Incomplete frames after the end.
        bytes.get_mut(end as usize..).unwrap_or_default().fill(0);
        slot.file
            .write_at(&bytes, 0)
            .and_then(|()| slot.file.sync())
            .and_then(|()| {
                if is_named {
                    Ok(())
                } else {
                    recovered.head.write(head)
                }
            })
            .map_err(|source| OpenError::Io {
                path: slot.path.clone(),
                source,
            })?;
        files.spares.remove(&slot.name);
        let resume = Resume {
            slot,
            bytes: Vec::new(),
            ..resume
        };
        Ok(Self::of_newest(resume, recovered.next_id))
    }

    /// Returns the newest segment as it is.
    pub(super) fn of_newest(newest: Resume, next_id: SegmentId) -> Self {
        let Resume {
            id,
            slot,
            salt,
            end: offset,
            link,
            index_bytes,
            places,
            tail_start,
            ..
        } = newest;
        let active = Arc::new(Segment::new(id, slot, salt, 0, None));
        Self {
            active,
            offset,
            next_id,
            index_bytes,
            link,
            tail_start,
            places,
        }
    }

    /// Returns the segment.
    pub(super) fn segment(&self) -> Arc<Segment> {
        Arc::clone(&self.active)
    }
}

/// The frames carried into a new segment, after room for its header.
struct Carried {
    salt: Salt,
    bytes: Vec<u8>,
    index_bytes: usize,
    link: FrameLink,
    places: Vec<(InboxId, BlockRef)>,
}

impl Carried {
    fn encode(recovered: &Recovered) -> Self {
        let Recovered {
            next_id,
            previous,
            carried,
            ..
        } = recovered;
        let mut encoded = Self {
            salt: Salt::random(),
            // The frames of a whole segment fit exactly into a file of its size.
            bytes: vec![0; FRAMES_START as usize],
            index_bytes: 0,
            link: previous.link,
            places: Vec::new(),
        };
        for frame in carried {
            let blocks: Vec<_> = frame.blocks.iter().map(BlockRecord::from).collect();
            encoded.index_bytes += blocks
                .iter()
                .map(|block| max_entry_bytes(block.inbox))
                .sum::<usize>();
            let content = frame.content(encoded.link.check, &blocks);
            let (offset, mut extents) = (encoded.bytes.len() as u32, Vec::new());
            let check = content.encode(encoded.salt, &mut encoded.bytes, &mut extents);
            encoded.link = FrameLink {
                commit: frame.commit,
                check,
            };
            encoded
                .places
                .extend(content.places(*next_id, offset, &extents));
        }
        encoded
    }
}

impl Writer {
    /// Continues after the segment of an open.
    pub(super) fn new(
        shared: Arc<SharedLog>,
        head: HeadFile,
        checkpoint: CheckpointExtent,
        opened: OpenSegment,
    ) -> Self {
        let OpenSegment {
            active,
            offset,
            next_id,
            index_bytes,
            link,
            ..
        } = opened;
        Self {
            shared,
            head,
            active,
            offset,
            #[cfg(test)]
            frame_start: offset,
            next_id,
            index_bytes,
            link,
            synced: link.commit,
            checkpoint,
            buffer: Vec::new(),
            extents: Vec::new(),
        }
    }

    /// Returns the active segment.
    pub(super) fn active(&self) -> SegmentId {
        self.active.id
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the offset of the last frame.
    #[cfg(test)]
    pub(super) fn last_frame_start(&self) -> u64 {
        self.frame_start
    }

    pub(super) fn next_commit(&self) -> u64 {
        self.link.commit + 1
    }

    pub(super) fn previous_check(&self) -> u64 {
        self.link.check
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// Sets the newest complete checkpoint.
    pub(super) fn set_checkpoint(&mut self, checkpoint: CheckpointExtent) {
        self.checkpoint = checkpoint;
    }

    /// Ensures that a frame fits into the active segment, and begins a new segment if
    /// necessary.
    pub(super) fn make_room(
        &mut self,
        meta: usize,
        records: &[u8],
        blocks: &[BlockRecord<'_>],
    ) -> Result<(), AppendError> {
        let length = FrameContent::max_length(meta, records.len(), blocks);
        if length > FRAME_MAX {
            return Err(self.error(io::ErrorKind::InvalidInput.into()).into());
        }
        let entries: usize = blocks
            .iter()
            .map(|block| max_entry_bytes(block.inbox))
            .sum();
        if self.has_room(length, entries) {
            Ok(())
        } else {
            self.begin(length, entries)
        }
    }

    /// Returns whether a frame fits into the active segment, with the index of its
    /// blocks.
    pub(super) fn has_room(&self, length: usize, entries: usize) -> bool {
        let end = self.offset + (length + max_bytes(self.index_bytes + entries)) as u64;
        end <= self.active.slot.size
    }

    /// Begins a new segment that fits a frame of `length` bytes.
    fn begin(&mut self, length: usize, entries: usize) -> Result<(), AppendError> {
        let slot = self.shared.files.take(length, entries).map_err(|error| {
            if is_full(&error) {
                AppendError::NoSpace
            } else {
                self.error(error).into()
            }
        })?;
        // The header names the end of the previous segment, so that must be durable
        // first.
        self.sync()?;
        let previous = Previous {
            id: self.active.id,
            end: self.offset,
            link: self.link,
        };
        // A segment without frames stays in the chain, but costs nothing: it is freed at
        // once.
        let id = self.next_id;
        let next_id = id
            .checked_add(1)
            .ok_or_else(|| self.error(io::Error::other("no segment number")))?;
        let header = Header {
            id,
            size: slot.size,
            salt: Salt::random(),
            previous,
            carried: 0,
            checkpoint: self.checkpoint,
        };
        let head = Head {
            id,
            segment_bytes: self.shared.files.segment_bytes,
        };
        slot.file
            .write_at(&header.encode(), 0)
            .and_then(|()| slot.file.sync())
            .and_then(|()| self.head.write(head))
            .map_err(|source| LogError {
                path: slot.path.clone(),
                source,
            })?;
        let next = Arc::new(Segment::new(id, slot, header.salt, 0, None));
        self.shared.segments.insert(Arc::clone(&next));
        self.active.finish(self.offset);
        self.active = next;
        self.shared.is_filling.store(false, Ordering::Relaxed);
        self.next_id = next_id;
        self.offset = FRAMES_START;
        self.index_bytes = 0;
        Ok(())
    }

    /// Appends a frame for which there is room, and indexes its blocks, of which the last
    /// `merged` ones replace others.
    pub(super) fn append(
        &mut self,
        content: &FrameContent<'_>,
        merged: usize,
        durability: Durability,
    ) -> Result<(), AppendError> {
        self.buffer.clear();
        self.extents.clear();
        let check = content.encode(self.active.salt, &mut self.buffer, &mut self.extents);
        let end = self.offset + self.buffer.len() as u64;
        // Whole pages at the end: the system would first read the rest of the last page.
        let padded = end
            .next_multiple_of(PAGE_BYTES as u64)
            .min(self.active.slot.size)
            .max(end);
        self.buffer.resize((padded - self.offset) as usize, 0);
        let file = &*self.active.slot.file;
        if let Err(error) = file.write_at(&self.buffer, self.offset) {
            // A partial frame is invalid, and the next one overwrites it.
            return Err(if is_full(&error) {
                AppendError::NoSpace
            } else {
                self.error(error).into()
            });
        }
        if durability == Durability::Machine {
            file.sync().map_err(|error| self.error(error))?;
            self.synced = content.commit;
        }
        self.link = FrameLink {
            commit: content.commit,
            check,
        };
        let merged_from = content.blocks.len() - merged;
        let mut emptied = Vec::new();
        let places = content.places(self.active.id, self.offset as u32, &self.extents);
        for (number, (inbox, place)) in places.enumerate() {
            self.index_bytes += max_entry_bytes(inbox);
            if number < merged_from {
                self.shared.index.insert(inbox, place);
            } else {
                self.shared.index.replace(inbox, place, &mut emptied);
            }
        }
        if !emptied.is_empty() {
            self.shared.emptied.lock().extend(emptied);
        }
        #[cfg(test)]
        {
            self.frame_start = self.offset;
        }
        self.offset = end;
        self.buffer.shrink_to(BUFFER_BYTES);
        let is_filling = FILLING_DIVISOR * self.offset >= self.active.slot.size;
        if is_filling && !self.shared.is_filling.swap(true, Ordering::Relaxed) {
            self.shared.wake();
        }
        Ok(())
    }

    /// Makes every frame durable.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        if self.synced < self.link.commit {
            self.active
                .slot
                .file
                .sync()
                .map_err(|error| self.error(error))?;
            self.synced = self.link.commit;
        }
        Ok(())
    }

    /// Returns an error of the active segment.
    pub(super) fn error(&self, source: io::Error) -> LogError {
        LogError {
            path: self.active.slot.path.clone(),
            source,
        }
    }
}

impl CarriedFrame {
    fn content<'a>(&'a self, previous: u64, blocks: &'a [BlockRecord<'a>]) -> FrameContent<'a> {
        let Self {
            commit,
            synced,
            part,
            meta,
            records,
            ..
        } = self;
        FrameContent {
            commit: *commit,
            synced: *synced,
            previous,
            part: *part,
            meta,
            records,
            blocks,
        }
    }
}

impl FrameContent<'_> {
    /// Returns the locations of the blocks in a segment, given the offset of the frame.
    fn places(
        &self,
        segment: SegmentId,
        offset: u32,
        extents: &[Extent],
    ) -> impl Iterator<Item = (InboxId, BlockRef)> {
        self.blocks.iter().zip(extents).map(move |(block, extent)| {
            let extent = Extent {
                offset: extent.offset + offset,
                ..*extent
            };
            (
                block.inbox,
                BlockRef {
                    first: block.first,
                    last: block.last,
                    segment,
                    extent,
                },
            )
        })
    }
}

/// A segment counts as filling from this fraction of it on.
const FILLING_DIVISOR: u64 = 4;

/// The buffer that is kept from one frame to the next.
const BUFFER_BYTES: usize = 1 << 20;
