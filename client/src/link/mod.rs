//! One connection: requests out and replies in, and the handshake that opens
//! it, the same over every transport. Knows no rules.
//!
//! | module | what it owns |
//! | --- | --- |
//! | `native` | the wire protocol |
//! | `grpc` | the same session as a `BiDiChat` |

#[cfg(feature = "grpc")]
mod grpc;
mod native;

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use hark_protocol::limits::{VERSION, text_bytes_max};
use hark_protocol::{Code, Failure, Incoming, OkFields, Refusal, Reply, Request, RequestId, SessionToken};
use tokio::time::Instant;

use crate::config::{Server, Transport};
use crate::tls::Distrust;

/// Bytes that are collected before they have to be written.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// How long a link that is closed may take to say its last word.
const FINISH: Duration = Duration::from_secs(1);

/// A connection to a server.
pub(crate) struct Link {
    pub(crate) reader: Box<dyn Reader>,
    pub(crate) writer: Box<dyn Writer>,
}

/// The side that receives.
pub(crate) trait Reader: Send {
    /// The next reply. While it is pending nothing is lost.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming<Reply>, LinkError>>;

    /// When the server was last heard.
    fn heard(&self) -> Instant;

    /// The server has said what its largest frame is.
    fn limit(&mut self, frame_bytes_max: usize);
}

/// The side that sends.
pub(crate) trait Writer: Send {
    /// Collects a request to be written; `Err` says why it is too large for
    /// this server, and nothing is collected then.
    fn queue(&mut self, id: Option<RequestId>, request: &Request) -> Result<(), String>;

    /// Whether there is room to collect more: for [`WRITE_BYTES_MAX`], and one
    /// request.
    fn has_room(&self) -> bool;

    /// Whether nothing is collected that has to be written.
    fn is_flushed(&self) -> bool;

    /// Writes some of what was collected, which there must be. While it is
    /// pending nothing is lost.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>>;

    /// Says that nothing more comes. Call it once all is flushed.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The server has said what its largest frame is.
    fn limit(&mut self, frame_bytes_max: usize);
}

impl dyn Reader {
    /// Waits for the next reply. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Incoming<Reply>, LinkError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl dyn Writer {
    /// Writes some of what was collected, which there must be. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<(), LinkError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Writes everything that was collected. Cancel-safe.
    async fn flush_all(&mut self) -> Result<(), LinkError> {
        while !self.is_flushed() {
            self.flush().await?;
        }
        Ok(())
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Ended,
    #[error("the server is stopping")]
    Stopping,
    #[error("the server does not speak this protocol: {0}")]
    Protocol(String),
    #[cfg(feature = "grpc")]
    #[error("the server has ended the call: {0}")]
    Call(String),
    #[cfg(feature = "grpc")]
    #[error("the server does not speak this gRPC: {0}")]
    NoGrpc(String),
    #[error("the server does not answer")]
    Silent,
    #[error("the server cannot do it now: {0}")]
    Unavailable(String),
    #[error("the server refuses for now: {0}")]
    Refused(Refusal),
    /// The connection itself, whoever one is.
    #[error("the server refuses the connection: {}", .0.explanation)]
    Denied(Refusal),
    #[error("{0}")]
    Taken(io::Error),
    #[error("no server is named")]
    NoServer,
    #[error("a new session begins")]
    SessionSpent,
}

impl LinkError {
    /// The server refuses the connection.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        if refusal.code == Code::Denied { Self::Denied(refusal) } else { Self::Refused(refusal) }
    }

    /// Whether it stays so, until somebody changes something here or there.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Io(error) => Distrust::is_in(error),
            Self::Denied(_) | Self::NoServer => true,
            _ => false,
        }
    }

    /// How long the server asks to wait, where it does.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after(),
            _ => None,
        }
    }
}

/// Who one wants to be on a new connection.
pub(crate) struct Introduction {
    pub(crate) session: SessionToken,
    /// `login` or `connect`, where one is somebody.
    pub(crate) identity: Option<Request>,
}

