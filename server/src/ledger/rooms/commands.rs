//! The commands of users that change rooms and their members. A command may be repeated:
//! if the state is as asked, it succeeds and changes nothing.
//!
//! A room that a user must not see is as absent. A missing right is `denied`.

use std::time::Duration;

use hark_protocol::message::{LeftReason, RoomMode};
use hark_protocol::{Code, RoomName, UserName};
use sha2::{Digest as _, Sha256};

use super::super::changes::Changes;
use super::super::inboxes::Inbox;
use super::super::profile::{BLOCKED_MAX, CONVERSATIONS_MAX, Membership, Started};
use super::super::record::Record;
use super::super::{Ledger, next_number};
use super::record::RoomState;
use super::room::Room;
use crate::store::{
    Account, AttachedRoom, DeviceId, Joined, Notice, Position, RoomAnswer, RoomCommand,
};

impl Ledger {
    /// Carries out a command of a user, and notifies its devices except `origin`.
    pub(crate) fn command(
        &mut self,
        caller: &Account,
        origin: Option<DeviceId>,
        command: RoomCommand,
        changes: &mut Changes,
    ) -> Result<RoomAnswer, Code> {
        changes.origin = origin;
        let answer = self.carry_out(caller, command, changes);
        changes.origin = None;
        answer
    }

    fn carry_out(
        &mut self,
        caller: &Account,
        command: RoomCommand,
        changes: &mut Changes,
    ) -> Result<RoomAnswer, Code> {
        let done = |()| RoomAnswer::Done;
        match command {
            RoomCommand::Set { room, mode, keep } => self
                .set_room(caller, &room, (mode, keep), changes)
                .map(done),
            RoomCommand::Join(room) => self.join(caller, &room, changes).map(RoomAnswer::Joined),
            RoomCommand::Leave(room) => self.leave(caller, &room, changes).map(done),
            RoomCommand::Invite(room, user) => self.invite(caller, &room, &user, changes).map(done),
            RoomCommand::Expel(room, user) => self.expel(caller, &room, &user, changes).map(done),
            RoomCommand::Own(room, user) => self.own(caller, &room, &user, changes).map(done),
            RoomCommand::Delete { room, is_admin } => self
                .delete_room(caller, &room, is_admin, changes)
                .map(RoomAnswer::Existed),
            RoomCommand::Talk(user) => self.talk(caller, &user, changes).map(RoomAnswer::Room),
            RoomCommand::Block(user) => self.block(caller, &user, changes).map(done),
            RoomCommand::Unblock(user) => self.unblock(caller, &user, changes).map(done),
            RoomCommand::Rooms(from) => self.rooms(caller, from).map(RoomAnswer::Rooms),
            RoomCommand::Members(room, from) => {
                self.members(caller, &room, from).map(RoomAnswer::Members)
            }
            RoomCommand::Devices => self.devices(caller).map(RoomAnswer::Devices),
            RoomCommand::Cursors(device) => self
                .cursors(caller, device.as_ref())
                .map(RoomAnswer::Cursors),
            RoomCommand::Forget(device) => self
                .forget_device(caller, device.as_ref(), changes)
                .map(RoomAnswer::Existed),
            RoomCommand::History(room) => self.history(caller, &room).map(RoomAnswer::History),
            RoomCommand::See(room, point) => self.see(caller, &room, point, changes).map(done),
            RoomCommand::SetToken(token) => self.set_token(caller, token, changes).map(done),
            RoomCommand::Tokens => self.tokens(caller).map(RoomAnswer::Tokens),
            RoomCommand::Revoke(token) => self
                .revoke(caller, &token, changes)
                .map(RoomAnswer::Existed),
        }
    }

    /// Creates a room, whose owner and member the caller becomes; or changes it, if the
    /// caller owns it. Without a time to keep messages, a new room has the default, and
    /// another one keeps its own.
    pub(in crate::ledger) fn set_room(
        &mut self,
        caller: &Account,
        name: &RoomName,
        (mode, keep): (RoomMode, Option<Duration>),
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let inbox = self.caller(caller)?;
        let has_password = inbox.password.is_some();
        if name.is_conversation() {
            return Err(Code::Denied);
        }
        if keep.is_some_and(|keep| keep.is_zero() || keep > self.rooms.limits.keep_max) {
            return Err(Code::BadRequest);
        }
        if let Some(slot) = self.rooms.slot(name.as_str()) {
            return self.change_room(caller, slot, (mode, keep), changes);
        }
        // An account of an earlier version may have the name of a room.
        if self.inboxes.by_text(name.as_str()).is_some() {
            return Err(Code::Exists);
        }
        if mode == RoomMode::Invite && !has_password {
            return Err(Code::Denied);
        }
        self.check_joins(caller)?;
        self.check_owns(caller)?;
        let slot = self.insert_room(name, (mode, keep), None, changes)?;
        self.add_member(slot, caller, true, changes);
        Ok(())
    }

