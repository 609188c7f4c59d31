//! How accounts, messages, cursors and sessions are written as keys and values.
//!
//! Nothing here knows an engine or a file: bytes come in and go out. Decoding
//! never panics and never trusts: each value ends in a CRC-32 of its key and of
//! all that stands before it, so that a value that was damaged, or that stands
//! under another's key, is [`Damaged`].
//!
//! | table | key | value, before the CRC-32 (big endian) |
//! | --- | --- | --- |
//! | messages | incarnation u64, sequence u64 of the last of them, both big endian | messages, bytes (the sums of [`Position`]) before the first; then for each: its number less that of the one before (at first, less 0), time in ms, sender's length as u8 (0: nobody), sender, text's length, text |
//! | accounts | the name | incarnation, then the password hash as text, where there is one |
//! | cursors | incarnation u64 big endian | sequence, messages, bytes: everything up to there is forgotten |
//! | sessions | the token | for each send that is remembered, in the order of the ids: its id less that of the one before, outcome as u8 (0: stored, else 1 + the place in [`Code::ALL`]), the number of the message if it is stored |
//! | meta | `reserved`, `commits` or `number` | the number |
//!
//! Numbers without a type are LEB128: seven bits a byte, the lowest first.

use bytes::Bytes;
use bytestring::ByteString;
use hark_protocol::{Code, Sequence, UserName};

use crate::store::outcomes::{Decided, Outcomes};
use crate::store::{Message, Outcome, PasswordHash, Position};

/// Where the bound up to which numbers may be given out is kept.
pub(super) const RESERVED_KEY: &[u8] = b"reserved";

/// Where the number of commits is kept.
pub(super) const COMMITS_KEY: &[u8] = b"commits";

/// Where the least number that the engine can give to a commit is kept.
pub(super) const NUMBER_KEY: &[u8] = b"number";

const CRC_BYTES: usize = 4;

/// Bytes of a record of messages up to which another may follow. What is read
/// of one keeps all of it in memory, and what is damaged is lost with all of it.
const BLOCK_BYTES_MAX: usize = 16 * 1024;

/// Bytes that a record of messages has room for at first.
const BLOCK_BYTES_FIRST: usize = 256;

/// A key or a value is not what was once written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record is damaged")]
pub(super) struct Damaged;

/// The key of a message.
pub(super) fn message_key(incarnation: u64, sequence: u64) -> [u8; 16] {
    ((u128::from(incarnation) << 64) | u128::from(sequence)).to_be_bytes()
}

/// Incarnation and sequence from the key of a message.
pub(super) fn parse_message_key(key: &[u8]) -> Result<(u64, u64), Damaged> {
    let key = u128::from_be_bytes(key.try_into().map_err(|_| Damaged)?);
    Ok(((key >> 64) as u64, key as u64))
}

/// Messages that follow each other in one inbox, on the way to becoming one
/// record. One record for many costs an engine about as much as for one.
#[derive(Debug)]
pub(super) struct Block {
    incarnation: u64,
    last: Sequence,
    value: Vec<u8>,
}

impl Block {
    /// No messages yet, after this place in the inbox of this account.
    pub(super) fn after(position: Position, incarnation: u64) -> Self {
        let mut value = Vec::with_capacity(BLOCK_BYTES_FIRST);
        put_number(&mut value, position.messages);
        put_number(&mut value, position.bytes);
        Self { incarnation, last: Sequence(0), value }
    }

    /// Whether a message of this account may follow.
    pub(super) const fn takes(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation && self.value.len() < BLOCK_BYTES_MAX
    }

    /// Adds the next message of the inbox.
    pub(super) fn push(&mut self, message: &Message) {
        let sender = message.sender.as_ref().map_or("", UserName::as_str);
        let (value, sequence) = (&mut self.value, message.position.sequence);
        put_number(value, sequence.0 - self.last.0);
        self.last = sequence;
        put_number(value, message.time_ms);
        // A name has at most 64 bytes.
        value.push(sender.len() as u8);
        value.extend_from_slice(sender.as_bytes());
        put_number(value, message.text.len() as u64);
        value.extend_from_slice(message.text.as_bytes());
    }

