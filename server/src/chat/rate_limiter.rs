//! The rate limits of a connection and of a user, in commands and bytes per second. A
//! client that exceeds its limit is read later and never refused, so that the outcome
//! of a send does not depend on its rate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hark_protocol::UserName;
use tokio::time::Instant;

use crate::limit::{Bucket, Buckets, Rate};
use crate::store::UserLimits;
use crate::sync::Mutex;

/// The time to pay the largest debt of deliveries. It is long, because the deliveries of a
/// message are charged when it is stored: a user may have sent many until then, on many
/// connections.
const DELIVERY_DEBT_MAX: Duration = Duration::from_secs(3600);

/// The rates of connections and users; `None` means no limit.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Commands on one connection.
    pub commands: Option<Rate>,
    /// Bytes from one connection.
    pub bytes: Option<Rate>,
    /// Commands of one user, over all its connections.
    pub user_commands: Option<Rate>,
    /// Bytes of texts from one user, over all its connections.
    pub user_bytes: Option<Rate>,
    /// Deliveries of one user's messages to rooms: a message counts once for each attached
    /// device.
    pub user_deliveries: Option<Rate>,
    /// Whether the limits apply to the loopback, too.
    pub on_loopback: bool,
}

impl Rates {
    /// No limits.
    pub const NONE: Self = Self {
        commands: None,
        bytes: None,
        user_commands: None,
        user_bytes: None,
        user_deliveries: None,
        on_loopback: false,
    };

    /// Returns whether connections from `address` are exempt from all limits.
    pub(super) fn is_exempt(&self, address: IpAddr) -> bool {
        address.is_loopback() && !self.on_loopback
    }
}

/// The rate limiter of one connection.
#[derive(Debug)]
pub struct RateLimiter {
    commands: Option<Rate>,
    bytes: Option<Rate>,
    // Locked because the calls of a gRPC connection are separate tasks. Held to charge
    // one command or read.
    buckets: Mutex<ConnectionBuckets>,
}

#[derive(Debug, Default)]
struct ConnectionBuckets {
    commands: Bucket,
    bytes: Bucket,
}

impl RateLimiter {
    /// Returns a limiter with full buckets.
    #[must_use]
    pub fn new(rates: &Rates) -> Self {
        Self {
            commands: rates.commands,
            bytes: rates.bytes,
            buckets: Mutex::default(),
        }
    }

    /// Charges a command, and returns the wait before the next.
    fn charge_command(&self, now: Instant) -> Duration {
        self.commands.map_or(Duration::ZERO, |rate| {
            self.buckets.lock().commands.charge(rate, 1, now)
        })
    }

    /// Charges bytes that were read, and returns the wait before the next read.
    pub fn charge_bytes(&self, bytes: usize, now: Instant) -> Duration {
        self.bytes.map_or(Duration::ZERO, |rate| {
            self.buckets.lock().bytes.charge(rate, bytes as u64, now)
        })
    }

    /// Returns whether both buckets are full, as those of a new limiter are.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        let buckets = self.buckets.lock();
        buckets.commands.is_full(now) && buckets.bytes.is_full(now)
    }

    /// Charges a call, one of many that may wait at the same time, and returns the wait
    /// before it may run.
    ///
    /// # Errors
    /// The wait, if it exceeds `wait_max`. The call is then not charged.
    pub fn charge_call(&self, wait_max: Duration, now: Instant) -> Result<Duration, Duration> {
        let Some(rate) = self.commands else {
            return Ok(Duration::ZERO);
        };
        let commands = &mut self.buckets.lock().commands;
        let wait = commands.wait(rate, now);
        if wait > wait_max {
            return Err(wait);
        }
        commands.take(rate, 1, now);
        Ok(wait)
    }
}

/// The rate limiter of all users.
#[derive(Debug)]
pub(super) struct UserRateLimiter {
    // Locked because all connections charge it. Held for two look-ups.
    buckets: Mutex<UserBuckets>,
    /// A user has limits of its own: connections without limits look them up, too.
    has_own: AtomicBool,
}

