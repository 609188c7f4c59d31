//! The fronts: from bytes to requests, and from replies to bytes. The first bytes of a
//! connection, or the first ones inside TLS, select the front. Fronts contain no rules
//! of the chat.
//!
//! | module | owns |
//! | --- | --- |
//! | `first_bytes`, `unread` | the choice of the protocol; a stream with its first bytes put back |
//! | `wire` | connections in the native, the classic and the WebSocket framing |
//! | `http2` | HTTP/2 connections, which gRPC and HTTP share |
//! | `grpc` | the calls of gRPC |
//! | `http` | HTTP/1.1 connections, and the requests of HTTP |
//! | `caller`, `call` | the connection below a call, and the client connection of a call |
//! | `tls` | the certificate and the handshake |
//! | `rate_limited`, `drain` | a stream that is read at a limited rate; a lingering close |
//! | `read_within` | a response over HTTP/2 that must be read |

mod call;
mod caller;
mod drain;
mod first_bytes;
mod grpc;
pub(crate) mod http;
mod http2;
mod rate_limited;
mod read_within;
mod tls;
mod unread;
pub mod wire;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hark_protocol::{Code, Refusal, Reply, RoomReply};
use rustls::AlertDescription;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};

use self::first_bytes::{FirstBytes, Protocol};
use self::grpc::Grpc;
use self::http::Http;
use self::http2::Http2;
use self::unread::Unread;
use crate::administration::AdminSlot;
use crate::bans::Bans;
use crate::chat::{Chat, ClientConnection, Output, ShutdownSignal, delivery};
use crate::listener::{Accepted, Stream};
use crate::metrics::FrontKind;
use wire::{Framing, Wire};

pub(crate) use grpc::caller_address;
pub use grpc::{MayWatch, WatchLogs};
pub use http::{HttpSettings, Origin};
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
    /// The settings of HTTP.
    pub http: HttpSettings,
}

/// All fronts of a server.
#[derive(Debug)]
pub struct Fronts {
    chat: Arc<Chat>,
    settings: Settings,
    http: Http,
    http2: Http2,
}

impl Fronts {
    /// Returns the fronts of `chat`, and of the administration in a slot.
    pub(crate) fn new(
        chat: Arc<Chat>,
        settings: Settings,
        bans: Arc<Bans>,
        admin: AdminSlot,
    ) -> Self {
        let grpc = Grpc::new(&chat, &settings, admin);
        let http = Http::new(&chat, &settings, bans);
        Self {
            http2: Http2::new(&chat, grpc, http.clone(), settings.ack_timeout),
            http,
            chat,
            settings,
        }
    }

    /// Sets the maximum number of open requests of an address behind a proxy.
    pub(crate) fn set_requests_max(&self, requests_max: usize) {
        self.http.set_requests_max(requests_max);
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
        let Some(first) = first else { return Ok(None) };
        match FirstBytes::of(&[first]) {
            // Boxed, so that plaintext connections do not reserve memory for it.
            FirstBytes::Known(Protocol::Tls) => {
                Box::pin(self.serve_tls(stream, address, shutdown)).await?;
                Ok(None)
            }
            _ if refuses_plaintext => {
                tracing::info!(%address, "plaintext connection refused (--allow-plaintext is not set)");
                let refusal = Refusal::new(Code::Denied, TLS_ONLY);
                Box::pin(refuse_as(stream, address, &refusal)).await?;
                Ok(None)
            }
            FirstBytes::Known(protocol) => Ok(self
                .framing(protocol)
                .map(|framing| self.wire(stream, framing, address, shutdown))),
            FirstBytes::Incomplete | FirstBytes::Unknown => {
                Box::pin(self.serve_http(stream, address, None, shutdown)).await
            }
        }
    }

