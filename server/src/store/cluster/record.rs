//! Formats of the records in the streams, and their subjects.
//!
//! | subject | stream | content |
//! | --- | --- | --- |
//! | `CHAT.account.NAME` | `CHAT-accounts` | an account, or the end of one |
//! | `CHAT.inbox.SHARD.NAME.INCARNATION` | `CHAT-inbox-SHARD` | messages, and the end marker |
//! | `CHAT.inbox.SHARD.NAME.0` | `CHAT-inbox-SHARD` | refused sends |
//! | `CHAT.state.NAME.INCARNATION` | `CHAT-state` | the cursor, and the current receiver |
//! | `CHAT.user.NAME.INCARNATION.EVENT` | none | notifications for the receiver |
//!
//! NAME is the name in unpadded base64 with the alphabet for URLs, because subjects allow
//! few characters. INCARNATION is the sequence of the message that created the account.
//! Integers are big endian, and each record begins with its version.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use bytestring::ByteString;
use hark_protocol::{Code, Sequence, UserName};

use crate::store::{Account, Message, PasswordHash, Position};

const VERSION: u8 = 1;

/// The incarnation of no account: sequences begin at 1.
const NO_ACCOUNT: u64 = 0;

/// A record that no known version of this store has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the cluster is damaged, or of a newer version of Hark")]
pub(super) struct Damaged;

/// The names of streams and subjects of one chat.
#[derive(Debug, Clone)]
pub(super) struct Names {
    chat: String,
    shards: u64,
}

/// A notification for the receiver of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// A message was stored. The notification carries it.
    Message,
    /// The state of the account has changed. The notification carries the record.
    State,
    /// A message may have been stored without a notification.
    Stored,
    /// The account has ended.
    Ended,
    /// Another server asks the receiver to yield.
    Yield,
    /// Another server asks whether there is a receiver.
    Probe,
}

impl Names {
    /// Returns the names of the chat `chat` with `shards` message streams.
    pub(super) fn new(chat: &str, shards: u64) -> Self {
        Self { chat: chat.to_owned(), shards: shards.max(1) }
    }

    pub(super) const fn shards(&self) -> u64 {
        self.shards
    }

    pub(super) fn accounts_stream(&self) -> String {
        format!("{}-accounts", self.chat)
    }

    pub(super) fn accounts(&self) -> String {
        format!("{}.account.*", self.chat)
    }

    pub(super) fn account(&self, name: &UserName) -> String {
        format!("{}.account.{}", self.chat, token(name))
    }

    /// Returns the account name in a subject of the account stream.
    pub(super) fn parse_account(&self, subject: &str) -> Result<UserName, Damaged> {
        let token = subject.strip_prefix(&self.chat).and_then(|rest| rest.strip_prefix(".account."));
        parse_token(token.ok_or(Damaged)?)
    }

    pub(super) fn state_stream(&self) -> String {
        format!("{}-state", self.chat)
    }

    pub(super) fn states(&self) -> String {
        format!("{}.state.*.*", self.chat)
    }

    pub(super) fn state(&self, account: &Account) -> String {
        format!("{}.state.{}", self.chat, key(account))
    }

    pub(super) fn inbox_stream(&self, shard: u64) -> String {
        format!("{}-inbox-{shard}", self.chat)
    }

    pub(super) fn inbox_stream_of(&self, name: &UserName) -> String {
        self.inbox_stream(self.shard(name))
    }

    pub(super) fn inboxes(&self, shard: u64) -> String {
        format!("{}.inbox.{shard}.*.*", self.chat)
    }

    pub(super) fn inbox(&self, account: &Account) -> String {
        format!("{}.inbox.{}.{}", self.chat, self.shard(&account.name), key(account))
    }

    /// Returns the subject of refused sends to a name. It is in the stream of the
    /// inboxes, because the engine deduplicates ids within a stream.
    pub(super) fn refusals(&self, name: &UserName) -> String {
        self.inbox(&Account { name: name.clone(), incarnation: NO_ACCOUNT })
    }