#[derive(Debug)]
struct UserBuckets {
    commands: Option<Buckets<UserName>>,
    bytes: Option<Buckets<UserName>>,
    deliveries: Option<Buckets<UserName>>,
    /// The users with limits of their own, as far as they have logged in.
    own: HashMap<UserName, OwnBuckets>,
}

/// The limits of one user that replace those of all users.
#[derive(Debug, Default)]
struct OwnBuckets {
    commands: Option<OwnBucket>,
    bytes: Option<OwnBucket>,
    deliveries: Option<OwnBucket>,
}

/// A limit of one user; without a rate, there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnBucket {
    rate: Option<Rate>,
    bucket: Bucket,
}

/// A user who is charged on a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charged<'u> {
    pub(super) user: &'u UserName,
    /// The limits of all users do not apply to the connection. Those of this user alone do.
    pub(super) is_exempt: bool,
}

/// A send, as far as the limits of its user concern it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendSize {
    /// The bytes of the text.
    pub(super) bytes: usize,
    /// Whether the recipient is a room.
    pub(super) is_to_room: bool,
}

/// Returns the rate of deliveries, with its debt.
fn delivery_rate(rates: &Rates) -> Option<Rate> {
    let rate = rates.user_deliveries;
    rate.map(|rate| rate.with_debt(DELIVERY_DEBT_MAX))
}

impl UserRateLimiter {
    /// Returns a limiter with full buckets.
    pub(super) fn new(rates: &Rates) -> Self {
        let buckets = UserBuckets {
            commands: rates.user_commands.map(Buckets::new),
            bytes: rates.user_bytes.map(Buckets::new),
            deliveries: delivery_rate(rates).map(Buckets::new),
            own: HashMap::new(),
        };
        Self {
            buckets: Mutex::new(buckets),
            has_own: AtomicBool::new(false),
        }
    }

    /// Changes the rates. Buckets stay as empty as they are.
    pub(super) fn set_rates(&self, rates: &Rates) {
        let mut buckets = self.buckets.lock();
        set_rate(&mut buckets.commands, rates.user_commands);
        set_rate(&mut buckets.bytes, rates.user_bytes);
        set_rate(&mut buckets.deliveries, delivery_rate(rates));
    }

    /// Sets or removes the limits of one user. Its buckets stay as empty as they are.
    pub(super) fn set_own(&self, user: &UserName, limits: Option<&UserLimits>) {
        if limits.is_none() && !self.has_own() {
            return;
        }
        let own = &mut self.buckets.lock().own;
        match limits {
            Some(limits) => own.entry(user.clone()).or_default().set(limits),
            None => drop(own.remove(user)),
        }
        self.has_own.store(!own.is_empty(), Ordering::Relaxed);
    }

    fn has_own(&self) -> bool {
        self.has_own.load(Ordering::Relaxed)
    }

    /// Returns whether any limit may concern a user.
    pub(super) fn concerns(&self, charged: Charged<'_>) -> bool {
        !charged.is_exempt || self.has_own()
    }

    /// Charges a command of a user, and returns the wait before the next.
    pub(super) fn charge_command(&self, charged: Charged<'_>, now: Instant) -> Duration {
        if !self.concerns(charged) {
            return Duration::ZERO;
        }
        let UserBuckets { commands, own, .. } = &mut *self.buckets.lock();
        let own = own.get_mut(charged.user);
        if let Some(own) = own.and_then(|own| own.commands.as_mut()) {
            return own.charge(1, now);
        }
        let commands = commands.as_mut().filter(|_| !charged.is_exempt);
        commands.map_or(Duration::ZERO, |commands| {
            commands.charge(charged.user.clone(), 1, now)
        })
    }

