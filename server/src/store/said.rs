//! [`Said`]: a message of a room on its way to many readers, which share its encoding.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hark_protocol::RoomName;

use super::Message;

/// A message of a room, and its encoding. All readers that take it from the room's
/// [`Ring`](super::Ring) share one value.
#[derive(Debug)]
pub struct Said {
    /// The room.
    pub room: RoomName,
    /// The message.
    pub message: Arc<Message>,
    encoded: OnceLock<Bytes>,
}

impl Said {
    /// Returns a message that is not encoded yet.
    #[must_use]
    pub const fn new(room: RoomName, message: Arc<Message>) -> Self {
        Self {
            room,
            message,
            encoded: OnceLock::new(),
        }
    }

    /// Returns its bytes in the native framing, with the length and the id 0. The first reader
    /// makes them. The others frame what they get themselves.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(self))
    }
}