    fn change_room(
        &mut self,
        caller: &Account,
        slot: u32,
        (mode, keep): (RoomMode, Option<Duration>),
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let room = self.rooms.get_mut(slot).ok_or(Code::Exists)?;
        // Others do not learn whether they might see it.
        if !room.is_member(caller.incarnation) {
            return Err(Code::Exists);
        }
        if !room.is_owner(caller.incarnation) {
            return Err(Code::Denied);
        }
        let is_public = |mode| mode != RoomMode::Invite;
        if is_public(room.mode) != is_public(mode) {
            return Err(Code::BadRequest);
        }
        let keep = keep.or(room.keep);
        if (room.mode, room.keep) != (mode, keep) {
            (room.mode, room.keep) = (mode, keep);
            room.write(changes);
            self.rooms.set_expiry(slot);
        }
        Ok(())
    }

    /// Makes the caller a member of a room. In an `invite` room, it may read nothing back at
    /// that moment.
    pub(in crate::ledger) fn join(
        &mut self,
        caller: &Account,
        name: &RoomName,
        changes: &mut Changes,
    ) -> Result<Joined, Code> {
        let slot = self.visible_room(caller, name)?;
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        if !room.is_member(caller.incarnation) {
            if room.is_banned(caller.incarnation) {
                return Err(Code::Denied);
            }
            if room.members.len() >= self.rooms.limits.members_max {
                return Err(Code::TooMany);
            }
            self.check_joins(caller)?;
            self.add_member(slot, caller, false, changes);
        }
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        let member = room.members.get(caller.incarnation);
        let member = member.ok_or(Code::NoSuchUser)?;
        let held = match room.mode {
            RoomMode::Invite => 0,
            RoomMode::Open | RoomMode::News => room.log.messages(),
        };
        Ok(Joined {
            number: member.joined(),
            held,
        })
    }

    /// Ends the membership of the caller.
    pub(in crate::ledger) fn leave(
        &mut self,
        caller: &Account,
        name: &RoomName,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let slot = self.visible_room(caller, name)?;
        self.remove_member(slot, caller.incarnation, LeftReason::Left, changes);
        Ok(())
    }

    /// Invites a user, whose ban is lifted.
    pub(in crate::ledger) fn invite(
        &mut self,
        caller: &Account,
        name: &RoomName,
        user: &UserName,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let slot = self.owned_room(caller, name)?;
        let guest = self.inboxes.get(user).ok_or(Code::NoSuchUser)?;
        let (account, has_password) = (guest.account.incarnation, guest.password.is_some());
        let now = self.age;
        let room = self.rooms.get_mut(slot).ok_or(Code::NoSuchUser)?;
        let is_alive = |account| self.inboxes.by_id(account).is_some();
        if room.is_member(account) {
            return Ok(());
        }
        if room.mode == RoomMode::Invite && !has_password {
            return Err(Code::Denied);
        }
        if room.invite(account, now, is_alive, changes) {
            Ok(())
        } else {
            Err(Code::TooMany)
        }
    }

    /// Ends the membership of a user, and bans it.
    pub(in crate::ledger) fn expel(
        &mut self,
        caller: &Account,
        name: &RoomName,
        user: &UserName,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let slot = self.owned_room(caller, name)?;
        let expelled = self.inboxes.get(user).ok_or(Code::NoSuchUser)?;
        let account = expelled.account.incarnation;
        let room = self.rooms.get_mut(slot).ok_or(Code::NoSuchUser)?;
        if room.is_owner(account) {
            return Err(Code::Denied);
        }
        if !room.is_banned(account) {
            let is_alive = |account| self.inboxes.by_id(account).is_some();
            room.ban(account, is_alive, changes);
            self.remove_member(slot, account, LeftReason::Expelled, changes);
        }
        Ok(())
    }

    /// Makes a member an owner.
    pub(in crate::ledger) fn own(
        &mut self,
        caller: &Account,
        name: &RoomName,
        user: &UserName,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let slot = self.owned_room(caller, name)?;
        let owner = self.inboxes.get(user).ok_or(Code::NoSuchUser)?;
        let owner = owner.account.clone();
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        let member = room.members.get(owner.incarnation);
        if member.ok_or(Code::NoSuchUser)?.is_owner() {
            return Ok(());
        }
        self.check_owns(&owner)?;
        if let Some(room) = self.rooms.get_mut(slot) {
            room.own(owner.incarnation, changes);
        }
        Ok(())
    }

