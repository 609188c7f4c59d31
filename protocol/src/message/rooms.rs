//! The messages of rooms, devices, history, read marks and tokens: [`RoomRequest`] and
//! [`RoomReply`].

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;

use super::reply::parse_delivery;
use super::tokens::{parse_token, token_name};
use super::{
    Delivery, Message, Scope, TokenEntry, bad_request, number, put_number, unknown_command,
};
use crate::code::Refusal;
use crate::name::{DeviceName, Password, RoomName, Sequence, TokenName, UserName};

/// A request that concerns rooms, devices or tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomRequest {
    /// Authenticates as a user, and receives for one device of it, with its rooms.
    Attach {
        /// The account.
        user: UserName,
        /// The device.
        device: DeviceName,
        /// Password of the account, if it has one.
        password: Option<Password>,
    },
    /// Creates or changes a room.
    Set {
        /// The room.
        room: RoomName,
        /// The mode.
        mode: RoomMode,
        /// How long messages are kept, in seconds.
        keep_s: Option<u64>,
    },
    /// Makes the caller a member.
    Join(RoomName),
    /// Ends the membership of the caller.
    Leave(RoomName),
    /// Invites a user.
    Invite {
        /// The room.
        room: RoomName,
        /// The user.
        user: UserName,
    },
    /// Ends the membership of a user, and bans it.
    Expel {
        /// The room.
        room: RoomName,
        /// The user.
        user: UserName,
    },
    /// Makes a member an owner.
    Own {
        /// The room.
        room: RoomName,
        /// The member.
        user: UserName,
    },
    /// Begins or resumes the conversation with a user.
    Talk(UserName),
    /// Blocks a user.
    Block(UserName),
    /// Ends the block of a user.
    Unblock(UserName),
    /// Lists rooms.
    Rooms {
        /// Regular expression, unanchored.
        pattern: Option<ByteString>,
    },
    /// Lists the members of a room.
    Members {
        /// The room.
        room: RoomName,
        /// The list begins after this name.
        after: Option<UserName>,
    },
    /// Lists the devices of the caller.
    Devices,
    /// Ends a device; the nameless one without a name.
    Forget(Option<DeviceName>),
    /// Returns messages of a room, the newest first.
    History {
        /// The room.
        room: RoomName,
        /// The messages have numbers below this one; 0 for no bound.
        before: Sequence,
        /// The most messages.
        count: u32,
    },
    /// Moves the read mark of the caller.
    Seen {
        /// The room.
        room: RoomName,
        /// Number of the last read message.
        sequence: Sequence,
    },
    /// Creates a token of the caller, or replaces the one of this name.
    Token {
        /// The name.
        name: TokenName,
        /// The scope.
        scope: Scope,
    },
    /// Lists the tokens of the caller.
    Tokens,
    /// Ends a token of the caller.
    Revoke(TokenName),
}

/// A reply or push that concerns rooms, devices or tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomReply {
    /// A part of the answer to `rooms`.
    Room(RoomEntry),
    /// A part of the answer to `devices`; or the push of a new device.
    Device {
        /// The name; `None` for the nameless device.
        name: Option<DeviceName>,
        /// The end of its last attachment, in milliseconds since the Unix epoch.
        seen_ms: u64,
        /// The messages of the inbox that wait for it.
        waiting: u64,
    },
    /// A part of the answer to `history`.
    Past(Delivery),
    /// A message of a room.
    Said {
        /// The room.
        room: RoomName,
        /// The message.
        delivery: Delivery,
    },
    /// Messages that were removed.
    Gap(Gap),
    /// The user has become a member of a room.
    Joined {
        /// The room.
        room: RoomName,
        /// The last number of the room.
        last: Sequence,
    },
    /// The user is no member of a room any more: the last push of the room.
    Left {
        /// The room.
        room: RoomName,
        /// The reason.
        reason: LeftReason,
    },
    /// The read mark of the user moved.
    Seen {
        /// The room.
        room: RoomName,
        /// Number of the last read message.
        sequence: Sequence,
    },
    /// A part of the answer to `tokens`.
    Token(TokenEntry),
}

/// A room in the answer to `rooms`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomEntry {
    /// The name.
    pub name: RoomName,
    /// The mode.
    pub mode: RoomMode,
    /// The number of members.
    pub members: u64,
    /// The messages above the read mark; `None` if the caller is no member.
    pub unread: Option<u64>,
    /// The last number.
    pub last: Sequence,
}

