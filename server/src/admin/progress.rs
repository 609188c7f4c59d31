//! The progress of a long command, for a person at a terminal.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// The interval between two reports.
const INTERVAL: Duration = Duration::from_secs(5);

/// A count that is reported on standard error from time to time, if that is a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    counted: &'static str,
    count: u64,
    report_at: Instant,
    is_shown: bool,
}

impl Progress {
    /// Returns a count of zero. `counted` follows the number in a report.
    pub(super) fn new(counted: &'static str) -> Self {
        Self {
            counted,
            count: 0,
            report_at: Instant::now() + INTERVAL,
            is_shown: io::stderr().is_terminal(),
        }
    }

    /// Adds to the count.
    pub(super) fn add(&mut self, count: u64) {
        self.count += count;
        if self.is_shown && Instant::now() >= self.report_at {
            self.report_at = Instant::now() + INTERVAL;
            eprintln!("harkd: {} {}", self.count, self.counted);
        }
    }
}
