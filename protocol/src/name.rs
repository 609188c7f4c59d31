//! The scalar types of messages. Each has one fallible parser, and every value
//! is valid.

use std::borrow::Borrow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::limits::{
    DEVICE_NAME_BYTES_MAX, PASSWORD_BYTES_MAX, ROOM_NAME_BYTES_MAX, SESSION_TOKEN_BYTES_MAX,
    TOKEN_NAME_BYTES_MAX, USER_NAME_BYTES_MAX,
};

/// A user name: 1 to 64 bytes of UTF-8 without commas, white space or control
/// characters. Names are compared byte for byte. Clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(Arc<str>);

/// An invalid user name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// The text is empty.
    #[error("a user name cannot be empty")]
    Empty,
    /// The text is longer than [`USER_NAME_BYTES_MAX`].
    #[error("a user name has at most {USER_NAME_BYTES_MAX} bytes; this one has {0}")]
    TooLong(usize),
    /// The text contains a forbidden character.
    #[error("a user name cannot contain {0:?}")]
    Forbidden(char),
    /// A new account has a reserved first character; see [`UserName::check_new`].
    #[error("a user name cannot begin with {0:?}")]
    Reserved(char),
}

impl UserName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that a new account may have this name. It must not begin with
    /// `#`, which is reserved for rooms, or `(`, as in `(anonymous)`. Older
    /// accounts stay usable.
    ///
    /// # Errors
    /// [`BadName::Reserved`].
    pub fn check_new(&self) -> Result<(), BadName> {
        match self.0.chars().next() {
            Some(first @ ('#' | '(')) => Err(BadName::Reserved(first)),
            _ => Ok(()),
        }
    }
}

impl FromStr for UserName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        if text.is_empty() {
            return Err(BadName::Empty);
        }
        if text.len() > USER_NAME_BYTES_MAX {
            return Err(BadName::TooLong(text.len()));
        }
        match text
            .chars()
            .find(|&c| c == ',' || c.is_whitespace() || c.is_control())
        {
            Some(c) => Err(BadName::Forbidden(c)),
            None => Ok(Self(text.into())),
        }
    }
}

impl Borrow<str> for UserName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A room name: `#` and 1 to 63 bytes of letters, digits, `-`, `_` and `.`, compared byte
/// for byte; or the name of the conversation of two users, `#=` and 26 characters of
/// base32. Clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomName(Arc<str>);

/// An invalid room name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRoomName {
    /// The text does not begin with `#`.
    #[error("a room name begins with #")]
    NoMark,
    /// Nothing follows the `#`.
    #[error("a room name has at least one character after its #")]
    Empty,
    /// The text is longer than [`ROOM_NAME_BYTES_MAX`].
    #[error("a room name has at most {ROOM_NAME_BYTES_MAX} bytes; this one has {0}")]
    TooLong(usize),
    /// The text contains a forbidden character.
    #[error("a room name has letters, digits, -, _ and . after its #, not {0:?}")]
    Forbidden(char),
}

impl RoomName {
    /// The first character of every room name.
    pub const MARK: char = '#';

    /// The beginning of the name of a conversation of two.
    const CONVERSATION: &str = "#=";

    /// Length of a digest in the name of a conversation, in characters.
    const DIGEST_CHARS: usize = 26;

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this is the name of a conversation of two.
    #[must_use]
    pub fn is_conversation(&self) -> bool {
        self.0.starts_with(Self::CONVERSATION)
    }

    /// Returns the name of the conversation whose users have this digest: the SHA-256 of
    /// the smaller name, a zero byte, and the larger name. Its first 130 bits count.
    #[must_use]
    pub fn conversation(digest: &[u8; 32]) -> Self {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut name = String::from(Self::CONVERSATION);
        let (mut bits, mut count) = (0_u32, 0);
        for &byte in digest {
            (bits, count) = (bits << 8 | u32::from(byte), count + 8);
            while count >= 5 {
                count -= 5;
                let place = (bits >> count) as usize % ALPHABET.len();
                name.extend(ALPHABET.get(place).map(|&letter| char::from(letter)));
            }
        }
        name.truncate(Self::CONVERSATION.len() + Self::DIGEST_CHARS);
        Self(name.into())
    }
}

impl FromStr for RoomName {
    type Err = BadRoomName;

