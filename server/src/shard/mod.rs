//! The shard: one commit loop around one ledger and one log. [`ShardStore`] is its
//! handle, and the store of a server without a cluster.
//!
//! | file | content |
//! | --- | --- |
//! | `queue` | commands and acknowledgements that wait for the commit thread |
//! | `commit`, `completion` | the commit thread: one frame for all waiting commands; operations of an administrator |
//! | `open`, `recovery` | the start, and reopening the log after a failure |
//! | `watchdog`, `in_flight` | slow commits, and their answers |
//! | `offline`, `snapshot` | stores that are open without being served |
//! | `check`, `salvage` | damage of a store, and recovery from it |
//! | `directory`, `readers`, `cursors` | committed state, for other threads |
//! | `rings` | messages for the attached members of rooms |
//! | `history` | reading rooms backwards |
//! | `retention` | the places up to which inboxes have expired |
//! | `merge` | inboxes in many small blocks |

pub(crate) mod check;
mod commit;
mod completion;
mod cursors;
mod directory;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod history;
mod in_flight;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod kept;
mod merge;
pub(crate) mod offline;
mod open;
mod queue;
pub(crate) mod readers;
mod recovery;
mod retention;
mod rings;
pub(crate) mod salvage;
pub(crate) mod snapshot;
#[cfg(test)]
mod tests;
mod watchdog;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use self::commit::{Closed, Committer};
use self::directory::Directory;
use self::in_flight::AnswersInFlight;
use self::open::CounterFloor;
use self::queue::{Queue, ShardCommand};
use self::readers::Readers;
use self::rings::OpenRings;
use self::watchdog::{Deadlines, Progress, Watchdog, Watched};
use hark_protocol::{Sequence, UserName};
use prometheus_client::registry::Registry;

use crate::ledger::Limits;
use crate::log::Opener;
use crate::log::disk::{DiskConfig, DiskOpener};
use crate::log::memory::MemoryOpener;
use crate::metrics::StoreMetrics;
use crate::store::{
    AdminOperation, Completer, FanOut, History, NAMELESS, Operation, Page, PastPage, Point,
    Position, ReadLimit, RoomOperation, Store, Unavailable,
};
use crate::sync::Mutex;

pub use self::open::StartError;
pub use crate::ledger::{COUNTER_MAX, Expiry, RoomLimits, SpaceLimits, WrongClock};

/// The limits and the durability of a shard.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Maximum number of accounts.
    pub accounts_max: usize,
    /// Maximum number of open or remembered sessions.
    pub sessions_max: usize,
    /// Maximum number of unacknowledged messages in an inbox.
    pub queued_messages_max: u64,
    /// Maximum bytes of their texts.
    pub queued_bytes_max: u64,
    /// The limits of rooms.
    pub rooms: RoomLimits,
    /// The limits on space.
    pub space: SpaceLimits,
    /// The limits on time.
    pub expiry: Expiry,
    /// The durability that an answer waits for.
    pub sync: Sync,
    /// A number that is not below any number ever used. If it is set, numbers do not
    /// depend on the clock, and a new store does not wait for the next second.
    pub numbers_after: Option<u64>,
    /// The size of a file of the log on disk; `None` for the store's current size.
    pub segment_bytes: Option<u64>,
}

/// The durability that an answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Stable storage: data survives a power loss.
    Always,
    /// The operating system: data survives only a crash of the process.
    Os,
}

impl ShardConfig {
    /// The defaults of the flags.
    pub const DEFAULT: Self = Self {
        accounts_max: 1_000_000,
        sessions_max: 250_000,
        queued_messages_max: 100_000,
        queued_bytes_max: 256 * 1024 * 1024,
        rooms: RoomLimits::DEFAULT,
        space: SpaceLimits::NONE,
        expiry: Expiry::NONE,
        sync: Sync::Always,
        numbers_after: None,
        segment_bytes: None,
    };

    /// For tools, which refuse no account.
    pub(crate) const UNBOUNDED: Self = Self {
        accounts_max: usize::MAX,
        ..Self::DEFAULT
    };

    const fn limits(&self) -> Limits {
        Limits {
            accounts_max: self.accounts_max,
            sessions_max: self.sessions_max,
            queued_messages_max: self.queued_messages_max,
            queued_bytes_max: self.queued_bytes_max,
            rooms: self.rooms,
            space: self.space,
            expiry: self.expiry,
        }
    }

