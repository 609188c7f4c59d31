//! The engine of a durable server: fjall, a log-structured merge tree with a
//! journal. Only this file and those of its folder name it, and they know what
//! has to be known about it:
//!
//! - A failed write or sync poisons it for good: it is dropped and opened again.
//! - It takes what it finds in its journals for durable, and for all there was.
//!   So [`journal`] checks them before the engine sees them, and each commit
//!   carries a count, which is compared with the one in [`CommitsFile`].
//! - It makes anew what it misses, and deletes what it does not know. So
//!   [`inventory`] checks that everything is there, and is what was written.
//! - A commit waits, without end, for workers that a full disk has killed. So
//!   nothing is committed while they lag behind; see [`FjallEngine::catch_up`].

mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::store::local) mod fuzzing {
    pub(in crate::store::local) use super::inventory::check_any as check_inventory;
    pub(in crate::store::local) use super::journal::check_any as check_journal;
}
mod inventory;
mod journal;
mod rebuild;

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
use crate::store::local::record::{self, COMMITS_KEY, NUMBER_KEY};

/// The filter for what the engine logs. That is for its own authors, such as an
/// error where a merge gave way to commits; the store says what matters of it.
pub const ENGINE_LOG: &str = "fjall=off,lsm_tree=off";

/// Bytes that are collected in memory before they become a file. Small, since
/// what is in memory is read back from the journal at the next start.
const MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The same of tables of which each commit writes a part anew, while all that
/// was written stays in memory until then.
const SMALL_MEMTABLE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of journals before the tables that hold them back are written out. It
/// is the least that the engine takes, and bounds the time that a start takes.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes of blocks that are kept in memory for reading. The system keeps more.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Files that are held open, at most, but for a few.
pub const OPEN_FILES_MAX: usize = 256;

/// Bytes of dead messages below which it is not worth while to merge files.
const DEAD_BYTES_MIN: u64 = 32 * 1024 * 1024;

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
    /// A merge was ended early, and is to begin again.
    merge_owed: bool,
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
        let has_engine = self.folder.has_engine()?;
        let (file, commits) = match self.folder.commits()? {
            Some(file) => {
                let commits = file.read().map_err(|source| self.commits_error(source))?;
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

    /// Replaces an engine that cannot be read everywhere by one with what can.
    fn rebuild(&self, damaged: &str) -> Result<(), OpenError> {
        // Nobody is known to live, so that nothing is left out by a merge.
        let (live, compaction) = (Arc::<Live>::default(), Compaction::default());
        let from = open_tables(&self.folder.engine(), &live, &compaction);
        let from = from.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "nothing of it can be read");
            self.folder.ruined(damaged)
        })?;
        self.folder.replace_engine(|path| {
            let to = open_tables(path, &live, &compaction)?;
            rebuild::copy(&from, &to).map_err(|error| self.engine(error))?;
            drop((from, to));
            Ok(())
        })
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

    fn commits_error(&self, source: std::io::Error) -> OpenError {
        OpenError::Io { path: self.folder.commits_path(), source }
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
        let damaged = journal::check(&self.folder.engine(), !known.clean)?;
        if !damaged.is_empty() {
            self.accept(damaged.join(", "), None)?;
        }
        let unreadable = inventory::check(&self.folder)?;
        if !unreadable.is_empty() {
            self.accept(unreadable.join(", "), None)?;
        }
        if !known.clean || !damaged.is_empty() {
            journal::write_anew(&self.folder.engine())?;
        }
        if !unreadable.is_empty() {
            self.rebuild(&unreadable.join(", "))?;
        }
        // From here on it takes a close in order to be clean again.
        let unclean = Commits { clean: false, ..known };
        file.write_synced(unclean).map_err(|source| self.commits_error(source))?;
        let compaction = Compaction::default();
        let tables = open_tables(&self.folder.engine(), &self.live, &compaction)?;
        let commits = self.count(&tables)?;
        if commits < known.durable {
            let lost = known.durable - commits;
            self.accept(format!("its last {lost} commits are gone"), Some(lost))?;
        }
        let unclean = Commits { durable: commits, clean: false };
        file.write_synced(unclean).map_err(|source| self.commits_error(source))?;
        Ok(Box::new(FjallEngine { compaction, merge_owed: false, tables, commits, file: Arc::new(file) }))
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
        let open = |table| database.keyspace(keyspace_name(table), || options(table));
        let [messages, accounts, cursors, sessions, meta] = Table::ALL.map(open);
        Ok(Tables { keyspaces: [messages?, accounts?, cursors?, sessions?, meta?], database })
    }));
    match opened {
        Ok(tables) => tables.map_err(|e: fjall::Error| engine(e.into())),
        Err(_) => Err(engine("it met a file that it does not know".into())),
    }
}

fn options(table: Table) -> KeyspaceCreateOptions {
    let memtable_bytes_max = match table {
        Table::Messages | Table::Accounts => MEMTABLE_BYTES_MAX,
        Table::Cursors | Table::Sessions | Table::Meta => SMALL_MEMTABLE_BYTES_MAX,
    };
    KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(memtable_bytes_max)
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
            self.merge_owed |= self.compaction.stop();
            self.tables.database.persist(PersistMode::Buffer).map_err(EngineError::new)?;
            thread::sleep(CATCH_UP_INTERVAL);
        }
        // What gave way begins again when nothing is waiting to be written out.
        if self.merge_owed && self.tables.keyspaces.iter().all(|k| k.sealed_memtable_count() == 0) {
            self.compact();
        }
        Ok(())
    }
}

fn is_behind(keyspace: &Keyspace) -> bool {
    keyspace.sealed_memtable_count() > SEALED_TABLES_MAX || keyspace.l0_table_count() > UNMERGED_FILES_MAX
}

impl Engine for FjallEngine {
    fn commit(&mut self, batch: &mut Batch, durability: Durability) -> Result<(), EngineError> {
        self.catch_up()?;
        let mode = match durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Machine => PersistMode::SyncData,
        };
        let database = self.tables.database.clone();
        let mut writes =
            OwnedWriteBatch::with_capacity(database, batch.changes.len() + 2).durability(Some(mode));
        for change in batch.changes.drain(..) {
            let keyspace = self.tables.keyspace(change.table);
            match change.value {
                Some(value) => writes.insert(keyspace, change.key, value),
                None => writes.remove(keyspace, change.key),
            }
        }
        self.commits += 1;
        let count = record::encode_number(COMMITS_KEY, self.commits);
        writes.insert(self.tables.keyspace(Table::Meta), COMMITS_KEY, count);
        // Nothing but the engine's own work takes numbers besides this thread.
        let number = record::encode_number(NUMBER_KEY, self.tables.database.seqno());
        writes.insert(self.tables.keyspace(Table::Meta), NUMBER_KEY, number);
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

    fn message_bytes(&self) -> u64 {
        // What is not in a file yet is hardly anything but messages.
        self.tables.keyspace(Table::Messages).disk_space() + self.tables.database.write_buffer_size()
    }

    fn dead_bytes_min(&self) -> u64 {
        DEAD_BYTES_MIN
    }

    fn compact(&mut self) {
        self.merge_owed = false;
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
