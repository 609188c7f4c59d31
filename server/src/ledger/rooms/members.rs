//! [`Members`]: the members of a room, their read marks, and the cursors of their
//! devices. Nothing is stored for each message and member.

use crate::store::{DeviceId, Point, Position};

/// The fraction of its length by which a table grows.
const GROWTH_DIVISOR: usize = 8;

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
    /// The number of its `join`.
    pub(crate) joined: u64,
    /// The read mark.
    pub(crate) mark: Point,
    /// Whether it owns the room.
    pub(crate) is_owner: bool,
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
/// member with one device takes 64 bytes.
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
        Some(self.members.remove(at))
    }

    /// Returns the member of longest standing.
    pub(super) fn eldest(&self) -> Option<&Member> {
        self.members.iter().min_by_key(|member| member.joined)
    }

    /// Returns whether a member owns the room.
    pub(super) fn have_owner(&self) -> bool {
        self.members.iter().any(|member| member.is_owner)
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

/// Grows a full table by a fraction instead of doubling it: it lives long, and there are
/// many.
fn grow<T>(table: &mut Vec<T>) {
    if table.len() == table.capacity() {
        table.reserve_exact(1 + table.len() / GROWTH_DIVISOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attached_member_takes_64_bytes() {
        assert_eq!(size_of::<Member>() + size_of::<RoomCursor>(), 64);
        let mut members = Members::default();
        for account in 0..10_000 {
            members.insert(Member {
                account,
                joined: 0,
                mark: Point::default(),
                is_owner: false,
            });
        }
        let capacity = members.members.capacity();
        assert!(capacity <= 10_000 + 10_000 / GROWTH_DIVISOR, "{capacity}");
    }

    #[test]
    fn members_and_cursors_stay_sorted() {
        let mut members = Members::default();
        for account in [5, 1, 9, 3, 5] {
            members.insert(Member {
                account,
                joined: 10 - account,
                mark: Point::default(),
                is_owner: account == 3,
            });
            members.set_cursor(RoomCursor {
                device: 10 * account,
                point: Point::default(),
            });
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
}
