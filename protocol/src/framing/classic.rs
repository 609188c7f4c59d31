//! The classic framing: the format of Hark's predecessor, without lengths and
//! ids, and with at most 1024 bytes per message.
//!
//! A client sends a message either bare, ending where the read ends, or padded
//! with NUL to 1024 bytes. The server pads every message to 1024 bytes. The
//! decoder applies these rules, in order, to the received bytes:
//!
//! 1. NULs before a command are skipped.
//! 2. Fewer than 15 bytes: wait for more.
//! 3. A command alone, if its fields are required: wait for them, up to
//!    [`FIELDS_WAIT_MS`] ([`ClassicServerCodec::awaits_fields`]).
//! 4. More than 1024 bytes: several padded blocks, or a message that is too
//!    long, which is refused once and skipped up to the next command. If the
//!    first 1024 bytes have no padding and a possible command follows, wait for
//!    its 15 bytes as in rule 3.
//! 5. Bytes that end in NUL: an incomplete block.
//! 6. Anything else: one complete message.

use bytes::{Buf, BufMut, BytesMut};
use bytestring::ByteString;
use tokio_util::codec::{Decoder, Encoder};

use super::{Malformed, ProtocolError};
use crate::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES};
use crate::message::{self, HELLO, Message, OkFields, REQUEST_COMMANDS};
use crate::{Code, Refusal, Reply, Request};

/// Time for which the decoder waits for the fields of a command, in
/// milliseconds.
pub const FIELDS_WAIT_MS: u64 = 50;

/// Size of a block's payload, in bytes.
const PAYLOAD_BYTES: usize = CLASSIC_BLOCK_BYTES - COMMAND_BYTES;

/// Free space in the buffer before each read, in bytes: one byte more than a
/// message, so that a read either ends with the message or shows that it is too
/// long.
const READ_BYTES: usize = CLASSIC_BLOCK_BYTES + 1;

/// The server side of the classic framing.
///
/// A bare message ends where its read ends. After every read the caller
/// therefore calls [`Decoder::decode`] until it returns `None`. That call
/// reserves room for a whole message; the first read needs as much.
#[derive(Debug, Clone, Default)]
pub struct ClassicServerCodec {
    /// The rest of a refused, overlong message is being skipped.
    discarding: bool,
    /// The wait for more bytes has timed out.
    overdue: bool,
}

impl ClassicServerCodec {
    /// Returns whether the buffer is ambiguous: it holds a command without its
    /// fields, or 1024 bytes and the first letters of a possible next command.
    /// The caller waits [`FIELDS_WAIT_MS`] for more, then calls
    /// [`Self::give_up_on_fields`].
    #[must_use]
    pub fn awaits_fields(&self, src: &[u8]) -> bool {
        !self.discarding && Head::of(src) == Head::Undecided
    }

    /// Ends the wait: the next `decode` takes the command without fields, or
    /// refuses the message as too long.
    pub fn give_up_on_fields(&mut self) {
        self.overdue = true;
    }

    /// Skips the rest of an overlong message. The remaining bytes begin with a
    /// command or a possible command.
    fn discard(&mut self, src: &mut BytesMut) {
        let next = (0..src.len()).find(|&at| src.get(at..).is_some_and(may_be_command));
        src.advance(next.unwrap_or(src.len()));
        self.discarding = src.len() < COMMAND_BYTES;
    }
}

impl Decoder for ClassicServerCodec {
    type Item = Result<Request, Malformed>;
    type Error = ProtocolError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, ProtocolError> {
        let overdue = std::mem::take(&mut self.overdue);
        if self.discarding {
            self.discard(src);
        }
        let padding = src.iter().take_while(|&&b| b == 0).count();
        src.advance(padding);
        let head = if self.discarding {
            Head::Incomplete
        } else {
            Head::of(src)
        };
        match head {
            Head::Message => Ok(Some(take(src))),
            Head::Undecided if overdue && src.len() == COMMAND_BYTES => Ok(Some(take(src))),
            Head::Undecided if !overdue => Ok(wait(src)),
            Head::Incomplete => Ok(wait(src)),
            Head::Undecided | Head::TooLong => {
                let is_hello = message::is_command(src, HELLO);
                src.advance(COMMAND_BYTES);
                self.discard(src);
                let refusal = Refusal::new(
                    Code::TooLarge,
                    "a message in the classic framing has at most 1024 bytes; this one was discarded",
                );
                Ok(Some(Err(Malformed { refusal, is_hello })))
            }
        }
    }
}

/// Classification of the buffered bytes, after leading NULs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// More bytes are needed.
    Incomplete,
    /// Ambiguous: see [`ClassicServerCodec::awaits_fields`].
    Undecided,
    /// A complete message.
    Message,
    /// A bare message of more than 1024 bytes.
    TooLong,
}

impl Head {
    fn of(src: &[u8]) -> Self {
        if src.len() <= COMMAND_BYTES {
            return match src.len() {
                COMMAND_BYTES if needs_fields(src) => Self::Undecided,
                COMMAND_BYTES => Self::Message,
                _ => Self::Incomplete,
            };
        }
        let Some((block, next)) = src.split_at_checked(CLASSIC_BLOCK_BYTES) else {
            return if src.ends_with(&[0]) {
                Self::Incomplete
            } else {
                Self::Message
            };
        };
        if next.is_empty() || block.ends_with(&[0]) {
            Self::Message
        } else if !may_be_command(next) {
            Self::TooLong
        } else if next.len() < COMMAND_BYTES {
            Self::Undecided
        } else {
            Self::Message
        }
    }
}

/// Takes the first message, at most one block.
fn take(src: &mut BytesMut) -> Result<Request, Malformed> {
    let mut message = src.split_to(CLASSIC_BLOCK_BYTES.min(src.len()));
    parse(without_padding(&mut message))
}

