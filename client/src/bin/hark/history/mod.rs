//! The local history: every conversation of a user, as far as this device has seen
//! it. A message is stored here before it is acknowledged, so what was acknowledged
//! can be read again.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | the types, and the database of a device |
//! | `schema.rs` | opening of the database |
//! | `read.rs` | conversations, pages, search |
//! | `write.rs` | received messages, read positions |
//! | `outbox.rs` | own messages without an outcome |
//! | `run.rs` | the process that owns them |
//!
//! The database is one `SQLite` file, readable by its owner alone, with a write-ahead
//! log that is synced by every change: a change that has returned survives the end
//! of the process and of the machine, and a torn one is undone by the next start.
//! Several processes may use it at the same time. All functions block for a disk
//! access, those that change something for a sync: call them on a thread that may
//! block, and pass messages in batches.
//!
//! This module knows neither the connection nor the screen.

#![allow(dead_code)]

mod outbox;
mod read;
mod run;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use self::run::Run;
use hark_client::sync::lock;
use hark_protocol::{RoomName, Sequence, UserName};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};

/// Largest number of entries in a history in memory. The oldest are dropped.
const MEMORY_ENTRIES_MAX: u64 = 20_000;

/// Largest number of entries in a page.
pub(crate) const PAGE_MAX: usize = 1_000;

/// The database of a device. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFile {
    // Held for one operation on the database.
    connection: Arc<Mutex<Connection>>,
    /// Largest number of entries; `None` for a file.
    entries_max: Option<u64>,
    /// Directory of the runs; `None` in memory.
    runs: Option<PathBuf>,
    run: Arc<OnceLock<Run>>,
}

/// The conversations of one user of one server or cluster. Clones share the database.
#[derive(Debug, Clone)]
pub(crate) struct History {
    file: HistoryFile,
    account: i64,
    user: UserName,
}

/// A conversation of the user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Conversation {
    /// Senders that were not logged in, and messages that are missing in the inbox.
    Anonymous,
    /// A person: the messages from and to the inbox, and those of the room of two.
    User(UserName),
    /// A room. A room of two is one only as long as the other user is unknown.
    Room(RoomName),
}

/// The place of an entry in the order in which this device has stored them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryId(i64);

/// An entry of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) state: EntryState,
    /// The room; `None` for a message from or to an inbox.
    pub(crate) room: Option<RoomName>,
    /// The number, once it is known.
    pub(crate) number: Option<Sequence>,
    /// The time of the server, or of this machine until the message is stored, in
    /// milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
    /// The sender; `None` if it was not logged in.
    pub(crate) sender: Option<UserName>,
    /// Whether the text of another user names this one.
    pub(crate) is_mention: bool,
    pub(crate) text: String,
}

/// The state of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryState {
    /// A message of another user, or to oneself.
    Received,
    /// An own message that is not answered.
    Pending,
    /// An own message that is stored by the server.
    Stored,
    /// An own message that was refused or not sent, with the explanation.
    Refused(String),
    /// An own message with an unknown outcome, with the explanation.
    Unknown(String),
    /// This number of messages, which the server has removed.
    Missing(u64),
    /// A message of a user that is ignored. It is not shown, and counts as read.
    Ignored,
}

/// The outcome of an own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Stored, under this number if the server named it.
    Stored(Option<Sequence>),
    /// Refused or not sent, with the explanation.
    Refused(String),
    /// Unknown, with the explanation.
    Unknown(String),
}

/// The state of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) conversation: Conversation,
    /// The newest entry.
    pub(crate) last: Entry,
    /// The last entry that was read.
    pub(crate) read_up_to: EntryId,
    /// Number of received entries behind it.
    pub(crate) unread: u64,
    /// Number of those that name the user.
    pub(crate) mentions: u64,
}

/// A received message on its way into the history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    /// The room; `None` for the inbox.
    pub(crate) room: Option<&'a RoomName>,
    pub(crate) delivery: &'a hark_protocol::Delivery,
}

/// A received message in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filed {
    pub(crate) conversation: Conversation,
    pub(crate) id: EntryId,
    /// Whether the message was not in the history before.
    pub(crate) is_new: bool,
    /// Whether the text of another user names this one.
    pub(crate) is_mention: bool,
    /// Whether the sender is ignored: the message is not shown.
    pub(crate) is_ignored: bool,
}

/// An own message that was never written to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsent {
    pub(crate) id: EntryId,
    /// The user or room that it was sent to.
    pub(crate) recipient: UserName,
    pub(crate) text: String,
    pub(crate) typed_ms: u64,
}

