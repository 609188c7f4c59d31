//! Several logs in one window: a model of the logs, their rings and the store.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A log, and the place of its delivery.
#[derive(Debug)]
struct Log {
    /// All messages: number and length of the text.
    messages: Vec<(u64, usize)>,
    /// The messages that retention has removed.
    removed: usize,
    /// The messages before the ring.
    before_ring: usize,
    /// The messages that have been pushed, or are not to be.
    pushed: usize,
    /// Numbers in flight.
    in_flight: Vec<u64>,
    /// The messages of the membership, if it has ended.
    ends_at: Option<usize>,
    /// The store does not have the log any more, only the ring.
    has_ended: bool,
}

impl Log {
    fn new(messages: Vec<(u64, usize)>) -> Self {
        let count = messages.len();
        Self {
            messages,
            removed: 0,
            before_ring: count,
            pushed: count,
            in_flight: Vec::new(),
            ends_at: None,
            has_ended: false,
        }
    }

    /// Returns the position of the last of so many messages.
    fn position(&self, count: usize) -> Position {
        let last = count.checked_sub(1).and_then(|at| self.messages.get(at));
        Position {
            sequence: Sequence(last.map_or(0, |last| last.0)),
            messages: count as u64,
            bytes: 0,
        }
    }

    fn message(&self, at: usize) -> Arc<Message> {
        Arc::new(Message {
            position: self.position(at + 1),
            sender: None,
            time_ms: 0,
            text: "x".repeat(self.messages[at].1).into(),
        })
    }

    fn push(&self, log: LogId, at: usize) -> Push {
        match log {
            INBOX => Push::Message(self.message(at)),
            _ => Push::Said(self.said(at)),
        }
    }

    fn said(&self, at: usize) -> Arc<Said> {
        Arc::new(Said::new("#team".parse().unwrap(), self.message(at)))
    }

    fn page(&self, log: LogId, after: Point, limit: ReadLimit) -> ReadPage {
        if self.has_ended {
            return ended_page();
        }
        let after = after.messages as usize;
        let from = after.max(self.removed);
        let mut bytes = 0;
        let fits = |at: &usize| {
            bytes += self.messages[*at].1;
            *at == from || bytes <= limit.bytes
        };
        let ats = (from..self.messages.len()).take(limit.messages);
        let messages: Vec<_> = ats.take_while(fits).map(|at| self.push(log, at)).collect();
        ReadPage {
            starts_after: (from > after).then(|| self.position(from)),
            is_complete: from + messages.len() == self.messages.len(),
            messages,
            has_ended: false,
        }
    }

    /// Returns the messages that are to be pushed.
    fn due(&self) -> usize {
        self.ends_at.unwrap_or(self.messages.len())
    }
}

/// Returns a page of a log that has ended.
fn ended_page() -> ReadPage {
    ReadPage {
        is_complete: true,
        has_ended: true,
        ..ReadPage::default()
    }
}

#[derive(Debug)]
struct World {
    window: DeliveryWindow,
    now: Instant,
    logs: BTreeMap<LogId, Log>,
    number: u64,
    leaving: BTreeMap<LogId, Option<LeftReason>>,
    reads_fail: bool,
    /// The log of the last push, and the pushes of it in succession.
    run: (LogId, usize),
    pushes: usize,
}

#[derive(Debug, Clone)]
enum Op {
    /// Messages of so many bytes.
    Say(usize, usize, usize),
    /// Acknowledges a part of the messages in flight, in 1/4.
    Ack(usize, usize),
    /// Removes a part of the messages from the store, in 1/4.
    Retain(usize, usize),
    /// Empties the ring.
    Lag(usize),
    Join,
    /// With a reason, or by the reader itself.
    Leave(usize, Option<LeftReason>),
    /// The log of a room ends. The end of the membership may come later.
    EndLog(usize),
    FailReads(bool),
    Run,
}

impl World {
    fn new() -> Self {
        Self {
            window: DeliveryWindow::new(Position::default(), true),
            now: Instant::now(),
            logs: BTreeMap::from([(INBOX, Log::new(Vec::new()))]),
            number: 0,
            leaving: BTreeMap::new(),
            reads_fail: false,
            run: (INBOX, 0),
            pushes: 0,
        }
    }

