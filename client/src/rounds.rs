//! Failover: the servers are tried in turn without a pause, and a backoff
//! follows each round. No I/O and no clock.

use std::time::Duration;

use rand::RngExt as _;

use crate::config::Timing;

/// Position in the list of servers, and the state of the current round.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Number of servers, at least one.
    count: u32,
    at: u32,
    /// Failures since the last success or backoff.
    failed: u32,
    /// Whether all servers have failed since the last success.
    is_repeated: bool,
    /// Shortest wait that a server of this round has asked for.
    asked: Option<Duration>,
    /// Whether all failures of this round are permanent.
    is_lasting: bool,
    connect: Duration,
    backoff: Backoff,
}

/// The next step after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Next {
    /// Delay before the next attempt.
    pub(crate) rest: Duration,
    /// Whether every server fails permanently, until the configuration changes.
    pub(crate) is_lasting: bool,
}

impl Rounds {
    /// Starts at the first of `count` servers.
    pub(crate) fn new(count: usize, timing: &Timing) -> Self {
        Self {
            count: u32::try_from(count).unwrap_or(u32::MAX).max(1),
            at: 0,
            failed: 0,
            is_repeated: false,
            asked: None,
            is_lasting: true,
            connect: timing.connect,
            backoff: Backoff::new(timing),
        }
    }

    /// Returns the index of the current server.
    pub(crate) const fn at(&self) -> usize {
        self.at as usize
    }

    /// Returns the timeout of the next attempt. In the first round each server
    /// gets its share of the connect timeout; after all have failed, which may
    /// be slowness, each gets all of it.
    pub(crate) fn patience(&self) -> Duration {
        if self.is_repeated { self.connect } else { self.connect / self.count }
    }

    /// Records a failure of the current server, with the wait that it has asked
    /// for.
    pub(crate) fn failed(&mut self, asked: Duration, is_lasting: bool) -> Next {
        self.at = (self.at + 1) % self.count;
        self.failed += 1;
        self.asked = Some(self.asked.map_or(asked, |least| least.min(asked)));
        self.is_lasting &= is_lasting;
        if self.failed < self.count {
            return Next { rest: Duration::ZERO, is_lasting: false };
        }
        let rest = self.backoff.next().max(self.asked.unwrap_or_default());
        let next = Next { rest, is_lasting: self.is_lasting };
        self.begin();
        self.is_repeated = true;
        next
    }

    /// Records that the current server works.
    pub(crate) fn works(&mut self) {
        self.backoff.reset();
        self.begin();
    }

    fn begin(&mut self) {
        self.failed = 0;
        self.is_repeated = false;
        self.asked = None;
        self.is_lasting = true;
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
        Self { min: timing.backoff_min, max: timing.backoff_max, next: timing.backoff_min }
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

    fn rounds(count: usize) -> Rounds {
        Rounds::new(count, &Timing::default())
    }

    #[test]
    fn the_waits_double_up_to_the_longest_and_start_again_after_a_reset() {
        let timing = Timing::default();
        let mut backoff = Backoff::new(&timing);
        let mut expected = timing.backoff_min;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait <= expected && wait >= expected / 2, "{wait:?} for {expected:?}");
            expected = (expected * 2).min(timing.backoff_max);
        }
        backoff.reset();
        assert!(backoff.next() <= timing.backoff_min);
    }

    #[test]
    fn each_server_is_tried_in_turn_and_the_rest_comes_after_the_last() {
        let mut rounds = rounds(3);
        for round in 0..4 {
            for at in 0..3 {
                assert_eq!(rounds.at(), at);
                let next = rounds.failed(NEVER, false);
                assert_eq!(next.rest > NEVER, at == 2, "round {round}, server {at}");
            }
        }
    }

    #[test]
    fn after_one_that_has_worked_all_the_others_are_tried_before_the_rest() {
        let mut rounds = rounds(3);
        rounds.failed(NEVER, false);
        rounds.works();
        assert_eq!(rounds.at(), 1);
        let rests: Vec<bool> = (0..3).map(|_| rounds.failed(NEVER, false).rest > NEVER).collect();
        assert_eq!((rests, rounds.at()), (vec![false, false, true], 1));
    }

    #[test]
    fn the_rest_is_as_long_as_the_one_asks_who_asks_for_least() {
        let (short, long) = (Duration::from_secs(20), Duration::from_secs(40));
        let mut rounds = rounds(2);
        rounds.failed(long, false);
        assert_eq!(rounds.failed(short, false).rest, short);
        rounds.failed(long, false);
        assert!(rounds.failed(NEVER, false).rest <= Timing::default().backoff_min * 2);
        rounds.failed(long, false);
        assert_eq!(rounds.failed(long, false).rest, long);
    }

    #[test]
    fn it_is_hopeless_where_it_is_with_every_server() {
        let mut rounds = rounds(2);
        assert!(!rounds.failed(NEVER, true).is_lasting, "there is another");
        assert!(rounds.failed(NEVER, true).is_lasting);
        rounds.failed(NEVER, false);
        assert!(!rounds.failed(NEVER, true).is_lasting, "the other may come back");
        rounds.failed(NEVER, true);
        assert!(rounds.failed(NEVER, true).is_lasting);
    }

    #[test]
    fn a_round_takes_no_longer_than_one_server_may_until_all_have_failed() {
        let connect = Timing::default().connect;
        let mut rounds = rounds(4);
        for _ in 0..4 {
            assert_eq!(rounds.patience(), connect / 4);
            rounds.failed(NEVER, false);
        }
        assert_eq!(rounds.patience(), connect);
        rounds.works();
        assert_eq!(rounds.patience(), connect / 4);
    }
}
