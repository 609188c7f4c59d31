//! The rules of the chat: permissions, limits and replies. It knows neither sockets nor
//! files: a front passes requests to a [`ClientConnection`] and polls it for replies and
//! messages; the [`Store`] holds all durable state.
//!
//! | module | owns |
//! | --- | --- |
//! | `connection` | one connection: identity, requests in flight, delivery |
//! | `accounts` | login, creation, deletion, passwords |
//! | `audit` | the account events of the log |
//! | `login_limiter` | the limits on wrong passwords |
//! | `rate_limiter` | the rate limits of connections and users |
//! | `passwords` | hashing, bounded and off the async threads |
//! | `listing` | `list` |
//! | `delivery_window` | the messages in flight to one connection |
//! | `delivery` | the delivery to one connection, between window and store |
//! | `rooms` | the commands of rooms and devices |
//! | `tokens` | secrets of tokens, their rights, and their connections |
//! | `inbox` | access to an inbox without a delivery |
//! | `replies` | the replies to requests that the store has decided |
//! | `send_sessions` | the open send sessions and their connections |
//! | `fetch_and_ack` | destructive reads, for clients that cannot acknowledge |
//! | `fair_semaphore` | permits for expensive work, fair between addresses |
//! | `shutdown` | the signal that ends a connection from outside |

mod accounts;
mod audit;
mod connection;
mod delivery;
pub(crate) mod delivery_window;
mod fair_semaphore;
mod fetch_and_ack;
mod inbox;
mod listing;
mod login_limiter;
pub mod passwords;
mod rate_limiter;
mod replies;
mod rooms;
mod send_sessions;
mod shutdown;
#[cfg(test)]
mod tests;
mod tokens;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use hark_protocol::limits::text_bytes_max;
use hark_protocol::{Code, Failure, Refusal, Reply, UserName};
use tokio::sync::{Semaphore, watch};

use crate::limit::network;
use crate::metrics::Metrics;
use crate::store::{Store, Unavailable, UserLimits, unix_ms};
use fair_semaphore::FairSemaphore;
use login_limiter::LoginLimiter;
use passwords::Hasher;
use rate_limiter::UserRateLimiter;
use send_sessions::SendSessions;
use tokens::TokenConnections;

pub use connection::{ClientConnection, Output};
pub use delivery_window::NeverPushed;
pub use inbox::{Inbox, UnreadLog, UnreadPage};
pub use rate_limiter::{RateLimiter, Rates};
pub(crate) use replies::delivery;
pub use rooms::MayCreateRooms;
pub use shutdown::{ConnectionUse, Shutdown, ShutdownSignal};

/// The budget for messages on their way to the store, over all connections, in units of
/// [`UNIT_BYTES`]: 64 MiB.
const BUDGET_UNITS: usize = 64 * 1024;

/// The size of one unit of the budget, in bytes. Every message takes at least one unit.
const UNIT_BYTES: usize = 1024;

/// The settings of an operator.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The largest frame, in bytes. It determines the longest text.
    pub frame_bytes_max: usize,
    /// The maximum number of names in one answer to `list`.
    pub list_names_max: usize,
    /// Whether every account has a password, and an anonymous connection can only
    /// `create`.
    pub require_password: bool,
    /// Whether anyone may `create`.
    pub open_registration: bool,
    /// The admins, which may create and delete any account and set any password, after a
    /// login with a password. Their names are reserved: only admins and the operator
    /// create such an account or give it its first password.
    pub admins: Vec<UserName>,
    /// The user that may watch the log. Its name is reserved, too.
    pub log_watcher: Option<UserName>,
    /// The permission to `list`.
    pub may_list: MayList,
    /// The permission to create rooms.
    pub rooms: MayCreateRooms,
    /// The rates of connections and users.
    pub rates: Rates,
}

/// The permission to `list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayList {
    /// Anyone; if passwords are required, users that are logged in.
    All,
    /// Users that are logged in.
    Users,
    /// Admins.
    Admins,
}

