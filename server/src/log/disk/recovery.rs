//! Opens a log: finds the newest segment and the newest complete checkpoint, replays from
//! there, and begins a new segment.
//!
//! All decisions precede the first write, so an open that fails or is killed leaves the
//! log unchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::bugs::{Bug, is_planted};
use super::build::{IndexBuilder, places};
use super::file::{Storage, read_exact};
use super::format::{CheckpointExtent, FRAMES_START, FrameLink, Header, Previous, Salt, SegmentId};
use super::head::{self, Head, HeadFile};
use super::recent::BlockRef;
use super::scan::{Damage, Frames, Placed, scan_known, scan_tail};
use super::segment::{Segment, Slot};
use super::slots::{self, Survey};
use super::table::max_entry_bytes;
use crate::log::{InboxId, OpenError};

/// A segment that is filled to less than this fraction is carried over as a whole: a
/// series of short runs shares one segment.
const CARRIED_WHOLE_DIVISOR: u64 = 8;

/// The replay of a shard.
pub(super) type Replay<'a> = dyn FnMut(&[u8]) -> Result<(), OpenError> + 'a;

/// The state of a log as found on disk, from which a new segment continues.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) head: HeadFile,
    /// The former usual size of a segment; 0 if unknown.
    pub(super) segment_bytes: u64,
    /// The use of the new segment.
    pub(super) next_id: SegmentId,
    /// The predecessor of the new segment.
    pub(super) previous: Previous,
    /// Frames that may exist only in the page cache, to be rewritten in order.
    pub(super) carried: Vec<CarriedFrame>,
    pub(super) checkpoint: CheckpointExtent,
    /// The oldest segment that a replay needs; the new one if `None`.
    pub(super) tail_start: Option<SegmentId>,
    /// Segments that the log consists of, and their blocks.
    pub(super) index: IndexBuilder,
    /// Files that hold no segment of the log, blank ones first.
    pub(super) blank: Vec<Slot>,
    /// Files whose segment was freed, and whether that is on stable storage.
    pub(super) freed: Vec<(Slot, bool)>,
    /// The next number for the name of a file.
    pub(super) next_name: u64,
    /// The newest segment, if there is one.
    pub(super) resume: Option<Resume>,
}

/// The newest segment, continued by an open if there is no space for a new one: all of it
/// is overwritten with the same bytes.
#[derive(Debug)]
pub(super) struct Resume {
    pub(super) id: SegmentId,
    /// `HEAD` names it.
    pub(super) is_named: bool,
    pub(super) slot: Slot,
    pub(super) salt: Salt,
    /// The whole segment.
    pub(super) bytes: Vec<u8>,
    /// The end of its last frame.
    pub(super) end: u64,
    pub(super) link: FrameLink,
    pub(super) index_bytes: usize,
    /// The blocks of the frames that a new segment would carry.
    pub(super) places: Vec<(InboxId, BlockRef)>,
    /// The oldest segment that a replay needs.
    pub(super) tail_start: SegmentId,
}

/// A frame to be rewritten, with its content.
#[derive(Debug)]
pub(super) struct CarriedFrame {
    pub(super) commit: u64,
    pub(super) synced: u64,
    pub(super) part: Option<crate::log::CheckpointPart>,
    pub(super) meta: Vec<u8>,
    pub(super) records: Vec<u8>,
    pub(super) blocks: Vec<crate::log::Block>,
}

/// A segment of the log, and the end of its frames.
#[derive(Debug, Clone)]
struct Use {
    header: Header,
    slot: Slot,
}

/// A segment that a replay needs, with its end.
struct Needed {
    segment: Use,
    end: u64,
    last: FrameLink,
}

/// The newest segment: its bytes and the end of its frames.
struct Newest {
    segment: Use,
    bytes: Vec<u8>,
    /// The last carried commit, if `HEAD` names the segment: then everything up to
    /// it is on stable storage.
    durable: u64,
}

