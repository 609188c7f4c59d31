//! Translation of the requests and replies of rooms, devices and tokens.

use hark_protocol::message::{Gap, LeftReason, RoomEntry, RoomMode, Scope, TokenEntry};
use hark_protocol::{
    Code, DeviceName, Refusal, RoomName, RoomReply, RoomRequest, Sequence, TokenName, UserName,
};

use crate::reply::bad_reply;
use crate::request::{exposed, secret, without_login};
use crate::v1;
use crate::v1::chat_reply::Reply;
use crate::v1::chat_request::Command;

/// A request of a call, with the credentials of its caller.
pub trait WithLogin {
    /// Takes the credentials out of the request.
    fn take_login(&mut self) -> Option<v1::Credentials>;
}

macro_rules! with_login {
    ($($request:ident),* $(,)?) => {$(
        impl WithLogin for v1::$request {
            fn take_login(&mut self) -> Option<v1::Credentials> {
                self.login.take()
            }
        }
    )*};
}

with_login!(
    CreateRequest,
    PasswordRequest,
    DeleteRequest,
    SendRequest,
    ListRequest,
    RoomRequest,
    JoinRequest,
    LeaveRequest,
    MemberRequest,
    TalkRequest,
    UserRequest,
    RoomsRequest,
    MembersRequest,
    DevicesRequest,
    ForgetRequest,
    HistoryRequest,
    SeenRequest,
    TokenRequest,
    TokensRequest,
    RevokeRequest,
);

/// Decodes a command of rooms or devices without credentials.
///
/// # Errors
/// A [`Refusal`] for a malformed field, and for another command.
pub(crate) fn request(command: Command) -> Result<RoomRequest, Refusal> {
    Ok(match command {
        Command::Attach(attach) => {
            let password = secret(attach.password)?;
            RoomRequest::Attach {
                user: attach.user.parse()?,
                device: attach.device.parse()?,
                password,
            }
        }
        Command::Room(set) => {
            without_login(set.login)?;
            RoomRequest::Set {
                room: set.room.parse()?,
                mode: mode(&set.mode)?,
                keep_s: set.keep_s,
            }
        }
        Command::Join(join) => RoomRequest::Join(room(&join.room, join.login)?),
        Command::Leave(leave) => RoomRequest::Leave(room(&leave.room, leave.login)?),
        Command::Invite(invite) => {
            let (room, user) = member(invite)?;
            RoomRequest::Invite { room, user }
        }
        Command::Expel(expel) => {
            let (room, user) = member(expel)?;
            RoomRequest::Expel { room, user }
        }
        Command::Own(own) => {
            let (room, user) = member(own)?;
            RoomRequest::Own { room, user }
        }
        Command::Talk(talk) => RoomRequest::Talk(user(&talk.user, talk.login)?),
        Command::Block(block) => RoomRequest::Block(user(&block.user, block.login)?),
        Command::Unblock(unblock) => RoomRequest::Unblock(user(&unblock.user, unblock.login)?),
        command => return query(command),
    })
}

/// Decodes a command that lists or reads.
fn query(command: Command) -> Result<RoomRequest, Refusal> {
    Ok(match command {
        Command::Rooms(rooms) => {
            without_login(rooms.login)?;
            RoomRequest::Rooms {
                pattern: (!rooms.pattern.is_empty()).then(|| rooms.pattern.into()),
            }
        }
        Command::Members(members) => RoomRequest::Members {
            room: room(&members.room, members.login)?,
            after: optional(&members.after)?,
        },
        Command::Devices(devices) => {
            without_login(devices.login)?;
            RoomRequest::Devices
        }
        Command::Forget(forget) => {
            without_login(forget.login)?;
            RoomRequest::Forget(optional(&forget.device)?)
        }
        Command::History(history) => RoomRequest::History {
            room: room(&history.room, history.login)?,
            before: Sequence(history.before),
            count: history.count,
        },
        Command::Seen(seen) => RoomRequest::Seen {
            room: room(&seen.room, seen.login)?,
            sequence: Sequence(seen.sequence),
        },
        Command::Token(token) => {
            without_login(token.login)?;
            RoomRequest::Token {
                name: token.name.parse()?,
                scope: token.scope.parse()?,
            }
        }
        Command::Tokens(tokens) => {
            without_login(tokens.login)?;
            RoomRequest::Tokens
        }
        Command::Revoke(revoke) => {
            without_login(revoke.login)?;
            RoomRequest::Revoke(revoke.name.parse()?)
        }
        _ => return Err(Refusal::new(Code::UnknownCommand, "unknown command")),
    })
}

