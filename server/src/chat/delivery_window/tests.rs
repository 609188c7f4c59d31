//! Tests of the window.

use super::*;

mod rooms;

/// The place of a message, if every number is used.
fn at(sequence: u64) -> Position {
    Position {
        sequence: Sequence(sequence),
        messages: sequence,
        bytes: 0,
    }
}

fn message(sequence: u64, bytes: usize) -> Arc<Message> {
    Arc::new(Message {
        position: at(sequence),
        sender: None,
        time_ms: 0,
        text: "x".repeat(bytes).into(),
    })
}

fn page(
    sequences: impl IntoIterator<Item = u64>,
    is_complete: bool,
) -> Result<ReadPage, Unavailable> {
    let messages = sequences.into_iter().map(|n| message(n, 1));
    Ok(ReadPage {
        is_complete,
        ..part(messages.collect())
    })
}

/// A page that is followed by more.
fn part(messages: Vec<Arc<Message>>) -> ReadPage {
    ReadPage {
        messages: messages.into_iter().map(Push::Message).collect(),
        ..ReadPage::default()
    }
}

fn window_after(cursor: Position) -> DeliveryWindow {
    DeliveryWindow::new(cursor, false)
}

/// Passes messages of the subscription.
fn append(window: &mut DeliveryWindow, messages: impl IntoIterator<Item = Arc<Message>>) {
    window.note_ready(INBOX);
    window.handle_appended(messages);
}

/// Returns the next step, if the subscription has no messages.
fn step(window: &mut DeliveryWindow, now: Instant) -> Step {
    match window.step(now) {
        Step::Take(log, _) => {
            window.handle_caught_up(log);
            window.step(now)
        }
        step => step,
    }
}

/// Returns whether the window would take messages of the subscription.
fn wants_messages(window: &DeliveryWindow) -> bool {
    !window.inbox.is_lagging && window.backlog.is_empty() && !window.is_reading
}

fn caught_up() -> (DeliveryWindow, Instant) {
    let now = Instant::now();
    let mut window = window_after(Position::default());
    assert!(matches!(window.step(now), Step::Read { .. }));
    window.handle_page(page([], true), now).unwrap();
    (window, now)
}

#[track_caller]
fn pushes(window: &mut DeliveryWindow, now: Instant) -> Vec<u64> {
    let mut pushed = Vec::new();
    while let Step::Push(_, push) = step(window, now) {
        pushed.push(push.position().sequence.0);
    }
    pushed
}

#[track_caller]
fn check_read(step: Step, expected: Position, largest: ReadLimit) {
    let Step::Read { log, after, limit } = step else {
        panic!("{step:?}")
    };
    assert_eq!((log, after, limit), (INBOX, expected.into(), largest));
}

#[test]
fn it_reads_after_the_cursor_before_anything_else() {
    let now = Instant::now();
    let cursor = Position {
        messages: 7,
        ..at(41)
    };
    let mut window = window_after(cursor);
    let limit = ReadLimit {
        messages: WINDOW_MESSAGES_MAX,
        bytes: READ_BYTES_MAX,
    };
    check_read(step(&mut window, now), cursor, limit);
    assert!(
        matches!(step(&mut window, now), Step::Wait),
        "one read at a time"
    );
    assert!(!wants_messages(&window));
}

#[test]
fn a_message_that_comes_by_a_read_and_as_an_event_is_pushed_once() {
    let now = Instant::now();
    let mut window = window_after(Position::default());
    step(&mut window, now);
    window.handle_page(page([1, 2], true), now).unwrap();
    assert_eq!(pushes(&mut window, now), [1, 2]);
    assert!(wants_messages(&window));
    for sequence in 1..=3 {
        append(&mut window, [message(sequence, 1)]);
    }
    assert_eq!(pushes(&mut window, now), [3]);
}

#[test]
fn the_window_holds_256_messages_and_acks_make_room() {
    let (mut window, now) = caught_up();
    for sequence in 1..=300 {
        append(&mut window, [message(sequence, 1)]);
    }
    assert_eq!(pushes(&mut window, now).len(), 256);
    assert!(
        !wants_messages(&window),
        "what does not fit stays in the inbox's buffer"
    );
    let position = window.handle_ack(INBOX, Sequence(10)).unwrap().unwrap();
    assert_eq!(position.sequence, Sequence(10));
    assert_eq!(pushes(&mut window, now), (257..=266).collect::<Vec<_>>());
}

#[test]
fn the_window_holds_a_mebibyte_but_at_least_one_message() {
    let (mut window, now) = caught_up();
    append(&mut window, [message(1, WINDOW_BYTES_MAX + 1)]);
    append(&mut window, [message(2, 1)]);
    assert_eq!(pushes(&mut window, now), [1]);
    window.handle_ack(INBOX, Sequence(1)).unwrap();
    append(&mut window, [message(3, WINDOW_BYTES_MAX)]);
    assert_eq!(
        pushes(&mut window, now),
        [2],
        "3 would make it over a mebibyte"
    );
}

