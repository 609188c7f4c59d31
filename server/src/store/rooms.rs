//! Rooms and devices as a store shows them, and the operations of both and of tokens.

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::message::{LeftReason, RoomMode};
use hark_protocol::{Code, DeviceName, RoomName, Sequence, TokenName, UserName};

use super::{
    Account, AccountToken, Completer, Message, NewToken, Page, Position, ReadLimit, Ring,
    Subscription, Token, TokenDigest,
};

/// A device of a user: the number of its creation, or [`NAMELESS`].
pub type DeviceId = u64;

/// The device of `connect`.
pub const NAMELESS: DeviceId = 0;

/// An operation that concerns rooms, devices or tokens. [`Store`](super::Store) has a method for
/// each.
#[derive(Debug)]
pub enum RoomOperation {
    /// Carries out a command of a user.
    Command {
        /// The user.
        caller: Account,
        /// The device of the connection, if it is attached.
        origin: Option<DeviceId>,
        /// The command.
        command: RoomCommand,
        /// The answer.
        completer: Completer<Result<RoomAnswer, Code>>,
    },
    /// Attaches a device of a user.
    Attach(
        Account,
        DeviceName,
        Completer<Result<DeviceSubscription, Code>>,
    ),
    /// Acknowledges, for a device, the messages of the inbox up to a position.
    AcknowledgeInbox(Account, DeviceId, Position),
    /// Acknowledges, for a device, the messages of a room up to a point.
    AcknowledgeRoom(Account, DeviceId, u64, Point),
    /// Reads a room.
    Read {
        /// The id of the room.
        room: u64,
        /// The point before the first message.
        after: Point,
        /// The size of the page.
        limit: ReadLimit,
        /// The page.
        completer: Completer<Page>,
    },
    /// Reads a room backwards.
    ReadBack {
        /// The room, and the messages that may be read.
        history: History,
        /// The messages have numbers below this one; 0 for no bound.
        before: Sequence,
        /// The size of the page.
        limit: ReadLimit,
        /// The page.
        completer: Completer<PastPage>,
    },
    /// Looks up a token.
    Token(TokenDigest, Completer<Option<AccountToken>>),
    /// Notes the use of a token.
    TokenUse(Account, TokenDigest),
}

/// A command that concerns rooms, devices or tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomCommand {
    /// Creates a room, or changes one of the caller.
    Set {
        /// The room.
        room: RoomName,
        /// The mode.
        mode: RoomMode,
        /// How long messages are kept; `None` for the default, or no change.
        keep: Option<Duration>,
    },
    /// Makes the caller a member. Answers [`RoomAnswer::Joined`].
    Join(RoomName),
    /// Ends the membership of the caller.
    Leave(RoomName),
    /// Invites a user, whose ban is lifted.
    Invite(RoomName, UserName),
    /// Ends the membership of a user, and bans it.
    Expel(RoomName, UserName),
    /// Makes a member an owner.
    Own(RoomName, UserName),
    /// Ends a room. Answers [`RoomAnswer::Existed`].
    Delete {
        /// The room.
        room: RoomName,
        /// Whether the caller administers the server.
        is_admin: bool,
    },
    /// Begins or resumes the conversation with a user. Answers [`RoomAnswer::Room`].
    Talk(UserName),
    /// Blocks a user.
    Block(UserName),
    /// Ends the block of a user.
    Unblock(UserName),
    /// Lists the rooms that the caller sees, from a place on: 0, or
    /// [`RoomPage::next`]. Answers [`RoomAnswer::Rooms`].
    Rooms(u64),
    /// Lists the members of a room, from a place on: 0, or [`MemberPage::next`]. Answers
    /// [`RoomAnswer::Members`].
    Members(RoomName, u64),
    /// Lists the devices of the caller. Answers [`RoomAnswer::Devices`].
    Devices,
    /// Looks up what a device of the caller, the nameless one without a name, has
    /// acknowledged so far, which is durable with the answer. Answers
    /// [`RoomAnswer::Cursors`].
    Cursors(Option<DeviceName>),
    /// Ends a device of the caller, the nameless one without a name. Answers
    /// [`RoomAnswer::Existed`].
    Forget(Option<DeviceName>),
    /// Looks up the messages that the caller may read back. Answers
    /// [`RoomAnswer::History`].
    History(RoomName),
    /// Moves the read mark of the caller.
    See(RoomName, Point),
    /// Creates a token of the caller, or replaces the one of its name.
    SetToken(NewToken),
    /// Lists the tokens of the caller. Answers [`RoomAnswer::Tokens`].
    Tokens,
    /// Ends a token of the caller. Answers [`RoomAnswer::Existed`].
    Revoke(TokenName),
}

