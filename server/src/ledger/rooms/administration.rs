//! Rooms as an administrator sees them, and the removal of their messages.

use hark_protocol::RoomName;

use super::super::Ledger;
use super::super::changes::Changes;
use super::Rooms;
use super::room::Room;
use crate::store::{History, Position, Purged, RoomInfo, RoomList};

/// The most owners that are named.
const OWNERS_MAX: usize = 100;

impl Ledger {
    /// Returns at most `limit` rooms from a place on, in any order.
    pub(crate) fn list_rooms(&self, from: u64, limit: usize) -> RoomList {
        let mut list = RoomList::default();
        let Ok(from) = u32::try_from(from) else {
            return list;
        };
        for (slot, room) in self.rooms.rooms.iter_from(from) {
            if list.rooms.len() >= limit {
                list.next = Some(slot.into());
                break;
            }
            list.rooms.push(self.rooms.info(room));
        }
        list
    }

    /// Returns a room with its owners.
    pub(crate) fn room_info(&self, name: &RoomName) -> Option<RoomInfo> {
        let room = self.rooms.get(self.rooms.slot(name.as_str())?)?;
        let members = room.members.iter_from(0);
        let owners = members.filter(|member| member.is_owner());
        let inboxes = owners.filter_map(|owner| self.inboxes.by_id(owner.account));
        let mut names: Vec<_> = inboxes.map(|inbox| inbox.account.name.clone()).collect();
        names.sort_unstable();
        names.truncate(OWNERS_MAX);
        Some(RoomInfo {
            owners: names,
            ..self.rooms.info(room)
        })
    }
}

impl Rooms {
    fn info(&self, room: &Room) -> RoomInfo {
        RoomInfo {
            name: room.name.clone(),
            mode: room.mode,
            members: room.members.len(),
            messages: room.log.messages(),
            bytes: room.bytes(),
            removed: room.log.head.sequence,
            last: room.log.tail.sequence,
            keep: self.keep_of(room),
            owners: Vec::new(),
        }
    }

    /// Returns the messages of the room of this name.
    pub(in crate::ledger) fn history_of(&self, name: &str) -> Option<History> {
        Some(self.get(self.slot(name)?)?.log.history())
    }

    /// Removes the messages of a room up to a position. The bytes of a sender count until the
    /// span with its messages has gone.
    pub(in crate::ledger) fn purge(
        &mut self,
        log: u64,
        through: Position,
        changes: &mut Changes,
    ) -> Purged {
        let slot = self.by_id.get(&log).copied();
        let Some((slot, room)) = slot.and_then(|slot| Some((slot, self.get(slot)?))) else {
            return Purged::default();
        };
        let (head, ring) = (room.log.head, room.open_ring());
        self.forget(slot, through, changes);
        let removed = self.get(slot).map_or(head, |room| room.log.head);
        let rings = ring.map(|ring| (ring, removed.into()));
        changes.effects.purged_rings.extend(rings);
        changes.effects.is_awaited = true;
        Purged {
            messages: removed.messages.saturating_sub(head.messages),
            bytes: removed.bytes.saturating_sub(head.bytes),
            is_silent_for_connect: false,
        }
    }
}
