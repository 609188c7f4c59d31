//! One connection: requests out, replies in, and the handshake, over each
//! transport. Has no rules.
//!
//! | module | contents |
//! | --- | --- |
//! | `native` | the native framing |
//! | `grpc` | the same session as one `BiDiChat` |

#[cfg(feature = "grpc")]
mod grpc;
mod native;

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use hark_protocol::limits::{VERSION, text_bytes_max};
use hark_protocol::{
    Code, Failure, Incoming, OkFields, Refusal, Reply, Request, RequestId, SessionToken,
};
use tokio::time::Instant;

use crate::config::{Server, Transport};
use crate::tls::TlsError;

/// Size of the write buffer at which it must be flushed, in bytes.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Time limit for closing a link gracefully.
const FINISH: Duration = Duration::from_secs(1);

/// A connection to a server.
pub(crate) struct Link {
    pub(crate) reader: Box<dyn Reader>,
    pub(crate) writer: Box<dyn Writer>,
}

/// The receiving half.
pub(crate) trait Reader: Send {
    /// Polls for the next reply. Dropping the poll loses nothing.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming<Reply>, LinkError>>;

    /// Returns the time of the latest byte from the server.
    fn last_received_at(&self) -> Instant;

    /// Sets the server's largest frame, in bytes.
    fn limit(&mut self, frame_bytes_max: usize);
}

/// The sending half.
pub(crate) trait Writer: Send {
    /// Buffers a request. If it is too large for this server, returns the
    /// reason and buffers nothing.
    fn queue(&mut self, id: Option<RequestId>, request: &Request) -> Result<(), String>;

    /// Returns whether the buffer holds less than [`WRITE_BYTES_MAX`], so that
    /// another request may be added.
    fn has_room(&self) -> bool;

    /// Returns whether everything buffered has been written.
    fn is_flushed(&self) -> bool;

    /// Writes a part of the buffer, which must not be empty. Dropping the poll
    /// loses nothing.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>>;

    /// Closes the sending direction. Requires that the buffer is flushed.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sets the server's largest frame, in bytes.
    fn limit(&mut self, frame_bytes_max: usize);
}

impl dyn Reader {
    /// Waits for the next reply. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Incoming<Reply>, LinkError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl dyn Writer {
    /// Writes a part of the buffer, which must not be empty. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<(), LinkError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Writes the whole buffer. Cancel-safe.
    async fn flush_all(&mut self) -> Result<(), LinkError> {
        while !self.is_flushed() {
            self.flush().await?;
        }
        Ok(())
    }
}

/// The reason why a link failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Ended,
    #[error("the server is shutting down")]
    Stopping,
    #[error("protocol error: {0}")]
    Protocol(String),
    #[cfg(feature = "grpc")]
    #[error("the call failed: {0}")]
    Call(String),
    #[cfg(feature = "grpc")]
    #[error("the server does not support this gRPC service: {0}")]
    NoGrpc(String),
    #[error("the server does not respond")]
    Silent,
    #[error("the server is unavailable: {0}")]
    Unavailable(String),
    #[error("the server refused the connection for now: {}", .0.message())]
    Refused(Refusal),
    /// Refusal of the connection itself, regardless of the user.
    #[error("the server refused the connection: {}", .0.explanation)]
    Denied(Refusal),
    #[error("{0}")]
    SeenStore(io::Error),
    #[error("no server is configured")]
    NoServer,
    #[error("the ids of the session are exhausted")]
    SessionExhausted,
}

impl LinkError {
    /// Returns the error for a refused connection.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        if refusal.code == Code::Denied {
            Self::Denied(refusal)
        } else {
            Self::Refused(refusal)
        }
    }

    /// Returns whether the error persists until a configuration changes.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Io(error) => TlsError::is_in(error),
            Self::Denied(_) | Self::NoServer => true,
            _ => false,
        }
    }

    /// Returns the wait that the server asks for, if any.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after(),
            _ => None,
        }
    }
}

/// Opening requests of a new connection.
pub(crate) struct Handshake {
    pub(crate) session: SessionToken,
    /// `login` or `connect`; `None` if anonymous.
    pub(crate) identity: Option<Request>,
}

