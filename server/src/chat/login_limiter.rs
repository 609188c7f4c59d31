//! The limits on wrong passwords: token buckets by account and address together, by
//! address, and for the whole server.
//!
//! A client cannot lock out a user at another address: the first two buckets belong to
//! an address, and the third only delays the answer to a wrong password. Filling a table
//! takes thousands of guesses per second, more than the server hashes; even so,
//! [`crate::limit`] bounds it.

use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::UserName;
use tokio::time::Instant;

use super::Fault;
use crate::limit::{Bucket, Buckets, Rate, network};
use crate::sync::Mutex;

/// Wrong passwords for one account from one address: 5, then one in 10 s.
const FOR_ACCOUNT: Rate = Rate::one_in(Duration::from_secs(10), 5);

/// Wrong passwords from one address: 20, then one in 3 s.
const FROM_ADDRESS: Rate = Rate::one_in(Duration::from_secs(3), 20);

/// Wrong passwords for the whole server: 100, then one in 100 ms; beyond that, answers
/// are delayed.
const GLOBAL: Rate = Rate::one_in(Duration::from_millis(100), 100);

/// The longest delay of an answer to a wrong password.
const DELAY_MAX: Duration = Duration::from_secs(2);

/// The rate limiter of wrong passwords.
#[derive(Debug, Default)]
pub(super) struct LoginLimiter {
    // Locked because an attempt is two look-ups. Held for those.
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    for_account: Buckets<(UserName, IpAddr)>,
    from_address: Buckets<IpAddr>,
    global: Bucket,
}

impl LoginLimiter {
    /// Checks that another attempt may be made. Only failures are counted
    /// ([`Self::record_failure`]), so that many users with the right password can log in
    /// from one address at the same time. Call it while holding a
    /// [`super::passwords::HashPermit`], and release that after the failure is recorded:
    /// the limit is then exceeded by at most the number of concurrent hashes.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] with the seconds to wait.
    pub(super) fn check(
        &self,
        user: Option<&UserName>,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), Fault> {
        let address = network(address);
        let mut tables = self.tables.lock();
        let mut wait = tables.from_address.wait(&address, now);
        if let Some(user) = user {
            let for_account = tables.for_account.wait(&(user.clone(), address), now);
            wait = wait.max(for_account);
        }
        if wait.is_zero() {
            return Ok(());
        }
        Fault::rate_limited(wait, "too many wrong passwords")
    }

    /// Records a wrong password, or a wrong token without a user, and returns the delay for
    /// its answer.
    pub(super) fn record_failure(
        &self,
        user: Option<&UserName>,
        address: IpAddr,
        now: Instant,
    ) -> Duration {
        let address = network(address);
        let mut tables = self.tables.lock();
        tables.from_address.charge(address, 1, now);
        if let Some(user) = user {
            tables.for_account.charge((user.clone(), address), 1, now);
        }
        let wait = tables.global.wait(GLOBAL, now);
        tables.global.take(GLOBAL, 1, now);
        wait.min(DELAY_MAX)
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            for_account: Buckets::new(FOR_ACCOUNT),
            from_address: Buckets::new(FROM_ADDRESS),
            global: Bucket::default(),
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
        let Err(Fault::Refused(refusal)) = result else {
            panic!("not refused")
        };
        assert_eq!(refusal.code, Code::RateLimited);
        assert!(
            refusal.explanation.starts_with(&format!("{seconds} ")),
            "{refusal}"
        );
    }

    /// Makes a wrong attempt, if it may be made.
    fn wrong(
        attempts: &LoginLimiter,
        name: &str,
        address: IpAddr,
        now: Instant,
    ) -> Result<Duration, Fault> {
        attempts.check(Some(&user(name)), address, now)?;
        Ok(attempts.record_failure(Some(&user(name)), address, now))
    }

    #[test]
    fn account_has_five_failures_for_each_address() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for _ in 0..5 {
            wrong(&attempts, "bob", HERE, now).unwrap();
        }
        check_refused(attempts.check(Some(&user("bob")), HERE, now), 10);
        attempts
            .check(Some(&user("bob")), THERE, now)
            .expect("bob himself is not locked out");
        attempts
            .check(Some(&user("eve")), HERE, now)
            .expect("nor are the others");
        let later = now + Duration::from_secs(10);
        wrong(&attempts, "bob", HERE, later).unwrap();
        check_refused(attempts.check(Some(&user("bob")), HERE, later), 10);
    }

    #[test]
    fn address_has_twenty_failures_over_all_accounts() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for n in 0..20 {
            wrong(&attempts, &format!("u{n}"), HERE, now).unwrap();
        }
        check_refused(attempts.check(Some(&user("another")), HERE, now), 3);
        attempts.check(Some(&user("another")), THERE, now).unwrap();
    }

    #[test]
    fn right_passwords_are_not_counted() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for _ in 0..1000 {
            attempts.check(Some(&user("bob")), HERE, now).unwrap();
        }
        assert_eq!(attempts.tables.lock().from_address.len(), 0);
    }

    #[test]
    fn global_limit_delays_answers_and_refuses_none() {
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
        assert_eq!(wrong(), DELAY_MAX);
    }

    #[test]
    fn ipv6_network_shares_one_bucket() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        let from = |host: u128| {
            IpAddr::V6(std::net::Ipv6Addr::from_bits(
                (0x2001_0db8_0000_0001_u128 << 64) | host,
            ))
        };
        for host in 0..20 {
            wrong(&attempts, &format!("u{host}"), from(host), now).unwrap();
        }
        check_refused(attempts.check(Some(&user("another")), from(20), now), 3);
    }

    #[test]
    fn flood_of_names_neither_grows_tables_nor_frees_a_guesser() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for _ in 0..5 {
            wrong(&attempts, "bob", HERE, now).unwrap();
        }
        // Far more guesses than the server could hash, each from another network.
        for nth in 0..u128::try_from(BUCKETS_MAX).unwrap() + 1000 {
            let address = IpAddr::V6(std::net::Ipv6Addr::from_bits(
                (0x2001_0db8_u128 << 96) + (nth << 64),
            ));
            attempts.record_failure(Some(&user(&format!("u{nth}"))), address, now);
        }
        let sizes = {
            let tables = attempts.tables.lock();
            (tables.for_account.len(), tables.from_address.len())
        };
        assert_eq!(sizes, (BUCKETS_MAX, BUCKETS_MAX));
        check_refused(attempts.check(Some(&user("bob")), HERE, now), 10);
    }

    #[test]
    fn wrong_token_counts_for_its_address_alone() {
        let (attempts, now) = (LoginLimiter::default(), Instant::now());
        for _ in 0..20 {
            attempts.check(None, HERE, now).unwrap();
            attempts.record_failure(None, HERE, now);
        }
        check_refused(attempts.check(None, HERE, now), 3);
        check_refused(attempts.check(Some(&user("bob")), HERE, now), 3);
        attempts.check(Some(&user("bob")), THERE, now).unwrap();
    }
}
