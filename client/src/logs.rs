//! A live view of a server's log: one `WatchLogs` call, for as long as its
//! connection lasts. It never reconnects, since the events in between would be
//! silently missing.

use std::sync::Arc;

use hark_grpc::v1::log_watcher_client::LogWatcherClient;
use hark_grpc::v1::watch_logs_reply::Event;
use hark_grpc::v1::{Credentials, WatchLogsReply, WatchLogsRequest};
use hark_protocol::{Password, Refusal, UserName};
use tokio_util::sync::DropGuard;
use tonic::{Response, Streaming};

pub use hark_grpc::v1::{LogEvent, LogLevel};

use crate::config::{Config, Server, Timing, Transport};
use crate::failover::Failover;
use crate::http2::{self, KeepAlive};
use crate::link::LinkError;

/// Selection of events.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Credentials, if the server requires them.
    pub login: Option<(UserName, Option<Password>)>,
    /// Least severe level; unspecified means `Info`.
    pub level: LogLevel,
    /// Only events whose target has this prefix; empty for all.
    pub target_prefix: String,
    /// Number of events after which the server ends the stream; 0 for no limit.
    pub limit: u64,
}

/// An item of the log stream.
#[derive(Debug, Clone, PartialEq)]
pub enum LogItem {
    /// An event.
    Event(LogEvent),
    /// Number of events that were dropped here because the client was too slow.
    Missed(u64),
}

/// The reason why the log cannot be watched any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The server refused the request.
    #[error("{}", .0.message())]
    Refused(Refusal),
    /// The connection failed.
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

/// A stream of log events. Dropping it ends the call.
#[derive(Debug)]
pub struct Logs {
    server: Arc<str>,
    replies: Streaming<WatchLogsReply>,
    _connection: DropGuard,
}

impl Logs {
    /// Begins to watch the log of the first reachable server of `config`,
    /// whose transport must be [`Transport::Grpc`].
    ///
    /// ```no_run
    /// use hark_client::Config;
    /// use hark_client::logs::{LogItem, Logs, Query};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut logs = Logs::watch(&Config::grpc("127.0.0.1:3000"), Query::default()).await?;
    /// while let Some(LogItem::Event(event)) = logs.next().await? {
    ///     println!("{}", event.message);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`WatchError`]; of several servers, the error of the last. Fails
    /// within [`crate::Timing::connect`].
    pub async fn watch(config: &Config, query: Query) -> Result<Self, WatchError> {
        let mut last = LinkError::NoServer;
        let attempt_timeout = Failover::new(config.servers.len(), &config.timing).attempt_timeout();
        for server in &config.servers {
            let opening =
                tokio::time::timeout(attempt_timeout, open(server, config.timing, query.clone()));
            match opening.await.unwrap_or(Err(LinkError::Silent)) {
                Ok(logs) => return Ok(logs),
                Err(error @ (LinkError::Refused(_) | LinkError::Denied(_))) => {
                    return Err(error.into());
                }
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    /// Returns the address of the server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Waits for the next item; `None` once the server has ended the stream.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`WatchError::Link`] if the connection fails.
    pub async fn next(&mut self) -> Result<Option<LogItem>, WatchError> {
        loop {
            let reply = self
                .replies
                .message()
                .await
                .map_err(|status| http2::ended(&status, true))?;
            match reply {
                None => return Ok(None),
                Some(WatchLogsReply {
                    event: Some(Event::Log(event)),
                }) => {
                    return Ok(Some(LogItem::Event(event)));
                }
                Some(WatchLogsReply {
                    event: Some(Event::Missed(count)),
                }) => {
                    return Ok(Some(LogItem::Missed(count)));
                }
                // An item of a later protocol version.
                Some(WatchLogsReply { event: None }) => {}
            }
        }
    }
}

async fn open(server: &Server, timing: Timing, query: Query) -> Result<Logs, LinkError> {
    let Transport::Grpc { origin } = &server.transport else {
        return Err(LinkError::Protocol(
            "watching the log requires gRPC".to_owned(),
        ));
    };
    let origin = http2::origin(origin)?;
    let keep_alive = KeepAlive {
        ping_after: timing.ping_after,
        dead_after: timing.dead_after,
    };
    let (connection, guard) = http2::open(server.dial.dial().await?, Some(keep_alive)).await?;
    let mut client = LogWatcherClient::with_origin(connection, origin);
    let replies = client
        .watch_logs(query.into_request())
        .await
        .map(Response::into_inner);
    let replies = replies.map_err(|status| http2::ended(&status, false))?;
    Ok(Logs {
        server: Arc::clone(&server.address),
        replies,
        _connection: guard,
    })
}

impl Query {
    fn into_request(self) -> WatchLogsRequest {
        let login = self.login.map(|(user, password)| Credentials {
            user: user.to_string(),
            password: password.map_or_else(String::new, |password| password.expose().to_owned()),
        });
        let Self {
            level,
            target_prefix,
            limit,
            ..
        } = self;
        WatchLogsRequest {
            login,
            level: level.into(),
            target_prefix,
            limit,
        }
    }
}
