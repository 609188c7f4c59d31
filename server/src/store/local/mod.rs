//! The store on this machine: one set of rules over two engines, one in memory
//! and one on disk.
//!
//! | file | what it owns |
//! | --- | --- |
//! | `queue` | what waits for the commit thread |
//! | `commit` | the commit thread: one batch and one sync for all that waits |
//! | `ledger`, `sessions`, `changes` | the rules, without I/O and without a clock |
//! | `record` | how records are written as bytes |
//! | `load`, `recovery` | the start, and starting again after a failure |
//! | `directory`, `readers` | what other threads may see: what is committed |
//! | `folder` | the files beside the engine's |
//! | `engine` | the engines |

mod changes;
mod commit;
mod directory;
mod engine;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod ledger;
mod load;
mod queue;
mod readers;
mod record;
mod recovery;
mod sessions;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use hark_protocol::{SessionToken, UserName};

use self::commit::{Closed, Committer};
use self::directory::{Directory, Entry};
use self::engine::{EmbeddedOpener, Live, MemoryOpener, Opener};
use self::folder::Folder;
use self::queue::{Command, Queue};
use self::readers::Readers;
use super::{
    Account, AccountEntry, Append, Created, Decide, Outcome, Page, PasswordHash, Pending, Position,
    ReadLimit, Receiver, Store,
};

pub use self::engine::{ENGINE_LOG, OPEN_FILES_MAX};
pub use self::folder::OpenError;

/// The limits of a local store, and how durable it is.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Accounts, at most.
    pub accounts_max: usize,
    /// Sessions that are open or remembered, at most.
    pub sessions_max: usize,
    /// Messages in an inbox that are not acknowledged, at most.
    pub queued_messages_max: u64,
    /// Bytes of their texts, at most.
    pub queued_bytes_max: u64,
    /// What an answer waits for.
    pub sync: Sync,
    /// Open a store although something is missing that was on stable storage.
    /// It is logged, and what is left is kept.
    pub accept_data_loss: bool,
}

/// What an answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Stable storage: it survives the loss of power.
    Always,
    /// The operating system: it survives the end of the process, and no more.
    Os,
}

impl LocalConfig {
    /// What holds unless an operator says otherwise.
    pub const DEFAULT: Self = Self {
        accounts_max: 1_000_000,
        sessions_max: 250_000,
        queued_messages_max: 100_000,
        queued_bytes_max: 256 * 1024 * 1024,
        sync: Sync::Always,
        accept_data_loss: false,
    };
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A store on this machine.
///
/// Where it is dropped without [`Store::close`], what is under way ends as
/// [`super::Unavailable`], and the next start recovers. Dropping it waits for a commit
/// that is being written.
///
/// [`Store::account`] and [`Store::names`] answer at once, from what has been
/// committed: what was asked for and is not decided yet they do not see.
#[derive(Debug)]
pub struct LocalStore {
    shared: Arc<Shared>,
    // A lock only because a drop may come from any thread.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the commit thread shares with all others.
#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    directory: Directory,
    readers: Readers,
    live: Arc<Live>,
}

impl LocalStore {
    /// Opens the store in a folder, which is made where there is none. Blocks
    /// until everything is loaded, and recovered after an unclean end.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, config: LocalConfig) -> Result<Self, OpenError> {
        let live = Arc::<Live>::default();
        let folder = Folder::open(path)?;
        let opener = EmbeddedOpener::new(folder, Arc::clone(&live), config.accept_data_loss);
        Self::start(Arc::new(opener), live, config)
    }

    /// A store in memory, which is gone when it is dropped.
    ///
    /// # Errors
    /// [`OpenError::Io`] where there can be no thread for it.
    pub fn memory(config: LocalConfig) -> Result<Self, OpenError> {
        let live = Arc::<Live>::default();
        Self::start(Arc::new(MemoryOpener::new(Arc::clone(&live))), live, config)
    }