/// The answer to a [`RoomCommand`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomAnswer {
    /// The command has succeeded.
    Done,
    /// Whether the room, the device or the token existed.
    Existed(bool),
    /// The membership.
    Joined(Joined),
    /// A room.
    Room(RoomName),
    /// A page of rooms.
    Rooms(RoomPage),
    /// A page of members.
    Members(MemberPage),
    /// Devices.
    Devices(Vec<DeviceEntry>),
    /// The cursors of a device.
    Cursors(DeviceCursors),
    /// The messages that may be read back.
    History(History),
    /// Tokens, sorted by name.
    Tokens(Vec<Token>),
}

/// A place in the log of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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

impl From<Point> for Position {
    /// Returns the position without its bytes, which readers do not need.
    fn from(point: Point) -> Self {
        Self {
            sequence: Sequence(point.number),
            messages: point.messages,
            bytes: 0,
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

/// A page of the rooms that a user sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomPage {
    /// The rooms: those of the caller, then public ones.
    pub rooms: Vec<RoomEntry>,
    /// The place of the next page; `None` if this is the last one.
    pub next: Option<u64>,
}

/// A page of the members of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPage {
    /// Their names, in any order.
    pub names: Vec<UserName>,
    /// The place of the next page; `None` if this is the last one.
    pub next: Option<u64>,
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

/// The cursors of a device: what it has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCursors {
    /// The device; `None` if it does not exist: with these cursors it would begin.
    pub device: Option<DeviceId>,
    /// The last message of the inbox that it has acknowledged.
    pub inbox: Position,
    /// The rooms that it reads.
    pub rooms: Vec<RoomPlace>,
}

/// The place of a device in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomPlace {
    /// The name of the room.
    pub name: RoomName,
    /// The last message that the device has acknowledged.
    pub cursor: Point,
    /// The messages above it.
    pub unread: History,
}

/// The messages of a room that a member may read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// The id of the room.
    pub room: u64,
    /// The messages have numbers above this one.
    pub after: u64,
    /// The last number, and the messages and bytes of the room up to it.
    pub last: Position,
}

/// Messages of a room, read backwards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PastPage {
    /// The messages, the newest first, with no other message between two of them.
    pub messages: Vec<Arc<Message>>,
    /// The number of the oldest message that may be read back; 0 if the page is empty.
    pub oldest: Sequence,
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
    /// The recent messages of the room.
    pub ring: Arc<Ring>,
    /// The device has acknowledged everything up to here.
    pub cursor: Point,
}

/// A change that an attached device learns of. A device gets all notices in order, and each
/// before the messages behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The user has a new device.
    Device(DeviceEntry),
    /// The user has become a member of a room.
    Joined {
        /// The room, from the number of the `join` on.
        room: AttachedRoom,
        /// Whether the command came from the device itself.
        is_own: bool,
    },
    /// The user is no member of a room any more.
    Left {
        /// The id of the room.
        room: u64,
        /// Its name.
        name: RoomName,
        /// The reason.
        reason: LeftReason,
        /// The number of the end of the membership: the device gets the messages below it.
        at: Point,
        /// Whether the command came from the device itself.
        is_own: bool,
    },
    /// The read mark of the user moved: a hint, which may get lost.
    Seen {
        /// The room.
        room: RoomName,
        /// The number of the last read message.
        number: u64,
    },
}

impl Notice {
    /// Returns the name of the room whose membership it begins or ends.
    pub(crate) fn membership(&self) -> Option<&RoomName> {
        match self {
            Self::Joined { room, .. } => Some(room.ring.name()),
            Self::Left { name, .. } => Some(name),
            Self::Device(_) | Self::Seen { .. } => None,
        }
    }
}
