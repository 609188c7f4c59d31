//! Replay of the records of rooms, and the rooms as a part of a checkpoint.

use super::super::changes::Changes;
use super::Rooms;
use super::record::{RoomRecord, RoomState};
use super::room::{Room, record};
use crate::store::Position;

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
            let mut items = room.records_of(place.part, place.from).peekable();
            while let Some((next, item)) = items.next_if(|_| changes.record_bytes() < bytes_max) {
                place.from = next + 1;
                record(item, changes);
            }
            if let Some((next, _)) = items.peek() {
                place.from = *next;
                return false;
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
            RoomRecord::Member(id, member) => {
                self.replay_in(id, |room| room.members.insert(member));
            }
            RoomRecord::MemberEnd(id, account, devices) => self.replay_in(id, |room| {
                room.members.remove(account, devices.into_iter());
            }),
            RoomRecord::Cursor(id, cursor) => {
                self.replay_in(id, |room| room.members.set_cursor(cursor));
            }
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

    /// Completes a replay: derives the totals. Returns each room, whether it is a
    /// conversation of two, and its members.
    pub(in crate::ledger) fn finish_replay(&mut self) -> Vec<(u32, bool, Vec<u64>)> {
        self.bytes = 0;
        let rooms = self.rooms.iter_from(0);
        let members: Vec<_> = rooms
            .map(|(slot, room)| {
                self.bytes = self.bytes.saturating_add(room.bytes());
                let members = room.members.iter_from(0).map(|member| member.account);
                (slot, room.name.is_conversation(), members.collect())
            })
            .collect();
        for (slot, ..) in &members {
            self.set_expiry(*slot);
        }
        members
    }
}

impl Room {
    /// Returns the records of a part of the room from a key on, with their keys.
    fn records_of(
        &self,
        part: RoomPart,
        from: u64,
    ) -> Box<dyn Iterator<Item = (u64, RoomRecord)> + '_> {
        let id = self.log.id;
        match part {
            RoomPart::Room => Box::new(std::iter::once((0, RoomRecord::Room(self.state())))),
            RoomPart::Spans => Box::new(
                self.spans
                    .iter_from(from)
                    .map(move |span| (span.first, RoomRecord::Span(id, span.clone()))),
            ),
            RoomPart::Members => Box::new(
                self.members
                    .iter_from(from)
                    .map(move |member| (member.account, RoomRecord::Member(id, *member))),
            ),
            RoomPart::Cursors => Box::new(
                self.members
                    .cursors_from(from)
                    .map(move |cursor| (cursor.device, RoomRecord::Cursor(id, *cursor))),
            ),
            RoomPart::Guests => {
                let guests = self.guests.iter().map(|guests| (**guests).clone());
                let record = move |guests| (0, RoomRecord::Guests(id, guests));
                Box::new(guests.map(record))
            }
        }
    }
}