/// Recovers the log of a folder.
pub(super) fn recover(
    storage: &dyn Storage,
    replay: &mut Replay<'_>,
) -> Result<Recovered, OpenError> {
    let (
        head,
        Head {
            id: head_id,
            segment_bytes,
        },
    ) = open_head(storage)?;
    let survey = slots::survey(storage);
    let survey = survey.map_err(|source| OpenError::Io {
        path: storage.path(""),
        source,
    })?;
    let mut recovery = LogRecovery::new(storage, survey, head_id, segment_bytes);
    let next_id = recovery
        .uses
        .last_key_value()
        .map_or(0, |(&id, _)| id)
        .max(head_id);
    let Some(next_id) = next_id.checked_add(1) else {
        return Err(recovery.damaged("its segment numbers are exhausted".into()));
    };
    let Some(newest) = recovery.newest()? else {
        if head_id > 0 {
            return Err(recovery.missing(head_id));
        }
        return Ok(recovery.finish(head, next_id, Previous::default(), Vec::new(), None));
    };
    recovery.resume(newest, head, next_id, replay)
}

/// Returns the maximum space of the index of the blocks in some frames.
fn index_bytes(placed: &[Placed<'_>]) -> usize {
    let blocks = placed.iter().flat_map(|one| &one.frame.blocks);
    blocks
        .map(|block| max_entry_bytes(block.record.inbox))
        .sum()
}

/// Returns the index of the first frame of the newest segment to be rewritten: frames
/// that may not be on stable storage, or all of them if the segment is carried over as a
/// whole.
fn carried_from(newest: &Newest, is_whole: bool, placed: &[Placed<'_>]) -> usize {
    if is_whole && placed.iter().all(|one| one.frame.is_intact()) {
        return 0;
    }
    let is_trusted = is_planted(Bug::TrustedCache);
    let synced = if is_trusted {
        u64::MAX
    } else {
        synced_before(newest, placed)
    };
    placed.partition_point(|frame| frame.frame.head.commit <= synced)
}

/// Returns the last commit that was certainly synced.
fn synced_before(newest: &Newest, placed: &[Placed<'_>]) -> u64 {
    let synced = placed
        .last()
        .map_or(newest.segment.header.previous.link.commit, |last| {
            last.frame.head.synced
        });
    synced.max(newest.durable)
}

/// Opens `HEAD`, which every store has.
fn open_head(storage: &dyn Storage) -> Result<(HeadFile, Head), OpenError> {
    let io = |source| OpenError::Io {
        path: storage.path(head::NAME),
        source,
    };
    let damaged = |what: &str| OpenError::Damaged {
        path: storage.path(""),
        what: what.into(),
    };
    let file = HeadFile::open(storage).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged("HEAD is missing"),
        _ => io(error),
    })?;
    let head = file
        .read()
        .map_err(io)?
        .ok_or_else(|| damaged("HEAD names no segment"))?;
    Ok((file, head))
}

struct LogRecovery<'a> {
    storage: &'a dyn Storage,
    uses: BTreeMap<SegmentId, Use>,
    head_id: SegmentId,
    segment_bytes: u64,
    blank: Vec<Slot>,
    next_name: u64,
    checkpoint: CheckpointExtent,
    /// Segments that the newest complete checkpoint relies on, and their ends.
    live: Option<Vec<(SegmentId, u64)>>,
    freed: BTreeSet<SegmentId>,
    /// The last commit that was certainly synced.
    synced: u64,
    /// Segments that a later frame frees, and the newest one.
    kept: BTreeSet<SegmentId>,
    index: IndexBuilder,
}

impl<'a> LogRecovery<'a> {
    fn new(
        storage: &'a dyn Storage,
        survey: Survey,
        head_id: SegmentId,
        segment_bytes: u64,
    ) -> Self {
        let Survey {
            used,
            blank,
            next_name,
        } = survey;
        let uses = used
            .into_iter()
            .map(|(header, slot)| (header.id, Use { header, slot }))
            .collect();
        Self {
            storage,
            uses,
            head_id,
            segment_bytes,
            blank,
            next_name,
            checkpoint: CheckpointExtent::default(),
            live: None,
            freed: BTreeSet::new(),
            synced: 0,
            kept: BTreeSet::new(),
            index: IndexBuilder::default(),
        }
    }

