//! The log under the ledger: an ordered sequence of frames on storage.
//!
//! A log knows neither rules nor records: the records of a frame are opaque bytes to it,
//! and so are the payloads of its blocks. It owns the locations of blocks, their
//! liveness, and the reclamation of their space.
//!
//! A shard uses a log as follows. It opens the log through an [`Opener`], which replays
//! the records of the newest complete checkpoint and of every frame after it. It calls
//! [`Log::retain`] once with the cursors of the replayed ledger. From then on it appends
//! one frame at a time. When a frame that moved cursors is durable, it calls
//! [`Log::release`] for them.

#[cfg(test)]
mod contract;
pub mod disk;
mod hash;
#[cfg(feature = "cluster")]
pub(crate) mod jetstream;
pub mod memory;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

/// Approximate maximum bytes of the records of a frame. A frame without messages may use
/// the reserve of free space, and must fit into the rest of it.
pub const RECORD_BYTES_MAX: usize = 512 * 1024;

/// An inbox, identified by the number of its account's creation. Never reused.
pub type InboxId = u64;

/// One commit, durable as a whole or not at all.
#[derive(Debug, Default)]
pub struct Frame {
    /// Records of the ledger, in order. They hold absolute values, so that replaying a
    /// record twice equals replaying it once.
    pub records: Vec<u8>,
    /// Messages, at most one block for each inbox.
    pub blocks: Vec<Block>,
    /// Blocks that replace older ones: all live blocks of the inbox between their first
    /// and their last number, which are the numbers of whole blocks. Their payloads are
    /// not longer than those of the older ones together. In order, after `blocks`.
    pub merged: Vec<Block>,
    /// The part of a checkpoint in `records`, if any.
    pub checkpoint: Option<CheckpointPart>,
}

/// Consecutive messages of one inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The inbox.
    pub inbox: InboxId,
    /// The number of the first message.
    pub first: u64,
    /// The number of the last message.
    pub last: u64,
    /// The messages, as the ledger encodes them.
    pub payload: Bytes,
}

/// Marks the frames of a checkpoint. Its parts are interleaved with ordinary frames, in
/// order. Replaying everything from the first part on gives the state at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPart {
    /// This frame begins a checkpoint, and abandons an incomplete one.
    pub is_first: bool,
    /// This frame completes the checkpoint.
    pub is_last: bool,
}

/// The durability of an append when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The operating system has the data: it survives a crash of the process.
    Process,
    /// The data is on stable storage.
    Machine,
}

/// An open log, used by one thread. Dropping it releases every resource and makes nothing
/// durable.
pub trait Log: Send + fmt::Debug {
    /// Appends a frame with at least the given durability: a log may need more if the frame
    /// has merged blocks. Its blocks are visible to readers when this returns.
    ///
    /// # Errors
    /// See [`AppendError`].
    fn append(&mut self, frame: Frame, durability: Durability) -> Result<(), AppendError>;

    /// Releases every block of `inbox` whose last number is at most `through`; `u64::MAX`
    /// for an account that has ended. Readers no longer see these blocks, and their space
    /// is reclaimed. The records that justify the release must be durable.
    fn release(&mut self, inbox: InboxId, through: u64);

    /// Releases blocks by the cursor of their inbox, `None` for an inbox that
    /// does not exist. Called once, after the replay and before the first append.
    fn retain(&mut self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>);

    /// Returns a reader, for any thread, concurrent with appends.
    fn reader(&self) -> Arc<dyn Reader>;

    /// Returns whether enough was appended since the last complete checkpoint that the
    /// caller should append the parts of a new one.
    fn is_checkpoint_due(&self) -> bool;

    /// Returns the size of a segment. A frame longer than half of it may need more space
    /// than is reserved.
    fn segment_bytes(&self) -> u64;

    /// Returns whether free space is below the reserve, so that no new messages should be
    /// appended. Frames without messages are still accepted. Never blocks.
    fn is_low_on_space(&self) -> bool;

    /// Returns whether even a frame without messages may find no space, if it is longer
    /// than a few bytes. Never blocks.
    fn is_full(&self) -> bool;

    /// Returns whether any append, even of a frame without messages, would reclaim space
    /// or report a failure of the log: the caller should append one soon if no other is
    /// due. Never blocks.
    fn has_pending_work(&self) -> bool;

    /// Returns the space that the log takes.
    fn usage(&self) -> Usage;

    /// Begins to copy the live parts of files together, so that the rest of them is free, even
    /// if it is little. Concerns what is older than the last complete checkpoint, and ends by
    /// itself.
    fn compact(&mut self) {}

    /// Returns whether a complete checkpoint would make segments free. Never blocks.
    fn has_space_after_checkpoint(&self) -> bool {
        false
    }

    /// Returns the content of the log at this point, to be copied beside appends; `None` if
    /// it has no files.
    fn copy(&self) -> Option<Box<dyn LogCopy>> {
        None
    }

    /// Makes everything durable and closes the log cleanly.
    ///
    /// # Errors
    /// [`LogError`] if the storage fails.
    fn close(self: Box<Self>) -> Result<(), LogError>;
}

