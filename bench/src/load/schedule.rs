//! The schedule of an open loop: messages are due at even intervals, whatever the server
//! does. A late sender sends every due message with its due time, so that its latency includes
//! the wait. This corrects for coordinated omission.

use std::ops::Range;

/// The nanoseconds of a second.
const SECOND_NS: f64 = 1e9;

/// A schedule of messages, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start_ns: u64,
    per_second: f64,
    next: u64,
}

impl Schedule {
    /// Returns a schedule at this rate from a start time on.
    pub(crate) const fn new(start_ns: u64, per_second: f64) -> Self {
        Self {
            start_ns,
            per_second,
            next: 0,
        }
    }

    /// Returns the due time of a message.
    pub(crate) fn due_ns(&self, message: u64) -> u64 {
        self.start_ns + (message as f64 * SECOND_NS / self.per_second) as u64
    }

    /// Returns the due time of the next message.
    pub(crate) fn next_due_ns(&self) -> u64 {
        self.due_ns(self.next)
    }

    /// Takes the due times up to now.
    pub(crate) fn due_by(&mut self, now_ns: u64) -> Range<u64> {
        let first = self.next;
        while self.next_due_ns() <= now_ns {
            self.next += 1;
        }
        first..self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latencies;

    const MS: u64 = 1_000_000;

    #[test]
    fn messages_are_due_evenly_and_once() {
        let mut schedule = Schedule::new(5 * MS, 1000.0);
        assert_eq!(schedule.due_by(4 * MS), 0..0);
        assert_eq!(schedule.due_by(5 * MS), 0..1);
        assert_eq!(schedule.due_by(8 * MS), 1..4);
        assert_eq!(schedule.due_by(8 * MS), 4..4);
        assert_eq!(schedule.next_due_ns(), 9 * MS);
    }

    /// A server that takes 1 ms, and stops for 100 ms once a second.
    #[test]
    fn pause_of_the_server_counts_for_every_due_message() {
        let mut schedule = Schedule::new(0, 1000.0);
        let (mut measured, mut waited_for) = (latencies(), latencies());
        let mut now = 0;
        while now < 10_000 * MS {
            let is_paused = now % (1000 * MS) == 500 * MS;
            let answered = now + if is_paused { 100 * MS } else { MS };
            for message in schedule.due_by(now) {
                measured.saturating_record(answered - schedule.due_ns(message));
                waited_for.saturating_record(answered - now);
            }
            now = answered;
        }
        let ms = |ns| ns as f64 / MS as f64;
        assert!(
            ms(waited_for.value_at_quantile(0.95)) < 1.1,
            "a closed look sees next to nothing"
        );
        let seen = ms(measured.value_at_quantile(0.95));
        assert!(
            (45.0..55.0).contains(&seen),
            "a tenth of all were due in a pause: {seen}"
        );
        let due = (0..)
            .take_while(|&message| schedule.due_ns(message) < 10_000 * MS)
            .count();
        assert_eq!(measured.len(), due as u64, "and each was measured");
    }
}
