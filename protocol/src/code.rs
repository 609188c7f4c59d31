//! The codes of refusals, failures and `bye`, each with its word on the wire.
//! Independent of the messages that carry them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::name::{BadDeviceName, BadName, BadPassword, BadRoomName, BadToken, BadTokenName};

/// The reason why a connection stops receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByeReason {
    /// Another connection has become the receiver of the user.
    TakenOver,
    /// The account was deleted.
    Deleted,
    /// The server is shutting down and closes the connection next.
    Shutdown,
}

impl ByeReason {
    const ALL: [Self; 3] = [Self::TakenOver, Self::Deleted, Self::Shutdown];

    /// Returns the reason with this word on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// Returns the word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TakenOver => "taken-over",
            Self::Deleted => "deleted",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The kind of an `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The outcome is unknown; the client may retry.
    Unavailable,
    /// The peer violated the protocol; the server closes the connection next.
    Protocol,
}

impl Failure {
    const ALL: [Self; 2] = [Self::Unavailable, Self::Protocol];

    /// Returns the code with this word on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// Returns the word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Protocol => "protocol",
        }
    }
}

/// Separates the seconds to wait from the cause in the explanation of a
/// [`Code::RateLimited`].
const RATE_LIMIT_SEPARATOR: &str = " s to wait: ";

/// A refused request. The server changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {explanation}")]
pub struct Refusal {
    /// Machine-readable code.
    pub code: Code,
    /// Human-readable cause and remedy.
    pub explanation: Cow<'static, str>,
}

impl Refusal {
    /// Returns a refusal with a code and an explanation.
    pub fn new(code: Code, explanation: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            explanation: explanation.into(),
        }
    }

    /// Parses the fields of a `notok`. A word that this version does not know
    /// becomes [`Code::Unknown`]; the explanation then begins with the word and
    /// a comma.
    #[must_use]
    pub fn parse(word: &str, explanation: &str) -> Self {
        match Code::parse(word) {
            Some(code) => Self::new(code, explanation.to_owned()),
            None if explanation.is_empty() => Self::new(Code::Unknown, word.to_owned()),
            None => Self::new(Code::Unknown, format!("{word},{explanation}")),
        }
    }

    /// Returns the two fields of a `notok`: the word of the code, and the
    /// explanation.
    #[must_use]
    pub fn fields(&self) -> (&str, &str) {
        match self.code {
            Code::Unknown => self
                .explanation
                .split_once(',')
                .unwrap_or((&self.explanation, "")),
            code => (code.as_str(), &self.explanation),
        }
    }

    /// Returns the explanation as a sentence for human readers.
    #[must_use]
    pub fn message(&self) -> Cow<'_, str> {
        match (self.code, self.fields()) {
            (Code::Unknown, (word, explanation)) if !explanation.is_empty() => {
                format!("{explanation} ({word})").into()
            }
            (Code::RateLimited, (_, explanation)) => {
                match explanation.split_once(RATE_LIMIT_SEPARATOR) {
                    Some((seconds, why)) => format!("{why}; try again in {seconds} s").into(),
                    None => explanation.into(),
                }
            }
            _ => (&*self.explanation).into(),
        }
    }

    /// Returns a [`Code::RateLimited`] refusal with the cause `why`, to be
    /// retried after `wait`, rounded up to whole seconds.
    #[must_use]
    pub fn rate_limited(wait: Duration, why: &str) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::new(
            Code::RateLimited,
            format!("{seconds}{RATE_LIMIT_SEPARATOR}{why}"),
        )
    }

    /// Returns the wait that a [`Code::RateLimited`] refusal asks for; `None`
    /// for any other code, or if the explanation names no wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if self.code != Code::RateLimited {
            return None;
        }
        let seconds = self
            .explanation
            .split(|c: char| !c.is_ascii_digit())
            .next()?;
        seconds.parse().ok().map(Duration::from_secs)
    }
}

impl From<BadName> for Refusal {
    fn from(bad: BadName) -> Self {
        Self::new(Code::BadName, bad.to_string())
    }
}

impl From<BadRoomName> for Refusal {
    fn from(bad: BadRoomName) -> Self {
        Self::new(Code::BadName, bad.to_string())
    }
}

impl From<BadDeviceName> for Refusal {
    fn from(bad: BadDeviceName) -> Self {
        Self::new(Code::BadName, bad.to_string())
    }
}

impl From<BadTokenName> for Refusal {
    fn from(bad: BadTokenName) -> Self {
        Self::new(Code::BadName, bad.to_string())
    }
}

impl From<BadPassword> for Refusal {
    fn from(bad: BadPassword) -> Self {
        Self::new(Code::BadPassword, bad.to_string())
    }
}

impl From<BadToken> for Refusal {
    fn from(bad: BadToken) -> Self {
        Self::new(Code::BadRequest, bad.to_string())
    }
}

/// The codes of a `notok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The command does not exist.
    UnknownCommand,
    /// A field is missing or malformed.
    BadRequest,
    /// The user name is malformed.
    BadName,
    /// The password is malformed.
    BadPassword,
    /// The pattern is not a valid regular expression.
    BadPattern,
    /// The account exists already.
    Exists,
    /// The account does not exist.
    NoSuchUser,
    /// The password is wrong or missing, or the caller lacks the right.
    Denied,
    /// The text is too long.
    TooLarge,
    /// The recipient's inbox is full.
    QueueFull,
    /// The caller is too fast; the explanation begins with the seconds to wait.
    RateLimited,
    /// A configured limit of the server is reached.
    TooMany,
    /// The server's disk is nearly full. The refusal is not remembered: a
    /// repeat of the send may be stored.
    NoSpace,
    /// A code of a later protocol version, at a client (see
    /// [`Refusal::parse`]). Servers never send it.
    Unknown,
}

