//! Administration of a running server: what an administrator asks, as calls on the parts of
//! the server. It never reads a text.
//!
//! | file | content |
//! | --- | --- |
//! | `service` | `hark.v1.Admin`: translation and the log of its calls |
//! | `socket` | the socket for `harkd admin` |
//! | `backup` | a copy of the store beside traffic |

mod backup;
mod service;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hark_protocol::{Code, Password, Refusal, UserName};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::bans::{Ban, Bans};
use crate::chat::{Chat, Fault, now_ms, passwords};
use crate::logging::LogLevel;
use crate::network::Network;
use crate::reload::Reloaded;
use crate::server::{KickTarget, Server};
use crate::store::{
    AccountEntry, InboxInfo, Kick, Peer, ServerDescription, Store, StoreUsage, Unavailable,
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