    /// Begins or resumes the conversation of two users. Returns its name. It counts as
    /// started if the other user becomes a member.
    pub(in crate::ledger) fn talk(
        &mut self,
        caller: &Account,
        user: &UserName,
        changes: &mut Changes,
    ) -> Result<RoomName, Code> {
        let now = self.age;
        let inbox = self.caller(caller)?;
        let other = self.inboxes.get(user).ok_or(Code::NoSuchUser)?;
        if inbox.account == other.account {
            return Err(Code::BadRequest);
        }
        if other.is_blocking(caller.incarnation)
            || inbox.password.is_none()
            || other.password.is_none()
        {
            return Err(Code::Denied);
        }
        let name = conversation_name(&caller.name, user);
        let parties = [inbox.account.clone(), other.account.clone()];
        let found = self.rooms.slot(name.as_str());
        // An account of an earlier version may have the name of a room.
        if found.is_none() && self.inboxes.by_text(name.as_str()).is_some() {
            return Err(Code::Exists);
        }
        let room = found.and_then(|slot| self.rooms.get(slot));
        let is_member = |party: &&Account| room.is_some_and(|r| r.is_member(party.incarnation));
        let (_, entering): (Vec<_>, Vec<_>) = parties.iter().partition(is_member);
        for party in &entering {
            self.check_conversations(party)?;
        }
        if entering.iter().any(|party| *party != caller) {
            self.count_started(caller, now, changes)?;
        }
        let slot = match found {
            Some(slot) => slot,
            None => {
                let parties = parties.each_ref().map(|party| party.incarnation);
                self.insert_room(&name, (RoomMode::Invite, None), Some(parties), changes)?
            }
        };
        for party in entering {
            self.add_member(slot, party, false, changes);
        }
        Ok(name)
    }

    fn count_started(
        &mut self,
        caller: &Account,
        now: Duration,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let inbox = self.inboxes.get_mut(caller).ok_or(Code::Denied)?;
        let started: &mut Started = &mut inbox.profile_mut().started;
        if !started.add(now) {
            return Err(Code::TooMany);
        }
        changes.record(&Record::Started(caller.incarnation, *started));
        Ok(())
    }

    /// Blocks a user: it neither begins a conversation with the caller nor sends to it.
    pub(in crate::ledger) fn block(
        &mut self,
        caller: &Account,
        user: &UserName,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        self.caller(caller)?;
        let blocked = self.inboxes.get(user).ok_or(Code::NoSuchUser)?;
        let (blocked, is_caller) = (
            blocked.account.incarnation,
            blocked.account.name == caller.name,
        );
        if is_caller {
            return Err(Code::BadRequest);
        }
        let mut list = self.blocked(caller);
        if list.contains(&blocked) {
            return Ok(());
        }
        // A block ends with the blocked account.
        list.retain(|account| self.inboxes.by_id(*account).is_some());
        if list.len() >= BLOCKED_MAX {
            return Err(Code::TooMany);
        }
        list.push(blocked);
        self.set_blocked(caller, list, changes);
        Ok(())
    }

    /// Ends the block of a user.
    pub(in crate::ledger) fn unblock(
        &mut self,
        caller: &Account,
        user: &UserName,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        self.caller(caller)?;
        let unblocked = self.inboxes.get(user).ok_or(Code::NoSuchUser)?;
        let unblocked = unblocked.account.incarnation;
        let mut list = self.blocked(caller);
        if list.contains(&unblocked) {
            list.retain(|account| *account != unblocked);
            self.set_blocked(caller, list, changes);
        }
        Ok(())
    }

    fn blocked(&self, caller: &Account) -> Vec<u64> {
        let profile = self.inboxes.get(&caller.name);
        let profile = profile.and_then(|inbox| inbox.profile.as_ref());
        profile.map_or_else(Vec::new, |profile| profile.blocked.clone())
    }

    fn set_blocked(&mut self, caller: &Account, list: Vec<u64>, changes: &mut Changes) {
        if let Some(inbox) = self.inboxes.get_mut(caller) {
            changes.record(&Record::Blocked(caller.incarnation, list.clone()));
            changes.effects.is_awaited = true;
            inbox.profile_mut().blocked = list;
        }
    }

    /// Returns the inbox of the caller, whose account has not ended.
    pub(super) fn caller(&self, caller: &Account) -> Result<&Inbox, Code> {
        let inbox = self.inboxes.get(&caller.name);
        inbox
            .filter(|inbox| inbox.account == *caller)
            .ok_or(Code::Denied)
    }