/// Encodes a request of rooms or devices.
pub(crate) fn command(request: RoomRequest) -> Command {
    let login = None;
    match request {
        RoomRequest::Attach {
            user,
            device,
            password,
        } => Command::Attach(v1::AttachRequest {
            user: user.to_string(),
            password: exposed(password),
            device: device.to_string(),
        }),
        RoomRequest::Set { room, mode, keep_s } => Command::Room(v1::RoomRequest {
            room: room.to_string(),
            mode: mode.as_str().to_owned(),
            keep_s,
            login,
        }),
        RoomRequest::Join(room) => Command::Join(v1::JoinRequest {
            room: room.to_string(),
            login,
        }),
        RoomRequest::Leave(room) => Command::Leave(v1::LeaveRequest {
            room: room.to_string(),
            login,
        }),
        RoomRequest::Invite { room, user } => Command::Invite(of_member(&room, &user)),
        RoomRequest::Expel { room, user } => Command::Expel(of_member(&room, &user)),
        RoomRequest::Own { room, user } => Command::Own(of_member(&room, &user)),
        RoomRequest::Talk(user) => Command::Talk(v1::TalkRequest {
            user: user.to_string(),
            login,
        }),
        RoomRequest::Block(user) => Command::Block(of_user(&user)),
        RoomRequest::Unblock(user) => Command::Unblock(of_user(&user)),
        RoomRequest::Rooms { pattern } => Command::Rooms(v1::RoomsRequest {
            pattern: text(pattern.as_ref()),
            login,
        }),
        RoomRequest::Members { room, after } => Command::Members(v1::MembersRequest {
            room: room.to_string(),
            after: text(after.as_ref()),
            login,
        }),
        RoomRequest::Devices => Command::Devices(v1::DevicesRequest { login }),
        RoomRequest::Forget(device) => Command::Forget(v1::ForgetRequest {
            device: text(device.as_ref()),
            login,
        }),
        RoomRequest::History {
            room,
            before,
            count,
        } => Command::History(v1::HistoryRequest {
            room: room.to_string(),
            before: before.0,
            count,
            login,
        }),
        RoomRequest::Seen { room, sequence } => Command::Seen(v1::SeenRequest {
            room: room.to_string(),
            sequence: sequence.0,
            login,
        }),
        RoomRequest::Token { name, scope } => Command::Token(of_token(&name, &scope)),
        RoomRequest::Tokens => Command::Tokens(v1::TokensRequest { login }),
        RoomRequest::Revoke(name) => Command::Revoke(v1::RevokeRequest {
            name: name.to_string(),
            login,
        }),
    }
}

/// Decodes a reply of rooms or devices.
///
/// # Errors
/// A [`Refusal`] for a malformed field, and for another reply.
pub(crate) fn incoming(reply: Reply) -> Result<RoomReply, Refusal> {
    Ok(match reply {
        Reply::Room(entry) => RoomReply::Room(RoomEntry {
            name: entry.name.parse()?,
            mode: mode(&entry.mode)?,
            members: entry.members,
            unread: entry.unread,
            last: Sequence(entry.last),
        }),
        Reply::Device(device) => RoomReply::Device {
            name: optional(&device.name)?,
            seen_ms: device.seen_ms,
            waiting: device.waiting,
        },
        Reply::Past(message) => RoomReply::Past(message.try_into()?),
        Reply::Said(v1::Said { room, message }) => RoomReply::Said {
            room: room.parse()?,
            delivery: message
                .ok_or_else(|| bad_reply("a message is missing"))?
                .try_into()?,
        },
        Reply::Gap(gap) => RoomReply::Gap(Gap {
            log: optional(&gap.room)?,
            from: Sequence(gap.from),
            to: Sequence(gap.to),
            count: gap.count,
        }),
        Reply::Joined(joined) => RoomReply::Joined {
            room: joined.room.parse()?,
            last: Sequence(joined.last),
        },
        Reply::Left(left) => RoomReply::Left {
            room: left.room.parse()?,
            reason: LeftReason::parse(&left.reason)
                .ok_or_else(|| bad_reply("unknown reason of a left"))?,
        },
        Reply::Seen(seen) => RoomReply::Seen {
            room: seen.room.parse()?,
            sequence: Sequence(seen.sequence),
        },
        Reply::Token(token) => RoomReply::Token(TokenEntry {
            name: token.name.parse()?,
            scope: token.scope.parse()?,
            used_ms: token.used_ms,
        }),
        _ => return Err(bad_reply("unknown kind of reply")),
    })
}

