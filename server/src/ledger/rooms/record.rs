//! The records of rooms, and their encoding. Each holds absolute values.
//!
//! | kind | fields, after the id of the room (`~`: near the counter of the frame's clock) |
//! | --- | --- |
//! | 32 room | name, mode, time to keep messages in s (0: default), head, tail |
//! | 33 end of a room | |
//! | 34 member | account~, 1 for an owner, number of its join~, read mark |
//! | 35 end of a member | account~, its devices: count, then each~ |
//! | 36 cursor of a device | device~, point |
//! | 37 end of a cursor | device~ |
//! | 38 read mark | account~, point |
//! | 39 invitation | account~, its time in s |
//! | 40 ban | account~ |
//! | 41 end of an invitation or a ban | account~ |
//! | 42 span | first number~, ages of the first and last message in s, last position~, senders: count, then account~ and bytes |
//! | 43 all guests | bans: count, then account~; invitations: count, then account~ and time in s |
//!
//! A point is number~ and messages. Ages are those of the retention clock.

use std::time::Duration;

use hark_protocol::RoomName;
use hark_protocol::message::RoomMode;

use super::super::bytes::{
    Malformed, put_near, put_number, put_position, put_text, take_byte, take_near, take_number,
    take_position, take_seconds, take_text,
};
use super::guests::Guests;
use super::members::{Member, RoomCursor};
use super::retention::Span;
use crate::store::{DeviceId, Point, Position};

/// The kinds of records of rooms.
const KINDS: std::ops::RangeInclusive<u8> = kind::ROOM..=kind::GUESTS;

mod kind {
    pub(super) const ROOM: u8 = 32;
    pub(super) const END: u8 = 33;
    pub(super) const MEMBER: u8 = 34;
    pub(super) const MEMBER_END: u8 = 35;
    pub(super) const CURSOR: u8 = 36;
    pub(super) const CURSOR_END: u8 = 37;
    pub(super) const MARK: u8 = 38;
    pub(super) const INVITATION: u8 = 39;
    pub(super) const BAN: u8 = 40;
    pub(super) const GUEST_END: u8 = 41;
    pub(super) const SPAN: u8 = 42;
    pub(super) const GUESTS: u8 = 43;
}

/// A record of a room, which is known by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RoomRecord {
    /// The room alone.
    Room(RoomState),
    /// The room has ended.
    End(u64),
    /// A member.
    Member(u64, Member),
    /// An account is no member any more, and its devices have no cursors.
    MemberEnd(u64, u64, Vec<DeviceId>),
    /// The cursor of a device.
    Cursor(u64, RoomCursor),
    /// A device has no cursor any more.
    CursorEnd(u64, DeviceId),
    /// The read mark of a member.
    Mark(u64, u64, Point),
    /// An account was invited at this time.
    Invitation(u64, u64, Duration),
    /// An account is banned.
    Ban(u64, u64),
    /// An account is neither invited nor banned.
    GuestEnd(u64, u64),
    /// All invitations and bans.
    Guests(u64, Guests),
    /// A span of messages, with some of its senders.
    Span(u64, Span),
}

/// The state of a room alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoomState {
    /// The number of its creation.
    pub(crate) id: u64,
    /// The name.
    pub(crate) name: RoomName,
    /// The mode.
    pub(crate) mode: RoomMode,
    /// How long messages are kept; `None` for the default of the server.
    pub(crate) keep: Option<Duration>,
    /// The position of the last forgotten message.
    pub(crate) head: Position,
    /// The last number, and the position of the last message.
    pub(crate) tail: Position,
}