impl Code {
    /// Every code of the protocol, in the order of [`Self::index`].
    pub const ALL: [Self; 13] = [
        Self::UnknownCommand,
        Self::BadRequest,
        Self::BadName,
        Self::BadPassword,
        Self::BadPattern,
        Self::Exists,
        Self::NoSuchUser,
        Self::Denied,
        Self::TooLarge,
        Self::QueueFull,
        Self::RateLimited,
        Self::TooMany,
        Self::NoSpace,
    ];

    /// Returns the index in [`Self::ALL`]. Stores persist it, so new codes
    /// are appended. [`Self::Unknown`] has an index after them.
    #[must_use]
    pub const fn index(self) -> u8 {
        self as u8
    }

    /// Returns the code with this word on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// Returns the word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownCommand => "unknown-command",
            Self::BadRequest => "bad-request",
            Self::BadName => "bad-name",
            Self::BadPassword => "bad-password",
            Self::BadPattern => "bad-pattern",
            Self::Exists => "exists",
            Self::NoSuchUser => "no-such-user",
            Self::Denied => "denied",
            Self::TooLarge => "too-large",
            Self::QueueFull => "queue-full",
            Self::RateLimited => "rate-limited",
            Self::TooMany => "too-many",
            Self::NoSpace => "no-space",
            Self::Unknown => "unknown-code",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_of_a_code_is_its_place() {
        for (place, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(code.index()), place, "{code}");
        }
        assert_eq!(usize::from(Code::Unknown.index()), Code::ALL.len());
    }

    #[test]
    fn rate_limit_names_its_wait() {
        let refusal = Refusal::rate_limited(Duration::from_millis(6001), "too many passwords");
        assert_eq!(
            refusal.to_string(),
            "rate-limited: 7 s to wait: too many passwords"
        );
        assert_eq!(refusal.message(), "too many passwords; try again in 7 s");
        assert_eq!(refusal.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(
            Refusal::new(Code::RateLimited, "3").retry_after(),
            Some(Duration::from_secs(3))
        );
        assert_eq!(Refusal::new(Code::RateLimited, "later").retry_after(), None);
        assert_eq!(
            Refusal::new(Code::TooMany, "7 accounts").retry_after(),
            None
        );
    }

    #[test]
    fn unknown_code_is_a_refusal_with_its_word() {
        let refusal = Refusal::parse("out-of-tea", "come back at five");
        assert_eq!(refusal.code, Code::Unknown);
        assert_eq!(refusal.fields(), ("out-of-tea", "come back at five"));
        assert_eq!(
            refusal.to_string(),
            "unknown-code: out-of-tea,come back at five"
        );
        assert_eq!(refusal.message(), "come back at five (out-of-tea)");
        assert_eq!(
            Refusal::parse("unknown-code", "x").code,
            Code::Unknown,
            "no server writes it"
        );
        for code in Code::ALL {
            assert_eq!(
                Refusal::parse(code.as_str(), "why"),
                Refusal::new(code, "why")
            );
        }
    }
}