    fn start(opener: Arc<dyn Opener>, live: Arc<Live>, config: LocalConfig) -> Result<Self, OpenError> {
        let (engine, loaded) = load::open(&*opener)?;
        let shared = Arc::new(Shared {
            queue: Arc::default(),
            directory: Directory::default(),
            readers: Readers::new(Arc::clone(&live), config.accept_data_loss),
            live,
        });
        let path = opener.path().to_owned();
        let committer = Committer::new(config, Arc::clone(&shared), opener, engine, loaded);
        let commit = move || {
            // A bug in here leaves nobody who decides anything: nothing that was
            // answered is lost by the end of the process, and the next one serves.
            let Ok(closed) = panic::catch_unwind(AssertUnwindSafe(|| committer.run())) else {
                tracing::error!("the commit thread panicked: the process ends");
                std::process::abort();
            };
            // It says that it has closed when it has let go of everything.
            if let Some(closed) = closed {
                Closed::pronounce(closed);
            }
        };
        let thread = thread::Builder::new().name("store-commit".to_owned()).spawn(commit);
        let thread = thread.map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    fn ask<T>(&self, command: impl FnOnce(Decide<T>) -> Command) -> Pending<T> {
        let (decide, pending) = Pending::new();
        self.shared.queue.push(command(decide));
        pending
    }
}

impl Store for LocalStore {
    fn create(&self, name: &UserName, password: Option<PasswordHash>) -> Pending<Created> {
        self.ask(|decide| Command::Create(name.clone(), password, decide))
    }

    fn account(&self, name: &UserName) -> Pending<Option<AccountEntry>> {
        Pending::ready(self.shared.directory.account(name))
    }

    fn set_password(&self, account: &Account, old: Option<PasswordHash>, new: PasswordHash) -> Pending<bool> {
        self.ask(|decide| Command::SetPassword { account: account.clone(), old, new, decide })
    }

    fn delete(&self, account: &Account) -> Pending<bool> {
        self.ask(|decide| Command::Delete(account.clone(), decide))
    }

    fn names(&self, after: Option<&UserName>, limit: usize) -> Pending<Vec<UserName>> {
        Pending::ready(self.shared.directory.names(after, limit))
    }

    fn append_all(&self, appends: &mut Vec<(Append, Decide<Outcome>)>) {
        self.shared.queue.push(Command::Appends(std::mem::take(appends).into_iter()));
    }

    fn receive(&self, account: &Account) -> Pending<Option<Receiver>> {
        self.ask(|decide| Command::Receive { account: account.clone(), takes_over: true, decide })
    }

    fn receive_if_free(&self, account: &Account) -> Pending<Option<Receiver>> {
        self.ask(|decide| Command::Receive { account: account.clone(), takes_over: false, decide })
    }

    /// Reads on a thread of the runtime that may block; without a runtime on
    /// the caller's.
    fn read(&self, account: &Account, after: Position, limit: ReadLimit) -> Pending<Page> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return Pending::ready(self.shared.readers.read(account, after, limit));
        };
        let (decide, pending) = Pending::new();
        let (shared, account) = (Arc::clone(&self.shared), account.clone());
        // Whoever reads waits for the outcome; nobody waits for the thread.
        drop(runtime.spawn_blocking(move || decide.decide(shared.readers.read(&account, after, limit))));
        pending
    }

    fn acknowledge(&self, account: &Account, position: Position) {
        self.shared.queue.acknowledge(account, position);
    }

    fn open_session(&self, session: &SessionToken, from: Option<IpAddr>) -> Pending<bool> {
        self.ask(|decide| Command::OpenSession(session.clone(), from, decide))
    }

    fn close_session(&self, session: &SessionToken) {
        self.shared.queue.push(Command::CloseSession(session.clone()));
    }

    fn is_available(&self) -> bool {
        self.shared.live.is_known()
    }

    fn close(&self) -> Pending<()> {
        self.ask(Command::Close)
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.shared.queue.stop();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the commit thread panicked");
        }
    }
}
