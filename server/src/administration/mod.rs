//! Administration of a running server: what an administrator asks, as calls on the parts of
//! the server. It never reads a text.
//!
//! | file | content |
//! | --- | --- |
//! | `service` | `hark.v1.Admin`: translation and the log of its calls |
//! | `messages` | its messages, from the types of the server |
//! | `socket` | the socket for `harkd admin` |
//! | `check` | reading every message beside traffic |
//! | `top` | the users that use the server most |
//! | `backup` | a copy of the store beside traffic |

mod backup;
mod check;
mod messages;
mod service;
mod socket;
mod top;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hark_protocol::{Code, Password, Refusal, RoomName, Sequence, UserName};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::bans::{Ban, Bans};
use crate::chat::{Chat, Fault, now_ms, passwords};
use crate::logging::LogLevel;
use crate::network::Network;
use crate::reload::Reloaded;
use crate::server::{KickTarget, Server};
use crate::store::{
    AccountEntry, InboxInfo, Kick, Peer, Position, Purged, ReadLimit, RoomInfo, ServerDescription,
    Store, StoreUsage, Unavailable, UserLimits,
};

pub(crate) use backup::{COMPLETE, STORE};
pub(crate) use service::{AdminService, AdminSlot};
pub(crate) use socket::{AdminSocket, FILE as SOCKET_FILE};

/// How long after a suspension or a ban its kick is repeated, for logins and connections
/// that overlapped with it.
const SECOND_KICK: Duration = Duration::from_millis(100);

/// The maximum number of entries in one page.
const PAGE_MAX: usize = 1000;

/// A request to reload the configuration, and the place of its result.
pub(crate) type ReloadRequest = oneshot::Sender<anyhow::Result<Reloaded>>;

/// The parts of a server that its administrators use.
#[derive(Debug)]
pub(crate) struct Administration {
    pub(crate) chat: Arc<Chat>,
    pub(crate) store: Arc<dyn Store>,
    /// The folder of the store, if it has one.
    pub(crate) folder: Option<PathBuf>,
    /// The path of the socket for `harkd admin`, if there is one.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) server: Arc<Server>,
    pub(crate) bans: Arc<Bans>,
    pub(crate) log: LogLevel,
    pub(crate) reload: mpsc::Sender<ReloadRequest>,
    /// Notified to shut the server down.
    pub(crate) drain: Arc<Notify>,
    pub(crate) started: Instant,
    /// The permit of a backup.
    pub(crate) backups: Arc<Semaphore>,
    /// The permit of a check.
    pub(crate) checks: Arc<Semaphore>,
    /// The permit of a password hash.
    pub(crate) passwords: Semaphore,
}

/// A page of inboxes.
#[derive(Debug)]
struct UserPage {
    users: Vec<InboxInfo>,
    has_more: bool,
}

impl Administration {
    async fn usage(&self) -> Result<StoreUsage, Unavailable> {
        self.store.usage().await
    }

    async fn users(&self, after: Option<&UserName>, limit: usize) -> Result<UserPage, Unavailable> {
        let limit = limit.clamp(1, PAGE_MAX);
        let mut names = self.store.names(after, limit + 1).await?;
        let has_more = names.len() > limit;
        names.truncate(limit);
        let users = self.store.inspect(names).await?;
        Ok(UserPage { users, has_more })
    }

    async fn user(&self, name: UserName) -> Result<InboxInfo, Fault> {
        let mut found = self.store.inspect(vec![name.clone()]).await?;
        found.pop().ok_or_else(|| no_such_user(&name))
    }

    /// Suspends or resumes an account. Returns whether that changed anything, and the number
    /// of connections that were closed.
    async fn set_suspended(
        &self,
        name: UserName,
        is_suspended: bool,
    ) -> Result<(bool, usize), Fault> {
        let entry = self.account(&name).await?;
        if !self
            .store
            .set_suspended(&entry.account, is_suspended)
            .await?
        {
            return Err(no_such_user(&name));
        }
        let mut closed = 0;
        if is_suspended {
            closed = self.kick_twice(&KickTarget::User(name)).await?;
        }
        Ok((entry.is_suspended != is_suspended, closed))
    }

    /// Returns the arrival of the oldest unread message of an account, in milliseconds since
    /// 1970; 0 if there is none, or if it cannot be read.
    async fn oldest_unread_ms(&self, name: &UserName) -> u64 {
        const FIRST: ReadLimit = ReadLimit {
            messages: 1,
            bytes: 1,
        };
        let Ok(entry) = self.account(name).await else {
            return 0;
        };
        let page = self.store.read(&entry.account, Position::default(), FIRST);
        let page = page.await.unwrap_or_default();
        page.messages.first().map_or(0, |message| message.time_ms)
    }

    /// Sets limits of an account, and returns those in effect.
    async fn set_limits(
        &self,
        name: UserName,
        limits: UserLimits,
        is_reset: bool,
    ) -> Result<UserLimits, Fault> {
        let account = self.account(&name).await?.account;
        let limits = self.store.set_limits(&account, limits, is_reset).await?;
        let limits = limits.ok_or_else(|| no_such_user(&name))?;
        let own = (limits != UserLimits::default()).then_some(&limits);
        self.chat.set_user_limits(&name, own);
        // A login that overlapped has set the former ones.
        tokio::time::sleep(SECOND_KICK).await;
        self.chat.set_user_limits(&name, own);
        Ok(limits)
    }

