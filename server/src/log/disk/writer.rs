//! Appends frames to the active segment, and begins new segments.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::format::{
    BlockRecord, Checkpoint, Extent, FRAME_MAX, FRAMES_START, FrameContent, Header, Link, Previous, Salt,
    SegmentId,
};
use super::head::HeadFile;
use super::recent::BlockRef;
use super::recovery::{CarriedFrame, Recovered};
use super::segment::Segment;
use super::slots::Files;
use super::table::{PAGE_BYTES, max_bytes, max_entry_bytes};
use crate::log::{AppendError, Durability, InboxId, LogError, OpenError};

/// Whether an error says that there is no space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    head: HeadFile,
    active: Arc<Segment>,
    /// The end of the last frame in the active segment.
    offset: u64,
    /// The start of the last frame that was appended.
    #[cfg(test)]
    frame_start: u64,
    /// Space that the index frame of the active segment takes at most, without its
    /// fixed part.
    index_bytes: usize,
    /// The last frame.
    link: Link,
    /// The last commit that is on stable storage.
    synced: u64,
    checkpoint: Checkpoint,
    buffer: Vec<u8>,
    extents: Vec<Extent>,
}

/// The segment of an open: it holds the carried frames and is on stable storage.
#[derive(Debug)]
pub(super) struct Opened {
    active: Arc<Segment>,
    offset: u64,
    index_bytes: usize,
    link: Link,
    /// The blocks in it.
    pub(super) places: Vec<(InboxId, BlockRef)>,
}

impl Opened {
    /// Begins the segment behind the log that was recovered.
    pub(super) fn begin(files: &Files, recovered: &Recovered) -> Result<Self, OpenError> {
        let Recovered { head, next_id: id, previous, carried, checkpoint, .. } = recovered;
        let blocks: Vec<Vec<BlockRecord<'_>>> =
            carried.iter().map(|frame| frame.blocks.iter().map(BlockRecord::from).collect()).collect();
        let index_bytes = blocks.iter().flatten().map(|block| max_entry_bytes(block.inbox)).sum();
        let io = |source| OpenError::Io { path: files.storage.path(""), source };
        let salt = Salt::random();
        // The frames of a whole segment fit into a file of its size, to the byte.
        let mut buffer = vec![0; FRAMES_START as usize];
        let mut link = previous.link;
        let mut places = Vec::new();
        for (frame, blocks) in carried.iter().zip(&blocks) {
            let content = frame.content(link.check, blocks);
            let (offset, mut extents) = (buffer.len() as u32, Vec::new());
            link = Link { commit: frame.commit, check: content.encode(salt, &mut buffer, &mut extents) };
            places.extend(content.places(*id, offset, &extents));
        }
        let slot = files.take_blank(buffer.len() - FRAMES_START as usize, index_bytes).map_err(io)?;
        let header = Header {
            id: *id,
            size: slot.size,
            salt,
            previous: *previous,
            carried: carried.last().map_or(0, |frame| frame.commit),
            checkpoint: *checkpoint,
        };
        buffer.splice(..FRAMES_START as usize, header.encode());
        slot.file.write_at(&buffer, 0).and_then(|()| slot.file.sync()).map_err(io)?;
        head.write(*id).map_err(io)?;
        let active = Arc::new(Segment::new(*id, slot, salt, 0, None));
        Ok(Self { active, offset: buffer.len() as u64, index_bytes, link, places })
    }

    /// The segment.
    pub(super) fn segment(&self) -> Arc<Segment> {
        Arc::clone(&self.active)
    }
}

impl Writer {
    /// Goes on behind the segment of an open.
    pub(super) fn new(shared: Arc<Shared>, head: HeadFile, checkpoint: Checkpoint, opened: Opened) -> Self {
        let Opened { active, offset, index_bytes, link, .. } = opened;
        Self {
            shared,
            head,
            active,
            offset,
            #[cfg(test)]
            frame_start: offset,
            index_bytes,
            link,
            synced: link.commit,
            checkpoint,
            buffer: Vec::new(),
            extents: Vec::new(),
        }
    }

    /// The active segment.
    pub(super) fn active(&self) -> SegmentId {
        self.active.id
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the last frame begins.
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
    pub(super) fn set_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
    }

