//! The fronts: from bytes to requests, and from replies to bytes. The first
//! byte of a connection says which; where it begins TLS, the first one inside
//! says it again. No rules of the chat are here.

mod grpc;
mod linger;
mod tls;
pub mod wire;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hark_protocol::framing::{classic, native};
use hark_protocol::{Code, Delivery, Refusal, Reply};
use rustls::AlertDescription;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::chat::{Chat, ClientConnection, Control};
use crate::store::Message;
use grpc::Grpc;
use wire::{Framing, Wire};

pub use grpc::{MayWatch, WatchLogs};
pub use tls::{Tls, TlsError};

/// Who is refused has this long to say which framing it speaks.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What who speaks plain text is told where only TLS is taken.
const TLS_ONLY: &str = "this server takes encrypted connections only: connect by TLS (hark --tls)";

/// What a front needs to know beside the chat.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A peer that owes acknowledgements, or does not read, or has said nothing
    /// at all, and from which nothing has come for so long is dropped; so is
    /// one whose frame is not whole so long after it began.
    pub ack_timeout: Duration,
    /// The log, where somebody may watch it.
    pub watch_logs: Option<WatchLogs>,
    /// The certificate, where TLS is spoken.
    pub tls: Option<Tls>,
    /// Whether what is not TLS is refused.
    pub tls_only: bool,
}

/// All fronts of a server.
#[derive(Debug)]
pub struct Fronts {
    chat: Arc<Chat>,
    settings: Settings,
    grpc: Grpc,
}

/// What the first byte of a connection stands for.
enum Speech {
    Wire(Framing),
    Grpc,
}

impl Fronts {
    /// The fronts of this chat.
    #[must_use]
    pub fn new(chat: Arc<Chat>, settings: Settings) -> Self {
        Self { grpc: Grpc::new(&chat, &settings), chat, settings }
    }

    /// What was set.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Serves one connection to its end, unless it turns out to be one of the wire
    /// front, in plain text: that is returned, to be served by a task of its own,
    /// which takes no room for anything else.
    ///
    /// # Errors
    /// What the socket says. A peer that misbehaves is no error; the log says
    /// why it was dropped.
    pub async fn serve(
        &self,
        stream: TcpStream,
        address: IpAddr,
        control: Arc<Control>,
    ) -> io::Result<Option<Wire<TcpStream>>> {
        let first = tokio::select! {
            first = first_byte(&stream) => first?,
            () = self.silence(address) => None,
            () = told(&control) => None,
        };
        match first {
            None => Ok(None),
            // In a box, so that the other connections take no room for it.
            Some(tls::HANDSHAKE) => {
                Box::pin(self.serve_tls(stream, address, control)).await?;
                Ok(None)
            }
            Some(first) if self.settings.tls_only => {
                tracing::warn!(%address, "refusing a connection: it is not encrypted, and --allow-plaintext is not set");
                let refusal = Refusal::new(Code::Denied, TLS_ONLY);
                Box::pin(refuse_as(stream, first, address, &refusal)).await?;
                Ok(None)
            }
            Some(first) => Box::pin(self.speak(stream, first, address, control)).await,
        }
    }