    /// Returns the account of an inbox subject. The subject of refusals has no account.
    pub(super) fn parse_inbox(&self, subject: &str) -> Result<Account, Damaged> {
        let rest = subject.strip_prefix(&self.chat).and_then(|rest| rest.strip_prefix(".inbox."));
        let mut tokens = rest.ok_or(Damaged)?.split('.').skip(1);
        let name = parse_token(tokens.next().ok_or(Damaged)?)?;
        let incarnation = tokens.next().and_then(|text| text.parse().ok()).ok_or(Damaged)?;
        if incarnation == NO_ACCOUNT { Err(Damaged) } else { Ok(Account { name, incarnation }) }
    }

    /// Returns a subject pattern for all notifications for the receiver of an account.
    pub(super) fn told(&self, account: &Account) -> String {
        format!("{}.user.{}.*", self.chat, key(account))
    }

    /// Returns a subject pattern for the ends of all accounts.
    pub(super) fn ends(&self) -> String {
        format!("{}.user.*.*.{}", self.chat, Told::Ended.as_str())
    }

    pub(super) fn tell(&self, account: &Account, told: Told) -> String {
        format!("{}.user.{}.{}", self.chat, key(account), told.as_str())
    }

    /// Returns the subject template under which the engine republishes stored messages.
    pub(super) fn republished(&self, told: Told) -> String {
        format!("{}.user.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}.{}", self.chat, told.as_str())
    }

    /// Hashes with FNV-1a, because the result must be the same in every version and on
    /// every machine.
    pub(super) fn shard(&self, name: &UserName) -> u64 {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let hash =
            name.as_str().bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        hash % self.shards
    }
}

impl Told {
    const ALL: [Self; 6] = [Self::Message, Self::State, Self::Stored, Self::Ended, Self::Yield, Self::Probe];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::State => "state",
            Self::Stored => "stored",
            Self::Ended => "ended",
            Self::Yield => "yield",
            Self::Probe => "probe",
        }
    }

    /// Parses the last part of a subject.
    pub(super) fn of_subject(subject: &str) -> Option<Self> {
        let (_, last) = subject.rsplit_once('.')?;
        Self::ALL.into_iter().find(|told| told.as_str() == last)
    }
}

fn token(name: &UserName) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(name.as_str())
}

fn parse_token(token: &str) -> Result<UserName, Damaged> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| Damaged)?;
    String::from_utf8(bytes).ok().and_then(|name| name.parse().ok()).ok_or(Damaged)
}

fn key(account: &Account) -> String {
    format!("{}.{}", token(&account.name), account.incarnation)
}

/// The record of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AccountRecord {
    /// A random number for each change, by which its writer recognizes it after a lost
    /// answer.
    pub(super) mark: u64,
    pub(super) is: Existence,
}

/// Whether an account exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Existence {
    Alive(AliveRecord),
    /// The account has ended. It had this incarnation.
    Ended(u64),
}

/// An existing account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AliveRecord {
    /// The sequence of the record that created the account; `None` in that record itself.
    pub(super) made_by: Option<u64>,
    pub(super) password: Option<PasswordHash>,
}

impl AliveRecord {
    /// Returns the incarnation, given the sequence of this record.
    pub(super) fn incarnation(&self, sequence: u64) -> u64 {
        self.made_by.unwrap_or(sequence)
    }
}

