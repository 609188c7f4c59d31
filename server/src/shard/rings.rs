//! [`OpenRings`] and [`Rings`]: the rooms with attached members, and publishing to the rings of rooms, within a bound for all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use hark_protocol::{RoomName, UserName};

use crate::ledger::RoomDelivery;
use crate::store::{FanOut, Message, Point, Ring};
use crate::sync::RwLock;

/// The maximum bytes of the messages in all rings.
const BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// The bytes of a message in a ring beside its text, with its encodings.
const MESSAGE_BYTES: usize = 400;

/// The rings by the names of their rooms, for other threads.
#[derive(Debug, Default)]
pub(super) struct OpenRings {
    // A lock, because each send to a room looks one up. It is held for one lookup, or for the
    // rings of one commit.
    rings: RwLock<HashMap<RoomName, Weak<Ring>>>,
}

impl OpenRings {
    /// Adds rings.
    pub(super) fn add(&self, opened: impl ExactSizeIterator<Item = Arc<Ring>>) {
        if opened.len() == 0 {
            return;
        }
        let mut rings = self.rings.write();
        if rings.len() == rings.capacity() {
            rings.retain(|_, ring| ring.strong_count() > 0);
        }
        rings.extend(opened.map(|ring| (ring.name().clone(), Arc::downgrade(&ring))));
    }

    /// See [`Store::attached_devices`](crate::store::Store::attached_devices).
    pub(super) fn attached_devices(&self, room: &UserName) -> usize {
        if !room.as_str().starts_with(RoomName::MARK) {
            return 0;
        }
        let ring = self.rings.read().get(room.as_str()).and_then(Weak::upgrade);
        ring.map_or(0, |ring| ring.devices())
    }
}

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