    /// Returns one of the logs that have not ended.
    fn pick(&self, nth: usize) -> LogId {
        let open = self.logs.iter().filter(|(_, log)| log.ends_at.is_none());
        let open: Vec<_> = open.map(|(log, _)| *log).collect();
        open[nth % open.len()]
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Say(nth, count, bytes) => {
                let id = self.pick(nth);
                let log = self.logs.get_mut(&id).unwrap();
                for _ in 0..if log.has_ended { 0 } else { count } {
                    self.number += 3;
                    log.messages.push((self.number, bytes));
                }
                self.window.note_ready(id);
            }
            Op::Ack(nth, quarters) => {
                let id = self.pick(nth);
                let log = self.logs.get_mut(&id).unwrap();
                let count = (log.in_flight.len() * quarters).div_ceil(4);
                let Some(at) = count.checked_sub(1) else {
                    return;
                };
                let number = log.in_flight[at];
                log.in_flight.drain(..count);
                let position = self.window.handle_ack(id, Sequence(number)).unwrap();
                assert_eq!(position.unwrap().sequence, Sequence(number));
            }
            Op::Retain(nth, quarters) => {
                let id = self.pick(nth);
                let log = self.logs.get_mut(&id).unwrap();
                log.removed += (log.messages.len() - log.removed) * quarters / 4;
            }
            Op::Lag(nth) => {
                let id = self.pick(nth);
                let log = self.logs.get_mut(&id).unwrap();
                log.before_ring = log.messages.len();
            }
            Op::Join => {
                if self.logs.len() < 6 {
                    self.number += 10;
                    let log = Log::new(vec![(self.number - 5, 1); 3]);
                    let cursor = Point {
                        number: self.number,
                        messages: 3,
                    };
                    let id = self.window.add_room(cursor);
                    assert!(self.logs.insert(id, log).is_none());
                }
            }
            Op::Leave(nth, reason) => {
                let id = self.pick(nth);
                if id != INBOX {
                    self.leave(id, reason);
                }
            }
            Op::EndLog(nth) => {
                let id = self.pick(nth);
                self.logs.get_mut(&id).unwrap().has_ended = id != INBOX;
            }
            Op::FailReads(fail) => self.reads_fail = fail,
            Op::Run => self.run(),
        }
        self.check();
    }

    fn leave(&mut self, id: LogId, reason: Option<LeftReason>) {
        self.leaving.insert(id, reason);
        self.number += 1;
        let number = self.number;
        let log = self.logs.get_mut(&id).unwrap();
        log.ends_at = Some(log.messages.len());
        let last = Point {
            number,
            messages: log.messages.len() as u64,
        };
        if !log.has_ended {
            // Messages behind the end are in the ring and the store as well.
            log.messages.extend([(number + 1, 1), (number + 2, 1)]);
            self.number += 2;
        }
        if reason.is_none() {
            log.in_flight.clear();
        }
        self.window.leave(id, last, reason);
    }

    /// Takes every step that is possible.
    fn run(&mut self) {
        self.now += RETRY_AFTER;
        loop {
            match self.window.step(self.now) {
                Step::Push(id, push) => self.take(id, &push),
                Step::Take(INBOX, after) => self.take_from_inbox(after),
                Step::Take(id, after) => self.take_from_ring(id, after),
                Step::Read { log, after, limit } => {
                    let page = self.logs[&log].page(log, after, limit);
                    let page = if self.reads_fail {
                        Err(Unavailable)
                    } else {
                        Ok(page)
                    };
                    self.window.handle_page(page, self.now).unwrap();
                }
                Step::Left(id, reason) => {
                    assert_eq!(self.leaving.remove(&id), Some(reason));
                    let log = self.logs.remove(&id).unwrap();
                    assert_eq!(log.pushed, log.due(), "messages before the end are pushed");
                }
                Step::Wait => return,
            }
            self.check();
        }
    }

    fn take_from_inbox(&mut self, after: Point) {
        let log = &self.logs[&INBOX];
        let from = after.messages as usize;
        if from < log.before_ring.min(log.messages.len()) {
            self.window.handle_lagged(INBOX);
        } else if from == log.messages.len() {
            self.window.handle_caught_up(INBOX);
        } else {
            let ats = (from..log.messages.len()).take(32);
            let messages: Vec<_> = ats.map(|at| log.message(at)).collect();
            self.window.handle_appended(messages);
        }
    }

    fn take_from_ring(&mut self, id: LogId, after: Point) {
        let log = &self.logs[&id];
        let from = after.messages as usize;
        let is_behind = from < log.before_ring.min(log.messages.len());
        if is_behind && log.has_ended {
            self.window.handle_log_ended(id);
        } else if is_behind {
            self.window.handle_lagged(id);
        } else if from < log.messages.len() {
            self.window.handle_next(id, log.said(from));
        } else {
            self.window.handle_caught_up(id);
        }
    }

    /// Checks a push: it is the next message of its log, or the gap before it.
    fn take(&mut self, id: LogId, push: &Push) {
        self.pushes += 1;
        let others_wait = self.logs.iter().any(|(other, log)| {
            *other != id && log.pushed < log.due() && !log.has_ended && !self.reads_fail
        });
        self.run = match self.run {
            (last, count) if last == id && others_wait => (id, count + 1),
            _ => (id, 1),
        };
        // A turn may begin before others have messages.
        assert!(self.run.1 <= 2 * TURN_MESSAGES_MAX, "others starve");
        let log = self.logs.get_mut(&id).unwrap();
        let position = push.position();
        match push {
            Push::Gap(gap) => {
                let missing = position.messages - log.pushed as u64;
                assert_eq!(gap.count, missing);
                let is_lost = log.has_ended && log.ends_at == Some(position.messages as usize);
                let is_removed = position.messages as usize <= log.removed;
                assert!(missing > 0 && (is_removed || is_lost));
            }
            _ => {
                assert_eq!(position, log.position(log.pushed + 1), "the next message");
            }
        }
        log.pushed = position.messages as usize;
        assert!(log.pushed <= log.due(), "messages behind the end");
        if self.leaving.get(&id) != Some(&None) {
            log.in_flight.push(position.sequence.0);
        }
    }

    fn check(&self) {
        let in_flight = &self.window.in_flight;
        let numbers: usize = self.logs.values().map(|log| log.in_flight.len()).sum();
        assert_eq!(in_flight.len(), numbers);
        assert!(in_flight.len() <= WINDOW_MESSAGES_MAX);
        let bytes: usize = in_flight.iter().map(|p| p.text_bytes as usize).sum();
        assert_eq!(bytes, self.window.in_flight_bytes);
        assert!(bytes <= WINDOW_BYTES_MAX || in_flight.len() == 1);
    }

    /// Acknowledges one message after another: each makes room for others, until nothing is
    /// left.
    fn drain(&mut self) {
        self.reads_fail = false;
        let ids: Vec<_> = self.logs.keys().copied().collect();
        for id in &ids {
            let log = &self.logs[id];
            if log.has_ended && log.ends_at.is_none() {
                self.leave(*id, Some(LeftReason::Deleted));
            }
        }
        ids.iter().for_each(|id| self.window.note_ready(*id));
        self.run();
        while let Some(id) = self.any_in_flight() {
            let before = self.pushes;
            let left: usize = self.logs.values().map(|log| log.due() - log.pushed).sum();
            let log = self.logs.get_mut(&id).unwrap();
            let number = log.in_flight.remove(0);
            self.window.handle_ack(id, Sequence(number)).unwrap();
            let is_small = self.window.in_flight_bytes <= WINDOW_BYTES_MAX / 2;
            self.run();
            let has_progress = self.pushes > before || left == 0 || !is_small;
            assert!(has_progress, "an acknowledgement makes progress possible");
        }
        for (id, log) in &self.logs {
            assert_eq!(log.pushed, log.messages.len(), "log {id}");
        }
        assert_eq!(self.leaving, BTreeMap::new());
    }

    fn any_in_flight(&self) -> Option<LogId> {
        let mut logs = self.logs.iter();
        let found = logs.find(|(_, log)| !log.in_flight.is_empty());
        found.map(|(id, _)| *id)
    }
}

