//! The fronts: from bytes to requests, and from replies to bytes. The first
//! byte of a connection says which. No rules of the chat are here.

mod grpc;
mod linger;
pub mod wire;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hark_protocol::framing::{classic, native};
use hark_protocol::{Code, Delivery, Refusal, Reply};
use tokio::net::TcpStream;

use crate::chat::{Chat, Control, Peer};
use crate::store::Message;
use grpc::Grpc;
use wire::{Framing, Wire};

pub use grpc::{MayWatch, WatchLogs};

/// Who is refused has this long to say which framing it speaks.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What a front needs to know beside the chat.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A peer that owes acknowledgements, or does not read, and from which
    /// nothing has come for so long is dropped.
    pub ack_timeout: Duration,
    /// The log, where somebody may watch it.
    pub watch_logs: Option<WatchLogs>,
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

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// What the socket says. A peer that misbehaves is no error; the log says
    /// why it was dropped.
    pub async fn serve(&self, stream: TcpStream, address: IpAddr, control: Arc<Control>) -> io::Result<()> {
        let first = tokio::select! {
            first = first_byte(&stream) => first?,
            () = std::future::poll_fn(|cx| control.poll(cx).map(drop)) => None,
        };
        match first.and_then(|byte| speech(byte, address, self.chat.rules().frame_bytes_max)) {
            Some(Speech::Wire(framing)) => {
                let peer = Peer::new(Arc::clone(&self.chat), address, control);
                Wire::new(stream, framing, peer, self.settings.ack_timeout).run().await
            }
            // In a box, so that the other connections take no room for it.
            Some(Speech::Grpc) => Box::pin(self.grpc.serve(stream, address, &control)).await,
            None => Ok(()),
        }
    }
}

/// Tells a connection that there are too many, as it speaks.
///
/// # Errors
/// What the socket says.
pub async fn refuse(stream: TcpStream, address: IpAddr, explanation: &'static str) -> io::Result<()> {
    let Ok(first) = tokio::time::timeout(REFUSAL_TIMEOUT, first_byte(&stream)).await else {
        return Ok(());
    };
    let refusal = Refusal::new(Code::TooMany, explanation);
    let mut output = BytesMut::new();
    match first?.and_then(|byte| speech(byte, address, 0)) {
        Some(Speech::Wire(Framing::Native(_))) => {
            native::encode(None, &Reply::NotOk(refusal), &mut output).map_err(io::Error::other)?;
        }
        Some(Speech::Wire(Framing::Classic(_))) => classic::encode(&Reply::NotOk(refusal), &mut output),
        Some(Speech::Grpc) => return grpc::refuse(stream, &refusal, REFUSAL_TIMEOUT).await,
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
        other => {
            tracing::warn!(%address, "closing a connection that begins with byte {other:#04x}: neither a native frame (0x00), nor a classic command (a to z), nor HTTP/2 (P)");
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

/// The first byte, left in the socket. `None` where the peer closes first.
/// Costs no buffer while nothing comes. Cancel-safe.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    let count = stream.peek(&mut first).await?;
    Ok((count > 0).then_some(first[0]))
}
