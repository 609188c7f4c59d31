//! Messages to rooms, and retention: what makes room for them, and what time removes.

use std::time::Duration;

use hark_protocol::message::RoomMode;
use hark_protocol::{Code, Sequence};

use super::super::changes::Changes;
use super::super::{Context, Ledger, next_number};
use super::Rooms;
use super::retention::counted_bytes;
use super::room::Room;
use crate::store::{Account, Append, Message};

/// The most spans that a frame forgets for their age.
const EXPIRED_MAX: usize = 64;

/// The most spans that give way to one message, or at the beginning of a frame, in all
/// rooms. More may be too many if the limit was lowered.
const GIVEN_WAY_MAX: usize = 64;

impl Ledger {
    /// Stores a message to the room of this name, unless a rule forbids it. `sender` is
    /// alive.
    pub(in crate::ledger) fn store_in_room(
        &mut self,
        append: Append,
        sender: Option<Account>,
        context: Context,
        changes: &mut Changes,
    ) -> Result<Sequence, Code> {
        let slot = self.rooms.slot(append.to.as_str());
        let slot = slot.ok_or(Code::NoSuchUser)?;
        let room = self.rooms.get(slot).ok_or(Code::NoSuchUser)?;
        let sender = self.check_sender(room, sender)?;
        let (account, text_bytes) = (sender.incarnation, append.text.len());
        self.rooms.check_quotas(slot, account, text_bytes)?;
        if self.has_no_space(context) {
            return Err(Code::NoSpace);
        }
        self.rooms.make_room(slot, text_bytes, changes);
        self.time_ms = self.time_ms.max(append.time_ms);
        let number = next_number(&mut self.numbers, changes);
        let keep = self.rooms.get(slot).map(|room| self.rooms.keep_of(room));
        let room = self.rooms.get_mut(slot).ok_or(Code::NoSuchUser)?;
        let message = Message {
            position: room.log.next_position(number, text_bytes),
            sender: Some(sender.name),
            time_ms: self.time_ms,
            text: append.text,
        };
        let times = (self.age, keep.unwrap_or_default());
        room.say(account, message, times, changes);
        self.rooms.note_message(slot, counted_bytes(text_bytes));
        changes.effects.is_awaited = true;
        Ok(Sequence(number))
    }

    /// Checks that an account may send to a room, and returns it.
    fn check_sender(&self, room: &Room, sender: Option<Account>) -> Result<Account, Code> {
        let is_public = room.mode != RoomMode::Invite;
        let hidden = if is_public {
            Code::Denied
        } else {
            Code::NoSuchUser
        };
        let sender = sender.ok_or(hidden)?;
        let account = sender.incarnation;
        let Some(member) = room.members.get(account) else {
            let is_visible = room.is_visible_to(account, self.age);
            return Err(if is_visible { Code::Denied } else { hidden });
        };
        if room.mode == RoomMode::News && !member.is_owner() {
            return Err(Code::Denied);
        }
        if room.name.is_conversation() {
            let mut others = room.members.iter_from(0).map(|member| member.account);
            let is_blocked = others.any(|other| {
                let inbox = self.inboxes.by_id(other);
                inbox.is_some_and(|inbox| inbox.is_blocking(account))
            });
            if is_blocked {
                return Err(Code::Denied);
            }
        }
        Ok(sender)
    }

    /// Forgets messages that were kept long enough, or that exceed a limit which was lowered.
    pub(in crate::ledger) fn expire_messages(&mut self, changes: &mut Changes) {
        self.rooms.give_way(0, changes);
        for _ in 0..EXPIRED_MAX {
            let Some((expiry, slot)) = self.rooms.expiries.first().copied() else {
                return;
            };
            if expiry > self.age {
                return;
            }
            // The entry may be earlier than the expiry.
            self.rooms.set_expiry(slot);
            let room = self.rooms.get(slot);
            let is_due = |expiry| expiry <= self.age;
            let oldest = room
                .filter(|room| room.expiry.is_some_and(is_due))
                .and_then(|room| room.spans.oldest());
            if let Some(through) = oldest {
                self.rooms.forget(slot, through, changes);
            }
        }
    }
}

impl Rooms {
    /// Checks that a sender has room for a text. Its messages do not give way to its own.
    fn check_quotas(&self, slot: u32, account: u64, text_bytes: usize) -> Result<(), Code> {
        let room = self.get(slot).ok_or(Code::NoSuchUser)?;
        let bytes = counted_bytes(text_bytes);
        let of_sender = room.spans.bytes_of(account).saturating_add(bytes);
        if of_sender > self.limits.sender_bytes_max() || bytes > self.limits.all_bytes_max {
            Err(Code::QueueFull)
        } else {
            Ok(())
        }
    }

    /// Forgets the oldest messages of the room, and of the largest ones, until there is room
    /// for a text.
    fn make_room(&mut self, slot: u32, text_bytes: usize, changes: &mut Changes) {
        let bytes = counted_bytes(text_bytes);
        while let Some(room) = self.get(slot)
            && room.bytes().saturating_add(bytes) > self.limits.room_bytes_max
            && let Some(through) = room.spans.oldest()
        {
            self.forget(slot, through, changes);
        }
        self.give_way(bytes, changes);
    }

    /// Forgets the oldest messages of the largest rooms until all rooms have so many bytes
    /// less than their limit, but at most [`GIVEN_WAY_MAX`] spans.
    fn give_way(&mut self, bytes: u64, changes: &mut Changes) {
        for _ in 0..GIVEN_WAY_MAX {
            if self.bytes.saturating_add(bytes) <= self.limits.all_bytes_max {
                return;
            }
            self.set_sizes();
            let Some((_, slot)) = self.sizes.last().copied() else {
                return;
            };
            let Some(through) = self.get(slot).and_then(|room| room.spans.oldest()) else {
                return;
            };
            self.forget(slot, through, changes);
        }
    }
}

impl Room {
    /// Adds a message to the frame, at a time of the retention clock, in a room that keeps
    /// its messages for a time. The read mark of its sender follows if it stood at the
    /// message before.
    fn say(
        &mut self,
        account: u64,
        message: Message,
        times: (Duration, Duration),
        changes: &mut Changes,
    ) {
        let held = self.bytes();
        self.log.push(&message, changes);
        let said = (message.position, message.text.len());
        self.spans.push(said, account, times, held);
        self.follow_mark(account, message.position);
        self.deliver(message, changes);
    }
}
