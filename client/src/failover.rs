//! Failover: the servers are tried in turn without a pause, and a backoff
//! follows each round. No I/O and no clock.

use std::time::Duration;

use rand::RngExt as _;

use crate::config::Timing;

/// Position in the list of servers, and the state of the current round.
#[derive(Debug)]
pub(crate) struct Failover {
    /// Number of servers, at least one.
    count: u32,
    current: u32,
    /// Failures since the last success or backoff.
    failed: u32,
    /// Whether all servers have failed since the last success.
    is_repeated: bool,
    /// Shortest wait that a server of this round has asked for.
    retry_after: Option<Duration>,
    /// Whether all failures of this round are permanent.
    is_permanent: bool,
    connect_timeout: Duration,
    backoff: Backoff,
}

/// The next step after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Next {
    /// Delay before the next attempt.
    pub(crate) delay: Duration,
    /// Whether every server fails permanently, until the configuration changes.
    pub(crate) is_permanent: bool,
}

impl Failover {
    /// Starts at the first of `count` servers.
    pub(crate) fn new(count: usize, timing: &Timing) -> Self {
        Self {
            count: u32::try_from(count).unwrap_or(u32::MAX).max(1),
            current: 0,
            failed: 0,
            is_repeated: false,
            retry_after: None,
            is_permanent: true,
            connect_timeout: timing.connect,
            backoff: Backoff::new(timing),
        }
    }

    /// Returns the index of the current server.
    pub(crate) const fn current(&self) -> usize {
        self.current as usize
    }

    /// Returns the timeout of the next attempt. In the first round each server
    /// gets its share of the connect timeout; after all have failed, which may
    /// be slowness, each gets all of it.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        if self.is_repeated {
            self.connect_timeout
        } else {
            self.connect_timeout / self.count
        }
    }

    /// Records a failure of the current server, with the wait that it has asked
    /// for.
    pub(crate) fn on_failure(&mut self, retry_after: Duration, is_permanent: bool) -> Next {
        self.current = (self.current + 1) % self.count;
        self.failed += 1;
        self.retry_after = Some(
            self.retry_after
                .map_or(retry_after, |least| least.min(retry_after)),
        );
        self.is_permanent &= is_permanent;
        if self.failed < self.count {
            return Next {
                delay: Duration::ZERO,
                is_permanent: false,
            };
        }
        let delay = self
            .backoff
            .next()
            .max(self.retry_after.unwrap_or_default());
        let next = Next {
            delay,
            is_permanent: self.is_permanent,
        };
        self.begin_round();
        self.is_repeated = true;
        next
    }

    /// Records that the current server works.
    pub(crate) fn on_success(&mut self) {
        self.backoff.reset();
        self.begin_round();
    }

    fn begin_round(&mut self) {
        self.failed = 0;
        self.is_repeated = false;
        self.retry_after = None;
        self.is_permanent = true;
    }
}

/// Exponential backoff with jitter: each delay is drawn between half and all of
/// a limit that doubles, so that clients do not reconnect in step.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(timing: &Timing) -> Self {
        Self {
            min: timing.backoff_min,
            max: timing.backoff_max,
            next: timing.backoff_min,
        }
    }

    /// Returns the next delay.
    fn next(&mut self) -> Duration {
        let longest = self.next.min(self.max);
        self.next = longest.saturating_mul(2);
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Returns to the shortest delay.
    fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::ZERO;

    fn failover(count: usize) -> Failover {
        Failover::new(count, &Timing::default())
    }

    #[test]
    fn backoff_doubles_to_its_maximum_and_resets() {
        let timing = Timing::default();
        let mut backoff = Backoff::new(&timing);
        let mut expected = timing.backoff_min;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(
                wait <= expected && wait >= expected / 2,
                "{wait:?} for {expected:?}"
            );
            expected = (expected * 2).min(timing.backoff_max);
        }
        backoff.reset();
        assert!(backoff.next() <= timing.backoff_min);
    }

    #[test]
    fn backoff_follows_each_round_of_servers() {
        let mut failover = failover(3);
        for round in 0..4 {
            for current in 0..3 {
                assert_eq!(failover.current(), current);
                let next = failover.on_failure(NEVER, false);
                assert_eq!(
                    next.delay > NEVER,
                    current == 2,
                    "round {round}, server {current}"
                );
            }
        }
    }

    #[test]
    fn success_starts_a_new_round() {
        let mut failover = failover(3);
        failover.on_failure(NEVER, false);
        failover.on_success();
        assert_eq!(failover.current(), 1);
        let delays: Vec<bool> = (0..3)
            .map(|_| failover.on_failure(NEVER, false).delay > NEVER)
            .collect();
        assert_eq!((delays, failover.current()), (vec![false, false, true], 1));
    }

    #[test]
    fn backoff_is_at_least_the_shortest_retry_after() {
        let (short, long) = (Duration::from_secs(20), Duration::from_secs(40));
        let mut failover = failover(2);
        failover.on_failure(long, false);
        assert_eq!(failover.on_failure(short, false).delay, short);
        failover.on_failure(long, false);
        assert!(failover.on_failure(NEVER, false).delay <= Timing::default().backoff_min * 2);
        failover.on_failure(long, false);
        assert_eq!(failover.on_failure(long, false).delay, long);
    }

    #[test]
    fn failure_is_permanent_if_every_server_fails_permanently() {
        let mut failover = failover(2);
        assert!(
            !failover.on_failure(NEVER, true).is_permanent,
            "there is another"
        );
        assert!(failover.on_failure(NEVER, true).is_permanent);
        failover.on_failure(NEVER, false);
        assert!(
            !failover.on_failure(NEVER, true).is_permanent,
            "the other may come back"
        );
        failover.on_failure(NEVER, true);
        assert!(failover.on_failure(NEVER, true).is_permanent);
    }

    #[test]
    fn first_round_shares_the_connect_timeout() {
        let connect_timeout = Timing::default().connect;
        let mut failover = failover(4);
        for _ in 0..4 {
            assert_eq!(failover.attempt_timeout(), connect_timeout / 4);
            failover.on_failure(NEVER, false);
        }
        assert_eq!(failover.attempt_timeout(), connect_timeout);
        failover.on_success();
        assert_eq!(failover.attempt_timeout(), connect_timeout / 4);
    }
}
