//! Messages to rooms, and retention: what makes room for them, and what time removes.

use hark_protocol::message::RoomMode;
use hark_protocol::{Code, Sequence};

use super::super::changes::Changes;
use super::super::{Context, Ledger, next_number};
use super::Rooms;
use super::retention::counted_bytes;
use super::room::Room;
use crate::store::{Account, Append, Message, Point};

/// The most spans that a frame forgets for their age.
const EXPIRED_MAX: usize = 64;

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
        if context.is_low_on_space {
            return Err(Code::NoSpace);
        }
        self.rooms.make_room(slot, text_bytes, changes);
        self.time_ms = self.time_ms.max(append.time_ms);
        let number = next_number(&mut self.numbers, changes);
        let keep = self.rooms.limits.keep;
        let room = self.rooms.get_mut(slot).ok_or(Code::NoSuchUser)?;
        let message = Message {
            position: room.log.next_position(number, text_bytes),
            sender: Some(sender.name),
            time_ms: self.time_ms,
            text: append.text,
        };
        room.say(account, &message, (self.age, keep), changes);
        self.rooms.bytes += counted_bytes(text_bytes);
        self.rooms.changed.push(slot);
        if self
            .rooms
            .get(slot)
            .is_some_and(|room| room.expiry.is_none())
        {
            self.rooms.set_expiry(slot);
        }
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
        if room.mode == RoomMode::News && !member.is_owner {
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

    /// Forgets messages that were kept long enough.
    pub(in crate::ledger) fn expire_messages(&mut self, changes: &mut Changes) {
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
        while self.bytes.saturating_add(bytes) > self.limits.all_bytes_max {
            let rooms = self.rooms.iter_from(0);
            let largest = rooms.max_by_key(|(_, room)| room.bytes());
            let Some((slot, through)) =
                largest.and_then(|(slot, room)| Some((slot, room.spans.oldest()?)))
            else {
                return;
            };
            self.forget(slot, through, changes);
        }
    }
}

impl Room {
    /// Adds a message to the frame. The read mark of its sender follows if it stood at the
    /// message before.
    fn say(
        &mut self,
        account: u64,
        message: &Message,
        (now, default_keep): (std::time::Duration, std::time::Duration),
        changes: &mut Changes,
    ) {
        let (held, before) = (self.bytes(), self.log.tail);
        self.log.push(message, changes);
        let said = (message.position, message.text.len());
        let keep = self.keep.unwrap_or(default_keep);
        self.spans.push(said, account, (now, keep), held);
        if let Some(member) = self.members.get_mut(account)
            && member.mark.messages == before.messages
        {
            member.mark = Point::from(message.position);
        }
    }
}
