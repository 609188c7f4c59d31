//! The end of memberships, rooms, and the accounts of members.

use hark_protocol::message::LeftReason;
use hark_protocol::{Code, RoomName};

use super::super::changes::{Changes, NoticeContent};
use super::super::{Ledger, next_number};
use super::record::RoomRecord;
use super::room::record;
use crate::store::Account;

impl Ledger {
    /// Ends a room, whose owner or administrator the caller is. Returns whether it existed.
    pub(in crate::ledger) fn delete_room(
        &mut self,
        caller: &Account,
        name: &RoomName,
        is_admin: bool,
        changes: &mut Changes,
    ) -> Result<bool, Code> {
        self.caller(caller)?;
        let is_conversation = name.is_conversation();
        let visible = self.visible_room(caller, name).ok();
        let administered = self
            .rooms
            .slot(name.as_str())
            .filter(|_| is_admin && !is_conversation);
        let Some(slot) = visible.or(administered) else {
            return Ok(false);
        };
        let room = self.rooms.get(slot);
        let is_owner = room.is_some_and(|room| room.is_owner(caller.incarnation));
        if !is_owner && administered.is_none() {
            return Err(Code::Denied);
        }
        self.end_room(slot, changes);
        Ok(true)
    }

    /// Ends a membership, if there is one. If the last owner goes, the member of longest
    /// standing becomes owner; a room without members ends.
    pub(super) fn remove_member(
        &mut self,
        slot: u32,
        account: u64,
        reason: LeftReason,
        changes: &mut Changes,
    ) {
        let room = self.rooms.get(slot);
        if room.is_none_or(|room| !room.is_member(account)) {
            return;
        }
        let number = next_number(&mut self.numbers, changes);
        let Some(room) = self.rooms.get_mut(slot) else {
            return;
        };
        let name = room.name.clone();
        let mut devices = Vec::new();
        if let Some(inbox) = self.inboxes.by_id_mut(account) {
            devices.extend(inbox.devices.ids());
            inbox.profile_mut().remove(slot);
            let room = room.log.id;
            inbox.notify(&NoticeContent::Left { room, name, reason }, changes);
        }
        room.leave(account, devices.into_iter(), number, changes);
        let eldest = room.members.eldest().map(|member| member.account);
        match eldest {
            None => self.end_room(slot, changes),
            Some(eldest) if !room.members.have_owner() && !room.name.is_conversation() => {
                room.own(eldest, changes);
            }
            Some(_) => {}
        }
    }

    /// Ends a room with its messages.
    fn end_room(&mut self, slot: u32, changes: &mut Changes) {
        let Some(room) = self.rooms.remove(slot) else {
            return;
        };
        let left = NoticeContent::Left {
            room: room.log.id,
            name: room.name,
            reason: LeftReason::Deleted,
        };
        for member in room.members.iter_from(0) {
            if let Some(inbox) = self.inboxes.by_id_mut(member.account) {
                inbox.profile_mut().remove(slot);
                inbox.notify(&left, changes);
            }
        }
        record(RoomRecord::End(room.log.id), changes);
        changes.effects.ended.push(room.log.id);
        changes.effects.is_awaited = true;
    }

    /// Ends the memberships of an account that ends, and its conversations.
    pub(in crate::ledger) fn leave_all(&mut self, account: &Account, changes: &mut Changes) {
        let profile = self.inboxes.get_mut(account);
        let Some(profile) = profile.and_then(|inbox| inbox.profile.take()) else {
            return;
        };
        for slot in profile.rooms {
            self.remove_member(slot, account.incarnation, LeftReason::Left, changes);
        }
        for slot in profile.conversations {
            self.end_room(slot, changes);
        }
    }
}
