//! The state machine of a delivery: the window of messages in flight to one connection,
//! over all logs that the connection reads: the inbox, and the rooms of a device. It has no
//! I/O: messages and times are arguments, and [`DeliveryWindow::step`] returns the next
//! action.
//!
//! It knows neither sockets nor stores. Invariants: the messages of a log are pushed in the
//! order of their numbers, each once; in flight are never more than the window holds; logs
//! with messages take turns.

mod membership;
mod push;
mod rooms;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::limits::{WINDOW_BYTES_MAX, WINDOW_MESSAGES_MAX};
use hark_protocol::message::LeftReason;
use hark_protocol::{RoomName, Sequence};
use tokio::time::Instant;

use self::rooms::Rooms;
use self::turns::{TURN_MESSAGES_MAX, Turns};
use crate::store::{Account, Message, Point, Position, ReadLimit, Said, Unavailable};

pub(crate) use self::push::{LogGap, Push, ReadPage};

/// The minimum number of messages that one read asks for if a single log has messages, even
/// if the window has room for fewer: so a reader that acknowledges one by one does not cause
/// a read for each message. The rest waits in the backlog.
const READ_MESSAGES_MIN: usize = 64;

/// The maximum number of bytes of text that one read yields; a longer first
/// message may exceed it. This bounds the backlog: nothing is read before it is
/// empty.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The pause after a failed read before it is retried.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The maximum number of messages for which an empty window keeps memory.
const IDLE_CAPACITY_MAX: usize = TURN_MESSAGES_MAX;

/// A log that the connection reads: [`INBOX`], or a room, by its place.
pub(crate) type LogId = u32;

/// The inbox.
pub(crate) const INBOX: LogId = 0;

/// The messages of one connection on their way to its reader.
#[derive(Debug)]
pub(crate) struct DeliveryWindow {
    /// Pushed and not acknowledged, in order.
    in_flight: VecDeque<Pushed>,
    in_flight_bytes: usize,
    inbox: LogState,
    /// Boxed, because most connections have no rooms.
    rooms: Option<Box<Rooms>>,
    /// Known messages of one log that are not pushed yet, in order.
    backlog: VecDeque<Push>,
    /// The log of the backlog, or of the read under way.
    backlog_of: LogId,
    /// A read of the log of the backlog is under way.
    is_reading: bool,
    /// The time at which the logs whose read failed are read again.
    retry_at: Option<Instant>,
    /// Whether the reader is to learn of missing messages.
    has_gaps: bool,
    is_ended: bool,
}

/// The state of one log: 24 bytes.
#[derive(Debug, Default)]
struct LogState {
    /// The last message that has been pushed, or that was acknowledged before this delivery
    /// began.
    pushed: Point,
    /// The number of its messages in flight.
    in_flight: u16,
    /// The place is in use.
    is_active: bool,
    /// It is among the logs that take turns.
    is_queued: bool,
    /// The store has messages that do not come from the subscription, or may have.
    is_lagging: bool,
    /// Its last read failed. It waits for the retry, the others do not.
    has_failed: bool,
}

#[derive(Debug)]
struct Pushed {
    log: LogId,
    text_bytes: u32,
    position: Position,
}

/// Pushes of one log that leave the window.
#[derive(Debug, Default)]
struct Removed {
    last: Option<Position>,
    count: u16,
    bytes: usize,
}

/// The next action.
#[derive(Debug)]
pub(crate) enum Step {
    /// Write this to the reader.
    Push(LogId, Push),
    /// Take the messages behind this point from the subscription to the log, and call
    /// [`DeliveryWindow::handle_appended`], [`DeliveryWindow::handle_next`],
    /// [`DeliveryWindow::handle_lagged`] or [`DeliveryWindow::handle_caught_up`].
    Take(LogId, Point),
    /// Subscribe to the events of the log, then read it, and pass the page to
    /// [`DeliveryWindow::handle_page`].
    Read {
        /// The log.
        log: LogId,
        /// The page begins after this point.
        after: Point,
        /// The largest page.
        limit: ReadLimit,
    },
    /// All messages of a membership that ends are pushed: write its end to the reader, if it
    /// has a reason. The log is removed.
    Left(LogId, Option<LeftReason>),
    /// Wait until something is handled, or until [`DeliveryWindow::retry_at`].
    Wait,
}