/// Messages of a log that retention or an administrator removed. Acknowledged like a
/// message with the number [`Self::to`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The room; `None` for the inbox.
    pub log: Option<RoomName>,
    /// The first number that may be missing.
    pub from: Sequence,
    /// The last number that may be missing.
    pub to: Sequence,
    /// The number of missing messages.
    pub count: u64,
}

/// The rule by which users become members and send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomMode {
    /// Any user may join.
    Open,
    /// Any user may join; owners alone send.
    News,
    /// Invited users may join. Others do not see the room.
    Invite,
}

impl RoomMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Open, Self::News, Self::Invite];

    /// Returns the mode with this word on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// Returns the word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::News => "news",
            Self::Invite => "invite",
        }
    }
}

/// The reason for the end of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftReason {
    /// The user left.
    Left,
    /// An owner expelled the user.
    Expelled,
    /// The room was deleted.
    Deleted,
}

impl LeftReason {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Left, Self::Expelled, Self::Deleted];

    /// Returns the reason with this word on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// Returns the word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Expelled => "expelled",
            Self::Deleted => "deleted",
        }
    }
}

impl Message for RoomRequest {
    fn command(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "attach",
            Self::Set { .. } => "room",
            Self::Join(_) => "join",
            Self::Leave(_) => "leave",
            Self::Invite { .. } => "invite",
            Self::Expel { .. } => "expel",
            Self::Own { .. } => "own",
            Self::Talk(_) => "talk",
            Self::Block(_) => "block",
            Self::Unblock(_) => "unblock",
            Self::Rooms { .. } => "rooms",
            Self::Members { .. } => "members",
            Self::Devices => "devices",
            Self::Forget(_) => "forget",
            Self::History { .. } => "history",
            Self::Seen { .. } => "seen",
            Self::Token { .. } => "token",
            Self::Tokens => "tokens",
            Self::Revoke(_) => "revoke",
        }
    }

    fn write_payload(&self, to: &mut BytesMut) {
        match self {
            Self::Attach {
                user,
                device,
                password,
            } => {
                put_fields(to, &[user.as_str(), device.as_str()]);
                if let Some(password) = password {
                    put_fields(to, &["", password.expose()]);
                }
            }
            Self::Set { room, mode, keep_s } => {
                put_fields(to, &[room.as_str(), mode.as_str()]);
                if let Some(keep_s) = keep_s {
                    to.put_u8(b',');
                    put_number(to, *keep_s);
                }
            }
            Self::Join(room) | Self::Leave(room) => put_fields(to, &[room.as_str()]),
            Self::Invite { room, user } | Self::Expel { room, user } | Self::Own { room, user } => {
                put_fields(to, &[room.as_str(), user.as_str()])
            }
            Self::Talk(user) | Self::Block(user) | Self::Unblock(user) => {
                put_fields(to, &[user.as_str()]);
            }
            Self::Rooms { pattern } => put_fields(to, &[pattern.as_deref().unwrap_or_default()]),
            Self::Members { room, after } => {
                put_fields(to, &[room.as_str()]);
                if let Some(after) = after {
                    put_fields(to, &["", after.as_str()]);
                }
            }
            Self::Devices | Self::Tokens => {}
            Self::Token { name, scope } => put_fields(to, &[name.as_str(), &scope.to_string()]),
            Self::Revoke(name) => put_fields(to, &[name.as_str()]),
            Self::Forget(name) => {
                put_fields(to, &[name.as_ref().map_or("", DeviceName::as_str)]);
            }
            Self::History {
                room,
                before,
                count,
            } => {
                put_fields(to, &[room.as_str(), ""]);
                put_number(to, before.0);
                to.put_u8(b',');
                put_number(to, u64::from(*count));
            }
            Self::Seen { room, sequence } => {
                put_fields(to, &[room.as_str(), ""]);
                put_number(to, sequence.0);
            }
        }
    }

    fn parse(command: &str, payload: &str) -> Result<Self, Refusal> {
        match command {
            "attach" => parse_attach(payload),
            "room" => parse_set(payload),
            "join" => room(payload).map(Self::Join),
            "leave" => room(payload).map(Self::Leave),
            "invite" => room_and_user(payload).map(|(room, user)| Self::Invite { room, user }),
            "expel" => room_and_user(payload).map(|(room, user)| Self::Expel { room, user }),
            "own" => room_and_user(payload).map(|(room, user)| Self::Own { room, user }),
            "talk" => user(payload).map(Self::Talk),
            "block" => user(payload).map(Self::Block),
            "unblock" => user(payload).map(Self::Unblock),
            "rooms" => Ok(Self::Rooms {
                pattern: (!payload.is_empty()).then(|| payload.into()),
            }),
            "members" => parse_members(payload),
            "devices" if payload.is_empty() => Ok(Self::Devices),
            "devices" => Err(bad_request("devices takes no fields")),
            "forget" => optional(payload, |name| Ok(name.parse()?)).map(Self::Forget),
            "history" => parse_history(payload),
            "seen" => parse_seen(payload),
            "token" => parse_token(payload).map(|(name, scope)| Self::Token { name, scope }),
            "tokens" if payload.is_empty() => Ok(Self::Tokens),
            "tokens" => Err(bad_request("tokens takes no fields")),
            "revoke" => token_name(payload).map(Self::Revoke),
            _ => Err(unknown_command(command)),
        }
    }
}