    /// The key and the value. There is a message.
    pub(super) fn finish(self) -> ([u8; 16], Vec<u8>) {
        let key = message_key(self.incarnation, self.last.0);
        (key, seal(&key, self.value))
    }
}

/// A message in a record, borrowed from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'v> {
    /// Its number, and where it stands in its inbox.
    pub(super) position: Position,
    /// When the server took it, in milliseconds since 1970.
    pub(super) time_ms: u64,
    sender: &'v [u8],
    /// The text.
    pub(super) text: &'v [u8],
}

/// The messages of a record, in the order of their numbers.
#[derive(Debug)]
pub(super) struct Messages<'v> {
    rest: &'v [u8],
    /// Of the message before.
    position: Position,
    /// Of the last message.
    last: Sequence,
}

/// The messages that are stored under a key.
pub(super) fn decode_messages<'v>(key: &[u8], value: &'v [u8]) -> Result<Messages<'v>, Damaged> {
    let (_, last) = parse_message_key(key)?;
    let mut rest = open(key, value)?;
    let messages = take_number(&mut rest)?;
    let bytes = take_number(&mut rest)?;
    // There is one at least.
    if rest.is_empty() {
        return Err(Damaged);
    }
    let position = Position { sequence: Sequence(0), messages, bytes };
    Ok(Messages { rest, position, last: Sequence(last) })
}

impl<'v> Iterator for Messages<'v> {
    type Item = Result<Stored<'v>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let stored = self.take_one();
        if stored.is_err() {
            self.rest = &[];
        }
        Some(stored)
    }
}

impl<'v> Messages<'v> {
    fn take_one(&mut self) -> Result<Stored<'v>, Damaged> {
        let rest = &mut self.rest;
        let step = take_number(rest)?;
        let time_ms = take_number(rest)?;
        let sender_bytes = usize::from(take_byte(rest)?);
        let sender = take_slice(rest, sender_bytes)?;
        let text_bytes = take_number(rest)?;
        let text = take_slice(rest, usize::try_from(text_bytes).map_err(|_| Damaged)?)?;
        let Position { sequence, messages, bytes } = self.position;
        let sequence = sequence.0.checked_add(step).filter(|_| step > 0).ok_or(Damaged)?;
        self.position = Position {
            sequence: Sequence(sequence),
            messages: messages.checked_add(1).ok_or(Damaged)?,
            bytes: bytes.checked_add(text_bytes).ok_or(Damaged)?,
        };
        // The key has the number of the last one.
        if rest.is_empty() != (self.position.sequence == self.last) {
            return Err(Damaged);
        }
        Ok(Stored { position: self.position, time_ms, sender, text })
    }
}

impl Stored<'_> {
    /// Returns a place just before this message.
    pub(super) fn before(&self) -> Position {
        let Position { sequence, messages, bytes } = self.position;
        Position {
            sequence: Sequence(sequence.0.saturating_sub(1)),
            messages: messages.saturating_sub(1),
            bytes: bytes.saturating_sub(self.text.len() as u64),
        }
    }

    /// Who sent it; `former` is shared where it is the same.
    pub(super) fn sender(&self, former: Option<&UserName>) -> Result<Option<UserName>, Damaged> {
        match former {
            _ if self.sender.is_empty() => Ok(None),
            Some(former) if former.as_str().as_bytes() == self.sender => Ok(Some(former.clone())),
            _ => name(self.sender).map(Some),
        }
    }

    /// The message, whose text is a slice of `value`, which this was read from.
    pub(super) fn message(self, value: &Bytes, former: Option<&UserName>) -> Result<Message, Damaged> {
        let text = ByteString::try_from(value.slice_ref(self.text)).map_err(|_| Damaged)?;
        Ok(Message { position: self.position, sender: self.sender(former)?, time_ms: self.time_ms, text })
    }
}

