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
//!    long; that one is refused once and dropped up to the next command. Where
//!    the first 1024 bytes have no padding, and what follows might become a
//!    command, its 15 bytes are waited for as in rule 3.
//! 5. What ends in NUL is a block that is still arriving.
//! 6. Anything else is one whole message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use bytestring::ByteString;
use tokio_util::codec::{Decoder, Encoder};

use super::{Malformed, ProtocolError};
use crate::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES};
use crate::message::{self, HELLO, Message, REQUEST_COMMANDS};
use crate::{Code, Refusal, Reply, Request};

/// How long the fields of a command are waited for, in milliseconds.
pub const FIELDS_WAIT_MS: u64 = 50;

/// Bytes of payload in a block.
const PAYLOAD_BYTES: usize = CLASSIC_BLOCK_BYTES - COMMAND_BYTES;

/// Free bytes of a buffer before each read: one more than a message, so that a
/// read ends where a message does or shows that it is too long.
const READ_BYTES: usize = CLASSIC_BLOCK_BYTES + 1;

/// The classic framing as a server speaks it.
///
/// The end of a bare message is the end of a read, so whoever reads the stream
/// calls [`Decoder::decode`] until it yields `None` after every read. That call
/// leaves room for a whole message in the buffer; the first read needs as much.
#[derive(Debug, Clone, Default)]
pub struct ClassicServerCodec {
    /// In the rest of a message that was too long and has been refused.
    discarding: bool,
    /// What was waited for did not come.
    overdue: bool,
}

impl ClassicServerCodec {
    /// Whether only time can tell what has come: a command whose fields have
    /// not, or 1024 bytes with the first letters of what may be the next
    /// command. More is waited for [`FIELDS_WAIT_MS`], then
    /// [`Self::give_up_on_fields`].
    #[must_use]
    pub fn awaits_fields(&self, src: &[u8]) -> bool {
        !self.discarding && Head::of(src) == Head::Undecided
    }

    /// Nothing more came: the next `decode` takes the command alone, or refuses
    /// the message as too long.
    pub fn give_up_on_fields(&mut self) {
        self.overdue = true;
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
    type Item = Result<Request, Malformed>;
    type Error = ProtocolError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, ProtocolError> {
        let overdue = std::mem::take(&mut self.overdue);
        if self.discarding {
            self.discard(src);
        }
        let padding = src.iter().take_while(|&&b| b == 0).count();
        src.advance(padding);
        let head = if self.discarding { Head::Incomplete } else { Head::of(src) };
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
                    "a message in the classic framing has at most 1024 bytes; none of this one was taken",
                );
                Ok(Some(Err(Malformed { refusal, is_hello })))
            }
        }
    }
}

/// What the bytes are that have come and not been taken, without NULs before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// More has to come.
    Incomplete,
    /// More may come, or not: see [`ClassicServerCodec::awaits_fields`].
    Undecided,
    /// A whole message.
    Message,
    /// A bare message of over 1024 bytes.
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
            return if src.ends_with(&[0]) { Self::Incomplete } else { Self::Message };
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

/// Takes the message at the front, at most one block of it.
fn take(src: &mut BytesMut) -> Result<Request, Malformed> {
    let mut message = src.split_to(CLASSIC_BLOCK_BYTES.min(src.len()));
    parse(without_padding(message::take(&mut message)))
}

/// Makes room for the next read: were it cut short by the end of the buffer, a
/// part of a message would be taken for the whole.
fn wait<T>(src: &mut BytesMut) -> Option<T> {
    src.reserve(READ_BYTES);
    None
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
        // A client of this framing knows no numbers.
        Reply::Ok(fields) if fields.is_stored() => write_block(reply.command(), &[], dst),
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
        Ok(Some(message::split(without_padding(block))))
    }
}

fn parse(message: Bytes) -> Result<Request, Malformed> {
    let request = super::parse(message)?;
    let is_hello = matches!(request, Request::Hello { .. });
    if !is_hello && !matches!(request, Request::Ack { .. }) {
        return Ok(request);
    }
    let refusal = Refusal::new(
        Code::BadRequest,
        "the classic framing has neither sessions nor acknowledgements; use the native one",
    );
    Err(Malformed { refusal, is_hello })
}

fn write_block(command: &str, payload: &[u8], dst: &mut BytesMut) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES);
    message::write_command(command, dst);
    dst.put_slice(payload);
    dst.put_bytes(0, PAYLOAD_BYTES.saturating_sub(payload.len()));
}

/// A message without the NULs after its payload.
fn without_padding(mut message: Bytes) -> Bytes {
    let end = message.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    message.truncate(end.max(COMMAND_BYTES));
    message
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
