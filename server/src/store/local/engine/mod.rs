//! What the local store needs of a storage engine: tables of bytes, sorted by
//! key, changed by atomic batches. An engine knows no rule of the store; the
//! one thing it is told is which messages are [`Live`], so that it may give
//! back the space of the others.

mod embedded;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod faulty;
mod live;
mod memory;

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

pub(super) use embedded::EmbeddedOpener;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use embedded::fuzzing::{check_inventory, check_journal};
pub use embedded::{ENGINE_LOG, OPEN_FILES_MAX};

pub(super) use live::{Fate, Live};
pub(super) use memory::MemoryOpener;

use super::OpenError;

/// A table of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// What is in the inboxes.
    Messages,
    /// Who there is.
    Accounts,
    /// Up to where each inbox is forgotten.
    Cursors,
    /// The outcomes of sends.
    Sessions,
    /// Single numbers.
    Meta,
}

impl Table {
    /// Every table.
    pub(super) const ALL: [Self; 5] =
        [Self::Messages, Self::Accounts, Self::Cursors, Self::Sessions, Self::Meta];
}

/// Changes that are made together or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In the order in which they are made.
    pub(super) changes: Vec<Change>,
}

/// A key that gets a value, or loses it.
#[derive(Debug)]
pub(super) struct Change {
    /// Where.
    pub(super) table: Table,
    /// The key.
    pub(super) key: Vec<u8>,
    /// Its value from now on; `None` where it is removed.
    pub(super) value: Option<Vec<u8>>,
}

impl Batch {
    /// Sets a value.
    pub(super) fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: Vec<u8>) {
        self.changes.push(Change { table, key: key.into(), value: Some(value) });
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.changes.push(Change { table, key: key.into(), value: None });
    }
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The operating system has it: it survives the end of the process.
    Process,
    /// It is on stable storage.
    Machine,
}

/// An engine could not do what it was asked for. What was asked may have been
/// done all the same, so the engine is to be dropped and opened again.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct EngineError(Box<dyn std::error::Error + Send + Sync>);

impl EngineError {
    /// An error of the engine itself.
    pub(super) fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// Opens an engine, as often as it takes.
pub(super) trait Opener: Send + Sync + fmt::Debug {
    /// Opens it with everything that was ever committed durably; whatever else
    /// it finds is on stable storage, too, when this returns. An engine that
    /// was opened before has been dropped, and so have its readers.
    fn open(&self) -> Result<Box<dyn Engine>, OpenError>;

    /// Where the store lies, for messages about it.
    fn path(&self) -> &Path;

    /// Whether damage is logged and accepted, rather than an error.
    fn accepts_data_loss(&self) -> bool;
}

/// An engine that is open. Dropping it lets go of everything it holds.
pub(super) trait Engine: Send + fmt::Debug {
    /// Makes the changes of a batch, and takes them out of it; returns when they
    /// are as durable as asked for, and so is every batch before. Changes are not
    /// read earlier.
    fn commit(&mut self, batch: &mut Batch, durability: Durability) -> Result<(), EngineError>;

    /// What reads it, beside the commits.
    fn reader(&self) -> Box<dyn Reader>;

    /// The bytes that its messages take, dead ones included, more or less.
    fn message_bytes(&self) -> u64;

    /// Bytes of dead messages from which on it is worth while to give back their
    /// space.
    fn dead_bytes_min(&self) -> u64;

    /// Begins to give back the space of messages that are not live.
    fn compact(&mut self);

    /// Makes everything durable and notes that nothing needs to be recovered.
    fn close(self: Box<Self>) -> Result<(), EngineError>;
}

/// What is called with each key and value of a scan, until it breaks.
pub(super) type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// Reads an engine. It blocks while the disk does.
pub(super) trait Reader: Send + Sync + fmt::Debug {
    /// Visits the keys from `from` on in ascending order.
    fn ascend(&self, table: Table, from: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError>;

    /// Visits the keys below `below` in descending order.
    fn descend(&self, table: Table, below: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError>;
}