/// Reserves room for the next read: a read that the buffer cuts short would
/// look like a complete message.
fn wait<T>(src: &mut BytesMut) -> Option<T> {
    src.reserve(READ_BYTES);
    None
}

/// Appends a reply as blocks of 1024 bytes: none if the classic framing has no
/// equivalent, several if it exceeds one block. Texts are split between
/// characters, lists between names.
pub fn encode(reply: &Reply, dst: &mut BytesMut) {
    match reply {
        // Classic clients receive no pushes of rooms and devices.
        Reply::Bye(_) | Reply::Room(_) => {}
        Reply::String(delivery) => {
            let mut rest = &*delivery.text;
            loop {
                let (part, after) = rest.split_at(rest.floor_char_boundary(PAYLOAD_BYTES));
                write_block("string", part.as_bytes(), dst);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
        Reply::List(names) => {
            for part in message::list_parts(names, PAYLOAD_BYTES) {
                let mut payload = BytesMut::new();
                message::write_names(part, &mut payload);
                write_block("list", &payload, dst);
            }
        }
        // Classic clients know no sequence numbers.
        Reply::Ok(OkFields::Stored(_)) => write_block(reply.command(), &[], dst),
        Reply::Ok(_) | Reply::NotOk(_) | Reply::Error { .. } => {
            let mut payload = BytesMut::new();
            reply.write_payload(&mut payload);
            let text = String::from_utf8_lossy(&payload);
            let (fits, _) = text.split_at(text.floor_char_boundary(PAYLOAD_BYTES));
            write_block(reply.command(), fits.as_bytes(), dst);
        }
    }
}

impl Encoder<Reply> for ClassicServerCodec {
    type Error = ProtocolError;

    fn encode(&mut self, reply: Reply, dst: &mut BytesMut) -> Result<(), ProtocolError> {
        encode(&reply, dst);
        Ok(())
    }
}

/// The client side of the classic framing, with padded messages.
#[derive(Debug, Clone, Default)]
pub struct ClassicClientCodec;

impl Encoder<Request> for ClassicClientCodec {
    type Error = ProtocolError;

    /// Appends one padded block.
    ///
    /// # Errors
    /// [`ProtocolError::Unencodable`] for a message of more than 1024 bytes;
    /// `dst` is unchanged in that case.
    fn encode(&mut self, request: Request, dst: &mut BytesMut) -> Result<(), ProtocolError> {
        let mut payload = BytesMut::new();
        request.write_payload(&mut payload);
        if payload.len() > PAYLOAD_BYTES {
            return Err(ProtocolError::Unencodable(COMMAND_BYTES + payload.len()));
        }
        write_block(request.command(), &payload, dst);
        Ok(())
    }
}

impl Decoder for ClassicClientCodec {
    /// The command and the payload of a block. They stay unparsed because
    /// `string` has fewer fields than in the native framing.
    type Item = Result<(ByteString, ByteString), Refusal>;
    type Error = ProtocolError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, ProtocolError> {
        if src.len() < CLASSIC_BLOCK_BYTES {
            src.reserve(CLASSIC_BLOCK_BYTES - src.len());
            return Ok(None);
        }
        let mut block = src.split_to(CLASSIC_BLOCK_BYTES);
        let fields = message::split(without_padding(&mut block));
        Ok(Some(fields.map(|(command, payload)| {
            (command.into(), payload.into())
        })))
    }
}

fn parse(message: &mut [u8]) -> Result<Request, Malformed> {
    if let Some(refusal) = unknown_command(message) {
        message::wipe_secret(message);
        return Err(refusal.into());
    }
    let request = super::parse(message)?;
    let is_hello = matches!(request, Request::Hello { .. });
    if !is_hello && !matches!(request, Request::Ack { .. }) {
        return Ok(request);
    }
    let refusal = Refusal::new(
        Code::BadRequest,
        "the classic framing supports neither sessions nor acknowledgements; use the native framing",
    );
    Err(Malformed { refusal, is_hello })
}

/// Returns the refusal of a command that this framing does not have, such as those of
/// rooms and devices.
fn unknown_command(message: &[u8]) -> Option<Refusal> {
    let (command, _) = message::split(message).ok()?;
    let is_known = REQUEST_COMMANDS.iter().any(|(known, _)| *known == command);
    (!is_known).then(|| message::unknown_command(command))
}

fn write_block(command: &str, payload: &[u8], dst: &mut BytesMut) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES);
    message::write_command(command, dst);
    dst.put_slice(payload);
    dst.put_bytes(0, PAYLOAD_BYTES.saturating_sub(payload.len()));
}

/// Strips the NULs after the payload.
fn without_padding(message: &mut [u8]) -> &mut [u8] {
    let end = message
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    let end = end.max(COMMAND_BYTES).min(message.len());
    message.get_mut(..end).unwrap_or_default()
}

/// Returns whether the bytes are, or may become, a known command padded to 15
/// bytes.
fn may_be_command(src: &[u8]) -> bool {
    let src = src.get(..COMMAND_BYTES).unwrap_or(src);
    !src.is_empty()
        && REQUEST_COMMANDS.iter().any(|(command, _)| {
            let (name, padding) = src.split_at(command.len().min(src.len()));
            command.as_bytes().starts_with(name) && padding.iter().all(|&b| b == 0)
        })
}

fn needs_fields(command: &[u8]) -> bool {
    REQUEST_COMMANDS.iter().any(|(name, optional)| {
        !optional
            && command
                .strip_prefix(name.as_bytes())
                .is_some_and(|padding| padding.iter().all(|&b| b == 0))
    })
}
