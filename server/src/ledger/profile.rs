//! [`Profile`]: what a user has beside its inbox: its rooms, blocked users, and the
//! conversations that it started lately. Most users have none.

use std::time::Duration;

/// The most users that a user blocks.
pub(super) const BLOCKED_MAX: usize = 100;

/// The most conversations that a user starts within [`STARTED_WITHIN`].
const STARTED_MAX: u32 = 100;
const STARTED_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// The rooms and blocked users of a user.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// The slots of its rooms, without conversations of two.
    pub(super) rooms: Vec<u32>,
    /// The slots of its conversations of two.
    pub(super) conversations: Vec<u32>,
    /// The accounts that it blocks.
    pub(super) blocked: Vec<u64>,
    pub(super) started: Started,
}

/// The conversations that a user started since a time of the retention clock.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Started {
    pub(super) since: Duration,
    pub(super) count: u32,
}

impl Started {
    /// Counts another conversation. Returns false if there are too many.
    pub(super) fn add(&mut self, now: Duration) -> bool {
        if self.count == 0 || now.saturating_sub(self.since) >= STARTED_WITHIN {
            *self = Self {
                since: now,
                count: 0,
            };
        }
        if self.count >= STARTED_MAX {
            return false;
        }
        self.count += 1;
        true
    }
}

impl Profile {
    /// Returns the slots of all rooms, conversations included.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        self.rooms.iter().chain(&self.conversations).copied()
    }

    /// Adds a room.
    pub(super) fn add(&mut self, slot: u32, is_conversation: bool) {
        let slots = if is_conversation {
            &mut self.conversations
        } else {
            &mut self.rooms
        };
        if !slots.contains(&slot) {
            slots.push(slot);
        }
    }

    /// Removes a room.
    pub(super) fn remove(&mut self, slot: u32) {
        for slots in [&mut self.rooms, &mut self.conversations] {
            if let Some(at) = slots.iter().position(|other| *other == slot) {
                slots.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundred_conversations_a_day_are_started() {
        let mut started = Started::default();
        let hour = Duration::from_secs(3600);
        for _ in 0..STARTED_MAX {
            assert!(started.add(hour));
        }
        assert!(!started.add(24 * hour));
        assert!(started.add(25 * hour));
    }
}
