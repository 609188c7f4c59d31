//! The messages: [`Request`] and [`Reply`], with those of rooms, devices and tokens in
//! [`RoomRequest`] and [`RoomReply`], and their conversion from and to a command and
//! its fields. The envelope of a message belongs to [`crate::framing`].

mod ok_fields;
mod reply;
mod request;
mod rooms;
mod tokens;

use std::str::FromStr;

use bytes::{BufMut, BytesMut};

use crate::code::{Code, Refusal};
use crate::limits::COMMAND_BYTES;

pub use ok_fields::OkFields;
pub(crate) use reply::write_names;
pub use reply::{Delivery, Push, Reply, list_parts};
pub use request::Request;
pub(crate) use request::{HELLO, REQUEST_COMMANDS, wipe_secret};
pub use rooms::{Gap, LeftReason, RoomEntry, RoomMode, RoomReply, RoomRequest};
pub use tokens::{BadScope, Scope, TokenEntry};

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
/// bytes followed only by NULs.
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
            "a command is 1 to 15 bytes, followed only by NULs",
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

pub(crate) fn unknown_command(command: &str) -> Refusal {
    Refusal::new(
        Code::UnknownCommand,
        format!("unknown command \"{}\"", command.escape_default()),
    )
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