fn op() -> impl Strategy<Value = Op> {
    let log = 0_usize..6;
    let bytes = prop_oneof![8 => 0_usize..200, 1 => 100_000_usize..400_000];
    prop_oneof![
        6 => (log.clone(), 1_usize..60, bytes).prop_map(|(log, count, bytes)| {
            // Few long texts.
            let count = if bytes > 1000 { 1 + count / 15 } else { count };
            Op::Say(log, count, bytes)
        }),
        4 => (log.clone(), 1_usize..5).prop_map(|(log, part)| Op::Ack(log, part)),
        1 => (log.clone(), 1_usize..5).prop_map(|(log, part)| Op::Retain(log, part)),
        2 => log.clone().prop_map(Op::Lag),
        1 => Just(Op::Join),
        1 => log.clone().prop_map(Op::EndLog),
        1 => (log, any::<bool>()).prop_map(|(log, is_own)| {
            Op::Leave(log, (!is_own).then_some(LeftReason::Left))
        }),
        1 => any::<bool>().prop_map(Op::FailReads),
        6 => Just(Op::Run),
    ]
}

proptest! {
    #[test]
    fn logs_share_the_window(ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        (0..3).for_each(|_| world.apply(Op::Join));
        ops.into_iter().for_each(|op| world.apply(op));
        world.drain();
    }
}

