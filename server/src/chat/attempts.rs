//! How many wrong passwords are put up with: token buckets by account and
//! address together, by address, and over all.
//!
//! Nobody can lock another person out: the first two take only from those who
//! come from the same address, and the one over all slows the answer to a wrong
//! password down and refuses none. Tables are bounded; where one is full of
//! addresses that still have something to wait for, newcomers share a bucket.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::UserName;
use tokio::time::Instant;

use super::Fault;

/// Buckets in each table, at most.
const BUCKETS_MAX: usize = 65_536;

/// Wrong passwords for one account from one address: 5, then one in 10 s.
const FOR_ACCOUNT: Rate = Rate { burst: 5, refill: Duration::from_secs(10) };

/// Wrong passwords from one address: 20, then one in 3 s.
const FROM_ADDRESS: Rate = Rate { burst: 20, refill: Duration::from_secs(3) };

/// Wrong passwords over all: 100, then one in 100 ms, or a slower answer.
const OVER_ALL: Rate = Rate { burst: 100, refill: Duration::from_millis(100) };

/// The answer to a wrong password is held back no longer than this.
const HELD_BACK_MAX: Duration = Duration::from_secs(2);

/// The wrong passwords of late.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    // A lock, since an attempt is two look-ups. It is held for those.
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    for_account: Buckets<(UserName, IpAddr)>,
    from_address: Buckets<IpAddr>,
    over_all: Bucket,
}

impl Attempts {
    /// Whether another attempt may be made. It counts only once it was wrong, so
    /// that many who are right can come at the same time from one address; those
    /// that are under way are bounded by the [`super::passwords::Hasher`].
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] with the seconds to wait.
    pub(super) fn check(&self, user: &UserName, address: IpAddr, now: Instant) -> Result<(), Fault> {
        let address = network(address);
        let mut tables = self.lock();
        let wait = tables
            .from_address
            .wait(&address, now)
            .max(tables.for_account.wait(&(user.clone(), address), now));
        if wait.is_zero() {
            return Ok(());
        }
        Fault::rate_limited(wait, "too many wrong passwords")
    }

    /// An attempt was wrong: how long to hold the answer back.
    pub(super) fn was_wrong(&self, user: &UserName, address: IpAddr, now: Instant) -> Duration {
        let address = network(address);
        let mut tables = self.lock();
        tables.from_address.take(address, now);
        tables.for_account.take((user.clone(), address), now);
        let wait = tables.over_all.wait(OVER_ALL, now);
        tables.over_all.take(OVER_ALL, now);
        wait.min(HELD_BACK_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            for_account: Buckets::new(FOR_ACCOUNT),
            from_address: Buckets::new(FROM_ADDRESS),
            over_all: Bucket::default(),
        }
    }
}

/// One address for all of an IPv6 network of the size that one person gets.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// So many at once, and then one in each `refill`.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    refill: Duration,
}

impl Rate {
    /// How long it takes to fill an empty bucket but for one token.
    fn span(self) -> Duration {
        self.refill * (self.burst - 1)
    }
}

