//! The envelopes of a message on a byte stream. Both framings share the
//! messages ([`crate::message`]) and differ only in what is around them.
//!
//! Invariant: a decoder never reserves memory for more than one largest frame,
//! and looks at each byte a constant number of times however the bytes are cut
//! up.

pub mod classic;
pub mod native;

use crate::code::Refusal;
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

/// What a decoder yields: a whole envelope, whose content may still be one
/// that has to be refused. The stream goes on after it.
pub type Incoming<M> = Frame<Result<M, Refusal>>;

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
