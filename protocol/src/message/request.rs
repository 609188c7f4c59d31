//! [`Request`]: the messages of a client.

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;
use zeroize::Zeroize as _;

use super::{
    Message, RoomRequest, bad_request, is_command, no_fields, number, put_number, put_number_then,
};
use crate::code::Refusal;
use crate::name::{Password, RoomName, Sequence, SessionToken, UserName};

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Names the send session of this connection. Valid only as the first
    /// request.
    Hello {
        /// Protocol version of the client.
        version: u32,
        /// The session.
        session: SessionToken,
    },
    /// Creates an account.
    Create {
        /// The account.
        user: UserName,
        /// Password of the account, if it should have one.
        password: Option<Password>,
    },
    /// Authenticates as a user without receiving.
    Login {
        /// The account.
        user: UserName,
        /// Password of the account, if it has one.
        password: Option<Password>,
    },
    /// Authenticates as a user and receives for it.
    Connect {
        /// The account.
        user: UserName,
        /// Password of the account, if it has one.
        password: Option<Password>,
    },
    /// Ends authentication and receiving.
    Disconnect,
    /// Sets the password of an account.
    Password {
        /// The account.
        user: UserName,
        /// The current password, if the account has one.
        old: Option<Password>,
        /// The new password.
        new: Password,
    },
    /// Deletes an account and its queue, or a room.
    Delete {
        /// The account or the room.
        user: UserName,
        /// Password of the account, if it has one.
        password: Option<Password>,
    },
    /// Lists user names.
    List {
        /// Regular expression, unanchored.
        pattern: Option<ByteString>,
    },
    /// Stores a message for a user or a room.
    Send {
        /// The recipient: a user or a room.
        user: UserName,
        /// The text.
        text: ByteString,
    },
    /// Acknowledges every message of a log up to a number. Has no reply.
    Ack {
        /// The room; `None` for the inbox.
        log: Option<RoomName>,
        /// Number of the last message.
        sequence: Sequence,
    },
    /// Checks that the server responds.
    Ping,
    /// A request that concerns rooms, devices or tokens.
    Room(RoomRequest),
}

/// The commands of the classic framing, each with a flag for an optional first field.
/// The framing needs the flag before the message is complete.
pub(crate) const REQUEST_COMMANDS: [(&str, bool); 11] = [
    (HELLO, false),
    ("create", false),
    ("login", false),
    ("connect", false),
    ("disconnect", true),
    ("password", false),
    ("delete", false),
    ("list", true),
    ("send", false),
    ("ack", false),
    ("ping", true),
];

/// The command that names a send session.
pub(crate) const HELLO: &str = "hello";

/// The commands whose fields may contain a password.
const SECRET_COMMANDS: [&str; 6] = ["create", "login", "connect", "attach", "password", "delete"];

impl Message for Request {
    fn command(&self) -> &'static str {
        match self {
            Self::Hello { .. } => HELLO,
            Self::Create { .. } => "create",
            Self::Login { .. } => "login",
            Self::Connect { .. } => "connect",
            Self::Disconnect => "disconnect",
            Self::Password { .. } => "password",
            Self::Delete { .. } => "delete",
            Self::List { .. } => "list",
            Self::Send { .. } => "send",
            Self::Ack { .. } => "ack",
            Self::Ping => "ping",
            Self::Room(request) => request.command(),
        }
    }

    fn write_payload(&self, to: &mut BytesMut) {
        match self {
            Self::Hello { version, session } => {
                put_number_then(to, u64::from(*version), session.as_str())
            }
            Self::Create { user, password }
            | Self::Login { user, password }
            | Self::Connect { user, password }
            | Self::Delete { user, password } => {
                to.put_slice(user.as_str().as_bytes());
                if let Some(password) = password {
                    to.put_u8(b',');
                    to.put_slice(password.expose().as_bytes());
                }
            }
            Self::Password { user, old, new } => {
                to.put_slice(user.as_str().as_bytes());
                to.put_u8(b',');
                to.put_slice(old.as_ref().map_or("", Password::expose).as_bytes());
                to.put_u8(b',');
                to.put_slice(new.expose().as_bytes());
            }
            Self::List { pattern } => {
                to.put_slice(pattern.as_deref().unwrap_or_default().as_bytes())
            }
            Self::Send { user, text } => {
                to.put_slice(user.as_str().as_bytes());
                to.put_u8(b',');
                to.put_slice(text.as_bytes());
            }
            Self::Ack {
                log: None,
                sequence,
            } => put_number(to, sequence.0),
            Self::Ack {
                log: Some(room),
                sequence,
            } => put_number_then(to, sequence.0, room.as_str()),
            Self::Disconnect | Self::Ping => {}
            Self::Room(request) => request.write_payload(to),
        }
    }

    fn parse(command: &str, payload: &str) -> Result<Self, Refusal> {
        match command {
            HELLO => parse_hello(payload),
            "create" => {
                user_and_password(payload).map(|(user, password)| Self::Create { user, password })
            }
            "login" => {
                user_and_password(payload).map(|(user, password)| Self::Login { user, password })
            }
            "connect" => {
                user_and_password(payload).map(|(user, password)| Self::Connect { user, password })
            }
            "disconnect" => no_fields(command, payload).map(|()| Self::Disconnect),
            "password" => parse_password(payload),
            "delete" => {
                user_and_password(payload).map(|(user, password)| Self::Delete { user, password })
            }
            "list" => Ok(Self::List {
                pattern: (!payload.is_empty()).then(|| payload.into()),
            }),
            "send" => parse_send(payload),
            "ack" => parse_ack(payload),
            "ping" => no_fields(command, payload).map(|()| Self::Ping),
            _ => RoomRequest::parse(command, payload).map(Self::Room),
        }
    }
}

