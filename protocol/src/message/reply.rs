//! [`Reply`]: the messages of a server, which are replies and pushes.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;

use super::{Message, OkFields, RoomReply, bad_request, number, put_number, put_number_then};
use crate::code::{ByeReason, Failure, Refusal};
use crate::name::{Sequence, UserName};

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
    /// A reply or push that concerns rooms, devices or tokens.
    Room(RoomReply),
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
    pub(super) fn borrow(&self) -> Push<'_> {
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

impl Message for Reply {
    fn command(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::List(_) => "list",
            Self::String(_) => Push::COMMAND,
            Self::Bye(_) => "bye",
            Self::NotOk(_) => "notok",
            Self::Error { .. } => "error",
            Self::Room(reply) => reply.command(),
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
            Self::Room(reply) => reply.write_payload(to),
        }
    }

    fn parse(command: &str, payload: &str) -> Result<Self, Refusal> {
        match command {
            "ok" => Ok(Self::Ok(OkFields::Encoded(payload.into()))),
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
            _ => RoomReply::parse(command, payload).map(Self::Room),
        }
    }
}

/// Splits names into runs, one for each `list`. A run has at most `bytes_max`
/// bytes, commas included, but at least one name. If there are no names, there
/// is one empty run.
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

fn parse_names(payload: &str) -> Result<Vec<UserName>, Refusal> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    payload.split(',').map(|name| Ok(name.parse()?)).collect()
}

pub(super) fn parse_delivery(payload: &str) -> Result<Delivery, Refusal> {
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
            number(sequence)
                .ok_or_else(|| bad_request("the sequence number must be an unsigned integer"))?,
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
