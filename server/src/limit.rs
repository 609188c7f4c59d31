//! Token buckets: how much is put up with, and from whom. It knows neither what
//! is counted nor what becomes of who has too much of it; the time is passed
//! in.
//!
//! Tables of buckets are bounded, and nobody can have a bucket forgotten that
//! still has something to wait for: what is swept out is as good as new. Where
//! a table is full of the others, newcomers share one bucket.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// Buckets in a table, at most.
pub(crate) const BUCKETS_MAX: usize = 65_536;

/// Buckets in a table before it is swept for the first time.
const BUCKETS_MIN: usize = 1024;

/// A table that is full is not swept more often than this, since all of it is
/// looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// So many seconds' worth may come at once where a [`Rate`] is so much a
/// second.
const BURST_SECONDS: u64 = 5;

/// So many tokens in each `period`, and `burst` of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    tokens: u64,
    period: Duration,
    burst: u64,
}

impl Rate {
    /// One token in each `period`, and `burst` at once. Neither may be zero.
    #[must_use]
    pub const fn one_in(period: Duration, burst: u64) -> Self {
        Self { tokens: 1, period, burst }
    }

    /// So many tokens a second, over five seconds; `None`, which is no limit,
    /// for 0.
    #[must_use]
    pub const fn per_second(tokens: u64) -> Option<Self> {
        match tokens {
            0 => None,
            tokens => {
                let burst = tokens.saturating_mul(BURST_SECONDS);
                Some(Self { tokens, period: Duration::from_secs(1), burst })
            }
        }
    }

    /// How long it takes until so many are there.
    fn cost(self, tokens: u64) -> Duration {
        let nanoseconds = self.period.as_nanos() * u128::from(tokens) / u128::from(self.tokens);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A token bucket, as the time at which it would be full again (the generic
/// cell rate algorithm, ITU-T I.371).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// How long until a token can be taken: as long as it takes to fill an empty
    /// bucket, at most.
    pub(crate) fn wait(self, rate: Rate, now: Instant) -> Duration {
        let to_full = self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        to_full.saturating_sub(rate.cost(rate.burst - 1))
    }

    /// Takes so many tokens, also where they are not there yet. Nobody owes more
    /// than a whole bucket.
    pub(crate) fn take(&mut self, rate: Rate, tokens: u64, now: Instant) {
        let latest = now + 2 * rate.cost(rate.burst);
        let since = self.full_at.map_or(now, |at| at.max(now));
        let full_at = since.checked_add(rate.cost(tokens)).unwrap_or(latest);
        self.full_at = Some(full_at.min(latest));
    }

    /// Takes so many tokens, and says how long until the next can be.
    pub(crate) fn charge(&mut self, rate: Rate, tokens: u64, now: Instant) -> Duration {
        self.take(rate, tokens, now);
        self.wait(rate, now)
    }

    fn is_full(self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// Buckets of one rate, by whom they are for. It has about as many as are not
/// full.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    buckets: HashMap<K, Bucket>,
    /// For those who find the table full.
    shared: Bucket,
    /// How many there may be before the full ones are looked for.
    sweep_at: usize,
    swept: Option<Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Every bucket is full.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new(), shared: Bucket::default(), sweep_at: BUCKETS_MIN, swept: None }
    }

    /// How long until `key` can take a token.
    pub(crate) fn wait(&mut self, key: &K, now: Instant) -> Duration {
        if let Some(bucket) = self.buckets.get(key) {
            return bucket.wait(self.rate, now);
        }
        if self.has_room(now) { Duration::ZERO } else { self.shared.wait(self.rate, now) }
    }

    /// Takes so many tokens of `key`, and says how long until it can take the
    /// next.
    pub(crate) fn charge(&mut self, key: K, tokens: u64, now: Instant) -> Duration {
        let rate = self.rate;
        if self.buckets.contains_key(&key) || self.has_room(now) {
            self.buckets.entry(key).or_default().charge(rate, tokens, now)
        } else {
            self.shared.charge(rate, tokens, now)
        }
    }

    /// Whether another bucket can be kept.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.buckets.len() >= self.sweep_at {
            self.sweep(now);
        }
        self.buckets.len() < BUCKETS_MAX
    }

    /// Forgets who has nothing to wait for. The next time is when the rest has
    /// doubled, so that it costs each bucket little.
    fn sweep(&mut self, now: Instant) {
        let lately = self.swept.is_some_and(|at| now < at + SWEEP_INTERVAL);
        if lately && self.sweep_at == BUCKETS_MAX {
            return;
        }
        self.swept = Some(now);
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        self.sweep_at = (2 * self.buckets.len()).clamp(BUCKETS_MIN, BUCKETS_MAX);
        self.buckets.shrink_to(self.sweep_at);
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }
}

/// Whose an address is: one for all of an IPv6 network of the size that one
/// person gets, /64. An IPv4 address that is written as an IPv6 one is the IPv4
/// address.
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
    fn a_rate_is_held_over_five_seconds() {
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
    fn nobody_owes_more_than_a_bucket() {
        for rate in [Rate::per_second(1), Rate::per_second(u64::MAX)].map(Option::unwrap) {
            let (mut bucket, now) = (Bucket::default(), Instant::now());
            for _ in 0..3 {
                assert!(bucket.charge(rate, u64::MAX, now) <= 6 * SECOND);
            }
            assert_eq!(bucket.wait(rate, now + 10 * SECOND), Duration::ZERO);
        }
    }

    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let (mut buckets, now) = (Buckets::new(Rate::one_in(SECOND, 2)), Instant::now());
        assert_eq!(buckets.charge("bob", 1, now), Duration::ZERO);
        assert_eq!(buckets.charge("bob", 1, now), SECOND);
        assert_eq!(buckets.wait(&"bob", now), SECOND);
        assert_eq!(buckets.wait(&"eve", now), Duration::ZERO);
        assert_eq!(buckets.len(), 1, "who only asks leaves nothing behind");
    }

    #[test]
    fn a_flood_of_keys_neither_grows_a_table_nor_flushes_out_who_has_to_wait() {
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
        assert!(!waited.is_zero() && !buckets.wait(&(guesser - 1), now).is_zero(), "newcomers share one");
        assert_eq!(buckets.wait(&0, now), Duration::ZERO, "who was there before does not");
        let later = now + 20 * SECOND;
        buckets.charge(guesser - 1, 1, later);
        assert_eq!(buckets.len(), 1, "who has waited is forgotten");
    }

    #[test]
    fn a_table_is_about_as_big_as_those_who_are_not_full_are_many() {
        let (mut buckets, start) = (Buckets::new(Rate::per_second(100).unwrap()), Instant::now());
        let mut largest = 0;
        // Ten thousand newcomers a second, each of whom is through in 10 ms.
        for nth in 0..200_000 {
            let now = start + nth * SECOND / 10_000;
            assert_eq!(buckets.charge(nth, 1, now), Duration::ZERO);
            largest = largest.max(buckets.len());
        }
        assert_eq!(largest, BUCKETS_MIN);
    }

    #[test]
    fn ipv6_addresses_count_by_their_network_and_ipv4_ones_as_such() {
        let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
        let one = network(parse("2001:db8:0:1::1"));
        assert_eq!(one, network(parse("2001:db8:0:1:ffff::2")));
        assert_ne!(one, network(parse("2001:db8:0:2::1")));
        assert_eq!(network(parse("::ffff:192.0.2.1")), parse("192.0.2.1"));
        assert_ne!(network(parse("192.0.2.1")), network(parse("192.0.2.2")));
    }
}
