//! The records of the ledger, and their encoding.
//!
//! The records of a frame begin with a [`Record::Clock`]. Each record is a byte for its
//! kind and the fields of that kind. It holds absolute values, so that replaying it twice
//! equals replaying it once. An unknown kind is an error. The log checks the frame's
//! checksum.
//!
//! | kind | fields (`~`: near the counter of the frame's clock) |
//! | --- | --- |
//! | 1 clock | time of the last message in ms, running time in ms, counter: u64 each, little endian |
//! | 2 counter | bound of all numbers that may have been assigned |
//! | 3 account | incarnation, name, password hash (empty: none), head, tail |
//! | 4 end of an account | incarnation |
//! | 5 head: the last forgotten message of a log | log, position~ |
//! | 6 tail: the last message of a log | log, position~ |
//! | 7 session | slot, token, time of the last use in ms, highest id, runs: count, then each |
//! | 8 outcomes | slot, run |
//! | 9 end of a session | slot |
//! | 10 wall clock | ms since 1970 |
//! | 11 stops | the part of all stops that counts for ages, in s |
//! | 12 connected: the nameless device alone | account, Unix seconds of a `connect` (0: none) |
//! | 13 device | account~, device~, its name's length (0: none) + 64 if it is attached + 128 if it has lapsed, name, cursor, the end of its attachment in s (unless attached), when it lapsed as a rank (if lapsed), its last acknowledgement in s near that end, Unix seconds as four bytes |
//! | 14 end of a device | account, device |
//! | 15 cursor of a device in its inbox | account, device, position~ |
//! | 16 blocked accounts | account, count, each~ |
//! | 17 conversations started | account, age in s, count |
//! | 18 token | account~, Unix seconds of its creation and of its last use (0: never), name, scope, digest of the secret: 32 bytes |
//! | 19 end of a token | account, name |
//! | 20 use of a token | account, name, Unix seconds |
//! | 24 suspended account | as 3 |
//! | 25 limits of an account alone | account, then for each limit 0 or 1 + its value |
//! | 26 last use of an account | account, age in s |
//! | 27 mark: the last number at an age | age in s, number~ |
//! | 32–43 | records of rooms: see `rooms::record` |
//!
//! A position is number~, messages, bytes. A run is first id, length, and a byte: 0 and
//! number~ for stored messages, else 1 + the index of the code in [`Code::ALL`].

use std::time::Duration;

use hark_protocol::limits::OUTCOMES_REMEMBERED;
use hark_protocol::{Code, DeviceName, Sequence, SessionToken, TokenName, UserName};

use super::bytes::{
    Malformed, name, put_near, put_number, put_position, put_seconds, put_text, seconds, take_byte,
    take_chunk, take_fixed, take_near, take_number, take_position, take_seconds, take_slice,
    take_text, take_u32,
};
use super::dedup::{DedupTable, OutcomeRun};
use super::devices::DeviceState;
use super::expiry::AgeMark;
use super::profile::Started;
use super::rooms::RoomRecord;
use crate::store::{DeviceId, Outcome, PasswordHash, Position, Token, TokenDigest, UserLimits};

/// Bytes of a [`Record::Clock`]. They are fixed, so that the record can be filled in when
/// the frame is complete.
pub(super) const CLOCK_BYTES: usize = 1 + 3 * 8;

/// The highest slot of a session in a record. It bounds the memory that a malformed
/// record can take.
pub(super) const SESSION_SLOT_MAX: u32 = (1 << 24) - 1;

