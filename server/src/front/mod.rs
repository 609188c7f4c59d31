//! The fronts: from bytes to requests, and from replies to bytes. The first byte of a
//! connection, or the first one inside TLS, selects the front. Fronts contain no rules
//! of the chat.

mod drain;
mod grpc;
mod tls;
pub mod wire;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hark_protocol::{Code, Delivery, Refusal, Reply};
use rustls::AlertDescription;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};

use crate::administration::AdminSlot;
use crate::chat::{Chat, ClientConnection, ShutdownSignal};
use crate::listener::{Accepted, Stream};
use crate::store::Message;
use grpc::Grpc;
use wire::{Framing, Wire};

pub(crate) use grpc::caller_address;
pub use grpc::{MayWatch, WatchLogs};
pub use tls::{Tls, TlsError};

/// How long a refused connection has to send its first byte.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The refusal of a plaintext connection.
const TLS_ONLY: &str = "this server requires TLS; connect with TLS (hark --tls)";

/// The settings of the fronts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The idle timeout of a peer that owes acknowledgements, does not read, or has not
    /// sent a byte yet; and the time in which a frame must be complete.
    pub ack_timeout: Duration,
    /// The log, if it may be watched.
    pub watch_logs: Option<WatchLogs>,
    /// The certificate, if there is one.
    pub tls: Option<Tls>,
}

/// All fronts of a server.
#[derive(Debug)]
pub struct Fronts {
    chat: Arc<Chat>,
    settings: Settings,
    grpc: Grpc,
}

/// The protocol that the first byte of a connection selects.
enum WireProtocol {
    Wire(Framing),
    Grpc,
}

impl Fronts {
    /// Returns the fronts of `chat`, and of the administration in a slot.
    pub(crate) fn new(chat: Arc<Chat>, settings: Settings, admin: AdminSlot) -> Self {
        Self {
            grpc: Grpc::new(&chat, &settings, admin),
            chat,
            settings,
        }
    }

