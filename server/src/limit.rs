//! Token buckets, and bounded tables of them. The meaning of a token and the effect of an
//! empty bucket are up to the caller. Time is an argument.
//!
//! A table evicts only full buckets, which are equivalent to new ones, so a client
//! cannot flush out a bucket that still has to refill. While a table holds only
//! buckets that are not full, new keys share one bucket.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// The maximum number of buckets in a table.
pub(crate) const BUCKETS_MAX: usize = 65_536;

/// The size of a table at its first sweep.
const BUCKETS_MIN: usize = 1024;

/// The shortest time between two sweeps of a full table; a sweep visits every
/// bucket.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The burst of a [`Rate::per_second`], in seconds' worth of tokens.
const BURST_SECONDS: u64 = 5;

/// A refill rate of `tokens` per `period`, a capacity of `burst` tokens, and a bound of the
/// debt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    tokens: u64,
    period: Duration,
    burst: u64,
    /// The time to pay the largest debt; `None` for that of one full bucket.
    debt_max: Option<Duration>,
}

impl Rate {
    /// Returns a rate of one token per `period`, with this burst. Neither may be zero.
    #[must_use]
    pub const fn one_in(period: Duration, burst: u64) -> Self {
        Self {
            tokens: 1,
            period,
            burst,
            debt_max: None,
        }
    }

    /// Returns the rate with a debt that takes at most so long to pay.
    #[must_use]
    pub const fn with_debt(self, max: Duration) -> Self {
        Self {
            debt_max: Some(max),
            ..self
        }
    }

    /// Returns a rate of this many tokens per second with a burst of five seconds'
    /// worth; `None` (no limit) for 0.
    #[must_use]
    pub const fn per_second(tokens: u64) -> Option<Self> {
        match tokens {
            0 => None,
            tokens => {
                let burst = tokens.saturating_mul(BURST_SECONDS);
                Some(Self {
                    tokens,
                    period: Duration::from_secs(1),
                    burst,
                    debt_max: None,
                })
            }
        }
    }

