//! The envelopes of messages on a byte stream. Both framings carry the same
//! messages ([`crate::message`]).
//!
//! Invariant: a decoder reserves memory for at most one largest frame, and
//! examines each byte a constant number of times, for any fragmentation of the
//! stream.

pub mod classic;
pub mod native;

use crate::code::Refusal;
use crate::message::{self, HELLO, Message};
use crate::name::RequestId;

/// A message with the id of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<M> {
    /// `None` in a push and in an `ack`: 0 on the wire.
    pub id: Option<RequestId>,
    /// The message.
    pub message: M,
}

impl<M> Frame<M> {
    /// Returns a frame with the id of the request that it is or answers.
    pub const fn new(id: Option<RequestId>, message: M) -> Self {
        Self { id, message }
    }
}

/// The item of a decoder: a complete envelope, whose message may be malformed.
/// Decoding continues after it.
pub type Incoming<M> = Frame<Result<M, Malformed>>;

/// A malformed message: invalid UTF-8, an unknown command, or invalid fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The answer to the message.
    pub refusal: Refusal,
    /// Whether the command is `hello`. The connection closes in that case:
    /// later sends would be stored outside of the session.
    pub is_hello: bool,
}

impl From<Refusal> for Malformed {
    /// Converts the refusal of a message other than `hello`.
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            is_hello: false,
        }
    }
}

/// Parses the message of an envelope. A message that may hold a password is wiped.
fn parse<M: Message>(message: &mut [u8]) -> Result<M, Malformed> {
    let is_hello = message::is_command(message, HELLO);
    let parsed = message::split(message).and_then(|(command, payload)| M::parse(command, payload));
    message::wipe_secret(message);
    parsed.map_err(|refusal| Malformed { refusal, is_hello })
}

/// A violation of the framing. The stream cannot be decoded any further.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The length field is too small for an id and a command.
    #[error("a frame of {0} bytes is too short to hold an id and a command")]
    TooShort(usize),
    /// The length field exceeds the largest frame.
    #[error("a frame of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLong {
        /// Value of the length field.
        bytes: usize,
        /// The largest frame of this connection.
        bytes_max: usize,
    },
    /// The message to be encoded does not fit in an envelope.
    #[error("a message of {0} bytes does not fit in a frame")]
    Unencodable(usize),
    /// Reading or writing the stream failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