mod kind {
    pub(super) const CLOCK: u8 = 1;
    pub(super) const COUNTER: u8 = 2;
    pub(super) const ACCOUNT: u8 = 3;
    pub(super) const ACCOUNT_END: u8 = 4;
    pub(super) const HEAD: u8 = 5;
    pub(super) const TAIL: u8 = 6;
    pub(super) const SESSION: u8 = 7;
    pub(super) const OUTCOMES: u8 = 8;
    pub(super) const SESSION_END: u8 = 9;
    pub(super) const WALL: u8 = 10;
    pub(super) const STOPPED: u8 = 11;
    pub(super) const CONNECTED: u8 = 12;
    pub(super) const DEVICE: u8 = 13;
    pub(super) const DEVICE_END: u8 = 14;
    pub(super) const DEVICE_CURSOR: u8 = 15;
    pub(super) const BLOCKED: u8 = 16;
    pub(super) const STARTED: u8 = 17;
    pub(super) const TOKEN: u8 = 18;
    pub(super) const TOKEN_END: u8 = 19;
    pub(super) const TOKEN_USED: u8 = 20;
    pub(super) const SUSPENDED_ACCOUNT: u8 = 24;
    pub(super) const LIMITS: u8 = 25;
    pub(super) const USED: u8 = 26;
    pub(super) const AGE_MARK: u8 = 27;
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// The clocks when the frame was written; the first record of each frame.
    Clock(Clock),
    /// The bound of all numbers that may have been assigned.
    Counter(u64),
    /// An account and its inbox.
    Account(AccountRecord),
    /// The account of this incarnation has ended.
    AccountEnd(u64),
    /// The position of the last forgotten message of a log.
    Head(u64, Position),
    /// The position of the last message of a log.
    Tail(u64, Position),
    /// A session with all its remembered outcomes.
    Session(SessionRecord),
    /// Outcomes of the session in this slot.
    Outcomes(u32, OutcomeRun),
    /// The session in this slot is forgotten.
    SessionEnd(u32),
    /// The wall clock, in milliseconds since 1970.
    Wall(u64),
    /// The part of all stops of the server that counts for the ages of messages.
    Stopped(Duration),
    /// The nameless device of an account is its only one, and was seen at this time in
    /// Unix seconds; 0 if there is none.
    Connected(u64, u32),
    /// A device of an account.
    Device(u64, DeviceState),
    /// A device of an account has ended.
    DeviceEnd(u64, DeviceId),
    /// The cursor of a device in its inbox.
    DeviceCursor(u64, DeviceId, Position),
    /// All accounts that an account blocks.
    Blocked(u64, Vec<u64>),
    /// The conversations that an account started lately.
    Started(u64, Started),
    /// The limits of an account alone.
    Limits(u64, UserLimits),
    /// The age of the last use of an account, in seconds.
    Used(u64, u32),
    /// The last number at an age.
    AgeMark(AgeMark),
    /// A token of an account.
    Token(u64, Token),
    /// A token of an account has ended.
    TokenEnd(u64, TokenName),
    /// The time of the last use of a token of an account, in Unix seconds.
    TokenUsed(u64, TokenName, u32),
    /// A record of a room.
    Room(RoomRecord),
}

/// The clocks of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Clock {
    /// The time of the last message, in milliseconds since 1970.
    pub(super) time_ms: u64,
    /// The running time of the store.
    pub(super) running: Duration,
    /// The last assigned number when the frame began. Numbers in the frame are encoded
    /// relative to it.
    pub(super) counter: u64,
}

/// The full state of an account and its inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AccountRecord {
    pub(super) name: UserName,
    pub(super) incarnation: u64,
    pub(super) password: Option<PasswordHash>,
    pub(super) is_suspended: bool,
    pub(super) head: Position,
    pub(super) tail: Position,
}

/// The full state of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionRecord {
    pub(super) slot: u32,
    pub(super) token: SessionToken,
    pub(super) used: Duration,
    pub(super) table: DedupTable,
}