    fn from_str(text: &str) -> Result<Self, BadRoomName> {
        let rest = text.strip_prefix(Self::MARK).ok_or(BadRoomName::NoMark)?;
        if text.len() > ROOM_NAME_BYTES_MAX {
            return Err(BadRoomName::TooLong(text.len()));
        }
        if let Some(digest) = text.strip_prefix(Self::CONVERSATION) {
            let is_base32 = |b: u8| matches!(b, b'A'..=b'Z' | b'2'..=b'7');
            return if digest.len() == Self::DIGEST_CHARS && digest.bytes().all(is_base32) {
                Ok(Self(text.into()))
            } else {
                Err(BadRoomName::Forbidden('='))
            };
        }
        let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        match rest.chars().find(|&c| !is_allowed(c)) {
            _ if rest.is_empty() => Err(BadRoomName::Empty),
            Some(c) => Err(BadRoomName::Forbidden(c)),
            None => Ok(Self(text.into())),
        }
    }
}

impl Borrow<str> for RoomName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Defines a name of 1 to 32 characters of `A-Za-z0-9_-`, and the error of an invalid one.
macro_rules! word_name {
    ($(#[$doc:meta])+ $name:ident, $what:literal, $bad:ident, $bytes_max:ident) => {
        $(#[$doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        #[doc = concat!("A text that is not ", $what, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[error("{} is 1 to {} characters of A-Z, a-z, 0-9, _ and -", $what, $bytes_max)]
        pub struct $bad;

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = $bad;

            fn from_str(text: &str) -> Result<Self, $bad> {
                if is_word(text, $bytes_max) {
                    Ok(Self(text.into()))
                } else {
                    Err($bad)
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

word_name!(
    /// The name of a device of a user: 1 to 32 characters of `A-Za-z0-9_-`. Clones share the
    /// text.
    DeviceName,
    "a device",
    BadDeviceName,
    DEVICE_NAME_BYTES_MAX
);

word_name!(
    /// The name of a token of a user: 1 to 32 characters of `A-Za-z0-9_-`. Clones share the
    /// text.
    TokenName,
    "a token name",
    BadTokenName,
    TOKEN_NAME_BYTES_MAX
);

/// Returns whether a text has 1 to `bytes_max` characters of `A-Za-z0-9_-`.
fn is_word(text: &str, bytes_max: usize) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// A password: 1 to 256 bytes of UTF-8 without commas or control characters. It
/// is wiped from memory on drop, hidden by `Debug`, and compared in constant
/// time if the lengths are equal.
#[derive(Clone, Eq)]
pub struct Password(Zeroizing<String>);

/// An invalid password. The error never contains any part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPassword {
    /// The text is empty.
    #[error("a password cannot be empty")]
    Empty,
    /// The text is longer than [`PASSWORD_BYTES_MAX`].
    #[error("a password has at most {PASSWORD_BYTES_MAX} bytes; this one has {0}")]
    TooLong(usize),
    /// The text contains a comma or a control character.
    #[error("a password cannot contain commas or control characters")]
    Forbidden,
}

impl Password {
    /// Returns the password in plain text, for hashing and encoding.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Password {
    type Err = BadPassword;

    fn from_str(text: &str) -> Result<Self, BadPassword> {
        if text.is_empty() {
            return Err(BadPassword::Empty);
        }
        if text.len() > PASSWORD_BYTES_MAX {
            return Err(BadPassword::TooLong(text.len()));
        }
        if text.chars().any(|c| c == ',' || c.is_control()) {
            return Err(BadPassword::Forbidden);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The token of a send session: 1 to 64 characters of `A-Za-z0-9_-`, generated
/// at random by the client and kept secret. Anyone who knows it can end the
/// session, so `Debug` shows only its beginning.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionToken(Arc<str>);

/// An invalid session token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session is 1 to {SESSION_TOKEN_BYTES_MAX} characters of A-Z, a-z, 0-9, _ and -")]
pub struct BadToken;

impl SessionToken {
    /// Returns the token as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        if is_word(text, SESSION_TOKEN_BYTES_MAX) {
            Ok(Self(text.into()))
        } else {
            Err(BadToken)
        }
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionToken({}..)", self.0.get(..4).unwrap_or_default())
    }
}

/// The id of a request: chosen by the client, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(NonZeroU32);

impl RequestId {
    /// Returns an id, or `None` for 0, which on the wire means "no id".
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// Returns the id as a number.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The sequence number of a message: strictly increasing for each recipient,
/// with gaps, and never used twice for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_name(text: &str, expected: Result<(), BadName>) {
        assert_eq!(
            text.parse::<UserName>()
                .map(|name| assert_eq!(name.as_str(), text)),
            expected
        );
    }

    #[test]
    fn user_name_bounds_and_characters_are_checked() {
        check_name("bob", Ok(()));
        check_name("Zoë-🦀.$", Ok(()));
        check_name(&"x".repeat(64), Ok(()));
        check_name("", Err(BadName::Empty));
        check_name(&"x".repeat(65), Err(BadName::TooLong(65)));
        check_name(&"ë".repeat(33), Err(BadName::TooLong(66)));
        check_name("a,b", Err(BadName::Forbidden(',')));
        check_name("a b", Err(BadName::Forbidden(' ')));
        check_name("a\u{a0}b", Err(BadName::Forbidden('\u{a0}')));
        check_name("a\0", Err(BadName::Forbidden('\0')));
        check_name("a\u{9b}", Err(BadName::Forbidden('\u{9b}')));
    }

    #[test]
    fn new_name_has_no_reserved_first_character() {
        let check = |text: &str| text.parse::<UserName>().unwrap().check_new();
        assert_eq!(check("(anonymous)"), Err(BadName::Reserved('(')));
        assert_eq!(check("#room"), Err(BadName::Reserved('#')));
        assert_eq!(check("bob(#)"), Ok(()));
    }

    #[test]
    fn room_name_bounds_and_characters_are_checked() {
        let check = |text: &str| text.parse::<RoomName>().map(|name| name.to_string());
        for good in [
            "#a",
            "#team-7_b.c",
            "#büro",
            &format!("#{}", "x".repeat(63)),
        ] {
            assert_eq!(check(good), Ok(good.to_owned()));
        }
        assert_eq!(check("team"), Err(BadRoomName::NoMark));
        assert_eq!(check(""), Err(BadRoomName::NoMark));
        assert_eq!(check("#"), Err(BadRoomName::Empty));
        let long = format!("#{}", "x".repeat(64));
        assert_eq!(check(&long), Err(BadRoomName::TooLong(65)));
        for c in ['#', ',', ' ', '=', '\0', '/'] {
            assert_eq!(check(&format!("#a{c}")), Err(BadRoomName::Forbidden(c)));
        }
        assert_eq!(check("#=team"), Err(BadRoomName::Forbidden('=')));
    }

    #[test]
    fn conversation_name_is_base32_of_its_digest() {
        let mut digest = [0; 32];
        for (byte, text) in digest.iter_mut().zip(b"foobarfoobarfoobar") {
            *byte = *text;
        }
        let name = RoomName::conversation(&digest);
        // RFC 4648 encodes "foobarfoob" as MZXW6YTBOJTG633C.
        assert_eq!(name.as_str(), "#=MZXW6YTBOJTG633CMFZGM33PMJ");
        assert!(name.is_conversation());
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!(!"#team".parse::<RoomName>().unwrap().is_conversation());
        let lower = name.as_str().to_lowercase();
        assert_eq!(lower.parse::<RoomName>(), Err(BadRoomName::Forbidden('=')));
    }

    #[test]
    fn device_name_is_checked() {
        assert_eq!(
            "Phone_2-b".parse::<DeviceName>().unwrap().as_str(),
            "Phone_2-b"
        );
        for bad in ["", "a b", "a,b", "é", &"x".repeat(33)] {
            assert_eq!(bad.parse::<DeviceName>(), Err(BadDeviceName), "{bad:?}");
        }
    }

    #[test]
    fn password_is_checked_and_never_shown() {
        assert!("correct horse".parse::<Password>().is_ok());
        assert_eq!("".parse::<Password>(), Err(BadPassword::Empty));
        assert_eq!("a,b".parse::<Password>(), Err(BadPassword::Forbidden));
        assert_eq!("a\nb".parse::<Password>(), Err(BadPassword::Forbidden));
        assert_eq!(
            "x".repeat(257).parse::<Password>(),
            Err(BadPassword::TooLong(257))
        );
        let password: Password = "hunter2".parse().unwrap();
        assert_eq!(password, "hunter2".parse().unwrap());
        for other in ["hunter3", "hunter", "hunter22"] {
            assert_ne!(password, other.parse().unwrap(), "{other}");
        }
        assert_eq!(format!("{password:?}"), "Password(..)");
    }

    #[test]
    fn session_token_is_checked_and_mostly_hidden() {
        assert!("A-z_09".parse::<SessionToken>().is_ok());
        for bad in ["", "a b", "a,b", "é", &"x".repeat(65)] {
            assert_eq!(bad.parse::<SessionToken>(), Err(BadToken), "{bad:?}");
        }
        let token: SessionToken = "abcdefgh".parse().unwrap();
        assert_eq!(format!("{token:?}"), "SessionToken(abcd..)");
    }
}
