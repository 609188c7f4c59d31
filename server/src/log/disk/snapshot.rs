//! A read-only log: its folder is not changed.

use std::path::Path;
use std::sync::Arc;

use super::file::OsStorage;
use super::folder::{Folder, LOCK_TIMEOUT, check_existing};
use super::reader::visit_all;
use super::recovery::{Replay, recover};
use super::repair::Visit;
use super::slots::{Files, Spares};
use super::writer::OpenSegment;
use super::{SEGMENT_BYTES, SharedLog};
use crate::log::{InboxId, OpenError, ReadError, Reader};

/// A log that is open for reading only. Its folder is locked against changes.
#[derive(Debug)]
pub struct LogSnapshot {
    shared: Arc<SharedLog>,
    _folder: Folder,
}

/// Checks that there is a store in a folder.
///
/// # Errors
/// See [`OpenError`].
pub fn find(path: &Path) -> Result<(), OpenError> {
    check_existing(path)
}

impl LogSnapshot {
    /// Reads the log of an existing store like a start does: damage that would prevent a
    /// start is an error. Calls `replay` with the records of each frame.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, replay: &mut Replay<'_>) -> Result<Self, OpenError> {
        let folder = Folder::open_read_only(path, LOCK_TIMEOUT)?;
        let storage = Arc::new(OsStorage::read_only(&folder.log()));
        let mut recovered = recover(&*storage, replay).map_err(|error| error.of_store(path))?;
        if let Some(newest) = recovered.resume.take() {
            recovered
                .index
                .add_opened(&OpenSegment::of_newest(newest, recovered.next_id));
        }
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let (segments, index) = recovered.index.build().map_err(io)?;
        let spares = Spares::new(Vec::new(), Vec::new(), 0, SEGMENT_BYTES);
        let shared = SharedLog::new(
            Files::new(storage, spares, SEGMENT_BYTES),
            segments,
            index,
            0,
        );
        Ok(Self {
            shared: Arc::new(shared),
            _folder: folder,
        })
    }

    /// Returns the reader of its blocks.
    #[must_use]
    pub fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.shared) as Arc<dyn Reader>
    }

    /// Returns every inbox that has a block.
    #[cfg(test)]
    pub(super) fn inboxes(&self) -> Vec<InboxId> {
        self.shared.index.inboxes()
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
        visit_all(&self.shared, inbox, after, visit)
    }
}
