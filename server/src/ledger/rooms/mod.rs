//! Rooms: their members, messages and retention. A room is a log of messages with many
//! readers: each device of a member has a cursor.
//!
//! Records and state:
//!
//! - **Bounds.** The log of a room is a [`MessageLog`](super::message_log::MessageLog), as
//!   that of an inbox. Its blocks carry the id of the room. Retention moves the head; no
//!   acknowledgement does.
//! - **Numbers.** `join` and `leave` take a number of the room, so that it has one order of
//!   messages and changes of its members: a member gets the messages between the two.
//! - **Cursors** are recorded when the shard passes an acknowledgement on, at most once a
//!   second for each device and room. A cursor before the head is a gap: the device gets
//!   the count of the missing messages by subtraction.
//! - **Marks** and quotas of senders change with each message. They are recorded once for
//!   each frame, by [`Ledger::finish`](super::Ledger::finish).
//! - **Retention** forgets whole [spans](retention::Spans): by age, by the bytes of the
//!   room, and by the bytes of all rooms, of which the largest room gives way.
//! - **`left`** is the last push of a room to a device. It has a number of the room: a
//!   device that is attached gets the messages below it. A device that is not gets those
//!   that it has not seen no more: its cursor ends with the membership.
//! - **A conversation of two** ends with either account, also if that has left it.
//! - **Identity.** Everything belongs to accounts by their incarnations, and ends with
//!   them.
//! - **Ages** are those of the retention clock: the running time, and at most a day for each
//!   stop. A wrong wall clock removes nothing.
//! - **Size.** A member with one device takes 64 bytes of memory, at most 48 bytes in a
//!   checkpoint, and 24 more for the cursor of the device. Nothing is stored for each
//!   message and member.
//!
//! In a cluster, a room and its members will belong to the shard of its name, and the list
//! of a user's rooms ([`Profile`](super::profile::Profile)), its devices and its blocks to
//! the shard of the user. What crosses this border, and is one call here:
//!
//! - Numbers of different shards are not comparable. An account of another shard needs a
//!   number of the shard of the room, assigned with its first membership; members and blocks
//!   then hold that number and the name.
//! - `join` and the end of an account change both shards: the shard of the user records the
//!   intent, and the shard of the room is the truth. Here, the list of rooms is derived from
//!   the members, and has no records.
//! - The devices of a member come with `join` and `attach`, because the shard of the room
//!   does not know them.
//!
//! | file | content |
//! | --- | --- |
//! | `commands`, `deletion` | the commands of users, and the end of rooms and accounts |
//! | `sending` | messages to rooms, and retention |
//! | `administration` | rooms as an administrator sees them |
//! | `reading` | cursors, read marks and queries |
//! | `room` | the state of one room |
//! | `members`, `guests` | its members and cursors; invitations and bans |
//! | `retention` | ages and bytes of its messages |
//! | `record`, `replay` | its records, their replay, and their part of a checkpoint |

mod administration;
mod commands;
mod deletion;
mod guests;
mod members;
mod reading;
mod record;
mod replay;
mod retention;
mod room;
mod sending;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use hark_protocol::RoomName;

use self::room::Room;
use super::changes::Changes;
use super::slots::Slots;
use crate::store::Position;

pub(super) use self::record::RoomRecord;
pub(super) use self::replay::RoomPlace;

/// The limits of rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLimits {
    /// Maximum number of members of a room.
    pub members_max: usize,
    /// Maximum number of rooms of a user, without conversations of two.
    pub joined_max: usize,
    /// Maximum number of rooms that a user owns.
    pub owned_max: usize,
    /// Maximum bytes of a room. A sender has at most a quarter of them.
    pub room_bytes_max: u64,
    /// Maximum bytes of all rooms.
    pub all_bytes_max: u64,
    /// How long a room keeps its messages, unless its owner chooses a time.
    pub keep: Duration,
    /// The longest time that an owner may choose.
    pub keep_max: Duration,
}

