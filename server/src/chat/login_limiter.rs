//! How many wrong passwords are put up with: token buckets by account and
//! address together, by address, and over all.
//!
//! Nobody can lock another person out: the first two take only from those who
//! come from the same address, and the one over all slows the answer to a wrong
//! password down and refuses none. To fill a table with guessers takes thousands
//! of guesses a second, more than are hashed; how it stays bounded then is a
//! matter of [`crate::limit`].

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::UserName;
use tokio::time::Instant;

use super::Fault;
use crate::limit::{Bucket, Buckets, Rate, network};

/// Wrong passwords for one account from one address: 5, then one in 10 s.
const FOR_ACCOUNT: Rate = Rate::one_in(Duration::from_secs(10), 5);

/// Wrong passwords from one address: 20, then one in 3 s.
const FROM_ADDRESS: Rate = Rate::one_in(Duration::from_secs(3), 20);

/// Wrong passwords over all: 100, then one in 100 ms, or a slower answer.
const OVER_ALL: Rate = Rate::one_in(Duration::from_millis(100), 100);

/// The answer to a wrong password is held back no longer than this.
const HELD_BACK_MAX: Duration = Duration::from_secs(2);

/// The wrong passwords of late.
#[derive(Debug, Default)]
pub(super) struct LoginLimiter {
    // A lock, since an attempt is two look-ups. It is held for those.
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    for_account: Buckets<(UserName, IpAddr)>,
    from_address: Buckets<IpAddr>,
    over_all: Bucket,
}

impl LoginLimiter {
    /// Whether another attempt may be made. It counts only once it was wrong, so
    /// that many who are right can come at the same time from one address. So ask
    /// when it has its [`super::passwords::Turn`], and keep that until it counts:
    /// then no more are made beyond the limit than are hashed at once.
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
    pub(super) fn record_failure(&self, user: &UserName, address: IpAddr, now: Instant) -> Duration {
        let address = network(address);
        let mut tables = self.lock();
        tables.from_address.charge(address, 1, now);
        tables.for_account.charge((user.clone(), address), 1, now);
        let wait = tables.over_all.wait(OVER_ALL, now);
        tables.over_all.take(OVER_ALL, 1, now);
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

#[cfg(test)]
mod tests {
    use hark_protocol::Code;

    use super::*;
    use crate::limit::BUCKETS_MAX;

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
    fn wrong(attempts: &LoginLimiter, name: &str, address: IpAddr, now: Instant) -> Result<Duration, Fault> {
        attempts.check(&user(name), address, now)?;
        Ok(attempts.record_failure(&user(name), address, now))
    }

    #[test]
    fn five_wrong_ones_for_an_account_then_one_in_ten_seconds_and_only_there() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
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
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for n in 0..20 {
            wrong(&attempts, &format!("u{n}"), HERE, now).unwrap();
        }
        check_refused(attempts.check(&user("another"), HERE, now), 3);
        attempts.check(&user("another"), THERE, now).unwrap();
    }

    #[test]
    fn right_ones_do_not_count_and_leave_nothing_behind() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for _ in 0..1000 {
            attempts.check(&user("bob"), HERE, now).unwrap();
        }
        assert_eq!(attempts.lock().from_address.len(), 0);
    }

    #[test]
    fn over_all_wrong_answers_are_held_back_and_never_refused() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
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
    fn who_guesses_from_a_network_of_ipv6_has_one_bucket() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        let from =
            |host: u128| IpAddr::V6(std::net::Ipv6Addr::from_bits((0x2001_0db8_0000_0001_u128 << 64) | host));
        for host in 0..20 {
            wrong(&attempts, &format!("u{host}"), from(host), now).unwrap();
        }
        check_refused(attempts.check(&user("another"), from(20), now), 3);
    }

    #[test]
    fn many_networks_and_many_names_neither_grow_the_tables_nor_free_a_guesser() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for _ in 0..5 {
            wrong(&attempts, "bob", HERE, now).unwrap();
        }
        // Far more than there are processors for, from as many networks.
        for nth in 0..u128::try_from(BUCKETS_MAX).unwrap() + 1000 {
            let address = IpAddr::V6(std::net::Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) + (nth << 64)));
            attempts.record_failure(&user(&format!("u{nth}")), address, now);
        }
        let sizes = {
            let tables = attempts.lock();
            (tables.for_account.len(), tables.from_address.len())
        };
        assert_eq!(sizes, (BUCKETS_MAX, BUCKETS_MAX));
        check_refused(attempts.check(&user("bob"), HERE, now), 10);
    }
}
