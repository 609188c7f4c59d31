//! Rooms and devices as a store shows them.

use hark_protocol::message::RoomMode;
use hark_protocol::{DeviceName, RoomName};

use super::{Position, Subscription};

/// A device of a user: the number of its creation, or [`NAMELESS`].
pub type DeviceId = u64;

/// The device of `connect`.
pub const NAMELESS: DeviceId = 0;

/// A place in the log of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Point {
    /// A number of the room.
    pub number: u64,
    /// The messages of the room up to this number.
    pub messages: u64,
}

impl From<Position> for Point {
    fn from(position: Position) -> Self {
        Self {
            number: position.sequence.0,
            messages: position.messages,
        }
    }
}

/// A membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The number above which the member gets messages.
    pub number: u64,
    /// The messages that it may read back.
    pub held: u64,
}

/// A room as a user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomEntry {
    /// Its name.
    pub name: RoomName,
    /// Its mode.
    pub mode: RoomMode,
    /// The number of members.
    pub members: usize,
    /// The messages above the read mark; `None` if the user is no member.
    pub unread: Option<u64>,
    /// The last number.
    pub last: u64,
}

/// A device as its user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEntry {
    /// The name; `None` for the nameless device.
    pub name: Option<DeviceName>,
    /// The time at which it was attached last, in Unix seconds.
    pub seen_s: u32,
    /// The messages of the inbox that wait for it.
    pub waiting: u64,
}

/// The messages of a room that a member may read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// The id of the room.
    pub room: u64,
    /// The messages have numbers above this one.
    pub after: u64,
    /// The last number.
    pub last: u64,
}

/// The attachment of a device.
#[derive(Debug)]
pub struct DeviceSubscription {
    /// The device.
    pub device: DeviceId,
    /// The subscription to the inbox.
    pub inbox: Subscription,
    /// The rooms.
    pub rooms: Vec<AttachedRoom>,
}

/// A room that a device reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedRoom {
    /// The id of the room.
    pub id: u64,
    /// Its name.
    pub name: RoomName,
    /// The device has acknowledged everything up to here.
    pub cursor: Point,
}
