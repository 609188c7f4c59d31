//! The engine of a durable server: fjall, a log-structured merge tree with a
//! journal. Only this file and those of its folder name it, and they know what
//! has to be known about it:
//!
//! - A failed write or sync poisons it for good: it is dropped and opened again.
//! - It takes what it finds in its journals for durable, and for all there was.
//!   So [`journal`] checks them before the engine sees them, and each commit
//!   carries a count, which is compared with the one in [`CommitsFile`].
//! - A commit waits, without end, for workers that a full disk has killed. So
//!   nothing is committed while they lag behind; see [`FjallEngine::catch_up`].

mod filter;
mod journal;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use self::filter::{Compaction, DeadMessages};
use super::{Batch, Durability, Engine, EngineError, Live, Opener, Reader, Table, Visit};
use crate::store::local::OpenError;
use crate::store::local::folder::{Commits, CommitsFile, Folder};
use crate::store::local::record::{self, COMMITS_KEY};

/// The filter for what the engine logs. That is for its own authors, such as an
/// error where a merge gave way to commits; the store says what matters of it.
pub const ENGINE_LOG: &str = "fjall=off,lsm_tree=off";

/// Bytes that are collected in memory before they become a file. Small, since
/// what is in memory is read back from the journal at the next start.
const MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of journals before the tables that hold them back are written out. It
/// is the least that the engine takes, and bounds the time that a start takes.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes of blocks that are kept in memory for reading. The system keeps more.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Files that are held open, at most.
const OPEN_FILES_MAX: usize = 256;

/// Threads that write tables out and merge them. Of two, one would spin while
/// the other merges.
const WORKERS: usize = 1;

/// Tables in memory that wait to be written out, at most, for a commit to
/// begin: the engine halts inside the commit at 4.
const SEALED_TABLES_MAX: usize = 2;

/// Files that wait to be merged, at most, for a commit to begin: the engine
/// halts inside the commit at 30.
const UNMERGED_FILES_MAX: usize = 24;

/// How often it is looked whether the workers have caught up.
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(2);

/// Opens the engine in a folder.
#[derive(Debug)]
pub(in crate::store::local) struct EmbeddedOpener {
    folder: Folder,
    live: Arc<Live>,
    accept_data_loss: bool,
}

struct FjallEngine {
    // Before the tables, which it uses: fields are dropped in this order.
    compaction: Compaction,
    tables: Tables,
    commits: u64,
    file: Arc<CommitsFile>,
}

/// The database, and its keyspaces in the order of [`Table::ALL`].
struct Tables {
    keyspaces: [Keyspace; Table::ALL.len()],
    database: Database,
}

struct FjallReader {
    keyspaces: [Keyspace; Table::ALL.len()],
}

impl EmbeddedOpener {
    /// For a folder that is locked. Damage is an error, unless the loss is
    /// accepted: then it is logged, and the store goes on with what is left.
    pub(in crate::store::local) const fn new(
        folder: Folder,
        live: Arc<Live>,
        accept_data_loss: bool,
    ) -> Self {
        Self { folder, live, accept_data_loss }
    }

    /// The count of durable commits. Where there is no engine yet, it is made.
    fn prepare(&self) -> Result<(CommitsFile, Commits), OpenError> {
        let none = Commits { durable: 0, clean: false };
        let has_engine = self.folder.engine().is_dir();
        let (file, commits) = match self.folder.commits()? {
            Some(file) => {
                let commits = file.read().map_err(|source| self.io(source))?;
                if commits.is_none() {
                    self.accept("the count of its commits is garbled", None)?;
                }
                (file, commits.unwrap_or(none))
            }
            None => {
                if has_engine {
                    self.accept("the count of its commits is gone", None)?;
                }
                (self.folder.make_commits(none)?, none)
            }
        };
        if !has_engine {
            if commits.durable > 0 {
                self.accept("everything is gone", Some(commits.durable))?;
            }
            self.folder
                .make_engine(|path| open_tables(path, &self.live, &Compaction::default()).map(drop))?;
        }
        Ok((file, commits))
    }