impl Rules {
    /// Returns the length of the longest text, in bytes.
    #[must_use]
    pub const fn text_bytes_max(&self) -> usize {
        text_bytes_max(self.frame_bytes_max)
    }
}

/// The state shared by all connections.
#[derive(Debug)]
pub struct Chat {
    store: Arc<dyn Store>,
    /// Replaced by [`Self::update_rules`].
    rules: ArcSwap<Rules>,
    hasher: Hasher,
    login_limiter: LoginLimiter,
    users: UserRateLimiter,
    send_sessions: Arc<SendSessions>,
    token_connections: Arc<TokenConnections>,
    /// The budget for messages on their way to the store.
    budget: Arc<Semaphore>,
    /// Permits for lists.
    lists: FairSemaphore,
    /// Permits for reading the past messages of rooms.
    histories: FairSemaphore,
    metrics: Metrics,
}

impl Chat {
    /// Returns a chat over `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, rules: Rules) -> Self {
        Self {
            send_sessions: Arc::new(SendSessions::new(Arc::clone(&store))),
            token_connections: Arc::default(),
            hasher: Hasher::default(),
            login_limiter: LoginLimiter::default(),
            users: UserRateLimiter::new(&rules.rates),
            budget: Arc::new(Semaphore::new(BUDGET_UNITS)),
            lists: listing::permits(),
            histories: rooms::history_permits(),
            metrics: Metrics::new(|registry| store.register_metrics(registry)),
            store,
            rules: ArcSwap::from_pointee(rules),
        }
    }

    /// Returns the current rules. The guard is for a short use, not across an `.await`.
    #[must_use]
    pub fn rules(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }

    /// Changes the rules that can change while clients are connected: all but the sizes and
    /// the security of the server. Open connections keep their rates.
    pub fn update_rules(&self, rules: Rules) {
        let former = self.rules.load_full();
        let rules = Rules {
            frame_bytes_max: former.frame_bytes_max,
            require_password: former.require_password,
            log_watcher: former.log_watcher.clone(),
            ..rules
        };
        self.users.set_rates(&rules.rates);
        self.rules.store(Arc::new(rules));
    }

    /// Sets or removes the rates of one user, which replace those of all users.
    pub fn set_user_limits(&self, user: &UserName, limits: Option<&UserLimits>) {
        self.users.set_own(user, limits);
    }

    /// Returns the figures.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the number of accounts, if the store knows it.
    #[must_use]
    pub fn accounts(&self) -> Option<usize> {
        self.store.accounts()
    }

    /// Returns the number of passwords that are hashed or wait for it.
    #[must_use]
    pub fn hashes_waiting(&self) -> usize {
        self.hasher.waiting()
    }

    /// Returns the rate limiter of a new connection from `address`; none if it is
    /// exempt.
    #[must_use]
    pub fn rate_limiter(&self, address: IpAddr) -> Option<Arc<RateLimiter>> {
        let rates = self.rules().rates;
        (!rates.is_exempt(address)).then(|| Arc::new(RateLimiter::new(&rates)))
    }

    /// Returns the epoch of new connections, if the store has epochs.
    #[must_use]
    pub fn epoch(&self) -> Option<watch::Receiver<u64>> {
        self.store.epoch()
    }

    /// Returns the network of an address, unless it is exempt from quotas.
    fn network(&self, address: IpAddr) -> Option<IpAddr> {
        (!self.rules().rates.is_exempt(address)).then(|| network(address))
    }

    /// Returns whether the store is healthy, as far as it knows.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.store.is_available()
    }

    /// Returns whether the store refuses sends for lack of space.
    #[must_use]
    pub fn is_low_on_space(&self) -> bool {
        self.store.is_low_on_space()
    }
}

/// The failure of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The request is refused; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The outcome is unknown.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Fault {
    fn refused<T>(
        code: Code,
        explanation: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Result<T, Self> {
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
            Fault::Unavailable(unavailable) => Self::Error {
                failure: Failure::Unavailable,
                explanation: unavailable.to_string().into(),
            },
        }
    }
}

/// Returns the milliseconds since 1970, or 0 if the clock is before that.
pub(crate) fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}
