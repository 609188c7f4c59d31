//! `hark.v1.Admin`: translates calls, and logs each with its caller.

use std::fmt::Display;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use hark_grpc::status;
use hark_grpc::v1::admin_server::Admin;
use hark_grpc::v1::kick_request::Target;
use hark_grpc::v1::{self};
use hark_protocol::UserName;
use tonic::{Code, Request, Response, Status};
use zeroize::Zeroizing;

use super::{Administration, PAGE_MAX};
use crate::bans::{Ban, Network};
use crate::chat::{Fault, now_ms};
use crate::server::{ConnectionInfo, KickTarget};
use crate::store::{InboxInfo, Unavailable};

/// The size of a page if the caller sets none.
const PAGE_DEFAULT: usize = 100;

/// The process that makes a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// Its user.
    pub(super) uid: u32,
    /// Its id, if the system tells it.
    pub(super) pid: Option<i32>,
}

/// The service of the administrators.
#[derive(Debug)]
pub(super) struct AdminService {
    admin: Arc<Administration>,
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminService {
    pub(super) const fn new(admin: Arc<Administration>) -> Self {
        Self { admin }
    }
}

/// Logs a call with its object, and returns the request.
fn log<T>(request: Request<T>, command: &str, object: impl FnOnce(&T) -> String) -> T {
    let caller = request.extensions().get::<Caller>().copied();
    let (uid, pid) = (caller.map(|c| c.uid), caller.and_then(|c| c.pid));
    let request = request.into_inner();
    let object = object(&request);
    tracing::info!(command, object, uid, pid, "administration");
    request
}

fn nothing<T>(_: &T) -> String {
    String::new()
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, Status> {
    text.parse()
        .map_err(|error: T::Err| Status::invalid_argument(error.to_string()))
}

fn failed(error: &anyhow::Error) -> Status {
    Status::failed_precondition(format!("{error:#}"))
}

fn unavailable(unavailable: Unavailable) -> Status {
    status::unavailable(&unavailable.to_string())
}

fn refused(fault: Fault) -> Status {
    match fault {
        Fault::Refused(refusal) => status::refused(&refusal),
        Fault::Unavailable(error) => unavailable(error),
    }
}

fn page_size(limit: u32) -> usize {
    match usize::try_from(limit) {
        Ok(0) => PAGE_DEFAULT,
        Ok(limit) => limit.min(PAGE_MAX),
        Err(_) => PAGE_MAX,
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_stats(&self, request: Request<v1::GetStatsRequest>) -> Answer<v1::GetStatsReply> {
        log(request, "stats", nothing);
        let state = self.admin.server.state();
        let usage = self.admin.usage().await.map_err(unavailable)?;
        Ok(Response::new(v1::GetStatsReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.admin.started.elapsed().as_secs(),
            connections: state.connections as u64,
            is_available: state.is_available,
            is_draining: state.is_draining,
            accounts: usage.accounts,
            live_bytes: usage.live_bytes,
            file_bytes: usage.file_bytes,
            is_low_on_space: usage.is_low_on_space,
            last_number: usage.last_number,
            resident_bytes: resident_bytes().unwrap_or(0),
        }))
    }

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Answer<v1::ListConnectionsReply> {
        let request = log(request, "connections", nothing);
        let server = &self.admin.server;
        let (page, has_more) = server.list_connections(request.after, page_size(request.limit));
        Ok(Response::new(v1::ListConnectionsReply {
            connections: page.into_iter().map(connection_info).collect(),
            has_more,
        }))
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Answer<v1::ListUsersReply> {
        let request = log(request, "users", |request| request.after.clone());
        let after: Option<UserName> = match &*request.after {
            "" => None,
            after => Some(parse(after)?),
        };
        let limit = page_size(request.limit);
        let page = self.admin.users(after.as_ref(), limit).await;
        let page = page.map_err(unavailable)?;
        Ok(Response::new(v1::ListUsersReply {
            users: page.users.into_iter().map(user_info).collect(),
            has_more: page.has_more,
        }))
    }

    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Answer<v1::UserInfo> {
        let request = log(request, "show", |request| request.user.clone());
        let user = self.admin.user(parse(&request.user)?).await;
        Ok(Response::new(user_info(user.map_err(refused)?)))
    }

    async fn kick(&self, request: Request<v1::KickRequest>) -> Answer<v1::KickReply> {
        let request = log(request, "kick", |request| match &request.target {
            Some(Target::Connection(id)) => id.to_string(),
            Some(Target::User(user)) => user.clone(),
            Some(Target::Network(network)) => network.clone(),
            None => String::new(),
        });
        let target = match request.target {
            Some(Target::Connection(id)) => KickTarget::Connection(id),
            Some(Target::User(user)) => KickTarget::User(parse(&user)?),
            Some(Target::Network(network)) => KickTarget::Network(parse(&network)?),
            None => return Err(Status::invalid_argument("a target is missing")),
        };
        let closed = self.admin.server.kick(&target) as u64;
        Ok(Response::new(v1::KickReply { closed }))
    }

    async fn set_suspended(
        &self,
        request: Request<v1::SetSuspendedRequest>,
    ) -> Answer<v1::SetSuspendedReply> {
        let is_suspended = request.get_ref().is_suspended;
        let command = if is_suspended { "suspend" } else { "resume" };
        let request = log(request, command, |request| request.user.clone());
        let user = parse(&request.user)?;
        let (has_changed, closed) = self
            .admin
            .set_suspended(user, is_suspended)
            .await
            .map_err(refused)?;
        Ok(Response::new(v1::SetSuspendedReply {
            has_changed,
            closed: closed as u64,
        }))
    }

    async fn ban(&self, request: Request<v1::BanRequest>) -> Answer<v1::BanReply> {
        let request = log(request, "ban", |request| {
            format!("{} for {} s", request.network, request.seconds)
        });
        let network: Network = parse(&request.network)?;
        let duration = (request.seconds > 0).then(|| Duration::from_secs(request.seconds));
        let closed = self.admin.ban(network, duration).await;
        Ok(Response::new(v1::BanReply {
            network: network.to_string(),
            closed: closed.map_err(|error| failed(&error))? as u64,
        }))
    }

    async fn unban(&self, request: Request<v1::UnbanRequest>) -> Answer<v1::UnbanReply> {
        let request = log(request, "unban", |request| request.network.clone());
        let has_changed = self.admin.unban(parse(&request.network)?).await;
        Ok(Response::new(v1::UnbanReply {
            has_changed: has_changed.map_err(|error| failed(&error))?,
        }))
    }

    async fn list_bans(&self, request: Request<v1::ListBansRequest>) -> Answer<v1::ListBansReply> {
        log(request, "bans", nothing);
        let bans = self.admin.bans.list(now_ms()).into_iter();
        let info = |Ban { network, until_ms }| v1::BanInfo {
            network: network.to_string(),
            until_ms: until_ms.unwrap_or(0),
        };
        Ok(Response::new(v1::ListBansReply {
            bans: bans.map(info).collect(),
        }))
    }

    async fn set_user_password(
        &self,
        request: Request<v1::SetUserPasswordRequest>,
    ) -> Answer<v1::SetUserPasswordReply> {
        let request = log(request, "set-password", |request| request.user.clone());
        let password = Zeroizing::new(request.password);
        let (user, password) = (parse(&request.user)?, parse(&password)?);
        let set = self.admin.set_password(&user, password).await;
        set.map_err(refused)?;
        Ok(Response::new(v1::SetUserPasswordReply {}))
    }

    async fn set_log_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Answer<v1::SetLogLevelReply> {
        let request = log(request, "log", |request| request.level.clone());
        let set = self.admin.log.set(&request.level);
        set.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(v1::SetLogLevelReply {}))
    }

    async fn reload(&self, request: Request<v1::ReloadRequest>) -> Answer<v1::ReloadReply> {
        log(request, "reload", nothing);
        let reloaded = self.admin.reload().await;
        let reloaded = reloaded.map_err(|error| failed(&error))?;
        Ok(Response::new(v1::ReloadReply {
            changed: reloaded.changed,
            needs_restart: reloaded.needs_restart,
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Answer<v1::DrainReply> {
        log(request, "drain", nothing);
        self.admin.drain.notify_one();
        Ok(Response::new(v1::DrainReply {}))
    }

    type BackupStream =
        Pin<Box<dyn Stream<Item = Result<v1::BackupProgress, Status>> + Send + 'static>>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Answer<Self::BackupStream> {
        let request = log(request, "backup", |request| request.folder.clone());
        let progress = self.admin.backup(PathBuf::from(request.folder)).await;
        let progress = progress.map_err(|error| failed(&error))?;
        let stream = stream::unfold(progress, |mut progress| async move {
            progress.recv().await.map(|report| (report, progress))
        });
        let stream = stream.map(|report| match report {
            Ok(report) => Ok(v1::BackupProgress {
                copied_bytes: report.copied_bytes,
                total_bytes: report.total_bytes,
            }),
            Err(error) => Err(Status::new(Code::Aborted, format!("{error:#}"))),
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

fn connection_info(connection: ConnectionInfo) -> v1::ConnectionInfo {
    v1::ConnectionInfo {
        id: connection.id,
        address: connection.address.to_string(),
        users: connection.users.iter().map(ToString::to_string).collect(),
        age_s: connection.age.as_secs(),
    }
}

fn user_info(inbox: InboxInfo) -> v1::UserInfo {
    v1::UserInfo {
        name: inbox.name.to_string(),
        has_password: inbox.has_password,
        is_suspended: inbox.is_suspended,
        is_receiving: inbox.is_receiving,
        waiting_messages: inbox.waiting_messages,
        waiting_bytes: inbox.waiting_bytes,
        acknowledged: inbox.acknowledged.0,
        last_number: inbox.last.0,
    }
}

/// Returns the resident memory of the process, if the system tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
