//! [`OkFields`]: the fields of an `ok`.

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;

use super::{number, put_number};
use crate::name::Sequence;

/// The fields of an `ok`. A server knows their kind; on the wire, it depends on
/// the request, which the reply does not repeat. So a decoder returns
/// [`Self::Encoded`], and each request has its own accessor for both.
#[derive(Debug, Clone, Default)]
pub enum OkFields {
    /// No fields.
    #[default]
    None,
    /// The answer to `hello`: the version and the largest frame in bytes.
    Hello(u32, usize),
    /// The answer to `connect`: the number of unacknowledged messages.
    Queued(u64),
    /// The answer to `send`: the sequence number of the message.
    Stored(Sequence),
    /// The answer to `delete`: whether the account existed.
    Deleted(bool),
    /// The end of a `list`: the number of names, and whether the server
    /// truncated the list.
    Listed(usize, bool),
    /// Decoded fields.
    Encoded(ByteString),
}

/// Equality of the encoded fields.
impl PartialEq for OkFields {
    fn eq(&self, other: &Self) -> bool {
        self.encoded() == other.encoded()
    }
}

impl Eq for OkFields {}

impl OkFields {
    /// Returns the version and the largest frame in bytes, if this answers
    /// `hello`.
    #[must_use]
    pub fn as_hello(&self) -> Option<(u32, usize)> {
        match self {
            Self::Hello(version, frame_bytes_max) => Some((*version, *frame_bytes_max)),
            Self::Encoded(text) => {
                let (version, frame_bytes_max) = text.split_once(',')?;
                Some((number(version)?, number(frame_bytes_max)?))
            }
            _ => None,
        }
    }

    /// Returns the number of unacknowledged messages, if this answers
    /// `connect`.
    #[must_use]
    pub fn as_queued(&self) -> Option<u64> {
        match self {
            Self::Queued(messages) => Some(*messages),
            Self::Encoded(text) => number(text),
            _ => None,
        }
    }

    /// Returns the sequence number, if this answers `send` and the server names
    /// it.
    #[must_use]
    pub fn as_stored(&self) -> Option<Sequence> {
        match self {
            Self::Stored(sequence) => Some(*sequence),
            Self::Encoded(text) => number(text).map(Sequence),
            _ => None,
        }
    }

    /// Returns whether the account existed, if this answers `delete`.
    #[must_use]
    pub fn as_deleted(&self) -> Option<bool> {
        match self {
            Self::Deleted(existed) => Some(*existed),
            Self::Encoded(text) if *text == DELETED => Some(true),
            Self::Encoded(text) if *text == ABSENT => Some(false),
            _ => None,
        }
    }

    /// Returns the number of names and whether the list was truncated, if this
    /// answers `list`.
    #[must_use]
    pub fn as_listed(&self) -> Option<(usize, bool)> {
        match self {
            Self::Listed(names, truncated) => Some((*names, *truncated)),
            Self::Encoded(text) => match text.split_once(',') {
                Some((count, TRUNCATED)) => Some((number(count)?, true)),
                Some(_) => None,
                None => Some((number(text)?, false)),
            },
            _ => None,
        }
    }

    fn encoded(&self) -> BytesMut {
        let mut encoded = BytesMut::new();
        self.write(&mut encoded);
        encoded
    }

    pub(super) fn write(&self, to: &mut BytesMut) {
        match self {
            Self::None => {}
            Self::Hello(version, frame_bytes_max) => {
                put_number(to, u64::from(*version));
                to.put_u8(b',');
                put_number(to, *frame_bytes_max as u64);
            }
            Self::Queued(messages) => put_number(to, *messages),
            Self::Stored(sequence) => put_number(to, sequence.0),
            Self::Deleted(existed) => {
                to.put_slice(if *existed { DELETED } else { ABSENT }.as_bytes());
            }
            Self::Listed(names, truncated) => {
                put_number(to, *names as u64);
                if *truncated {
                    to.put_u8(b',');
                    to.put_slice(TRUNCATED.as_bytes());
                }
            }
            Self::Encoded(text) => to.put_slice(text.as_bytes()),
        }
    }
}

/// The answer to `delete` if the account existed.
const DELETED: &str = "deleted";

/// The answer to `delete` if the account did not exist.
const ABSENT: &str = "absent";

/// The second field of the end of a truncated list.
const TRUNCATED: &str = "truncated";