impl AccountRecord {
    /// Returns the incarnation of the existing account, given the sequence of this
    /// record.
    pub(super) fn incarnation(&self, sequence: u64) -> Option<u64> {
        match &self.is {
            Existence::Alive(alive) => Some(alive.incarnation(sequence)),
            Existence::Ended(_) => None,
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(VERSION);
        bytes.put_u64(self.mark);
        match &self.is {
            Existence::Ended(incarnation) => {
                bytes.put_u8(0);
                bytes.put_u64(*incarnation);
            }
            Existence::Alive(AliveRecord { made_by, password }) => {
                bytes.put_u8(1);
                bytes.put_u64(made_by.unwrap_or(0));
                bytes.put_slice(password.as_ref().map_or(b"", |hash| hash.as_str().as_bytes()));
            }
        }
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Damaged> {
        if bytes.try_get_u8() != Ok(VERSION) {
            return Err(Damaged);
        }
        let mark = bytes.try_get_u64().map_err(|_| Damaged)?;
        match bytes.try_get_u8() {
            Ok(0) if bytes.len() == 8 => {
                let incarnation = bytes.try_get_u64().map_err(|_| Damaged)?;
                Ok(Self { mark, is: Existence::Ended(incarnation) })
            }
            Ok(1) => {
                let made_by = bytes.try_get_u64().map_err(|_| Damaged)?;
                let password = std::str::from_utf8(bytes).map_err(|_| Damaged)?;
                let alive = AliveRecord {
                    made_by: (made_by > 0).then_some(made_by),
                    password: (!password.is_empty()).then(|| PasswordHash::new(password)),
                };
                Ok(Self { mark, is: Existence::Alive(alive) })
            }
            _ => Err(Damaged),
        }
    }
}

/// The cursor of an inbox, and its latest receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct State {
    pub(super) cursor: Position,
    /// A random id chosen by the receiving server; 0 for none.
    pub(super) reception: u64,
}

impl State {
    pub(super) fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(33);
        bytes.put_u8(VERSION);
        bytes.put_u64(self.cursor.sequence.0);
        bytes.put_u64(self.cursor.messages);
        bytes.put_u64(self.cursor.bytes);
        bytes.put_u64(self.reception);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Damaged> {
        if bytes.len() != 33 || bytes.try_get_u8() != Ok(VERSION) {
            return Err(Damaged);
        }
        let mut next = || bytes.try_get_u64().map_err(|_| Damaged);
        let cursor = Position { sequence: Sequence(next()?), messages: next()?, bytes: next()? };
        Ok(Self { cursor, reception: next()? })
    }
}

/// Encodes the refusal of a send.
pub(super) fn encode_refusal(code: Code) -> Bytes {
    [&[VERSION], code.as_str().as_bytes()].concat().into()
}

/// Decodes the code of a refusal.
pub(super) fn decode_refusal(bytes: &[u8]) -> Result<Code, Damaged> {
    let (version, code) = bytes.split_first().ok_or(Damaged)?;
    let code = std::str::from_utf8(code).ok().and_then(Code::parse);
    code.filter(|_| *version == VERSION).ok_or(Damaged)
}

/// The end marker, the last message in the inbox of a deleted account. An append by a
/// server that has not learned of the deletion fails on it.
pub(super) const END: &[u8] = &[VERSION];

/// A message to an inbox, before it has a sequence.
#[derive(Debug)]
pub(super) struct Letter<'a> {
    /// Count of all messages of this inbox, including this one.
    pub(super) messages: u64,
    /// Sum of all bytes of this inbox, including this one.
    pub(super) bytes: u64,
    pub(super) time_ms: u64,
    pub(super) sender: Option<&'a UserName>,
    pub(super) text: &'a str,
}

impl Letter<'_> {
    pub(super) fn encode(&self) -> Bytes {
        let sender = self.sender.map_or("", UserName::as_str);
        let mut bytes = BytesMut::with_capacity(26 + sender.len() + self.text.len());
        bytes.put_u8(VERSION);
        bytes.put_u64(self.messages);
        bytes.put_u64(self.bytes);
        bytes.put_u64(self.time_ms);
        // A name has at most 64 bytes.
        bytes.put_u8(u8::try_from(sender.len()).unwrap_or(u8::MAX));
        bytes.put_slice(sender.as_bytes());
        bytes.put_slice(self.text.as_bytes());
        bytes.freeze()
    }
}