    /// Makes sure that a frame fits the active segment, beginning a new one if
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
        let entries: usize = blocks.iter().map(|block| max_entry_bytes(block.inbox)).sum();
        let end = self.offset + (length + max_bytes(self.index_bytes + entries)) as u64;
        if end <= self.active.slot.size { Ok(()) } else { self.begin(length, entries) }
    }

    /// Begins a new segment, in which a frame of `length` bytes fits.
    fn begin(&mut self, length: usize, entries: usize) -> Result<(), AppendError> {
        let slot =
            self.shared.files.take(length, entries).map_err(|error| {
                if is_full(&error) { AppendError::NoSpace } else { self.error(error).into() }
            })?;
        // The header says where the segment before ends, so that is durable first.
        self.sync()?;
        let previous = Previous { id: self.active.id, end: self.offset, link: self.link };
        // A segment without frames is left out of the chain by no one, but costs
        // nothing: it is freed at once.
        let id =
            self.active.id.checked_add(1).ok_or_else(|| self.error(io::Error::other("no segment number")))?;
        let header = Header {
            id,
            size: slot.size,
            salt: Salt::random(),
            previous,
            carried: 0,
            checkpoint: self.checkpoint,
        };
        slot.file
            .write_at(&header.encode(), 0)
            .and_then(|()| slot.file.sync())
            .and_then(|()| self.head.write(id))
            .map_err(|source| LogError { path: slot.path.clone(), source })?;
        let next = Arc::new(Segment::new(id, slot, header.salt, 0, None));
        self.shared.segments.insert(Arc::clone(&next));
        self.active.finish(self.offset);
        self.active = next;
        self.shared.is_filling.store(false, Ordering::Relaxed);
        self.offset = FRAMES_START;
        self.index_bytes = 0;
        Ok(())
    }

    /// Appends a frame for which there is room. Its blocks are indexed when this
    /// returns.
    pub(super) fn append(
        &mut self,
        content: &FrameContent<'_>,
        durability: Durability,
    ) -> Result<(), AppendError> {
        self.buffer.clear();
        self.extents.clear();
        let check = content.encode(self.active.salt, &mut self.buffer, &mut self.extents);
        let end = self.offset + self.buffer.len() as u64;
        // Whole pages at the end: the system would read the rest of the last one first.
        let padded = end.next_multiple_of(PAGE_BYTES as u64).min(self.active.slot.size).max(end);
        self.buffer.resize((padded - self.offset) as usize, 0);
        let file = &*self.active.slot.file;
        if let Err(error) = file.write_at(&self.buffer, self.offset) {
            // Part of a frame is no frame: the next one is written over it.
            return Err(if is_full(&error) { AppendError::NoSpace } else { self.error(error).into() });
        }
        if durability == Durability::Machine {
            file.sync().map_err(|error| self.error(error))?;
            self.synced = content.commit;
        }
        self.link = Link { commit: content.commit, check };
        for (inbox, place) in content.places(self.active.id, self.offset as u32, &self.extents) {
            self.index_bytes += max_entry_bytes(inbox);
            self.shared.index.insert(inbox, place);
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
            self.active.slot.file.sync().map_err(|error| self.error(error))?;
            self.synced = self.link.commit;
        }
        Ok(())
    }

    /// Returns an error of the active segment.
    pub(super) fn error(&self, source: io::Error) -> LogError {
        LogError { path: self.active.slot.path.clone(), source }
    }
}

impl CarriedFrame {
    fn content<'a>(&'a self, previous: u64, blocks: &'a [BlockRecord<'a>]) -> FrameContent<'a> {
        let Self { commit, synced, part, meta, records, .. } = self;
        FrameContent { commit: *commit, synced: *synced, previous, part: *part, meta, records, blocks }
    }
}

impl FrameContent<'_> {
    /// The places of the blocks in a segment in which the frame lies at `offset`.
    fn places(
        &self,
        segment: SegmentId,
        offset: u32,
        extents: &[Extent],
    ) -> impl Iterator<Item = (InboxId, BlockRef)> {
        self.blocks.iter().zip(extents).map(move |(block, extent)| {
            let extent = Extent { offset: extent.offset + offset, ..*extent };
            (block.inbox, BlockRef { first: block.first, last: block.last, segment, extent })
        })
    }
}

/// A segment fills from this part of it on.
const FILLING_DIVISOR: u64 = 4;

/// The buffer that is kept from one frame to the next.
const BUFFER_BYTES: usize = 1 << 20;
