//! Devices in rooms: cursors, read marks, and queries.

use hark_protocol::message::RoomMode;
use hark_protocol::{Code, RoomName, UserName};

use super::super::Ledger;
use super::super::changes::{Changes, NoticeContent};
use super::members::{RoomCursor, up_to};
use super::room::Room;
use crate::store::{Account, AttachedRoom, DeviceId, History, Point, Position, RoomEntry};

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
                id: room.log.id,
                name: room.name.clone(),
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

    /// Moves the cursor of a device in a room. A cursor never moves back.
    pub(crate) fn acknowledge_room(
        &mut self,
        account: &Account,
        device: DeviceId,
        (room, point): (u64, Point),
        changes: &mut Changes,
    ) {
        if !self.inboxes.is_alive(account) {
            return;
        }
        let Some(room) = self.rooms.by_id(room) else {
            return;
        };
        let point = up_to(point, room.log.tail);
        // A device without a cursor does not read the room any more.
        let cursor = room.members.cursor(device);
        if room.is_member(account.incarnation)
            && cursor.is_some_and(|cursor| cursor.number < point.number)
        {
            room.set_cursor(RoomCursor { device, point }, changes);
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
        if room.move_mark(account, point) {
            room.write_mark(account, changes);
            let mark = room.members.get(account).map(|member| member.mark);
            let seen = NoticeContent::Seen {
                name: name.clone(),
                number: mark.unwrap_or_default().number,
            };
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
            last: room.log.tail.sequence.0,
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

    /// Returns the rooms that the caller sees and could join: its own, then public ones,
    /// each in any order.
    pub(in crate::ledger) fn rooms(&self, caller: &Account) -> Result<Vec<RoomEntry>, Code> {
        let inbox = self.caller(caller)?;
        let account = caller.incarnation;
        let profile = inbox.profile.iter().flat_map(|profile| profile.slots());
        let own = profile.filter_map(|slot| self.rooms.get(slot));
        let all = self.rooms.rooms.iter_from(0).map(|(_, room)| room);
        let public = all.filter(|room| room.mode != RoomMode::Invite && !room.is_member(account));
        let entries = own.chain(public).map(|room| RoomEntry {
            name: room.name.clone(),
            mode: room.mode,
            members: room.members.len(),
            unread: room.members.get(account).map(|member| room.unread(member)),
            last: room.log.tail.sequence.0,
        });
        Ok(entries.collect())
    }

    /// Returns the logs of all rooms: ids, names, heads and tails.
    pub(crate) fn room_logs(&self) -> impl Iterator<Item = (u64, &RoomName, Position, Position)> {
        let rooms = self.rooms.rooms.iter_from(0);
        rooms.map(|(_, Room { name, log, .. })| (log.id, name, log.head, log.tail))
    }

    /// Returns the names of the members of a room, sorted.
    pub(in crate::ledger) fn members(
        &self,
        caller: &Account,
        name: &RoomName,
    ) -> Result<Vec<UserName>, Code> {
        let slot = self.membership(caller, name)?;
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        let members = room.members.iter_from(0);
        let mut names: Vec<_> = members
            .filter_map(|member| self.inboxes.by_id(member.account))
            .map(|inbox| inbox.account.name.clone())
            .collect();
        names.sort_unstable();
        Ok(names)
    }
}
