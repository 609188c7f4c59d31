//! [`Members`]: the members of a room, their read marks, and the cursors of their
//! devices. Nothing is stored for each message and member.

use super::super::slots::{grow, shrink};
use crate::store::{DeviceId, Point, Position};

/// Returns a point of a room, or the end of its log if that is lower.
pub(super) fn up_to(point: Point, tail: Position) -> Point {
    if point.number < tail.sequence.0 {
        Point {
            messages: point.messages.min(tail.messages),
            ..point
        }
    } else {
        tail.into()
    }
}

/// A member of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// The account, by its incarnation.
    pub(crate) account: u64,
    /// The number of its `join`. The highest bit is set for an owner: numbers are lower.
    standing: u64,
    /// The read mark: the messages of the room up to the last one that it has read.
    pub(crate) mark: u64,
}

impl Member {
    const IS_OWNER: u64 = 1 << 63;

    /// Returns a member that joined at a number below 2⁶³ and has read so many messages.
    pub(crate) const fn new(account: u64, joined: u64, is_owner: bool, mark: u64) -> Self {
        let owner = if is_owner { Self::IS_OWNER } else { 0 };
        Self {
            account,
            standing: joined & !Self::IS_OWNER | owner,
            mark,
        }
    }

    /// Returns the number of its `join`.
    pub(crate) const fn joined(&self) -> u64 {
        self.standing & !Self::IS_OWNER
    }

    /// Returns whether it owns the room.
    pub(crate) const fn is_owner(&self) -> bool {
        self.standing & Self::IS_OWNER != 0
    }

    /// Makes it an owner.
    pub(super) const fn own(&mut self) {
        self.standing |= Self::IS_OWNER;
    }
}

/// The cursor of a device in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomCursor {
    /// The device.
    pub(crate) device: DeviceId,
    /// The last message that it acknowledged.
    pub(crate) point: Point,
}

/// The members of a room, and the cursors of their devices. Both are sorted arrays: a
/// member with one device takes 48 bytes.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: Vec<Member>,
    cursors: Vec<RoomCursor>,
}

impl Members {
    /// Returns the number of members.
    pub(super) const fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns a member.
    pub(super) fn get(&self, account: u64) -> Option<&Member> {
        let at = self.find(account).ok()?;
        self.members.get(at)
    }

    /// Returns a member.
    pub(super) fn get_mut(&mut self, account: u64) -> Option<&mut Member> {
        let at = self.find(account).ok()?;
        self.members.get_mut(at)
    }

    /// Returns the members from an account on, in the order of their accounts.
    pub(super) fn iter_from(&self, account: u64) -> impl Iterator<Item = &Member> {
        let at = self.members.partition_point(|m| m.account < account);
        self.members.iter().skip(at)
    }

    /// Adds or replaces a member.
    pub(super) fn insert(&mut self, member: Member) {
        match self.find(member.account) {
            Ok(at) => {
                if let Some(place) = self.members.get_mut(at) {
                    *place = member;
                }
            }
            Err(at) => {
                grow(&mut self.members);
                self.members.insert(at, member);
            }
        }
    }

    /// Removes a member, and the cursors of its devices. During a replay, the cursors may be
    /// there without the member.
    pub(super) fn remove(
        &mut self,
        account: u64,
        devices: impl Iterator<Item = DeviceId>,
    ) -> Option<Member> {
        devices.for_each(|device| self.remove_cursor(device));
        let at = self.find(account).ok()?;
        let member = self.members.remove(at);
        shrink(&mut self.members);
        Some(member)
    }

    /// Returns the member of longest standing.
    pub(super) fn eldest(&self) -> Option<&Member> {
        self.members.iter().min_by_key(|member| member.joined())
    }

    /// Returns whether a member owns the room.
    pub(super) fn have_owner(&self) -> bool {
        self.members.iter().any(Member::is_owner)
    }