    /// Serves a connection over a Unix socket, without TLS.
    async fn serve_unix(
        &self,
        stream: UnixStream,
        address: IpAddr,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<()> {
        // Its buffer has one byte, and later reads bypass it.
        let mut stream = BufReader::with_capacity(1, stream);
        let first = tokio::select! {
            first = first_buffered(&mut stream) => first?,
            () = self.idle_timeout(address) => None,
            () = shutdown_requested(&shutdown) => None,
        };
        let Some(first) = first else { return Ok(()) };
        let framing = match FirstBytes::of(&[first]) {
            FirstBytes::Known(Protocol::Tls) => {
                tracing::info!(%address, "connection closed: TLS on a Unix socket");
                return Ok(());
            }
            FirstBytes::Known(protocol) => self.framing(protocol),
            FirstBytes::Incomplete | FirstBytes::Unknown => None,
        };
        if let Some(framing) = framing {
            return self.wire(stream, framing, address, shutdown).run().await;
        }
        match Box::pin(self.serve_http(stream, address, None, shutdown)).await? {
            Some(wire) => wire.run().await,
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
        let Some((stream, first)) = opened else {
            return Ok(());
        };
        let chosen = tls::chosen(&stream);
        let framing = match FirstBytes::of(&[first]) {
            FirstBytes::Known(protocol) if chosen.is_none() => self.framing(protocol),
            _ => None,
        };
        if let Some(framing) = framing {
            return self.wire(stream, framing, address, shutdown).run().await;
        }
        match Box::pin(self.serve_http(stream, address, chosen, shutdown)).await? {
            Some(wire) => wire.run().await,
            None => Ok(()),
        }
    }

    /// Returns the framing of a protocol whose first byte suffices.
    fn framing(&self, protocol: Protocol) -> Option<Framing> {
        let frame_bytes_max = self.chat.rules().frame_bytes_max;
        match protocol {
            Protocol::Native => Some(Framing::native(frame_bytes_max)),
            Protocol::Classic => Some(Framing::classic()),
            Protocol::Tls | Protocol::Http1 | Protocol::Http2 => None,
        }
    }

    fn wire<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        framing: Framing,
        address: IpAddr,
        shutdown: Arc<ShutdownSignal>,
    ) -> Wire<S> {
        let connection = ClientConnection::new(Arc::clone(&self.chat), address, shutdown)
            .limited_by(self.chat.rate_limiter(address));
        let kind = if framing.is_classic() {
            FrontKind::Classic
        } else {
            FrontKind::Native
        };
        let guard = self.chat.metrics().open(kind);
        Wire::new(stream, framing, connection, self.settings.ack_timeout).counted(guard)
    }

    /// Serves a connection of HTTP, whose version `chosen` by ALPN must agree with its first
    /// bytes. A connection that becomes a WebSocket is returned.
    async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        address: IpAddr,
        chosen: Option<Protocol>,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<Option<Wire<S>>> {
        let read = tokio::select! {
            read = first_bytes::read(&mut stream) => read?,
            () = shutdown_requested(&shutdown) => return Ok(None),
        };
        let (protocol, first) = match read {
            Ok(read) => read,
            Err(reason) => {
                tracing::info!(%address, %reason, "connection closed");
                return Ok(None);
            }
        };
        match protocol {
            _ if chosen.is_some_and(|chosen| chosen != protocol) => {
                tracing::info!(%address, ?chosen, ?protocol, "connection closed: first bytes contradict ALPN");
                Ok(None)
            }
            Protocol::Http1 => self.http.serve(stream, first, address, shutdown).await,
            Protocol::Http2 => {
                let stream = Unread::new(first, stream);
                let _counted = self.chat.metrics().open(FrontKind::Http2);
                self.http2.serve(stream, address, &shutdown).await?;
                Ok(None)
            }
            Protocol::Tls | Protocol::Native | Protocol::Classic => {
                tracing::info!(%address, ?protocol, "connection closed: unexpected protocol inside TLS");
                Ok(None)
            }
        }
    }

    /// Waits until the time within which a connection must send its first byte is
    /// over.
    async fn idle_timeout(&self, address: IpAddr) {
        tokio::time::sleep(self.settings.ack_timeout).await;
        tracing::debug!(%address, timeout = ?self.settings.ack_timeout, "connection closed: no first byte");
    }
}

/// Refuses a connection in the protocol that it speaks.
///
/// # Errors
/// An error of the socket.
pub async fn refuse(stream: Stream, address: IpAddr, refusal: Refusal) -> io::Result<()> {
    let stream = match stream {
        Stream::Tcp(stream) => stream,
        Stream::Unix(stream) => return refuse_as(stream, address, &refusal).await,
    };
    let Ok(first) = tokio::time::timeout(REFUSAL_TIMEOUT, first_byte(&stream)).await else {
        return Ok(());
    };
    match first?.map(|first| FirstBytes::of(&[first])) {
        None => Ok(()),
        // A handshake would cost more than the connection that is refused.
        Some(FirstBytes::Known(Protocol::Tls)) => {
            tls::refuse(stream, AlertDescription::InternalError).await
        }
        Some(_) => refuse_as(stream, address, &refusal).await,
    }
}

/// Refuses a plaintext connection in the protocol of its first bytes.
async fn refuse_as(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: IpAddr,
    refusal: &Refusal,
) -> io::Result<()> {
    let reading = tokio::time::timeout(REFUSAL_TIMEOUT, first_bytes::read(&mut stream));
    let (protocol, first) = match reading.await {
        Ok(Ok(Ok(read))) => read,
        Ok(Ok(Err(reason))) => {
            tracing::debug!(%address, %reason, "refused connection closed");
            return Ok(());
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Ok(()),
    };
    let mut framing = match protocol {
        Protocol::Native => Framing::native(0),
        Protocol::Classic => Framing::classic(),
        Protocol::Http1 => {
            let mut response = http::refusal_bytes(refusal);
            return drain::close(stream, &mut response).await;
        }
        Protocol::Http2 => {
            let stream = Unread::new(first, stream);
            return Box::pin(http2::refuse(stream, refusal, REFUSAL_TIMEOUT)).await;
        }
        Protocol::Tls => return Ok(()),
    };
    let mut output = BytesMut::new();
    framing
        .encode(None, &Reply::NotOk(refusal.clone()), &mut output)
        .map_err(io::Error::other)?;
    drain::close(stream, &mut output).await
}

/// Returns the message of a push; `None` for another output. Texts are shared.
fn push(output: Output) -> Option<Reply> {
    match output {
        Output::Push(message) => Some(Reply::String(delivery(&message))),
        Output::Said(said) => Some(Reply::Room(RoomReply::Said {
            room: said.room.clone(),
            delivery: delivery(&said.message),
        })),
        Output::Notice(notice) => Some(Reply::Room(notice)),
        Output::Reply(..) | Output::Bye(_) | Output::Close => None,
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
