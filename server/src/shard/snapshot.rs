//! A read-only store, for `harkd check` and `export`. Its folder is not changed.

use std::path::Path;

use hark_protocol::Sequence;

use super::ShardConfig;
use super::open::replay_frame;
use super::readers::{PageError, read_page};
use crate::ledger::{Ledger, Replay};
use crate::log::OpenError;
use crate::log::disk::snapshot;
use crate::store::{AccountEntry, Page, Position, ReadLimit};

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

/// The bounds of the messages of an inbox or a room.
#[derive(Debug, Clone)]
pub(crate) struct LogBounds {
    /// The number of the creation of its account or room.
    pub(crate) id: u64,
    /// The name of its account or room.
    pub(crate) name: String,
    /// The account, if it is an inbox.
    pub(crate) account: Option<AccountEntry>,
    /// The position of the last forgotten message.
    pub(crate) head: Position,
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

    /// Returns all inboxes in the order of their names, then all rooms.
    pub(crate) fn logs(&self) -> Vec<LogBounds> {
        logs(&self.ledger)
    }

    /// Reads a page of messages.
    pub(crate) fn read(&self, log: u64, after: Sequence) -> Result<Page, PageError> {
        read_page(&*self.log.reader(), log, after, PAGE)
    }
}

/// Returns the logs of a ledger: all inboxes in the order of their names, then all rooms.
pub(super) fn logs(ledger: &Ledger) -> Vec<LogBounds> {
    let inboxes = ledger.inboxes().map(|(entry, head, tail)| LogBounds {
        id: entry.account.incarnation,
        name: entry.account.name.to_string(),
        account: Some(entry),
        head,
        tail,
    });
    let rooms = ledger.room_logs().map(|(id, name, head, tail)| LogBounds {
        id,
        name: name.to_string(),
        account: None,
        head,
        tail,
    });
    let mut logs: Vec<_> = inboxes.chain(rooms).collect();
    logs.sort_by(|a, b| (a.account.is_none(), &a.name).cmp(&(b.account.is_none(), &b.name)));
    logs
}