    /// Refuses to open what is damaged, unless that is accepted.
    fn accept(&self, what: impl Into<String>, lost: Option<u64>) -> Result<(), OpenError> {
        let damaged = self.folder.damaged(what, lost);
        if self.accept_data_loss {
            tracing::warn!("{damaged}: accepted");
            return Ok(());
        }
        Err(damaged)
    }

    fn io(&self, source: std::io::Error) -> OpenError {
        OpenError::Io { path: self.folder.path().to_owned(), source }
    }

    fn engine(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpenError {
        OpenError::Engine { path: self.folder.path().to_owned(), source: source.into() }
    }

    /// How many commits the engine knows of.
    fn count(&self, tables: &Tables) -> Result<u64, OpenError> {
        let value = tables.keyspace(Table::Meta).get(COMMITS_KEY).map_err(|e| self.engine(e))?;
        value.map_or(Ok(0), |value| {
            record::decode_number(COMMITS_KEY, &value).or_else(|damaged| {
                self.accept(damaged.to_string(), None)?;
                Ok(0)
            })
        })
    }
}

impl Opener for EmbeddedOpener {
    fn open(&self) -> Result<Box<dyn Engine>, OpenError> {
        let (file, known) = self.prepare()?;
        let damaged =
            journal::check(&self.folder.engine(), !known.clean).map_err(|source| self.io(source))?;
        if damaged > 0 {
            self.accept(format!("{damaged} of its journals cannot be read to the end"), None)?;
            journal::check(&self.folder.engine(), true).map_err(|source| self.io(source))?;
        }
        // From here on it takes a close in order to be clean again.
        file.write_synced(Commits { clean: false, ..known }).map_err(|source| self.io(source))?;
        let compaction = Compaction::default();
        let tables = open_tables(&self.folder.engine(), &self.live, &compaction)?;
        let commits = self.count(&tables)?;
        if commits < known.durable {
            let lost = known.durable - commits;
            self.accept(format!("its last {lost} commits are gone"), Some(lost))?;
        }
        file.write_synced(Commits { durable: commits, clean: false }).map_err(|source| self.io(source))?;
        Ok(Box::new(FjallEngine { compaction, tables, commits, file: Arc::new(file) }))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn accepts_data_loss(&self) -> bool {
        self.accept_data_loss
    }
}

fn open_tables(path: &Path, live: &Arc<Live>, compaction: &Compaction) -> Result<Tables, OpenError> {
    let dead = Arc::new(DeadMessages::new(Arc::clone(live), compaction.stopping()));
    let builder = Database::builder(path)
        .manual_journal_persist(true)
        .worker_threads(WORKERS)
        .cache_size(CACHE_BYTES)
        .max_cached_files(Some(OPEN_FILES_MAX))
        .max_journaling_size(JOURNAL_BYTES_MAX)
        .with_compaction_filter_factories(Arc::new(move |name| {
            (name == keyspace_name(Table::Messages)).then(|| Arc::clone(&dead) as _)
        }));
    let engine = |source| OpenError::Engine { path: path.to_owned(), source };
    // It panics where it meets a file that it cannot have written.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = builder.open()?;
        let open = |table| database.keyspace(keyspace_name(table), options);
        let [messages, accounts, cursors, sessions, meta] = Table::ALL.map(open);
        Ok(Tables { keyspaces: [messages?, accounts?, cursors?, sessions?, meta?], database })
    }));
    match opened {
        Ok(tables) => tables.map_err(|e: fjall::Error| engine(e.into())),
        Err(_) => Err(engine("it met a file that it does not know".into())),
    }
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(MEMTABLE_BYTES_MAX)
}

const fn keyspace_name(table: Table) -> &'static str {
    match table {
        Table::Messages => "messages",
        Table::Accounts => "accounts",
        Table::Cursors => "cursors",
        Table::Sessions => "sessions",
        Table::Meta => "meta",
    }
}