/// Wipes a message whose command may carry a password: freed memory stays readable
/// until something else is written there.
pub(crate) fn wipe_secret(message: &mut [u8]) {
    if SECRET_COMMANDS.iter().any(|name| is_command(message, name)) {
        message.zeroize();
    }
}

fn user_and_password(payload: &str) -> Result<(UserName, Option<Password>), Refusal> {
    match payload.split_once(',') {
        Some((user, password)) => Ok((user.parse()?, Some(password.parse()?))),
        None if payload.is_empty() => Err(bad_request("the user is missing")),
        None => Ok((payload.parse()?, None)),
    }
}

fn parse_hello(payload: &str) -> Result<Request, Refusal> {
    let (version, session) = payload
        .split_once(',')
        .ok_or_else(|| bad_request("hello takes a version and a session"))?;
    let version = number(version).ok_or_else(|| bad_request("the version must be a number"))?;
    Ok(Request::Hello {
        version,
        session: session.parse()?,
    })
}

fn parse_password(payload: &str) -> Result<Request, Refusal> {
    let mut fields = payload.splitn(3, ',');
    let (Some(user), Some(old), Some(new)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(bad_request(
            "password takes the user, the old password and the new one",
        ));
    };
    Ok(Request::Password {
        user: user.parse()?,
        old: if old.is_empty() {
            None
        } else {
            Some(old.parse()?)
        },
        new: new.parse()?,
    })
}

fn parse_send(payload: &str) -> Result<Request, Refusal> {
    let (user, text) = payload
        .split_once(',')
        .ok_or_else(|| bad_request("send takes a user and a text"))?;
    Ok(Request::Send {
        user: user.parse()?,
        text: text.into(),
    })
}

fn parse_ack(payload: &str) -> Result<Request, Refusal> {
    let (sequence, room) = match payload.split_once(',') {
        Some((sequence, room)) => (sequence, Some(room)),
        None => (payload, None),
    };
    let sequence = number(sequence).ok_or_else(|| bad_request("ack takes a sequence number"))?;
    Ok(Request::Ack {
        log: match room {
            None | Some("") => None,
            Some(room) => Some(room.parse()?),
        },
        sequence: Sequence(sequence),
    })
}

#[cfg(test)]
mod tests {
    use super::super::write_command;
    use super::*;

    #[test]
    fn message_with_a_password_is_wiped() {
        for (command, is_secret) in [
            ("login", true),
            ("password", true),
            ("send", false),
            ("logi", false),
        ] {
            let mut message = BytesMut::new();
            write_command(command, &mut message);
            message.put_slice(b"bob,hunter2");
            let expected = if is_secret {
                BytesMut::zeroed(message.len())
            } else {
                message.clone()
            };
            wipe_secret(&mut message);
            assert_eq!(message, expected, "{command}");
        }
    }
}