    /// Returns the time in which this many tokens are refilled.
    fn cost(self, tokens: u64) -> Duration {
        let nanoseconds = self.period.as_nanos() * u128::from(tokens) / u128::from(self.tokens);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A token bucket, as the time at which it would be full again (the generic
/// cell rate algorithm, ITU-T I.371).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// Returns the time until a token can be taken.
    pub(crate) fn wait(self, rate: Rate, now: Instant) -> Duration {
        let to_full = self
            .full_at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        to_full.saturating_sub(rate.cost(rate.burst - 1))
    }

    /// Takes this many tokens, going into debt if there are fewer, as far as the rate
    /// allows.
    pub(crate) fn take(&mut self, rate: Rate, tokens: u64, now: Instant) {
        let full = rate.cost(rate.burst);
        let latest = now + full + rate.debt_max.unwrap_or(full);
        let since = self.full_at.map_or(now, |at| at.max(now));
        let full_at = since.checked_add(rate.cost(tokens)).unwrap_or(latest);
        self.full_at = Some(full_at.min(latest));
    }

    /// Takes this many tokens, and returns the time until the next token can be taken.
    pub(crate) fn charge(&mut self, rate: Rate, tokens: u64, now: Instant) -> Duration {
        self.take(rate, tokens, now);
        self.wait(rate, now)
    }

    /// Returns whether the bucket is full, as a new one is.
    pub(crate) fn is_full(self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// A table of buckets with one rate, by key. Its size is proportional to the number of
/// buckets that are not full.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    buckets: HashMap<K, Bucket>,
    /// The bucket shared by all keys that arrive while the table is full.
    shared: Bucket,
    /// The size at which the table is swept next.
    sweep_at: usize,
    swept_at: Option<Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Returns a table in which every bucket is full.
    pub(crate) fn new(rate: Rate) -> Self {
        let (buckets, shared) = Default::default();
        Self {
            rate,
            buckets,
            shared,
            sweep_at: BUCKETS_MIN,
            swept_at: None,
        }
    }

    /// Changes the rate. A bucket that refills is full at the same time as before.
    pub(crate) const fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Returns the time until `key` can take a token.
    pub(crate) fn wait(&mut self, key: &K, now: Instant) -> Duration {
        if let Some(bucket) = self.buckets.get(key) {
            return bucket.wait(self.rate, now);
        }
        if self.has_room(now) {
            Duration::ZERO
        } else {
            self.shared.wait(self.rate, now)
        }
    }

    /// Takes this many tokens of `key`, and returns the time until it can take the
    /// next.
    pub(crate) fn charge(&mut self, key: K, tokens: u64, now: Instant) -> Duration {
        let rate = self.rate;
        if self.buckets.contains_key(&key) || self.has_room(now) {
            self.buckets
                .entry(key)
                .or_default()
                .charge(rate, tokens, now)
        } else {
            self.shared.charge(rate, tokens, now)
        }
    }

    /// Returns whether the table can take another bucket.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.buckets.len() >= self.sweep_at {
            self.sweep(now);
        }
        self.buckets.len() < BUCKETS_MAX
    }

    /// Evicts the full buckets. The next sweep is due when the table has doubled, so
    /// that the amortized cost per bucket is constant.
    fn sweep(&mut self, now: Instant) {
        let is_recent = self.swept_at.is_some_and(|at| now < at + SWEEP_INTERVAL);
        if is_recent && self.sweep_at == BUCKETS_MAX {
            return;
        }
        self.swept_at = Some(now);
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        self.sweep_at = (2 * self.buckets.len()).clamp(BUCKETS_MIN, BUCKETS_MAX);
        self.buckets.shrink_to(self.sweep_at);
    }

    /// Returns the number of buckets in the table.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }
}

/// Returns the network that counts as one address: the /64 of an IPv6 address, since
/// one subscriber gets that many. An IPv4-mapped address is the IPv4 address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rate_is_held_over_five_seconds() {
        let (rate, start) = (Rate::per_second(1000).unwrap(), Instant::now());
        let mut bucket = Bucket::default();
        for _ in 1..5000 {
            assert_eq!(bucket.charge(rate, 1, start), Duration::ZERO);
        }
        assert_eq!(bucket.charge(rate, 1, start), Duration::from_millis(1));
        let mut now = start;
        for _ in 0..10_000 {
            now += bucket.wait(rate, now);
            bucket.take(rate, 1, now);
        }
        assert_eq!(now - start, 10 * SECOND, "and then a thousand a second");
        assert_eq!(bucket.wait(rate, now + SECOND), Duration::ZERO);
        assert_eq!(Rate::per_second(0), None, "0 is no limit");
    }

    #[test]
    fn a_rate_may_be_finer_than_a_nanosecond() {
        let (rate, now) = (Rate::per_second(3_000_000_000).unwrap(), Instant::now());
        let mut bucket = Bucket::default();
        bucket.take(rate, 15_000_000_000, now);
        let wait = bucket.charge(rate, 3_000_000_000, now);
        assert!(wait.abs_diff(SECOND) < Duration::from_micros(1), "{wait:?}");
    }

    #[test]
    fn debt_is_at_most_one_bucket() {
        for rate in [Rate::per_second(1), Rate::per_second(u64::MAX)].map(Option::unwrap) {
            let (mut bucket, now) = (Bucket::default(), Instant::now());
            for _ in 0..3 {
                assert!(bucket.charge(rate, u64::MAX, now) <= 6 * SECOND);
            }
            assert_eq!(bucket.wait(rate, now + 10 * SECOND), Duration::ZERO);
        }
    }

    #[test]
    fn debt_of_a_rate_may_be_larger() {
        let rate = Rate::per_second(100).unwrap().with_debt(60 * SECOND);
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        let wait = bucket.charge(rate, 2500, now);
        assert_eq!(wait, 20 * SECOND + Duration::from_millis(10));
        let wait = bucket.charge(rate, u64::MAX, now);
        assert_eq!(wait, 60 * SECOND + Duration::from_millis(10));
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let (mut buckets, now) = (Buckets::new(Rate::one_in(SECOND, 2)), Instant::now());
        assert_eq!(buckets.charge("bob", 1, now), Duration::ZERO);
        assert_eq!(buckets.charge("bob", 1, now), SECOND);
        assert_eq!(buckets.wait(&"bob", now), SECOND);
        assert_eq!(buckets.wait(&"eve", now), Duration::ZERO);
        assert_eq!(buckets.len(), 1, "a query adds no bucket");
    }

    #[test]
    fn flood_of_keys_evicts_no_bucket_that_refills() {
        let (mut buckets, now) = (Buckets::new(Rate::one_in(10 * SECOND, 2)), Instant::now());
        let guesser = u32::MAX;
        for _ in 0..2 {
            buckets.charge(guesser, 1, now);
        }
        let mut waited = Duration::ZERO;
        for key in 0..3 * u32::try_from(BUCKETS_MAX).unwrap() {
            waited = buckets.charge(key, 1, now);
        }
        assert_eq!(buckets.len(), BUCKETS_MAX);
        assert_eq!(buckets.wait(&guesser, now), 10 * SECOND, "it still waits");
        assert!(
            !waited.is_zero() && !buckets.wait(&(guesser - 1), now).is_zero(),
            "new keys share one"
        );
        assert_eq!(
            buckets.wait(&0, now),
            Duration::ZERO,
            "earlier keys keep their own"
        );
        let later = now + 20 * SECOND;
        buckets.charge(guesser - 1, 1, later);
        assert_eq!(buckets.len(), 1, "full buckets are evicted");
    }

    #[test]
    fn table_stays_small_if_buckets_refill() {
        let (mut buckets, start) = (Buckets::new(Rate::per_second(100).unwrap()), Instant::now());
        let mut largest = 0;
        // Ten thousand new keys per second, each of which refills in 10 ms.
        for nth in 0..200_000 {
            let now = start + nth * SECOND / 10_000;
            assert_eq!(buckets.charge(nth, 1, now), Duration::ZERO);
            largest = largest.max(buckets.len());
        }
        assert_eq!(largest, BUCKETS_MIN);
    }

    #[test]
    fn ipv6_addresses_count_by_their_network() {
        let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
        let one = network(parse("2001:db8:0:1::1"));
        assert_eq!(one, network(parse("2001:db8:0:1:ffff::2")));
        assert_ne!(one, network(parse("2001:db8:0:2::1")));
        assert_eq!(network(parse("::ffff:192.0.2.1")), parse("192.0.2.1"));
        assert_ne!(network(parse("192.0.2.1")), network(parse("192.0.2.2")));
    }
}