/// A window that has read its inbox, with rooms at the beginning.
fn with_rooms(count: usize) -> (DeliveryWindow, Vec<LogId>, Instant) {
    let (mut window, now) = super::caught_up();
    window.has_gaps = true;
    let rooms = (0..count).map(|_| window.add_room(Point::default()));
    let rooms = rooms.collect();
    assert!(run(&mut window, now, 0).is_empty());
    (window, rooms, now)
}

fn said(sequence: u64) -> Arc<Said> {
    let room = "#team".parse().unwrap();
    Arc::new(Said::new(room, message(sequence, 1)))
}

/// Returns the pushes, if each room has messages up to a number in its ring.
fn run(window: &mut DeliveryWindow, now: Instant, last: u64) -> Vec<(LogId, u64)> {
    let mut pushed = Vec::new();
    loop {
        match window.step(now) {
            Step::Push(log, push) => pushed.push((log, push.position().sequence.0)),
            Step::Take(INBOX, _) => window.handle_caught_up(INBOX),
            Step::Take(log, after) if after.number < last => {
                window.handle_next(log, said(after.number + 1));
            }
            Step::Take(log, _) => window.handle_caught_up(log),
            _ => return pushed,
        }
    }
}

#[test]
fn logs_take_turns_of_sixteen_messages() {
    let (mut window, rooms, now) = with_rooms(2);
    rooms.iter().for_each(|room| window.note_ready(*room));
    let pushed = run(&mut window, now, 40);
    let logs: Vec<_> = pushed.chunk_by(|one, other| one.0 == other.0).collect();
    let turns: Vec<_> = logs.iter().map(|turn| (turn[0].0, turn.len())).collect();
    let [one, other] = rooms[..] else { panic!() };
    assert_eq!(
        turns,
        [
            (one, 16),
            (other, 16),
            (one, 16),
            (other, 16),
            (one, 8),
            (other, 8)
        ]
    );
}

#[test]
fn acks_of_one_log_make_room_for_others() {
    let (mut window, rooms, now) = with_rooms(2);
    window.note_ready(rooms[0]);
    assert_eq!(run(&mut window, now, 300).len(), WINDOW_MESSAGES_MAX);
    window.note_ready(rooms[1]);
    assert!(run(&mut window, now, 300).is_empty());
    window.handle_ack(rooms[0], Sequence(20)).unwrap();
    let pushed = run(&mut window, now, 300);
    assert_eq!(pushed.len(), 20);
    assert!(pushed.iter().any(|(log, _)| *log == rooms[1]));
    assert_eq!(
        window.handle_ack(rooms[1], Sequence(200)),
        Err(NeverPushed {
            highest: window.pushed(rooms[1])
        })
    );
}

#[test]
fn gap_takes_one_place_and_is_acknowledged_by_its_end() {
    let (mut window, rooms, now) = with_rooms(1);
    window.handle_lagged(rooms[0]);
    window.note_ready(rooms[0]);
    assert!(matches!(window.step(now), Step::Read { .. }));
    let page = ReadPage {
        starts_after: Some(Position {
            messages: 5,
            ..at(70)
        }),
        is_complete: true,
        ..ReadPage::default()
    };
    window.handle_page(Ok(page), now).unwrap();
    let Step::Push(_, Push::Gap(gap)) = window.step(now) else {
        panic!("no gap")
    };
    assert_eq!((gap.from, gap.to.sequence), (Sequence(1), Sequence(70)));
    assert_eq!((gap.count, window.in_flight.len()), (5, 1));
    let acknowledged = window.handle_ack(rooms[0], Sequence(70)).unwrap();
    assert_eq!(acknowledged.unwrap().messages, 5);
}

