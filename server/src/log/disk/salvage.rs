//! Reads a log that cannot be opened, as far as possible.
//!
//! A file whose headers are both damaged is lost: its salt is stored only there. In all
//! others, every frame is found by its own checksum at any position, and after a damaged
//! frame head every block by the block's checksum.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::DiskLog;
use super::file::{OsStorage, read_exact};
use super::folder::{Access, Folder, LOCK_TIMEOUT};
use super::format::{
    BlockView, FRAME_ALIGNMENT, FRAMES_START, FrameView, HEADER_SPAN, Header, SegmentId,
    decode_block,
};
use super::head::HeadFile;
use super::meta::Meta;
use super::recovery::Replay;
use super::repair::{DamagedBlock, Visit};
use super::segment::Slot;
use super::slots::{self, Survey};
use crate::log::{
    AppendError, Block, Durability, Frame, InboxId, Log as _, LogError, OpenError, ReadError,
};

/// The losses besides messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lost {
    /// Names of unreadable files, and missing segments.
    pub files: Vec<String>,
    /// Ranges of commits whose records are lost: changes of accounts, acknowledgements
    /// and remembered sends.
    pub commits: Vec<(u64, u64)>,
    /// No checkpoint is complete: accounts may be missing, and deleted ones may reappear.
    pub has_no_checkpoint: bool,
}

/// A log that is read as far as possible, without changes.
#[derive(Debug)]
pub struct Salvage {
    folder: Folder,
    segments: BTreeMap<SegmentId, Part>,
    blocks: BTreeMap<InboxId, BTreeMap<u64, Place>>,
    /// The usual size of a segment, if it is known.
    segment_bytes: Option<u64>,
    lost: Lost,
}

/// A segment, and the content of its frames.
#[derive(Debug)]
struct Part {
    header: Header,
    slot: Slot,
    /// No frame of the log lies after this offset.
    end: u64,
    /// Commits of frames that can be read, as ranges.
    commits: Vec<(u64, u64)>,
    /// The first and the last commits of complete checkpoints.
    checkpoints: Vec<(u64, u64)>,
}

/// A block of a segment.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: SegmentId,
    offset: u64,
    length: u32,
    last: u64,
    is_intact: bool,
}

impl Salvage {
    /// Reads the log in the folder of a store. Calls `replay` with the records of each
    /// readable frame, from the newest complete checkpoint on.
    ///
    /// # Errors
    /// [`OpenError::Io`] if a file cannot be read. An error of `replay` is returned
    /// unchanged.
    pub fn open(path: &Path, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        Self::of_folder(Folder::salvage(path, LOCK_TIMEOUT, Access::Read)?, replay)
    }

