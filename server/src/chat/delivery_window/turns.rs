//! [`Turns`]: the logs that take turns in a window.

use std::collections::VecDeque;

use super::LogId;

/// The maximum number of messages of a turn, if other logs have messages.
pub(super) const TURN_MESSAGES_MAX: usize = 16;

/// The logs that may have messages, in the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The log that has the turn.
    pub(super) first: Option<LogId>,
    others: VecDeque<LogId>,
    /// The pushes of this turn.
    taken: usize,
}

impl Turns {
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    /// Returns whether the turn is over: after some pushes, if others wait.
    pub(super) fn is_over(&self) -> bool {
        self.taken >= TURN_MESSAGES_MAX && !self.others.is_empty()
    }

    /// Returns whether others wait for the end of a turn that has begun.
    pub(super) fn yields_to_others(&self) -> bool {
        self.taken > 0 && !self.others.is_empty()
    }

    pub(super) fn push(&mut self, log: LogId) {
        match self.first {
            None => (self.first, self.taken) = (Some(log), 0),
            Some(_) => self.others.push_back(log),
        }
    }

    pub(super) fn push_front(&mut self, log: LogId) {
        if let Some(former) = self.first.replace(log) {
            self.others.push_front(former);
        }
        self.taken = 0;
    }

    pub(super) fn count(&mut self) {
        self.taken += 1;
    }

    /// Ends the turn.
    pub(super) fn rotate(&mut self) {
        self.taken = 0;
        self.others.extend(self.first.take());
        self.first = self.others.pop_front();
    }

    pub(super) fn remove(&mut self, log: LogId) {
        if self.first == Some(log) {
            self.taken = 0;
            self.first = self.others.pop_front();
        } else {
            self.others.retain(|other| *other != log);
        }
        if self.others.is_empty() {
            self.others = VecDeque::new();
        }
    }
}
