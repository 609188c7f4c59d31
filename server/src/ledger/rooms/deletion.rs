//! The end of memberships, rooms, and the accounts of members.

use hark_protocol::message::LeftReason;
use hark_protocol::{Code, RoomName};

use super::super::changes::Changes;
use super::super::profile::Membership;
use super::super::{Ledger, next_number};
use super::members::Member;
use super::record::RoomRecord;
use super::room::record;
use crate::store::{Account, Notice, Point};

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
    ///
    /// The cursors of its devices end at once. Attached devices are notified of the number
    /// of the end: they get the messages below it. Others do not get them any more, because
    /// `left` is the last push of a room to a device.
    pub(super) fn remove_member(
        &mut self,
        slot: u32,
        account: u64,
        reason: LeftReason,
        changes: &mut Changes,
    ) {
        let room = self.rooms.get(slot);
        let Some(was_owner) = room.and_then(|room| room.members.get(account).map(Member::is_owner))
        else {
            return;
        };
        let number = next_number(&mut self.numbers, changes);
        let Some(room) = self.rooms.get_mut(slot) else {
            return;
        };
        let mut inbox = self.inboxes.by_id_mut(account);
        let devices = inbox.as_ref().map(|inbox| inbox.devices.ids().collect());
        room.leave(account, devices.unwrap_or_default(), number, changes);
        if let Some(inbox) = &mut inbox {
            if room.parties.is_some() {
                inbox.profile_mut().add(slot, Membership::Former);
            } else {
                inbox.profile_mut().remove(slot);
            }
            let left = Notice::Left {
                room: room.log.id,
                name: room.name.clone(),
                reason,
                at: room.log.tail.into(),
                is_own: false,
            };
            inbox.notify(&left, changes);
        }
        if room.members.len() == 0 {
            self.end_room(slot, changes);
        } else if was_owner
            && !room.members.have_owner()
            && let Some(eldest) = room.members.eldest().map(|member| member.account)
        {
            room.own(eldest, changes);
        }
    }

    /// Ends a room with its messages, at a number of its own.
    fn end_room(&mut self, slot: u32, changes: &mut Changes) {
        let Some(room) = self.rooms.remove(slot) else {
            return;
        };
        changes.effects.ended_rings.extend(room.open_ring());
        let left = Notice::Left {
            room: room.log.id,
            name: room.name,
            reason: LeftReason::Deleted,
            at: Point {
                number: next_number(&mut self.numbers, changes),
                messages: room.log.tail.messages,
            },
            is_own: false,
        };
        for account in room.parties.into_iter().flatten() {
            if let Some(inbox) = self.inboxes.by_id_mut(account) {
                inbox.profile_mut().remove(slot);
            }
        }
        for member in room.members.iter_from(0) {
            if let Some(inbox) = self.inboxes.by_id_mut(member.account) {
                inbox.profile_mut().remove(slot);
                inbox.notify(&left, changes);
            }
        }
        let members = room.members.len() as u64;
        changes.totals.members = changes.totals.members.saturating_sub(members);
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
        for slot in profile.slots_of(Membership::Room) {
            self.remove_member(slot, account.incarnation, LeftReason::Left, changes);
        }
        for membership in [Membership::Conversation, Membership::Former] {
            for slot in profile.slots_of(membership) {
                self.end_room(slot, changes);
            }
        }
    }
}