impl RoomRecord {
    /// Writes the record into a frame whose clock has this counter.
    pub(crate) fn put(&self, to: &mut Vec<u8>, counter: u64) {
        match self {
            Self::Room(state) => {
                put_head(to, kind::ROOM, counter, state.id);
                put_text(to, state.name.as_str());
                to.push(mode_index(state.mode));
                put_seconds(to, state.keep.unwrap_or_default());
                put_position(to, counter, state.head);
                put_position(to, counter, state.tail);
            }
            Self::End(room) => put_head(to, kind::END, counter, *room),
            Self::Member(room, member) => {
                put_head(to, kind::MEMBER, counter, *room);
                put_near(to, counter, member.account);
                to.push(u8::from(member.is_owner));
                put_near(to, counter, member.joined);
                put_point(to, counter, member.mark);
            }
            Self::MemberEnd(room, account, devices) => {
                put_head(to, kind::MEMBER_END, counter, *room);
                put_near(to, counter, *account);
                put_number(to, devices.len() as u64);
                devices
                    .iter()
                    .for_each(|device| put_near(to, counter, *device));
            }
            Self::Cursor(room, RoomCursor { device, point }) => {
                put_head(to, kind::CURSOR, counter, *room);
                put_near(to, counter, *device);
                put_point(to, counter, *point);
            }
            Self::CursorEnd(room, device) => {
                put_of(to, (kind::CURSOR_END, *room), counter, *device);
            }
            Self::Mark(room, account, point) => {
                put_of(to, (kind::MARK, *room), counter, *account);
                put_point(to, counter, *point);
            }
            Self::Invitation(room, account, at) => {
                put_of(to, (kind::INVITATION, *room), counter, *account);
                put_seconds(to, *at);
            }
            Self::Ban(room, account) => put_of(to, (kind::BAN, *room), counter, *account),
            Self::GuestEnd(room, account) => {
                put_of(to, (kind::GUEST_END, *room), counter, *account);
            }
            Self::Guests(room, guests) => {
                put_head(to, kind::GUESTS, counter, *room);
                put_number(to, guests.bans().len() as u64);
                guests
                    .bans()
                    .for_each(|account| put_near(to, counter, account));
                put_number(to, guests.invitations().len() as u64);
                for (account, at) in guests.invitations() {
                    put_near(to, counter, account);
                    put_seconds(to, at);
                }
            }
            Self::Span(room, span) => {
                put_head(to, kind::SPAN, counter, *room);
                put_span(to, counter, span);
            }
        }
    }

    /// Reads the rest of a record; `None` if the kind belongs to no room.
    pub(crate) fn take(
        kind: u8,
        rest: &mut &[u8],
        counter: u64,
    ) -> Option<Result<Self, Malformed>> {
        KINDS
            .contains(&kind)
            .then(|| Self::take_known(kind, rest, counter))
    }

    fn take_known(kind: u8, rest: &mut &[u8], counter: u64) -> Result<Self, Malformed> {
        let room = take_near(rest, counter)?;
        Ok(match kind {
            kind::ROOM => Self::Room(RoomState {
                id: room,
                name: take_text(rest)?.parse().map_err(|_| Malformed)?,
                mode: take_mode(rest)?,
                keep: Some(take_seconds(rest)?).filter(|keep| !keep.is_zero()),
                head: take_position(rest, counter)?,
                tail: take_position(rest, counter)?,
            }),
            kind::END => Self::End(room),
            kind::MEMBER => {
                let account = take_near(rest, counter)?;
                let is_owner = take_flag(rest)?;
                let joined = take_near(rest, counter)?;
                let member = Member {
                    account,
                    joined,
                    mark: take_point(rest, counter)?,
                    is_owner,
                };
                Self::Member(room, member)
            }
            kind::MEMBER_END => {
                let account = take_near(rest, counter)?;
                let count = take_number(rest)?;
                let devices = (0..count).map(|_| take_near(rest, counter));
                Self::MemberEnd(room, account, devices.collect::<Result<_, _>>()?)
            }
            kind::CURSOR => {
                let device = take_near(rest, counter)?;
                let point = take_point(rest, counter)?;
                Self::Cursor(room, RoomCursor { device, point })
            }
            kind::CURSOR_END => Self::CursorEnd(room, take_near(rest, counter)?),
            kind::MARK => Self::Mark(room, take_near(rest, counter)?, take_point(rest, counter)?),
            kind::INVITATION => {
                Self::Invitation(room, take_near(rest, counter)?, take_seconds(rest)?)
            }
            kind::BAN => Self::Ban(room, take_near(rest, counter)?),
            kind::GUEST_END => Self::GuestEnd(room, take_near(rest, counter)?),
            kind::GUESTS => Self::Guests(room, take_guests(rest, counter)?),
            kind::SPAN => Self::Span(room, take_span(rest, counter)?),
            _ => return Err(Malformed),
        })
    }
}

fn put_head(to: &mut Vec<u8>, kind: u8, counter: u64, room: u64) {
    to.push(kind);
    put_near(to, counter, room);
}

/// Writes the kind, the room, and an account or a device.
fn put_of(to: &mut Vec<u8>, (kind, room): (u8, u64), counter: u64, of: u64) {
    put_head(to, kind, counter, room);
    put_near(to, counter, of);
}

fn put_point(to: &mut Vec<u8>, counter: u64, point: Point) {
    put_near(to, counter, point.number);
    put_number(to, point.messages);
}

