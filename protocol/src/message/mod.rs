//! The messages: [`Request`] and [`Reply`], and their conversion from and to a
//! command and its fields. The envelope of a message belongs to
//! [`crate::framing`].

mod rooms;

use std::borrow::Cow;
use std::str::FromStr;

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;
use zeroize::Zeroize as _;

use crate::code::{ByeReason, Code, Failure, Refusal};
use crate::limits::COMMAND_BYTES;
use crate::name::{Password, RoomName, Sequence, SessionToken, UserName};

pub use self::rooms::{Gap, LeftReason, RoomEntry, RoomMode, RoomReply, RoomRequest};

/// A message of one direction, made of a command and fields.
pub trait Message: Sized {
    /// Returns the command, 1 to 15 bytes.
    fn command(&self) -> &'static str;

    /// Appends the payload: the fields, joined by commas.
    fn write_payload(&self, to: &mut BytesMut);

    /// Parses a message from its command and payload. Texts are copied.
    ///
    /// # Errors
    /// A [`Refusal`] with the wire code of the defect.
    fn parse(command: &str, payload: &str) -> Result<Self, Refusal>;
}

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
        /// Password of the account, if it is to have one.
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
        /// The present password, if the account has one.
        old: Option<Password>,
        /// The new password.
        new: Password,
    },
    /// Deletes an account and its queue.
    Delete {
        /// The account.
        user: UserName,
        /// Password of the account, if it has one.
        password: Option<Password>,
    },
    /// Lists user names.
    List {
        /// Regular expression, unanchored.
        pattern: Option<ByteString>,
    },
    /// Stores a message for a user.
    Send {
        /// The recipient.
        user: UserName,
        /// The text.
        text: ByteString,
    },
    /// Acknowledges every message up to a number. Has no reply.
    Ack {
        /// Number of the last message.
        sequence: Sequence,
    },
    /// Checks that the server responds.
    Ping,
}

/// A message from the server: a reply, or a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The request succeeded.
    Ok(OkFields),
    /// A part of the list of user names, sorted.
    List(Vec<UserName>),
    /// A message for the connected user.
    String(Delivery),
    /// The connection stops receiving.
    Bye(ByeReason),
    /// The request was refused; nothing was changed.
    NotOk(Refusal),
    /// The server failed, or the client violated the protocol.
    Error {
        /// The kind of failure.
        failure: Failure,
        /// Human-readable cause.
        explanation: Cow<'static, str>,
    },
}

/// A message on its way to its recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Sequence number.
    pub sequence: Sequence,
    /// Sender; `None` if the sending connection was not logged in.
    pub sender: Option<UserName>,
    /// Time at which the server accepted it, in milliseconds since the Unix
    /// epoch.
    pub time_ms: u64,
    /// The text.
    pub text: ByteString,
}

/// A borrowed [`Delivery`], for encoding without a copy.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// Sequence number.
    pub sequence: Sequence,
    /// Sender; `None` if the sending connection was not logged in.
    pub sender: Option<&'a UserName>,
    /// Time at which the server accepted it, in milliseconds since the Unix
    /// epoch.
    pub time_ms: u64,
    /// The text.
    pub text: &'a str,
}

impl Push<'_> {
    pub(crate) const COMMAND: &'static str = "string";

    pub(crate) fn write_payload(&self, to: &mut BytesMut) {
        put_number(to, self.sequence.0);
        to.put_u8(b',');
        to.put_slice(self.sender.map_or("", UserName::as_str).as_bytes());
        to.put_u8(b',');
        put_number_then(to, self.time_ms, self.text);
    }
}

impl Delivery {
    fn borrow(&self) -> Push<'_> {
        let Self {
            sequence,
            sender,
            time_ms,
            text,
        } = self;
        Push {
            sequence: *sequence,
            sender: sender.as_ref(),
            time_ms: *time_ms,
            text,
        }
    }
}

/// The fields of an `ok`. Their meaning depends on the request, which the reply
/// does not repeat: each request has its own accessor.
#[derive(Debug, Clone, Default)]
pub struct OkFields(Fields);

#[derive(Debug, Clone)]
enum Fields {
    /// The fields as encoded.
    Text(ByteString),
    /// The answer to a `send`, encoded without an allocation.
    Stored(Sequence),
}

