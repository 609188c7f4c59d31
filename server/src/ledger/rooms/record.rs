//! The records of rooms, and their encoding. Each holds absolute values.
//!
//! | kind | fields, after the id of the room (`~`: near the counter of the frame's clock) |
//! | --- | --- |
//! | 32 room | name, mode, time to keep messages in s (0: default), head, tail; of a conversation: its two accounts~ |
//! | 33 end of a room | |
//! | 34 members | count, then for each: account (near the one before, the first ~), 1 for an owner, number of its join (near the higher one of room and account), read mark |
//! | 35 end of a member | account~, its devices: count, then each~ |
//! | 36 cursors of devices | count, then for each: device, number, messages: near those of the one before, the first ~ |
//! | 37 end of a cursor | device~ |
//! | 38 read mark | account~, messages up to it |
//! | 39 invitation | account~, its time in s |
//! | 40 ban | account~ |
//! | 41 end of an invitation or a ban | account~ |
//! | 42 span | first number~, ages of the first and last message in s, last position~, senders: count, then account~ and bytes (0: not named any more) |
//! | 43 all guests | bans: count, then account~; invitations: count, then account~ and time in s |
//!
//! Ages are those of the retention clock.

use std::time::Duration;

use hark_protocol::RoomName;
use hark_protocol::message::RoomMode;

