//! Replay of the records of rooms, and the rooms as a part of a checkpoint.

use super::super::changes::Changes;
use super::super::profile::Membership;
use super::Rooms;
use super::record::{RoomRecord, RoomState};
use super::room::{Room, record};
use crate::store::Position;

/// The most members or cursors in a record of a checkpoint, and the bytes of one at most.
const MEMBERS_MAX: usize = 256;
const MEMBER_BYTES: usize = 32;

/// A place among the records of all rooms.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::ledger) struct RoomPlace {
    slot: u32,
    part: RoomPart,
    /// The next span, account or device.
    from: u64,
}

/// The records of a room, in this order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum RoomPart {
    #[default]
    Room,
    Spans,
    Members,
    Cursors,
    Guests,
}

impl RoomPart {
    const fn next(self) -> Option<Self> {
        match self {
            Self::Room => Some(Self::Spans),
            Self::Spans => Some(Self::Members),
            Self::Members => Some(Self::Cursors),
            Self::Cursors => Some(Self::Guests),
            Self::Guests => None,
        }
    }
}

impl Rooms {
    /// Writes the rooms from a place on, until the frame has `bytes_max`. Returns whether
    /// all rooms are written.
    pub(in crate::ledger) fn write_from(
        &self,
        place: &mut RoomPlace,
        bytes_max: usize,
        changes: &mut Changes,
    ) -> bool {
        while let Some((slot, room)) = self.rooms.iter_from(place.slot).next() {
            if slot != place.slot {
                *place = RoomPlace {
                    slot,
                    ..RoomPlace::default()
                };
            }
            let used = changes.record_bytes();
            if used >= bytes_max {
                return false;
            }
            let count = ((bytes_max - used) / MEMBER_BYTES).clamp(1, MEMBERS_MAX);
            if let Some((last, item)) = room.record_from(place.part, place.from, count) {
                record(item, changes);
                if let Some(next) = last.checked_add(1) {
                    place.from = next;
                    continue;
                }
            }
            *place = match place.part.next() {
                Some(part) => RoomPlace {
                    slot,
                    part,
                    from: 0,
                },
                None => RoomPlace {
                    slot: slot + 1,
                    ..RoomPlace::default()
                },
            };
        }
        true
    }

    /// Replays a record. One of a room that is not defined is ignored: a later part of the
    /// checkpoint defines it.
    pub(in crate::ledger) fn replay(&mut self, record: RoomRecord) {
        match record {
            RoomRecord::Room(state) => self.replay_room(state),
            RoomRecord::End(id) => {
                if let Some(slot) = self.by_id.get(&id).copied() {
                    self.remove(slot);
                }
            }
            RoomRecord::Members(id, members) => self.replay_in(id, |room| {
                let members = members.into_iter();
                members.for_each(|member| room.members.insert(member));
            }),
            RoomRecord::MemberEnd(id, account, devices) => self.replay_in(id, |room| {
                room.members.remove(account, devices.into_iter());
            }),
            RoomRecord::Cursors(id, cursors) => self.replay_in(id, |room| {
                let cursors = cursors.into_iter();
                cursors.for_each(|cursor| room.members.set_cursor(cursor));
            }),
            RoomRecord::CursorEnd(id, device) => {
                self.replay_in(id, |room| room.members.remove_cursor(device));
            }
            RoomRecord::Mark(id, account, mark) => self.replay_in(id, |room| {
                if let Some(member) = room.members.get_mut(account) {
                    member.mark = mark;
                }
            }),
            RoomRecord::Invitation(id, account, at) => self.replay_in(id, |room| {
                room.guests.get_or_insert_default().invite(account, at);
            }),
            RoomRecord::Ban(id, account) => {
                self.replay_in(id, |room| room.guests.get_or_insert_default().ban(account));
            }
            RoomRecord::GuestEnd(id, account) => self.replay_in(id, |room| {
                if let Some(guests) = &mut room.guests {
                    guests.remove(account);
                }
            }),
            RoomRecord::Guests(id, guests) => {
                self.replay_in(id, |room| room.guests = Some(Box::new(guests)));
            }
            RoomRecord::Span(id, span) => self.replay_in(id, |room| {
                room.log.raise_tail(span.end);
                room.spans.restore(span);
            }),
        }
    }

    fn replay_in(&mut self, id: u64, change: impl FnOnce(&mut Room)) {
        if let Some(room) = self.by_id(id) {
            change(room);
        }
    }

    /// Replays the head of the log of a room, if there is such a room.
    pub(in crate::ledger) fn replay_head(&mut self, id: u64, head: Position) {
        self.replay_in(id, |room| {
            room.log.head = head;
            room.spans.forget(head);
        });
    }

    /// Returns the number of the last forgotten message of a room.
    pub(in crate::ledger) fn replayed_head(&mut self, id: u64) -> Option<u64> {
        self.by_id(id).map(|room| room.log.head.sequence.0)
    }

    fn replay_room(&mut self, state: RoomState) {
        if let Some(room) = self.by_id(state.id) {
            // A record never gives a room another name.
            if room.name == state.name {
                (room.mode, room.keep) = (state.mode, state.keep);
                (room.log.head, room.log.tail) = (state.head, state.tail);
                room.spans.forget(state.head);
            }
            return;
        }
        if let Some(former) = self.slot(state.name.as_str()) {
            self.remove(former);
        }
        self.insert(Room::new(state));
    }

    /// Completes a replay: derives the totals and queues.
    pub(in crate::ledger) fn finish_replay(&mut self) {
        let slots: Vec<_> = self.rooms.iter_from(0).map(|(slot, _)| slot).collect();
        self.bytes = 0;
        for slot in slots {
            self.set_size(slot);
            self.set_expiry(slot);
            let bytes = self.get(slot).map_or(0, Room::bytes);
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    /// Returns accounts with the slots of their rooms, in the order of the slots, and their
    /// relations to them. The last one for an account and a room counts.
    pub(in crate::ledger) fn memberships(&self) -> impl Iterator<Item = (u64, u32, Membership)> {
        self.rooms.iter_from(0).flat_map(|(slot, room)| {
            let parties = room.parties.into_iter().flatten();
            let former = parties.map(move |account| (account, slot, Membership::Former));
            let members = room.members.iter_from(0);
            let members = members.map(move |m| (m.account, slot, room.membership()));
            former.chain(members)
        })
    }
}

impl Room {
    /// Returns the next record of a part of the room from a key on, with at most `count`
    /// members or cursors, and the last key in it.
    fn record_from(&self, part: RoomPart, from: u64, count: usize) -> Option<(u64, RoomRecord)> {
        let id = self.log.id;
        match part {
            RoomPart::Room => (from == 0).then(|| (0, RoomRecord::Room(self.state()))),
            RoomPart::Spans => {
                let span = self.spans.iter_from(from).next()?;
                Some((span.first, RoomRecord::Span(id, span.clone())))
            }
            RoomPart::Members => {
                let members = self.members.iter_from(from).take(count);
                let members: Vec<_> = members.copied().collect();
                let last = members.last()?.account;
                Some((last, RoomRecord::Members(id, members)))
            }
            RoomPart::Cursors => {
                let cursors = self.members.cursors_from(from).take(count);
                let cursors: Vec<_> = cursors.copied().collect();
                let last = cursors.last()?.device;
                Some((last, RoomRecord::Cursors(id, cursors)))
            }
            RoomPart::Guests => {
                let guests = self.guests.as_ref().filter(|_| from == 0)?;
                Some((0, RoomRecord::Guests(id, (**guests).clone())))
            }
        }
    }
}
