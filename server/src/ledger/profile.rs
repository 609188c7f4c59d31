//! [`Profile`]: what a user has beside its inbox: its rooms, blocked users, limits of its
//! own, the conversations that it started lately, and tokens. Most users have none.

use std::sync::Arc;
use std::time::Duration;

use super::slots::grow;
use super::tokens::Tokens;
use crate::store::UserLimits;

/// The most users that a user blocks.
pub(super) const BLOCKED_MAX: usize = 100;

/// The most conversations of a user. Others begin them, so that they need a bound.
pub(super) const CONVERSATIONS_MAX: usize = 1000;

/// The most conversations that a user starts within [`STARTED_WITHIN`], which begins with
/// the first of them.
const STARTED_MAX: u32 = 100;
const STARTED_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// The rooms, blocked users and tokens of a user.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// The slots of its rooms, sorted.
    rooms: Vec<(Membership, u32)>,
    /// The accounts that it blocks.
    pub(super) blocked: Vec<u64>,
    pub(super) started: Started,
    /// The limits of the user alone.
    pub(super) limits: Option<Arc<UserLimits>>,
    pub(super) tokens: Tokens,
}

/// The relation of a user to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Membership {
    /// It is a member of a room, but not of a conversation.
    Room,
    /// It is a member of a conversation.
    Conversation,
    /// It has left a conversation, which ends with its account nevertheless.
    Former,
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
    /// Returns the slots of all rooms of which the user is a member, from one on.
    pub(super) fn slots_from(
        &self,
        from: (Membership, u32),
    ) -> impl Iterator<Item = (Membership, u32)> {
        let rooms = self.rooms.iter().copied();
        let at = self.rooms.partition_point(|room| *room < from);
        rooms
            .skip(at)
            .take_while(|(membership, _)| *membership < Membership::Former)
    }

    /// Returns the slots of all rooms of which the user is a member.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        let first = (Membership::Room, 0);
        self.slots_from(first).map(|(_, slot)| slot)
    }

    /// Returns the slots of the rooms to which the user is related in this way.
    pub(super) fn slots_of(
        &self,
        membership: Membership,
    ) -> impl ExactSizeIterator<Item = u32> + '_ {
        let place = |of: fn(Membership, Membership) -> bool| {
            self.rooms
                .partition_point(|(other, _)| of(*other, membership))
        };
        let range = place(|other, membership| other < membership)..place(|other, membership| {
            other <= membership
        });
        let slots = self.rooms.get(range).unwrap_or_default().iter();
        slots.map(|(_, slot)| *slot)
    }

    /// Adds a room, or changes the relation to it.
    pub(super) fn add(&mut self, slot: u32, membership: Membership) {
        self.remove(slot);
        if let Err(at) = self.rooms.binary_search(&(membership, slot)) {
            grow(&mut self.rooms);
            self.rooms.insert(at, (membership, slot));
        }
    }

    /// Removes a room.
    pub(super) fn remove(&mut self, slot: u32) {
        for membership in [
            Membership::Room,
            Membership::Conversation,
            Membership::Former,
        ] {
            if let Ok(at) = self.rooms.binary_search(&(membership, slot)) {
                self.rooms.remove(at);
            }
        }
    }
}

#[cfg(test)]
impl Profile {
    /// Returns the bytes of the list of rooms.
    pub(super) fn room_bytes(&self) -> usize {
        self.rooms.capacity() * size_of::<(Membership, u32)>()
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

    #[test]
    fn room_has_one_relation_to_a_user() {
        use Membership::{Conversation, Former, Room};
        let mut profile = Profile::default();
        for (slot, membership) in [(7, Room), (3, Conversation), (5, Conversation), (1, Room)] {
            profile.add(slot, membership);
        }
        assert_eq!(profile.slots().collect::<Vec<_>>(), [1, 7, 3, 5]);
        profile.add(3, Former);
        assert_eq!(profile.slots().collect::<Vec<_>>(), [1, 7, 5]);
        assert_eq!(profile.slots_of(Former).collect::<Vec<_>>(), [3]);
        assert_eq!(profile.slots_of(Room).len(), 2);
        let rest: Vec<_> = profile.slots_from((Room, 2)).collect();
        assert_eq!(rest, [(Room, 7), (Conversation, 5)]);
        profile.remove(3);
        assert_eq!(profile.slots_of(Former).len(), 0);
    }
}