/// A token bucket, as the time at which it would be full again (the generic
/// cell rate algorithm, ITU-T I.371).
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// How long until a token can be taken.
    fn wait(self, rate: Rate, now: Instant) -> Duration {
        let to_full = self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        to_full.saturating_sub(rate.span())
    }

    fn take(&mut self, rate: Rate, now: Instant) {
        let latest = now + rate.refill * rate.burst * 2;
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + rate.refill;
        self.full_at = Some(full_at.min(latest));
    }

    fn is_full(self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    buckets: HashMap<K, Bucket>,
    /// For those who find the table full.
    shared: Bucket,
    swept: Option<Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new(), shared: Bucket::default(), swept: None }
    }

    fn wait(&mut self, key: &K, now: Instant) -> Duration {
        if let Some(bucket) = self.buckets.get(key) {
            return bucket.wait(self.rate, now);
        }
        self.sweep(now);
        if self.buckets.len() < BUCKETS_MAX { Duration::ZERO } else { self.shared.wait(self.rate, now) }
    }

    fn take(&mut self, key: K, now: Instant) {
        let rate = self.rate;
        if self.buckets.len() < BUCKETS_MAX || self.buckets.contains_key(&key) {
            self.buckets.entry(key).or_default().take(rate, now);
        } else {
            self.shared.take(rate, now);
        }
    }

    /// Forgets who has nothing to wait for; when the table is full, and not
    /// more than once a second, since it looks at all of it.
    fn sweep(&mut self, now: Instant) {
        let lately = self.swept.is_some_and(|at| now < at + Duration::from_secs(1));
        if self.buckets.len() >= BUCKETS_MAX && !lately {
            self.swept = Some(now);
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Code;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn user(name: &str) -> UserName {
        name.parse().unwrap()
    }

    #[track_caller]
    fn check_refused(result: Result<(), Fault>, seconds: u64) {
        let Err(Fault::Refused(refusal)) = result else { panic!("not refused") };
        assert_eq!(refusal.code, Code::RateLimited);
        assert!(refusal.explanation.starts_with(&format!("{seconds} ")), "{refusal}");
    }

    /// A wrong attempt, if it may be made.
    fn wrong(attempts: &Attempts, name: &str, address: IpAddr, now: Instant) -> Result<Duration, Fault> {
        attempts.check(&user(name), address, now)?;
        Ok(attempts.was_wrong(&user(name), address, now))
    }

    #[test]
    fn five_wrong_ones_for_an_account_then_one_in_ten_seconds_and_only_there() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for _ in 0..5 {
            wrong(&attempts, "bob", HERE, now).unwrap();
        }
        check_refused(attempts.check(&user("bob"), HERE, now), 10);
        attempts.check(&user("bob"), THERE, now).expect("bob himself is not locked out");
        attempts.check(&user("eve"), HERE, now).expect("nor are the others");
        let later = now + Duration::from_secs(10);
        wrong(&attempts, "bob", HERE, later).unwrap();
        check_refused(attempts.check(&user("bob"), HERE, later), 10);
    }

    #[test]
    fn an_address_has_twenty_over_all_accounts() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..20 {
            wrong(&attempts, &format!("u{n}"), HERE, now).unwrap();
        }
        check_refused(attempts.check(&user("another"), HERE, now), 3);
        attempts.check(&user("another"), THERE, now).unwrap();
    }

    #[test]
    fn right_ones_do_not_count_and_leave_nothing_behind() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for _ in 0..1000 {
            attempts.check(&user("bob"), HERE, now).unwrap();
        }
        assert_eq!(attempts.lock().from_address.buckets.len(), 0);
    }

    #[test]
    fn over_all_wrong_answers_are_held_back_and_never_refused() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let mut address = (0..).map(|n| IpAddr::V4(std::net::Ipv4Addr::from_bits(n)));
        let mut wrong = || wrong(&attempts, "bob", address.next().unwrap(), now).unwrap();
        for _ in 0..100 {
            assert_eq!(wrong(), Duration::ZERO);
        }
        assert_eq!(wrong(), Duration::from_millis(100));
        for _ in 0..1000 {
            wrong();
        }
        assert_eq!(wrong(), HELD_BACK_MAX);
    }

    #[test]
    fn the_tables_do_not_grow_without_end() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..u32::try_from(BUCKETS_MAX).unwrap() + 100 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(n));
            drop(wrong(&attempts, "bob", address, now));
        }
        assert_eq!(attempts.lock().from_address.buckets.len(), BUCKETS_MAX);
        let later = now + Duration::from_secs(60);
        wrong(&attempts, "bob", HERE, later).unwrap();
        assert_eq!(attempts.lock().from_address.buckets.len(), 1, "who has waited is forgotten");
    }

    #[test]
    fn ipv6_addresses_count_by_their_network() {
        let a: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        let b: IpAddr = "2001:db8:0:1:ffff::2".parse().unwrap();
        let c: IpAddr = "2001:db8:0:2::1".parse().unwrap();
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), HERE);
    }
}
