//! The rules on the pure ledger, and the property that a replay reproduces its state.

mod administration;
mod bytes;
mod device_model;
mod devices;
mod room_model;
mod rooms;
mod tokens;
mod totals;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytestring::ByteString;
use hark_protocol::RequestId;
use proptest::prelude::*;

use super::dedup::DedupTable;
use super::*;
use crate::log::CheckpointPart;
use crate::store::{RoomEntry, SendId};

pub(super) const LIMITS: Limits = Limits {
    accounts_max: 3,
    sessions_max: 3,
    queued_messages_max: 6,
    queued_bytes_max: 60,
    rooms: RoomLimits::DEFAULT,
    space: SpaceLimits::NONE,
    expiry: Expiry::NONE,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A ledger with its log, driven by hand.
pub(super) struct Driver {
    pub(super) ledger: Ledger,
    pub(super) changes: Changes,
    pub(super) context: Context,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) frames: Vec<Frame>,
}

/// The state that a replay must reproduce.
#[derive(Debug, PartialEq)]
struct State {
    /// All records of a checkpoint but those of sessions, sorted.
    records: Vec<String>,
    /// The rooms of each account.
    rooms: BTreeMap<String, Vec<String>>,
    sessions: BTreeMap<String, (u32, DedupTable)>,
    reserved: u64,
    time_ms: u64,
    running: Duration,
    age: Duration,
    /// Derived from the records: sizes, senders and expiries of rooms.
    derived: Vec<String>,
}

fn state(ledger: &mut Ledger) -> State {
    let sessions = ledger.sessions.records_from(0);
    State {
        records: records(ledger),
        rooms: rooms(ledger),
        sessions: sessions
            .map(|session| {
                (
                    session.token.as_str().to_owned(),
                    (session.slot, session.table),
                )
            })
            .collect(),
        reserved: ledger.numbers.reserved(),
        time_ms: ledger.time_ms,
        running: ledger.running,
        age: ledger.age,
        derived: ledger.rooms.derived(),
    }
}

/// Returns what a checkpoint records, independent of slots. A replay ends all attachments.
fn records(ledger: &Ledger) -> Vec<String> {
    let mut changes = Changes::default();
    let frame = Checkpoint::default().next_piece_of(usize::MAX, ledger, &mut changes);
    let records = record::Records::new(&frame.records).map(Result::unwrap);
    let mut records: Vec<_> = records
        .filter_map(|record| match record {
            Record::Clock(_) | Record::Session(_) => None,
            Record::Device(account, mut device) => {
                device.detached.get_or_insert(seconds(ledger.running));
                Some(Record::Device(account, device))
            }
            other => Some(other),
        })
        .map(|record| format!("{record:?}"))
        .collect();
    records.sort_unstable();
    records
}

/// Returns the records that only one of two states has.
fn difference<'r>(left: &'r [String], right: &'r [String]) -> (Vec<&'r str>, Vec<&'r str>) {
    let only = |of: &'r [String], other: &[String]| {
        let only = of.iter().filter(|record| !other.contains(record));
        only.map(String::as_str).collect()
    };
    (only(left, right), only(right, left))
}

fn rooms(ledger: &Ledger) -> BTreeMap<String, Vec<String>> {
    let inboxes = ledger.inboxes.iter_from(0).map(|(_, inbox)| inbox);
    let accounts = inboxes.map(|inbox| inbox.account.clone());
    accounts
        .map(|account| {
            let rooms = all_rooms(ledger, &account).into_iter();
            let mut rooms: Vec<_> = rooms.map(|room| format!("{room:?}")).collect();
            rooms.sort_unstable();
            (account.name.to_string(), rooms)
        })
        .collect()
}

/// Returns all pages of the rooms of a user.
pub(super) fn all_rooms(ledger: &Ledger, account: &Account) -> Vec<RoomEntry> {
    let (mut rooms, mut from) = (Vec::new(), Some(0));
    while let Some(place) = from {
        let page = ledger.rooms(account, place).unwrap();
        rooms.extend(page.rooms);
        from = page.next;
    }
    rooms
}