#[test]
fn end_of_a_membership_follows_its_last_message() {
    let (mut window, rooms, now) = with_rooms(2);
    window.note_ready(rooms[0]);
    assert_eq!(run(&mut window, now, 3).len(), 3);
    window.leave(
        rooms[0],
        Point {
            number: 5,
            messages: 5,
        },
        Some(LeftReason::Left),
    );
    assert_eq!(run(&mut window, now, 9), [(rooms[0], 4), (rooms[0], 5)]);
    // `run` ended with the end of the membership.
    assert!(!window.awaits_ack(), "its messages left the window");
    assert_eq!(window.add_room(Point::default()), rooms[0]);
}

#[test]
fn deleted_room_ends_with_a_gap() {
    let (mut window, rooms, now) = with_rooms(1);
    let room = rooms[0];
    window.leave(room, point(5), Some(LeftReason::Deleted));
    assert!(matches!(window.step(now), Step::Take(..)));
    window.handle_log_ended(room);
    let Step::Push(_, Push::Gap(gap)) = window.step(now) else {
        panic!("no gap")
    };
    assert_eq!((gap.from, gap.to.sequence), (Sequence(1), Sequence(5)));
    assert_eq!(gap.count, 5);
    assert!(matches!(window.step(now), Step::Left(log, Some(_)) if log == room));
}

#[track_caller]
fn check_final_gap(window: &mut DeliveryWindow, now: Instant) {
    let push = window.step(now);
    assert!(matches!(push, Step::Push(_, Push::Gap(gap)) if gap.count == 5));
    assert!(matches!(window.step(now), Step::Left(..)));
}

#[test]
fn removed_log_of_a_membership_becomes_a_gap() {
    let (mut window, rooms, now) = with_rooms(1);
    window.leave(rooms[0], point(5), Some(LeftReason::Left));
    window.handle_lagged(rooms[0]);
    assert!(matches!(window.step(now), Step::Read { .. }));
    window.handle_page(Ok(ended_page()), now).unwrap();
    check_final_gap(&mut window, now);
}

#[test]
fn log_may_end_before_the_notice() {
    for page in [Ok(ended_page()), Err(Unavailable)] {
        let (mut window, rooms, now) = with_rooms(1);
        window.handle_lagged(rooms[0]);
        window.note_ready(rooms[0]);
        assert!(matches!(window.step(now), Step::Read { .. }));
        let has_failed = page.is_err();
        window.handle_page(page, now).unwrap();
        assert!(matches!(window.step(now), Step::Wait));
        window.leave(rooms[0], point(5), Some(LeftReason::Left));
        // No wait for a retry.
        if has_failed {
            assert!(matches!(window.step(now), Step::Read { .. }));
            window.handle_page(Ok(ended_page()), now).unwrap();
        } else {
            assert!(matches!(window.step(now), Step::Take(..)));
            window.handle_log_ended(rooms[0]);
        }
        check_final_gap(&mut window, now);
    }
}

#[test]
fn memberships_end_independently() {
    let (mut window, rooms, now) = with_rooms(2);
    let [one, other] = rooms[..] else { panic!() };
    window.note_ready(one);
    assert_eq!(run(&mut window, now, 300).len(), WINDOW_MESSAGES_MAX);
    window.leave(one, point(300), Some(LeftReason::Left));
    window.leave(other, Point::default(), Some(LeftReason::Expelled));
    // Its end needs no place in the full window.
    let left = window.step(now);
    assert!(matches!(left, Step::Left(log, Some(LeftReason::Expelled)) if log == other));
    assert!(run(&mut window, now, 400).is_empty());
    window.handle_ack(one, Sequence(256)).unwrap();
    assert_eq!(run(&mut window, now, 400).last(), Some(&(one, 300)));
}

#[test]
fn own_leave_frees_the_window() {
    let (mut window, rooms, now) = with_rooms(2);
    let [one, other] = rooms[..] else { panic!() };
    window.note_ready(one);
    assert_eq!(run(&mut window, now, 300).len(), WINDOW_MESSAGES_MAX);
    window.leave(one, point(300), None);
    assert!(!window.awaits_ack());
    let pushed = run(&mut window, now, 400);
    assert_eq!(pushed.len(), 44, "its last messages");
    assert!(!window.awaits_ack(), "nothing is to be acknowledged");
    window.note_ready(other);
    assert_eq!(run(&mut window, now, 1), [(other, 1)]);
}

