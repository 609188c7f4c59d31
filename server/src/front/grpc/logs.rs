//! `hark.v1.LogWatcher`: the permission to watch the log, and its events as messages.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use hark_grpc::status;
use hark_grpc::v1::log_watcher_server::LogWatcher;
use hark_grpc::v1::watch_logs_reply::Event as Reply;
use hark_grpc::v1::{Credentials, LogEvent, LogLevel, WatchLogsReply, WatchLogsRequest};
use hark_protocol::name::BadName;
use hark_protocol::{Code, Refusal, UserName};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Response, Status};
use tracing::Level;

use super::caller;
use crate::chat::Chat;
use crate::front::call::answer;
use crate::front::caller::Caller;
use crate::logging::{LoggedEvent, Watcher, WatcherItem, Watchers};

/// The permission to watch the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MayWatch {
    /// Any caller on the server's machine.
    Loopback,
    /// This user, with its password.
    User(UserName),
}

impl FromStr for MayWatch {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        match text {
            "loopback" => Ok(Self::Loopback),
            user => Ok(Self::User(user.parse()?)),
        }
    }
}

/// The settings of the log service.
#[derive(Debug, Clone)]
pub struct WatchLogs {
    /// The permission.
    pub may_watch: MayWatch,
    /// The current watchers.
    pub watchers: Watchers,
}

/// The log service. Without settings it refuses every call.
#[derive(Debug)]
pub(super) struct LogService {
    chat: Arc<Chat>,
    log: Option<WatchLogs>,
}

impl LogService {
    /// Returns the service with these settings.
    pub(super) const fn new(chat: Arc<Chat>, log: Option<WatchLogs>) -> Self {
        Self { chat, log }
    }

    async fn admit(
        &self,
        log: &WatchLogs,
        caller: &Caller,
        login: Option<Credentials>,
    ) -> Result<(), Status> {
        match &log.may_watch {
            MayWatch::Loopback if caller.address.is_loopback() => Ok(()),
            MayWatch::Loopback => Err(denied(
                "this server's log may be watched only from its own machine (--watch-logs)",
            )),
            MayWatch::User(user) => self.check_user(user, caller, login).await,
        }
    }

    async fn check_user(
        &self,
        permitted: &UserName,
        caller: &Caller,
        login: Option<Credentials>,
    ) -> Result<(), Status> {
        let Some(login) = login else {
            return Err(denied(
                "a login is required; only the user named by --watch-logs may watch the log",
            ));
        };
        let (user, password) =
            hark_grpc::request::credentials(login).map_err(|r| status::refused(&r))?;
        if user != *permitted {
            return Err(denied(
                "only the user named by --watch-logs may watch the log",
            ));
        }
        let authenticated = self.chat.authenticate(caller.address, user, password).await;
        authenticated.or_else(|fault| answer(fault.into()).map(drop).map_err(Status::from))
    }
}

#[tonic::async_trait]
impl LogWatcher for LogService {
    type WatchLogsStream = LogWatch;

    async fn watch_logs(
        &self,
        request: Request<WatchLogsRequest>,
    ) -> Result<Response<LogWatch>, Status> {
        let caller = caller(request.extensions())?.clone();
        let WatchLogsRequest {
            login,
            level,
            target_prefix,
            limit,
        } = request.into_inner();
        let Some(log) = &self.log else {
            return Err(denied(
                "watching the log is disabled; the operator enables it with --watch-logs",
            ));
        };
        self.admit(log, &caller, login).await?;
        let level = requested_level(level)?;
        let watcher = log
            .watchers
            .watch(level, target_prefix)
            .map_err(|full| status::refused(&Refusal::new(Code::TooMany, full.to_string())))?;
        tracing::info!(address = %caller.address, %level, "log watcher connected");
        Ok(Response::new(LogWatch {
            watcher,
            left: (limit > 0).then_some(limit),
            stopping: Box::pin(caller.stopping.cancelled_owned()),
        }))
    }
}

fn denied(explanation: &'static str) -> Status {
    status::refused(&Refusal::new(Code::Denied, explanation))
}

fn requested_level(level: i32) -> Result<Level, Status> {
    match LogLevel::try_from(level) {
        Ok(LogLevel::Error) => Ok(Level::ERROR),
        Ok(LogLevel::Warn) => Ok(Level::WARN),
        Ok(LogLevel::Info | LogLevel::Unspecified) => Ok(Level::INFO),
        Ok(LogLevel::Debug) => Ok(Level::DEBUG),
        Ok(LogLevel::Trace) => Ok(Level::TRACE),
        Err(_) => Err(status::refused(&Refusal::new(
            Code::BadRequest,
            "unknown log level",
        ))),
    }
}

/// The events for one watcher, until the server stops. It must not log, since it would
/// watch its own events.
#[derive(Debug)]
pub(super) struct LogWatch {
    watcher: Watcher,
    /// The events left until the client's limit, if it set one.
    left: Option<u64>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for LogWatch {
    type Item = Result<WatchLogsReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let Poll::Ready(entry) = self.watcher.poll_next(cx) else {
            ready!(self.stopping.as_mut().poll(cx));
            return Poll::Ready(None);
        };
        let event = match entry {
            WatcherItem::Missed(count) => Reply::Missed(count),
            WatcherItem::Event(event) => {
                self.left = self.left.map(|left| left - 1);
                Reply::Log(log_event(&event))
            }
        };
        Poll::Ready(Some(Ok(WatchLogsReply { event: Some(event) })))
    }
}

fn log_event(event: &LoggedEvent) -> LogEvent {
    let level = match event.level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    };
    let fields: HashMap<_, _> = event
        .fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    LogEvent {
        time_ms: event.time_ms,
        level: level.into(),
        target: event.target.to_owned(),
        message: event.message.clone(),
        fields,
    }
}