/// Decodes a message with the sequence `sequence`.
pub(super) fn decode_message(sequence: u64, mut bytes: Bytes) -> Result<Message, Damaged> {
    if bytes.try_get_u8() != Ok(VERSION) {
        return Err(Damaged);
    }
    let mut next = || bytes.try_get_u64().map_err(|_| Damaged);
    let (messages, sum, time_ms) = (next()?, next()?, next()?);
    let sender_bytes = usize::from(bytes.try_get_u8().map_err(|_| Damaged)?);
    if sender_bytes > bytes.len() {
        return Err(Damaged);
    }
    let sender = bytes.split_to(sender_bytes);
    let sender = std::str::from_utf8(&sender).map_err(|_| Damaged)?;
    let sender = if sender.is_empty() { None } else { Some(sender.parse().map_err(|_| Damaged)?) };
    let text = ByteString::try_from(bytes).map_err(|_| Damaged)?;
    let position = Position { sequence: Sequence(sequence), messages, bytes: sum };
    Ok(Message { position, sender, time_ms, text })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(name: &str, incarnation: u64) -> Account {
        Account { name: name.parse().unwrap(), incarnation }
    }

    #[test]
    fn subjects_name_whom_they_are_for() {
        let names = Names::new("hark", 4);
        for name in ["bob", "ä.*>", "a/b~c", &"x".repeat(64)] {
            let account = account(name, 7);
            assert_eq!(names.parse_account(&names.account(&account.name)), Ok(account.name.clone()));
            let inbox = names.inbox(&account);
            assert_eq!(names.parse_inbox(&inbox), Ok(account));
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            assert!(inbox.chars().all(allowed), "{inbox}");
        }
        let refusals = names.refusals(&"bob".parse().unwrap());
        for subject in
            [&*refusals, "", "hark.inbox", "hark.inbox.1.Ym9i", "hark.inbox.1.!.3", "other.inbox.1.Ym9i.3"]
        {
            assert_eq!(names.parse_inbox(subject), Err(Damaged), "{subject}");
        }
    }

    #[test]
    fn a_name_is_always_in_the_same_stream() {
        let names = Names::new("hark", 32);
        // A change here would make all messages of existing stores unreachable.
        assert_eq!(names.inbox(&account("bob", 7)), "hark.inbox.20.Ym9i.7");
    }

    #[test]
    fn what_is_told_is_in_the_last_part() {
        let names = Names::new("hark", 32);
        for told in Told::ALL {
            assert_eq!(Told::of_subject(&names.tell(&account("bob", 7), told)), Some(told));
        }
        assert_eq!(Told::of_subject("hark.user.Ym9i.7.other"), None);
    }

    #[test]
    fn accounts_are_read_as_they_were_written() {
        let alive = |made_by, password| Existence::Alive(AliveRecord { made_by, password });
        let ended = Existence::Ended(7);
        for is in [ended.clone(), alive(None, None), alive(Some(9), Some(PasswordHash::new("$argon2")))] {
            let record = AccountRecord { mark: 3, is };
            let bytes = record.encode();
            assert_eq!(AccountRecord::decode(&bytes), Ok(record));
            assert_eq!(AccountRecord::decode(&bytes[..9]), Err(Damaged));
        }
        let ended = AccountRecord { mark: 3, is: ended }.encode();
        for (at, byte) in [(0, 2), (9, 2)] {
            let mut damaged = ended.to_vec();
            damaged[at] = byte;
            assert_eq!(AccountRecord::decode(&damaged), Err(Damaged));
        }
        assert_eq!(AccountRecord::decode(&[&*ended, &[0]].concat()), Err(Damaged));
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(
            sums: (u64, u64),
            time_ms: u64,
            sender in proptest::option::of("[a-zä]{1,20}"),
            text: String,
        ) {
            let sender: Option<UserName> = sender.map(|name| name.parse().unwrap());
            let (messages, bytes) = sums;
            let letter = Letter { messages, bytes, time_ms, sender: sender.as_ref(), text: &text };
            let message = decode_message(5, letter.encode()).unwrap();
            let position = Position { sequence: Sequence(5), messages, bytes };
            prop_assert_eq!(message, Message { position, sender: sender.clone(), time_ms, text: text.as_str().into() });
            prop_assert_ne!(letter.encode(), END);
        }

        #[test]
        fn states_are_read_as_they_were_written(numbers: [u64; 4]) {
            let [sequence, messages, bytes, reception] = numbers;
            let cursor = Position { sequence: Sequence(sequence), messages, bytes };
            let state = State { cursor, reception };
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn refusals_are_read_as_they_were_written(code in proptest::sample::select(vec![Code::QueueFull, Code::NoSuchUser])) {
            prop_assert_eq!(decode_refusal(&encode_refusal(code)), Ok(code));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            // Decoding and encoding are inverse.
            if let Ok(record) = AccountRecord::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes.clone());
            }
            if let Ok(state) = State::decode(&bytes) {
                prop_assert_eq!(state.encode(), bytes.clone());
            }
            if let Ok(code) = decode_refusal(&bytes) {
                prop_assert_eq!(encode_refusal(code), bytes.clone());
            }
            if let Ok(message) = decode_message(1, bytes.clone().into()) {
                prop_assert!(message.text.len() < bytes.len());
            }
        }
    }
}