/// Encodes a reply of rooms or devices.
pub(crate) fn outgoing(reply: RoomReply) -> Reply {
    match reply {
        RoomReply::Room(entry) => Reply::Room(entry.into()),
        RoomReply::Device {
            name,
            seen_ms,
            waiting,
        } => Reply::Device(device(name.as_ref(), seen_ms, waiting)),
        RoomReply::Past(delivery) => Reply::Past(delivery.into()),
        RoomReply::Said { room, delivery } => Reply::Said(v1::Said {
            room: room.to_string(),
            message: Some(delivery.into()),
        }),
        RoomReply::Gap(gap) => Reply::Gap(gap.into()),
        RoomReply::Joined { room, last } => Reply::Joined(v1::Joined {
            room: room.to_string(),
            last: last.0,
        }),
        RoomReply::Left { room, reason } => Reply::Left(v1::Left {
            room: room.to_string(),
            reason: reason.as_str().to_owned(),
        }),
        RoomReply::Seen { room, sequence } => Reply::Seen(v1::Seen {
            room: room.to_string(),
            sequence: sequence.0,
        }),
        RoomReply::Token(entry) => Reply::Token(v1::Token {
            name: entry.name.to_string(),
            scope: entry.scope.to_string(),
            used_ms: entry.used_ms,
        }),
    }
}

impl From<RoomEntry> for v1::RoomEntry {
    fn from(entry: RoomEntry) -> Self {
        Self {
            name: entry.name.to_string(),
            mode: entry.mode.as_str().to_owned(),
            members: entry.members,
            unread: entry.unread,
            last: entry.last.0,
        }
    }
}

impl From<Gap> for v1::Gap {
    fn from(gap: Gap) -> Self {
        Self {
            room: text(gap.log.as_ref()),
            from: gap.from.0,
            to: gap.to.0,
            count: gap.count,
        }
    }
}

fn device(name: Option<&DeviceName>, seen_ms: u64, waiting: u64) -> v1::Device {
    v1::Device {
        name: text(name),
        seen_ms,
        waiting,
    }
}

fn of_member(room: &RoomName, user: &UserName) -> v1::MemberRequest {
    v1::MemberRequest {
        room: room.to_string(),
        user: user.to_string(),
        login: None,
    }
}

fn of_token(name: &TokenName, scope: &Scope) -> v1::TokenRequest {
    v1::TokenRequest {
        name: name.to_string(),
        scope: scope.to_string(),
        login: None,
    }
}

fn of_user(user: &UserName) -> v1::UserRequest {
    v1::UserRequest {
        user: user.to_string(),
        login: None,
    }
}

fn member(request: v1::MemberRequest) -> Result<(RoomName, UserName), Refusal> {
    without_login(request.login)?;
    Ok((request.room.parse()?, request.user.parse()?))
}

fn room(name: &str, login: Option<v1::Credentials>) -> Result<RoomName, Refusal> {
    without_login(login)?;
    Ok(name.parse()?)
}

fn user(name: &str, login: Option<v1::Credentials>) -> Result<UserName, Refusal> {
    without_login(login)?;
    Ok(name.parse()?)
}

fn mode(word: &str) -> Result<RoomMode, Refusal> {
    RoomMode::parse(word).ok_or_else(|| bad_reply("the mode must be open, news or invite"))
}