impl Record {
    /// Writes the record into a frame whose clock has this counter.
    pub(super) fn put(&self, to: &mut Vec<u8>, counter: u64) {
        match self {
            Self::Clock(clock) => clock.put(to),
            Self::Counter(number) => {
                to.push(kind::COUNTER);
                put_number(to, *number);
            }
            Self::Account(account) => account.put(to, counter),
            Self::AccountEnd(incarnation) => {
                to.push(kind::ACCOUNT_END);
                put_number(to, *incarnation);
            }
            Self::Head(log, position) => {
                to.push(kind::HEAD);
                put_number(to, *log);
                put_position(to, counter, *position);
            }
            Self::Tail(log, position) => {
                to.push(kind::TAIL);
                put_number(to, *log);
                put_position(to, counter, *position);
            }
            Self::Session(session) => session.put(to, counter),
            Self::Outcomes(slot, run) => {
                to.push(kind::OUTCOMES);
                put_number(to, u64::from(*slot));
                put_run(to, counter, *run);
            }
            Self::SessionEnd(slot) => {
                to.push(kind::SESSION_END);
                put_number(to, u64::from(*slot));
            }
            Self::Wall(ms) => {
                to.push(kind::WALL);
                put_number(to, *ms);
            }
            Self::Stopped(time) => {
                to.push(kind::STOPPED);
                put_number(to, time.as_secs());
            }
            Self::Connected(account, seen_s) => {
                to.push(kind::CONNECTED);
                put_number(to, *account);
                put_number(to, u64::from(*seen_s));
            }
            Self::Device(account, device) => put_device(to, counter, *account, device),
            Self::DeviceEnd(account, device) => {
                to.push(kind::DEVICE_END);
                put_number(to, *account);
                put_number(to, *device);
            }
            Self::DeviceCursor(account, device, cursor) => {
                to.push(kind::DEVICE_CURSOR);
                put_number(to, *account);
                put_number(to, *device);
                put_position(to, counter, *cursor);
            }
            Self::Blocked(account, blocked) => {
                to.push(kind::BLOCKED);
                put_number(to, *account);
                put_number(to, blocked.len() as u64);
                blocked
                    .iter()
                    .for_each(|blocked| put_near(to, counter, *blocked));
            }
            Self::Started(account, started) => {
                to.push(kind::STARTED);
                put_number(to, *account);
                put_number(to, started.since.as_secs());
                put_number(to, u64::from(started.count));
            }
            Self::Limits(account, limits) => {
                to.push(kind::LIMITS);
                put_number(to, *account);
                for limit in fields_of(limits) {
                    put_number(to, limit.map_or(0, |limit| limit.saturating_add(1)));
                }
            }
            Self::Used(account, age_s) => {
                to.push(kind::USED);
                put_number(to, *account);
                put_number(to, u64::from(*age_s));
            }
            Self::AgeMark(mark) => {
                to.push(kind::AGE_MARK);
                put_seconds(to, mark.age);
                put_near(to, counter, mark.last);
            }
            Self::Token(account, token) => put_token(to, counter, *account, token),
            Self::TokenEnd(account, name) => put_token_name(to, kind::TOKEN_END, *account, name),
            Self::TokenUsed(account, name, used_s) => {
                put_token_name(to, kind::TOKEN_USED, *account, name);
                put_number(to, u64::from(*used_s));
            }
            Self::Room(record) => record.put(to, counter),
        }
    }
}

impl Clock {
    fn put(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.encode());
    }

    /// Returns the clock as a record.
    pub(super) fn encode(self) -> [u8; CLOCK_BYTES] {
        let mut bytes = [kind::CLOCK; CLOCK_BYTES];
        let running_ms = u64::try_from(self.running.as_millis()).unwrap_or(u64::MAX);
        let fields = [self.time_ms, running_ms, self.counter].map(u64::to_le_bytes);
        for (place, byte) in bytes.iter_mut().skip(1).zip(fields.as_flattened()) {
            *place = *byte;
        }
        bytes
    }
}

