//! The classic framing: the format of the system that Hark descends from. It
//! has no length and no id, and at most 1024 bytes a message.
//!
//! A client writes either the bare bytes of a message, whose end is the end of
//! what came in one read, or the message padded with NUL to 1024 bytes. The
//! server pads everything to 1024 bytes. The rules, in the order in which the
//! decoder applies them to what has come:
//!
//! 1. NULs before a command are skipped.
//! 2. Fewer than 15 bytes wait for more.
//! 3. Exactly a command, whose fields are required, waits for them, for
//!    [`FIELDS_WAIT_MS`] ([`ClassicServerCodec::awaits_fields`]).
//! 4. More than 1024 bytes are several padded blocks, or a message that is too
//!    long; that one is refused once and dropped up to the next command.
//! 5. What ends in NUL is a block that is still arriving.
//! 6. Anything else is one whole message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use bytestring::ByteString;
use tokio_util::codec::{Decoder, Encoder};

use super::ProtocolError;
use crate::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES};
use crate::message::{self, Code, Message, REQUEST_COMMANDS, Refusal};
use crate::name::UserName;
use crate::{Reply, Request};

/// How long the fields of a command are waited for, in milliseconds.
pub const FIELDS_WAIT_MS: u64 = 50;

/// Bytes of payload in a block.
const PAYLOAD_BYTES: usize = CLASSIC_BLOCK_BYTES - COMMAND_BYTES;

/// The classic framing as a server speaks it.
///
/// The end of a bare message is the end of a read, so whoever reads the stream
/// calls [`Decoder::decode`] until it yields `None` after every read, with a
/// buffer of more than 1024 bytes.
#[derive(Debug, Clone, Default)]
pub struct ClassicServerCodec {
    /// In the rest of a message that was too long and has been refused.
    discarding: bool,
    fields_overdue: bool,
}

impl ClassicServerCodec {
    /// Whether a command has come whose fields have not: they are waited for
    /// [`FIELDS_WAIT_MS`], then [`Self::give_up_on_fields`].
    #[must_use]
    pub fn awaits_fields(&self, src: &[u8]) -> bool {
        src.len() == COMMAND_BYTES && !self.discarding && needs_fields(src)
    }

    /// The fields did not come: the next `decode` takes the command alone.
    pub fn give_up_on_fields(&mut self) {
        self.fields_overdue = true;
    }

    /// Takes one message of `bytes` bytes off the front.
    fn take(&mut self, src: &mut BytesMut, bytes: usize) -> Result<Request, Refusal> {
        self.fields_overdue = false;
        let message = src.split_to(bytes.min(src.len())).freeze();
        let end = message.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        parse(message.slice(..end.max(COMMAND_BYTES.min(message.len()))))
    }

    /// Drops what belongs to a message that was too long. What is left starts
    /// with a command, or with what may become one.
    fn discard(&mut self, src: &mut BytesMut) {
        let next = (0..src.len()).find(|&at| src.get(at..).is_some_and(may_be_command));
        src.advance(next.unwrap_or(src.len()));
        self.discarding = src.len() < COMMAND_BYTES;
    }
}

impl Decoder for ClassicServerCodec {
    type Item = Result<Request, Refusal>;
    type Error = ProtocolError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, ProtocolError> {
        if self.discarding {
            self.discard(src);
            if self.discarding {
                return Ok(None);
            }
        }
        let padding = src.iter().take_while(|&&b| b == 0).count();
        src.advance(padding);
        if src.len() < COMMAND_BYTES || (self.awaits_fields(src) && !self.fields_overdue) {
            return Ok(None);
        }
        if src.len() > CLASSIC_BLOCK_BYTES && !starts_with_block(src) {
            self.discarding = true;
            src.advance(COMMAND_BYTES);
            self.discard(src);
            return Ok(Some(Err(Refusal::new(
                Code::TooLarge,
                "a message in the classic framing has at most 1024 bytes; none of this one was taken",
            ))));
        }
        let whole = src.len() >= CLASSIC_BLOCK_BYTES;
        let padded = src.len() > COMMAND_BYTES && src.last() == Some(&0);
        if !whole && padded {
            return Ok(None);
        }
        Ok(Some(self.take(src, CLASSIC_BLOCK_BYTES)))
    }
}