    /// Returns the cursor of a device.
    pub(super) fn cursor(&self, device: DeviceId) -> Option<Point> {
        let at = self.find_cursor(device).ok()?;
        self.cursors.get(at).map(|cursor| cursor.point)
    }

    /// Returns the cursors from a device on, in the order of the devices.
    pub(super) fn cursors_from(&self, device: DeviceId) -> impl Iterator<Item = &RoomCursor> {
        let at = self.cursors.partition_point(|c| c.device < device);
        self.cursors.iter().skip(at)
    }

    /// Sets the cursor of a device.
    pub(super) fn set_cursor(&mut self, cursor: RoomCursor) {
        match self.find_cursor(cursor.device) {
            Ok(at) => {
                if let Some(place) = self.cursors.get_mut(at) {
                    *place = cursor;
                }
            }
            Err(at) => {
                grow(&mut self.cursors);
                self.cursors.insert(at, cursor);
            }
        }
    }

    /// Removes the cursor of a device.
    pub(super) fn remove_cursor(&mut self, device: DeviceId) {
        if let Ok(at) = self.find_cursor(device) {
            self.cursors.remove(at);
            shrink(&mut self.cursors);
        }
    }

    fn find(&self, account: u64) -> Result<usize, usize> {
        self.members
            .binary_search_by_key(&account, |member| member.account)
    }

    fn find_cursor(&self, device: DeviceId) -> Result<usize, usize> {
        self.cursors
            .binary_search_by_key(&device, |cursor| cursor.device)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::profile::{Membership, Profile};
    use super::*;

    fn member(account: u64) -> Member {
        Member::new(account, 10_000 - account, account == 3, 0)
    }

    fn cursor(device: DeviceId) -> RoomCursor {
        RoomCursor {
            device,
            point: Point::default(),
        }
    }

    /// Returns the bytes of the tables.
    fn bytes(members: &Members) -> usize {
        members.members.capacity() * size_of::<Member>()
            + members.cursors.capacity() * size_of::<RoomCursor>()
    }

    #[test]
    fn attached_member_takes_64_bytes() {
        const COUNT: usize = 10_000;
        let of_profile = {
            let mut profile = Profile::default();
            (0..64).for_each(|slot| profile.add(slot, Membership::Room));
            profile.room_bytes().div_ceil(64)
        };
        let mut members = Members::default();
        for account in 1..=COUNT as u64 {
            members.insert(member(account));
            members.set_cursor(cursor(account));
            let bytes = bytes(&members) + of_profile * members.len();
            let per_member = bytes.div_ceil(members.len());
            assert!(per_member <= 64 || members.len() < 100, "{per_member}");
        }
        for account in 1..=COUNT as u64 {
            members.remove(account, std::iter::once(account));
        }
        assert_eq!(bytes(&members), 0, "the tables shrink");
    }

    #[test]
    fn members_and_cursors_stay_sorted() {
        let mut members = Members::default();
        for account in [5, 1, 9, 3, 5] {
            members.insert(member(account));
            members.set_cursor(cursor(10 * account));
        }
        let accounts = |members: &Members| {
            let all = members.iter_from(2).map(|member| member.account);
            all.collect::<Vec<_>>()
        };
        assert_eq!(accounts(&members), [3, 5, 9]);
        assert_eq!(members.eldest().map(|member| member.account), Some(9));
        assert!(members.have_owner());
        assert!(members.remove(3, [30, 31].into_iter()).is_some());
        assert!(!members.have_owner());
        assert_eq!(members.cursor(30), None);
        let devices: Vec<_> = members.cursors_from(0).map(|c| c.device).collect();
        assert_eq!(devices, [10, 50, 90]);
    }

    #[test]
    fn owner_keeps_the_number_of_its_join() {
        let mut member = Member::new(7, (1 << 53) - 1, false, 3);
        assert!(!member.is_owner());
        member.own();
        assert!(member.is_owner());
        assert_eq!(member.joined(), (1 << 53) - 1);
        assert_eq!(member, Member::new(7, (1 << 53) - 1, true, 3));
    }
}
