//! Verifies a store without serving it, and replaces its damaged blocks.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::file::OsStorage;
use super::folder::{Folder, LOCK_TIMEOUT};
use super::reader::visit_all;
use super::recovery::{Replay, recover};
use super::slots::{Files, Spares};
use super::{DiskLog, SEGMENT_BYTES, Shared};
use crate::log::{AppendError, Block, Durability, Frame, InboxId, Log as _, LogError, OpenError, ReadError};

/// Bytes that are written at once when blocks are replaced.
const REPAIR_BYTES: usize = 1 << 20;

/// What a check has found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Segments that the log consists of.
    pub segments: u64,
    /// Segments whose index is missing or damaged; a start makes it again.
    pub unindexed: u64,
    /// Frames that a start replays.
    pub frames: u64,
    /// Live blocks.
    pub blocks: u64,
    /// Live blocks that cannot be read.
    pub damaged: Vec<DamagedBlock>,
}

/// A block that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBlock {
    /// The inbox.
    pub inbox: InboxId,
    /// The number of its first message.
    pub first: u64,
    /// The number of its last message.
    pub last: u64,
    /// The file.
    pub path: PathBuf,
}

/// Why blocks cannot be replaced.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store cannot be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The store cannot be closed.
    #[error(transparent)]
    Close(#[from] LogError),
}

/// A store that is verified, and locked meanwhile. Nothing in it is changed.
#[derive(Debug)]
pub struct Check {
    shared: Shared,
    frames: u64,
    /// Blocks of the frames at the end, which were verified when the log was opened:
    /// inbox and first number.
    verified: HashSet<(InboxId, u64)>,
    _folder: Folder,
}

impl Check {
    /// Reads the log of a store that exists, as a start does: damage that would keep
    /// it from starting is an error.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        let folder = Folder::open_existing(path, LOCK_TIMEOUT)?;
        let storage = Arc::new(OsStorage::new(&folder.log()));
        let mut frames = 0;
        let recovered = recover(&*storage, &mut |records| {
            frames += 1;
            replay(records)
        })?;
        let verified = recovered.carried.iter().flat_map(|frame| &frame.blocks);
        let verified = verified.map(|block| (block.inbox, block.first)).collect();
        let spares = Spares::new(Vec::new(), Vec::new(), 0, SEGMENT_BYTES);
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let (segments, index) = recovered.index.build().map_err(io)?;
        let shared = Shared::new(Files::new(storage, spares, SEGMENT_BYTES), segments, index, 0);
        Ok(Self { shared, frames, verified, _folder: folder })
    }

    /// Reads every block that is live by the cursors of the replayed ledger, `None`
    /// for an inbox that does not exist.
    ///
    /// # Errors
    /// [`ReadError::Failed`] if the disk fails.
    pub fn run(&self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>) -> Result<Report, ReadError> {
        let mut report = Report {
            segments: self.shared.segments.sum(|_| 1),
            unindexed: self.shared.segments.sum(|segment| u64::from(segment.table().is_none())),
            frames: self.frames,
            blocks: self.verified.len() as u64,
            damaged: Vec::new(),
        };
        for inbox in self.shared.index.inboxes() {
            if let Some(through) = cursor(inbox) {
                let found = blocks_of(&self.shared, inbox, through)?;
                let found = found.into_iter().filter(|(first, _)| !self.verified.contains(&(inbox, *first)));
                for (_, damaged) in found {
                    report.blocks += 1;
                    report.damaged.extend(damaged);
                }
            }
        }
        Ok(report)
    }
}

/// Returns the first number of each block of an inbox, with the block if it is
/// damaged.
fn blocks_of(
    shared: &Shared,
    inbox: InboxId,
    after: u64,
) -> Result<Vec<(u64, Option<DamagedBlock>)>, ReadError> {
    let mut blocks = Vec::new();
    visit_all(shared, inbox, after, &mut |found| {
        blocks.push(match found {
            Ok(block) => (block.first, None),
            Err(damaged) => (damaged.first, Some(damaged)),
        });
        ControlFlow::Continue(())
    })?;
    Ok(blocks)
}

/// A store whose damaged blocks are replaced.
#[derive(Debug)]
pub struct Repair {
    log: Box<DiskLog>,
}

impl Repair {
    /// Opens the log of a store that exists.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        let folder = Folder::open_existing(path, LOCK_TIMEOUT)?;
        let storage = Arc::new(OsStorage::new(&folder.log()));
        let mut log = DiskLog::open(storage, SEGMENT_BYTES, replay)?;
        log.folder = Some(folder);
        Ok(Self { log: Box::new(log) })
    }

    /// Visits the live blocks of `inbox` that hold a number above `after`, in order,
    /// until `visit` breaks; damaged ones, too.
    ///
    /// # Errors
    /// [`ReadError::Failed`] if the disk fails.
    pub fn visit(
        &self,
        inbox: InboxId,
        after: u64,
        visit: &mut dyn FnMut(Result<Block, DamagedBlock>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        visit_all(&self.log.shared, inbox, after, visit)
    }

    /// Replaces the damaged blocks by `payload`, and returns them. All live blocks of
    /// their inboxes are written anew.
    ///
    /// # Errors
    /// See [`RepairError`]. The blocks that were replaced before stay so.
    pub fn run(
        mut self,
        cursor: &mut dyn FnMut(InboxId) -> Option<u64>,
        payload: &mut dyn FnMut(&DamagedBlock) -> Bytes,
    ) -> Result<Vec<DamagedBlock>, RepairError> {
        self.log.retain(cursor);
        let mut replaced = Vec::new();
        for inbox in self.log.shared.index.inboxes() {
            let found = blocks_of(&self.log.shared, inbox, 0)?;
            let damaged: Vec<_> = found.into_iter().filter_map(|(_, damaged)| damaged).collect();
            if !damaged.is_empty() {
                self.rewrite(inbox, payload)?;
                replaced.extend(damaged);
            }
        }
        self.log.close()?;
        Ok(replaced)
    }

    /// Appends the blocks of an inbox again, in order: those that are intact as they
    /// are.
    fn rewrite(
        &mut self,
        inbox: InboxId,
        payload: &mut dyn FnMut(&DamagedBlock) -> Bytes,
    ) -> Result<(), RepairError> {
        let mut after = 0;
        loop {
            let (mut piece, mut bytes) = (Vec::new(), 0);
            visit_all(&self.log.shared, inbox, after, &mut |found| {
                let block = found.unwrap_or_else(|damaged| {
                    let DamagedBlock { first, last, .. } = damaged;
                    Block { inbox, first, last, payload: payload(&damaged) }
                });
                bytes += block.payload.len();
                piece.push(block);
                if bytes < REPAIR_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let Some(last) = piece.last() else { return Ok(()) };
            after = last.last;
            let frame = Frame { blocks: piece, ..Frame::default() };
            self.log.append(frame, Durability::Machine)?;
        }
    }
}
