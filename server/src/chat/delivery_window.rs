//! The state machine of a delivery: the window of messages in flight to one
//! connection, acknowledgements, lagging and caught-up. It has no I/O: events and
//! times are arguments, and [`DeliveryWindow::step`] returns the next action.
//!
//! It knows neither sockets nor stores. Invariant: messages are pushed in the
//! order of their numbers, each once, and never more than the window holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::Sequence;
use hark_protocol::limits::{WINDOW_BYTES_MAX, WINDOW_MESSAGES_MAX};
use tokio::time::Instant;

use crate::store::{Account, Message, Page, Position, ReadLimit, Unavailable};

/// The minimum number of messages that one read asks for, even if the window has
/// room for fewer: so a reader that acknowledges one by one does not cause a read
/// for each message. The rest waits in the backlog.
const READ_MESSAGES_MIN: usize = 64;

/// The maximum number of bytes of text that one read yields; a longer first
/// message may exceed it. This bounds the backlog: nothing is read before it is
/// empty.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The pause after a failed read before it is retried.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The messages of one inbox on their way to one reader.
#[derive(Debug)]
pub(crate) struct DeliveryWindow {
    /// Pushed and not acknowledged, in order.
    in_flight: VecDeque<Pushed>,
    in_flight_bytes: usize,
    /// Known and not pushed yet, in order.
    backlog: VecDeque<Arc<Message>>,
    /// The highest number that has been pushed, or that was acknowledged
    /// before this delivery began.
    pushed: Sequence,
    /// The last message of the backlog or, if that is empty, the last pushed one.
    known: Position,
    phase: WindowPhase,
}

#[derive(Debug)]
struct Pushed {
    position: Position,
    text_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowPhase {
    /// The store has messages that are not in the backlog, or may have.
    Lagging,
    /// A read of the store is under way.
    Reading,
    /// The last read failed.
    Failed { retry_at: Instant },
    /// Every stored message arrives as an event.
    CaughtUp,
    /// The delivery has ended. Messages in flight can still be acknowledged.
    Ended,
}

/// The next action.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write this message to the reader.
    Push(Arc<Message>),
    /// Subscribe to the events of the inbox, then read it, and pass the page to
    /// [`DeliveryWindow::handle_page`].
    Read {
        /// The page begins after this position.
        after: Position,
        /// The largest page.
        limit: ReadLimit,
    },
    /// Wait until something is handled, or until [`DeliveryWindow::retry_at`].
    Wait,
}

impl DeliveryWindow {
    /// Returns a window that begins after `cursor`, lagging.
    pub(crate) fn new(cursor: Position) -> Self {
        Self {
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            backlog: VecDeque::new(),
            pushed: cursor.sequence,
            known: cursor,
            phase: WindowPhase::Lagging,
        }
    }

