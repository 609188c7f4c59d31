//! [`OkFields`]: the fields of an `ok`.

use std::str::FromStr;

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;

use super::{number, put_number, put_number_then};
use crate::name::{Password, RoomName, Sequence};

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
    /// The answer to `delete`: whether the account or room existed.
    Deleted(bool),
    /// The end of a `list`, `rooms`, `members`, `devices` or `tokens`: the number of entries, and
    /// whether the server truncated the list.
    Listed(usize, bool),
    /// The answer to `attach`: the number of unacknowledged messages in the inbox, and of
    /// rooms.
    Attached(u64, usize),
    /// The answer to `join`: the last number of the room, and the number of messages that
    /// can be read back.
    Joined(Sequence, u64),
    /// The answer to `talk`: the room.
    Room(RoomName),
    /// The end of a `history`: the number of messages, and the number of the oldest one
    /// that can be read back. Both are 0 for an empty page.
    Past(usize, Sequence),
    /// The answer to `token`: the secret, which stands for the password.
    Token(Password),
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

    /// Returns the number of unacknowledged messages in the inbox and of rooms, if this
    /// answers `attach`.
    #[must_use]
    pub fn as_attached(&self) -> Option<(u64, usize)> {
        match self {
            Self::Attached(waiting, rooms) => Some((*waiting, *rooms)),
            Self::Encoded(text) => pair(text),
            _ => None,
        }
    }

    /// Returns the last number of the room and the number of messages that can be read
    /// back, if this answers `join`.
    #[must_use]
    pub fn as_joined(&self) -> Option<(Sequence, u64)> {
        match self {
            Self::Joined(last, held) => Some((*last, *held)),
            Self::Encoded(text) => pair(text).map(|(last, held)| (Sequence(last), held)),
            _ => None,
        }
    }

    /// Returns the room, if this answers `talk`.
    #[must_use]
    pub fn as_room(&self) -> Option<RoomName> {
        match self {
            Self::Room(room) => Some(room.clone()),
            Self::Encoded(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Returns the number of messages and the number of the oldest one that can be read
    /// back, if this ends a `history`.
    #[must_use]
    pub fn as_past(&self) -> Option<(usize, Sequence)> {
        match self {
            Self::Past(count, oldest) => Some((*count, *oldest)),
            Self::Encoded(text) => pair(text).map(|(count, oldest)| (count, Sequence(oldest))),
            _ => None,
        }
    }

    /// Returns the secret, if this answers `token`.
    #[must_use]
    pub fn as_token(&self) -> Option<Password> {
        match self {
            Self::Token(secret) => Some(secret.clone()),
            Self::Encoded(text) => text.parse().ok(),
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
            Self::Attached(waiting, rooms) => {
                put_number_then(to, *waiting, "");
                put_number(to, *rooms as u64);
            }
            Self::Joined(last, held) => {
                put_number_then(to, last.0, "");
                put_number(to, *held);
            }
            Self::Room(room) => to.put_slice(room.as_str().as_bytes()),
            Self::Past(count, oldest) => {
                put_number_then(to, *count as u64, "");
                put_number(to, oldest.0);
            }
            Self::Token(secret) => to.put_slice(secret.expose().as_bytes()),
            Self::Encoded(text) => to.put_slice(text.as_bytes()),
        }
    }
}

/// Parses two numbers.
fn pair<A: FromStr, B: FromStr>(text: &str) -> Option<(A, B)> {
    let (first, second) = text.split_once(',')?;
    Some((number(first)?, number(second)?))
}

/// The answer to `delete` if the account existed.
const DELETED: &str = "deleted";

/// The answer to `delete` if the account did not exist.
const ABSENT: &str = "absent";

/// The second field of the end of a truncated list.
const TRUNCATED: &str = "truncated";