    /// Returns the time until a send of a user is admitted.
    pub(super) fn wait_to_send(
        &self,
        charged: Charged<'_>,
        to_room: bool,
        now: Instant,
    ) -> Duration {
        if !self.concerns(charged) {
            return Duration::ZERO;
        }
        self.buckets.lock().wait_to_send(charged, to_room, now)
    }

    /// Admits a send of a user unless one of its buckets is empty, on whatever connection
    /// the user emptied it. Charges the bytes, and returns the wait before the next send.
    ///
    /// # Errors
    /// The wait before the send. It is not charged then.
    pub(super) fn admit_send(
        &self,
        charged: Charged<'_>,
        send: SendSize,
        now: Instant,
    ) -> Result<Duration, Duration> {
        if !self.concerns(charged) {
            return Ok(Duration::ZERO);
        }
        let mut buckets = self.buckets.lock();
        let wait = buckets.wait_to_send(charged, send.is_to_room, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        if send.bytes == 0 {
            return Ok(Duration::ZERO);
        }
        let UserBuckets { bytes, own, .. } = &mut *buckets;
        let own = own.get_mut(charged.user);
        if let Some(own) = own.and_then(|own| own.bytes.as_mut()) {
            return Ok(own.charge(send.bytes as u64, now));
        }
        let bytes = bytes.as_mut().filter(|_| !charged.is_exempt);
        Ok(bytes.map_or(Duration::ZERO, |bytes| {
            bytes.charge(charged.user.clone(), send.bytes as u64, now)
        }))
    }

    /// Charges the deliveries of a stored message. A refused one costs none: it would show
    /// how many devices read a room that is secret.
    pub(super) fn charge_deliveries(&self, charged: Charged<'_>, count: usize, now: Instant) {
        if count == 0 {
            return;
        }
        let UserBuckets {
            deliveries, own, ..
        } = &mut *self.buckets.lock();
        let own = own.get_mut(charged.user);
        if let Some(own) = own.and_then(|own| own.deliveries.as_mut()) {
            own.charge(count as u64, now);
        } else if let Some(buckets) = deliveries.as_mut().filter(|_| !charged.is_exempt) {
            buckets.charge(charged.user.clone(), count as u64, now);
        }
    }
}

impl UserBuckets {
    fn wait_to_send(&mut self, charged: Charged<'_>, to_room: bool, now: Instant) -> Duration {
        let Charged { user, is_exempt } = charged;
        let own = self.own.get(user);
        let wait = |own: Option<&OwnBucket>, all: &mut Option<Buckets<UserName>>| match own {
            Some(own) => own.wait(now),
            None => match all.as_mut().filter(|_| !is_exempt) {
                Some(buckets) => buckets.wait(user, now),
                None => Duration::ZERO,
            },
        };
        let bytes = wait(own.and_then(|own| own.bytes.as_ref()), &mut self.bytes);
        if !to_room {
            return bytes;
        }
        let own = own.and_then(|own| own.deliveries.as_ref());
        bytes.max(wait(own, &mut self.deliveries))
    }
}

impl OwnBuckets {
    fn set(&mut self, limits: &UserLimits) {
        set_own_rate(&mut self.commands, limits.commands, None);
        set_own_rate(&mut self.bytes, limits.bytes, None);
        let debt = Some(DELIVERY_DEBT_MAX);
        set_own_rate(&mut self.deliveries, limits.deliveries, debt);
    }
}

impl OwnBucket {
    fn wait(&self, now: Instant) -> Duration {
        let rate = self.rate;
        rate.map_or(Duration::ZERO, |rate| self.bucket.wait(rate, now))
    }