    async fn serve_tls(&self, stream: TcpStream, address: IpAddr, control: Arc<Control>) -> io::Result<()> {
        let Some(tls) = &self.settings.tls else {
            tracing::warn!(%address, "refusing TLS: there is no certificate; --tls-cert and --tls-key name one");
            return tls::refuse(stream, AlertDescription::HandshakeFailure).await;
        };
        let opened = tokio::select! {
            opened = open_tls(tls, stream, address) => opened?,
            () = self.silence(address) => None,
            () = told(&control) => None,
        };
        match opened {
            Some((stream, first)) => match self.speak(stream, first, address, control).await? {
                Some(wire) => wire.run().await,
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Waits for as long as a connection may say nothing at first.
    async fn silence(&self, address: IpAddr) {
        tokio::time::sleep(self.settings.ack_timeout).await;
        tracing::info!(%address, "closing a connection that has said nothing");
    }

    /// Serves a connection whose first byte this is, which is still to be read, or
    /// returns it if it is one of the wire front.
    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        first: u8,
        address: IpAddr,
        control: Arc<Control>,
    ) -> io::Result<Option<Wire<S>>> {
        match speech(first, address, self.chat.rules().frame_bytes_max) {
            Some(Speech::Wire(framing)) => {
                let connection = ClientConnection::new(Arc::clone(&self.chat), address, control);
                let connection = connection.at_pace(self.chat.pace(address));
                Ok(Some(Wire::new(stream, framing, connection, self.settings.ack_timeout)))
            }
            Some(Speech::Grpc) => self.grpc.serve(stream, address, &control).await.map(|()| None),
            None => Ok(None),
        }
    }
}

/// Tells a connection why there is no room for it, as it speaks.
///
/// # Errors
/// What the socket says.
pub async fn refuse(stream: TcpStream, address: IpAddr, refusal: Refusal) -> io::Result<()> {
    let Ok(first) = tokio::time::timeout(REFUSAL_TIMEOUT, first_byte(&stream)).await else {
        return Ok(());
    };
    match first? {
        None => Ok(()),
        // A handshake would cost more than the connection that there is no
        // room for.
        Some(tls::HANDSHAKE) => tls::refuse(stream, AlertDescription::InternalError).await,
        Some(first) => refuse_as(stream, first, address, &refusal).await,
    }
}

/// Refuses a connection whose first byte this is, as it speaks.
async fn refuse_as(stream: TcpStream, first: u8, address: IpAddr, refusal: &Refusal) -> io::Result<()> {
    let reply = || Reply::NotOk(refusal.clone());
    let mut output = BytesMut::new();
    match speech(first, address, 0) {
        Some(Speech::Wire(Framing::Native(_))) => {
            native::encode(None, &reply(), &mut output).map_err(io::Error::other)?;
        }
        Some(Speech::Wire(Framing::Classic(_))) => classic::encode(&reply(), &mut output),
        Some(Speech::Grpc) => return Box::pin(grpc::refuse(stream, refusal, REFUSAL_TIMEOUT)).await,
        None => {}
    }
    linger::close(stream, &mut output).await
}

/// What a first byte stands for, or `None` where that is nothing.
fn speech(first: u8, address: IpAddr, frame_bytes_max: usize) -> Option<Speech> {
    match first {
        0 => Some(Speech::Wire(Framing::Native(native::ServerCodec::new(frame_bytes_max)))),
        b'a'..=b'z' => Some(Speech::Wire(Framing::Classic(classic::ClassicServerCodec::default()))),
        // The preface of HTTP/2 is `PRI * HTTP/2.0`.
        b'P' => Some(Speech::Grpc),
        tls::HANDSHAKE => {
            tracing::warn!(%address, "closing a connection that begins TLS inside TLS");
            None
        }
        other => {
            tracing::warn!(%address, "closing a connection that begins with byte {other:#04x}: neither a native frame (0x00), nor a classic command (a to z), nor HTTP/2 (P), nor TLS (0x16)");
            None
        }
    }
}

/// A message as its reader hears it. The text is shared.
fn delivery(message: &Message) -> Delivery {
    Delivery {
        sequence: message.position.sequence,
        sender: message.sender.clone(),
        time_ms: message.time_ms,
        text: message.text.clone(),
    }
}

/// Waits for the end of the handshake and for the first byte inside, which is
/// still to be read. `None` where the peer ends before.
async fn open_tls(tls: &Tls, stream: TcpStream, address: IpAddr) -> io::Result<Option<(tls::Stream, u8)>> {
    let Some(mut stream) = tls.accept(stream, address).await else { return Ok(None) };
    let first = stream.fill_buf().await?.first().copied();
    Ok(first.map(|first| (stream, first)))
}

/// Waits until the connection is told to end.
async fn told(control: &Control) {
    poll_fn(|cx| control.poll(cx).map(drop)).await;
}

/// The first byte, left in the socket. `None` where the peer closes first.
/// Costs no buffer while nothing comes. Cancel-safe.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    let count = stream.peek(&mut first).await?;
    Ok((count > 0).then_some(first[0]))
}