impl Message for RoomReply {
    fn command(&self) -> &'static str {
        match self {
            Self::Room(_) => "room",
            Self::Device { .. } => "device",
            Self::Past(_) => "past",
            Self::Said { .. } => "said",
            Self::Gap(_) => "gap",
            Self::Joined { .. } => "joined",
            Self::Left { .. } => "left",
            Self::Seen { .. } => "seen",
            Self::Token(_) => "token",
        }
    }

    fn write_payload(&self, to: &mut BytesMut) {
        match self {
            Self::Token(entry) => entry.write(to),
            Self::Room(entry) => entry.write(to),
            Self::Device {
                name,
                seen_ms,
                waiting,
            } => {
                put_fields(to, &[name.as_ref().map_or("", DeviceName::as_str), ""]);
                put_numbers(to, &[*seen_ms, *waiting]);
            }
            Self::Past(delivery) => delivery.borrow().write_payload(to),
            Self::Said { room, delivery } => {
                put_fields(to, &[room.as_str(), ""]);
                delivery.borrow().write_payload(to);
            }
            Self::Gap(gap) => {
                put_fields(to, &[gap.log.as_ref().map_or("", RoomName::as_str), ""]);
                put_numbers(to, &[gap.from.0, gap.to.0, gap.count]);
            }
            Self::Joined { room, last } => {
                put_fields(to, &[room.as_str(), ""]);
                put_number(to, last.0);
            }
            Self::Left { room, reason } => put_fields(to, &[room.as_str(), reason.as_str()]),
            Self::Seen { room, sequence } => {
                put_fields(to, &[room.as_str(), ""]);
                put_number(to, sequence.0);
            }
        }
    }

    fn parse(command: &str, payload: &str) -> Result<Self, Refusal> {
        match command {
            "room" => RoomEntry::parse(payload).map(Self::Room),
            "device" => parse_device(payload),
            "past" => parse_delivery(payload).map(Self::Past),
            "said" => first_room(payload).and_then(|(room, rest)| {
                let delivery = parse_delivery(rest)?;
                Ok(Self::Said { room, delivery })
            }),
            "gap" => parse_gap(payload).map(Self::Gap),
            "joined" => room_and_sequence(payload).map(|(room, last)| Self::Joined { room, last }),
            "left" => first_room(payload).and_then(|(room, reason)| {
                let reason = LeftReason::parse(reason);
                let reason = reason.ok_or_else(|| bad_request("unknown reason of a left"))?;
                Ok(Self::Left { room, reason })
            }),
            "seen" => {
                room_and_sequence(payload).map(|(room, sequence)| Self::Seen { room, sequence })
            }
            "token" => TokenEntry::parse(payload).map(Self::Token),
            _ => Err(unknown_command(command)),
        }
    }
}

impl RoomEntry {
    fn write(&self, to: &mut BytesMut) {
        put_fields(to, &[self.name.as_str(), self.mode.as_str(), ""]);
        put_number(to, self.members);
        to.put_u8(b',');
        if let Some(unread) = self.unread {
            put_number(to, unread);
        }
        to.put_u8(b',');
        put_number(to, self.last.0);
    }

    fn parse(payload: &str) -> Result<Self, Refusal> {
        let [name, mode, members, unread, last] = fields(
            payload,
            "room takes a name, a mode, members, unread messages and the last number",
        )?;
        Ok(Self {
            name: name.parse()?,
            mode: RoomMode::parse(mode).ok_or_else(|| bad_request("unknown mode of a room"))?,
            members: count(members)?,
            unread: optional(unread, count)?,
            last: sequence(last)?,
        })
    }
}