    fn charge(&mut self, tokens: u64, now: Instant) -> Duration {
        let rate = self.rate;
        rate.map_or(Duration::ZERO, |rate| self.bucket.charge(rate, tokens, now))
    }
}

fn set_own_rate(own: &mut Option<OwnBucket>, limit: Option<u64>, debt: Option<Duration>) {
    let bucket = own.map_or_else(Bucket::default, |own| own.bucket);
    *own = limit.map(|limit| {
        let rate = Rate::per_second(limit);
        let rate = rate.map(|rate| debt.map_or(rate, |debt| rate.with_debt(debt)));
        OwnBucket { rate, bucket }
    });
}

fn set_rate(buckets: &mut Option<Buckets<UserName>>, rate: Option<Rate>) {
    match (buckets.as_mut(), rate) {
        (Some(buckets), Some(rate)) => buckets.set_rate(rate),
        _ => *buckets = rate.map(Buckets::new),
    }
}

/// The throttle of one connection: the time until which its requests stay unread.
#[derive(Debug)]
pub(super) struct Throttle {
    is_exempt: bool,
    /// The connection's limiter, charged in addition to the user's.
    limiter: Option<Arc<RateLimiter>>,
    paused_until: Option<Instant>,
    /// The pauses since the latest [`Self::take_paused`].
    paused: Duration,
}

impl Throttle {
    /// Returns the throttle of a connection from `address`, open.
    pub(super) fn new(address: IpAddr, rates: &Rates) -> Self {
        Self {
            is_exempt: rates.is_exempt(address),
            limiter: None,
            paused_until: None,
            paused: Duration::ZERO,
        }
    }

    /// Charges requests to the limiter of a connection.
    pub(super) fn set_limiter(&mut self, limiter: Option<Arc<RateLimiter>>) {
        self.limiter = limiter;
    }

    /// Returns the end of the pause, as of the latest [`Self::refill`].
    pub(super) const fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends a pause that is over.
    pub(super) fn refill(&mut self, now: Instant) {
        self.paused_until.take_if(|until| *until <= now);
    }

    /// Charges bytes that were read from the connection.
    pub(super) fn charge_bytes(&mut self, bytes: usize, now: Instant) {
        let wait = self
            .limiter
            .as_ref()
            .map_or(Duration::ZERO, |limiter| limiter.charge_bytes(bytes, now));
        self.pause(wait, now);
    }

    /// Returns whether the limits of all users do not apply.
    pub(super) const fn is_exempt(&self) -> bool {
        self.is_exempt
    }