#[test]
fn an_ack_above_what_was_pushed_counts_for_nothing() {
    let (mut window, now) = caught_up();
    append(&mut window, [message(1, 1)]);
    pushes(&mut window, now);
    assert_eq!(
        window.handle_ack(INBOX, Sequence(2)),
        Err(NeverPushed {
            highest: Sequence(1)
        })
    );
    assert!(window.awaits_ack());
    assert_eq!(window.handle_ack(INBOX, Sequence(0)), Ok(None));
    assert_eq!(window.handle_ack(INBOX, Sequence(1)), Ok(Some(at(1))));
    assert_eq!(
        window.handle_ack(INBOX, Sequence(1)),
        Ok(None),
        "twice is nothing new"
    );
}

#[test]
fn numbers_with_gaps_are_no_missing_messages() {
    let now = Instant::now();
    let numbered = |sequence, messages| {
        let position = Position {
            sequence: Sequence(sequence),
            messages,
            bytes: 0,
        };
        Arc::new(Message {
            position,
            sender: None,
            time_ms: 0,
            text: "".into(),
        })
    };
    let mut window = window_after(Position {
        sequence: Sequence(41),
        messages: 7,
        bytes: 0,
    });
    step(&mut window, now);
    let page = ReadPage {
        is_complete: true,
        ..part(vec![numbered(50, 8), numbered(60, 9)])
    };
    window.handle_page(Ok(page), now).unwrap();
    assert_eq!(pushes(&mut window, now), [50, 60]);
    append(&mut window, [numbered(61, 10), numbered(99, 11)]);
    assert_eq!(pushes(&mut window, now), [61, 99]);
}

#[test]
fn event_behind_a_gap_is_left_to_a_read() {
    let (mut window, now) = caught_up();
    append(&mut window, [message(1, 1), message(3, 1), message(4, 1)]);
    assert!(!wants_messages(&window));
    assert_eq!(pushes(&mut window, now), [1], "the last step was the read");
    window.handle_page(page([2, 3], true), now).unwrap();
    append(&mut window, [message(3, 1), message(4, 1)]);
    assert_eq!(pushes(&mut window, now), [2, 3, 4]);
}

#[test]
fn page_with_a_gap_is_retried_and_never_skipped() {
    for (numbers, before) in [(&[1, 2, 4][..], &[1, 2][..]), (&[3, 4], &[])] {
        let now = Instant::now();
        let mut window = window_after(Position::default());
        step(&mut window, now);
        let missing = window
            .handle_page(page(numbers.iter().copied(), true), now)
            .unwrap_err();
        let last = before.last().map_or(Position::default(), |last| at(*last));
        assert_eq!(missing.after, last);
        assert_eq!(pushes(&mut window, now), before);
        assert!(!wants_messages(&window));
        let retry_at = window.retry_at().unwrap();
        assert!(
            matches!(step(&mut window, retry_at), Step::Read { after, .. } if after == last.into())
        );
        window
            .handle_page(page(last.sequence.0 + 1..=4, true), retry_at)
            .unwrap();
        assert_eq!(
            pushes(&mut window, retry_at),
            (last.sequence.0 + 1..=4).collect::<Vec<_>>()
        );
    }
}

#[test]
fn page_may_start_after_a_later_cursor() {
    let now = Instant::now();
    let mut window = window_after(at(2));
    step(&mut window, now);
    let start = ReadPage {
        starts_after: Some(at(7)),
        ..part(vec![message(8, 1)])
    };
    window.handle_page(Ok(start), now).unwrap();
    assert_eq!(pushes(&mut window, now), [8]);
}

/// A long queue of texts of `bytes`, and a reader with a full window.
struct LongQueue {
    window: DeliveryWindow,
    now: Instant,
    bytes: usize,
    reads: usize,
}

impl LongQueue {
    fn new(bytes: usize) -> Self {
        let (window, now) = (window_after(Position::default()), Instant::now());
        Self {
            window,
            now,
            bytes,
            reads: 0,
        }
    }

    /// Takes every step that is possible and returns the numbers of the pushes.
    fn run(&mut self) -> Vec<u64> {
        let mut pushed = Vec::new();
        loop {
            match step(&mut self.window, self.now) {
                Step::Push(_, push) => pushed.push(push.position().sequence.0),
                Step::Wait | Step::Take(..) | Step::Left(..) => return pushed,
                Step::Read { after, limit, .. } => {
                    self.reads += 1;
                    let count = limit.messages.min(limit.bytes / self.bytes).max(1) as u64;
                    let messages = (1..=count)
                        .map(|n| message(after.number + n, self.bytes))
                        .collect();
                    self.window
                        .handle_page(Ok(part(messages)), self.now)
                        .unwrap();
                }
            }
        }
    }
}

