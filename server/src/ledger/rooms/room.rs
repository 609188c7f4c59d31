//! [`Room`]: the state of one room.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hark_protocol::RoomName;
use hark_protocol::message::RoomMode;

use super::super::changes::{Changes, RoomDelivery};
use super::super::message_log::MessageLog;
use super::super::profile::Membership;
use super::super::record::Record;
use super::guests::Guests;
use super::members::{Member, Members, RoomCursor, up_to};
use super::record::{RoomRecord, RoomState};
use super::retention::{Spans, bytes_between};
use crate::store::{DeviceId, Message, Point, Position, Ring};

/// A room.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: RoomName,
    pub(super) mode: RoomMode,
    /// How long messages are kept; `None` for the default of the server.
    pub(super) keep: Option<Duration>,
    /// The accounts of a conversation of two, members or not: it ends with either.
    pub(super) parties: Option<[u64; 2]>,
    pub(super) log: MessageLog,
    pub(super) spans: Spans,
    pub(super) members: Members,
    /// Boxed, because few rooms have any.
    pub(super) guests: Option<Box<Guests>>,
    /// Its entry in the queue of expiries, if it has one.
    pub(super) expiry: Option<Duration>,
    /// Its bytes in the queue of sizes.
    pub(super) queued_bytes: u64,
    /// Its recent messages, while a member is attached.
    ring: Weak<Ring>,
    /// The index of its delivery in the frame under construction, valid only if that belongs
    /// to its ring.
    delivery_at: u32,
    /// Members whose read mark followed their messages in the frame under construction.
    moved: Vec<u64>,
}

impl Room {
    /// Returns a room without members.
    pub(super) fn new(state: RoomState) -> Self {
        let RoomState {
            id,
            name,
            mode,
            keep,
            parties,
            head,
            tail,
        } = state;
        Self {
            name,
            mode,
            keep,
            parties,
            log: MessageLog::new(id, head, tail),
            spans: Spans::default(),
            members: Members::default(),
            guests: None,
            expiry: None,
            queued_bytes: 0,
            ring: Weak::new(),
            delivery_at: 0,
            moved: Vec::new(),
        }
    }

    /// Returns the recorded state of the room alone.
    pub(super) fn state(&self) -> RoomState {
        RoomState {
            id: self.log.id,
            name: self.name.clone(),
            mode: self.mode,
            keep: self.keep,
            parties: self.parties,
            head: self.log.head,
            tail: self.log.tail,
        }
    }

    /// Writes the room alone.
    pub(super) fn write(&self, changes: &mut Changes) {
        record(RoomRecord::Room(self.state()), changes);
        changes.effects.is_awaited = true;
    }

    /// Returns the ring for its attached members. A new one begins behind the last message.
    pub(super) fn ring(&mut self, changes: &mut Changes) -> Arc<Ring> {
        self.ring.upgrade().unwrap_or_else(|| {
            let ring = Ring::new(self.log.id, self.name.clone(), self.log.tail.into());
            let ring = Arc::new(ring);
            self.ring = Arc::downgrade(&ring);
            changes.effects.rings.push(Arc::clone(&ring));
            ring
        })
    }

    /// Returns the ring, if a member is attached, or was until its end.
    pub(super) fn open_ring(&self) -> Option<Arc<Ring>> {
        self.ring.upgrade()
    }

    /// Adds a message to the delivery of the frame, if a member is attached.
    pub(super) fn deliver(&mut self, message: Message, changes: &mut Changes) {
        let Some(ring) = self.ring.upgrade() else {
            return;
        };
        let message = Arc::new(message);
        let said = &mut changes.effects.said;
        match said.get_mut(self.delivery_at as usize) {
            Some(delivery) if Arc::ptr_eq(&delivery.ring, &ring) => {
                delivery.messages.push(message);
            }
            _ => {
                self.delivery_at = said.len() as u32;
                let messages = vec![message];
                said.push(RoomDelivery { ring, messages });
            }
        }
    }

