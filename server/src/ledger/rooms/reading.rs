//! Devices in rooms: cursors, read marks, and queries.

use hark_protocol::message::RoomMode;
use hark_protocol::{Code, DeviceName, RoomName};

use super::super::changes::Changes;
use super::super::profile::Membership;
use super::super::{Ledger, seconds};
use super::members::{RoomCursor, up_to};
use super::room::Room;
use crate::store::{
    Account, AttachedRoom, DeviceCursors, DeviceId, History, MemberPage, Notice, Point, Position,
    RoomEntry, RoomPage, RoomPlace,
};

/// The most rooms in a page, and the most that are looked at for it.
const PAGE_ROOMS_MAX: usize = 256;
const PAGE_EXAMINED_MAX: usize = 512;

/// The most members in a page.
const PAGE_NAMES_MAX: usize = 512;

/// The places of the conversations of the caller, and of public rooms, in the list of rooms.
const CONVERSATIONS: u64 = 1 << 32;
const PUBLIC: u64 = 2 << 32;

impl Ledger {
    /// Returns the rooms of a device that is attached. A new device begins at the last
    /// number of each room.
    pub(in crate::ledger) fn attach_to_rooms(
        &mut self,
        account: &Account,
        device: DeviceId,
        changes: &mut Changes,
    ) -> Vec<AttachedRoom> {
        let inbox = self.inboxes.get(&account.name);
        let profile = inbox.and_then(|inbox| inbox.profile.as_ref());
        let mut attached = Vec::new();
        for slot in profile.iter().flat_map(|profile| profile.slots()) {
            let Some(room) = self.rooms.get_mut(slot) else {
                continue;
            };
            let cursor = room.members.cursor(device).unwrap_or_else(|| {
                let point = Point::from(room.log.tail);
                room.set_cursor(RoomCursor { device, point }, changes);
                point
            });
            attached.push(AttachedRoom {
                ring: room.ring(changes),
                cursor,
            });
        }
        attached
    }

    /// Removes the cursors of a device that has ended.
    pub(in crate::ledger) fn detach_from_rooms(
        &mut self,
        account: &Account,
        device: DeviceId,
        changes: &mut Changes,
    ) {
        let inbox = self.inboxes.get(&account.name);
        let profile = inbox.and_then(|inbox| inbox.profile.as_ref());
        for slot in profile.iter().flat_map(|profile| profile.slots()) {
            if let Some(room) = self.rooms.get_mut(slot) {
                room.remove_cursor(device, changes);
            }
        }
    }

    /// Returns the cursors of a device of the caller, the nameless one without a name.
    pub(in crate::ledger) fn cursors(
        &self,
        caller: &Account,
        name: Option<&DeviceName>,
    ) -> Result<DeviceCursors, Code> {
        let inbox = self.caller(caller)?;
        let device = inbox.reader(name);
        let profile = inbox.profile.iter();
        let rooms = profile.flat_map(|profile| profile.slots());
        let rooms = rooms.filter_map(|slot| {
            let room = self.rooms.get(slot)?;
            let cursor = room.members.cursor(device?)?;
            Some(RoomPlace {
                name: room.name.clone(),
                cursor,
                unread: History {
                    room: room.log.id,
                    after: cursor.number,
                    last: room.log.tail,
                },
            })
        });
        Ok(DeviceCursors {
            device,
            inbox: inbox.cursor(device),
            rooms: rooms.collect(),
        })
    }

    /// Moves the cursor of a device in a room. A cursor never moves back.
    pub(crate) fn acknowledge_room(
        &mut self,
        account: &Account,
        device: DeviceId,
        (room, point): (u64, Point),
        changes: &mut Changes,
    ) {
        let now = seconds(self.running);
        let (Some(inbox), Some(room)) = (self.inboxes.get_mut(account), self.rooms.by_id(room))
        else {
            return;
        };
        let point = up_to(point, room.log.tail);
        // A device without a cursor does not read the room any more.
        let cursor = room.members.cursor(device);
        if room.is_member(account.incarnation)
            && cursor.is_some_and(|cursor| cursor.number < point.number)
        {
            room.set_cursor(RoomCursor { device, point }, changes);
            inbox.note_activity(device, now, changes);
        }
    }