/// An account as a value.
pub(super) fn encode_account(key: &[u8], incarnation: u64, password: Option<&PasswordHash>) -> Vec<u8> {
    let mut value = Vec::new();
    put_number(&mut value, incarnation);
    value.extend_from_slice(password.map_or("", PasswordHash::as_str).as_bytes());
    seal(key, value)
}

/// Name, incarnation and password of an account.
pub(super) fn decode_account(
    key: &[u8],
    value: &[u8],
) -> Result<(UserName, u64, Option<PasswordHash>), Damaged> {
    let mut rest = open(key, value)?;
    let incarnation = take_number(&mut rest)?;
    let phc = utf8(rest)?;
    let password = (!phc.is_empty()).then(|| PasswordHash::new(phc));
    Ok((name(key)?, incarnation, password))
}

/// A cursor as a value.
pub(super) fn encode_cursor(key: &[u8], cursor: Position) -> Vec<u8> {
    let mut value = Vec::with_capacity(24);
    put_number(&mut value, cursor.sequence.0);
    put_number(&mut value, cursor.messages);
    put_number(&mut value, cursor.bytes);
    seal(key, value)
}

/// The incarnation that a cursor belongs to, and the cursor.
pub(super) fn decode_cursor(key: &[u8], value: &[u8]) -> Result<(u64, Position), Damaged> {
    let incarnation = u64::from_be_bytes(key.try_into().map_err(|_| Damaged)?);
    let mut rest = open(key, value)?;
    let sequence = Sequence(take_number(&mut rest)?);
    let messages = take_number(&mut rest)?;
    let bytes = take_number(&mut rest)?;
    end(rest)?;
    Ok((incarnation, Position { sequence, messages, bytes }))
}

/// The outcomes of a session as a value.
pub(super) fn encode_session(key: &[u8], outcomes: &Outcomes) -> Vec<u8> {
    let mut value = Vec::with_capacity(16);
    let mut previous = 0;
    for decided in outcomes.decided() {
        put_number(&mut value, u64::from(decided.id - previous));
        put_outcome(&mut value, decided.outcome);
        previous = decided.id;
    }
    seal(key, value)
}

/// The outcomes of a session.
pub(super) fn decode_session(key: &[u8], value: &[u8]) -> Result<Outcomes, Damaged> {
    let mut rest = open(key, value)?;
    let mut decided = Vec::new();
    let mut id = 0_u32;
    while !rest.is_empty() {
        id = id.checked_add(take_u32(&mut rest)?).ok_or(Damaged)?;
        decided.push(Decided { id, outcome: take_outcome(&mut rest)? });
    }
    Outcomes::from_decided(decided).ok_or(Damaged)
}

/// A single number as a value.
pub(super) fn encode_number(key: &[u8], number: u64) -> Vec<u8> {
    let mut value = Vec::with_capacity(14);
    put_number(&mut value, number);
    seal(key, value)
}

/// A single number.
pub(super) fn decode_number(key: &[u8], value: &[u8]) -> Result<u64, Damaged> {
    let mut rest = open(key, value)?;
    let number = take_number(&mut rest)?;
    end(rest)?;
    Ok(number)
}

fn put_outcome(to: &mut Vec<u8>, outcome: Outcome) {
    match outcome {
        Outcome::Stored(sequence) => {
            to.push(0);
            put_number(to, sequence.0);
        }
        // There are few codes, and new ones are added at the end.
        Outcome::Refused(code) => {
            to.push(1 + Code::ALL.iter().position(|c| *c == code).unwrap_or(0) as u8);
        }
    }
}

fn take_outcome(rest: &mut &[u8]) -> Result<Outcome, Damaged> {
    match take_byte(rest)?.checked_sub(1) {
        None => take_number(rest).map(|number| Outcome::Stored(Sequence(number))),
        Some(place) => Code::ALL.get(usize::from(place)).map(|code| Outcome::Refused(*code)).ok_or(Damaged),
    }
}

fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = checksum(key, &value);
    value.extend_from_slice(&crc.to_be_bytes());
    value
}

fn open<'v>(key: &[u8], value: &'v [u8]) -> Result<&'v [u8], Damaged> {
    let (body, crc) = value.split_last_chunk::<CRC_BYTES>().ok_or(Damaged)?;
    if checksum(key, body) == u32::from_be_bytes(*crc) { Ok(body) } else { Err(Damaged) }
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

fn put_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Result<u64, Damaged> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(rest)?;
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if (bits << shift) >> shift != bits {
            return Err(Damaged);
        }
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Damaged)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, Damaged> {
    u32::try_from(take_number(rest)?).map_err(|_| Damaged)
}

fn take_slice<'v>(rest: &mut &'v [u8], bytes: usize) -> Result<&'v [u8], Damaged> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or(Damaged)?;
    *rest = left;
    Ok(taken)
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, Damaged> {
    let (byte, tail) = rest.split_first().ok_or(Damaged)?;
    *rest = tail;
    Ok(*byte)
}

fn end(rest: &[u8]) -> Result<(), Damaged> {
    if rest.is_empty() { Ok(()) } else { Err(Damaged) }
}

fn utf8(bytes: &[u8]) -> Result<&str, Damaged> {
    std::str::from_utf8(bytes).map_err(|_| Damaged)
}

fn name(bytes: &[u8]) -> Result<UserName, Damaged> {
    utf8(bytes)?.parse().map_err(|_| Damaged)
}

/// What holds of any key and value: each reading of them is refused, or is
/// something that is written so that it is read again as the same.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_any(key: &[u8], value: &[u8]) {
    if let Ok(messages) = decode_all(key, value)
        && let (Some(first), Ok((incarnation, _))) = (messages.first(), parse_message_key(key))
    {
        let before = Position {
            sequence: Sequence(0),
            messages: first.position.messages - 1,
            bytes: first.position.bytes - first.text.len() as u64,
        };
        let mut block = Block::after(before, incarnation);
        messages.iter().for_each(|message| block.push(message));
        let (again, value) = block.finish();
        assert_eq!(again, key);
        assert_eq!(decode_all(key, &value), Ok(messages));
    }
    if let Ok((name, incarnation, password)) = decode_account(key, value) {
        let again = encode_account(name.as_str().as_bytes(), incarnation, password.as_ref());
        assert_eq!(decode_account(key, &again), Ok((name, incarnation, password)));
    }
    if let Ok((incarnation, cursor)) = decode_cursor(key, value) {
        assert_eq!(decode_cursor(key, &encode_cursor(key, cursor)), Ok((incarnation, cursor)));
    }
    if let Ok(outcomes) = decode_session(key, value) {
        assert!(outcomes.remembered() <= hark_protocol::limits::OUTCOMES_REMEMBERED);
        assert_eq!(decode_session(key, &encode_session(key, &outcomes)), Ok(outcomes));
    }
    if let Ok(number) = decode_number(key, value) {
        assert_eq!(decode_number(key, &encode_number(key, number)), Ok(number));
    }
}

#[cfg(any(test, feature = "fuzzing"))]
fn decode_all(key: &[u8], value: &[u8]) -> Result<Vec<Message>, Damaged> {
    let value = Bytes::copy_from_slice(value);
    decode_messages(key, &value)?.map(|stored| stored?.message(&value, None)).collect()
}