impl DeliveryWindow {
    /// Returns a window for the inbox, which begins after `cursor`, lagging. With
    /// `has_gaps`, the reader learns of missing messages.
    pub(crate) fn new(cursor: Position, has_gaps: bool) -> Self {
        let mut window = Self {
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            inbox: LogState::new(cursor.into()),
            rooms: None,
            backlog: VecDeque::new(),
            backlog_of: INBOX,
            is_reading: false,
            retry_at: None,
            has_gaps,
            is_ended: false,
        };
        window.inbox.is_lagging = true;
        window.note_ready(INBOX);
        window
    }

    /// Returns the next action. Call it until it returns [`Step::Wait`].
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        if self.retry_at.is_some_and(|retry_at| now >= retry_at) {
            self.retry();
        }
        if let Some(left) = self.end_membership() {
            return left;
        }
        // Each log is looked at once, and the first one again if it gave up its turn. If one
        // makes progress, an action follows.
        for _ in 0..=self.queued_count() {
            if self.turns().is_some_and(Turns::is_over) {
                self.end_turn();
            }
            let Some(log) = self.first() else {
                return Step::Wait;
            };
            if let Some(length) = self.front_bytes(log) {
                return match self.has_room_for(length) {
                    true => self.push(log),
                    false => Step::Wait,
                };
            }
            if !self.has_room_for(0) {
                return Step::Wait;
            }
            match self.fetch(log) {
                Some(step) => return step,
                None => self.end_turn(),
            }
        }
        Step::Wait
    }

    /// Returns the action that yields messages of a log, if there is one now.
    fn fetch(&mut self, log: LogId) -> Option<Step> {
        if let Some(gap) = self.final_gap(log) {
            self.set_next(log, gap);
            return Some(self.push(log));
        }
        let state = self.log_mut(log)?;
        let (after, is_lagging, has_failed) = (state.pushed, state.is_lagging, state.has_failed);
        if !is_lagging && (log != INBOX || !self.is_reading) {
            return Some(Step::Take(log, after));
        }
        // A page ends a turn: it may be shorter.
        if self.is_reading || has_failed || self.turns().is_some_and(Turns::yields_to_others) {
            return None;
        }
        self.claim_backlog(log);
        self.is_reading = true;
        let messages = match (self.queued_count(), self.rooms.is_none()) {
            (1, true) => READ_MESSAGES_MIN.max(WINDOW_MESSAGES_MAX - self.in_flight.len()),
            // Others may soon take the place of the backlog.
            (1, false) => READ_MESSAGES_MIN,
            _ => TURN_MESSAGES_MAX,
        };
        // Others take turns until its page comes.
        self.dequeue(log);
        let limit = ReadLimit {
            messages,
            bytes: READ_BYTES_MAX,
        };
        Some(Step::Read { log, after, limit })
    }

    /// Prepares the backlog for messages of a log. If it has some of another log, the turn of
    /// that is over: it reads the rest again.
    fn claim_backlog(&mut self, log: LogId) {
        if self.backlog_of != log && !self.backlog.is_empty() {
            self.backlog.clear();
            self.handle_lagged(self.backlog_of);
        }
        self.backlog_of = log;
    }

    /// Permits reads of the logs whose read failed.
    fn retry(&mut self) {
        self.retry_at = None;
        self.inbox.has_failed = false;
        let rooms = self.rooms.iter_mut().flat_map(|rooms| &mut rooms.logs);
        rooms.for_each(|room| room.has_failed = false);
    }

    /// Returns whether nothing can be pushed before an acknowledgement.
    pub(crate) fn is_full(&self) -> bool {
        !self.has_room_for(0)
    }

    /// Returns whether a push is unacknowledged.
    pub(crate) fn awaits_ack(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Returns the highest number of a log that has been pushed.
    pub(crate) fn pushed(&self, log: LogId) -> Sequence {
        Sequence(self.pushed_of(log).number)
    }

    /// Returns the log that is being read.
    pub(crate) fn reading(&self) -> Option<LogId> {
        self.is_reading.then_some(self.backlog_of)
    }

    /// Returns the time at which a failed read is retried, if one failed.
    pub(crate) const fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Returns the number of messages and gaps in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes messages of the inbox that have been stored. Known messages are dropped. If
    /// one is missing, it and the rest are left to a read.
    pub(crate) fn handle_appended(&mut self, messages: impl IntoIterator<Item = Arc<Message>>) {
        self.claim_backlog(INBOX);
        let mut known = self.known();
        let taken = messages
            .into_iter()
            .try_for_each(|message| self.take(&mut known, Push::Message(message)));
        if taken.is_err() {
            self.handle_lagged(INBOX);
        }
    }

    /// Takes the next message of a room, whose turn it is. If one is missing before it, both
    /// are left to a read.
    pub(crate) fn handle_next(&mut self, log: LogId, said: Arc<Said>) {
        let (position, pushed) = (said.message.position, self.pushed_of(log));
        if !position.follows(pushed.into()) {
            self.handle_lagged(log);
        } else if !self.is_beyond_end(log, position) && self.first() == Some(log) {
            self.set_next(log, Push::Said(said));
        }
    }

    /// Notes that the subscription to a log has no messages at the moment.
    pub(crate) fn handle_caught_up(&mut self, log: LogId) {
        self.dequeue(log);
    }

    /// Records that messages of a log may have been stored that do not come from its
    /// subscription.
    pub(crate) fn handle_lagged(&mut self, log: LogId) {
        if let Some(state) = self.log_mut(log) {
            state.is_lagging = true;
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
        page: Result<ReadPage, Unavailable>,
        now: Instant,
    ) -> Result<(), MissingMessages> {
        let Some(log) = self.reading().filter(|_| !self.is_ended) else {
            return Ok(());
        };
        self.is_reading = false;
        self.resume(log);
        let has_ended = matches!(&page, Ok(page) if page.has_ended);
        let taken = match page {
            Ok(page) => self.take_page(log, page),
            Err(Unavailable) => Ok(false),
        };
        if taken == Ok(true) {
            return Ok(());
        }
        if has_ended {
            self.handle_log_ended(log);
            return Ok(());
        }
        if let Some(state) = self.log_mut(log) {
            state.has_failed = true;
        }
        self.retry_at.get_or_insert(now + RETRY_AFTER);
        self.note_failure(log, now);
        taken.map(drop)
    }

    /// Takes the messages of a page. Returns whether the read was of use.
    fn take_page(&mut self, log: LogId, page: ReadPage) -> Result<bool, MissingMessages> {
        let before = self.known();
        let mut known = before;
        if let Some(start) = page.starts_after {
            self.skip(&mut known, start);
        }
        page.messages
            .into_iter()
            .try_for_each(|message| self.take(&mut known, message))?;
        if let Some(state) = self.log_mut(log) {
            // The ring of a room may have the next message already.
            state.is_lagging = log == INBOX && !page.is_complete;
        }
        // If a ring has moved beyond the end of its log, the read is repeated later.
        Ok(log == INBOX || known != before)
    }

    /// Takes an acknowledgement of everything in a log up to `sequence`. Returns its
    /// position for the store, or `None` if it acknowledges nothing new.
    ///
    /// # Errors
    /// [`NeverPushed`] if the number is above all pushed ones; the
    /// acknowledgement is ignored.
    pub(crate) fn handle_ack(
        &mut self,
        log: LogId,
        sequence: Sequence,
    ) -> Result<Option<Position>, NeverPushed> {
        let highest = self.pushed(log);
        if sequence > highest {
            return Err(NeverPushed { highest });
        }
        let is_acknowledged =
            |pushed: &Pushed| pushed.log == log && pushed.position.sequence <= sequence;
        let mut removed = Removed::default();
        while let Some(pushed) = self
            .in_flight
            .pop_front_if(|pushed| is_acknowledged(pushed))
        {
            removed.add(&pushed);
        }
        // Behind messages of other logs there may be more.
        let is_mixed = self.in_flight.front().is_some_and(|front| front.log != log);
        let in_flight = self.log(log).map_or(0, |log| log.in_flight);
        if is_mixed && in_flight > removed.count {
            self.in_flight.retain(|pushed| {
                let is_kept = !is_acknowledged(pushed);
                if !is_kept {
                    removed.add(pushed);
                }
                is_kept
            });
        }
        self.in_flight_bytes -= removed.bytes;
        if let Some(state) = self.log_mut(log) {
            state.in_flight -= removed.count;
        }
        if self.in_flight.is_empty() && self.in_flight.capacity() > IDLE_CAPACITY_MAX {
            self.in_flight = VecDeque::new();
        }
        Ok(removed.last)
    }

    /// Ends the delivery: nothing further is pushed. Messages of the inbox can still be
    /// acknowledged; those of rooms come again.
    pub(crate) fn end(&mut self) {
        self.is_ended = true;
        self.backlog = VecDeque::new();
        self.is_reading = false;
        self.retry_at = None;
        self.rooms = None;
        self.inbox.is_queued = false;
        self.release(|log| log != INBOX);
    }

    fn pushed_of(&self, log: LogId) -> Point {
        self.log(log).map_or_else(Point::default, |log| log.pushed)
    }

    /// Returns the last message of the backlog or, if that is empty, the last pushed one.
    fn known(&self) -> Position {
        let last = self.backlog.back().map(Push::position);
        last.unwrap_or_else(|| self.pushed_of(self.backlog_of).into())
    }

    /// Puts a message into the backlog, unless it is known.
    fn take(&mut self, known: &mut Position, push: Push) -> Result<(), MissingMessages> {
        let position = push.position();
        if self.is_ended
            || position.sequence <= known.sequence
            || self.is_beyond_end(self.backlog_of, position)
        {
            return Ok(());
        }
        if !position.follows(*known) {
            return Err(MissingMessages {
                after: *known,
                before: position,
            });
        }
        *known = position;
        self.backlog.push_back(push);
        Ok(())
    }

    /// Skips messages that the store does not have any more. If any are missing, the reader
    /// learns of them.
    fn skip(&mut self, known: &mut Position, start: Position) {
        let mut to = start;
        if let Some(last) = self.last_of(self.backlog_of)
            && self.is_beyond_end(self.backlog_of, to)
        {
            to = last.into();
        }
        if to.sequence <= known.sequence {
            return;
        }
        let gap = LogGap {
            from: Sequence(known.sequence.0 + 1),
            to,
            count: to.messages.saturating_sub(known.messages),
        };
        *known = to;
        if self.has_gaps && gap.count > 0 {
            self.backlog.push_back(Push::Gap(gap.into()));
        } else if let Some(state) = self.log_mut(self.backlog_of) {
            state.pushed = to.into();
        }
    }

    /// Returns the bytes of the next push of the log that has the turn, if it is known.
    fn front_bytes(&self, log: LogId) -> Option<usize> {
        let known = self.backlog.front().filter(|_| self.backlog_of == log);
        known.or_else(|| self.next_of(log)).map(Push::text_bytes)
    }

    fn push(&mut self, log: LogId) -> Step {
        let known = match self.backlog_of == log {
            true => self.backlog.pop_front(),
            false => None,
        };
        let Some(push) = known.or_else(|| self.take_next_of(log)) else {
            return Step::Wait;
        };
        let (position, text_bytes) = (push.position(), push.text_bytes());
        let is_acknowledged = self.is_acknowledged(log);
        if let Some(state) = self.log_mut(log) {
            state.pushed = position.into();
            state.in_flight += u16::from(is_acknowledged);
        }
        if is_acknowledged {
            self.in_flight_bytes += text_bytes;
            self.in_flight.push_back(Pushed {
                log,
                text_bytes: text_bytes as u32,
                position,
            });
        }
        if let Some(rooms) = &mut self.rooms {
            rooms.turns.count();
        }
        Step::Push(log, push)
    }

    /// Returns whether the window has room for a text of this length.
    fn has_room_for(&self, text_bytes: usize) -> bool {
        self.in_flight.len() < WINDOW_MESSAGES_MAX
            && (self.in_flight.is_empty() || self.in_flight_bytes + text_bytes <= WINDOW_BYTES_MAX)
    }
}

impl Removed {
    fn add(&mut self, pushed: &Pushed) {
        self.last = Some(pushed.position);
        self.count += 1;
        self.bytes += pushed.text_bytes as usize;
    }
}

impl LogState {
    const fn new(cursor: Point) -> Self {
        Self {
            pushed: cursor,
            in_flight: 0,
            is_active: true,
            is_queued: false,
            is_lagging: false,
            has_failed: false,
        }
    }
}

/// Messages of a log that were not delivered to the window, between two that
/// were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MissingMessages {
    /// The last message before the gap.
    pub(crate) after: Position,
    /// The first message after the gap.
    pub(crate) before: Position,
}

impl MissingMessages {
    /// Logs the gap in the inbox of a user, or in a room that it reads.
    pub(crate) fn report(self, account: &Account, room: Option<&RoomName>) {
        let count = self.before.messages.saturating_sub(self.after.messages + 1);
        let (user, room) = (&account.name, room.map(tracing::field::display));
        let (after, before) = (self.after.sequence, self.before.sequence);
        tracing::error!(%user, room, count, %after, %before, "messages missing from a page");
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
mod tests;