/// Appends fields, joined by commas.
pub(super) fn put_fields(to: &mut BytesMut, fields: &[&str]) {
    for (place, field) in fields.iter().enumerate() {
        if place > 0 {
            to.put_u8(b',');
        }
        to.put_slice(field.as_bytes());
    }
}

/// Appends numbers, joined by commas.
fn put_numbers(to: &mut BytesMut, numbers: &[u64]) {
    for (place, number) in numbers.iter().enumerate() {
        if place > 0 {
            to.put_u8(b',');
        }
        put_number(to, *number);
    }
}

/// Splits a payload into exactly so many fields; the last one takes the rest.
pub(super) fn fields<'p, const COUNT: usize>(
    payload: &'p str,
    explanation: &'static str,
) -> Result<[&'p str; COUNT], Refusal> {
    let fields: Vec<_> = payload.splitn(COUNT, ',').collect();
    fields.try_into().map_err(|_| bad_request(explanation))
}

/// Parses a field, unless it is empty.
fn optional<T>(
    field: &str,
    parse: impl FnOnce(&str) -> Result<T, Refusal>,
) -> Result<Option<T>, Refusal> {
    if field.is_empty() {
        Ok(None)
    } else {
        parse(field).map(Some)
    }
}

pub(super) fn count(field: &str) -> Result<u64, Refusal> {
    number(field).ok_or_else(|| bad_request("a count must be a number"))
}

fn sequence(field: &str) -> Result<Sequence, Refusal> {
    let number = number(field).ok_or_else(|| bad_request("a sequence number must be a number"))?;
    Ok(Sequence(number))
}

fn room(payload: &str) -> Result<RoomName, Refusal> {
    if payload.is_empty() {
        return Err(bad_request("the room is missing"));
    }
    Ok(payload.parse()?)
}

fn user(payload: &str) -> Result<UserName, Refusal> {
    if payload.is_empty() {
        return Err(bad_request("the user is missing"));
    }
    Ok(payload.parse()?)
}

fn room_and_user(payload: &str) -> Result<(RoomName, UserName), Refusal> {
    let [name, member] = fields(payload, "the command takes a room and a user")?;
    Ok((room(name)?, user(member)?))
}

fn first_room(payload: &str) -> Result<(RoomName, &str), Refusal> {
    let [name, rest] = fields(payload, "a field is missing behind the room")?;
    Ok((room(name)?, rest))
}

fn room_and_sequence(payload: &str) -> Result<(RoomName, Sequence), Refusal> {
    let (name, last) = first_room(payload)?;
    Ok((name, sequence(last)?))
}

fn parse_set(payload: &str) -> Result<RoomRequest, Refusal> {
    let (name, rest) = first_room(payload)?;
    let (mode, keep) = rest.split_once(',').unwrap_or((rest, ""));
    Ok(RoomRequest::Set {
        room: name,
        mode: RoomMode::parse(mode)
            .ok_or_else(|| bad_request("the mode must be open, news or invite"))?,
        keep_s: optional(keep, |keep| {
            number(keep).ok_or_else(|| bad_request("the time to keep messages is in seconds"))
        })?,
    })
}

fn parse_members(payload: &str) -> Result<RoomRequest, Refusal> {
    let (name, after) = payload.split_once(',').unwrap_or((payload, ""));
    Ok(RoomRequest::Members {
        room: room(name)?,
        after: optional(after, user)?,
    })
}

fn parse_history(payload: &str) -> Result<RoomRequest, Refusal> {
    let [name, before, most] = fields(payload, "history takes a room, a number and a count")?;
    Ok(RoomRequest::History {
        room: room(name)?,
        before: sequence(before)?,
        count: number(most).ok_or_else(|| bad_request("the count must be a number"))?,
    })
}

fn parse_seen(payload: &str) -> Result<RoomRequest, Refusal> {
    let (name, last) = room_and_sequence(payload)?;
    Ok(RoomRequest::Seen {
        room: name,
        sequence: last,
    })
}

fn parse_attach(payload: &str) -> Result<RoomRequest, Refusal> {
    let (name, rest) = payload
        .split_once(',')
        .ok_or_else(|| bad_request("attach takes a user and a device"))?;
    let (device, password) = match rest.split_once(',') {
        Some((device, password)) => (device, Some(password)),
        None => (rest, None),
    };
    Ok(RoomRequest::Attach {
        user: user(name)?,
        device: device.parse()?,
        password: password.map(str::parse).transpose()?,
    })
}