/// The same of a value whose checksum is right.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_any_sealed(key: &[u8], body: &[u8]) {
    check_any(key, &seal(key, body.to_vec()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages with these numbers, after two others of 40 bytes.
    fn messages(of: &[(u64, Option<&str>, &str)]) -> Vec<Message> {
        let mut position = Position { sequence: Sequence(0), messages: 2, bytes: 40 };
        let of = of.iter().map(|(sequence, sender, text)| {
            position = Position {
                sequence: Sequence(*sequence),
                messages: position.messages + 1,
                bytes: position.bytes + text.len() as u64,
            };
            Message {
                position,
                sender: sender.map(|name| name.parse().unwrap()),
                time_ms: 1_700_000_000_000 - sequence % 100,
                text: ByteString::from(*text),
            }
        });
        of.collect()
    }

    fn encode(messages: &[Message]) -> ([u8; 16], Vec<u8>) {
        let before = Position { sequence: Sequence(7), messages: 2, bytes: 40 };
        let mut block = Block::after(before, 7);
        messages.iter().for_each(|message| block.push(message));
        block.finish()
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let long = "x".repeat(70_000);
        let all = messages(&[
            (9, None, ""),
            (10, Some("bob"), "hello, again\n"),
            (500, Some("bob"), "🦀"),
            (501, Some("amy"), &long),
            (u64::MAX, None, "last"),
        ]);
        for count in 1..=all.len() {
            let (key, value) = encode(&all[..count]);
            assert_eq!(parse_message_key(&key), Ok((7, all[count - 1].position.sequence.0)));
            assert_eq!(decode_all(&key, &value).as_deref(), Ok(&all[..count]));
        }
    }

    #[test]
    fn a_record_takes_no_more_once_it_is_full_nor_those_of_another() {
        let mut block = Block::after(Position::default(), 7);
        assert!(block.takes(7) && !block.takes(8));
        messages(&[(9, None, &"x".repeat(BLOCK_BYTES_MAX))]).iter().for_each(|message| block.push(message));
        assert!(!block.takes(7));
    }

    #[test]
    fn message_keys_sort_by_account_then_number() {
        assert!(message_key(1, u64::MAX) < message_key(2, 0));
        assert!(message_key(2, 255) < message_key(2, 256));
        assert_eq!(parse_message_key(&message_key(5, 6)), Ok((5, 6)));
        assert_eq!(parse_message_key(b"short"), Err(Damaged));
    }

    #[test]
    fn a_flipped_bit_and_another_key_are_noticed() {
        let (key, value) = encode(&messages(&[(8, None, "so"), (9, Some("bob"), "hello")]));
        assert_eq!(decode_all(&message_key(7, 10), &value), Err(Damaged));
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_all(&key, &flipped), Err(Damaged), "bit {bit}");
        }
    }

    #[test]
    fn accounts_cursors_sessions_and_numbers_come_back() {
        let hash = PasswordHash::new("$argon2id$x");
        for password in [None, Some(hash)] {
            let value = encode_account(b"bob", 3, password.as_ref());
            assert_eq!(decode_account(b"bob", &value), Ok(("bob".parse().unwrap(), 3, password)));
        }
        let cursor = Position { sequence: Sequence(u64::MAX), messages: 0, bytes: 300 };
        let key = 4_u64.to_be_bytes();
        assert_eq!(decode_cursor(&key, &encode_cursor(&key, cursor)), Ok((4, cursor)));
        let value = encode_number(COMMITS_KEY, u64::MAX);
        assert_eq!(decode_number(COMMITS_KEY, &value), Ok(u64::MAX));
        assert_eq!(decode_number(RESERVED_KEY, &value), Err(Damaged));
    }

    #[test]
    fn a_session_keeps_its_gaps_and_every_outcome() {
        let mut outcomes = Outcomes::default();
        outcomes.record(2, Outcome::Stored(Sequence(u64::MAX)));
        for (place, code) in Code::ALL.into_iter().enumerate() {
            outcomes.record(10 + 2 * place as u32, Outcome::Refused(code));
        }
        outcomes.record(u32::MAX, Outcome::Stored(Sequence(7)));
        let decoded = decode_session(b"token", &encode_session(b"token", &outcomes)).unwrap();
        assert_eq!(decoded, outcomes);
    }
}
