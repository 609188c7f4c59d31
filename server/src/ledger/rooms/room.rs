//! [`Room`]: the state of one room.

use std::time::Duration;

use hark_protocol::RoomName;
use hark_protocol::message::RoomMode;

use super::super::changes::Changes;
use super::super::message_log::MessageLog;
use super::super::record::Record;
use super::guests::Guests;
use super::members::{Member, Members, RoomCursor, up_to};
use super::record::{RoomRecord, RoomState};
use super::retention::{Spans, bytes_between};
use crate::store::{DeviceId, Point, Position};

/// A room.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: RoomName,
    pub(super) mode: RoomMode,
    /// How long messages are kept; `None` for the default of the server.
    pub(super) keep: Option<Duration>,
    pub(super) log: MessageLog,
    pub(super) spans: Spans,
    pub(super) members: Members,
    /// Boxed, because few rooms have any.
    pub(super) guests: Option<Box<Guests>>,
    /// Its entry in the queue of expiries, if it has one.
    pub(super) expiry: Option<Duration>,
}

impl Room {
    /// Returns a room without members.
    pub(super) fn new(state: RoomState) -> Self {
        let RoomState {
            id,
            name,
            mode,
            keep,
            head,
            tail,
        } = state;
        Self {
            name,
            mode,
            keep,
            log: MessageLog::new(id, head, tail),
            spans: Spans::default(),
            members: Members::default(),
            guests: None,
            expiry: None,
        }
    }

    /// Returns the recorded state of the room alone.
    pub(super) fn state(&self) -> RoomState {
        RoomState {
            id: self.log.id,
            name: self.name.clone(),
            mode: self.mode,
            keep: self.keep,
            head: self.log.head,
            tail: self.log.tail,
        }
    }

    /// Writes the room alone.
    pub(super) fn write(&self, changes: &mut Changes) {
        record(RoomRecord::Room(self.state()), changes);
        changes.effects.is_awaited = true;
    }

    /// Returns the bytes of its messages that count for quotas.
    pub(super) const fn bytes(&self) -> u64 {
        bytes_between(self.log.head, self.log.tail)
    }

    /// Returns whether an account belongs to the room.
    pub(super) fn is_member(&self, account: u64) -> bool {
        self.members.get(account).is_some()
    }

    /// Returns whether an account owns the room.
    pub(super) fn is_owner(&self, account: u64) -> bool {
        self.members
            .get(account)
            .is_some_and(|member| member.is_owner)
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
            RoomMode::Invite => head.max(member.joined),
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
        let member = Member {
            account,
            joined: number,
            mark: point,
            is_owner,
        };
        self.members.insert(member);
        record(RoomRecord::Member(self.log.id, member), changes);
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
        devices: impl Iterator<Item = DeviceId>,
        number: u64,
        changes: &mut Changes,
    ) {
        self.take_number(number, changes);
        let devices: Vec<_> = devices.collect();
        self.members.remove(account, devices.iter().copied());
        record(
            RoomRecord::MemberEnd(self.log.id, account, devices),
            changes,
        );
        changes.effects.is_awaited = true;
    }

    /// Makes a member an owner.
    pub(super) fn own(&mut self, account: u64, changes: &mut Changes) {
        if let Some(member) = self.members.get_mut(account) {
            member.is_owner = true;
            let member = *member;
            record(RoomRecord::Member(self.log.id, member), changes);
            changes.effects.is_awaited = true;
        }
    }

    /// Moves the read mark of a member, if the mark is before `point`. Returns whether it
    /// moved.
    pub(super) fn move_mark(&mut self, account: u64, point: Point) -> bool {
        let point = up_to(point, self.log.tail);
        match self.members.get_mut(account) {
            Some(member) if member.mark.number < point.number => {
                member.mark = point;
                true
            }
            _ => false,
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
        record(RoomRecord::Cursor(self.log.id, cursor), changes);
    }

    /// Ends the cursor of a device.
    pub(super) fn remove_cursor(&mut self, device: DeviceId, changes: &mut Changes) {
        self.members.remove_cursor(device);
        record(RoomRecord::CursorEnd(self.log.id, device), changes);
    }

    /// Returns the number of messages above the read mark of a member that the room still
    /// holds.
    pub(super) fn unread(&self, member: &Member) -> u64 {
        let read = member.mark.messages.max(self.log.head.messages);
        self.log.tail.messages.saturating_sub(read)
    }

    /// Forgets the messages up to a position. Returns the bytes that are free.
    pub(super) fn forget(&mut self, through: Position, changes: &mut Changes) -> u64 {
        let before = self.bytes();
        self.log.forget(through, changes);
        self.spans.forget(self.log.head);
        before.saturating_sub(self.bytes())
    }

    /// Invites an account, or lifts its ban if anybody may join. Returns false if there are
    /// too many invitations.
    pub(super) fn invite(&mut self, account: u64, now: Duration, changes: &mut Changes) -> bool {
        if self.mode == RoomMode::Invite {
            let guests = self.guests.get_or_insert_default();
            if !guests.invite(account, now) {
                return false;
            }
            let invitation = RoomRecord::Invitation(self.log.id, account, now);
            record(invitation, changes);
        } else if let Some(guests) = &mut self.guests
            && guests.lift(account)
        {
            record(RoomRecord::GuestEnd(self.log.id, account), changes);
        }
        changes.effects.is_awaited = true;
        true
    }

    /// Bans an account, and withdraws its invitation.
    pub(super) fn ban(&mut self, account: u64, changes: &mut Changes) {
        self.guests.get_or_insert_default().ban(account);
        record(RoomRecord::Ban(self.log.id, account), changes);
        changes.effects.is_awaited = true;
    }
}

/// Writes a record of a room.
pub(super) fn record(record: RoomRecord, changes: &mut Changes) {
    changes.record(&Record::Room(record));
}
