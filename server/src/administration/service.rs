//! `hark.v1.Admin`: translates calls, and logs each with its caller.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use hark_grpc::status;
use hark_grpc::v1::admin_server::Admin;
use hark_grpc::v1::get_top_request::By;
use hark_grpc::v1::kick_request::Target;
use hark_grpc::v1::{self};
use hark_protocol::{Refusal, UserName};
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Response, Status};
use zeroize::Zeroizing;

use super::check::Check;
use super::messages::{
    check_progress, connection_info, full_entry, limits_info, resident_bytes, room_info, top_entry,
    user_info, user_limits,
};
use super::top::Ranking;
use super::{Administration, PAGE_MAX};
use crate::bans::Ban;
use crate::chat::{Fault, now_ms};
use crate::front::caller_address;
use crate::server::KickTarget;
use crate::store::Unavailable;

/// The size of a page if the caller sets none.
const PAGE_DEFAULT: usize = 100;

/// The entries of `top`, and its time in seconds.
const TOP_DEFAULT: usize = 20;
const TOP_SECONDS_DEFAULT: u32 = 2;
const TOP_SECONDS_MAX: u32 = 60;

/// A process on the server's machine that calls through the socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalCaller {
    /// Its user.
    pub(super) uid: u32,
    /// Its id, if the system tells it.
    pub(super) pid: Option<i32>,
}

/// The administration of a server, once it has started.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdminSlot(Arc<OnceLock<Weak<Administration>>>);

/// The service of the administrators.
#[derive(Debug, Clone)]
pub(crate) struct AdminService {
    admin: AdminSlot,
}

/// The origin of a call.
#[derive(Debug)]
enum Origin {
    /// The socket.
    Socket(LocalCaller),
    /// An admin over the network.
    Network(UserName, IpAddr),
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminSlot {
    /// Sets the administration, which the caller keeps alive.
    pub(crate) fn set(&self, admin: &Arc<Administration>) {
        // A server starts once.
        let _ = self.0.set(Arc::downgrade(admin));
    }

    fn get(&self) -> Result<Arc<Administration>, Status> {
        let admin = self.0.get().and_then(Weak::upgrade);
        admin.ok_or_else(|| status::unavailable("the server is starting or stopping; try again"))
    }
}

impl AdminService {
    /// Returns the service of the administration in a slot.
    pub(crate) const fn new(admin: AdminSlot) -> Self {
        Self { admin }
    }