#[test]
fn each_ack_lets_the_next_message_in() {
    // Windows that are full by messages, by bytes, and by few long texts.
    for (bytes, held) in [
        (1, 256),
        (4096, 256),
        (10_000, 104),
        (60_000, 17),
        (700_000, 1),
    ] {
        let mut queue = LongQueue::new(bytes);
        assert_eq!(queue.run(), (1..=held).collect::<Vec<_>>());
        for acked in 1..1000 {
            queue
                .window
                .handle_ack(INBOX, Sequence(acked))
                .unwrap()
                .unwrap();
            assert_eq!(queue.run(), [held + acked], "{held} of {bytes} bytes");
        }
    }
}

#[test]
fn acks_one_by_one_cost_few_reads() {
    for (bytes, messages_of_a_read) in [(1, 64), (1024, 64), (4096, 16), (60_000, 1)] {
        let mut queue = LongQueue::new(bytes);
        queue.run();
        queue.reads = 0;
        for acked in 1..=1024 {
            queue.window.handle_ack(INBOX, Sequence(acked)).unwrap();
            queue.run();
        }
        assert_eq!(
            queue.reads,
            1024 / messages_of_a_read,
            "texts of {bytes} bytes"
        );
    }
}

#[test]
fn what_comes_while_it_lags_is_left_to_the_next_read() {
    let (mut window, now) = caught_up();
    append(&mut window, [message(1, 1)]);
    assert_eq!(pushes(&mut window, now), [1]);
    window.handle_lagged(INBOX);
    window.note_ready(INBOX);
    assert!(!wants_messages(&window));
    let Step::Read { after, .. } = step(&mut window, now) else {
        panic!("no read")
    };
    assert_eq!(after, at(1).into());
}

#[test]
fn who_does_not_read_has_little_of_a_long_queue_in_memory() {
    let now = Instant::now();
    let mut window = window_after(Position::default());
    let Step::Read { limit, .. } = step(&mut window, now) else {
        panic!("no read")
    };
    assert_eq!(
        limit,
        ReadLimit {
            messages: WINDOW_MESSAGES_MAX,
            bytes: 64 * 1024
        }
    );
    let page = part(vec![message(1, 60_000)]);
    window.handle_page(Ok(page), now).unwrap();
    assert!(matches!(step(&mut window, now), Step::Push(..)));
    let Step::Read { after, limit, .. } = step(&mut window, now) else {
        panic!("no read")
    };
    assert_eq!(
        (after, limit.bytes),
        (at(1).into(), 64 * 1024),
        "the window has room for more"
    );
}

#[test]
fn window_is_filled_to_its_last_byte() {
    let now = Instant::now();
    let mut window = window_after(Position::default());
    let mut pages = VecDeque::from([
        vec![message(1, WINDOW_BYTES_MAX - 10)],
        vec![message(2, 10), message(3, 0), message(4, 1)],
        vec![message(5, 1)],
    ]);
    let mut pushed = Vec::new();
    loop {
        match step(&mut window, now) {
            Step::Push(_, push) => pushed.push(push.position().sequence.0),
            Step::Read { .. } => {
                let messages = pages.pop_front().unwrap();
                window.handle_page(Ok(part(messages)), now).unwrap();
            }
            Step::Wait | Step::Take(..) | Step::Left(..) => break,
        }
    }
    assert_eq!(pushed, [1, 2, 3]);
    assert_eq!(
        pages.len(),
        1,
        "the next message is known, so nothing more is read"
    );
}

#[test]
fn a_failed_read_is_tried_again_after_a_second() {
    let now = Instant::now();
    let mut window = window_after(Position::default());
    step(&mut window, now);
    window.handle_page(Err(Unavailable), now).unwrap();
    assert!(matches!(step(&mut window, now), Step::Wait));
    let retry_at = window.retry_at().unwrap();
    assert_eq!(retry_at, now + RETRY_AFTER);
    assert!(matches!(step(&mut window, retry_at), Step::Read { .. }));
}

#[test]
fn after_its_end_it_pushes_nothing_but_takes_acks() {
    let (mut window, now) = caught_up();
    append(&mut window, [message(1, 1)]);
    assert_eq!(pushes(&mut window, now), [1]);
    append(&mut window, [message(2, 1)]);
    window.end();
    assert!(matches!(step(&mut window, now), Step::Wait));
    append(&mut window, [message(3, 1)]);
    window.handle_page(page([4], true), now).unwrap();
    assert!(matches!(step(&mut window, now), Step::Wait));
    assert_eq!(
        window
            .handle_ack(INBOX, Sequence(1))
            .unwrap()
            .unwrap()
            .sequence,
        Sequence(1)
    );
}
