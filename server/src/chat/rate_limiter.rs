//! The rate limits of a connection and of a user, in commands and bytes per second. A
//! client that exceeds its limit is read later and never refused, so that the outcome
//! of a send does not depend on its rate.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::UserName;
use tokio::time::Instant;

use crate::limit::{Bucket, Buckets, Rate};
use crate::sync::Mutex;

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
}

#[derive(Debug)]
struct UserBuckets {
    commands: Option<Buckets<UserName>>,
    bytes: Option<Buckets<UserName>>,
    deliveries: Option<Buckets<UserName>>,
}

/// What a request takes from the limits of its user, beside one command.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Bytes of text.
    pub(super) bytes: usize,
    /// Deliveries to devices in rooms.
    pub(super) deliveries: usize,
}

impl UserRateLimiter {
    /// Returns a limiter with full buckets.
    pub(super) fn new(rates: &Rates) -> Self {
        let buckets = UserBuckets {
            commands: rates.user_commands.map(Buckets::new),
            bytes: rates.user_bytes.map(Buckets::new),
            deliveries: rates.user_deliveries.map(Buckets::new),
        };
        Self {
            buckets: Mutex::new(buckets),
        }
    }

    /// Charges a command of a user, and returns the wait before the next.
    pub(super) fn charge_command(&self, user: &UserName, cost: Cost, now: Instant) -> Duration {
        let mut buckets = self.buckets.lock();
        let UserBuckets {
            commands,
            bytes,
            deliveries,
        } = &mut *buckets;
        let charge = |buckets: &mut Option<Buckets<UserName>>, tokens| match buckets {
            Some(buckets) if tokens > 0 => buckets.charge(user.clone(), tokens, now),
            _ => Duration::ZERO,
        };
        charge(commands, 1)
            .max(charge(bytes, cost.bytes as u64))
            .max(charge(deliveries, cost.deliveries as u64))
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
    pub(super) fn limited_by(self, limiter: Option<Arc<RateLimiter>>) -> Self {
        Self { limiter, ..self }
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

    /// Charges a request of `user`.
    pub(super) fn charge_request(
        &mut self,
        cost: Cost,
        user: Option<&UserName>,
        users: &UserRateLimiter,
    ) {
        if self.is_exempt {
            return;
        }
        let now = Instant::now();
        let wait = self
            .limiter
            .as_ref()
            .map_or(Duration::ZERO, |limiter| limiter.charge_command(now));
        let user_wait = user.map_or(Duration::ZERO, |user| users.charge_command(user, cost, now));
        self.pause(wait.max(user_wait), now);
    }

    /// Charges a login to its user.
    pub(super) fn charge_login(&mut self, user: &UserName, users: &UserRateLimiter) {
        if !self.is_exempt {
            let now = Instant::now();
            self.pause(users.charge_command(user, Cost::default(), now), now);
        }
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
