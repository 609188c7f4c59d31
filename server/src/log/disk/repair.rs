//! Replaces damaged blocks of a store that is not being served.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DiskLog;
use super::file::OsStorage;
use super::folder::{Folder, LOCK_TIMEOUT};
use super::reader::visit_all;
use super::recovery::Replay;
use crate::log::{
    AppendError, Block, Durability, Frame, InboxId, Log as _, LogError, OpenError, ReadError,
};

/// Bytes written at a time when blocks are replaced.
const REPAIR_BYTES: usize = 1 << 20;

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

/// The reason why blocks cannot be replaced.
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

/// A store under repair.
#[derive(Debug)]
pub struct Repair {
    log: Box<DiskLog>,
}

/// Visits a block, which may be damaged.
pub type Visit<'a> = dyn FnMut(Result<Block, DamagedBlock>) -> ControlFlow<()> + 'a;

impl Repair {
    /// Opens the log of an existing store.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        let folder = Folder::open_existing(path, LOCK_TIMEOUT)?;
        let storage = Arc::new(OsStorage::new(&folder.log()));
        let mut log = DiskLog::open(storage, None, replay).map_err(|error| error.of_store(path))?;
        log.folder = Some(Arc::new(folder));
        Ok(Self { log: Box::new(log) })
    }

    /// Releases blocks by the cursor of their inbox, `None` for an inbox that does not
    /// exist.
    pub fn retain(&mut self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>) {
        self.log.retain(cursor);
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
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError> {
        visit_all(&self.log.shared, inbox, after, visit)
    }

    /// Replaces damaged blocks with the given ones that have the same first numbers,
    /// and adds those whose numbers have no block. `blocks` must be in order. All live
    /// blocks of the inbox are rewritten.
    ///
    /// # Errors
    /// See [`RepairError`]. Blocks replaced before the error stay replaced.
    pub fn replace(&mut self, inbox: InboxId, blocks: Vec<Block>) -> Result<(), RepairError> {
        let mut blocks = blocks.into_iter().peekable();
        let mut after = 0;
        loop {
            let (mut piece, mut bytes) = (Vec::new(), 0);
            visit_all(&self.log.shared, inbox, after, &mut |found| {
                let (first, last) = match &found {
                    Ok(block) => (block.first, block.last),
                    Err(damaged) => (damaged.first, damaged.last),
                };
                while let Some(new) = blocks.next_if(|new| new.first <= first) {
                    piece.push(new);
                }
                if let Ok(block) = found {
                    bytes += block.payload.len();
                    piece.push(block);
                }
                after = last;
                if bytes < REPAIR_BYTES {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
            let is_last = bytes < REPAIR_BYTES;
            if is_last {
                piece.extend(blocks.by_ref());
            }
            let frame = Frame {
                blocks: piece,
                ..Frame::default()
            };
            self.log.append(frame, Durability::Machine)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Closes the log cleanly.
    ///
    /// # Errors
    /// [`RepairError::Close`] if the disk fails.
    pub fn close(self) -> Result<(), RepairError> {
        Ok(self.log.close()?)
    }
}
