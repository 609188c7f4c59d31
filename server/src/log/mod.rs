//! The log under the ledger: an ordered sequence of frames on storage.
//!
//! A log knows neither rules nor records: the bytes of a frame's records are
//! opaque to it, and so are the payloads of its blocks. It owns where blocks
//! lie, which of them are live, and how their space is reclaimed.
//!
//! A shard uses a log as follows. It opens the log through an [`Opener`], which
//! replays the records of the newest complete checkpoint and of every frame
//! after it. It calls [`Log::retain`] once with the cursors that the replayed
//! ledger holds. From then on it appends one frame at a time, and calls
//! [`Log::release`] for the cursors that moved, after the frame that moved them
//! is durable.

#[cfg(test)]
mod contract;
pub mod disk;
mod hash;
#[cfg(all(test, feature = "cluster"))]
pub(crate) mod jetstream;
pub mod memory;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

/// Bytes of the records of a frame, about. A frame without messages may use the reserve
/// of free space, and is to fit into what is left.
pub const RECORD_BYTES_MAX: usize = 512 * 1024;

/// An inbox, named by the number of its account's creation. Never reused.
pub type InboxId = u64;

/// One commit: it becomes durable as a whole or not at all.
#[derive(Debug, Default)]
pub struct Frame {
    /// Records of the ledger, in order. They hold absolute values: to replay a
    /// record twice is the same as to replay it once.
    pub records: Vec<u8>,
    /// Messages, at most one block for each inbox.
    pub blocks: Vec<Block>,
    /// The part of a checkpoint that `records` holds, if it does.
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

/// Marks the frames of a checkpoint. The parts of a checkpoint lie beside
/// ordinary frames, in order; the state at the end is that of replaying
/// everything from the first part on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPart {
    /// This frame begins a checkpoint; one that was begun before and is
    /// incomplete is abandoned.
    pub is_first: bool,
    /// This frame completes the checkpoint.
    pub is_last: bool,
}

/// How durable an append is when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The operating system has it: it survives the end of the process.
    Process,
    /// It is on stable storage.
    Machine,
}

/// A log that is open, used by one thread. Dropping it releases every resource
/// and makes nothing durable.
pub trait Log: Send + fmt::Debug {
    /// Appends a frame and returns once it is as durable as asked for. Its blocks
    /// are visible to readers when this returns.
    ///
    /// # Errors
    /// See [`AppendError`].
    fn append(&mut self, frame: Frame, durability: Durability) -> Result<(), AppendError>;

    /// Declares every block of `inbox` whose last number is at most `through`
    /// dead; `u64::MAX` for an account that has ended. Readers no longer see it,
    /// and its space is reclaimed. The caller has made durable what says so.
    fn release(&mut self, inbox: InboxId, through: u64);

    /// Releases blocks by the cursor of their inbox, `None` for an inbox that
    /// does not exist. Called once, after the replay and before the first append.
    fn retain(&mut self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>);

    /// Reads blocks beside the appends, from any thread.
    fn reader(&self) -> Arc<dyn Reader>;

    /// Whether enough has been appended since the last complete checkpoint that
    /// the caller should append the parts of a new one.
    fn is_checkpoint_due(&self) -> bool;

    /// The size of a segment. A frame that is longer than half of it may need more space
    /// than is reserved.
    fn segment_bytes(&self) -> u64;

    /// Whether free space is below the reserve, so that no new messages should be
    /// appended. Frames without messages still are accepted. Never blocks.
    fn is_low_on_space(&self) -> bool;

    /// Whether even a frame without messages may find no space, if it is longer than a
    /// few bytes. Never blocks.
    fn is_full(&self) -> bool;

    /// Whether an append, even of a frame without messages, would reclaim space, or would
    /// tell that the log has failed: the caller appends one soon if no other is due.
    /// Never blocks.
    fn has_pending_work(&self) -> bool;

    /// The space that the log takes.
    fn usage(&self) -> Usage;

    /// Makes everything durable and ends the log in order.
    ///
    /// # Errors
    /// [`LogError`] if the storage fails.
    fn close(self: Box<Self>) -> Result<(), LogError>;
}

/// Reads the blocks of a log.
pub trait Reader: Send + Sync + fmt::Debug {
    /// Visits the live blocks of `inbox` that hold a number above `after`, in
    /// order of their numbers, until `visit` breaks. It sees every append that
    /// returned before this call. It blocks while the disk does.
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

/// Opens a log, as often as it takes: at the start, and after a failure.
pub trait Opener: Send + Sync + fmt::Debug {
    /// Opens the log. Calls `replay` with the records of each frame, in order,
    /// from the beginning of the newest complete checkpoint to the end. Everything
    /// that is replayed is on stable storage when this returns. The log that was
    /// opened before has been dropped.
    ///
    /// # Errors
    /// See [`OpenError`]; an error of `replay` is returned as it is.
    fn open(&self, replay: &mut dyn FnMut(&[u8]) -> Result<(), OpenError>)
    -> Result<Box<dyn Log>, OpenError>;

    /// The folder of the log, for messages about it; empty for one in memory.
    fn path(&self) -> &Path;
}

/// The space that a log takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Live blocks.
    pub live_bytes: u64,
    /// All files.
    pub file_bytes: u64,
}

/// Why a frame was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no space for the frame. Nothing was written; the log stays usable.
    #[error("no space left for the log")]
    NoSpace,
    /// The storage failed. Whether the frame is durable is unknown: the log is to
    /// be dropped and opened again.
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

/// Why blocks cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A block is not as it was written.
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
    /// The log was closed or dropped.
    #[error("the log is closed")]
    Closed,
}

/// Why a log cannot be opened. Each is one line that says what is wrong and how
/// to remedy it.
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
    /// There are files in the folder, and they are no store.
    #[error("cannot open store {}: the folder is not empty and holds no store; choose an empty or a new folder", .0.display())]
    NotAStore(PathBuf),
    /// There is no store.
    #[error("cannot open store {}: there is none in this folder; name the folder of a store", .0.display())]
    NoStore(PathBuf),
    /// The store was written in another format.
    #[error("cannot open store {}: its format is {found}, this version reads format {expected}; use the version that wrote it", path.display())]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// The version of its format.
        found: u32,
        /// The version that this program reads.
        expected: u32,
    },
    /// Something that was on stable storage is missing or is not as it was written.
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
    /// Names the folder of the store in which the damage is.
    fn of_store(self, path: &Path) -> Self {
        match self {
            Self::Damaged { what, .. } => Self::Damaged { path: path.to_owned(), what },
            other => other,
        }
    }
}