    /// Reads the log like [`Self::open`], with a lock that allows its replacement.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn open_for_rebuild(path: &Path, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        Self::of_folder(Folder::salvage(path, LOCK_TIMEOUT, Access::Write)?, replay)
    }

    /// Begins the new log, which will replace the one that was read.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn rebuild(&self) -> Result<Rebuild<'_>, OpenError> {
        let path = self.folder.begin_log()?;
        let storage = Arc::new(OsStorage::new(&path));
        HeadFile::create(&*storage).map_err(|source| OpenError::Io { path, source })?;
        let log = DiskLog::open(storage, self.segment_bytes, &mut |_| Ok(()))?;
        Ok(Rebuild {
            folder: &self.folder,
            log: Box::new(log),
        })
    }

    fn of_folder(folder: Folder, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        let path = folder.readable_log();
        let storage = OsStorage::read_only(&path);
        let io = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        let Survey { used, blank, .. } = slots::survey(&storage).map_err(io)?;
        let head = HeadFile::open(&storage)
            .and_then(|head| head.read())
            .unwrap_or_default();
        let mut salvage = Self {
            folder,
            segments: parts(used),
            blocks: BTreeMap::new(),
            segment_bytes: head
                .map(|head| head.segment_bytes)
                .filter(|bytes| *bytes > 0),
            lost: Lost::default(),
        };
        for slot in blank {
            if !is_blank(&slot).map_err(io)? {
                salvage.lost.files.push(slot.name);
            }
        }
        let newest = salvage.segments.last_key_value().map_or(0, |(id, _)| *id);
        if let Some(head) = head.filter(|head| head.id > newest) {
            salvage.lost.files.push(format!("segment {}", head.id));
        }
        salvage.survey_frames()?;
        let start = salvage.start();
        salvage.replay(start, replay)?;
        Ok(salvage)
    }

    /// Returns the losses besides messages.
    #[must_use]
    pub const fn lost(&self) -> &Lost {
        &self.lost
    }

    /// Returns the inboxes that have blocks.
    pub fn inboxes(&self) -> impl Iterator<Item = InboxId> {
        self.blocks.keys().copied()
    }

    /// Returns a number above those of all messages.
    #[must_use]
    pub fn last_number(&self) -> u64 {
        self.blocks
            .values()
            .flat_map(BTreeMap::values)
            .map(|place| place.last)
            .max()
            .unwrap_or(0)
    }

    /// Visits the blocks of `inbox` that hold a number above `after`, in order, until
    /// `visit` breaks; damaged ones, too.
    ///
    /// # Errors
    /// [`ReadError::Failed`] if the disk fails.
    pub fn visit(
        &self,
        inbox: InboxId,
        after: u64,
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError> {
        let mut covered = 0;
        for (&first, place) in self.blocks.get(&inbox).into_iter().flatten() {
            // A stale copy of a replaced block may remain in a segment.
            if place.last <= after || first <= covered {
                continue;
            }
            let Some(part) = self.segments.get(&place.segment) else {
                continue;
            };
            covered = place.last;
            if visit(self.read(part, inbox, first, place)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        part: &Part,
        inbox: InboxId,
        first: u64,
        place: &Place,
    ) -> Result<Result<Block, DamagedBlock>, ReadError> {
        let slot = &part.slot;
        let damaged = || DamagedBlock {
            inbox,
            first,
            last: place.last,
            path: slot.path.clone(),
        };
        if !place.is_intact {
            return Ok(Err(damaged()));
        }
        let bytes =
            read_exact(&*slot.file, place.offset, place.length as usize).map_err(|source| {
                LogError {
                    path: slot.path.clone(),
                    source,
                }
            })?;
        let range = decode_block(&bytes, part.header.salt, inbox, (first, place.last));
        let payload = range.map(|range| Bytes::from(bytes).slice(range));
        Ok(payload
            .map(|payload| Block {
                inbox,
                first,
                last: place.last,
                payload,
            })
            .ok_or_else(damaged))
    }

    /// Surveys every frame: its commit, its checkpoint and its blocks.
    fn survey_frames(&mut self) -> Result<(), OpenError> {
        for (&id, part) in &mut self.segments {
            let bytes = read_frames(part)?;
            let (mut commits, mut checkpoints) = (Vec::new(), Vec::new());
            let blocks = &mut self.blocks;
            scan(&bytes, part, &mut |found| {
                let (offset, views) = match found {
                    ReadablePart::Frame(offset, frame, meta) => {
                        note(&mut commits, frame.head.commit);
                        checkpoints
                            .extend(meta.checkpoint.map(|end| (end.first, frame.head.commit)));
                        (offset, frame.blocks)
                    }
                    ReadablePart::Blocks(offset, views) => (offset, views),
                };
                for view in views {
                    let (first, last) = (view.record.first, view.record.last);
                    let place = Place {
                        segment: id,
                        offset: offset + u64::from(view.extent.offset),
                        length: view.extent.length,
                        last,
                        is_intact: view.is_intact,
                    };
                    // The newest one wins, unless it is damaged.
                    let known = blocks
                        .entry(view.record.inbox)
                        .or_default()
                        .entry(first)
                        .or_insert(place);
                    if place.is_intact || !known.is_intact {
                        *known = place;
                    }
                }
            });
            (part.commits, part.checkpoints) = (commits, checkpoints);
        }
        Ok(())
    }

    /// Returns the commit with which the newest complete checkpoint begins, and records
    /// the lost commits after it.
    fn start(&mut self) -> u64 {
        let mut ranges: Vec<_> = self
            .segments
            .values()
            .flat_map(|part| &part.commits)
            .copied()
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(range) if first <= range.1 + 1 => range.1 = range.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        let is_whole = |&(first, last): &(u64, u64)| {
            merged
                .iter()
                .any(|range| range.0 <= first && last <= range.1)
        };
        let checkpoints = self
            .segments
            .values()
            .flat_map(|part| &part.checkpoints)
            .copied();
        let known = self.segments.values().map(|part| part.header.checkpoint);
        let expects_one = known
            .map(|checkpoint| checkpoint.first)
            .max()
            .is_some_and(|first| first > 0);
        let newest = checkpoints.filter(is_whole).max_by_key(|(_, last)| *last);
        let oldest = merged.first().map_or(1, |range| range.0);
        self.lost.has_no_checkpoint = newest.is_none() && (expects_one || oldest > 1);
        let start = newest.map_or(oldest, |(first, _)| first);
        let mut expected = start;
        for (first, last) in merged.into_iter().filter(|range| range.1 >= start) {
            if first > expected {
                self.lost.commits.push((expected, first - 1));
            }
            expected = last + 1;
        }
        let named = self
            .segments
            .values()
            .map(|part| part.header.previous.link.commit)
            .max()
            .unwrap_or(0);
        if named >= expected {
            self.lost.commits.push((expected, named));
        }
        start
    }

    /// Replays the records of each commit from this one on, once.
    fn replay(&self, start: u64, replay: &mut Replay<'_>) -> Result<(), OpenError> {
        let mut replayed = start.saturating_sub(1);
        for part in self.segments.values() {
            if part.commits.iter().all(|range| range.1 <= replayed) {
                continue;
            }
            let bytes = read_frames(part)?;
            let mut result = Ok(());
            scan(&bytes, part, &mut |found| {
                if let ReadablePart::Frame(_, frame, _) = found
                    && frame.head.commit > replayed
                    && result.is_ok()
                {
                    replayed = frame.head.commit;
                    result = if frame.records.is_empty() {
                        Ok(())
                    } else {
                        replay(frame.records)
                    };
                }
            });
            result?;
        }
        Ok(())
    }
}

/// Returns the segments by their use, with their ends as far as others name them.
fn parts(used: Vec<(Header, Slot)>) -> BTreeMap<SegmentId, Part> {
    let mut ends = BTreeMap::new();
    for (header, _) in &used {
        let end = ends.entry(header.previous.id).or_insert(0);
        *end = header.previous.end.max(*end);
    }
    let part = |(header, slot): (Header, Slot)| {
        let end = ends.get(&header.id).copied().unwrap_or(header.size);
        (
            header.id,
            Part {
                header,
                slot,
                end,
                commits: Vec::new(),
                checkpoints: Vec::new(),
            },
        )
    };
    used.into_iter().map(part).collect()
}

/// Returns whether a file without a header was never used, or was freed.
fn is_blank(slot: &Slot) -> io::Result<bool> {
    let mut head = vec![0; 2 * HEADER_SPAN];
    let length = slot.file.read_at(&mut head, 0)?;
    Ok(head.iter().take(length).all(|&byte| byte == 0))
}

/// Reads a segment up to its end or the end of its file.
fn read_frames(part: &Part) -> Result<Vec<u8>, OpenError> {
    let mut bytes = vec![0; part.end.min(part.slot.size) as usize];
    let length = part.slot.file.read_at(&mut bytes, 0);
    let length = length.map_err(|source| OpenError::Io {
        path: part.slot.path.clone(),
        source,
    })?;
    bytes.truncate(length);
    Ok(bytes)
}

/// A readable piece of a segment, at an offset.
enum ReadablePart<'a> {
    Frame(u64, FrameView<'a>, Meta),
    /// Blocks of a frame that cannot be read as a whole.
    Blocks(u64, Vec<BlockView<'a>>),
}

/// Visits all readable pieces of a segment.
fn scan<'a>(bytes: &'a [u8], part: &Part, visit: &mut dyn FnMut(ReadablePart<'a>)) {
    let salt = part.header.salt;
    let mut offset = FRAMES_START as usize;
    while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
        if let Some(frame) = FrameView::decode(rest, salt)
            && let Some(meta) = Meta::decode(frame.meta)
        {
            let length = frame.head.length as usize;
            visit(ReadablePart::Frame(offset as u64, frame, meta));
            offset += length;
            continue;
        }
        let blocks = FrameView::decode_blocks(rest, salt);
        if !blocks.is_empty() {
            visit(ReadablePart::Blocks(offset as u64, blocks));
        }
        offset += FRAME_ALIGNMENT;
    }
}

/// Adds a commit to ranges.
fn note(ranges: &mut Vec<(u64, u64)>, commit: u64) {
    match ranges.last_mut() {
        Some((_, last)) if *last + 1 == commit => *last = commit,
        _ => ranges.push((commit, commit)),
    }
}

/// A log that is written to replace a damaged one.
#[derive(Debug)]
pub struct Rebuild<'a> {
    folder: &'a Folder,
    log: Box<DiskLog>,
}

impl Rebuild<'_> {
    /// Appends a frame.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn append(&mut self, frame: Frame) -> Result<(), AppendError> {
        self.log.append(frame, Durability::Process)
    }

    /// Replaces the damaged log with this one. Returns the new path of the damaged log.
    ///
    /// # Errors
    /// [`LogError`] if the disk fails.
    pub fn finish(self) -> Result<PathBuf, LogError> {
        self.log.close()?;
        self.folder.replace_log()
    }
}