    /// Admits a call, and logs it with its object.
    async fn enter<T: Send>(
        &self,
        request: Request<T>,
        command: &str,
        object: fn(&T) -> String,
    ) -> Result<(Arc<Administration>, T), Status> {
        let admin = self.admin.get()?;
        let (metadata, extensions, request) = request.into_parts();
        let object = object(&request);
        match origin(&admin, &metadata, &extensions).await? {
            Origin::Socket(LocalCaller { uid, pid }) => {
                tracing::info!(command, object, uid, pid, "administration");
            }
            Origin::Network(by, address) => {
                tracing::info!(command, object, %by, %address, "administration");
            }
        }
        Ok((admin, request))
    }
}

/// Returns the origin of a call. Over the network it needs the credentials of an admin.
async fn origin(
    admin: &Administration,
    metadata: &MetadataMap,
    extensions: &Extensions,
) -> Result<Origin, Status> {
    if let Some(caller) = extensions.get::<LocalCaller>() {
        return Ok(Origin::Socket(*caller));
    }
    let address = caller_address(extensions)?;
    let credentials = hark_grpc::admin::credentials(metadata);
    let credentials = credentials.map_err(|refusal| status::refused(&refusal))?;
    let (user, password) = credentials.ok_or_else(|| denied("a login as an admin is required"))?;
    let authenticated = admin
        .chat
        .authenticate(address, user.clone(), Some(password));
    authenticated.await.map_err(refused)?;
    if !admin.chat.rules().admins.contains(&user) {
        return Err(denied("only users named by --admin administer this server"));
    }
    Ok(Origin::Network(user, address))
}

fn denied(explanation: &'static str) -> Status {
    status::refused(&Refusal::new(hark_protocol::Code::Denied, explanation))
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
        let (admin, _) = self.enter(request, "stats", nothing).await?;
        let state = admin.server.state();
        let usage = admin.usage().await.map_err(unavailable)?;
        Ok(Response::new(v1::GetStatsReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: admin.started.elapsed().as_secs(),
            connections: state.connections as u64,
            is_available: state.is_available,
            is_draining: state.is_draining,
            accounts: usage.accounts,
            live_bytes: usage.live_bytes,
            file_bytes: usage.file_bytes,
            is_low_on_space: usage.is_low_on_space,
            last_number: usage.last_number,
            resident_bytes: resident_bytes().unwrap_or(0),
            free_bytes: usage.free_bytes.unwrap_or(0),
        }))
    }

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Answer<v1::ListConnectionsReply> {
        let (admin, request) = self.enter(request, "connections", nothing).await?;
        let limit = page_size(request.limit);
        let (page, has_more) = admin.server.list_connections(request.after, limit);
        Ok(Response::new(v1::ListConnectionsReply {
            connections: page.into_iter().map(connection_info).collect(),
            has_more,
        }))
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Answer<v1::ListUsersReply> {
        let (admin, request) = self
            .enter(request, "users", |request| request.after.clone())
            .await?;
        let after: Option<UserName> = match &*request.after {
            "" => None,
            after => Some(parse(after)?),
        };
        let limit = page_size(request.limit);
        let page = admin.users(after.as_ref(), limit).await;
        let page = page.map_err(unavailable)?;
        Ok(Response::new(v1::ListUsersReply {
            users: page.users.into_iter().map(user_info).collect(),
            has_more: page.has_more,
        }))
    }

    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Answer<v1::UserInfo> {
        let (admin, request) = self
            .enter(request, "show", |request| request.user.clone())
            .await?;
        let name: UserName = parse(&request.user)?;
        let user = admin.user(name.clone()).await.map_err(refused)?;
        let oldest_unread_ms = match user.waiting_messages {
            0 => 0,
            _ => admin.oldest_unread_ms(&name).await,
        };
        Ok(Response::new(v1::UserInfo {
            oldest_unread_ms,
            ..user_info(user)
        }))
    }

    async fn list_rooms(
        &self,
        request: Request<v1::ListRoomsRequest>,
    ) -> Answer<v1::ListRoomsReply> {
        let (admin, request) = self.enter(request, "rooms", nothing).await?;
        let limit = page_size(request.limit);
        let list = admin.store.rooms(request.after, limit).await;
        let list = list.map_err(unavailable)?;
        let rooms = list.rooms.into_iter();
        Ok(Response::new(v1::ListRoomsReply {
            rooms: rooms.map(|room| room_info(&admin, room)).collect(),
            next: list.next.unwrap_or(0),
        }))
    }

    async fn get_room(&self, request: Request<v1::GetRoomRequest>) -> Answer<v1::RoomInfo> {
        let (admin, request) = self
            .enter(request, "show", |request| request.room.clone())
            .await?;
        let room = admin.room(&parse(&request.room)?).await;
        let room = room.map_err(refused)?;
        Ok(Response::new(room_info(&admin, room)))
    }

    async fn get_top(&self, request: Request<v1::GetTopRequest>) -> Answer<v1::GetTopReply> {
        let (admin, request) = self.enter(request, "top", nothing).await?;
        let limit = match usize::try_from(request.limit) {
            Ok(0) => TOP_DEFAULT,
            limit => limit.unwrap_or(PAGE_MAX).min(PAGE_MAX),
        };
        let seconds = match request.seconds {
            0 => TOP_SECONDS_DEFAULT,
            seconds => seconds.min(TOP_SECONDS_MAX),
        };
        let ranking = match request.by() {
            By::Requests => Ranking::Requests,
            By::Bytes => Ranking::Bytes,
            By::Deliveries => Ranking::Deliveries,
            By::Waiting => {
                let fullest = admin.fullest(limit).await.map_err(unavailable)?;
                let entries = fullest.into_iter().map(full_entry).collect();
                return Ok(Response::new(v1::GetTopReply { entries }));
            }
        };
        let time = Duration::from_secs(seconds.into());
        let top = admin.top(ranking, limit, time).await;
        let entries = top.map_err(|error| failed(&error))?.into_iter();
        Ok(Response::new(v1::GetTopReply {
            entries: entries.map(|user| top_entry(user, seconds)).collect(),
        }))
    }

    async fn kick(&self, request: Request<v1::KickRequest>) -> Answer<v1::KickReply> {
        let (admin, request) = self
            .enter(request, "kick", |request| match &request.target {
                Some(Target::Connection(id)) => id.to_string(),
                Some(Target::User(user)) => user.clone(),
                Some(Target::Network(network)) => network.clone(),
                None => String::new(),
            })
            .await?;
        let target = match request.target {
            Some(Target::Connection(id)) => KickTarget::Connection(id),
            Some(Target::User(user)) => KickTarget::User(parse(&user)?),
            Some(Target::Network(network)) => KickTarget::Network(parse(&network)?),
            None => return Err(Status::invalid_argument("a target is missing")),
        };
        let closed = admin.kick(&target).await.map_err(unavailable)? as u64;
        Ok(Response::new(v1::KickReply { closed }))
    }

    async fn set_suspended(
        &self,
        request: Request<v1::SetSuspendedRequest>,
    ) -> Answer<v1::SetSuspendedReply> {
        let is_suspended = request.get_ref().is_suspended;
        let command = if is_suspended { "suspend" } else { "resume" };
        let (admin, request) = self
            .enter(request, command, |request| request.user.clone())
            .await?;
        let user = parse(&request.user)?;
        let (has_changed, closed) = admin
            .set_suspended(user, is_suspended)
            .await
            .map_err(refused)?;
        Ok(Response::new(v1::SetSuspendedReply {
            has_changed,
            closed: closed as u64,
        }))
    }

    async fn set_user_limits(
        &self,
        request: Request<v1::SetUserLimitsRequest>,
    ) -> Answer<v1::UserLimits> {
        let (admin, request) = self
            .enter(request, "throttle", |request| {
                let limits = request.limits.unwrap_or_default();
                format!("{} {limits:?}", request.user)
            })
            .await?;
        let limits = user_limits(request.limits.unwrap_or_default());
        let user = parse(&request.user)?;
        let set = admin.set_limits(user, limits, request.is_reset).await;
        Ok(Response::new(limits_info(&set.map_err(refused)?)))
    }

    async fn purge(&self, request: Request<v1::PurgeRequest>) -> Answer<v1::PurgeReply> {
        let (admin, request) = self
            .enter(request, "purge", |request| {
                format!("{} {}", request.log, request.up_to)
            })
            .await?;
        let purged = admin.purge(&parse(&request.log)?, request.up_to).await;
        let purged = purged.map_err(refused)?;
        Ok(Response::new(v1::PurgeReply {
            removed_messages: purged.messages,
            removed_bytes: purged.bytes,
            is_silent_for_connect: purged.is_silent_for_connect,
        }))
    }

    async fn ban(&self, request: Request<v1::BanRequest>) -> Answer<v1::BanReply> {
        let (admin, request) = self
            .enter(request, "ban", |request| {
                format!("{} for {} s", request.network, request.seconds)
            })
            .await?;
        let network = parse(&request.network)?;
        let duration = (request.seconds > 0).then(|| Duration::from_secs(request.seconds));
        let banned = admin.ban(network, duration).await;
        let (network, closed) = banned.map_err(|error| failed(&error))?;
        Ok(Response::new(v1::BanReply {
            network: network.to_string(),
            closed: closed as u64,
        }))
    }

    async fn unban(&self, request: Request<v1::UnbanRequest>) -> Answer<v1::UnbanReply> {
        let (admin, request) = self
            .enter(request, "unban", |request| request.network.clone())
            .await?;
        let has_changed = admin.unban(parse(&request.network)?).await;
        Ok(Response::new(v1::UnbanReply {
            has_changed: has_changed.map_err(|error| failed(&error))?,
        }))
    }

    async fn list_bans(&self, request: Request<v1::ListBansRequest>) -> Answer<v1::ListBansReply> {
        let (admin, _) = self.enter(request, "bans", nothing).await?;
        let bans = admin.bans.list(now_ms()).into_iter();
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
        let (admin, request) = self
            .enter(request, "set-password", |request| request.user.clone())
            .await?;
        let password = Zeroizing::new(request.password);
        let (user, password) = (parse(&request.user)?, parse(&password)?);
        let set = admin.set_password(&user, password).await;
        set.map_err(refused)?;
        Ok(Response::new(v1::SetUserPasswordReply {}))
    }

    async fn set_log_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Answer<v1::SetLogLevelReply> {
        let (admin, request) = self
            .enter(request, "log", |request| request.level.clone())
            .await?;
        let set = admin.log.set(&request.level);
        set.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(v1::SetLogLevelReply {}))
    }

    async fn reload(&self, request: Request<v1::ReloadRequest>) -> Answer<v1::ReloadReply> {
        let (admin, _) = self.enter(request, "reload", nothing).await?;
        let reloaded = admin.reload().await;
        let reloaded = reloaded.map_err(|error| failed(&error))?;
        Ok(Response::new(v1::ReloadReply {
            changed: reloaded.changed,
            needs_restart: reloaded.needs_restart,
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Answer<v1::DrainReply> {
        let (admin, _) = self.enter(request, "drain", nothing).await?;
        admin.drain.notify_one();
        Ok(Response::new(v1::DrainReply {}))
    }

    type BackupStream =
        Pin<Box<dyn Stream<Item = Result<v1::BackupProgress, Status>> + Send + 'static>>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Answer<Self::BackupStream> {
        if request.extensions().get::<LocalCaller>().is_none() {
            return Err(denied(
                "a backup is for harkd admin on the server's machine",
            ));
        }
        let (admin, request) = self
            .enter(request, "backup", |request| request.folder.clone())
            .await?;
        let progress = admin.backup(PathBuf::from(request.folder)).await;
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

    async fn compact(&self, request: Request<v1::CompactRequest>) -> Answer<v1::CompactReply> {
        let (admin, _) = self.enter(request, "compact", nothing).await?;
        let before = admin.store.compact().await.map_err(unavailable)?;
        Ok(Response::new(v1::CompactReply {
            file_bytes: before.file_bytes,
            live_bytes: before.live_bytes,
        }))
    }

    type CheckStream =
        Pin<Box<dyn Stream<Item = Result<v1::CheckProgress, Status>> + Send + 'static>>;

    async fn check(&self, request: Request<v1::CheckRequest>) -> Answer<Self::CheckStream> {
        let (admin, _) = self.enter(request, "check", nothing).await?;
        let Ok(permit) = Arc::clone(&admin.checks).try_acquire_owned() else {
            return Err(Status::failed_precondition(
                "another check is running; wait for its end",
            ));
        };
        let check = Check::new(admin, permit);
        let stream = stream::unfold(check, |mut check| async move {
            let report = check.next().await?;
            Some((report.map(check_progress).map_err(unavailable), check))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