pub(super) fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

fn token(text: &str) -> SessionToken {
    text.parse().unwrap()
}

/// Returns a message without a sender or a session.
pub(super) fn text(to: &str, text: &str) -> Append {
    Append {
        to: name(to),
        sender: None,
        allow_anonymous: true,
        time_ms: 1,
        text: ByteString::from(text),
        send_id: None,
        refusal: None,
    }
}

fn send(session: &str, id: u32, to: &str, content: &str) -> Append {
    let (session, id) = (token(session), RequestId::new(id).unwrap());
    Append {
        send_id: Some(SendId {
            session,
            id,
            in_order: true,
            from: None,
        }),
        ..text(to, content)
    }
}

impl Driver {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    pub(super) fn with(limits: Limits) -> Self {
        let context = Context {
            running: Duration::ZERO,
            wall_ms: 0,
            is_low_on_space: false,
            space: SpaceUse::default(),
        };
        let (mut ledger, mut changes) = (Ledger::new(limits, 1000), Changes::default());
        ledger.begin(context, &mut changes);
        Self {
            ledger,
            changes,
            context,
            checkpoint: None,
            frames: Vec::new(),
        }
    }

    pub(super) fn create(&mut self, user: &str) -> Created {
        self.ledger.create(&name(user), None, &mut self.changes)
    }

    pub(super) fn account(&self, user: &str) -> Option<Account> {
        self.ledger
            .accounts()
            .map(|entry| entry.account)
            .find(|account| account.name == name(user))
    }

    pub(super) fn append(&mut self, append: Append) -> Outcome {
        self.ledger.append(append, self.context, &mut self.changes)
    }

