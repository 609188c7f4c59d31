//! [`OpenRings`] and [`Rings`]: the rooms with attached members, and publishing to the rings of
//! rooms, within a bound for all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use hark_protocol::{RoomName, UserName};

use crate::ledger::RoomDelivery;
use crate::store::{FanOut, Point, Ring};
use crate::sync::RwLock;

/// The maximum memory of the messages in all rings, in bytes.
const BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// Tables with fewer entries are not searched for useless ones.
const KEPT_MIN: usize = 1024;

/// The rings by the names of their rooms, for other threads.
#[derive(Debug, Default)]
pub(super) struct OpenRings {
    // A lock, because each send to a room looks one up. It is held for one lookup, or for the
    // rings of one commit.
    rings: RwLock<HashMap<RoomName, Weak<Ring>>>,
    /// The number of rings at which those without members are removed.
    cleans_at: AtomicUsize,
}

impl OpenRings {
    /// Adds rings.
    pub(super) fn add(&self, opened: impl ExactSizeIterator<Item = Arc<Ring>>) {
        if opened.len() == 0 {
            return;
        }
        let mut rings = self.rings.write();
        // Twice those that were in use the last time: each ring is looked at a few times.
        if rings.len() >= self.cleans_at.load(Ordering::Relaxed).max(KEPT_MIN) {
            rings.retain(|_, ring| ring.strong_count() > 0);
            self.cleans_at.store(2 * rings.len(), Ordering::Relaxed);
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
    /// The number of entries at which those of messages that have left their ring are removed.
    cleans_at: usize,
    /// The memory of the messages, counted by the rings.
    bytes: Arc<AtomicUsize>,
}

/// Messages that were published.
#[derive(Debug)]
struct Published {
    ring: Weak<Ring>,
    /// The last one.
    through: Point,
}

impl Rings {
    /// Publishes messages, and wakes the members.
    pub(super) fn publish(
        &mut self,
        deliveries: impl Iterator<Item = RoomDelivery>,
        fan_out: &FanOut,
    ) {
        for RoomDelivery { ring, messages } in deliveries {
            let points = messages.iter().map(|message| message.position.into());
            self.published.extend(points.map(|through| Published {
                ring: Arc::downgrade(&ring),
                through,
            }));
            ring.publish(messages, &self.bytes);
            fan_out.wake(&ring);
        }
        while self.bytes.load(Ordering::Relaxed) > BYTES_MAX
            && let Some(oldest) = self.published.pop_front()
        {
            if let Some(ring) = oldest.ring.upgrade() {
                ring.forget(oldest.through);
            }
        }
        if self.published.len() >= self.cleans_at.max(KEPT_MIN) {
            self.published.retain(Published::is_held);
            self.cleans_at = 2 * self.published.len();
        }
    }
}

impl Published {
    /// Returns whether the message is in its ring.
    fn is_held(&self) -> bool {
        let ring = self.ring.upgrade();
        ring.is_some_and(|ring| ring.holds(self.through))
    }
}
