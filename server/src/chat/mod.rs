//! The rules of the chat: who may do what, and what is answered. It knows
//! neither sockets nor files: a front passes requests to a [`ClientConnection`]
//! and takes replies and messages from it, and the [`Store`] keeps everything.
//!
//! | module | what it owns |
//! | --- | --- |
//! | `connection` | one connection: identity, requests in flight, reception |
//! | `accounts` | entering, creating, deleting, passwords |
//! | `attempts` | how many wrong passwords are put up with |
//! | `pace` | how fast a connection and a user may go |
//! | `passwords` | hashing, bounded and off the async threads |
//! | `listing` | `list` |
//! | `delivery_window` | the messages in flight to one connection |
//! | `reception` | the reception of one connection, between window and store |
//! | `replies` | what is answered to what the store has decided |
//! | `send_sessions` | which connection has which send session open |
//! | `taking` | what is queued, for readers that cannot acknowledge |
//! | `turns` | turns at what few can do at a time, by address |
//! | `control` | how a connection is told to end |

mod accounts;
mod attempts;
mod connection;
mod control;
pub(crate) mod delivery_window;
mod listing;
mod pace;
pub mod passwords;
mod reception;
mod replies;
mod send_sessions;
mod taking;
mod turns;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hark_protocol::limits::text_bytes_max;
use hark_protocol::{Code, Failure, Refusal, Reply, UserName};
use tokio::sync::Semaphore;

use crate::store::{Store, Unavailable};
use attempts::Attempts;
use pace::Users;
use passwords::Hasher;
use send_sessions::SendSessions;
use turns::Turns;

pub use connection::{ClientConnection, Output};
pub use control::{Control, Wish};
pub use delivery_window::NeverPushed;
pub use pace::{Pace, Rates};

/// Room for messages that are under way to the store, over all connections, in
/// units of [`UNIT_BYTES`]: 64 MiB.
const ROOM_UNITS: usize = 64 * 1024;

/// What one unit of room holds, in bytes. Every message takes one at least.
const UNIT_BYTES: usize = 1024;

/// What an operator can set.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The largest frame, in bytes; what a text may have follows from it.
    pub frame_bytes_max: usize,
    /// Names in one answer to `list`, at most.
    pub list_names_max: usize,
    /// Accounts have passwords, and nobody does nothing but `create`.
    pub require_password: bool,
    /// `create` is for everybody.
    pub open_registration: bool,
    /// Who may create and delete anybody, and set anybody's password, once it
    /// has entered its own. Nobody else creates an account of such a name, or
    /// gives one its first password.
    pub admins: Vec<UserName>,
    /// Who may watch the log, where that is a user: an account that only admins
    /// create, and give its first password, as one of theirs.
    pub log_watcher: Option<UserName>,
    /// Who may list the names.
    pub may_list: MayList,
    /// How fast connections and users may go.
    pub rates: Rates,
}

/// Who may list the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayList {
    /// Everybody; where passwords are required, every user.
    All,
    /// Every connection that is somebody.
    Users,
    /// Admins.
    Admins,
}

impl Rules {
    /// The longest text, in bytes.
    #[must_use]
    pub const fn text_bytes_max(&self) -> usize {
        text_bytes_max(self.frame_bytes_max)
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Chat {
    store: Arc<dyn Store>,
    rules: Rules,
    hasher: Hasher,
    attempts: Attempts,
    users: Users,
    send_sessions: Arc<SendSessions>,
    /// Room for messages that are under way to the store.
    room: Arc<Semaphore>,
    lists: Turns,
}

impl Chat {
    /// A chat by these rules over this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, rules: Rules) -> Self {
        Self {
            send_sessions: Arc::new(SendSessions::new(Arc::clone(&store))),
            hasher: Hasher::default(),
            attempts: Attempts::default(),
            users: Users::new(&rules.rates),
            room: Arc::new(Semaphore::new(ROOM_UNITS)),
            lists: listing::turns(),
            store,
            rules,
        }
    }

    /// The rules.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What a new connection from `address` is counted in; none where it may go
    /// as fast as it can.
    #[must_use]
    pub fn pace(&self, address: IpAddr) -> Option<Arc<Pace>> {
        (!self.rules.rates.spare(address)).then(|| Arc::new(Pace::new(&self.rules.rates)))
    }

    /// Whether the store works, as far as it knows.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.store.is_available()
    }
}

/// How a command can fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The request is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store cannot say.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Fault {
    fn refused<T>(code: Code, explanation: impl Into<std::borrow::Cow<'static, str>>) -> Result<T, Self> {
        Err(Self::Refused(Refusal::new(code, explanation)))
    }

    fn rate_limited<T>(wait: Duration, why: &str) -> Result<T, Self> {
        Err(Self::Refused(Refusal::rate_limited(wait, why)))
    }
}

impl From<Fault> for Reply {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(refusal) => Self::NotOk(refusal),
            Fault::Unavailable(unavailable) => {
                Self::Error { failure: Failure::Unavailable, explanation: unavailable.to_string().into() }
            }
        }
    }
}

/// Milliseconds since 1970; 0 for a clock that is set to before.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