    /// Returns the settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Serves one connection to its end. A plaintext connection of the wire front over TCP
    /// is returned instead, so that the caller can serve it in a task that holds nothing
    /// else.
    ///
    /// # Errors
    /// An error of the socket. A misbehaving peer that is dropped is logged, and is
    /// not an error.
    pub async fn serve(
        &self,
        accepted: Accepted,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<Option<Wire<TcpStream>>> {
        let (address, refuses_plaintext) = (accepted.address, accepted.refuses_plaintext);
        let stream = match accepted.stream {
            Stream::Tcp(stream) => stream,
            // Boxed, so that connections over TCP do not reserve memory for it.
            Stream::Unix(stream) => {
                Box::pin(self.serve_unix(stream, address, shutdown)).await?;
                return Ok(None);
            }
        };
        let first = tokio::select! {
            first = first_byte(&stream) => first?,
            () = self.idle_timeout(address) => None,
            () = shutdown_requested(&shutdown) => None,
        };
        match first {
            None => Ok(None),
            // Boxed, so that plaintext connections do not reserve memory for it.
            Some(tls::HANDSHAKE) => {
                Box::pin(self.serve_tls(stream, address, shutdown)).await?;
                Ok(None)
            }
            Some(first) if refuses_plaintext => {
                tracing::info!(%address, "plaintext connection refused (--allow-plaintext is not set)");
                let refusal = Refusal::new(Code::Denied, TLS_ONLY);
                Box::pin(refuse_as(stream, first, address, &refusal)).await?;
                Ok(None)
            }
            Some(first) => self.serve_as(stream, first, address, shutdown).await,
        }
    }

    /// Serves a connection over a Unix socket, without TLS.
    async fn serve_unix(
        &self,
        stream: UnixStream,
        address: IpAddr,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<()> {
        let mut stream = peekable(stream);
        let first = tokio::select! {
            first = first_buffered(&mut stream) => first?,
            () = self.idle_timeout(address) => None,
            () = shutdown_requested(&shutdown) => None,
        };
        match first {
            Some(first) => match self.serve_as(stream, first, address, shutdown).await? {
                Some(wire) => wire.run().await,
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    async fn serve_tls(
        &self,
        stream: TcpStream,
        address: IpAddr,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<()> {
        let Some(tls) = &self.settings.tls else {
            tracing::info!(%address, "TLS connection refused: no certificate (--tls-cert and --tls-key)");
            return tls::refuse(stream, AlertDescription::HandshakeFailure).await;
        };
        let opened = tokio::select! {
            opened = open_tls(tls, stream, address) => opened?,
            () = self.idle_timeout(address) => None,
            () = shutdown_requested(&shutdown) => None,
        };
        match opened {
            Some((stream, first)) => match self.serve_as(stream, first, address, shutdown).await? {
                Some(wire) => wire.run().await,
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Waits until the time within which a connection must send its first byte is
    /// over.
    async fn idle_timeout(&self, address: IpAddr) {
        tokio::time::sleep(self.settings.ack_timeout).await;
        tracing::debug!(%address, timeout = ?self.settings.ack_timeout, "connection closed: no first byte");
    }

    /// Serves a connection in the protocol that its first byte selects; that byte is
    /// still unread. A connection of the wire front is returned.
    async fn serve_as<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        first: u8,
        address: IpAddr,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<Option<Wire<S>>> {
        match protocol(first, address, self.chat.rules().frame_bytes_max) {
            Some(WireProtocol::Wire(framing)) => {
                let connection = ClientConnection::new(Arc::clone(&self.chat), address, shutdown);
                let connection = connection.limited_by(self.chat.rate_limiter(address));
                Ok(Some(Wire::new(
                    stream,
                    framing,
                    connection,
                    self.settings.ack_timeout,
                )))
            }
            // Boxed, so that other connections do not reserve memory for it.
            Some(WireProtocol::Grpc) => {
                Box::pin(self.grpc.serve(stream, address, &shutdown)).await?;
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

/// Refuses a connection in the protocol that it speaks.
///
/// # Errors
/// An error of the socket.
pub async fn refuse(stream: Stream, address: IpAddr, refusal: Refusal) -> io::Result<()> {
    match stream {
        Stream::Tcp(stream) => {
            let Ok(first) = tokio::time::timeout(REFUSAL_TIMEOUT, first_byte(&stream)).await else {
                return Ok(());
            };
            refuse_first(stream, first?, address, &refusal).await
        }
        Stream::Unix(stream) => {
            let mut stream = peekable(stream);
            let first = first_buffered(&mut stream);
            let Ok(first) = tokio::time::timeout(REFUSAL_TIMEOUT, first).await else {
                return Ok(());
            };
            refuse_first(stream, first?, address, &refusal).await
        }
    }
}

/// Refuses a connection by its first byte, if there is one.
async fn refuse_first(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    first: Option<u8>,
    address: IpAddr,
    refusal: &Refusal,
) -> io::Result<()> {
    match first {
        None => Ok(()),
        // A handshake would cost more than the connection that is refused.
        Some(tls::HANDSHAKE) => tls::refuse(stream, AlertDescription::InternalError).await,
        Some(first) => refuse_as(stream, first, address, refusal).await,
    }
}

/// Refuses a connection in the protocol of its first byte.
async fn refuse_as(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    first: u8,
    address: IpAddr,
    refusal: &Refusal,
) -> io::Result<()> {
    let mut output = BytesMut::new();
    match protocol(first, address, 0) {
        Some(WireProtocol::Wire(mut framing)) => {
            let reply = Reply::NotOk(refusal.clone());
            framing
                .encode(None, &reply, &mut output)
                .map_err(io::Error::other)?;
        }
        Some(WireProtocol::Grpc) => {
            return Box::pin(grpc::refuse(stream, refusal, REFUSAL_TIMEOUT)).await;
        }
        None => {}
    }
    drain::close(stream, &mut output).await
}

/// Returns the protocol that begins with this byte: a native frame (0x00), a classic
/// command (a to z), or HTTP/2 (P). A connection of another protocol, such as a health
/// check over HTTP/1.1, is logged only at debug, since it may occur every few seconds.
fn protocol(first: u8, address: IpAddr, frame_bytes_max: usize) -> Option<WireProtocol> {
    match first {
        0 => Some(WireProtocol::Wire(Framing::native(frame_bytes_max))),
        b'a'..=b'z' => Some(WireProtocol::Wire(Framing::classic())),
        // The preface of HTTP/2 is `PRI * HTTP/2.0`.
        b'P' => Some(WireProtocol::Grpc),
        tls::HANDSHAKE => {
            tracing::debug!(%address, "connection closed: TLS inside TLS, or on a Unix socket");
            None
        }
        other => {
            let first_byte = format_args!("{other:#04x}");
            tracing::debug!(%address, %first_byte, "connection closed: unknown protocol");
            None
        }
    }
}

/// Returns the push of a message. The text is shared.
fn delivery(message: &Message) -> Delivery {
    Delivery {
        sequence: message.position.sequence,
        sender: message.sender.clone(),
        time_ms: message.time_ms,
        text: message.text.clone(),
    }
}

/// Completes the handshake and waits for the first byte inside, which stays unread.
/// Returns `None` if the peer closes first.
async fn open_tls(
    tls: &Tls,
    stream: TcpStream,
    address: IpAddr,
) -> io::Result<Option<(tls::Stream, u8)>> {
    let Some(mut stream) = tls.accept(stream, address).await else {
        return Ok(None);
    };
    let first = first_buffered(&mut stream).await?;
    Ok(first.map(|first| (stream, first)))
}

/// Returns a stream whose first byte can be read ahead. Its buffer has one byte, and later
/// reads bypass it.
fn peekable(stream: UnixStream) -> BufReader<UnixStream> {
    BufReader::with_capacity(1, stream)
}

/// Waits for the first byte, which stays unread. Returns `None` if the peer closes first.
/// Cancel-safe.
async fn first_buffered(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<u8>> {
    Ok(stream.fill_buf().await?.first().copied())
}

/// Waits for a request to shut down.
async fn shutdown_requested(shutdown: &ShutdownSignal) {
    poll_fn(|cx| shutdown.poll(cx).map(drop)).await;
}

/// Peeks at the first byte, without a buffer. Returns `None` if the peer closes first.
/// Cancel-safe.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    let count = stream.peek(&mut first).await?;
    Ok((count > 0).then_some(first[0]))
}