    /// Returns the slot of a room that the caller may see.
    pub(super) fn visible_room(&self, caller: &Account, name: &RoomName) -> Result<u32, Code> {
        self.caller(caller)?;
        let slot = self.rooms.slot(name.as_str()).ok_or(Code::NoSuchUser)?;
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        if room.is_visible_to(caller.incarnation, self.age) {
            Ok(slot)
        } else {
            Err(Code::NoSuchUser)
        }
    }

    /// Returns the slot of a room that the caller owns. Nobody owns a conversation of two.
    fn owned_room(&self, caller: &Account, name: &RoomName) -> Result<u32, Code> {
        let slot = self.visible_room(caller, name)?;
        let room = self.rooms.get(slot);
        if room.is_some_and(|room| room.is_owner(caller.incarnation)) {
            Ok(slot)
        } else {
            Err(Code::Denied)
        }
    }

    /// Checks that a user may be a member of another room.
    fn check_joins(&self, account: &Account) -> Result<(), Code> {
        let inbox = self.caller(account)?;
        if inbox.count(Membership::Room) < self.rooms.limits.joined_max {
            Ok(())
        } else {
            Err(Code::TooMany)
        }
    }

    /// Checks that a user may be a member of another conversation.
    fn check_conversations(&self, account: &Account) -> Result<(), Code> {
        let inbox = self.caller(account)?;
        if inbox.count(Membership::Conversation) < CONVERSATIONS_MAX {
            Ok(())
        } else {
            Err(Code::TooMany)
        }
    }

    /// Checks that a user may own another room.
    fn check_owns(&self, account: &Account) -> Result<(), Code> {
        let inbox = self.caller(account)?;
        let profile = inbox.profile.iter();
        let rooms = profile.flat_map(|profile| profile.slots_of(Membership::Room));
        let owned = rooms.filter(|slot| {
            let room = self.rooms.get(*slot);
            room.is_some_and(|room| room.is_owner(account.incarnation))
        });
        if owned.count() < self.rooms.limits.owned_max {
            Ok(())
        } else {
            Err(Code::TooMany)
        }
    }

    fn insert_room(
        &mut self,
        name: &RoomName,
        (mode, keep): (RoomMode, Option<Duration>),
        parties: Option<[u64; 2]>,
        changes: &mut Changes,
    ) -> Result<u32, Code> {
        let id = next_number(&mut self.numbers, changes);
        let tail = Position {
            sequence: hark_protocol::Sequence(id),
            ..Position::default()
        };
        let room = Room::new(RoomState {
            id,
            name: name.clone(),
            mode,
            keep,
            parties,
            head: tail,
            tail,
        });
        room.write(changes);
        self.rooms.insert(room).ok_or(Code::TooMany)
    }

    /// Adds a member, and notifies its devices.
    fn add_member(&mut self, slot: u32, account: &Account, is_owner: bool, changes: &mut Changes) {
        let number = next_number(&mut self.numbers, changes);
        let (Some(inbox), Some(room)) = (self.inboxes.get_mut(account), self.rooms.get_mut(slot))
        else {
            return;
        };
        let devices: Vec<_> = inbox.devices.ids().collect();
        room.join(
            account.incarnation,
            is_owner,
            devices.into_iter(),
            number,
            changes,
        );
        let membership = room.membership();
        inbox.profile_mut().add(slot, membership);
        if inbox.is_attached() {
            let joined = Notice::Joined {
                room: AttachedRoom {
                    ring: room.ring(changes),
                    cursor: room.log.tail.into(),
                },
                is_own: false,
            };
            inbox.notify(&joined, changes);
        }
    }
}

/// Returns the name of the conversation of two users.
fn conversation_name(one: &UserName, other: &UserName) -> RoomName {
    let (smaller, larger) = if one <= other {
        (one, other)
    } else {
        (other, one)
    };
    let digest = Sha256::new()
        .chain_update(smaller.as_str())
        .chain_update([0])
        .chain_update(larger.as_str())
        .finalize();
    RoomName::conversation(&digest.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversation_has_one_name_for_both() {
        let user = |text: &str| text.parse::<UserName>().unwrap();
        let name = conversation_name(&user("amy"), &user("bob"));
        assert_eq!(name, conversation_name(&user("bob"), &user("amy")));
        assert_eq!(name.as_str(), "#=CVTZLVZJEQHWEW4X55T4YWXG26");
        assert_ne!(name, conversation_name(&user("amyb"), &user("ob")));
    }
}