    /// Returns the next action. Call it until it returns [`Step::Wait`].
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        if let Some(message) = self.next_push() {
            return Step::Push(message);
        }
        let is_due = match self.phase {
            WindowPhase::Lagging => true,
            WindowPhase::Failed { retry_at } => now >= retry_at,
            WindowPhase::Reading | WindowPhase::CaughtUp | WindowPhase::Ended => false,
        };
        if !is_due || !self.backlog.is_empty() || !self.has_room_for(0) {
            return Step::Wait;
        }
        self.phase = WindowPhase::Reading;
        let messages = READ_MESSAGES_MIN.max(WINDOW_MESSAGES_MAX - self.in_flight.len());
        Step::Read {
            after: self.known,
            limit: ReadLimit {
                messages,
                bytes: READ_BYTES_MAX,
            },
        }
    }

    /// Returns whether [`Self::handle_appended`] may be called. Otherwise the
    /// events stay in their buffer.
    pub(crate) fn wants_messages(&self) -> bool {
        self.phase == WindowPhase::CaughtUp && self.backlog.is_empty()
    }

    /// Returns whether the delivery has not ended.
    pub(crate) fn is_receiving(&self) -> bool {
        self.phase != WindowPhase::Ended
    }

    /// Returns whether a pushed message is unacknowledged.
    pub(crate) fn awaits_ack(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Returns the highest number that has been pushed.
    pub(crate) const fn pushed(&self) -> Sequence {
        self.pushed
    }

    /// Returns the time at which a failed read is retried, if one failed.
    pub(crate) const fn retry_at(&self) -> Option<Instant> {
        match self.phase {
            WindowPhase::Failed { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    /// Takes messages that have been stored. Known messages are dropped. If one
    /// is missing, it and the rest are left to a read.
    pub(crate) fn handle_appended(&mut self, messages: impl IntoIterator<Item = Arc<Message>>) {
        if messages
            .into_iter()
            .try_for_each(|message| self.take(message))
            .is_err()
        {
            self.handle_lagged();
        }
    }

    /// Records that messages may have been stored that will not arrive as events.
    pub(crate) fn handle_lagged(&mut self) {
        if self.phase == WindowPhase::CaughtUp {
            self.phase = WindowPhase::Lagging;
        }
    }

    /// Takes the outcome of a read. The subscription is older than the read, so
    /// no message is missing after a complete page.
    ///
    /// # Errors
    /// [`MissingMessages`] for a page with a gap. The read counts as failed from
    /// the gap on, and is retried.
    pub(crate) fn handle_page(
        &mut self,
        page: Result<Page, Unavailable>,
        now: Instant,
    ) -> Result<(), MissingMessages> {
        if self.phase != WindowPhase::Reading {
            return Ok(());
        }
        self.phase = WindowPhase::Failed {
            retry_at: now + RETRY_AFTER,
        };
        let Ok(page) = page else { return Ok(()) };
        if let Some(start) = page
            .starts_after
            .filter(|start| start.sequence >= self.known.sequence)
        {
            self.known = start;
        }
        page.messages
            .into_iter()
            .try_for_each(|message| self.take(message))?;
        self.phase = if page.complete {
            WindowPhase::CaughtUp
        } else {
            WindowPhase::Lagging
        };
        Ok(())
    }

    /// Takes an acknowledgement of everything up to `sequence`. Returns its
    /// position for the store, or `None` if it acknowledges nothing new.
    ///
    /// # Errors
    /// [`NeverPushed`] if the number is above all pushed ones; the
    /// acknowledgement is ignored.
    pub(crate) fn handle_ack(
        &mut self,
        sequence: Sequence,
    ) -> Result<Option<Position>, NeverPushed> {
        if sequence > self.pushed {
            return Err(NeverPushed {
                highest: self.pushed,
            });
        }
        let mut taken = None;
        while let Some(pushed) = self
            .in_flight
            .pop_front_if(|p| p.position.sequence <= sequence)
        {
            self.in_flight_bytes -= pushed.text_bytes;
            taken = Some(pushed.position);
        }
        Ok(taken)
    }

    /// Ends the delivery: no further message is pushed.
    pub(crate) fn end(&mut self) {
        self.phase = WindowPhase::Ended;
        self.backlog = VecDeque::new();
    }

    /// Puts a message into the backlog, unless it is known.
    fn take(&mut self, message: Arc<Message>) -> Result<(), MissingMessages> {
        let position = message.position;
        if !self.is_receiving() || position.sequence <= self.known.sequence {
            return Ok(());
        }
        if !position.follows(self.known) {
            return Err(MissingMessages {
                after: self.known,
                before: position,
            });
        }
        self.known = position;
        self.backlog.push_back(message);
        Ok(())
    }

    fn next_push(&mut self) -> Option<Arc<Message>> {
        let text_bytes = self.backlog.front()?.text.len();
        if !self.has_room_for(text_bytes) {
            return None;
        }
        let message = self.backlog.pop_front()?;
        self.pushed = message.position.sequence;
        self.in_flight_bytes += text_bytes;
        self.in_flight.push_back(Pushed {
            position: message.position,
            text_bytes,
        });
        Some(message)
    }

    /// Returns whether the window has room for a text of this length.
    fn has_room_for(&self, text_bytes: usize) -> bool {
        self.in_flight.len() < WINDOW_MESSAGES_MAX
            && (self.in_flight.is_empty() || self.in_flight_bytes + text_bytes <= WINDOW_BYTES_MAX)
    }
}

/// Messages of an inbox that were not delivered to the window, between two that
/// were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MissingMessages {
    /// The last message before the gap.
    pub(crate) after: Position,
    /// The first message after the gap.
    pub(crate) before: Position,
}

impl MissingMessages {
    /// Logs the gap.
    pub(crate) fn report(self, account: &Account) {
        let (user, count) = (
            &account.name,
            self.before.messages.saturating_sub(self.after.messages + 1),
        );
        let (after, before) = (self.after.sequence, self.before.sequence);
        tracing::error!(%user, count, %after, %before, "messages missing from a page");
    }
}

/// An `ack` of a number above all that were pushed on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing above {highest} was pushed")]
pub struct NeverPushed {
    /// The highest number that was pushed.
    pub highest: Sequence,
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn page(sequences: impl IntoIterator<Item = u64>, complete: bool) -> Result<Page, Unavailable> {
        let messages = sequences.into_iter().map(|n| message(n, 1)).collect();
        Ok(Page {
            messages,
            complete,
            ..Page::default()
        })
    }

    /// A page that is followed by more.
    fn part(messages: Vec<Arc<Message>>) -> Page {
        Page {
            messages,
            ..Page::default()
        }
    }

    fn caught_up() -> (DeliveryWindow, Instant) {
        let now = Instant::now();
        let mut window = DeliveryWindow::new(Position::default());
        assert!(matches!(window.step(now), Step::Read { .. }));
        window.handle_page(page([], true), now).unwrap();
        (window, now)
    }

    #[track_caller]
    fn pushes(window: &mut DeliveryWindow, now: Instant) -> Vec<u64> {
        let mut pushed = Vec::new();
        while let Step::Push(message) = window.step(now) {
            pushed.push(message.position.sequence.0);
        }
        pushed
    }

    #[test]
    fn it_reads_after_the_cursor_before_anything_else() {
        let now = Instant::now();
        let cursor = Position {
            messages: 7,
            ..at(41)
        };
        let mut window = DeliveryWindow::new(cursor);
        let limit = ReadLimit {
            messages: WINDOW_MESSAGES_MAX,
            bytes: READ_BYTES_MAX,
        };
        assert_eq!(
            window.step(now),
            Step::Read {
                after: cursor,
                limit
            }
        );
        assert_eq!(window.step(now), Step::Wait, "one read at a time");
        assert!(!window.wants_messages());
    }

    #[test]
    fn a_message_that_comes_by_a_read_and_as_an_event_is_pushed_once() {
        let now = Instant::now();
        let mut window = DeliveryWindow::new(Position::default());
        window.step(now);
        window.handle_page(page([1, 2], true), now).unwrap();
        assert_eq!(pushes(&mut window, now), [1, 2]);
        assert!(window.wants_messages());
        for sequence in 1..=3 {
            window.handle_appended([message(sequence, 1)]);
        }
        assert_eq!(pushes(&mut window, now), [3]);
    }

    #[test]
    fn the_window_holds_256_messages_and_acks_make_room() {
        let (mut window, now) = caught_up();
        for sequence in 1..=300 {
            window.handle_appended([message(sequence, 1)]);
        }
        assert_eq!(pushes(&mut window, now).len(), 256);
        assert!(
            !window.wants_messages(),
            "what does not fit stays in the inbox's buffer"
        );
        let position = window.handle_ack(Sequence(10)).unwrap().unwrap();
        assert_eq!(position.sequence, Sequence(10));
        assert_eq!(pushes(&mut window, now), (257..=266).collect::<Vec<_>>());
    }

    #[test]
    fn the_window_holds_a_mebibyte_but_at_least_one_message() {
        let (mut window, now) = caught_up();
        window.handle_appended([message(1, WINDOW_BYTES_MAX + 1)]);
        window.handle_appended([message(2, 1)]);
        assert_eq!(pushes(&mut window, now), [1]);
        window.handle_ack(Sequence(1)).unwrap();
        window.handle_appended([message(3, WINDOW_BYTES_MAX)]);
        assert_eq!(
            pushes(&mut window, now),
            [2],
            "3 would make it over a mebibyte"
        );
    }

    #[test]
    fn an_ack_above_what_was_pushed_counts_for_nothing() {
        let (mut window, now) = caught_up();
        window.handle_appended([message(1, 1)]);
        pushes(&mut window, now);
        assert_eq!(
            window.handle_ack(Sequence(2)),
            Err(NeverPushed {
                highest: Sequence(1)
            })
        );
        assert!(window.awaits_ack());
        assert_eq!(window.handle_ack(Sequence(0)), Ok(None));
        assert_eq!(window.handle_ack(Sequence(1)), Ok(Some(at(1))));
        assert_eq!(
            window.handle_ack(Sequence(1)),
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
        let mut window = DeliveryWindow::new(Position {
            sequence: Sequence(41),
            messages: 7,
            bytes: 0,
        });
        window.step(now);
        let page = Page {
            complete: true,
            ..part(vec![numbered(50, 8), numbered(60, 9)])
        };
        window.handle_page(Ok(page), now).unwrap();
        assert_eq!(pushes(&mut window, now), [50, 60]);
        window.handle_appended([numbered(61, 10), numbered(99, 11)]);
        assert_eq!(pushes(&mut window, now), [61, 99]);
    }

    #[test]
    fn event_behind_a_gap_is_left_to_a_read() {
        let (mut window, now) = caught_up();
        window.handle_appended([message(1, 1), message(3, 1), message(4, 1)]);
        assert!(!window.wants_messages());
        assert_eq!(pushes(&mut window, now), [1], "the last step was the read");
        window.handle_page(page([2, 3], true), now).unwrap();
        window.handle_appended([message(3, 1), message(4, 1)]);
        assert_eq!(pushes(&mut window, now), [2, 3, 4]);
    }

    #[test]
    fn page_with_a_gap_is_retried_and_never_skipped() {
        for (numbers, before) in [(&[1, 2, 4][..], &[1, 2][..]), (&[3, 4], &[])] {
            let now = Instant::now();
            let mut window = DeliveryWindow::new(Position::default());
            window.step(now);
            let missing = window
                .handle_page(page(numbers.iter().copied(), true), now)
                .unwrap_err();
            let last = before.last().map_or(Position::default(), |last| at(*last));
            assert_eq!(missing.after, last);
            assert_eq!(pushes(&mut window, now), before);
            assert!(!window.wants_messages());
            let retry_at = window.retry_at().unwrap();
            assert!(matches!(window.step(retry_at), Step::Read { after, .. } if after == last));
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
        let mut window = DeliveryWindow::new(at(2));
        window.step(now);
        let start = Page {
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
            let (window, now) = (DeliveryWindow::new(Position::default()), Instant::now());
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
                match self.window.step(self.now) {
                    Step::Push(message) => pushed.push(message.position.sequence.0),
                    Step::Wait => return pushed,
                    Step::Read { after, limit } => {
                        self.reads += 1;
                        let count = limit.messages.min(limit.bytes / self.bytes).max(1) as u64;
                        let messages = (1..=count)
                            .map(|n| message(after.sequence.0 + n, self.bytes))
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
                queue.window.handle_ack(Sequence(acked)).unwrap().unwrap();
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
                queue.window.handle_ack(Sequence(acked)).unwrap();
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
        window.handle_appended([message(1, 1)]);
        assert_eq!(pushes(&mut window, now), [1]);
        window.handle_lagged();
        assert!(!window.wants_messages());
        let Step::Read { after, .. } = window.step(now) else {
            panic!("no read")
        };
        assert_eq!(after, at(1));
    }

    #[test]
    fn who_does_not_read_has_little_of_a_long_queue_in_memory() {
        let now = Instant::now();
        let mut window = DeliveryWindow::new(Position::default());
        let Step::Read { limit, .. } = window.step(now) else {
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
        assert!(matches!(window.step(now), Step::Push(_)));
        let Step::Read { after, limit } = window.step(now) else {
            panic!("no read")
        };
        assert_eq!(
            (after, limit.bytes),
            (at(1), 64 * 1024),
            "the window has room for more"
        );
    }

    #[test]
    fn window_is_filled_to_its_last_byte() {
        let now = Instant::now();
        let mut window = DeliveryWindow::new(Position::default());
        let mut pages = VecDeque::from([
            vec![message(1, WINDOW_BYTES_MAX - 10)],
            vec![message(2, 10), message(3, 0), message(4, 1)],
            vec![message(5, 1)],
        ]);
        let mut pushed = Vec::new();
        loop {
            match window.step(now) {
                Step::Push(message) => pushed.push(message.position.sequence.0),
                Step::Read { .. } => {
                    let messages = pages.pop_front().unwrap();
                    window.handle_page(Ok(part(messages)), now).unwrap();
                }
                Step::Wait => break,
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
        let mut window = DeliveryWindow::new(Position::default());
        window.step(now);
        window.handle_page(Err(Unavailable), now).unwrap();
        assert_eq!(window.step(now), Step::Wait);
        let retry_at = window.retry_at().unwrap();
        assert_eq!(retry_at, now + RETRY_AFTER);
        assert!(matches!(window.step(retry_at), Step::Read { .. }));
    }

    #[test]
    fn after_its_end_it_pushes_nothing_but_takes_acks() {
        let (mut window, now) = caught_up();
        window.handle_appended([message(1, 1)]);
        assert_eq!(pushes(&mut window, now), [1]);
        window.handle_appended([message(2, 1)]);
        window.end();
        assert_eq!(window.step(now), Step::Wait);
        window.handle_appended([message(3, 1)]);
        window.handle_page(page([4], true), now).unwrap();
        assert_eq!(window.step(now), Step::Wait);
        assert_eq!(
            window.handle_ack(Sequence(1)).unwrap().unwrap().sequence,
            Sequence(1)
        );
    }
}
