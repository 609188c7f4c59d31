//! The ends of memberships in rooms: the messages up to an end are still pushed, then the log
//! of the room is removed. It owns [`Leaving`]. Memberships end independently of each other.

use std::collections::VecDeque;
use std::time::Duration;

use hark_protocol::Sequence;
use hark_protocol::message::LeftReason;
use tokio::time::Instant;

use super::rooms::Rooms;
use super::{DeliveryWindow, LogGap, LogId, LogState, Push, Step};
use crate::store::{Point, Position};

/// The time after the first failed read of the log of a membership that ends, after which
/// another failure gives up its missing messages.
pub(super) const LEAVING_TIMEOUT: Duration = Duration::from_secs(15);

/// A membership that ends.
#[derive(Debug)]
pub(super) struct Leaving {
    log: LogId,
    /// The last message of the membership.
    last: Point,
    /// `None` if the reader ended it.
    reason: Option<LeftReason>,
    /// Set by the first failed read.
    gives_up_at: Option<Instant>,
    /// The messages that are not known yet are lost.
    is_lost: bool,
}

impl DeliveryWindow {
    /// Ends the membership in a room: the messages up to `last` are still pushed, then
    /// [`Step::Left`] follows. Without a reason, the reader itself has ended it: it does not
    /// have to acknowledge the messages, which leave the window at once.
    pub(crate) fn leave(&mut self, log: LogId, last: Point, reason: Option<LeftReason>) {
        let Some(rooms) = &mut self.rooms else { return };
        rooms.leaving.push(Leaving {
            log,
            last,
            reason,
            gives_up_at: None,
            is_lost: false,
        });
        let is_later = |push: &Push| push.position().messages > last.messages;
        let next = &mut rooms.next;
        next.take_if(|(of, push)| *of == log && is_later(push));
        if self.backlog_of == log {
            self.backlog.retain(|push| !is_later(push));
        }
        if reason.is_none() {
            self.release(|of| of == log);
        }
        // A read may have failed because the log has ended.
        if let Some(state) = self.log_mut(log) {
            state.has_failed = false;
        }
        self.note_ready(log);
    }

    /// Returns the number of memberships that end.
    pub(crate) fn leaving_count(&self) -> usize {
        self.leaving().len()
    }

    /// Returns whether the membership in a room ends.
    pub(crate) fn is_leaving(&self, log: LogId) -> bool {
        self.leaving_of(log).is_some()
    }

    /// Notes that the log of a room has ended: the store does not have the messages that are
    /// not known yet. The notice of the end of the membership may still be on its way.
    pub(crate) fn handle_log_ended(&mut self, log: LogId) {
        match self.leaving_mut(log) {
            Some(leaving) => leaving.is_lost = true,
            None => self.dequeue(log),
        }
    }

    /// Returns the gap up to the end of a membership whose messages behind the last pushed
    /// one are lost.
    pub(super) fn final_gap(&self, log: LogId) -> Option<Push> {
        let leaving = self.leaving_of(log).filter(|leaving| leaving.is_lost)?;
        let (pushed, last) = (self.pushed_of(log), leaving.last);
        let count = last.messages.checked_sub(pushed.messages)?;
        let gap = LogGap {
            from: Sequence(pushed.number + 1),
            to: last.into(),
            count,
        };
        (count > 0).then(|| Push::Gap(gap.into()))
    }

    /// Removes a room whose last message is pushed. Its end takes no place in the window.
    pub(super) fn end_membership(&mut self) -> Option<Step> {
        let mut leaving = self.leaving().iter();
        let ended = leaving
            .find(|leaving| self.pushed_of(leaving.log).messages >= leaving.last.messages)?;
        let (log, reason) = (ended.log, ended.reason);
        self.remove_room(log);
        Some(Step::Left(log, reason))
    }

    /// Removes a room with its messages in flight.
    fn remove_room(&mut self, log: LogId) {
        self.dequeue(log);
        if let Some(Rooms { leaving, .. }) = self.rooms.as_deref_mut() {
            leaving.retain(|leaving| leaving.log != log);
            if leaving.is_empty() {
                *leaving = Vec::new();
            }
        }
        self.release(|of| of == log);
        if self.backlog_of == log {
            self.backlog = VecDeque::new();
            self.is_reading = false;
        }
        if let Some(state) = self.log_mut(log) {
            *state = LogState::default();
        }
    }

    /// Removes the messages of logs from those in flight.
    pub(super) fn release(&mut self, is_released: impl Fn(LogId) -> bool) {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        in_flight.retain(|pushed| {
            let is_kept = !is_released(pushed.log);
            if !is_kept {
                self.in_flight_bytes -= pushed.text_bytes as usize;
                if let Some(state) = self.log_mut(pushed.log) {
                    state.in_flight = 0;
                }
            }
            is_kept
        });
        self.in_flight = in_flight;
    }

    /// Notes a failed read of a membership that ends: after some time, its messages are lost.
    pub(super) fn note_failure(&mut self, log: LogId, now: Instant) {
        if let Some(leaving) = self.leaving_mut(log) {
            let gives_up_at = *leaving.gives_up_at.get_or_insert(now + LEAVING_TIMEOUT);
            leaving.is_lost |= now >= gives_up_at;
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
        self.leaving().iter().find(|leaving| leaving.log == log)
    }

    fn leaving_mut(&mut self, log: LogId) -> Option<&mut Leaving> {
        let mut leaving = self.rooms.as_mut()?.leaving.iter_mut();
        leaving.find(|leaving| leaving.log == log)
    }
}
