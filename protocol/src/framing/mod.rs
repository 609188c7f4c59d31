//! The envelopes of a message on a byte stream. Both framings share the
//! messages ([`crate::message`]) and differ only in what is around them.
//!
//! Invariant: a decoder never reserves memory for more than one largest frame,
//! and looks at each byte a constant number of times however the bytes are cut
//! up.

pub mod classic;
pub mod native;

use bytes::Bytes;

use crate::code::Refusal;
use crate::message::{self, HELLO, Message};
use crate::name::RequestId;

/// A message with the id of the request that it is, or that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<M> {
    /// `None` in what nobody asked for, and in `ack`: on the wire, 0.
    pub id: Option<RequestId>,
    /// The message.
    pub message: M,
}

impl<M> Frame<M> {
    /// A message that is, or answers, the request `id`.
    pub const fn new(id: Option<RequestId>, message: M) -> Self {
        Self { id, message }
    }
}

/// The item of a decoder: a whole envelope, whose message may be malformed. The
/// stream goes on after it.
pub type Incoming<M> = Frame<Result<M, Malformed>>;

/// A malformed message: not UTF-8, of an unknown command, or with wrong fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The answer to it.
    pub refusal: Refusal,
    /// Whether its command is `hello`. The connection closes then: what is sent
    /// behind it would be stored outside of its session.
    pub is_hello: bool,
}

impl From<Refusal> for Malformed {
    /// Any message but a `hello`.
    fn from(refusal: Refusal) -> Self {
        Self { refusal, is_hello: false }
    }
}

/// Reads the message in an envelope.
fn parse<M: Message>(message: Bytes) -> Result<M, Malformed> {
    let is_hello = message::is_command(&message, HELLO);
    let parsed = message::split(message).and_then(|(command, payload)| M::parse(&command, payload));
    parsed.map_err(|refusal| Malformed { refusal, is_hello })
}

/// The bytes are not the protocol; nothing can be read after them.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The length field says less than an id and a command take.
    #[error("a frame of {0} bytes is too short to hold an id and a command")]
    TooShort(usize),
    /// The length field says more than the largest frame.
    #[error("a frame of {bytes} bytes is over the largest of {bytes_max}")]
    TooLong {
        /// What the length field says.
        bytes: usize,
        /// The largest frame of this connection.
        bytes_max: usize,
    },
    /// The message to be written does not fit in an envelope.
    #[error("a message of {0} bytes does not fit in a frame")]
    Unencodable(usize),
    /// Reading or writing the stream failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