/// Returns an optional field, which is empty if it is absent.
fn text(field: Option<&impl ToString>) -> String {
    field.map_or_else(String::new, ToString::to_string)
}

/// Parses a field, unless it is empty.
fn optional<T>(field: &str) -> Result<Option<T>, Refusal>
where
    T: std::str::FromStr,
    Refusal: From<T::Err>,
{
    if field.is_empty() {
        Ok(None)
    } else {
        Ok(Some(field.parse()?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use hark_protocol::Delivery;

    use super::*;

    fn team() -> RoomName {
        "#team".parse().unwrap()
    }

    fn bob() -> UserName {
        "bob".parse().unwrap()
    }

    pub(crate) fn requests() -> Vec<RoomRequest> {
        let (room, user) = (team(), bob());
        let phone: DeviceName = "phone".parse().unwrap();
        let sequence = Sequence(u64::MAX);
        vec![
            RoomRequest::Attach {
                user: bob(),
                device: phone.clone(),
                password: Some("secret".parse().unwrap()),
            },
            RoomRequest::Set {
                room: team(),
                mode: RoomMode::News,
                keep_s: None,
            },
            RoomRequest::Set {
                room: team(),
                mode: RoomMode::Invite,
                keep_s: Some(0),
            },
            RoomRequest::Join(team()),
            RoomRequest::Leave(team()),
            RoomRequest::Invite {
                room: team(),
                user: bob(),
            },
            RoomRequest::Expel {
                room: team(),
                user: bob(),
            },
            RoomRequest::Own { room, user },
            RoomRequest::Talk(bob()),
            RoomRequest::Block(bob()),
            RoomRequest::Unblock(bob()),
            RoomRequest::Rooms { pattern: None },
            RoomRequest::Rooms {
                pattern: Some("^#t".into()),
            },
            RoomRequest::Members {
                room: team(),
                after: None,
            },
            RoomRequest::Members {
                room: team(),
                after: Some(bob()),
            },
            RoomRequest::Devices,
            RoomRequest::Forget(None),
            RoomRequest::Forget(Some(phone)),
            RoomRequest::History {
                room: team(),
                before: sequence,
                count: 256,
            },
            RoomRequest::Seen {
                room: team(),
                sequence,
            },
            RoomRequest::Token {
                name: "backup".parse().unwrap(),
                scope: "send:#team".parse().unwrap(),
            },
            RoomRequest::Tokens,
            RoomRequest::Revoke("backup".parse().unwrap()),
        ]
    }

    pub(crate) fn replies() -> Vec<RoomReply> {
        let delivery = Delivery {
            sequence: Sequence(7),
            sender: Some(bob()),
            time_ms: 1_700_000_000_000,
            text: "a, b\n".into(),
        };
        let entry = |unread| {
            RoomReply::Room(RoomEntry {
                name: team(),
                mode: RoomMode::Open,
                members: 3,
                unread,
                last: Sequence(7),
            })
        };
        let device = |name: Option<&str>| RoomReply::Device {
            name: name.map(|name| name.parse().unwrap()),
            seen_ms: 1_700_000_000_000,
            waiting: 3,
        };
        let gap = |log| {
            RoomReply::Gap(Gap {
                log,
                from: Sequence(1),
                to: Sequence(7),
                count: 3,
            })
        };
        let left = LeftReason::ALL.map(|reason| RoomReply::Left {
            room: team(),
            reason,
        });
        let others = [
            entry(None),
            entry(Some(0)),
            device(None),
            device(Some("phone")),
            RoomReply::Past(delivery.clone()),
            RoomReply::Said {
                room: team(),
                delivery,
            },
            gap(None),
            gap(Some(team())),
            RoomReply::Joined {
                room: team(),
                last: Sequence(7),
            },
            RoomReply::Seen {
                room: team(),
                sequence: Sequence(7),
            },
            RoomReply::Token(TokenEntry {
                name: "backup".parse().unwrap(),
                scope: "receive".parse().unwrap(),
                used_ms: 1_700_000_000_000,
            }),
        ];
        others.into_iter().chain(left).collect()
    }
}