#[test]
fn unreadable_room_blocks_no_other_log() {
    let (mut window, rooms, now) = with_rooms(2);
    let [damaged, fine] = rooms[..] else { panic!() };
    let mut now = now;
    for round in 0..3 {
        for log in [damaged, fine, INBOX] {
            window.handle_lagged(log);
            window.note_ready(log);
        }
        let mut read = BTreeMap::new();
        loop {
            match window.step(now) {
                Step::Read { log, after, .. } => {
                    *read.entry(log).or_insert(0) += 1;
                    let messages = vec![message(after.number + 1, 1)];
                    let page = match log == damaged {
                        true => Err(Unavailable),
                        false => Ok(ReadPage {
                            is_complete: true,
                            ..part(messages)
                        }),
                    };
                    window.handle_page(page, now).unwrap();
                }
                Step::Take(log, _) => window.handle_caught_up(log),
                Step::Push(log, _) => assert_ne!(log, damaged),
                Step::Left(..) | Step::Wait => break,
            }
        }
        let once = BTreeMap::from([(INBOX, 1), (damaged, 1), (fine, 1)]);
        assert_eq!(read, once, "round {round}");
        now = window.retry_at().unwrap();
    }
}

#[test]
fn unreadable_room_can_be_left() {
    let (mut window, rooms, mut now) = with_rooms(1);
    window.handle_lagged(rooms[0]);
    window.leave(rooms[0], point(7), Some(LeftReason::Expelled));
    let began = now;
    let push = loop {
        match window.step(now) {
            Step::Read { .. } => window.handle_page(Err(Unavailable), now).unwrap(),
            Step::Wait => now = window.retry_at().unwrap(),
            step => break step,
        }
    };
    assert_eq!(now - began, membership::LEAVING_TIMEOUT);
    assert!(matches!(push, Step::Push(_, Push::Gap(gap)) if gap.count == 7));
    assert!(matches!(window.step(now), Step::Left(..)));
}

#[test]
fn pages_of_long_texts_are_turns() {
    for bytes in [8 * 1024, 60 * 1024] {
        let (mut window, rooms, now) = with_rooms(2);
        for log in [INBOX, rooms[0], rooms[1]] {
            window.handle_lagged(log);
            window.note_ready(log);
        }
        let mut pushed = Vec::new();
        while pushed.len() < 120 {
            match window.step(now) {
                Step::Read { after, limit, .. } => {
                    let count = limit.messages.min((limit.bytes / bytes).max(1)) as u64;
                    let numbers = after.number + 1..=after.number + count;
                    let messages = numbers.map(|number| message(number, bytes)).collect();
                    window.handle_page(Ok(part(messages)), now).unwrap();
                }
                Step::Push(log, push) => {
                    pushed.push(log);
                    window.handle_ack(log, push.position().sequence).unwrap();
                }
                // A ring that does not have the next message.
                Step::Take(log, _) => window.handle_lagged(log),
                Step::Left(..) | Step::Wait => panic!("no progress"),
            }
        }
        let turns = pushed.chunk_by(|one, other| one == other);
        let longest = turns.map(<[_]>::len).max();
        assert!(longest <= Some(64 * 1024 / bytes), "{longest:?} of {bytes}");
    }
}

#[test]
fn quiet_inbox_costs_no_second_read() {
    let (mut window, rooms, now) = with_rooms(1);
    window.handle_lagged(rooms[0]);
    window.note_ready(rooms[0]);
    assert!(matches!(window.step(now), Step::Read { .. }));
    window
        .handle_page(Ok(part((1..=64).map(|n| message(n, 1)).collect())), now)
        .unwrap();
    let mut pushed = 0;
    loop {
        window.note_ready(INBOX);
        match window.step(now) {
            Step::Push(..) => pushed += 1,
            Step::Take(INBOX, _) => window.handle_caught_up(INBOX),
            step => break assert!(matches!(step, Step::Take(..)), "{step:?}"),
        }
    }
    assert_eq!(pushed, 64);
}

#[test]
fn empty_window_keeps_little_memory() {
    let (mut window, rooms, now) = with_rooms(1);
    window.note_ready(rooms[0]);
    assert_eq!(run(&mut window, now, 200).len(), 200);
    window.handle_ack(rooms[0], Sequence(200)).unwrap();
    assert!(window.in_flight.capacity() <= IDLE_CAPACITY_MAX);
}

const fn point(number: u64) -> Point {
    Point {
        number,
        messages: number,
    }
}

#[test]
fn room_takes_24_bytes_in_the_window() {
    assert!(size_of::<LogState>() <= 24);
}
