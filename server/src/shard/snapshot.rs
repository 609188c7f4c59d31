//! A read-only store, for `harkd check` and `export`. Its folder is not changed.

use std::path::Path;

use hark_protocol::Sequence;

use super::ShardConfig;
use super::open::replay_frame;
use super::readers::{PageError, read_page};
use crate::ledger::{Ledger, Replay};
use crate::log::OpenError;
use crate::log::disk::snapshot;
use crate::store::{Account, AccountEntry, Page, Position, ReadLimit};

/// A page of an export.
const PAGE: ReadLimit = ReadLimit {
    messages: 1024,
    bytes: 1024 * 1024,
};

/// A store that is open for reading only.
#[derive(Debug)]
pub(crate) struct StoreSnapshot {
    ledger: Ledger,
    pub(super) log: snapshot::LogSnapshot,
}

/// An account and its inbox.
#[derive(Debug, Clone)]
pub(crate) struct InboxSnapshot {
    pub(crate) entry: AccountEntry,
    /// The position of the last acknowledged message.
    pub(crate) cursor: Position,
    /// The position of the last message.
    pub(crate) tail: Position,
}

impl StoreSnapshot {
    /// Opens the store in an existing folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, OpenError> {
        let mut replay = Replay::new(ShardConfig::UNBOUNDED.limits());
        let log = snapshot::LogSnapshot::open(folder, &mut |records| {
            replay_frame(&mut replay, folder, records)
        })?;
        Ok(Self {
            ledger: replay.finish(0),
            log,
        })
    }

    /// Returns the inboxes in the order of their names.
    pub(crate) fn inboxes(&self) -> Vec<InboxSnapshot> {
        inboxes(&self.ledger)
    }

    /// Reads a page of messages.
    pub(crate) fn read(&self, account: &Account, after: Sequence) -> Result<Page, PageError> {
        read_page(&*self.log.reader(), account.incarnation, after, PAGE)
    }
}

/// Returns the inboxes of a ledger in the order of their names.
pub(super) fn inboxes(ledger: &Ledger) -> Vec<InboxSnapshot> {
    let inboxes = ledger.inboxes();
    let mut inboxes: Vec<_> = inboxes
        .map(|(entry, cursor, tail)| InboxSnapshot {
            entry,
            cursor,
            tail,
        })
        .collect();
    inboxes.sort_by(|a, b| a.entry.account.name.cmp(&b.entry.account.name));
    inboxes
}