/// The own messages of ended processes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Adopted {
    /// Messages to send, in the order in which they were typed.
    pub(crate) unsent: Vec<Unsent>,
    /// Number of messages with an outcome that is now unknown.
    pub(crate) unknown: usize,
}

/// A failure of the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The database failed.
    #[error("cannot use the local history: {0}; --no-history goes without")]
    Database(#[from] rusqlite::Error),
    /// The file could not be created.
    #[error("cannot open the local history {path}: {error}; --no-history goes without")]
    File {
        /// The file.
        path: String,
        /// The cause.
        error: std::io::Error,
    },
    /// A later version has written the file.
    #[error(
        "the local history {0} was written by a later version of hark; --no-history goes without"
    )]
    TooNew(String),
}

type Result<T> = std::result::Result<T, HistoryError>;

impl HistoryFile {
    /// Opens the database at `path`, or creates it, readable by its owner alone.
    ///
    /// # Errors
    /// If it cannot be opened, or was written by a later version.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let runs = path.with_extension("runs");
        Ok(Self::new(schema::open(path)?, None, Some(runs)))
    }

    /// Returns a history that ends with the process and keeps the newest
    /// [`MEMORY_ENTRIES_MAX`] entries.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn in_memory() -> Result<Self> {
        Ok(Self::new(
            schema::in_memory()?,
            Some(MEMORY_ENTRIES_MAX),
            None,
        ))
    }

    /// Returns whether the history ends with the process.
    pub(crate) const fn is_in_memory(&self) -> bool {
        self.entries_max.is_some()
    }

    fn new(connection: Connection, entries_max: Option<u64>, runs: Option<PathBuf>) -> Self {
        Self {
            connection: Arc::new(Mutex::new(connection)),
            entries_max,
            runs,
            run: Arc::default(),
        }
    }

    /// Returns the history of a user. `servers` is one server, or the servers of one
    /// cluster joined by commas in any order.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn of(&self, servers: &str, user: &UserName) -> Result<History> {
        let servers: BTreeSet<&str> = servers.split(',').collect();
        let servers = servers.into_iter().collect::<Vec<_>>().join(",");
        let key = (&servers, user.as_str());
        let select = "SELECT id FROM account WHERE servers = ?1 AND user = ?2";
        let find = |of: &Transaction<'_>| of.query_row(select, key, |row| row.get(0)).optional();
        let account = match self.read(find)? {
            Some(account) => account,
            None => self.change(|change| {
                let insert = "INSERT OR IGNORE INTO account (servers, user) VALUES (?1, ?2)";
                change.execute(insert, key)?;
                change.query_row(select, key, |row| row.get(0))
            })?,
        };
        Ok(History {
            file: self.clone(),
            account,
            user: user.clone(),
        })
    }

    /// Makes a change that is durable when this returns, or none.
    fn change<T>(&self, change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = lock(&self.connection);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let changed = change(&transaction)?;
        transaction.commit()?;
        Ok(changed)
    }

    /// Reads from one state of the database.
    fn read<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = lock(&self.connection);
        let transaction = connection.transaction()?;
        Ok(read(&transaction)?)
    }
}

impl Conversation {
    /// Returns the conversation with a recipient: a room if the name is one.
    pub(crate) fn with(recipient: &UserName) -> Self {
        match recipient.as_str().parse() {
            Ok(room) => Self::Room(room),
            Err(_) => Self::User(recipient.clone()),
        }
    }

    /// Returns the name in the database; empty for [`Self::Anonymous`].
    fn key(&self) -> &str {
        match self {
            Self::Anonymous => "",
            Self::User(user) => user.as_str(),
            Self::Room(room) => room.as_str(),
        }
    }

    fn from_key(key: &str) -> Self {
        match (key.parse(), key.parse()) {
            (Ok(room), _) => Self::Room(room),
            (_, Ok(user)) => Self::User(user),
            _ => Self::Anonymous,
        }
    }
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "(anonymous)",
            _ => self.key(),
        })
    }
}

impl History {
    /// Returns the user.
    pub(crate) const fn user(&self) -> &UserName {
        &self.user
    }

    /// Returns the row of a conversation; `None` if it has no entry.
    fn find(
        &self,
        of: &Transaction<'_>,
        conversation: &Conversation,
    ) -> rusqlite::Result<Option<i64>> {
        let select = "SELECT id FROM conversation WHERE account = ?1 AND name = ?2";
        of.query_row(select, (self.account, conversation.key()), |row| row.get(0))
            .optional()
    }
}

/// Returns the time of this machine in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |passed| {
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    })
}
