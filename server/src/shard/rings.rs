//! [`Rings`]: publishing to the rings of rooms, within a bound for all of them.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use crate::ledger::RoomDelivery;
use crate::store::{FanOut, Message, Point, Ring};

/// The maximum bytes of the messages in all rings.
const BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// The bytes of a message in a ring beside its text, with its encodings.
const MESSAGE_BYTES: usize = 400;

/// The messages in all rings, in the order of their publication. If there are too many, the
/// oldest leave their ring.
#[derive(Debug, Default)]
pub(super) struct Rings {
    published: VecDeque<Published>,
    bytes: usize,
}

#[derive(Debug)]
struct Published {
    ring: Weak<Ring>,
    through: Point,
    bytes: usize,
}

impl Rings {
    /// Publishes messages, and wakes the members.
    pub(super) fn publish(
        &mut self,
        deliveries: impl Iterator<Item = RoomDelivery>,
        fan_out: &FanOut,
    ) {
        for RoomDelivery { ring, messages } in deliveries {
            for message in &messages {
                self.count(&ring, message);
            }
            ring.publish(messages);
            fan_out.wake(&ring);
        }
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.published.pop_front()
        {
            self.bytes -= oldest.bytes;
            if let Some(ring) = oldest.ring.upgrade() {
                ring.forget(oldest.through);
            }
        }
    }

    fn count(&mut self, ring: &Arc<Ring>, message: &Message) {
        // A text is held once more in each encoding.
        let bytes = MESSAGE_BYTES + 3 * message.text.len();
        self.bytes += bytes;
        self.published.push_back(Published {
            ring: Arc::downgrade(ring),
            through: message.position.into(),
            bytes,
        });
    }
}