impl RoomLimits {
    /// The defaults of the flags.
    pub const DEFAULT: Self = Self {
        members_max: 10_000,
        joined_max: 64,
        owned_max: 16,
        room_bytes_max: 256 << 20,
        all_bytes_max: 16 << 30,
        keep: Duration::from_secs(30 * 24 * 3600),
        keep_max: Duration::from_secs(366 * 24 * 3600),
    };

    /// Returns the bytes of a room that one sender has at most.
    const fn sender_bytes_max(&self) -> u64 {
        self.room_bytes_max / 4
    }
}

/// All rooms.
#[derive(Debug)]
pub(super) struct Rooms {
    limits: RoomLimits,
    rooms: Slots<Room>,
    by_name: HashMap<RoomName, u32>,
    by_id: HashMap<u64, u32>,
    /// The bytes of all rooms that count for quotas.
    bytes: u64,
    /// The rooms with messages, by the age at which to look for expired ones: at the
    /// earliest, or before.
    expiries: BTreeSet<(Duration, u32)>,
    /// The rooms with messages, by their bytes; those of `resized` may have more.
    sizes: BTreeSet<(u64, u32)>,
    /// Rooms with messages since `sizes` was brought up to date.
    resized: Vec<u32>,
    /// Rooms with messages in the frame under construction.
    changed: Vec<u32>,
}