impl Default for Fields {
    fn default() -> Self {
        Self::Text(ByteString::new())
    }
}

/// Equality of the encoded fields.
impl PartialEq for OkFields {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for OkFields {}

impl OkFields {
    /// Returns no fields.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns the answer to `send`: the sequence number of the message.
    #[must_use]
    pub const fn stored(sequence: Sequence) -> Self {
        Self(Fields::Stored(sequence))
    }

    /// Returns the answer to `hello`: the version and the largest frame in
    /// bytes.
    #[must_use]
    pub fn hello(version: u32, frame_bytes_max: usize) -> Self {
        Self::written(format!("{version},{frame_bytes_max}"))
    }

    /// Returns the answer to `connect`: the number of unacknowledged messages.
    #[must_use]
    pub fn queued(messages: u64) -> Self {
        Self::written(messages.to_string())
    }

    /// Returns the answer to `delete`: whether the account existed.
    #[must_use]
    pub fn deleted(existed: bool) -> Self {
        Self(Fields::Text(ByteString::from_static(if existed {
            "deleted"
        } else {
            "absent"
        })))
    }

    /// Returns the end of a `list`: the number of names, and whether the server
    /// truncated the list.
    #[must_use]
    pub fn listed(names: usize, truncated: bool) -> Self {
        Self::written(format!(
            "{names}{}",
            if truncated { ",truncated" } else { "" }
        ))
    }

    /// Returns the version and the largest frame in bytes, if this answers
    /// `hello`.
    #[must_use]
    pub fn as_hello(&self) -> Option<(u32, usize)> {
        let text = self.text();
        let (version, frame_bytes_max) = text.split_once(',')?;
        Some((number(version)?, number(frame_bytes_max)?))
    }

    /// Returns the number of unacknowledged messages, if this answers
    /// `connect`.
    #[must_use]
    pub fn as_queued(&self) -> Option<u64> {
        number(&self.text())
    }

    /// Returns the sequence number, if this answers `send` and the server names
    /// it.
    #[must_use]
    pub fn as_stored(&self) -> Option<Sequence> {
        match &self.0 {
            Fields::Stored(sequence) => Some(*sequence),
            Fields::Text(text) => number(text).map(Sequence),
        }
    }

    /// Returns whether the account existed, if this answers `delete`.
    #[must_use]
    pub fn as_deleted(&self) -> Option<bool> {
        match &*self.text() {
            "deleted" => Some(true),
            "absent" => Some(false),
            _ => None,
        }
    }

    /// Returns the answer to `attach`: the number of unacknowledged messages of the inbox,
    /// and of rooms.
    #[must_use]
    pub fn attached(waiting: u64, rooms: u64) -> Self {
        Self::written(format!("{waiting},{rooms}"))
    }

    /// Returns the answer to `join`: the last number, and the number of messages held.
    #[must_use]
    pub fn joined(last: Sequence, held: u64) -> Self {
        Self::written(format!("{last},{held}"))
    }

    /// Returns the answer to `talk`: the room.
    #[must_use]
    pub fn talking(room: &RoomName) -> Self {
        Self::written(room.to_string())
    }

    /// Returns the end of a `history`: the number of messages, and the oldest number held.
    #[must_use]
    pub fn past(messages: u64, oldest: Sequence) -> Self {
        Self::written(format!("{messages},{oldest}"))
    }

    /// Returns the two numbers, if this answers `attach`, `join` or `history`.
    #[must_use]
    pub fn as_numbers(&self) -> Option<(u64, u64)> {
        let text = self.text();
        let (first, second) = text.split_once(',')?;
        Some((number(first)?, number(second)?))
    }

    /// Returns the room, if this answers `talk`.
    #[must_use]
    pub fn as_room(&self) -> Option<RoomName> {
        self.text().parse().ok()
    }

    /// Returns the number of names and whether the list was truncated, if this
    /// answers `list`.
    #[must_use]
    pub fn as_listed(&self) -> Option<(usize, bool)> {
        let text = self.text();
        match text.split_once(',') {
            Some((count, "truncated")) => Some((number(count)?, true)),
            Some(_) => None,
            None => Some((number(&text)?, false)),
        }
    }

    /// Returns whether this was made by [`Self::stored`]. Decoded fields never
    /// are.
    #[must_use]
    pub const fn is_stored(&self) -> bool {
        matches!(self.0, Fields::Stored(_))
    }