/// Reads the blocks of a log.
pub trait Reader: Send + Sync + fmt::Debug {
    /// Visits the live blocks of `inbox` with a number above `after`, in order of their
    /// numbers, until `visit` breaks. Includes every append that returned before this
    /// call. If blocks are merged meanwhile, a block may begin with messages of the one
    /// before it. Blocks on the disk.
    ///
    /// # Errors
    /// See [`ReadError`]. The blocks before the failing one have been visited.
    fn read(
        &self,
        inbox: InboxId,
        after: u64,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;
}

/// The content of a log at one point, which can be copied beside appends. The files that it
/// needs stay unchanged until it is dropped.
pub trait LogCopy: Send + fmt::Debug {
    /// Returns the number of bytes to copy.
    fn bytes(&self) -> u64;

    /// Writes a store with this log to a new folder and makes it durable. Calls `progress` with the number
    /// of bytes copied so far, and stops if it breaks. Blocks.
    ///
    /// # Errors
    /// An error of the operating system, or `Interrupted` if it was stopped. The folder is
    /// then incomplete.
    fn write_to(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> io::Result<()>;
}

/// Opens a log repeatedly: at the start, and after each failure.
pub trait Opener: Send + Sync + fmt::Debug {
    /// Opens the log. Calls `replay` with the records of each frame, in order, from the
    /// beginning of the newest complete checkpoint to the end. All replayed frames are on
    /// stable storage when this returns. The previously opened log must have been
    /// dropped.
    ///
    /// # Errors
    /// See [`OpenError`]. An error of `replay` is returned unchanged.
    fn open(
        &self,
        replay: &mut dyn FnMut(&[u8]) -> Result<(), OpenError>,
    ) -> Result<Box<dyn Log>, OpenError>;

    /// Returns the folder of the log, for messages; empty for a log in memory.
    fn path(&self) -> &Path;
}

/// The space that a log takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Live blocks.
    pub live_bytes: u64,
    /// All files.
    pub file_bytes: u64,
    /// Files that are kept for later use.
    pub spare_bytes: u64,
    /// The free space beside them, as of the latest look; `None` without files.
    pub free_bytes: Option<u64>,
}

impl Usage {
    /// Returns the bytes of live blocks, or of the files without those kept for later use.
    pub(crate) fn used_bytes(&self) -> u64 {
        let files = self.file_bytes.saturating_sub(self.spare_bytes);
        files.max(self.live_bytes)
    }
}

/// The reason why a frame was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no space for the frame. Nothing was written; the log stays usable.
    #[error("no space left for the log")]
    NoSpace,
    /// The storage failed. Whether the frame is durable is unknown: the log must be
    /// dropped and reopened.
    #[error(transparent)]
    Failed(#[from] LogError),
}

/// The storage of a log failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: std::io::Error,
}

/// The reason why blocks cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A block is damaged.
    #[error("damaged block: inbox {inbox}, first number {first}, {}", path.display())]
    Damaged {
        /// The inbox.
        inbox: InboxId,
        /// The number of the block's first message.
        first: u64,
        /// The file.
        path: PathBuf,
    },
    /// The storage failed.
    #[error(transparent)]
    Failed(#[from] LogError),
    /// The block is not in memory; it must be fetched first.
    #[error("block not in memory: inbox {inbox}, first number {first}")]
    NotCached {
        /// The inbox.
        inbox: InboxId,
        /// The number of the block's first message.
        first: u64,
    },
    /// The log was closed or dropped.
    #[error("the log is closed")]
    Closed,
}

/// The reason why a log cannot be opened. Each is one line with the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("cannot open store {}: in use by another harkd{}; stop it or choose another --store", path.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process, if it is known.
        pid: Option<u32>,
    },
    /// The folder contains files but no store.
    #[error("cannot open store {}: the folder is not empty and holds no store; choose an empty or a new folder", .0.display())]
    NotAStore(PathBuf),
    /// There is no store.
    #[error("cannot open store {}: the folder holds no store; name the folder of a store", .0.display())]
    NoStore(PathBuf),
    /// The store was written in another format.
    #[error("cannot open store {}: its format is {found}, but this version reads format {expected}; use the version that wrote it", path.display())]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// The version of its format.
        found: u32,
        /// The version that this program reads.
        expected: u32,
    },
    /// Data that was on stable storage is missing or damaged.
    #[error("cannot open store {}: damaged: {what}; restore it from a backup, or salvage the rest with 'harkd check --drop-damaged'", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// The damage.
        what: String,
    },
    /// A file cannot be read or written.
    #[error("cannot open store {}: {source}; check the disk and the permissions", path.display())]
    Io {
        /// The file or the folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl OpenError {
    /// Sets the folder of the damaged store in the error.
    fn of_store(self, path: &Path) -> Self {
        match self {
            Self::Damaged { what, .. } => Self::Damaged {
                path: path.to_owned(),
                what,
            },
            other => other,
        }
    }
}