impl Rooms {
    /// Returns no rooms.
    pub(super) fn new(limits: RoomLimits) -> Self {
        Self {
            limits,
            rooms: Slots::default(),
            by_name: HashMap::new(),
            by_id: HashMap::new(),
            bytes: 0,
            expiries: BTreeSet::new(),
            sizes: BTreeSet::new(),
            resized: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Returns whether there is no room.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Returns the number of rooms.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Counts the memberships of all rooms.
    pub(super) fn member_count(&self) -> u64 {
        let rooms = self.rooms.iter_from(0);
        rooms.map(|(_, room)| room.members.len() as u64).sum()
    }

    /// Returns whether there is a room of this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.slot(name).is_some()
    }

    /// Returns the slot of the room of this name.
    fn slot(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Returns the room in a slot.
    fn get(&self, slot: u32) -> Option<&Room> {
        self.rooms.get(slot)
    }

    /// Returns the room in a slot.
    fn get_mut(&mut self, slot: u32) -> Option<&mut Room> {
        self.rooms.get_mut(slot)
    }

    /// Returns the room with this id.
    fn by_id(&mut self, id: u64) -> Option<&mut Room> {
        self.rooms.get_mut(*self.by_id.get(&id)?)
    }

    /// Returns the head of the log of a room.
    pub(super) fn head(&mut self, id: u64) -> Option<Position> {
        self.by_id(id).map(|room| room.log.head)
    }

    /// Moves the tail of the log of a room to a later position, if there is such a room.
    pub(super) fn raise_tail(&mut self, id: u64, tail: Position) {
        if let Some(room) = self.by_id(id) {
            room.log.raise_tail(tail);
        }
    }

    /// Adds a room with a new name. Returns its slot, or `None` if all are in use.
    fn insert(&mut self, room: Room) -> Option<u32> {
        let (id, name, bytes) = (room.log.id, room.name.clone(), room.bytes());
        let slot = self.rooms.insert(room).ok()?;
        self.by_id.insert(id, slot);
        self.by_name.insert(name, slot);
        self.bytes = self.bytes.saturating_add(bytes);
        self.set_size(slot);
        Some(slot)
    }

    /// Removes a room.
    fn remove(&mut self, slot: u32) -> Option<Room> {
        let room = self.rooms.remove(slot)?;
        self.by_id.remove(&room.log.id);
        self.by_name.remove(&room.name);
        self.bytes = self.bytes.saturating_sub(room.bytes());
        if let Some(expiry) = room.expiry {
            self.expiries.remove(&(expiry, slot));
        }
        self.sizes.remove(&(room.queued_bytes, slot));
        Some(room)
    }

    /// Forgets the messages of a room up to a position.
    fn forget(&mut self, slot: u32, through: Position, changes: &mut Changes) {
        if let Some(room) = self.rooms.get_mut(slot) {
            let before = room.bytes();
            room.forget(through, changes);
            let freed = before.saturating_sub(room.bytes());
            self.bytes = self.bytes.saturating_sub(freed);
        }
        self.set_size(slot);
        self.set_expiry(slot);
    }

    /// Notes that a room has a new message of so many bytes.
    fn note_message(&mut self, slot: u32, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        for list in [&mut self.resized, &mut self.changed] {
            if list.last() != Some(&slot) {
                list.push(slot);
            }
        }
        let room = self.rooms.get(slot);
        if room.is_some_and(|room| room.expiry.is_none()) {
            self.set_expiry(slot);
        }
    }

    /// Moves a room to its place in the queue of sizes.
    fn set_size(&mut self, slot: u32) {
        let Some(room) = self.rooms.get_mut(slot) else {
            return;
        };
        let bytes = room.bytes();
        let former = std::mem::replace(&mut room.queued_bytes, bytes);
        self.sizes.remove(&(former, slot));
        if bytes > 0 {
            self.sizes.insert((bytes, slot));
        }
    }

    /// Brings the queue of sizes up to date.
    fn set_sizes(&mut self) {
        for slot in std::mem::take(&mut self.resized) {
            self.set_size(slot);
        }
    }

    /// Returns how long a room keeps its messages.
    fn keep_of(&self, room: &Room) -> Duration {
        let keep = room.keep.unwrap_or(self.limits.keep);
        keep.min(self.limits.keep_max)
    }

    /// Moves the expiry of a room to the time of its oldest span.
    fn set_expiry(&mut self, slot: u32) {
        let Some(room) = self.rooms.get(slot) else {
            return;
        };
        let expiry = room.spans.expiry(self.keep_of(room));
        let Some(room) = self.rooms.get_mut(slot) else {
            return;
        };
        if let Some(former) = std::mem::replace(&mut room.expiry, expiry) {
            self.expiries.remove(&(former, slot));
        }
        self.expiries.extend(expiry.map(|expiry| (expiry, slot)));
    }

    /// Returns the derived state of the rooms, which is the same live and after a replay.
    #[cfg(test)]
    pub(super) fn derived(&mut self) -> Vec<String> {
        self.set_sizes();
        let rooms = self.rooms.iter_from(0);
        let derived = rooms.map(|(slot, room)| {
            let is_queued = self.sizes.contains(&(room.bytes(), slot));
            assert_eq!(is_queued, room.bytes() > 0, "{room:?}");
            // An entry may be too early.
            let due = room.spans.expiry(self.keep_of(room));
            let queued = room
                .expiry
                .filter(|at| self.expiries.contains(&(*at, slot)));
            assert_eq!(due.is_some(), queued.is_some(), "{room:?}");
            assert!(queued <= due, "{room:?}");
            format!("{} {:?} {:?}", room.name, room.bytes(), room.spans.totals())
        });
        let mut derived: Vec<_> = derived.collect();
        derived.sort_unstable();
        derived.push(format!("all {}", self.bytes));
        derived
    }

    /// Writes what changed with the messages of the frame: spans, and the read marks of
    /// senders.
    pub(super) fn finish(&mut self, changes: &mut Changes) {
        self.set_sizes();
        let mut slots = std::mem::take(&mut self.changed);
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            let Some(room) = self.rooms.get_mut(slot) else {
                continue;
            };
            room.write_moved(changes);
            for span in room.spans.take_changes() {
                room::record(RoomRecord::Span(room.log.id, span), changes);
            }
        }
    }
}
