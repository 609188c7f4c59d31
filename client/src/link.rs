//! One connection: frames in and out, and the handshake that opens it. Knows
//! the native framing and no rules; another transport would be another link.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::{FRAME_BYTES_DEFAULT, LENGTH_BYTES, VERSION};
use hark_protocol::{Code, Failure, Incoming, OkFields, Refusal, Reply, Request, RequestId, SessionToken};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::Instant;
use tokio_util::codec::Decoder as _;

use crate::dial::{Dial, Stream};

/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// Bytes that are collected before they have to be written.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// How long a link that is closed may take to say its last word.
const FINISH: Duration = Duration::from_secs(1);

/// A connection to a server that has answered `hello`.
pub(crate) struct Link {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

/// The side that receives.
pub(crate) struct Reader {
    stream: ReadHalf<Box<dyn Stream>>,
    codec: ClientCodec,
    buffer: BytesMut,
    /// When the last byte came.
    pub(crate) heard: Instant,
}

/// The side that sends.
pub(crate) struct Writer {
    stream: WriteHalf<Box<dyn Stream>>,
    buffer: BytesMut,
    frame_bytes_max: usize,
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
    #[error("the server does not answer")]
    Silent,
    #[error("the server has failed: {0}")]
    Unavailable(String),
    #[error("the server refuses for now: {0}")]
    Refused(Refusal),
    #[error("{0}")]
    Taken(io::Error),
    #[error("a new session begins")]
    SessionSpent,
}

impl LinkError {
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
pub(crate) async fn open(dial: &dyn Dial, introduction: &Introduction) -> Result<Opened, LinkError> {
    let mut link = Link::new(dial.dial().await?);
    let hello = Request::Hello { version: VERSION, session: introduction.session.clone() };
    let fields = link.ask(&hello).await?.map_err(LinkError::Refused)?;
    let (_, frame_bytes_max) = fields
        .as_hello()
        .ok_or_else(|| LinkError::Protocol("it answers hello with something else".into()))?;
    link.reader.codec = ClientCodec::new(frame_bytes_max.saturating_add(native::PUSH_BYTES_BESIDE_TEXT));
    link.writer.frame_bytes_max = frame_bytes_max;
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
    fn new(stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Reader {
                stream: reader,
                codec: ClientCodec::new(FRAME_BYTES_DEFAULT),
                buffer: BytesMut::new(),
                heard: Instant::now(),
            },
            writer: Writer { stream: writer, buffer: BytesMut::new(), frame_bytes_max: FRAME_BYTES_DEFAULT },
        }
    }

    /// Asks one thing and waits for the answer, before anything else is asked.
    async fn ask(&mut self, request: &Request) -> Result<Result<OkFields, Refusal>, LinkError> {
        const ID: Option<RequestId> = RequestId::new(u32::MAX);
        self.writer.queue(ID, request).map_err(LinkError::Protocol)?;
        while !self.writer.is_flushed() {
            self.writer.flush().await?;
        }
        loop {
            let incoming = self.reader.next().await?;
            let reply = incoming.message.map_err(|bad| LinkError::Protocol(bad.to_string()))?;
            match reply {
                Reply::Error { failure, explanation } => return Err(failed(failure, &explanation)),
                Reply::Ok(fields) if incoming.id == ID => return Ok(Ok(fields)),
                Reply::NotOk(refusal) if incoming.id == ID => return Ok(Err(refusal)),
                // Nothing else can be meant for a connection that is new.
                _ => {}
            }
        }
    }

    /// Closes the connection in such a way that what was written arrives:
    /// closing a socket with bytes unread would discard it.
    pub(crate) async fn finish(mut self) {
        let last_word = async {
            while !self.writer.is_flushed() {
                self.writer.flush().await?;
            }
            self.writer.stream.shutdown().await?;
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

impl Reader {
    /// Waits for the next frame. Cancel-safe: what has been read stays in the
    /// buffer.
    pub(crate) async fn next(&mut self) -> Result<Incoming<Reply>, LinkError> {
        loop {
            match self.codec.decode(&mut self.buffer) {
                Ok(Some(incoming)) => return Ok(incoming),
                Ok(None) => {}
                Err(error) => return Err(LinkError::Protocol(error.to_string())),
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(LinkError::Ended);
            }
            self.heard = Instant::now();
        }
    }
}

impl Writer {
    /// Collects a request to be written; `Err` says why it is too large for
    /// this server, and nothing is collected then.
    pub(crate) fn queue(&mut self, id: Option<RequestId>, request: &Request) -> Result<(), String> {
        let start = self.buffer.len();
        native::encode(id, request, &mut self.buffer).map_err(|error| error.to_string())?;
        let bytes = self.buffer.len() - start - LENGTH_BYTES;
        if bytes > self.frame_bytes_max {
            self.buffer.truncate(start);
            return Err(format!("a frame of {bytes} bytes is over the server's {}", self.frame_bytes_max));
        }
        Ok(())
    }

    /// Whether there is room to collect more.
    pub(crate) fn has_room(&self) -> bool {
        self.buffer.len() < WRITE_BYTES_MAX
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Writes some of what was collected. Cancel-safe: what is written leaves
    /// the buffer in the same step.
    pub(crate) async fn flush(&mut self) -> Result<(), LinkError> {
        match self.stream.write_buf(&mut self.buffer).await? {
            0 => Err(LinkError::Ended),
            _ => Ok(()),
        }
    }
}