impl AccountRecord {
    fn put(&self, to: &mut Vec<u8>, counter: u64) {
        to.push(if self.is_suspended {
            kind::SUSPENDED_ACCOUNT
        } else {
            kind::ACCOUNT
        });
        put_number(to, self.incarnation);
        put_text(to, self.name.as_str());
        put_text(to, self.password.as_ref().map_or("", PasswordHash::as_str));
        put_position(to, counter, self.head);
        put_position(to, counter, self.tail);
    }

    fn take(rest: &mut &[u8], counter: u64, is_suspended: bool) -> Result<Self, Malformed> {
        let incarnation = take_number(rest)?;
        let bytes = take_number(rest)?;
        let name = name(take_slice(rest, bytes)?)?;
        let phc = take_text(rest)?;
        let password = (!phc.is_empty()).then(|| PasswordHash::new(phc));
        let head = take_position(rest, counter)?;
        let tail = take_position(rest, counter)?;
        Ok(Self {
            name,
            incarnation,
            password,
            is_suspended,
            head,
            tail,
        })
    }
}

impl SessionRecord {
    fn put(&self, to: &mut Vec<u8>, counter: u64) {
        to.push(kind::SESSION);
        put_number(to, u64::from(self.slot));
        put_text(to, self.token.as_str());
        put_number(to, u64::try_from(self.used.as_millis()).unwrap_or(u64::MAX));
        put_number(to, u64::from(self.table.highest()));
        put_number(to, self.table.runs().count() as u64);
        self.table.runs().for_each(|run| put_run(to, counter, run));
    }

    fn take(rest: &mut &[u8], counter: u64) -> Result<Self, Malformed> {
        let slot = take_slot(rest)?;
        let token = take_text(rest)?.parse().map_err(|_| Malformed)?;
        let used = Duration::from_millis(take_number(rest)?);
        let highest = take_u32(rest)?;
        let count = take_number(rest)?;
        let runs: Result<_, _> = (0..count).map(|_| take_run(rest, counter)).collect();
        let table = DedupTable::from_runs(highest, runs?).ok_or(Malformed)?;
        Ok(Self {
            slot,
            token,
            used,
            table,
        })
    }
}

/// Reads the records of one frame.
#[derive(Debug)]
pub(super) struct Records<'r> {
    rest: &'r [u8],
    counter: u64,
}

impl<'r> Records<'r> {
    /// Returns the records in these bytes.
    pub(super) const fn new(records: &'r [u8]) -> Self {
        Self {
            rest: records,
            counter: 0,
        }
    }

