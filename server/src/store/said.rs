//! [`Said`]: a message of a room on its way to many readers, which share its encodings.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hark_protocol::RoomName;

use super::Message;

/// A message of a room, and its encodings. All readers that take it from the room's
/// [`Ring`](super::Ring) share one value.
#[derive(Debug)]
pub struct Said {
    /// The room.
    pub room: RoomName,
    /// The message.
    pub message: Arc<Message>,
    native: OnceLock<Bytes>,
    grpc: OnceLock<Bytes>,
}

/// A framing in which messages of rooms are encoded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The native framing, with the length and the id 0.
    Native,
    /// A message of gRPC.
    Grpc,
}

impl Said {
    /// Returns a message that is not encoded yet.
    #[must_use]
    pub const fn new(room: RoomName, message: Arc<Message>) -> Self {
        Self {
            room,
            message,
            native: OnceLock::new(),
            grpc: OnceLock::new(),
        }
    }

    /// Returns the bytes of an encoding. The first reader makes them.
    pub fn encoded(&self, encoding: Encoding, encode: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        let cell = match encoding {
            Encoding::Native => &self.native,
            Encoding::Grpc => &self.grpc,
        };
        cell.get_or_init(|| encode(self))
    }
}