    /// Recovers a log with a newest segment.
    fn resume(
        mut self,
        newest: Newest,
        head: HeadFile,
        next_id: SegmentId,
        replay: &mut Replay<'_>,
    ) -> Result<Recovered, OpenError> {
        let header = newest.segment.header;
        let mut frames = Frames::new(&newest.bytes, header.salt, header.previous.link);
        let placed = self.scan_newest(&newest, &mut frames)?;
        self.checkpoint = header.checkpoint;
        self.synced = synced_before(&newest, &placed);
        let oldest = self.replay_from_checkpoint(&newest, &placed, replay)?;
        self.load_live(oldest)?;
        let (end, link) = (frames.offset, frames.link);
        let is_whole = end - FRAMES_START <= header.size / CARRIED_WHOLE_DIVISOR;
        let (kept, doubtful) = placed.split_at(carried_from(&newest, is_whole, &placed));
        let previous = self.end_newest(&newest.segment, kept);
        let tail_start = (self.checkpoint.first.max(1) <= previous.link.commit).then_some(oldest);
        let ended = (!kept.is_empty()).then_some(previous);
        let carried = doubtful.iter().map(|frame| carry(frame, ended)).collect();
        let index_bytes = index_bytes(&placed);
        let places = places(header.id, doubtful);
        let resume = Resume {
            id: header.id,
            is_named: header.id == self.head_id,
            slot: newest.segment.slot,
            salt: header.salt,
            bytes: newest.bytes,
            end,
            link,
            index_bytes,
            places,
            tail_start: oldest,
        };
        let recovered = self.finish(head, next_id, previous, carried, tail_start);
        Ok(Recovered {
            resume: Some(resume),
            ..recovered
        })
    }