    /// Returns the bytes of its messages that count for quotas.
    pub(super) const fn bytes(&self) -> u64 {
        bytes_between(self.log.head, self.log.tail)
    }

    /// Returns the relation of its members to it.
    pub(super) const fn membership(&self) -> Membership {
        match self.parties {
            None => Membership::Room,
            Some(_) => Membership::Conversation,
        }
    }

    /// Returns whether an account belongs to the room.
    pub(super) fn is_member(&self, account: u64) -> bool {
        self.members.get(account).is_some()
    }

    /// Returns whether an account owns the room.
    pub(super) fn is_owner(&self, account: u64) -> bool {
        self.members.get(account).is_some_and(Member::is_owner)
    }

    /// Returns whether an account may know that the room exists.
    pub(super) fn is_visible_to(&self, account: u64, now: Duration) -> bool {
        self.mode != RoomMode::Invite || self.is_member(account) || self.is_invited(account, now)
    }

    /// Returns whether an account has a valid invitation.
    pub(super) fn is_invited(&self, account: u64, now: Duration) -> bool {
        let guests = self.guests.as_ref();
        guests.is_some_and(|guests| guests.is_invited(account, now))
    }

    /// Returns whether an account is banned.
    pub(super) fn is_banned(&self, account: u64) -> bool {
        let guests = self.guests.as_ref();
        guests.is_some_and(|guests| guests.is_banned(account))
    }

    /// Returns the position before the first message that a member may read back.
    pub(super) fn readable_after(&self, member: &Member) -> u64 {
        let head = self.log.head.sequence.0;
        match self.mode {
            RoomMode::Invite => head.max(member.joined()),
            RoomMode::Open | RoomMode::News => head,
        }
    }

    /// Takes a number of the room that belongs to no message.
    fn take_number(&mut self, number: u64, changes: &mut Changes) {
        self.log.tail.sequence.0 = number;
        changes.record(&Record::Tail(self.log.id, self.log.tail));
    }

    /// Adds a member with its devices, at a new number of the room. Its invitation is used
    /// up.
    pub(super) fn join(
        &mut self,
        account: u64,
        is_owner: bool,
        devices: impl Iterator<Item = DeviceId>,
        number: u64,
        changes: &mut Changes,
    ) {
        self.take_number(number, changes);
        let point = Point::from(self.log.tail);
        let member = Member::new(account, number, is_owner, point.messages);
        self.members.insert(member);
        changes.totals.members += 1;
        record(RoomRecord::Members(self.log.id, vec![member]), changes);
        for device in devices {
            self.set_cursor(RoomCursor { device, point }, changes);
        }
        if let Some(guests) = &mut self.guests
            && guests.remove_invitation(account)
        {
            record(RoomRecord::GuestEnd(self.log.id, account), changes);
        }
        changes.effects.is_awaited = true;
    }

    /// Removes a member with its devices, at a new number of the room.
    pub(super) fn leave(
        &mut self,
        account: u64,
        devices: Vec<DeviceId>,
        number: u64,
        changes: &mut Changes,
    ) {
        self.take_number(number, changes);
        self.members.remove(account, devices.iter().copied());
        changes.totals.members = changes.totals.members.saturating_sub(1);
        record(
            RoomRecord::MemberEnd(self.log.id, account, devices),
            changes,
        );
        changes.effects.is_awaited = true;
    }

    /// Makes a member an owner.
    pub(super) fn own(&mut self, account: u64, changes: &mut Changes) {
        if let Some(member) = self.members.get_mut(account) {
            member.own();
            let members = vec![*member];
            record(RoomRecord::Members(self.log.id, members), changes);
            changes.effects.is_awaited = true;
        }
    }

    /// Moves the read mark of a member up to `point`, at most to the end of the log. Returns
    /// the number that it moved to, if it was before.
    pub(super) fn move_mark(&mut self, account: u64, point: Point) -> Option<u64> {
        let point = up_to(point, self.log.tail);
        let member = self.members.get_mut(account)?;
        if member.mark >= point.messages {
            return None;
        }
        member.mark = point.messages;
        Some(point.number)
    }

