//! Tokens: the [`Scope`] of a token, and its [`TokenEntry`] in the answer to `tokens`.

use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;

use super::bad_request;
use super::put_number;
use super::rooms::{count, fields, put_fields};
use crate::code::{Code, Refusal};
use crate::name::{TokenName, UserName};

/// The commands that a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything but the administration of the account.
    All,
    /// Receiving, and reading of rooms.
    Receive,
    /// Sending to anyone.
    Send,
    /// Sending to one recipient: a user or a room.
    SendTo(UserName),
}

/// An invalid scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a scope is all, receive, send, or send: and a user or a room")]
pub struct BadScope;

impl Scope {
    const ALL: &'static str = "all";
    const RECEIVE: &'static str = "receive";
    const SEND: &'static str = "send";
    const SEND_TO: &'static str = "send:";
}

impl FromStr for Scope {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        match text {
            Self::ALL => Ok(Self::All),
            Self::RECEIVE => Ok(Self::Receive),
            Self::SEND => Ok(Self::Send),
            _ => {
                let to = text.strip_prefix(Self::SEND_TO).ok_or(BadScope)?;
                to.parse().map(Self::SendTo).map_err(|_| BadScope)
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str(Self::ALL),
            Self::Receive => f.write_str(Self::RECEIVE),
            Self::Send => f.write_str(Self::SEND),
            Self::SendTo(to) => write!(f, "{}{to}", Self::SEND_TO),
        }
    }
}

impl From<BadScope> for Refusal {
    fn from(bad: BadScope) -> Self {
        Self::new(Code::BadRequest, bad.to_string())
    }
}

/// A token in the answer to `tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEntry {
    /// The name.
    pub name: TokenName,
    /// The scope.
    pub scope: Scope,
    /// The time of its last use in milliseconds since the Unix epoch, up to an hour old; 0
    /// if it was never used.
    pub used_ms: u64,
}

impl TokenEntry {
    pub(super) fn write(&self, to: &mut BytesMut) {
        put_fields(to, &[self.name.as_str(), &self.scope.to_string(), ""]);
        put_number(to, self.used_ms);
    }

    pub(super) fn parse(payload: &str) -> Result<Self, Refusal> {
        let [name, scope, used] = fields(payload, "token takes a name, a scope and a time")?;
        Ok(Self {
            name: name.parse()?,
            scope: scope.parse()?,
            used_ms: count(used)?,
        })
    }
}

/// Parses the fields of the request `token`.
pub(super) fn parse_token(payload: &str) -> Result<(TokenName, Scope), Refusal> {
    let [name, scope] = fields(payload, "token takes a name and a scope")?;
    Ok((token_name(name)?, scope.parse()?))
}

/// Parses the name of a token.
pub(super) fn token_name(payload: &str) -> Result<TokenName, Refusal> {
    if payload.is_empty() {
        return Err(bad_request("the name of the token is missing"));
    }
    Ok(payload.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_is_written_as_it_is_read() {
        for text in [
            "all",
            "receive",
            "send",
            "send:bob",
            "send:#team",
            "send:send:x",
        ] {
            let scope: Scope = text.parse().unwrap();
            assert_eq!(scope.to_string(), text);
        }
        for text in ["", "All", "sen", "send:", "send:a b", "receive:bob"] {
            assert_eq!(text.parse::<Scope>(), Err(BadScope), "{text:?}");
        }
    }
}