    /// Reads the frames of the newest segment, up to a torn end.
    fn scan_newest<'b>(
        &self,
        newest: &Newest,
        frames: &mut Frames<'b>,
    ) -> Result<Vec<Placed<'b>>, OpenError> {
        let placed = scan_tail(frames, newest.durable)
            .map_err(|damage| self.damage(&newest.segment, damage))?;
        let last = placed.last().map_or(0, |last| last.frame.head.commit);
        if last < newest.segment.header.carried {
            // That was on stable storage before any later append.
            let offset = frames.offset;
            return Err(self.damage(&newest.segment, Damage { offset }));
        }
        if frames.has_torn_end() {
            let (path, offset) = (newest.segment.slot.path.display(), frames.offset);
            tracing::warn!(
                %path,
                offset,
                effect = "none, unless the disk has damaged an acknowledged commit",
                "incomplete last commit dropped"
            );
        }
        Ok(placed)
    }

    /// Replays the segments from the newest checkpoint on, of which `placed` are the frames
    /// of the newest. Returns the oldest segment.
    fn replay_from_checkpoint(
        &mut self,
        newest: &Newest,
        placed: &[Placed<'_>],
        replay: &mut Replay<'_>,
    ) -> Result<SegmentId, OpenError> {
        for frame in placed {
            self.note_checkpoint(frame);
        }
        let chain = self.chain(&newest.segment)?;
        let oldest = chain
            .first()
            .map_or(newest.segment.header.id, |needed| needed.segment.header.id);
        for needed in chain {
            self.replay_needed(needed, replay)?;
        }
        for frame in placed {
            self.replay_frame(frame, replay)?;
        }
        Ok(oldest)
    }

    /// Finds the newest segment. An open that was killed early leaves an incomplete
    /// segment, whose file is free.
    fn newest(&mut self) -> Result<Option<Newest>, OpenError> {
        while let Some((id, newest)) = self.uses.pop_last() {
            if id < self.head_id {
                return Err(self.missing(self.head_id));
            }
            let header = newest.header;
            let bytes = self.read(&newest, header.size)?;
            let mut frames = Frames::new(&bytes, header.salt, header.previous.link);
            // `HEAD` names a segment when it is complete: a text in it may have been
            // damaged later.
            let is_complete = id <= self.head_id;
            let is_whole = std::iter::from_fn(|| frames.next())
                .take_while(|placed| is_complete || placed.frame.is_intact())
                .any(|placed| placed.frame.head.commit == header.carried);
            if is_whole || header.carried == 0 {
                let durable = if is_complete { header.carried } else { 0 };
                return Ok(Some(Newest {
                    segment: newest,
                    bytes,
                    durable,
                }));
            }
            if is_complete {
                return Err(self.damage(
                    &newest,
                    Damage {
                        offset: FRAMES_START,
                    },
                ));
            }
            tracing::info!(segment = id, "segment of an interrupted open ignored");
            self.blank.push(newest.slot);
        }
        Ok(None)
    }

    /// Records the end of a checkpoint.
    fn note_checkpoint(&mut self, placed: &Placed<'_>) {
        if let Some(end) = &placed.meta.checkpoint {
            let last = placed.frame.head.commit;
            self.checkpoint = CheckpointExtent {
                first: end.first,
                last,
                bytes: end.bytes,
            };
        }
    }

    /// Takes the segments before the newest that the replay needs, the oldest first.
    fn chain(&mut self, newest: &Use) -> Result<Vec<Needed>, OpenError> {
        let first = self.checkpoint.first.max(1);
        let mut chain = Vec::new();
        let mut previous = newest.header.previous;
        while previous.link.commit >= first {
            let segment = self
                .uses
                .remove(&previous.id)
                .ok_or_else(|| self.missing(previous.id))?;
            let (end, last) = (previous.end, previous.link);
            previous = segment.header.previous;
            chain.push(Needed { segment, end, last });
        }
        chain.reverse();
        Ok(chain)
    }

    /// Replays a segment before the newest.
    fn replay_needed(&mut self, needed: Needed, replay: &mut Replay<'_>) -> Result<(), OpenError> {
        let Needed { segment, end, last } = needed;
        let bytes = self.read(&segment, end)?;
        let mut frames = Frames::new(&bytes, segment.header.salt, segment.header.previous.link);
        let mut placed = Vec::new();
        scan_known(&mut frames, end, &mut |frame| placed.push(frame))
            .map_err(|damage| self.damage(&segment, damage))?;
        if frames.link != last {
            return Err(self.damage(&segment, Damage { offset: end }));
        }
        for frame in &placed {
            self.replay_frame(frame, replay)?;
        }
        self.add_segment(&segment, end, Some(&placed))
    }

    fn replay_frame(
        &mut self,
        placed: &Placed<'_>,
        replay: &mut Replay<'_>,
    ) -> Result<(), OpenError> {
        let head = &placed.frame.head;
        self.freed.extend(&placed.meta.freed);
        if head.commit > self.synced {
            self.kept.extend(&placed.meta.freed);
        }
        if head.commit == self.checkpoint.last
            && let Some(end) = &placed.meta.checkpoint
        {
            self.live = Some(end.live.clone());
        }
        if head.commit >= self.checkpoint.first && !placed.frame.records.is_empty() {
            replay(placed.frame.records)?;
        }
        Ok(())
    }

    /// Adds a segment whose frames end at `end` to the log, by its index frame, or
    /// by its frames if it has none.
    fn add_segment(
        &mut self,
        segment: &Use,
        end: u64,
        placed: Option<&[Placed<'_>]>,
    ) -> Result<(), OpenError> {
        let Header { id, salt, .. } = segment.header;
        let slot = segment.slot.clone();
        let path = slot.path.clone();
        let is_indexed = self
            .index
            .add_sealed(Segment::new(id, slot, salt, end, None))
            .map_err(|source| OpenError::Io { path, source })?;
        if is_indexed {
            return Ok(());
        }
        if let Some(placed) = placed {
            self.index.add_frames(id, placed);
            return Ok(());
        }
        let bytes = self.read(segment, end)?;
        let mut frames = Frames::new(&bytes, salt, segment.header.previous.link);
        let mut placed = Vec::new();
        scan_known(&mut frames, end, &mut |frame| placed.push(frame))
            .map_err(|damage| self.damage(segment, damage))?;
        self.index.add_frames(id, &placed);
        Ok(())
    }

    /// Adds the segments that lie before the replay and hold live blocks.
    fn load_live(&mut self, oldest: SegmentId) -> Result<(), OpenError> {
        let live = match self.live.take() {
            Some(live) => live,
            None if self.checkpoint.first == 0 => return Ok(()),
            None => {
                let what = format!(
                    "the checkpoint of commit {} is missing",
                    self.checkpoint.last
                );
                return Err(self.damaged(what));
            }
        };
        for (id, end) in live {
            // One that is not older was carried along with the checkpoint's first part.
            if id < oldest && !self.freed.contains(&id) {
                let segment = self.uses.remove(&id).ok_or_else(|| self.missing(id))?;
                self.add_segment(&segment, end, None)?;
            }
        }
        Ok(())
    }

    /// Returns whether an unneeded file may be overwritten at once.
    fn is_free(&self, id: SegmentId) -> bool {
        // If the end of the checkpoint is lost, the previous checkpoint may need any of
        // them.
        self.checkpoint.last <= self.synced && !self.kept.contains(&id)
    }

    /// Ends the newest segment after the frames that are kept there.
    fn end_newest(&mut self, newest: &Use, kept: &[Placed<'_>]) -> Previous {
        let Some(last) = kept.last() else {
            self.uses.insert(newest.header.id, newest.clone());
            self.kept.insert(newest.header.id);
            return newest.header.previous;
        };
        let Header { id, salt, .. } = newest.header;
        let end = last.offset + u64::from(last.frame.head.length);
        self.index
            .add_unsealed(Segment::new(id, newest.slot.clone(), salt, end, None));
        self.index.add_frames(id, kept);
        Previous {
            id,
            end,
            link: last.frame.link(),
        }
    }

    fn finish(
        mut self,
        head: HeadFile,
        next_id: SegmentId,
        previous: Previous,
        carried: Vec<CarriedFrame>,
        tail_start: Option<SegmentId>,
    ) -> Recovered {
        let uses = std::mem::take(&mut self.uses);
        let freed = uses
            .into_iter()
            .map(|(id, segment)| (segment.slot, self.is_free(id)))
            .collect();
        Recovered {
            head,
            segment_bytes: self.segment_bytes,
            next_id,
            previous,
            carried,
            checkpoint: self.checkpoint,
            tail_start,
            index: self.index,
            blank: self.blank,
            freed,
            next_name: self.next_name,
            resume: None,
        }
    }

    fn read(&self, segment: &Use, length: u64) -> Result<Vec<u8>, OpenError> {
        if !(FRAMES_START..=segment.slot.size).contains(&length) {
            return Err(self.damage(segment, Damage { offset: length }));
        }
        let slot = &segment.slot;
        let bytes = read_exact(&*slot.file, 0, length as usize);
        bytes.map_err(|source| OpenError::Io {
            path: slot.path.clone(),
            source,
        })
    }

    fn damage(&self, segment: &Use, damage: Damage) -> OpenError {
        let (name, id) = (&segment.slot.name, segment.header.id);
        self.damaged(format!("{name} (segment {id}) at byte {}", damage.offset))
    }

    fn missing(&self, id: SegmentId) -> OpenError {
        self.damaged(format!("segment {id} is missing"))
    }

    fn damaged(&self, what: String) -> OpenError {
        OpenError::Damaged {
            path: self.storage.path(""),
            what,
        }
    }
}

/// Copies a frame, to follow the newest segment's new end if it has one.
fn carry(placed: &Placed<'_>, ended: Option<Previous>) -> CarriedFrame {
    let Placed { frame, meta, .. } = placed;
    let mut meta = meta.clone();
    // A checkpoint that is carried whole begins after a segment that it did not have to
    // list before.
    if let (Some(end), Some(ended)) = (&mut meta.checkpoint, ended)
        && end.first > ended.link.commit
    {
        end.live.push((ended.id, ended.end));
    }
    CarriedFrame {
        commit: frame.head.commit,
        synced: frame.head.synced,
        part: frame.head.part(),
        meta: meta.encode(),
        records: frame.records.to_vec(),
        blocks: frame
            .blocks
            .iter()
            .map(|block| block.record.to_block())
            .collect(),
    }
}