    /// Lets the read mark of a sender follow its message, if the mark stood at the message
    /// before.
    pub(super) fn follow_mark(&mut self, account: u64, message: Position) {
        if let Some(member) = self.members.get_mut(account)
            && member.mark.checked_add(1) == Some(message.messages)
        {
            member.mark = message.messages;
            if self.moved.last() != Some(&account) {
                self.moved.push(account);
            }
        }
    }

    /// Writes the read marks that followed messages of the frame.
    pub(super) fn write_moved(&mut self, changes: &mut Changes) {
        let mut moved = std::mem::take(&mut self.moved);
        moved.sort_unstable();
        moved.dedup();
        for account in moved {
            self.write_mark(account, changes);
        }
    }

    /// Writes the read mark of a member.
    pub(super) fn write_mark(&self, account: u64, changes: &mut Changes) {
        if let Some(member) = self.members.get(account) {
            let mark = RoomRecord::Mark(self.log.id, account, member.mark);
            record(mark, changes);
        }
    }

    /// Sets and writes the cursor of a device.
    pub(super) fn set_cursor(&mut self, cursor: RoomCursor, changes: &mut Changes) {
        self.members.set_cursor(cursor);
        record(RoomRecord::Cursors(self.log.id, vec![cursor]), changes);
    }

    /// Ends the cursor of a device.
    pub(super) fn remove_cursor(&mut self, device: DeviceId, changes: &mut Changes) {
        self.members.remove_cursor(device);
        record(RoomRecord::CursorEnd(self.log.id, device), changes);
    }

    /// Returns the number of messages above the read mark of a member that the room still
    /// holds.
    pub(super) fn unread(&self, member: &Member) -> u64 {
        let read = member.mark.max(self.log.head.messages);
        self.log.tail.messages.saturating_sub(read)
    }

    /// Forgets the messages up to a position.
    pub(super) fn forget(&mut self, through: Position, changes: &mut Changes) {
        self.log.forget(through, changes);
        self.spans.forget(self.log.head);
    }

    /// Invites an account, or lifts its ban if anybody may join. Returns false if there are
    /// too many invitations of living accounts.
    pub(super) fn invite(
        &mut self,
        account: u64,
        now: Duration,
        is_alive: impl Fn(u64) -> bool,
        changes: &mut Changes,
    ) -> bool {
        if self.mode == RoomMode::Invite {
            let guests = self.guests.get_or_insert_default();
            let stale = guests.stale_invitations(account, now, is_alive);
            self.remove_guests(&stale, changes);
            let guests = self.guests.get_or_insert_default();
            if guests.has_most_invitations(account) {
                return false;
            }
            guests.invite(account, now);
            let invitation = RoomRecord::Invitation(self.log.id, account, now);
            record(invitation, changes);
        } else if let Some(guests) = &mut self.guests
            && guests.is_banned(account)
        {
            self.remove_guests(&[account], changes);
        }
        changes.effects.is_awaited = true;
        true
    }

    /// Bans an account, and withdraws its invitation.
    pub(super) fn ban(
        &mut self,
        account: u64,
        is_alive: impl Fn(u64) -> bool,
        changes: &mut Changes,
    ) {
        let stale = self.guests.get_or_insert_default().stale_bans(is_alive);
        self.remove_guests(&stale, changes);
        self.guests.get_or_insert_default().ban(account);
        record(RoomRecord::Ban(self.log.id, account), changes);
        changes.effects.is_awaited = true;
    }

    /// Removes invitations and bans, and writes that.
    fn remove_guests(&mut self, accounts: &[u64], changes: &mut Changes) {
        let Some(guests) = &mut self.guests else {
            return;
        };
        for account in accounts {
            guests.remove(*account);
            record(RoomRecord::GuestEnd(self.log.id, *account), changes);
        }
    }
}

/// Writes a record of a room.
pub(super) fn record(record: RoomRecord, changes: &mut Changes) {
    changes.record(&Record::Room(record));
}
