//! [`Rooms`]: what a window has for the rooms of a device alone. A window without rooms has one
//! log, the inbox, and no turns: it takes no memory for them.

use super::membership::Leaving;
use super::turns::Turns;
use super::{DeliveryWindow, INBOX, LogId, LogState, Push};
use crate::store::Point;

/// A full table of rooms grows by this fraction.
const GROWTH_DIVISOR: usize = 8;

/// The rooms of a device.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// By their places. Places are reused.
    pub(super) logs: Vec<LogState>,
    /// The logs that take turns, the inbox being one of them.
    pub(super) turns: Turns,
    /// The next message of a log, which has the turn.
    pub(super) next: Option<(LogId, Push)>,
    /// The memberships that end.
    pub(super) leaving: Vec<Leaving>,
}

impl DeliveryWindow {
    /// Adds a room that begins after `cursor`. Returns its place.
    pub(crate) fn add_room(&mut self, cursor: Point) -> LogId {
        let is_queued = self.inbox.is_queued;
        let Rooms { logs, .. } = &mut **self.rooms.get_or_insert_with(|| {
            let mut rooms = Box::<Rooms>::default();
            rooms.turns.first = is_queued.then_some(INBOX);
            rooms
        });
        let free = logs.iter().position(|room| !room.is_active);
        let at = free.unwrap_or_else(|| {
            if logs.len() == logs.capacity() {
                logs.reserve_exact(1 + logs.len() / GROWTH_DIVISOR);
            }
            logs.push(LogState::default());
            logs.len() - 1
        });
        if let Some(place) = logs.get_mut(at) {
            *place = LogState::new(cursor);
        }
        let log = at as LogId + 1;
        self.note_ready(log);
        log
    }

    /// Notes that a log may have messages.
    pub(crate) fn note_ready(&mut self, log: LogId) {
        if self.is_ended {
            return;
        }
        if let Some(state) = self.log_mut(log)
            && state.is_active
            && !std::mem::replace(&mut state.is_queued, true)
            && let Some(rooms) = &mut self.rooms
        {
            rooms.turns.push(log);
        }
    }

    pub(super) fn log(&self, log: LogId) -> Option<&LogState> {
        match log.checked_sub(1) {
            None => Some(&self.inbox),
            Some(room) => self.rooms.as_ref()?.logs.get(room as usize),
        }
    }

    pub(super) fn log_mut(&mut self, log: LogId) -> Option<&mut LogState> {
        match log.checked_sub(1) {
            None => Some(&mut self.inbox),
            Some(room) => self.rooms.as_mut()?.logs.get_mut(room as usize),
        }
    }

    /// Returns the log that has the turn.
    pub(super) fn first(&self) -> Option<LogId> {
        match &self.rooms {
            None => self.inbox.is_queued.then_some(INBOX),
            Some(rooms) => rooms.turns.first,
        }
    }

    /// Returns the number of logs that take turns.
    pub(super) fn queued_count(&self) -> usize {
        match &self.rooms {
            None => usize::from(self.inbox.is_queued),
            Some(rooms) => rooms.turns.len(),
        }
    }

    /// Removes a log from those that take turns.
    pub(super) fn dequeue(&mut self, log: LogId) {
        if let Some(rooms) = &mut self.rooms {
            rooms.next.take_if(|(of, _)| *of == log);
            rooms.turns.remove(log);
        }
        if let Some(state) = self.log_mut(log) {
            state.is_queued = false;
        }
    }

    /// Gives the turn to the next log.
    pub(super) fn end_turn(&mut self) {
        if let Some(rooms) = &mut self.rooms {
            // The log takes it again.
            rooms.next = None;
            rooms.turns.rotate();
        }
    }

    /// Gives the turn to a log, as it had it before a read.
    pub(super) fn resume(&mut self, log: LogId) {
        self.dequeue(log);
        if let Some(state) = self.log_mut(log) {
            state.is_queued = true;
        }
        if let Some(rooms) = &mut self.rooms {
            // It was the next message of another log, which takes it again.
            rooms.next = None;
            rooms.turns.push_front(log);
        }
    }

    /// Returns the next message of a log, if it is known.
    pub(super) fn next_of(&self, log: LogId) -> Option<&Push> {
        let next = self.rooms.as_ref()?.next.as_ref()?;
        (next.0 == log).then_some(&next.1)
    }

    /// Takes the next message of a log, if it is known.
    pub(super) fn take_next_of(&mut self, log: LogId) -> Option<Push> {
        let next = &mut self.rooms.as_mut()?.next;
        next.take_if(|(of, _)| *of == log).map(|(_, push)| push)
    }

    /// Sets the next message of a log, which has the turn.
    pub(super) fn set_next(&mut self, log: LogId, push: Push) {
        if let Some(rooms) = &mut self.rooms {
            rooms.next = Some((log, push));
        }
    }

    pub(super) fn turns(&self) -> Option<&Turns> {
        self.rooms.as_ref().map(|rooms| &rooms.turns)
    }

    pub(super) fn leaving(&self) -> &[Leaving] {
        self.rooms.as_ref().map_or(&[], |rooms| &rooms.leaving)
    }
}