    fn counter_floor(&self) -> CounterFloor {
        self.numbers_after
            .map_or(CounterFloor::Clock, CounterFloor::After)
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A store of one shard.
///
/// If it is dropped without [`Store::close`], operations in flight end with
/// [`super::store::Unavailable`], and the next start recovers. Dropping it waits for a
/// commit in flight.
///
/// [`Store::account`], [`Store::token`] and [`Store::names`] answer at once from committed state, without
/// pending commands.
#[derive(Debug)]
pub struct ShardStore {
    shared: Arc<SharedShard>,
    /// Idle accounts expire.
    notes_use: bool,
    _watchdog: Watchdog,
    // A lock only because the store may be dropped on any thread.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A read of a room: the room, the point before the page, and the limit.
type RoomRead = (u64, Point, ReadLimit);

/// State that the commit thread shares with other threads.
#[derive(Debug, Default)]
struct SharedShard {
    queue: Arc<Queue>,
    progress: Arc<Progress>,
    in_flight: Arc<AnswersInFlight>,
    directory: Directory,
    readers: Readers,
    /// The rooms with attached members.
    open_rings: OpenRings,
    /// Wakes the attached members of rooms.
    fan_out: FanOut,
    /// The pages of rooms that are being read, and what waits for each: many members may be at
    /// the same point.
    // A lock, because reads run on other threads. It is held for one lookup.
    room_reads: Mutex<HashMap<RoomRead, Vec<Completer<Page>>>>,
    /// The log is open.
    is_open: AtomicBool,
    metrics: StoreMetrics,
    /// Whether sends are refused for lack of space.
    is_low_on_space: AtomicBool,
}

impl ShardStore {
    /// Opens a store over a log. Blocks until it is replayed.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn open(opener: Arc<dyn Opener>, config: ShardConfig) -> Result<Self, StartError> {
        Self::start(opener, config, Deadlines::DEFAULT)
    }

    /// Opens the store in a folder, and creates it if there is none.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn on_disk(folder: &Path, config: ShardConfig) -> Result<Self, StartError> {
        let layout = DiskConfig {
            segment_bytes: config.segment_bytes,
            ..DiskConfig::default()
        };
        Self::open(Arc::new(DiskOpener::with_config(folder, layout)), config)
    }

    /// Returns a store in memory. Its data is lost when it is dropped.
    ///
    /// # Errors
    /// [`StartError::Clock`] and [`StartError::Thread`].
    pub fn memory(config: ShardConfig) -> Result<Self, StartError> {
        Self::open(Arc::new(MemoryOpener), config)
    }

    fn start(
        opener: Arc<dyn Opener>,
        config: ShardConfig,
        deadlines: Deadlines,
    ) -> Result<Self, StartError> {
        let opened = open::open(&*opener, config.limits(), config.counter_floor())?;
        let shared = Arc::<SharedShard>::default();
        let watched = Watched {
            progress: Arc::clone(&shared.progress),
            queue: Arc::clone(&shared.queue),
            in_flight: Arc::clone(&shared.in_flight),
        };
        let watchdog = Watchdog::start(watched, deadlines).map_err(StartError::Thread)?;
        let notes_use = config.expiry.accounts_after.is_some();
        let committer = Committer::new(config, Arc::clone(&shared), opener, opened);
        let commit = move || {
            // After a panic the ledger cannot be trusted. Answered operations survive the
            // process, and the next one recovers them.
            let Ok(closed) = panic::catch_unwind(AssertUnwindSafe(|| committer.run())) else {
                tracing::error!("commit thread panicked: aborting");
                std::process::abort();
            };
            // Answered after all handles of the log are released.
            if let Some(closed) = closed {
                Closed::complete(closed);
            }
        };
        let thread = thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(commit);
        let thread = thread.map_err(StartError::Thread)?;
        Ok(Self {
            shared,
            notes_use,
            _watchdog: watchdog,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Reads on a blocking thread of the runtime, or on the calling thread if there is no
    /// runtime.
    fn read_blocking(
        &self,
        log: u64,
        after: Position,
        limit: ReadLimit,
        complete: impl FnOnce(Result<Page, Unavailable>) + Send + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        run_blocking(move || {
            let (page, is_scattered) = shared.readers.read(log, after, limit);
            complete(page);
            if is_scattered && let Some(merged) = shared.readers.merge(log, after) {
                shared.queue.push(ShardCommand::Replace(Box::new(merged)));
            }
        });
    }

    /// Reads a room, as [`Self::read_blocking`] does. Equal reads at the same time are one.
    fn read_room_blocking(
        &self,
        room: u64,
        after: Point,
        limit: ReadLimit,
        completer: Completer<Page>,
    ) {
        let key = (room, after, limit);
        match self.shared.room_reads.lock().entry(key) {
            Entry::Occupied(mut reading) => return reading.get_mut().push(completer),
            Entry::Vacant(vacant) => {
                vacant.insert(Vec::new());
            }
        }
        let shared = Arc::clone(&self.shared);
        self.read_blocking(room, after.into(), limit, move |page| {
            let others = shared.room_reads.lock().remove(&key);
            for other in others.into_iter().flatten() {
                other.complete(page.clone());
            }
            completer.complete(page);
        });
    }

    /// Reads a room backwards, as [`Self::read_blocking`] does.
    fn read_back_blocking(
        &self,
        history: History,
        before: Sequence,
        limit: ReadLimit,
        completer: Completer<PastPage>,
    ) {
        let shared = Arc::clone(&self.shared);
        run_blocking(move || {
            completer.complete(shared.readers.read_back(history, before, limit));
        });
    }
}

/// Runs a read on a blocking thread of the runtime, or at once if there is none.
fn run_blocking(read: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        // The caller awaits the outcome instead of the thread.
        Ok(runtime) => drop(runtime.spawn_blocking(read)),
        Err(_) => read(),
    }
}

impl Store for ShardStore {
    fn submit(&self, operation: Operation) {
        match operation {
            Operation::Account(name, completer) => {
                completer.complete(self.shared.directory.account(&name));
            }
            Operation::Names(after, limit, completer) => {
                completer.complete(self.shared.directory.names(after.as_ref(), limit));
            }
            Operation::Read {
                account,
                after,
                limit,
                completer,
            } => self.read_blocking(account.incarnation, after, limit, |page| {
                completer.complete(page);
            }),
            Operation::Acknowledge(account, position) => {
                self.shared.queue.acknowledge(&account, NAMELESS, position);
            }
            Operation::Room(RoomOperation::AcknowledgeInbox(account, device, position)) => {
                self.shared.queue.acknowledge(&account, device, position);
            }
            Operation::Room(RoomOperation::AcknowledgeRoom(account, device, room, point)) => {
                self.shared
                    .queue
                    .acknowledge_room(&account, device, room, point);
            }
            Operation::Room(RoomOperation::Read {
                room,
                after,
                limit,
                completer,
            }) => self.read_room_blocking(room, after, limit, completer),
            Operation::Room(RoomOperation::ReadBack {
                history,
                before,
                limit,
                completer,
            }) => self.read_back_blocking(history, before, limit, completer),
            // Accounts expire only if there is a limit.
            Operation::Admin(AdminOperation::NoteUse(_)) if !self.notes_use => {}
            Operation::Room(RoomOperation::Token(digest, completer)) => {
                completer.complete(self.shared.directory.token(&digest));
            }
            // The chat takes over sessions of one server.
            Operation::OnTakeover(..) => {}
            attach @ Operation::Room(RoomOperation::Attach(..)) => {
                self.shared.fan_out.start();
                self.shared.queue.push(ShardCommand::Operation(attach));
            }
            change => self.shared.queue.push(ShardCommand::Operation(change)),
        }
    }

    fn has_rooms(&self) -> bool {
        true
    }

    fn has_cursors(&self) -> bool {
        true
    }

    fn attached_devices(&self, room: &UserName) -> usize {
        self.shared.open_rings.attached_devices(room)
    }

    fn is_available(&self) -> bool {
        self.shared.is_open.load(Ordering::Acquire) && !self.shared.progress.is_slow()
    }

    fn accounts(&self) -> Option<usize> {
        Some(self.shared.directory.len())
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    fn is_low_on_space(&self) -> bool {
        self.shared.is_low_on_space.load(Ordering::Acquire)
    }
}

impl Drop for ShardStore {
    fn drop(&mut self) {
        self.shared.queue.stop();
        let Some(thread) = self.thread.get_mut().take() else {
            return;
        };
        if self.shared.queue.is_stalled() {
            tracing::error!("commit still stalled: not waiting for it");
        } else if thread.join().is_err() {
            tracing::error!("commit thread panicked");
        }
    }
}