fn parse_device(payload: &str) -> Result<RoomReply, Refusal> {
    let [name, seen, waiting] = fields(payload, "device takes a name, a time and a count")?;
    Ok(RoomReply::Device {
        name: optional(name, |name| Ok(name.parse()?))?,
        seen_ms: number(seen).ok_or_else(|| bad_request("the time must be a number"))?,
        waiting: count(waiting)?,
    })
}

fn parse_gap(payload: &str) -> Result<Gap, Refusal> {
    let [log, from, to, missing] = fields(payload, "gap takes a log, two numbers and a count")?;
    Ok(Gap {
        log: optional(log, room)?,
        from: sequence(from)?,
        to: sequence(to)?,
        count: count(missing)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_request(command: &str, payload: &str) {
        let request = RoomRequest::parse(command, payload).unwrap();
        assert_eq!(request.command(), command);
        let mut written = BytesMut::new();
        request.write_payload(&mut written);
        assert_eq!(written, payload.as_bytes(), "{command}");
    }

    #[track_caller]
    fn check_reply(command: &str, payload: &str) {
        let reply = RoomReply::parse(command, payload).unwrap();
        assert_eq!(reply.command(), command);
        let mut written = BytesMut::new();
        reply.write_payload(&mut written);
        assert_eq!(written, payload.as_bytes(), "{command}");
    }

    #[test]
    fn every_request_is_written_as_it_is_read() {
        for (command, payload) in [
            ("room", "#team,open"),
            ("room", "#team,invite,86400"),
            ("join", "#team"),
            ("leave", "#team"),
            ("invite", "#team,bob"),
            ("expel", "#team,bob"),
            ("own", "#team,bob"),
            ("talk", "bob"),
            ("block", "bob"),
            ("unblock", "bob"),
            ("rooms", ""),
            ("rooms", "^#t,x"),
            ("members", "#team"),
            ("members", "#team,bob"),
            ("attach", "bob,phone"),
            ("attach", "bob,phone,secret"),
            ("devices", ""),
            ("forget", ""),
            ("forget", "phone"),
            ("history", "#team,0,256"),
            ("seen", "#team,18446744073709551615"),
            ("token", "backup,all"),
            ("token", "backup,send:#team"),
            ("tokens", ""),
            ("revoke", "backup"),
        ] {
            check_request(command, payload);
        }
    }

    #[test]
    fn every_reply_is_written_as_it_is_read() {
        for (command, payload) in [
            ("room", "#team,open,10000,3,7"),
            ("room", "#team,news,1,,7"),
            ("device", "phone,1700000000000,3"),
            ("device", ",0,0"),
            ("past", "7,bob,1700000000000,a, b\n"),
            ("said", "#team,7,bob,1700000000000,a, b\n"),
            ("gap", ",1,7,3"),
            ("gap", "#team,1,7,3"),
            ("joined", "#team,7"),
            ("left", "#team,expelled"),
            ("seen", "#team,7"),
            ("token", "backup,send:bob,1700000000000"),
            ("token", "backup,receive,0"),
        ] {
            check_reply(command, payload);
        }
    }

    #[test]
    fn malformed_fields_are_refused() {
        for (command, payload) in [
            ("room", "#team"),
            ("room", "#team,closed"),
            ("room", "team,open"),
            ("room", "#team,open,-1"),
            ("join", ""),
            ("join", "team"),
            ("invite", "#team"),
            ("invite", "#team,"),
            ("talk", ""),
            ("members", ","),
            ("attach", "bob"),
            ("attach", "bob,"),
            ("attach", "bob,my phone"),
            ("devices", "x"),
            ("forget", "my phone"),
            ("history", "#team,0"),
            ("history", "#team,x,1"),
            ("history", "#team,0,4294967296"),
            ("seen", "#team"),
            ("seen", "#team,-1"),
            ("token", "backup"),
            ("token", "my backup,all"),
            ("token", "backup,everything"),
            ("token", "backup,all,x"),
            ("tokens", "x"),
            ("revoke", ""),
        ] {
            let parsed = RoomRequest::parse(command, payload);
            assert!(parsed.is_err(), "{command} {payload}: {parsed:?}");
        }
        for (command, payload) in [
            ("room", "#team,open,1,x,7"),
            ("room", "#team,closed,1,,7"),
            ("said", "#team"),
            ("gap", "#team,1,7"),
            ("left", "#team,bored"),
            ("token", "backup,all"),
        ] {
            let parsed = RoomReply::parse(command, payload);
            assert!(parsed.is_err(), "{command} {payload}: {parsed:?}");
        }
    }
}