use super::super::bytes::{
    Malformed, put_near, put_number, put_position, put_seconds, put_text, take_byte, take_near,
    take_number, take_position, take_seconds, take_text,
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
    pub(super) const MEMBERS: u8 = 34;
    pub(super) const MEMBER_END: u8 = 35;
    pub(super) const CURSORS: u8 = 36;
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
    /// Members.
    Members(u64, Vec<Member>),
    /// An account is no member any more, and its devices have no cursors.
    MemberEnd(u64, u64, Vec<DeviceId>),
    /// Cursors of devices.
    Cursors(u64, Vec<RoomCursor>),
    /// A device has no cursor any more.
    CursorEnd(u64, DeviceId),
    /// The read mark of a member.
    Mark(u64, u64, u64),
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
    /// The accounts of a conversation of two.
    pub(crate) parties: Option<[u64; 2]>,
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
                let parties = state.parties.iter().flatten();
                parties.for_each(|account| put_near(to, counter, *account));
            }
            Self::End(room) => put_head(to, kind::END, counter, *room),
            Self::Members(room, members) => {
                put_head(to, kind::MEMBERS, counter, *room);
                put_members(to, counter, *room, members);
            }
            Self::MemberEnd(room, account, devices) => {
                put_head(to, kind::MEMBER_END, counter, *room);
                put_near(to, counter, *account);
                put_number(to, devices.len() as u64);
                devices
                    .iter()
                    .for_each(|device| put_near(to, counter, *device));
            }
            Self::Cursors(room, cursors) => {
                put_head(to, kind::CURSORS, counter, *room);
                put_cursors(to, counter, cursors);
            }
            Self::CursorEnd(room, device) => {
                put_of(to, (kind::CURSOR_END, *room), counter, *device);
            }
            Self::Mark(room, account, mark) => {
                put_of(to, (kind::MARK, *room), counter, *account);
                put_number(to, *mark);
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
            kind::ROOM => Self::Room(take_room(rest, room, counter)?),
            kind::END => Self::End(room),
            kind::MEMBERS => Self::Members(room, take_members(rest, counter, room)?),
            kind::MEMBER_END => {
                let account = take_near(rest, counter)?;
                let count = take_number(rest)?;
                let devices = (0..count).map(|_| take_near(rest, counter));
                Self::MemberEnd(room, account, devices.collect::<Result<_, _>>()?)
            }
            kind::CURSORS => Self::Cursors(room, take_cursors(rest, counter)?),
            kind::CURSOR_END => Self::CursorEnd(room, take_near(rest, counter)?),
            kind::MARK => Self::Mark(room, take_near(rest, counter)?, take_number(rest)?),
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

fn put_members(to: &mut Vec<u8>, counter: u64, room: u64, members: &[Member]) {
    put_number(to, members.len() as u64);
    let mut before = counter;
    for member in members {
        put_near(to, before, member.account);
        to.push(u8::from(member.is_owner()));
        put_near(to, room.max(member.account), member.joined());
        put_number(to, member.mark);
        before = member.account;
    }
}

fn put_cursors(to: &mut Vec<u8>, counter: u64, cursors: &[RoomCursor]) {
    put_number(to, cursors.len() as u64);
    let mut before = first_cursor(counter);
    for cursor in cursors {
        put_near(to, before.device, cursor.device);
        put_near(to, before.point.number, cursor.point.number);
        put_near(to, before.point.messages, cursor.point.messages);
        before = *cursor;
    }
}

/// Returns the cursor to which the first one of a record is near.
const fn first_cursor(counter: u64) -> RoomCursor {
    RoomCursor {
        device: counter,
        point: Point {
            number: counter,
            messages: 0,
        },
    }
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

fn take_room(rest: &mut &[u8], id: u64, counter: u64) -> Result<RoomState, Malformed> {
    let name: RoomName = take_text(rest)?.parse().map_err(|_| Malformed)?;
    let mode = take_mode(rest)?;
    let keep = Some(take_seconds(rest)?).filter(|keep| !keep.is_zero());
    let head = take_position(rest, counter)?;
    let tail = take_position(rest, counter)?;
    let parties = if name.is_conversation() {
        Some([take_near(rest, counter)?, take_near(rest, counter)?])
    } else {
        None
    };
    Ok(RoomState {
        id,
        name,
        mode,
        keep,
        parties,
        head,
        tail,
    })
}

fn take_members(rest: &mut &[u8], counter: u64, room: u64) -> Result<Vec<Member>, Malformed> {
    let count = take_number(rest)?;
    let mut before = counter;
    let members = (0..count).map(|_| {
        let account = take_near(rest, before)?;
        let is_owner = take_flag(rest)?;
        let joined = take_near(rest, room.max(account))?;
        let member = Member::new(account, joined, is_owner, take_number(rest)?);
        before = account;
        Some(member)
            .filter(|member| member.joined() == joined)
            .ok_or(Malformed)
    });
    members.collect()
}

fn take_cursors(rest: &mut &[u8], counter: u64) -> Result<Vec<RoomCursor>, Malformed> {
    let count = take_number(rest)?;
    let mut before = first_cursor(counter);
    let cursors = (0..count).map(|_| {
        before = RoomCursor {
            device: take_near(rest, before.device)?,
            point: Point {
                number: take_near(rest, before.point.number)?,
                messages: take_near(rest, before.point.messages)?,
            },
        };
        Ok(before)
    });
    cursors.collect()
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
    let (since, until) = (take_seconds(rest)?, take_seconds(rest)?);
    let end = take_position(rest, counter)?;
    let senders = (0..take_number(rest)?).map(|_| {
        let account = take_near(rest, counter)?;
        Ok((account, take_number(rest)?))
    });
    Ok(Span {
        first,
        since,
        until,
        end,
        senders: senders.collect::<Result<_, _>>()?,
    })
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
        let room = |name: &str, keep, parties| {
            Self::Room(RoomState {
                id: 7,
                name: name.parse().unwrap(),
                mode: RoomMode::News,
                keep,
                parties,
                head: position(7),
                tail: position(u64::MAX),
            })
        };
        let mut guests = Guests::default();
        guests.ban(5);
        guests.ban(3);
        guests.invite(9, Duration::from_secs(8));
        let span = Span {
            first: 9,
            since: Duration::from_secs(3),
            until: Duration::from_secs(4),
            end: position(11),
            senders: vec![(5, 0), (8, 100)],
        };
        let conversation = format!("#={}", "A".repeat(26));
        let mut records = vec![
            room("#team", None, None),
            room("#team", Some(Duration::from_secs(86_400)), None),
            room(&conversation, None, Some([3, u64::MAX])),
            Self::End(7),
            Self::MemberEnd(7, 5, vec![8, 9]),
            Self::CursorEnd(7, 8),
            Self::Mark(7, 5, 9),
            Self::Invitation(7, 5, Duration::from_secs(9)),
            Self::Ban(7, 5),
            Self::GuestEnd(7, 5),
            Self::Guests(7, guests),
            Self::Span(7, span),
        ];
        records.extend(Self::memberships(7, 3, 1000));
        records
    }

    /// Returns the records of so many members with one device each, whose accounts are of
    /// regular ages. They joined and acknowledged at any time since.
    pub(crate) fn memberships(room: u64, count: u64, step: u64) -> Vec<Self> {
        let later = |n: u64| room + n * step + (count - n) * step * (n * 7 % 10) / 10;
        let members = (0..count).map(|n| {
            let (account, joined) = (room + n * step, later(n));
            Member::new(account, joined, n % 2 == 0, 10_000_000 + n)
        });
        let cursors = (0..count).map(|n| RoomCursor {
            device: later(n) + 1,
            point: Point {
                number: later(n) + 2,
                messages: 10_000_000 * (n * 7 % 10),
            },
        });
        vec![
            Self::Members(room, members.collect()),
            Self::Cursors(room, cursors.collect()),
        ]
    }
}