    fn written(text: String) -> Self {
        Self(Fields::Text(text.into()))
    }

    fn text(&self) -> Cow<'_, str> {
        match &self.0 {
            Fields::Text(text) => Cow::Borrowed(text),
            Fields::Stored(sequence) => Cow::Owned(sequence.to_string()),
        }
    }

    fn write(&self, to: &mut BytesMut) {
        match &self.0 {
            Fields::Text(text) => to.put_slice(text.as_bytes()),
            Fields::Stored(sequence) => put_number(to, sequence.0),
        }
    }
}

/// The commands of clients, each with whether its first field is optional. The
/// classic framing needs this before the message is complete.
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
            Self::Ack { sequence } => put_number(to, sequence.0),
            Self::Disconnect | Self::Ping => {}
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
            _ => Err(unknown_command(command)),
        }
    }
}

impl Message for Reply {
    fn command(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::List(_) => "list",
            Self::String(_) => Push::COMMAND,
            Self::Bye(_) => "bye",
            Self::NotOk(_) => "notok",
            Self::Error { .. } => "error",
        }
    }

    fn write_payload(&self, to: &mut BytesMut) {
        match self {
            Self::Ok(fields) => fields.write(to),
            Self::List(names) => write_names(names, to),
            Self::String(delivery) => delivery.borrow().write_payload(to),
            Self::Bye(reason) => to.put_slice(reason.as_str().as_bytes()),
            Self::NotOk(refusal) => {
                let (code, explanation) = refusal.fields();
                put_code(to, code, explanation);
            }
            Self::Error {
                failure,
                explanation,
            } => put_code(to, failure.as_str(), explanation),
        }
    }

    fn parse(command: &str, payload: &str) -> Result<Self, Refusal> {
        match command {
            "ok" => Ok(Self::Ok(OkFields(Fields::Text(payload.into())))),
            "list" => parse_names(payload).map(Self::List),
            "string" => parse_delivery(payload).map(Self::String),
            "bye" => match ByeReason::parse(payload) {
                Some(reason) => Ok(Self::Bye(reason)),
                None => Err(bad_request("unknown reason of a bye")),
            },
            "notok" => {
                let (code, explanation) = payload.split_once(',').unwrap_or((payload, ""));
                Ok(Self::NotOk(Refusal::parse(code, explanation)))
            }
            "error" => {
                let (code, explanation) = payload.split_once(',').unwrap_or((payload, ""));
                match Failure::parse(code) {
                    Some(failure) => Ok(Self::Error {
                        failure,
                        explanation: explanation.to_owned().into(),
                    }),
                    None => Err(bad_request("unknown code of an error")),
                }
            }
            _ => Err(unknown_command(command)),
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

/// Returns whether a message, which may be malformed, has this command.
pub(crate) fn is_command(message: &[u8], name: &str) -> bool {
    let command = message
        .get(..COMMAND_BYTES)
        .and_then(|command| command.strip_prefix(name.as_bytes()));
    command.is_some_and(|padding| padding.iter().all(|&b| b == 0))
}

/// Splits a message into its command and its payload.
///
/// # Errors
/// A [`Refusal`] if the message is not UTF-8, or the command is not 1 to 15
/// bytes followed by NULs only.
pub(crate) fn split(message: &[u8]) -> Result<(&str, &str), Refusal> {
    let Ok(message) = std::str::from_utf8(message) else {
        return Err(bad_request("a message must be UTF-8"));
    };
    let Some((command, payload)) = message.split_at_checked(COMMAND_BYTES) else {
        return Err(bad_request(
            "a command has exactly 15 bytes, padded with NUL",
        ));
    };
    let command = command.trim_end_matches('\0');
    if command.is_empty() || command.contains('\0') {
        return Err(bad_request(
            "a command is 1 to 15 bytes, followed by NULs only",
        ));
    }
    Ok((command, payload))
}

/// Appends a command, padded with NUL to 15 bytes.
pub(crate) fn write_command(command: &str, to: &mut BytesMut) {
    debug_assert!((1..=COMMAND_BYTES).contains(&command.len()));
    to.put_slice(command.as_bytes());
    to.put_bytes(0, COMMAND_BYTES.saturating_sub(command.len()));
}

fn unknown_command(command: &str) -> Refusal {
    Refusal::new(
        Code::UnknownCommand,
        format!("unknown command \"{}\"", command.escape_default()),
    )
}

fn bad_request(explanation: &'static str) -> Refusal {
    Refusal::new(Code::BadRequest, explanation)
}

/// Parses decimal digits; unlike `str::parse`, it rejects a sign.
fn number<N: FromStr>(text: &str) -> Option<N> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

fn no_fields(command: &str, payload: &str) -> Result<(), Refusal> {
    if payload.is_empty() {
        Ok(())
    } else {
        Err(Refusal::new(
            Code::BadRequest,
            format!("{command} takes no fields"),
        ))
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
    let sequence = number(payload).ok_or_else(|| bad_request("ack takes a sequence number"))?;
    Ok(Request::Ack {
        sequence: Sequence(sequence),
    })
}

fn parse_names(payload: &str) -> Result<Vec<UserName>, Refusal> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    payload.split(',').map(|name| Ok(name.parse()?)).collect()
}

fn parse_delivery(payload: &str) -> Result<Delivery, Refusal> {
    let mut fields = payload.splitn(4, ',');
    let (Some(sequence), Some(sender), Some(time), Some(text)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(bad_request(
            "string takes a number, a sender, a time and a text",
        ));
    };
    Ok(Delivery {
        sequence: Sequence(
            number(sequence).ok_or_else(|| bad_request("the sequence number must be a number"))?,
        ),
        sender: if sender.is_empty() {
            None
        } else {
            Some(sender.parse()?)
        },
        time_ms: number(time).ok_or_else(|| bad_request("the time must be a number"))?,
        text: text.into(),
    })
}

/// Splits names into runs, one for each `list`. A run has at most `bytes_max`
/// bytes, commas included, but at least one name. No names make one empty run.
#[must_use]
pub fn list_parts(names: &[UserName], bytes_max: usize) -> Vec<&[UserName]> {
    if names.is_empty() {
        return vec![names];
    }
    let mut bytes = names.first().map_or(0, |first| first.as_str().len());
    let fits = |_: &UserName, next: &UserName| {
        let alone = next.as_str().len();
        bytes += 1 + alone;
        let fits = bytes <= bytes_max;
        if !fits {
            bytes = alone;
        }
        fits
    };
    names.chunk_by(fits).collect()
}

pub(crate) fn write_names(names: &[UserName], to: &mut BytesMut) {
    for (i, name) in names.iter().enumerate() {
        if i > 0 {
            to.put_u8(b',');
        }
        to.put_slice(name.as_str().as_bytes());
    }
}

fn put_number(to: &mut BytesMut, mut number: u64) {
    /// Number of digits of `u64::MAX`.
    const DIGITS_MAX: usize = 20;
    let mut digits = [b'0'; DIGITS_MAX];
    let mut first = DIGITS_MAX;
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        (number, first) = (number / 10, place);
        if number == 0 {
            break;
        }
    }
    to.put_slice(digits.get(first..).unwrap_or_default());
}

fn put_number_then(to: &mut BytesMut, number: u64, text: &str) {
    put_number(to, number);
    to.put_u8(b',');
    to.put_slice(text.as_bytes());
}

fn put_code(to: &mut BytesMut, code: &str, explanation: &str) {
    to.put_slice(code.as_bytes());
    if !explanation.is_empty() {
        to.put_u8(b',');
        to.put_slice(explanation.as_bytes());
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn names_are_split_into_runs_that_fit() {
        let names: Vec<UserName> = (0..99)
            .map(|n| format!("{n:064}").parse().unwrap())
            .collect();
        for (bytes_max, each) in [(200, 3), (194, 3), (193, 2), (64, 1)] {
            let runs = list_parts(&names, bytes_max);
            let bytes = |run: &[UserName]| {
                run.iter()
                    .map(|name| name.as_str().len() + 1)
                    .sum::<usize>()
                    - 1
            };
            assert!(runs.iter().all(|run| bytes(run) <= bytes_max));
            assert!(
                runs.iter().rev().skip(1).all(|run| run.len() == each),
                "and are not cut for nothing"
            );
            assert_eq!(runs.concat(), names);
        }
        assert_eq!(list_parts(&[], 200), [&[]]);
    }
}