/// Appends a reply as blocks of 1024 bytes: none where the classic framing has
/// no word for it, several where it does not fit in one. A text is split
/// between characters, a list between names.
pub fn encode(reply: &Reply, dst: &mut BytesMut) {
    match reply {
        Reply::Bye(_) => {}
        Reply::String(delivery) => {
            let mut rest = &*delivery.text;
            loop {
                let (part, after) = rest.split_at(floor_char_boundary(rest, PAYLOAD_BYTES));
                write_block("string", part.as_bytes(), dst);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
        Reply::List(names) => {
            for part in list_parts(names) {
                let mut payload = BytesMut::new();
                message::write_names(part, &mut payload);
                write_block("list", &payload, dst);
            }
        }
        Reply::Ok(_) | Reply::NotOk(_) | Reply::Error { .. } => {
            let mut payload = BytesMut::new();
            reply.write_payload(&mut payload);
            let text = String::from_utf8_lossy(&payload);
            let (fits, _) = text.split_at(floor_char_boundary(&text, PAYLOAD_BYTES));
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

/// The classic framing as a client speaks it that pads what it writes.
#[derive(Debug, Clone, Default)]
pub struct ClassicClientCodec;

impl Encoder<Request> for ClassicClientCodec {
    type Error = ProtocolError;

    /// Appends one padded block.
    ///
    /// # Errors
    /// [`ProtocolError::Unencodable`] for a message of over 1024 bytes; `dst`
    /// is then as it was.
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
    /// The command and the payload of a block: the meaning of `string` differs
    /// from the native framing, where it has more fields.
    type Item = Result<(ByteString, ByteString), Refusal>;
    type Error = ProtocolError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, ProtocolError> {
        if src.len() < CLASSIC_BLOCK_BYTES {
            src.reserve(CLASSIC_BLOCK_BYTES - src.len());
            return Ok(None);
        }
        let block = src.split_to(CLASSIC_BLOCK_BYTES).freeze();
        let end = block.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        Ok(Some(message::split(block.slice(..end.max(COMMAND_BYTES)))))
    }
}

fn parse(message: Bytes) -> Result<Request, Refusal> {
    let (command, payload) = message::split(message)?;
    match Request::parse(&command, payload)? {
        Request::Hello { .. } | Request::Ack { .. } => Err(Refusal::new(
            Code::BadRequest,
            "the classic framing has neither sessions nor acknowledgements; use the native one",
        )),
        request => Ok(request),
    }
}

fn write_block(command: &str, payload: &[u8], dst: &mut BytesMut) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES);
    message::write_command(command, dst);
    dst.put_slice(payload);
    dst.put_bytes(0, PAYLOAD_BYTES.saturating_sub(payload.len()));
}

/// Whether the first 1024 of more bytes are a block of their own: padded, or
/// followed by another command.
fn starts_with_block(src: &[u8]) -> bool {
    src.get(CLASSIC_BLOCK_BYTES - 1) == Some(&0) || src.get(CLASSIC_BLOCK_BYTES..).is_some_and(may_be_command)
}

/// Whether these bytes are, or may become, a known command padded to its 15
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
            && command.strip_prefix(name.as_bytes()).is_some_and(|padding| padding.iter().all(|&b| b == 0))
    })
}

/// Cuts names into runs that fit in a block each; one empty run for none.
fn list_parts(names: &[UserName]) -> Vec<&[UserName]> {
    let mut parts = Vec::new();
    let mut rest = names;
    loop {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take_while(|name| {
                bytes += name.as_str().len() + usize::from(bytes > 0);
                bytes <= PAYLOAD_BYTES
            })
            .count();
        let (part, after) = rest.split_at(count);
        parts.push(part);
        rest = after;
        if rest.is_empty() {
            return parts;
        }
    }
}

/// The largest index up to `at` that is between two characters.
fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}