impl Tables {
    fn keyspace(&self, table: Table) -> &Keyspace {
        keyspace(&self.keyspaces, table)
    }
}

#[expect(clippy::indexing_slicing, reason = "there is a keyspace for each table")]
fn keyspace(keyspaces: &[Keyspace; Table::ALL.len()], table: Table) -> &Keyspace {
    &keyspaces[table as usize]
}

impl FjallEngine {
    /// Waits until the engine's workers keep up, or are known to have died.
    ///
    /// A commit that finds too many tables unwritten waits inside the engine
    /// until there are fewer. Where the worker that writes them has died, for
    /// instance because the disk is full, it would wait for ever. Here that is
    /// noticed, since a worker that dies poisons the engine.
    fn catch_up(&mut self) -> Result<(), EngineError> {
        while self.tables.keyspaces.iter().any(is_behind) {
            // A merge of all messages keeps the worker from writing tables out.
            self.compaction.stop();
            self.tables.database.persist(PersistMode::Buffer).map_err(EngineError::new)?;
            thread::sleep(CATCH_UP_INTERVAL);
        }
        Ok(())
    }
}

fn is_behind(keyspace: &Keyspace) -> bool {
    keyspace.sealed_memtable_count() > SEALED_TABLES_MAX || keyspace.l0_table_count() > UNMERGED_FILES_MAX
}

impl Engine for FjallEngine {
    fn commit(&mut self, batch: Batch, durability: Durability) -> Result<(), EngineError> {
        self.catch_up()?;
        let mode = match durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Machine => PersistMode::SyncData,
        };
        let database = self.tables.database.clone();
        let mut writes =
            OwnedWriteBatch::with_capacity(database, batch.changes.len() + 1).durability(Some(mode));
        for change in batch.changes {
            let keyspace = self.tables.keyspace(change.table);
            match change.value {
                Some(value) => writes.insert(keyspace, change.key, value),
                None => writes.remove(keyspace, change.key),
            }
        }
        self.commits += 1;
        let count = record::encode_number(COMMITS_KEY, self.commits);
        writes.insert(self.tables.keyspace(Table::Meta), COMMITS_KEY, count);
        writes.commit().map_err(EngineError::new)?;
        if durability == Durability::Machine {
            let commits = Commits { durable: self.commits, clean: false };
            self.file.write(commits).map_err(EngineError::new)?;
        }
        Ok(())
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(FjallReader { keyspaces: self.tables.keyspaces.clone() })
    }

    fn stored_messages(&self) -> u64 {
        self.tables.keyspace(Table::Messages).approximate_len() as u64
    }

    fn compact(&mut self) {
        let keyspace = |table| self.tables.keyspace(table);
        self.compaction.start(keyspace(Table::Messages), keyspace(Table::Meta));
    }

    fn close(mut self: Box<Self>) -> Result<(), EngineError> {
        self.compaction.stop();
        self.tables.database.persist(PersistMode::SyncAll).map_err(EngineError::new)?;
        let file = Arc::clone(&self.file);
        let commits = Commits { durable: self.commits, clean: true };
        drop(self);
        file.write_synced(commits).map_err(EngineError::new)
    }
}

impl Reader for FjallReader {
    fn ascend(&self, table: Table, from: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        each(keyspace(&self.keyspaces, table).range(from..), visit)
    }

    fn descend(&self, table: Table, below: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        each(keyspace(&self.keyspaces, table).range(..below).rev(), visit)
    }
}

fn each(entries: impl Iterator<Item = Guard>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
    for entry in entries {
        let (key, value) = entry.into_inner().map_err(EngineError::new)?;
        if visit(&key, &value) == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

impl std::fmt::Debug for FjallEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallEngine").field("commits", &self.commits).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for FjallReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallReader").finish_non_exhaustive()
    }
}
