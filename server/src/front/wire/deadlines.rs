//! The deadlines of a wire connection: a table by name, and one timer for the earliest.

use std::future::Future as _;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The deadlines of a connection. If several are due, the first in this order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The peer must have read or sent a byte.
    Progress,
    /// The frame must be complete.
    Frame,
    /// The ping must be answered.
    Pong,
    /// The acknowledgements in flight must have arrived.
    Drain,
    /// The server stops waiting for the missing fields of a command (classic).
    Fields,
    /// The chat must be polled.
    Chat,
    /// A ping must be sent.
    Ping,
}

impl Deadline {
    const ALL: [Self; 7] = [
        Self::Progress,
        Self::Frame,
        Self::Pong,
        Self::Drain,
        Self::Fields,
        Self::Chat,
        Self::Ping,
    ];
}

/// The time of each pending deadline.
#[derive(Debug, Default)]
pub(super) struct DeadlineTable([Option<Instant>; Deadline::ALL.len()]);

impl DeadlineTable {
    /// Sets or clears a deadline.
    pub(super) fn set(&mut self, deadline: Deadline, at: Option<Instant>) {
        if let Some(entry) = self.0.get_mut(deadline as usize) {
            *entry = at;
        }
    }

    /// Returns the time of the earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Returns the deadline that is due.
    pub(super) fn due(&self, now: Instant) -> Option<Deadline> {
        let is_due = |at: &Option<Instant>| at.is_some_and(|at| at <= now);
        Deadline::ALL
            .into_iter()
            .zip(&self.0)
            .find(|(_, at)| is_due(at))
            .map(|(deadline, _)| deadline)
    }
}

/// The timer of a connection. It takes no memory before its first use.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Returns whether the deadline is due; otherwise the task is woken at it. A timer
    /// that is set too early is left in place: moving it for every message would cost
    /// more than one spurious wake-up.
    pub(super) fn is_due(
        &mut self,
        cx: &mut Context<'_>,
        deadline: Option<Instant>,
        now: Instant,
    ) -> bool {
        let Some(deadline) = deadline else {
            return false;
        };
        if deadline <= now {
            return true;
        }
        if self
            .0
            .as_ref()
            .is_none_or(|timer| timer.deadline() > deadline || timer.is_elapsed())
        {
            self.0 = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
        self.0
            .as_mut()
            .is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }
}

/// A time in eight bytes, for the many connections that are idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(NonZeroU64);

/// The time from which a [`Moment`] counts nanoseconds: an hour before its first
/// use, so that a clock that a test stops is not behind it.
static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    let now = std::time::Instant::now();
    now.checked_sub(Duration::from_secs(3600))
        .unwrap_or(now)
        .into()
});

impl Moment {
    pub(super) fn instant(self) -> Instant {
        *ORIGIN + Duration::from_nanos(self.0.get())
    }
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        let since = instant.saturating_duration_since(*ORIGIN).as_nanos();
        Self(
            u64::try_from(since)
                .ok()
                .and_then(NonZeroU64::new)
                .unwrap_or(NonZeroU64::MIN),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_deadline_is_next_and_ending_ones_precede() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut deadlines = DeadlineTable::default();
        assert_eq!((deadlines.next(), deadlines.due(later)), (None, None));
        deadlines.set(Deadline::Chat, Some(now));
        deadlines.set(Deadline::Frame, Some(later));
        assert_eq!(
            (deadlines.next(), deadlines.due(now)),
            (Some(now), Some(Deadline::Chat))
        );
        assert_eq!(deadlines.due(later), Some(Deadline::Frame));
        deadlines.set(Deadline::Chat, None);
        assert_eq!((deadlines.next(), deadlines.due(now)), (Some(later), None));
    }

    #[test]
    fn moment_keeps_the_time_to_the_nanosecond() {
        let now = Instant::now();
        assert_eq!(Moment::from(now).instant(), now);
    }
}