    async fn room(&self, name: &RoomName) -> Result<RoomInfo, Fault> {
        let found = self.store.room(name).await?;
        let why = || Refusal::new(Code::NoSuchUser, format!("there is no room {name}"));
        found.ok_or_else(|| why().into())
    }

    /// Removes the messages of a user or a room up to a number; all of them if it is 0.
    async fn purge(&self, name: &UserName, up_to: u64) -> Result<Purged, Fault> {
        const LAST: ReadLimit = ReadLimit {
            messages: 1,
            bytes: 1,
        };
        let found = self.store.messages(name).await?;
        let why = || Refusal::new(Code::NoSuchUser, format!("there is no user or room {name}"));
        let history = found.ok_or_else(why)?;
        let through = match up_to.checked_add(1) {
            Some(next) if up_to > 0 && up_to < history.last.sequence.0 => {
                let page = self.store.read_back(history, Sequence(next), LAST).await?;
                page.messages.first().map(|message| message.position)
            }
            _ => Some(history.last),
        };
        Ok(match through {
            Some(through) => self.store.purge(history.room, through).await?,
            None => Purged::default(),
        })
    }

    /// Closes connections, and those that overlapped with a change that keeps out new ones.
    /// Returns their number.
    async fn kick_twice(&self, target: &KickTarget) -> Result<usize, Unavailable> {
        let closed = self.kick(target).await?;
        tokio::time::sleep(SECOND_KICK).await;
        Ok(closed + self.kick(target).await?)
    }

    /// Closes connections, also those at the other servers of a cluster, and returns their
    /// number. The id of a connection is one of this server.
    async fn kick(&self, target: &KickTarget) -> Result<usize, Unavailable> {
        let closed = self.server.kick(target);
        let elsewhere = match target {
            KickTarget::Connection(_) => return Ok(closed),
            KickTarget::User(user) => Kick::User(user.clone()),
            KickTarget::Network(network) => Kick::Network(network.to_string()),
        };
        Ok(closed + self.store.kick_elsewhere(elsewhere).await?)
    }

    /// Bans the network of a subscriber for a time, and closes its connections. Returns the
    /// network and their number.
    async fn ban(
        &self,
        network: Network,
        duration: Option<Duration>,
    ) -> anyhow::Result<(Network, usize)> {
        let network = network.of_subscriber();
        ensure!(
            !network.is_everything(),
            "{network} is everybody; to close the server to other machines, change --listen"
        );
        let now_ms = now_ms();
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let until_ms = duration.map(|duration| now_ms.saturating_add(ms(duration)));
        let ban = Ban { network, until_ms };
        let bans = Arc::clone(&self.bans);
        tokio::task::spawn_blocking(move || bans.add(ban, now_ms)).await??;
        let closed = self.kick_twice(&KickTarget::Network(network)).await?;
        Ok((network, closed))
    }

    /// Ends the ban of a network, or of its subscriber. Returns whether there was one.
    async fn unban(&self, network: Network) -> anyhow::Result<bool> {
        let network = network.of_subscriber();
        let bans = Arc::clone(&self.bans);
        tokio::task::spawn_blocking(move || bans.remove(network, now_ms())).await?
    }

    async fn set_password(&self, name: &UserName, password: Password) -> Result<(), Fault> {
        let _alone = self.passwords.acquire().await.map_err(|_| Unavailable)?;
        let AccountEntry {
            account,
            password: former,
            ..
        } = self.account(name).await?;
        let hash = tokio::task::spawn_blocking(move || passwords::hash(&password));
        let hash = hash.await.map_err(|_| Unavailable)??;
        if self.store.set_password(&account, former, hash).await? {
            return self.chat.close_revoked(&account).await;
        }
        let why = "the account was changed concurrently; try again";
        Err(Refusal::new(Code::Denied, why).into())
    }

    async fn reload(&self) -> anyhow::Result<Reloaded> {
        let (request, result) = oneshot::channel();
        self.reload.send(request).await?;
        result.await?
    }

    async fn account(&self, name: &UserName) -> Result<AccountEntry, Fault> {
        let found = self.store.account(name).await?;
        found.ok_or_else(|| no_such_user(name))
    }
}

impl Peer for Administration {
    fn describe(&self) -> ServerDescription {
        ServerDescription {
            version: env!("CARGO_PKG_VERSION").into(),
            host: host_name().into(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            connections: self.server.state().connections as u64,
        }
    }

    fn kick(&self, kick: &Kick) -> usize {
        let target = match kick {
            Kick::User(user) => Some(KickTarget::User(user.clone())),
            Kick::Network(network) => network.parse().ok().map(KickTarget::Network),
        };
        tracing::info!(?kick, "kick by an administrator of another server");
        target.map_or(0, |target| self.server.kick(&target))
    }
}

/// Returns the name of the machine, if the system tells it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}

fn no_such_user(name: &UserName) -> Fault {
    Refusal::new(Code::NoSuchUser, format!("there is no user {name}")).into()
}