    fn take(&mut self) -> Result<Record, Malformed> {
        let rest = &mut self.rest;
        Ok(match take_byte(rest)? {
            kind::CLOCK => {
                let (time_ms, running_ms) = (take_fixed(rest)?, take_fixed(rest)?);
                self.counter = take_fixed(rest)?;
                let running = Duration::from_millis(running_ms);
                Record::Clock(Clock {
                    time_ms,
                    running,
                    counter: self.counter,
                })
            }
            kind::COUNTER => Record::Counter(take_number(rest)?),
            kind::ACCOUNT => Record::Account(AccountRecord::take(rest, self.counter, false)?),
            kind::SUSPENDED_ACCOUNT => {
                Record::Account(AccountRecord::take(rest, self.counter, true)?)
            }
            kind::ACCOUNT_END => Record::AccountEnd(take_number(rest)?),
            kind::HEAD => Record::Head(take_number(rest)?, take_position(rest, self.counter)?),
            kind::TAIL => Record::Tail(take_number(rest)?, take_position(rest, self.counter)?),
            kind::SESSION => Record::Session(SessionRecord::take(rest, self.counter)?),
            kind::OUTCOMES => Record::Outcomes(take_slot(rest)?, take_run(rest, self.counter)?),
            kind::SESSION_END => Record::SessionEnd(take_slot(rest)?),
            kind::WALL => Record::Wall(take_number(rest)?),
            kind::STOPPED => Record::Stopped(take_seconds(rest)?),
            kind::CONNECTED => Record::Connected(take_number(rest)?, take_u32(rest)?),
            kind::DEVICE => {
                let account = take_near(rest, self.counter)?;
                Record::Device(account, take_device(rest, self.counter)?)
            }
            kind::DEVICE_END => Record::DeviceEnd(take_number(rest)?, take_number(rest)?),
            kind::DEVICE_CURSOR => {
                let (account, device) = (take_number(rest)?, take_number(rest)?);
                Record::DeviceCursor(account, device, take_position(rest, self.counter)?)
            }
            kind::BLOCKED => {
                let (account, count) = (take_number(rest)?, take_number(rest)?);
                let blocked = (0..count).map(|_| take_near(rest, self.counter));
                Record::Blocked(account, blocked.collect::<Result<_, _>>()?)
            }
            kind::STARTED => {
                let account = take_number(rest)?;
                let since = take_seconds(rest)?;
                let count = take_u32(rest)?;
                Record::Started(account, Started { since, count })
            }
            kind::LIMITS => Record::Limits(take_number(rest)?, take_limits(rest)?),
            kind::USED => Record::Used(take_number(rest)?, take_u32(rest)?),
            kind::AGE_MARK => Record::AgeMark(AgeMark {
                age: take_seconds(rest)?,
                last: take_near(rest, self.counter)?,
            }),
            kind::TOKEN => take_token(rest, self.counter)?,
            kind::TOKEN_END => {
                let (account, name) = take_token_name(rest)?;
                Record::TokenEnd(account, name)
            }
            kind::TOKEN_USED => {
                let (account, name) = take_token_name(rest)?;
                Record::TokenUsed(account, name, take_u32(rest)?)
            }
            kind => {
                let record = RoomRecord::take(kind, rest, self.counter);
                Record::Room(record.ok_or(Malformed)??)
            }
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

/// The bits of a device beside the length of its name, which has at most 32 bytes.
const IS_ATTACHED: u8 = 64;
const HAS_LAPSED: u8 = 128;

fn put_device(to: &mut Vec<u8>, counter: u64, account: u64, device: &DeviceState) {
    let name = device.name.as_ref().map_or("", DeviceName::as_str);
    let mut head = name.len() as u8;
    if device.detached.is_none() {
        head |= IS_ATTACHED;
    }
    if device.lapsed.is_some() {
        head |= HAS_LAPSED;
    }
    to.push(kind::DEVICE);
    put_near(to, counter, account);
    put_near(to, counter, device.id);
    to.push(head);
    to.extend_from_slice(name.as_bytes());
    put_position(to, counter, device.cursor);
    if let Some(detached) = device.detached {
        put_seconds(to, detached);
    }
    if let Some(rank) = device.lapsed {
        put_number(to, u64::from(rank));
    }
    let detached_s = device.detached.unwrap_or_default().as_secs();
    put_near(to, detached_s, device.acknowledged.as_secs());
    to.extend_from_slice(&device.seen_s.to_le_bytes());
}

fn take_device(rest: &mut &[u8], counter: u64) -> Result<DeviceState, Malformed> {
    let id = take_near(rest, counter)?;
    let head = take_byte(rest)?;
    let bytes = take_slice(rest, u64::from(head & !(IS_ATTACHED | HAS_LAPSED)))?;
    let name = match std::str::from_utf8(bytes).map_err(|_| Malformed)? {
        "" => None,
        name => Some(name.parse().map_err(|_| Malformed)?),
    };
    let cursor = take_position(rest, counter)?;
    let detached = if head & IS_ATTACHED == 0 {
        Some(take_seconds(rest)?)
    } else {
        None
    };
    let lapsed = if head & HAS_LAPSED == 0 {
        None
    } else {
        Some(take_u32(rest)?)
    };
    let detached_s = detached.unwrap_or_default().as_secs();
    Ok(DeviceState {
        id,
        name,
        cursor,
        detached,
        lapsed,
        acknowledged: take_near(rest, detached_s).and_then(seconds)?,
        seen_s: u32::from_le_bytes(take_chunk(rest)?),
    })
}

/// Returns the limits of an account in the order of their record.
const fn fields_of(limits: &UserLimits) -> [Option<u64>; 5] {
    [
        limits.queued_messages,
        limits.queued_bytes,
        limits.commands,
        limits.bytes,
        limits.deliveries,
    ]
}

fn take_limits(rest: &mut &[u8]) -> Result<UserLimits, Malformed> {
    let mut limit = || Ok(take_number(rest)?.checked_sub(1));
    Ok(UserLimits {
        queued_messages: limit()?,
        queued_bytes: limit()?,
        commands: limit()?,
        bytes: limit()?,
        deliveries: limit()?,
    })
}

fn put_token(to: &mut Vec<u8>, counter: u64, account: u64, token: &Token) {
    to.push(kind::TOKEN);
    put_near(to, counter, account);
    put_number(to, u64::from(token.created_s));
    put_number(to, u64::from(token.used_s));
    put_text(to, token.name.as_str());
    put_text(to, &token.scope.to_string());
    to.extend_from_slice(token.digest.as_bytes());
}

fn take_token(rest: &mut &[u8], counter: u64) -> Result<Record, Malformed> {
    let account = take_near(rest, counter)?;
    let (created_s, used_s) = (take_u32(rest)?, take_u32(rest)?);
    let token = Token {
        name: take_text(rest)?.parse().map_err(|_| Malformed)?,
        scope: take_text(rest)?.parse().map_err(|_| Malformed)?,
        digest: TokenDigest::new(take_chunk(rest)?),
        created_s,
        used_s,
    };
    Ok(Record::Token(account, token))
}

fn put_token_name(to: &mut Vec<u8>, kind: u8, account: u64, name: &TokenName) {
    to.push(kind);
    put_number(to, account);
    put_text(to, name.as_str());
}

fn take_token_name(rest: &mut &[u8]) -> Result<(u64, TokenName), Malformed> {
    let account = take_number(rest)?;
    Ok((account, take_text(rest)?.parse().map_err(|_| Malformed)?))
}

fn take_slot(rest: &mut &[u8]) -> Result<u32, Malformed> {
    take_u32(rest).and_then(|slot| {
        if slot <= SESSION_SLOT_MAX {
            Ok(slot)
        } else {
            Err(Malformed)
        }
    })
}

fn put_run(to: &mut Vec<u8>, counter: u64, run: OutcomeRun) {
    put_number(to, u64::from(run.first));
    put_number(to, u64::from(run.length));
    match run.outcome {
        Outcome::Stored(Sequence(number)) => {
            to.push(0);
            put_near(to, counter, number);
        }
        Outcome::Refused(code) => to.push(1 + code.index()),
    }
}

fn take_run(rest: &mut &[u8], counter: u64) -> Result<OutcomeRun, Malformed> {
    let (first, length) = (take_u32(rest)?, take_u32(rest)?);
    let outcome = match take_byte(rest)?.checked_sub(1) {
        None => Outcome::Stored(Sequence(take_near(rest, counter)?)),
        Some(place) => Outcome::Refused(*Code::ALL.get(usize::from(place)).ok_or(Malformed)?),
    };
    let fits = length > 0 && length as usize <= OUTCOMES_REMEMBERED && first > 0;
    if fits && first.checked_add(length - 1).is_some() {
        Ok(OutcomeRun {
            first,
            length,
            outcome,
        })
    } else {
        Err(Malformed)
    }
}

/// Decodes arbitrary bytes as records, and checks that encoding reproduces them.
///
/// # Panics
/// If it does not.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_any(bytes: &[u8]) {
    let read: Vec<_> = Records::new(bytes).map_while(Result::ok).collect();
    let mut written = Vec::new();
    let mut counter = 0;
    for record in &read {
        if let Record::Clock(clock) = record {
            counter = clock.counter;
        }
        record.put(&mut written, counter);
    }
    let again: Result<Vec<_>, _> = Records::new(&written).collect();
    assert_eq!(again, Ok(read));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let position = |sequence| Position {
            sequence: Sequence(sequence),
            messages: 7,
            bytes: 1 << 40,
        };
        let mut table = DedupTable::default();
        table.record(2, Outcome::Stored(Sequence(1 << 52)));
        for (place, code) in Code::ALL.into_iter().enumerate() {
            table.record(10 + 2 * place as u32, Outcome::Refused(code));
        }
        table.record(u32::MAX, Outcome::Stored(Sequence(u64::MAX)));
        let account = |password: Option<PasswordHash>| {
            let (head, tail) = (position(3), position(u64::MAX));
            let is_suspended = password.is_some();
            Record::Account(AccountRecord {
                name: "bob".parse().unwrap(),
                incarnation: 5,
                password,
                is_suspended,
                head,
                tail,
            })
        };
        let clock = |counter| {
            Record::Clock(Clock {
                time_ms: 9,
                running: Duration::from_millis(8),
                counter,
            })
        };
        let session = SessionRecord {
            slot: 3,
            token: "s".parse().unwrap(),
            used: Duration::ZERO,
            table,
        };
        [
            clock(1 << 52),
            Record::Counter(u64::MAX),
            account(None),
            account(Some(PasswordHash::new("$argon2id$x"))),
            Record::AccountEnd(5),
            Record::Head(5, position(0)),
            Record::Tail(5, position((1 << 52) + 3)),
            Record::Session(session),
            Record::Outcomes(
                SESSION_SLOT_MAX,
                OutcomeRun {
                    first: 1,
                    length: 1024,
                    outcome: Outcome::Stored(Sequence(3)),
                },
            ),
            clock(0),
            Record::SessionEnd(0),
            Record::Wall(1_800_000_000_000),
            Record::Stopped(Duration::from_secs(7)),
            Record::Connected(5, u32::MAX),
            device(5, None),
            device(5, Some("phone")),
            Record::DeviceEnd(5, 7),
            Record::DeviceCursor(5, 7, position(9)),
            Record::Blocked(5, vec![1, 9, 3]),
            Record::Started(
                5,
                Started {
                    since: Duration::from_secs(9),
                    count: 3,
                },
            ),
            Record::Token(
                5,
                Token {
                    name: "backup".parse().unwrap(),
                    scope: "send:#team".parse().unwrap(),
                    digest: TokenDigest::of("secret"),
                    created_s: u32::MAX,
                    used_s: 0,
                },
            ),
            Record::TokenEnd(5, "backup".parse().unwrap()),
            Record::TokenUsed(5, "backup".parse().unwrap(), u32::MAX),
        ]
        .into_iter()
        .chain([
            Record::Limits(
                5,
                UserLimits {
                    queued_messages: Some(0),
                    deliveries: Some(1 << 50),
                    ..UserLimits::default()
                },
            ),
            Record::Used(5, u32::MAX),
            Record::AgeMark(AgeMark {
                age: Duration::from_secs(9),
                last: 1 << 51,
            }),
        ])
        .chain(RoomRecord::samples().into_iter().map(Record::Room))
        .collect()
    }

    /// The age of an old store in seconds, and a number of its beginning.
    const YEARS_S: u64 = 5 * 366 * 86_400;
    const BEGINNING: u64 = 1_793_491_200 << 21;

    /// Returns the record of a device, with times of an old store.
    fn device(account: u64, name: Option<&str>) -> Record {
        let state = DeviceState {
            id: name.map_or(0, |_| account + (YEARS_S << 20)),
            name: name.map(|name| name.parse().unwrap()),
            cursor: Position {
                sequence: Sequence(account + (YEARS_S << 20)),
                messages: 200_000_000,
                bytes: 30 << 30,
            },
            detached: name.map(|_| Duration::from_secs(YEARS_S)),
            lapsed: name.map(|_| 7),
            acknowledged: Duration::from_secs(YEARS_S / 2),
            seen_s: u32::MAX,
        };
        Record::Device(account, state)
    }

    fn encode(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut counter = 0;
        for record in records {
            if let Record::Clock(clock) = record {
                counter = clock.counter;
            }
            record.put(&mut bytes, counter);
        }
        bytes
    }

    #[test]
    fn every_record_comes_back() {
        let decoded: Result<Vec<_>, _> = Records::new(&encode(&records())).collect();
        assert_eq!(decoded, Ok(records()));
    }

    #[test]
    fn truncated_records_end_with_an_error() {
        for record in records() {
            let bytes = encode(std::slice::from_ref(&record));
            for end in 1..bytes.len() {
                let decoded: Result<Vec<_>, _> = Records::new(&bytes[..end]).collect();
                assert_eq!(decoded, Err(Malformed), "{record:?} up to {end}");
            }
        }
    }

    #[test]
    fn device_of_an_old_store_takes_80_bytes() {
        let mut bytes = Vec::new();
        let counter = BEGINNING + (YEARS_S << 21);
        device(BEGINNING, Some(&"x".repeat(32))).put(&mut bytes, counter);
        assert!(bytes.len() <= 80, "{} bytes", bytes.len());
    }

    #[test]
    fn membership_of_an_old_store_takes_48_bytes() {
        const COUNT: u64 = 100;
        let step = (YEARS_S << 21) / COUNT;
        let counter = BEGINNING + (YEARS_S << 21);
        let mut bytes = Vec::new();
        for record in RoomRecord::memberships(BEGINNING, COUNT, step) {
            record.put(&mut bytes, counter);
        }
        let bytes = bytes.len() as u64 / COUNT;
        assert!(bytes <= 48, "{bytes} bytes for a member and a cursor");
    }

    #[test]
    fn unknown_record_is_not_skipped() {
        let mut bytes = encode(&[Record::Counter(1)]);
        bytes.push(200);
        Record::Counter(2).put(&mut bytes, 0);
        let decoded: Vec<_> = Records::new(&bytes).collect();
        assert_eq!(decoded, [Ok(Record::Counter(1)), Err(Malformed)]);
    }

    #[test]
    fn records_of_one_send_are_short() {
        let counter = (1 << 52) + 12_345;
        let position = Position {
            sequence: Sequence(counter + 1),
            messages: 1000,
            bytes: 100_000,
        };
        let records = [
            Record::Tail(1 << 52, position),
            Record::Outcomes(
                40,
                OutcomeRun::of(1000, Outcome::Stored(Sequence(counter + 1))),
            ),
        ];
        let mut bytes = Vec::new();
        records
            .iter()
            .for_each(|record| record.put(&mut bytes, counter));
        assert_eq!(bytes.len(), 22);
    }

    #[test]
    fn places_and_lengths_beyond_their_bound_are_refused() {
        for run in [(1, 1025), (1, 0), (0, 1), (u32::MAX, 2)] {
            let mut bytes = Vec::new();
            let (first, length) = run;
            put_run(
                &mut bytes,
                0,
                OutcomeRun {
                    first,
                    length,
                    outcome: Outcome::Refused(Code::Denied),
                },
            );
            assert_eq!(take_run(&mut &*bytes, 0), Err(Malformed), "{run:?}");
        }
        let mut bytes = Vec::new();
        Record::SessionEnd(SESSION_SLOT_MAX + 1).put(&mut bytes, 0);
        assert_eq!(Records::new(&bytes).next(), Some(Err(Malformed)));
    }
}