fn put_seconds(to: &mut Vec<u8>, time: Duration) {
    put_number(to, time.as_secs());
}

fn put_span(to: &mut Vec<u8>, counter: u64, span: &Span) {
    put_near(to, counter, span.first);
    put_seconds(to, span.since);
    put_seconds(to, span.until);
    put_position(to, counter, span.end);
    put_number(to, span.senders.len() as u64);
    for (account, bytes) in &span.senders {
        put_near(to, counter, *account);
        put_number(to, *bytes);
    }
}

fn take_point(rest: &mut &[u8], counter: u64) -> Result<Point, Malformed> {
    let number = take_near(rest, counter)?;
    let messages = take_number(rest)?;
    Ok(Point { number, messages })
}

fn take_mode(rest: &mut &[u8]) -> Result<RoomMode, Malformed> {
    let index = usize::from(take_byte(rest)?);
    RoomMode::ALL.get(index).copied().ok_or(Malformed)
}

/// Returns the index of a mode in [`RoomMode::ALL`].
fn mode_index(mode: RoomMode) -> u8 {
    let index = RoomMode::ALL.iter().position(|known| *known == mode);
    index.unwrap_or(0) as u8
}

fn take_flag(rest: &mut &[u8]) -> Result<bool, Malformed> {
    match take_byte(rest)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed),
    }
}

fn take_guests(rest: &mut &[u8], counter: u64) -> Result<Guests, Malformed> {
    let bans = (0..take_number(rest)?).map(|_| take_near(rest, counter));
    let bans = bans.collect::<Result<_, _>>()?;
    let invitations = (0..take_number(rest)?)
        .map(|_| Ok((take_near(rest, counter)?, take_seconds(rest)?)))
        .collect::<Result<_, _>>()?;
    Ok(Guests::restore(invitations, bans))
}

fn take_span(rest: &mut &[u8], counter: u64) -> Result<Span, Malformed> {
    let first = take_near(rest, counter)?;
    let ages = (take_seconds(rest)?, take_seconds(rest)?);
    let mut span = Span::new(first, ages, take_position(rest, counter)?);
    let count = take_number(rest)?;
    let mut before = None;
    let mut sum = 0_u64;
    for _ in 0..count {
        let account = take_near(rest, counter)?;
        let bytes = take_number(rest)?;
        sum = sum.checked_add(bytes).ok_or(Malformed)?;
        // Sorted and distinct, as they are written.
        if before.is_some_and(|before| before >= account) {
            return Err(Malformed);
        }
        before = Some(account);
        span.set_bytes_of(account, bytes);
    }
    Ok(span)
}

#[cfg(test)]
impl RoomRecord {
    /// Returns a record of each kind.
    pub(crate) fn samples() -> Vec<Self> {
        let position = |number| Position {
            sequence: hark_protocol::Sequence(number),
            messages: 3,
            bytes: 1 << 40,
        };
        let room = |keep| {
            Self::Room(RoomState {
                id: 7,
                name: "#team".parse().unwrap(),
                mode: RoomMode::News,
                keep,
                head: position(7),
                tail: position(u64::MAX),
            })
        };
        let mut guests = Guests::default();
        guests.ban(5);
        guests.ban(3);
        guests.invite(9, Duration::from_secs(8));
        let times = (Duration::from_secs(3), Duration::from_secs(4));
        let mut span = Span::new(9, times, position(11));
        span.set_bytes_of(8, 100);
        span.set_bytes_of(5, 0);
        let mut records = vec![
            room(None),
            room(Some(Duration::from_secs(86_400))),
            Self::End(7),
            Self::MemberEnd(7, 5, vec![8, 9]),
            Self::CursorEnd(7, 8),
            Self::Mark(7, 5, Point::default()),
            Self::Invitation(7, 5, Duration::from_secs(9)),
            Self::Ban(7, 5),
            Self::GuestEnd(7, 5),
            Self::Guests(7, guests),
            Self::Span(7, span),
        ];
        records.extend(Self::membership(7));
        records
    }

    /// Returns the records of a member with one device.
    pub(crate) fn membership(room: u64) -> Vec<Self> {
        let point = Point {
            number: room + 3_000_000,
            messages: 1_000_000,
        };
        let member = Member {
            account: room + 1_000_000,
            joined: room + 2_000_000,
            mark: point,
            is_owner: true,
        };
        let cursor = RoomCursor {
            device: room + 1_000_001,
            point,
        };
        vec![Self::Member(room, member), Self::Cursor(room, cursor)]
    }
}