/// An open link, and the answer to `login` or `connect`; empty fields if
/// anonymous.
pub(crate) struct Opened {
    pub(crate) link: Link,
    pub(crate) identity: Result<OkFields, Refusal>,
}

/// Dials, sends `hello` and authenticates. The caller limits the time.
pub(crate) async fn open(server: &Server, handshake: &Handshake) -> Result<Opened, LinkError> {
    let stream = server.dial.dial().await?;
    let mut link = match &server.transport {
        Transport::Native => native::link(stream),
        #[cfg(feature = "grpc")]
        Transport::Grpc { origin } => grpc::link(stream, origin).await?,
    };
    let hello = Request::Hello {
        version: VERSION,
        session: handshake.session.clone(),
    };
    let fields = link.ask(&hello).await?.map_err(LinkError::refused)?;
    let (_, frame_bytes_max) = fields
        .as_hello()
        .ok_or_else(|| LinkError::Protocol("unexpected answer to hello".into()))?;
    link.reader.limit(frame_bytes_max);
    link.writer.limit(frame_bytes_max);
    let identity = match &handshake.identity {
        Some(request) => link.ask(request).await?,
        None => Ok(OkFields::None),
    };
    match identity {
        Err(refusal) if is_transient(refusal.code) => Err(LinkError::Refused(refusal)),
        identity => Ok(Opened { link, identity }),
    }
}

/// Returns whether a refused login may succeed a little later.
const fn is_transient(code: Code) -> bool {
    matches!(code, Code::RateLimited | Code::TooMany)
}

impl Link {
    /// Sends one request and waits for its answer.
    async fn ask(&mut self, request: &Request) -> Result<Result<OkFields, Refusal>, LinkError> {
        const ID: Option<RequestId> = RequestId::new(u32::MAX);
        self.writer
            .queue(ID, request)
            .map_err(LinkError::Protocol)?;
        self.writer.flush_all().await?;
        loop {
            let incoming = self.reader.next().await?;
            match (incoming.id, incoming.message) {
                (
                    _,
                    Ok(Reply::Error {
                        failure,
                        explanation,
                    }),
                ) => return Err(failed(failure, &explanation)),
                (ID, Ok(Reply::Ok(fields))) => return Ok(Ok(fields)),
                (ID, Ok(Reply::NotOk(refusal))) => return Ok(Err(refusal)),
                (ID, Err(malformed)) => {
                    return Err(LinkError::Protocol(malformed.refusal.to_string()));
                }
                (None, Ok(Reply::NotOk(refusal))) => return Err(LinkError::refused(refusal)),
                // Other messages cannot concern a new connection, and pushes of a later
                // protocol version are ignored.
                _ => {}
            }
        }
    }

    /// Closes the connection gracefully, so that everything written arrives:
    /// closing a socket with unread bytes would reset it.
    pub(crate) async fn finish(mut self) {
        let closing = async {
            self.writer.flush_all().await?;
            poll_fn(|cx| self.writer.poll_close(cx)).await?;
            while self.reader.next().await.is_ok() {}
            Ok::<(), LinkError>(())
        };
        // All requests have their outcome, so errors are irrelevant.
        drop(tokio::time::timeout(FINISH, closing).await);
    }
}

/// Returns the error of the link for an `error` from the server.
pub(crate) fn failed(failure: Failure, explanation: &str) -> LinkError {
    match failure {
        Failure::Unavailable => LinkError::Unavailable(explanation.to_owned()),
        Failure::Protocol => LinkError::Protocol(explanation.to_owned()),
    }
}

/// Returns why a request exceeds the server's largest frame.
fn too_large(request: &Request, frame_bytes_max: usize) -> String {
    match request {
        Request::Send { text, .. } => {
            let most = text_bytes_max(frame_bytes_max);
            format!(
                "the text has {} bytes; this server accepts at most {most}",
                text.len()
            )
        }
        _ => format!("the request exceeds this server's largest frame of {frame_bytes_max} bytes"),
    }
}
