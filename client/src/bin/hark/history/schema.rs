//! Opening of the database of the history.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;

use super::{HistoryError, Result};

/// Version of the tables.
const VERSION: i64 = 1;

/// How long a change waits for the change of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The tables. `entry.log` names the log that counts `entry.number`: empty for the own
/// inbox, a room, or the user whose inbox has an own message. `entry.kind` is a
/// [`super::write::Kind`], and `outbox` has the own messages without an outcome: their
/// run, and whether they may have been written to a server.
const TABLES: &str = "
CREATE TABLE account (
    id INTEGER PRIMARY KEY,
    servers TEXT NOT NULL,
    user TEXT NOT NULL,
    UNIQUE (servers, user)
) STRICT;
CREATE TABLE conversation (
    id INTEGER PRIMARY KEY,
    account INTEGER NOT NULL REFERENCES account,
    name TEXT NOT NULL,
    read_up_to INTEGER NOT NULL DEFAULT 0,
    UNIQUE (account, name)
) STRICT;
CREATE TABLE talk (
    account INTEGER NOT NULL REFERENCES account,
    room TEXT NOT NULL,
    user TEXT NOT NULL,
    PRIMARY KEY (account, room)
) STRICT, WITHOUT ROWID;
CREATE TABLE ignored (
    account INTEGER NOT NULL REFERENCES account,
    user TEXT NOT NULL,
    PRIMARY KEY (account, user)
) STRICT, WITHOUT ROWID;
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account INTEGER NOT NULL REFERENCES account,
    conversation INTEGER NOT NULL REFERENCES conversation,
    kind INTEGER NOT NULL,
    log TEXT NOT NULL,
    number INTEGER,
    time_ms INTEGER NOT NULL,
    sender TEXT,
    is_mention INTEGER NOT NULL,
    text TEXT NOT NULL,
    detail TEXT
) STRICT;
CREATE INDEX entry_order ON entry (conversation, id);
CREATE INDEX entry_unread ON entry (conversation, kind, id, is_mention);
CREATE UNIQUE INDEX entry_number ON entry (account, log, number, time_ms)
    WHERE number IS NOT NULL;
CREATE TABLE outbox (
    entry INTEGER PRIMARY KEY REFERENCES entry,
    run TEXT NOT NULL,
    is_written INTEGER NOT NULL
) STRICT;
";

/// Opens or creates the file.
pub(super) fn open(path: &Path) -> Result<Connection> {
    create(path).map_err(|error| HistoryError::File {
        path: path.display().to_string(),
        error,
    })?;
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
    )?;
    prepare(connection, path)
}

/// Returns an empty database in memory.
pub(super) fn in_memory() -> Result<Connection> {
    prepare(Connection::open_in_memory()?, Path::new("(in memory)"))
}

/// Creates the file, and its directory, unless it exists. Files beside it get its
/// permissions.
fn create(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Creates the tables of a new database, and the functions.
fn prepare(mut connection: Connection, path: &Path) -> Result<Connection> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    match version {
        0 => {
            transaction.execute_batch(TABLES)?;
            transaction.execute_batch(&format!("PRAGMA user_version = {VERSION}"))?;
        }
        VERSION => {}
        _ => return Err(HistoryError::TooNew(path.display().to_string())),
    }
    transaction.commit()?;
    // `LIKE` ignores the case of ASCII letters only.
    connection.create_scalar_function(
        "contains_folded",
        2,
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC,
        |context| {
            let (text, folded) = (context.get_raw(0).as_str()?, context.get_raw(1).as_str()?);
            Ok(text.to_lowercase().contains(folded))
        },
    )?;
    Ok(connection)
}
