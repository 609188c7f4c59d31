//! When the messages of an open loop are due: evenly, whatever the server does.
//! Who is late sends all that is due by then, each with the time at which it was
//! due, so that the wait of the last is part of its latency. That is the
//! correction for coordinated omission: nothing is left out because the server
//! made its clients wait.

use std::ops::Range;

/// Nanoseconds in a second.
const SECOND_NS: f64 = 1e9;

/// A schedule of messages, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start_ns: u64,
    per_second: f64,
    next: u64,
}

impl Schedule {
    /// So many messages a second from a time on.
    pub(crate) const fn new(start_ns: u64, per_second: f64) -> Self {
        Self { start_ns, per_second, next: 0 }
    }

    /// When a message is due.
    pub(crate) fn due_ns(&self, message: u64) -> u64 {
        self.start_ns + (message as f64 * SECOND_NS / self.per_second) as u64
    }

    /// When the next one is due.
    pub(crate) fn next_due_ns(&self) -> u64 {
        self.due_ns(self.next)
    }

    /// The messages that are due by now and were not yet said to be.
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

    /// A server that takes 1 ms, but stops for 100 ms once a second.
    #[test]
    fn a_pause_of_the_server_counts_for_all_that_was_due_in_it() {
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
        assert!(ms(waited_for.value_at_quantile(0.95)) < 1.1, "a closed look sees next to nothing");
        let seen = ms(measured.value_at_quantile(0.95));
        assert!((45.0..55.0).contains(&seen), "a tenth of all were due in a pause: {seen}");
        let due = (0..).take_while(|&message| schedule.due_ns(message) < 10_000 * MS).count();
        assert_eq!(measured.len(), due as u64, "and each was measured");
    }
}