/// A link that is open, and what the server made of the introduction: the
/// answer to `login` or `connect`, empty where one is nobody.
pub(crate) struct Opened {
    pub(crate) link: Link,
    pub(crate) identity: Result<OkFields, Refusal>,
}

/// Dials, says `hello`, and becomes somebody. The caller bounds the time.
pub(crate) async fn open(server: &Server, introduction: &Introduction) -> Result<Opened, LinkError> {
    let stream = server.dial.dial().await?;
    let mut link = match &server.transport {
        Transport::Native => native::link(stream),
        #[cfg(feature = "grpc")]
        Transport::Grpc { origin } => grpc::link(stream, origin).await?,
    };
    let hello = Request::Hello { version: VERSION, session: introduction.session.clone() };
    let fields = link.ask(&hello).await?.map_err(LinkError::refused)?;
    let (_, frame_bytes_max) = fields
        .as_hello()
        .ok_or_else(|| LinkError::Protocol("it answers hello with something else".into()))?;
    link.reader.limit(frame_bytes_max);
    link.writer.limit(frame_bytes_max);
    let identity = match &introduction.identity {
        Some(request) => link.ask(request).await?,
        None => Ok(OkFields::none()),
    };
    match identity {
        Err(refusal) if is_passing(refusal.code) => Err(LinkError::Refused(refusal)),
        identity => Ok(Opened { link, identity }),
    }
}

/// Whether a refused login may well succeed a little later.
const fn is_passing(code: Code) -> bool {
    matches!(code, Code::RateLimited | Code::TooMany)
}

impl Link {
    /// Asks one thing and waits for the answer, before anything else is asked.
    async fn ask(&mut self, request: &Request) -> Result<Result<OkFields, Refusal>, LinkError> {
        const ID: Option<RequestId> = RequestId::new(u32::MAX);
        self.writer.queue(ID, request).map_err(LinkError::Protocol)?;
        self.writer.flush_all().await?;
        loop {
            let incoming = self.reader.next().await?;
            let reply = incoming.message.map_err(|bad| LinkError::Protocol(bad.refusal.to_string()))?;
            match reply {
                Reply::Error { failure, explanation } => return Err(failed(failure, &explanation)),
                Reply::Ok(fields) if incoming.id == ID => return Ok(Ok(fields)),
                Reply::NotOk(refusal) if incoming.id == ID => return Ok(Err(refusal)),
                Reply::NotOk(refusal) if incoming.id.is_none() => return Err(LinkError::refused(refusal)),
                // Nothing else can be meant for a connection that is new.
                _ => {}
            }
        }
    }

    /// Closes the connection in such a way that what was written arrives:
    /// closing a socket with bytes unread would discard it.
    pub(crate) async fn finish(mut self) {
        let last_word = async {
            self.writer.flush_all().await?;
            poll_fn(|cx| self.writer.poll_close(cx)).await?;
            while self.reader.next().await.is_ok() {}
            Ok::<(), LinkError>(())
        };
        // There is nobody left to tell: everything was answered before.
        drop(tokio::time::timeout(FINISH, last_word).await);
    }
}

/// What an `error` from the server means for the link.
pub(crate) fn failed(failure: Failure, explanation: &str) -> LinkError {
    match failure {
        Failure::Unavailable => LinkError::Unavailable(explanation.to_owned()),
        Failure::Protocol => LinkError::Protocol(explanation.to_owned()),
    }
}

/// Why a request that is over the server's largest frame is not sent.
fn too_large(request: &Request, frame_bytes_max: usize) -> String {
    match request {
        Request::Send { text, .. } => {
            let most = text_bytes_max(frame_bytes_max);
            format!("the text has {} bytes, and this server takes at most {most}", text.len())
        }
        _ => format!("it does not fit in this server's largest frame, {frame_bytes_max} bytes"),
    }
}