    /// Moves the read mark of a user, and notifies its devices. A mark never moves back.
    pub(in crate::ledger) fn see(
        &mut self,
        caller: &Account,
        name: &RoomName,
        point: Point,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let slot = self.membership(caller, name)?;
        let account = caller.incarnation;
        let Some(room) = self.rooms.get_mut(slot) else {
            return Err(Code::NoSuchUser);
        };
        if let Some(number) = room.move_mark(account, point) {
            room.write_mark(account, changes);
            let room = name.clone();
            let seen = Notice::Seen { room, number };
            if let Some(inbox) = self.inboxes.get_mut(caller) {
                inbox.notify(&seen, changes);
            }
        }
        Ok(())
    }

    /// Returns the messages that the caller may read back.
    pub(in crate::ledger) fn history(
        &self,
        caller: &Account,
        name: &RoomName,
    ) -> Result<History, Code> {
        let slot = self.membership(caller, name)?;
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        let member = room.members.get(caller.incarnation);
        let member = member.ok_or(Code::Denied)?;
        Ok(History {
            room: room.log.id,
            after: room.readable_after(member),
            last: room.log.tail,
        })
    }

    /// Returns the slot of a room of which the caller is a member.
    fn membership(&self, caller: &Account, name: &RoomName) -> Result<u32, Code> {
        let slot = self.visible_room(caller, name)?;
        let room = self.rooms.get(slot);
        if room.is_some_and(|room| room.is_member(caller.incarnation)) {
            Ok(slot)
        } else {
            Err(Code::Denied)
        }
    }

    /// Returns a page of the rooms that the caller sees and could join: its own, then public
    /// ones, each in any order.
    pub(in crate::ledger) fn rooms(&self, caller: &Account, from: u64) -> Result<RoomPage, Code> {
        let inbox = self.caller(caller)?;
        let account = caller.incarnation;
        let own = inbox.profile.iter().flat_map(|profile| {
            let own = profile.slots_from((Membership::Room, 0));
            own.map(|(membership, slot)| (own_place(membership, slot), slot))
        });
        let all = u32::try_from(from.saturating_sub(PUBLIC)).unwrap_or(u32::MAX);
        let all = self.rooms.rooms.iter_from(all);
        let all = all.map(|(slot, _)| (PUBLIC + u64::from(slot), slot));
        let mut page = RoomPage::default();
        let places = own.filter(|(place, _)| *place >= from).chain(all);
        for (examined, (place, slot)) in places.enumerate() {
            if page.rooms.len() >= PAGE_ROOMS_MAX || examined >= PAGE_EXAMINED_MAX {
                page.next = Some(place);
                break;
            }
            let Some(room) = self.rooms.get(slot) else {
                continue;
            };
            let member = room.members.get(account);
            if place >= PUBLIC && (room.mode == RoomMode::Invite || member.is_some()) {
                continue;
            }
            page.rooms.push(RoomEntry {
                name: room.name.clone(),
                mode: room.mode,
                members: room.members.len(),
                unread: member.map(|member| room.unread(member)),
                last: room.log.tail.sequence.0,
            });
        }
        Ok(page)
    }

    /// Returns the logs of all rooms: ids, names, heads and tails.
    pub(crate) fn room_logs(&self) -> impl Iterator<Item = (u64, &RoomName, Position, Position)> {
        let rooms = self.rooms.rooms.iter_from(0);
        rooms.map(|(_, Room { name, log, .. })| (log.id, name, log.head, log.tail))
    }

    /// Returns a page of the members of a room.
    pub(in crate::ledger) fn members(
        &self,
        caller: &Account,
        name: &RoomName,
        from: u64,
    ) -> Result<MemberPage, Code> {
        let slot = self.membership(caller, name)?;
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        let mut members = room.members.iter_from(from);
        let page = members.by_ref().take(PAGE_NAMES_MAX);
        let inboxes = page.filter_map(|member| self.inboxes.by_id(member.account));
        let names = inboxes.map(|inbox| inbox.account.name.clone()).collect();
        let next = members.next().map(|member| member.account);
        Ok(MemberPage { names, next })
    }
}

/// Returns the place of a room of the caller in the list of rooms.
fn own_place(membership: Membership, slot: u32) -> u64 {
    let first = match membership {
        Membership::Room => 0,
        Membership::Conversation | Membership::Former => CONVERSATIONS,
    };
    first + u64::from(slot)
}