    /// Returns the user as one who is charged.
    pub(super) const fn charged<'u>(&self, user: &'u UserName) -> Charged<'u> {
        Charged {
            user,
            is_exempt: self.is_exempt,
        }
    }

    /// Charges a request of `user`.
    pub(super) fn charge_request(&mut self, user: Option<&UserName>, users: &UserRateLimiter) {
        let charged = user.map(|user| self.charged(user));
        let charged = charged.filter(|charged| users.concerns(*charged));
        if self.is_exempt && charged.is_none() {
            return;
        }
        let now = Instant::now();
        let wait = self
            .limiter
            .as_ref()
            .map_or(Duration::ZERO, |limiter| limiter.charge_command(now));
        let user_wait = charged.map_or(Duration::ZERO, |user| users.charge_command(user, now));
        self.pause(wait.max(user_wait), now);
    }

    /// Admits a send of `user`: see [`UserRateLimiter::admit_send`].
    ///
    /// # Errors
    /// The wait before the send.
    pub(super) fn admit_send(
        &mut self,
        user: &UserName,
        send: SendSize,
        users: &UserRateLimiter,
    ) -> Result<(), Duration> {
        let now = Instant::now();
        let wait = users.admit_send(self.charged(user), send, now);
        let wait = wait.inspect_err(|wait| self.paused += *wait)?;
        self.pause(wait, now);
        Ok(())
    }

    /// Charges a login to its user.
    pub(super) fn charge_login(&mut self, user: &UserName, users: &UserRateLimiter) {
        let now = Instant::now();
        self.pause(users.charge_command(self.charged(user), now), now);
    }

    fn pause(&mut self, wait: Duration, now: Instant) {
        if !wait.is_zero() {
            let until = now + wait;
            let former = self.paused_until.map_or(now, |former| former.max(now));
            self.paused += until.saturating_duration_since(former);
            self.paused_until = self.paused_until.max(Some(until));
        }
    }

    /// Returns the pauses since the latest call.
    pub(super) fn take_paused(&mut self) -> Duration {
        std::mem::take(&mut self.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const IN_ROOM: SendSize = SendSize {
        bytes: 10,
        is_to_room: true,
    };
    const TO_USER: SendSize = SendSize {
        is_to_room: false,
        ..IN_ROOM
    };

    const fn limited(user: &UserName) -> Charged<'_> {
        Charged {
            user,
            is_exempt: false,
        }
    }

    fn limiter(bytes: u64, deliveries: u64) -> (UserRateLimiter, UserName) {
        let rates = Rates {
            user_bytes: Rate::per_second(bytes),
            user_deliveries: Rate::per_second(deliveries),
            ..Rates::NONE
        };
        (UserRateLimiter::new(&rates), "amy".parse().unwrap())
    }

    #[test]
    fn debt_of_bytes_delays_each_connection() {
        let (users, amy) = limiter(2, 0);
        let now = Instant::now();
        // The bucket has ten bytes.
        assert!(users.admit_send(limited(&amy), TO_USER, now).is_ok());
        let wait = users.admit_send(limited(&amy), TO_USER, now).unwrap_err();
        assert_eq!(wait, SECOND / 2, "another connection");
        assert_eq!(users.wait_to_send(limited(&amy), false, now), wait);
        let later = now + wait;
        assert!(users.admit_send(limited(&amy), TO_USER, later).is_ok());
        let wait = users.admit_send(limited(&amy), TO_USER, later).unwrap_err();
        assert_eq!(wait, 5 * SECOND, "those that wait go one by one");
    }

    #[test]
    fn deliveries_delay_only_sends_to_rooms() {
        let (users, amy) = limiter(0, 100);
        let now = Instant::now();
        // Forty messages to a hundred devices were in flight before the first was charged.
        for _ in 0..40 {
            assert!(users.admit_send(limited(&amy), IN_ROOM, now).is_ok());
        }
        for _ in 0..40 {
            users.charge_deliveries(limited(&amy), 100, now);
        }
        let wait = users.admit_send(limited(&amy), IN_ROOM, now).unwrap_err();
        assert_eq!(wait.as_secs(), 35, "the rate holds in the end");
        assert!(users.admit_send(limited(&amy), TO_USER, now).is_ok());
        assert!(users.admit_send(limited(&amy), IN_ROOM, now + wait).is_ok());
    }

    #[test]
    fn limits_of_one_user_replace_those_of_all() {
        let (users, amy) = limiter(1_000_000, 0);
        let bob: UserName = "bob".parse().unwrap();
        let on_loopback = |user| Charged {
            user,
            is_exempt: true,
        };
        let now = Instant::now();
        let slow = UserLimits {
            commands: Some(1),
            bytes: Some(2),
            ..UserLimits::default()
        };
        users.set_own(&amy, Some(&slow));
        for charged in [limited(&amy), on_loopback(&amy)] {
            assert!(users.admit_send(charged, TO_USER, now).is_ok() || charged.is_exempt);
            assert!(users.admit_send(charged, TO_USER, now).is_err());
        }
        for _ in 0..5 {
            users.charge_command(on_loopback(&amy), now);
        }
        assert_eq!(users.charge_command(on_loopback(&amy), now), 2 * SECOND);
        for _ in 0..10 {
            assert!(users.admit_send(on_loopback(&bob), TO_USER, now).is_ok());
            assert!(users.charge_command(on_loopback(&bob), now).is_zero());
        }
        let free = UserLimits {
            bytes: Some(0),
            ..UserLimits::default()
        };
        users.set_own(&amy, Some(&free));
        assert!(users.admit_send(limited(&amy), TO_USER, now).is_ok());
        users.set_own(&amy, None);
        assert!(!users.concerns(on_loopback(&amy)), "as before");
    }
}
