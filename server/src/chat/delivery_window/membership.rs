//! The ends of memberships in rooms: the messages up to an end are still pushed, then the log
//! of the room is removed. It owns [`Leaving`]. Memberships end independently of each other.

use std::collections::VecDeque;

use hark_protocol::Sequence;
use hark_protocol::message::LeftReason;

use super::{DeliveryWindow, LogGap, LogId, LogState, Push, Removed, Step};
use crate::store::{Point, Position};

/// The maximum number of failed reads of the log of a membership that ends. Then its missing
/// messages are given up.
pub(super) const LEAVING_FAILURES_MAX: u8 = 15;

/// A membership that ends.
#[derive(Debug)]
pub(super) struct Leaving {
    log: LogId,
    /// The last message of the membership.
    last: Point,
    /// `None` if the reader ended it.
    reason: Option<LeftReason>,
    failures: u8,
}

impl DeliveryWindow {
    /// Ends the membership in a room: the messages up to `last` are still pushed, then
    /// [`Step::Left`] follows. Without a reason, the reader itself has ended it: it does not
    /// have to acknowledge the messages, which leave the window at once.
    pub(crate) fn leave(&mut self, log: LogId, last: Point, reason: Option<LeftReason>) {
        self.leaving.push(Leaving {
            log,
            last,
            reason,
            failures: 0,
        });
        let is_later = |push: &Push| push.position().messages > last.messages;
        if self.backlog_of == log {
            self.backlog.retain(|push| !is_later(push));
        }
        self.next.take_if(|(of, push)| *of == log && is_later(push));
        if reason.is_none() {
            self.release(log);
        }
        self.note_ready(log);
    }

    /// Returns the number of memberships that end.
    pub(crate) const fn leaving_count(&self) -> usize {
        self.leaving.len()
    }

    /// Returns whether the membership in a room ends.
    pub(crate) fn is_leaving(&self, log: LogId) -> bool {
        self.leaving_of(log).is_some()
    }

    /// Returns whether the messages of a room have ended with it.
    pub(crate) fn is_deleted(&self, log: LogId) -> bool {
        self.leaving_of(log)
            .is_some_and(|leaving| leaving.reason == Some(LeftReason::Deleted))
    }

    /// Gives up the messages of a membership that ends which are not known yet: the store
    /// does not have them any more. The reader learns of them.
    pub(crate) fn skip_to_end(&mut self, log: LogId) {
        let Some(last) = self.leaving_of(log).map(|leaving| leaving.last) else {
            return;
        };
        let known = match self.backlog_of == log {
            true => self.known(),
            false => self.pushed_of(log).into(),
        };
        if known.messages >= last.messages {
            return;
        }
        let gap = LogGap {
            from: Sequence(known.sequence.0 + 1),
            to: last.into(),
            count: last.messages - known.messages,
        };
        self.next = Some((log, Push::Gap(gap.into())));
        self.note_ready(log);
    }

    /// Removes a room whose last message is pushed. Its end takes no place in the window.
    pub(super) fn end_membership(&mut self) -> Option<Step> {
        let mut leaving = self.leaving.iter();
        let ended = leaving
            .find(|leaving| self.pushed_of(leaving.log).messages >= leaving.last.messages)?;
        let (log, reason) = (ended.log, ended.reason);
        self.remove_room(log);
        Some(Step::Left(log, reason))
    }

    /// Removes a room with its messages in flight.
    fn remove_room(&mut self, log: LogId) {
        self.dequeue(log);
        self.leaving.retain(|leaving| leaving.log != log);
        if self.leaving.is_empty() {
            self.leaving = Vec::new();
        }
        self.release(log);
        if self.backlog_of == log {
            self.backlog = VecDeque::new();
            self.is_reading = false;
        }
        if let Some(state) = self.log_mut(log) {
            *state = LogState::default();
        }
    }

    /// Removes the messages of a log from those in flight.
    fn release(&mut self, log: LogId) {
        let mut removed = Removed::default();
        self.in_flight.retain(|pushed| {
            let is_kept = pushed.log != log;
            if !is_kept {
                removed.add(pushed);
            }
            is_kept
        });
        self.in_flight_bytes -= removed.bytes;
        if let Some(state) = self.log_mut(log) {
            state.in_flight = 0;
        }
    }

    /// Counts a failed read of a membership that ends.
    pub(super) fn count_failure(&mut self, log: LogId) {
        let mut leaving = self.leaving.iter_mut();
        let Some(leaving) = leaving.find(|leaving| leaving.log == log) else {
            return;
        };
        leaving.failures = leaving.failures.saturating_add(1);
        if leaving.failures >= LEAVING_FAILURES_MAX {
            self.skip_to_end(log);
        }
    }

    /// Returns whether the reader acknowledges the messages of a log.
    pub(super) fn is_acknowledged(&self, log: LogId) -> bool {
        self.leaving_of(log)
            .is_none_or(|leaving| leaving.reason.is_some())
    }

    /// Returns the last message of a membership that ends.
    pub(super) fn last_of(&self, log: LogId) -> Option<Point> {
        self.leaving_of(log).map(|leaving| leaving.last)
    }

    /// Returns whether a message of a log lies behind the end of the membership.
    pub(super) fn is_beyond_end(&self, log: LogId, position: Position) -> bool {
        self.last_of(log)
            .is_some_and(|last| position.messages > last.messages)
    }

    fn leaving_of(&self, log: LogId) -> Option<&Leaving> {
        self.leaving.iter().find(|leaving| leaving.log == log)
    }
}