    #[track_caller]
    pub(super) fn check_send(
        &mut self,
        append: Append,
        expected: Result<(), Code>,
    ) -> Option<Sequence> {
        let outcome = self.append(append);
        match (outcome, expected) {
            (Outcome::Stored(number), Ok(())) => Some(number),
            (Outcome::Refused(code), Err(expected)) if code == expected => None,
            _ => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    /// Ends the frame and begins the next. Returns whether it had to be appended.
    pub(super) fn next_frame(&mut self) -> bool {
        let is_appended = self.end_frame();
        self.ledger.begin(self.context, &mut self.changes);
        is_appended
    }

    fn end_frame(&mut self) -> bool {
        let frame = self.ledger.finish(&mut self.changes);
        let is_appended = frame.is_some();
        self.frames.extend(frame);
        self.changes.effects.clear();
        is_appended
    }

    /// Appends a small piece of a checkpoint.
    pub(super) fn checkpoint(&mut self) {
        self.end_frame();
        let checkpoint = self.checkpoint.get_or_insert_default();
        let piece = checkpoint.next_piece_of(60, &self.ledger, &mut self.changes);
        if checkpoint.is_complete() {
            self.checkpoint = None;
        }
        self.frames.push(piece);
        self.ledger.begin(self.context, &mut self.changes);
    }

    /// Returns the frames from the beginning of the newest complete checkpoint on.
    fn needed_frames(&self) -> &[Frame] {
        let parts = || self.frames.iter().map(|frame| frame.checkpoint);
        let is = |test: fn(CheckpointPart) -> bool| {
            move |part: Option<CheckpointPart>| part.is_some_and(test)
        };
        let Some(last) = parts().rposition(is(|part| part.is_last)) else {
            return &self.frames;
        };
        let first = parts().take(last + 1).collect::<Vec<_>>();
        let first = first
            .into_iter()
            .rposition(is(|part| part.is_first))
            .unwrap();
        &self.frames[first..]
    }

    pub(super) fn replayed(&self, times: usize) -> Ledger {
        self.replay(times, self.ledger.limits)
    }

    /// Returns the ledger after a restart with other limits.
    pub(super) fn replayed_with(&self, limits: Limits) -> Ledger {
        self.replay(1, limits)
    }

    fn replay(&self, times: usize, limits: Limits) -> Ledger {
        let mut replay = Replay::new(limits);
        for frame in self.needed_frames() {
            (0..times).for_each(|_| replay.frame(&frame.records).unwrap());
        }
        replay.finish(1000)
    }

    #[track_caller]
    pub(super) fn check_replay(&mut self) {
        // Beginning a frame may forget sessions.
        self.next_frame();
        while self.next_frame() {}
        // A frame records the running time, at which attachments end.
        let frame = self.ledger.finish_empty(&mut self.changes);
        self.frames.push(frame);
        self.ledger.begin(self.context, &mut self.changes);
        let expected = state(&mut self.ledger);
        for times in [1, 2] {
            let replayed = state(&mut self.replayed(times));
            assert_eq!(
                difference(&replayed.records, &expected.records),
                (vec![], vec![]),
                "after {times} replays of each frame"
            );
            assert!(replayed == expected, "{replayed:?} instead of {expected:?}");
        }
    }

    /// Returns the messages of an account in all frames.
    pub(super) fn messages(&self, account: &Account) -> Vec<Message> {
        self.messages_of(account.incarnation)
    }

    /// Returns the messages of a log in all frames.
    pub(super) fn messages_of(&self, log: u64) -> Vec<Message> {
        let blocks = self.frames.iter().flat_map(|frame| &frame.blocks);
        let mut messages: Vec<Arc<Message>> = Vec::new();
        for block in blocks.filter(|block| block.inbox == log) {
            let Ok(BlockContent::Messages(stored)) = decode(block) else {
                panic!("{block:?}")
            };
            for stored in stored {
                let message = stored.unwrap().message(messages.last());
                messages.push(Arc::new(message.unwrap()));
            }
        }
        messages.into_iter().map(Arc::unwrap_or_clone).collect()
    }
}

#[test]
fn merged_blocks_replace_only_unacknowledged_messages() {
    let mut driver = Driver::new();
    driver.create("bob");
    let bob = driver.account("bob").unwrap();
    // Acknowledgements come from a device.
    drop(driver.ledger.subscribe(&bob, &mut driver.changes));
    driver.next_frame();
    for content in ["1", "2", "3", "4"] {
        driver.check_send(text("bob", content), Ok(()));
        driver.next_frame();
    }
    let blocks: Vec<_> = driver
        .frames
        .iter()
        .flat_map(|frame| frame.blocks.clone())
        .collect();
    let merged = [merge(&blocks[..2]).unwrap(), merge(&blocks[2..]).unwrap()].concat();
    assert_eq!(merged.len(), 2);
    let messages = driver.messages(&bob);
    let acknowledge = |driver: &mut Driver, number: usize| {
        let position = messages[number].position;
        driver
            .ledger
            .acknowledge(&bob, NAMELESS, position, &mut driver.changes);
    };
    let check = |driver: &mut Driver, expected: &[Block]| {
        let before = state(&mut driver.ledger);
        let was_awaited = driver.changes.effects.is_awaited;
        let (ledger, changes) = (&mut driver.ledger, &mut driver.changes);
        ledger.replace_blocks(bob.incarnation, merged.clone(), changes);
        assert!(changes.effects.deliveries.is_empty());
        assert_eq!(changes.effects.is_awaited, was_awaited);
        assert_eq!(state(&mut driver.ledger), before);
        driver.next_frame();
        assert_eq!(driver.frames.last().unwrap().merged, expected);
    };
    check(&mut driver, &merged);
    acknowledge(&mut driver, 0);
    check(&mut driver, &merged);
    acknowledge(&mut driver, 1);
    check(&mut driver, &merged[1..]);
    driver.ledger.delete(&bob, &mut driver.changes);
    check(&mut driver, &[]);
    driver.check_replay();
}

#[test]
fn each_rule_refuses_a_send() {
    let mut driver = Driver::new();
    driver.create("bob");
    driver.create("amy");
    let amy = driver.account("amy").unwrap();
    driver.check_send(text("eve", "x"), Err(Code::NoSuchUser));
    driver.check_send(
        Append {
            refusal: Some(Code::TooLarge),
            ..text("eve", "x")
        },
        Err(Code::TooLarge),
    );
    driver.check_send(
        Append {
            allow_anonymous: false,
            ..text("bob", "x")
        },
        Err(Code::Denied),
    );
    let from_amy = |allow_anonymous| Append {
        sender: Some(amy.clone()),
        allow_anonymous,
        ..text("bob", "x")
    };
    driver.check_send(from_amy(false), Ok(()));
    for (is_suspended, expected) in [(true, Err(Code::Denied)), (false, Ok(()))] {
        let changes = &mut driver.changes;
        assert!(driver.ledger.set_suspended(&amy, is_suspended, changes));
        driver.check_send(from_amy(true), expected);
    }
    assert!(driver.ledger.delete(&amy, &mut driver.changes));
    driver.create("amy");
    driver.check_send(from_amy(false), Err(Code::Denied));
    driver.check_send(from_amy(true), Ok(()));
    let large = "x".repeat(59);
    driver.check_send(text("bob", &large), Err(Code::QueueFull));
    (0..3).for_each(|_| _ = driver.check_send(text("bob", ""), Ok(())));
    driver.check_send(text("bob", ""), Err(Code::QueueFull));
    driver.next_frame();
    let bob = driver.account("bob").unwrap();
    let senders: Vec<_> = driver
        .messages(&bob)
        .into_iter()
        .map(|message| message.sender)
        .collect();
    assert_eq!(senders[..3], [Some(name("amy")), Some(name("amy")), None]);
}

#[test]
fn repeat_gets_the_number_of_its_message() {
    let mut driver = Driver::new();
    driver.create("bob");
    let number = driver.check_send(send("s", 5, "bob", "x"), Ok(())).unwrap();
    driver.check_send(send("s", 6, "amy", "x"), Err(Code::NoSuchUser));
    driver.create("amy");
    for _ in 0..2 {
        let repeat = Append {
            refusal: Some(Code::TooLarge),
            ..send("s", 5, "bob", "x")
        };
        assert_eq!(driver.append(repeat), Outcome::Stored(number));
        driver.check_send(send("s", 6, "amy", "x"), Err(Code::NoSuchUser));
        driver.check_send(send("s", 4, "bob", "x"), Err(Code::BadRequest));
        driver.next_frame();
    }
    let bob = driver.account("bob").unwrap();
    assert_eq!(driver.messages(&bob).len(), 1);
}

#[test]
fn no_space_refuses_sends_alone_and_is_forgotten() {
    let mut driver = Driver::new();
    driver.create("bob");
    let bob = driver.account("bob").unwrap();
    let number = driver.check_send(send("s", 1, "bob", "x"), Ok(())).unwrap();
    driver.next_frame();
    driver.context.is_low_on_space = true;
    driver.check_send(send("s", 2, "bob", "x"), Err(Code::NoSpace));
    driver.check_send(send("new", 2, "bob", "x"), Err(Code::NoSpace));
    driver.check_send(text("bob", "x"), Err(Code::NoSpace));
    assert_eq!(
        driver.append(send("s", 1, "bob", "x")),
        Outcome::Stored(number)
    );
    assert!(!driver.next_frame(), "it writes nothing");
    driver.check_send(send("s", 3, "eve", "x"), Err(Code::NoSuchUser));
    drop(driver.ledger.subscribe(&bob, &mut driver.changes));
    driver.ledger.acknowledge(
        &bob,
        NAMELESS,
        driver.messages(&bob)[0].position,
        &mut driver.changes,
    );
    assert_eq!(driver.create("amy"), Created::Created);
    assert!(driver.ledger.delete(&bob, &mut driver.changes));
    driver.create("bob");
    driver.context.is_low_on_space = false;
    driver.check_send(send("new", 2, "bob", "x"), Ok(()));
    driver.check_replay();
}

#[test]
fn refusal_for_space_is_final_behind_a_later_send() {
    let mut driver = Driver::new();
    driver.create("bob");
    driver.check_send(send("s", 1, "bob", "x"), Ok(()));
    driver.context.is_low_on_space = true;
    for id in [2, 3, 5, 7] {
        driver.check_send(send("s", id, "bob", "x"), Err(Code::NoSpace));
    }
    driver.context.is_low_on_space = false;
    driver.check_send(send("s", 2, "bob", "x"), Ok(()));
    driver.check_send(send("s", 6, "bob", "x"), Ok(()));
    for id in [3, 5] {
        driver.check_send(send("s", id, "bob", "x"), Err(Code::NoSpace));
    }
    driver.check_send(send("s", 4, "bob", "x"), Err(Code::BadRequest));
    driver.check_send(send("s", 7, "bob", "x"), Ok(()));
    driver.context.is_low_on_space = true;
    driver.check_send(send("s", u32::MAX, "bob", "x"), Err(Code::NoSpace));
    driver.context.is_low_on_space = false;
    driver.check_send(send("s", 8, "bob", "x"), Ok(()));
    driver.check_send(send("s", u32::MAX, "bob", "x"), Ok(()));
    driver.check_replay();
}

#[test]
fn session_is_recorded_with_its_first_send_alone() {
    let mut driver = Driver::new();
    driver.create("bob");
    driver.next_frame();
    assert!(
        driver
            .ledger
            .open_session(&token("s"), None, Duration::ZERO)
    );
    assert!(!driver.next_frame());
    (1..=3).for_each(|id| _ = driver.check_send(send("s", id, "bob", "x"), Ok(())));
    assert!(driver.next_frame());
    let sessions = |driver: &Driver| {
        let records = &driver.frames.last().unwrap().records;
        let records = record::Records::new(records).map(Result::unwrap);
        records
            .filter(|record| matches!(record, Record::Session(_) | Record::Outcomes(..)))
            .count()
    };
    assert_eq!(sessions(&driver), 2, "the session, and one run of outcomes");
    driver.check_send(send("s", 4, "bob", "x"), Ok(()));
    driver.next_frame();
    assert_eq!(sessions(&driver), 1);
    driver.ledger.close_session(&token("s"), MINUTE);
    driver.context.running = 12 * MINUTE;
    driver.next_frame();
    assert!(driver.next_frame(), "it is forgotten");
    driver.check_send(send("s", 1, "bob", "x"), Ok(()));
    driver.check_replay();
}

#[test]
fn alternating_outcomes_write_few_bytes() {
    let mut driver = Driver::with(Limits {
        queued_messages_max: u64::MAX,
        queued_bytes_max: u64::MAX,
        ..LIMITS
    });
    driver.create("bob");
    driver.check_send(send("s", 1, "bob", "x"), Ok(()));
    driver.next_frame();
    for id in 2..=2100 {
        let (to, expected) = if id % 2 == 0 {
            ("eve", Err(Code::NoSuchUser))
        } else {
            ("bob", Ok(()))
        };
        driver.check_send(send("s", id, to, "x"), expected);
        driver.next_frame();
        let bytes = driver.frames.last().unwrap().records.len();
        assert!(bytes < 100, "{bytes} bytes");
    }
    driver.check_replay();
}

#[test]
fn times_never_decrease_with_the_numbers() {
    let mut driver = Driver::new();
    driver.create("bob");
    let bob = driver.account("bob").unwrap();
    for time_ms in [50, 20, 60, 59] {
        driver.check_send(
            Append {
                time_ms,
                ..text("bob", "x")
            },
            Ok(()),
        );
    }
    driver.next_frame();
    let times: Vec<_> = driver
        .messages(&bob)
        .iter()
        .map(|message| message.time_ms)
        .collect();
    assert_eq!(times, [50, 50, 60, 60]);
    driver.ledger = driver.replayed(1);
    driver.next_frame();
    driver.check_send(
        Append {
            time_ms: 7,
            ..text("bob", "x")
        },
        Ok(()),
    );
    driver.next_frame();
    assert_eq!(driver.messages(&bob).last().unwrap().time_ms, 60);
}

#[test]
fn numbers_go_on_above_the_persisted_counter() {
    let mut driver = Driver::new();
    driver.create("bob");
    driver.next_frame();
    let reserved = driver.ledger.numbers.reserved();
    let mut replay = Replay::new(LIMITS);
    assert_eq!(replay.counter(), None);
    replay.frame(&driver.frames[0].records).unwrap();
    assert_eq!(replay.counter(), Some(reserved));
    assert_eq!(replay.finish(5).counter(), reserved);
    assert_eq!(Replay::new(LIMITS).finish(5).counter(), 5);
    assert_eq!(driver.replayed(1).counter(), reserved);
}

#[test]
fn messages_of_one_inbox_are_one_block_of_a_frame() {
    let mut driver = Driver::with(Limits {
        queued_messages_max: 9999,
        queued_bytes_max: 1 << 30,
        ..LIMITS
    });
    driver.create("bob");
    driver.create("amy");
    let bob = driver.account("bob").unwrap();
    for n in 0..10 {
        driver.check_send(text(["amy", "bob"][n % 2], "x"), Ok(()));
        if n == 5 {
            drop(driver.ledger.subscribe(&bob, &mut driver.changes));
        }
    }
    assert!(!driver.changes.is_full());
    let large = "x".repeat(block::PAYLOAD_BYTES_MAX);
    driver.check_send(text("bob", &large), Ok(()));
    assert!(driver.changes.is_full());
    driver.next_frame();
    assert!(!driver.changes.is_full());
    assert_eq!(driver.frames[0].blocks.len(), 2);
    let counts: Vec<_> = driver
        .messages(&bob)
        .iter()
        .map(|message| message.position.messages)
        .collect();
    assert_eq!(counts, (1..=6).collect::<Vec<_>>());
}

#[test]
fn takeover_divides_the_deliveries_of_a_frame() {
    let mut driver = Driver::new();
    driver.create("bob");
    let bob = driver.account("bob").unwrap();
    let mut former = driver.ledger.subscribe(&bob, &mut driver.changes).unwrap();
    former.follow();
    driver.check_send(text("bob", "1"), Ok(()));
    let mut latter = driver.ledger.subscribe(&bob, &mut driver.changes).unwrap();
    latter.follow();
    driver.check_send(text("bob", "2"), Ok(()));
    driver.check_send(text("bob", "3"), Ok(()));
    let counts: Vec<_> = driver
        .changes
        .effects
        .deliveries
        .iter()
        .map(|d| d.messages.len())
        .collect();
    assert_eq!(counts, [1, 2]);
    driver.changes.effects.publish();
    assert_eq!(former.end(), Some(End::TakenOver));
    assert!(matches!(latter.next_event(), Some(crate::store::Event::Appended(m)) if m.len() == 2));
}

#[test]
fn acknowledgement_never_leads_back_or_beyond_the_inbox() {
    let mut driver = Driver::new();
    driver.create("bob");
    let bob = driver.account("bob").unwrap();
    drop(driver.ledger.subscribe(&bob, &mut driver.changes));
    (0..3).for_each(|_| _ = driver.check_send(text("bob", "x"), Ok(())));
    driver.next_frame();
    let messages = driver.messages(&bob);
    let mut cursor_after = |position| {
        driver
            .ledger
            .acknowledge(&bob, NAMELESS, position, &mut driver.changes);
        driver.ledger.inboxes().next().unwrap().1
    };
    assert_eq!(cursor_after(messages[1].position), messages[1].position);
    assert_eq!(cursor_after(messages[0].position), messages[1].position);
    let beyond = Position {
        sequence: Sequence(u64::MAX),
        messages: 99,
        bytes: 99,
    };
    assert_eq!(cursor_after(beyond), messages[2].position);
    driver.check_replay();
}

#[test]
fn imported_messages_keep_their_numbers() {
    let mut driver = Driver::new();
    let bob = name("bob");
    let hash = Some(PasswordHash::new("$x"));
    let cursor = Sequence(70_000_000);
    let created = driver
        .ledger
        .import_account(&bob, hash, cursor, &mut driver.changes);
    assert_eq!(created, Created::Created);
    let mut import = |number, content: &str| {
        let position = Position {
            sequence: Sequence(number),
            ..Position::default()
        };
        let message = Message {
            position,
            sender: None,
            time_ms: 5,
            text: ByteString::from(content),
        };
        driver
            .ledger
            .import_message(&bob, message, &mut driver.changes)
    };
    assert_eq!(import(70_000_000, "acknowledged"), Imported::Known);
    assert_eq!(import(70_000_007, "a"), Imported::Stored);
    assert_eq!(import(70_000_007, "again"), Imported::Known);
    assert_eq!(import(90_000_000, "b"), Imported::Stored);
    assert!(matches!(import(80_000_000, "between"), Imported::Behind(_)));
    driver.next_frame();
    let account = driver.account("bob").unwrap();
    let messages = driver.messages(&account);
    let positions: Vec<_> = messages
        .iter()
        .map(|m| (m.position.sequence.0, m.position.messages))
        .collect();
    assert_eq!(positions, [(70_000_007, 1), (90_000_000, 2)]);
    assert!(driver.replayed(1).counter() >= 90_000_000);
    let number = driver.check_send(text("bob", "x"), Ok(())).unwrap();
    assert!(number.0 > 90_000_000);
    driver.check_replay();
}

#[test]
fn largest_times_do_not_overflow() {
    let mut records = Vec::new();
    let clock = record::Clock {
        time_ms: u64::MAX,
        running: Duration::from_millis(u64::MAX),
        counter: u64::MAX,
    };
    Record::Clock(clock).put(&mut records, 0);
    Record::Wall(1).put(&mut records, 0);
    Record::Stopped(Duration::from_secs((1 << 38) - 1)).put(&mut records, 0);
    let mut replay = Replay::new(LIMITS);
    replay.frame(&records).unwrap();
    let mut ledger = replay.finish(1000);
    let context = Context {
        running: Duration::MAX,
        wall_ms: u64::MAX,
        is_low_on_space: false,
        space: SpaceUse::default(),
    };
    ledger.begin(context, &mut Changes::default());
    ledger.count_stop(&mut Changes::default());
    assert_eq!(ledger.age(), Duration::MAX);
    records.clear();
    Record::Stopped(Duration::from_secs(1 << 38)).put(&mut records, 0);
    assert_eq!(Replay::new(LIMITS).frame(&records), Err(Malformed));
}

#[derive(Debug, Clone)]
enum Op {
    Create(usize),
    SetPassword(usize),
    Suspend(usize, bool),
    Delete(usize),
    Append {
        to: usize,
        from: usize,
        bytes: usize,
    },
    Send {
        session: usize,
        ahead: i32,
        to: usize,
        in_order: bool,
    },
    Acknowledge {
        of: usize,
        nth: usize,
    },
    OpenSession(usize),
    CloseSession(usize),
    Wait(u64),
    Space(bool),
    Frame,
    Checkpoint,
}

fn op() -> impl Strategy<Value = Op> {
    let user = 0..4_usize;
    let session = 0..4_usize;
    prop_oneof![
        3 => user.clone().prop_map(Op::Create),
        1 => user.clone().prop_map(Op::SetPassword),
        1 => (user.clone(), any::<bool>()).prop_map(|(user, on)| Op::Suspend(user, on)),
        2 => user.clone().prop_map(Op::Delete),
        4 => (user.clone(), user.clone(), 0..20_usize)
            .prop_map(|(to, from, bytes)| Op::Append { to, from, bytes }),
        8 => (session.clone(), -3..3_i32, user.clone(), any::<bool>())
            .prop_map(|(session, ahead, to, in_order)| Op::Send { session, ahead, to, in_order }),
        4 => (user, 0..6_usize).prop_map(|(of, nth)| Op::Acknowledge { of, nth }),
        2 => session.clone().prop_map(Op::OpenSession),
        2 => session.prop_map(Op::CloseSession),
        2 => (0..8_u64).prop_map(Op::Wait),
        1 => any::<bool>().prop_map(Op::Space),
        6 => Just(Op::Frame),
        8 => Just(Op::Checkpoint),
    ]
}

fn step(driver: &mut Driver, op: Op) {
    let user = |n: usize| format!("user{n}");
    let session = |n: usize| token(&format!("session{n}"));
    match op {
        Op::Create(n) => {
            driver.create(&user(n));
        }
        Op::SetPassword(n) => {
            let Some(account) = driver.account(&user(n)) else {
                return;
            };
            let hash = PasswordHash::new(&format!("${}", driver.frames.len()));
            driver
                .ledger
                .set_password(&account, None, hash, &mut driver.changes);
        }
        Op::Suspend(n, is_suspended) => {
            let Some(account) = driver.account(&user(n)) else {
                return;
            };
            let changes = &mut driver.changes;
            assert!(driver.ledger.set_suspended(&account, is_suspended, changes));
        }
        Op::Delete(n) => {
            let Some(account) = driver.account(&user(n)) else {
                return;
            };
            assert!(driver.ledger.delete(&account, &mut driver.changes));
        }
        Op::Append { to, from, bytes } => {
            let sender = driver.account(&user(from));
            let time_ms = (driver.frames.len() as u64 * 7919) % 100;
            let append = Append {
                sender,
                time_ms,
                ..text(&user(to), &"x".repeat(bytes))
            };
            let _ = driver.append(append);
        }
        Op::Send {
            session: n,
            ahead,
            to,
            in_order,
        } => {
            let table = state(&mut driver.ledger)
                .sessions
                .remove(session(n).as_str());
            let highest = table.map_or(0, |(_, table)| table.highest());
            let mut append = send(
                "s",
                highest.saturating_add_signed(ahead).max(1),
                &user(to),
                "x",
            );
            if let Some(send) = &mut append.send_id {
                (send.session, send.in_order) = (session(n), in_order);
            }
            let _ = driver.append(append);
        }
        Op::Acknowledge { of, nth } => {
            let Some(account) = driver.account(&user(of)) else {
                return;
            };
            let messages = driver.messages(&account);
            let Some(message) = messages.get(nth) else {
                return;
            };
            drop(driver.ledger.subscribe(&account, &mut driver.changes));
            driver
                .ledger
                .acknowledge(&account, NAMELESS, message.position, &mut driver.changes);
        }
        Op::OpenSession(n) => {
            driver
                .ledger
                .open_session(&session(n), None, driver.context.running);
        }
        Op::CloseSession(n) => driver
            .ledger
            .close_session(&session(n), driver.context.running),
        Op::Wait(minutes) => driver.context.running += Duration::from_secs(60 * minutes),
        Op::Space(is_low) => driver.context.is_low_on_space = is_low,
        Op::Frame => {
            driver.next_frame();
        }
        Op::Checkpoint => driver.checkpoint(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn replay_gives_the_state(ops in proptest::collection::vec(op(), 1..120)) {
        let mut driver = Driver::new();
        for op in ops {
            step(&mut driver, op);
        }
        driver.check_replay();
        let accounts: Vec<_> = driver.ledger.inboxes().collect();
        for (entry, cursor, tail) in accounts {
            let messages = driver.messages(&entry.account);
            let mut before = Position::default();
            for message in messages {
                let position = message.position;
                prop_assert!(position.sequence > before.sequence);
                prop_assert_eq!(position.messages, before.messages + 1);
                prop_assert_eq!(position.bytes, before.bytes + message.text.len() as u64);
                before = position;
            }
            prop_assert_eq!(before, tail);
            prop_assert!(cursor.sequence <= tail.sequence && cursor.messages <= tail.messages);
        }
    }
}
