//! The log of a server as it happens: one `WatchLogs`, for as long as its
//! connection lasts. It does not connect again: what happened meanwhile would
//! be missing, and nothing would say so.

use std::sync::Arc;

use hark_grpc::v1::log_watcher_client::LogWatcherClient;
use hark_grpc::v1::watch_logs_reply::Event;
use hark_grpc::v1::{Credentials, WatchLogsReply, WatchLogsRequest};
use hark_protocol::{Password, Refusal, UserName};
use tokio_util::sync::DropGuard;
use tonic::{Response, Streaming};

pub use hark_grpc::v1::{LogEvent, LogLevel};

use crate::config::{Config, Server, Timing, Transport};
use crate::http2::{self, KeepAlive};
use crate::link::LinkError;
use crate::rounds::Rounds;

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Who asks, where the server wants to know.
    pub login: Option<(UserName, Option<Password>)>,
    /// This level and worse; unspecified for `Info`.
    pub level: LogLevel,
    /// Only events whose target begins with this; empty for all.
    pub target_prefix: String,
    /// The server ends it after so many events; 0 for no end.
    pub limit: u64,
}

/// What is heard of the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// An event.
    Event(LogEvent),
    /// So many events were missed here, since they were taken too slowly.
    Missed(u64),
}

/// Why the log is not, or no longer, watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The server does not want this: ask for something else, or as somebody
    /// else.
    #[error(transparent)]
    Refused(Refusal),
    /// There is no link, or none any more.
    #[error("{0}")]
    Link(String),
}

impl From<LinkError> for WatchError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Refused(refusal) | LinkError::Denied(refusal) => Self::Refused(refusal),
            other => Self::Link(other.to_string()),
        }
    }
}

/// The log of a server, to take event by event. Dropping it ends the watching.
#[derive(Debug)]
pub struct Logs {
    server: Arc<str>,
    replies: Streaming<WatchLogsReply>,
    _connection: DropGuard,
}

impl Logs {
    /// Begins to watch the log of the server that `config` names, of several
    /// the first that can be reached. Its transport has to be
    /// [`Transport::Grpc`].
    ///
    /// ```no_run
    /// use hark_client::Config;
    /// use hark_client::logs::{Heard, Logs, Query};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut logs = Logs::watch(&Config::grpc("127.0.0.1:3000"), Query::default()).await?;
    /// while let Some(Heard::Event(event)) = logs.next().await? {
    ///     println!("{}", event.message);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`WatchError`] says, of several servers for the last; in
    /// [`crate::Timing::connect`] at the latest.
    pub async fn watch(config: &Config, query: Query) -> Result<Self, WatchError> {
        let mut last = LinkError::NoServer;
        let patience = Rounds::new(config.servers.len(), &config.timing).patience();
        for server in &config.servers {
            let opening = tokio::time::timeout(patience, open(server, config.timing, query.clone()));
            match opening.await.unwrap_or(Err(LinkError::Silent)) {
                Ok(logs) => return Ok(logs),
                Err(error @ (LinkError::Refused(_) | LinkError::Denied(_))) => return Err(error.into()),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    /// Whose log it is: the address of the server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Waits for what comes next; `None` once the server has ended it.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`WatchError::Link`] where the connection ends before.
    pub async fn next(&mut self) -> Result<Option<Heard>, WatchError> {
        loop {
            let reply = self.replies.message().await.map_err(|status| http2::ended(&status, true))?;
            match reply {
                None => return Ok(None),
                Some(WatchLogsReply { event: Some(Event::Log(event)) }) => {
                    return Ok(Some(Heard::Event(event)));
                }
                Some(WatchLogsReply { event: Some(Event::Missed(count)) }) => {
                    return Ok(Some(Heard::Missed(count)));
                }
                // What a later version may say.
                Some(WatchLogsReply { event: None }) => {}
            }
        }
    }
}

async fn open(server: &Server, timing: Timing, query: Query) -> Result<Logs, LinkError> {
    let Transport::Grpc { origin } = &server.transport else {
        return Err(LinkError::Protocol("the log is watched over gRPC".to_owned()));
    };
    let origin = http2::origin(origin)?;
    let keep_alive = KeepAlive { ping_after: timing.ping_after, dead_after: timing.dead_after };
    let (connection, guard) = http2::open(server.dial.dial().await?, Some(keep_alive)).await?;
    let mut client = LogWatcherClient::with_origin(connection, origin);
    let replies = client.watch_logs(query.into_request()).await.map(Response::into_inner);
    let replies = replies.map_err(|status| http2::ended(&status, false))?;
    Ok(Logs { server: Arc::clone(&server.address), replies, _connection: guard })
}

impl Query {
    fn into_request(self) -> WatchLogsRequest {
        let login = self.login.map(|(user, password)| Credentials {
            user: user.to_string(),
            password: password.map_or_else(String::new, |password| password.expose().to_owned()),
        });
        let Self { level, target_prefix, limit, .. } = self;
        WatchLogsRequest { login, level: level.into(), target_prefix, limit }
    }
}
