//! How fast a connection and a user may go, in commands and in bytes a second.
//! Who goes faster is not refused but read later: nothing is decided for it, so
//! that no outcome of a send depends on how fast it came.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::UserName;
use tokio::time::Instant;

use crate::limit::{Bucket, Buckets, Rate};

/// How fast one may go; `None` is as fast as one can.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Commands on one connection.
    pub commands: Option<Rate>,
    /// Bytes from one connection.
    pub bytes: Option<Rate>,
    /// Commands of one user, on all of its connections together.
    pub user_commands: Option<Rate>,
    /// Bytes of texts from one user, on all of its connections together.
    pub user_bytes: Option<Rate>,
    /// Whether they hold for the machine of the server as well.
    pub on_loopback: bool,
}

impl Rates {
    /// As fast as one can.
    pub const NONE: Self =
        Self { commands: None, bytes: None, user_commands: None, user_bytes: None, on_loopback: false };

    /// Whether whoever comes from `address` may go as fast as it can.
    pub(super) fn is_exempt(&self, address: IpAddr) -> bool {
        address.is_loopback() && !self.on_loopback
    }
}

/// What has come over one connection of late.
#[derive(Debug)]
pub struct RateLimiter {
    commands: Option<Rate>,
    bytes: Option<Rate>,
    // A lock, since the calls of a connection are tasks of their own. It is held
    // to count one command or read.
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    commands: Bucket,
    bytes: Bucket,
}

impl RateLimiter {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(rates: &Rates) -> Self {
        Self { commands: rates.commands, bytes: rates.bytes, used: Mutex::default() }
    }

    /// Counts a command; how long to wait before the next is taken.
    fn command(&self, now: Instant) -> Duration {
        self.commands.map_or(Duration::ZERO, |rate| self.lock().commands.charge(rate, 1, now))
    }

    /// Counts what was read; how long to wait before more is.
    pub fn read(&self, bytes: usize, now: Instant) -> Duration {
        self.bytes.map_or(Duration::ZERO, |rate| self.lock().bytes.charge(rate, bytes as u64, now))
    }

    /// Counts a call, one of many that may be waiting at the same time, and says
    /// how long before it is its turn.
    ///
    /// # Errors
    /// How long that is, where it is longer than `patience`: it is not counted.
    pub fn call(&self, patience: Duration, now: Instant) -> Result<Duration, Duration> {
        let Some(rate) = self.commands else { return Ok(Duration::ZERO) };
        let commands = &mut self.lock().commands;
        let wait = commands.wait(rate, now);
        if wait > patience {
            return Err(wait);
        }
        commands.take(rate, 1, now);
        Ok(wait)
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has come from each user of late.
#[derive(Debug)]
pub(super) struct Users {
    // A lock, since all connections count here. It is held for two look-ups.
    used: Mutex<UsedByUsers>,
}

#[derive(Debug)]
struct UsedByUsers {
    commands: Option<Buckets<UserName>>,
    bytes: Option<Buckets<UserName>>,
}

impl Users {
    /// Nothing has come yet.
    pub(super) fn new(rates: &Rates) -> Self {
        let (commands, bytes) = (rates.user_commands.map(Buckets::new), rates.user_bytes.map(Buckets::new));
        Self { used: Mutex::new(UsedByUsers { commands, bytes }) }
    }

    /// Counts a command of a user with so many bytes of text; how long to wait
    /// before the next is taken.
    fn command(&self, user: &UserName, bytes: usize, now: Instant) -> Duration {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let UsedByUsers { commands, bytes: all_bytes } = &mut *used;
        let charge = |buckets: &mut Option<Buckets<UserName>>, tokens| match buckets {
            Some(buckets) if tokens > 0 => buckets.charge(user.clone(), tokens, now),
            _ => Duration::ZERO,
        };
        charge(commands, 1).max(charge(all_bytes, bytes as u64))
    }
}

/// When it is a peer's turn to be heard again.
#[derive(Debug)]
pub(super) struct Turn {
    /// Whether it may go as fast as it can.
    spared: bool,
    /// What its requests are counted in beside those of its user.
    pace: Option<Arc<RateLimiter>>,
    /// It has gone too fast; nothing is taken until then.
    paused_until: Option<Instant>,
}

impl Turn {
    /// Of a peer that comes from `address`, and is heard at once.
    pub(super) fn of(address: IpAddr, rates: &Rates) -> Self {
        Self { spared: rates.is_exempt(address), pace: None, paused_until: None }
    }

    /// Its requests count in the pace of a connection.
    pub(super) fn limited_by(self, pace: Option<Arc<RateLimiter>>) -> Self {
        Self { pace, ..self }
    }

    /// Until when no request is taken, as [`Self::come`] has last found.
    pub(super) const fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends a pause that is over.
    pub(super) fn come(&mut self, now: Instant) {
        self.paused_until.take_if(|until| *until <= now);
    }

    /// Counts what was read of its connection.
    pub(super) fn read(&mut self, bytes: usize, now: Instant) {
        let wait = self.pace.as_ref().map_or(Duration::ZERO, |pace| pace.read(bytes, now));
        self.pause(wait, now);
    }

    /// Counts a request of `user`, with so many bytes of text.
    pub(super) fn request(&mut self, bytes: usize, user: Option<&UserName>, users: &Users) {
        if self.spared {
            return;
        }
        let now = Instant::now();
        let wait = self.pace.as_ref().map_or(Duration::ZERO, |pace| pace.command(now));
        let for_user = user.map_or(Duration::ZERO, |user| users.command(user, bytes, now));
        self.pause(wait.max(for_user), now);
    }

    /// Counts that it has become this user.
    pub(super) fn enter(&mut self, user: &UserName, users: &Users) {
        if !self.spared {
            let now = Instant::now();
            self.pause(users.command(user, 0, now), now);
        }
    }

    fn pause(&mut self, wait: Duration, now: Instant) {
        if !wait.is_zero() {
            self.paused_until = self.paused_until.max(Some(now + wait));
        }
    }
}
