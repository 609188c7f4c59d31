//! [`Presence`]: the live servers, as far as this one hears from them, and the newest format
//! of entries that all of them read.
//!
//! An owner writes a format only if every live server has announced that it reads it. A
//! server that was not heard cannot replay a newer format, and so it claims no shard.

use std::collections::BTreeMap;
use std::time::Duration;

use super::entry::OLDEST_FORMAT;
use super::{ServerId, timing};

/// The live servers.
#[derive(Debug)]
pub(super) struct Presence {
    servers: BTreeMap<ServerId, Live>,
    newest: u8,
    started_at: Option<Duration>,
    announce_at: Duration,
}

/// A live server.
#[derive(Debug, Clone, Copy)]
struct Live {
    /// The newest format that it reads.
    format: u8,
    /// It has been heard without a long silence since this time.
    since: Duration,
    heard_at: Duration,
}

impl Presence {
    /// Returns a table without other servers. This server reads formats up to `newest`.
    pub(super) const fn new(newest: u8) -> Self {
        Self {
            servers: BTreeMap::new(),
            newest,
            started_at: None,
            announce_at: Duration::ZERO,
        }
    }

    /// Records an announcement.
    pub(super) fn handle(&mut self, server: ServerId, format: u8, now: Duration) {
        let live = self.servers.entry(server).or_insert(Live {
            format,
            since: now,
            heard_at: now,
        });
        if !live.is_heard(now) {
            live.since = now;
        }
        (live.format, live.heard_at) = (format, now);
    }

    /// Forgets a server that stops.
    pub(super) fn forget(&mut self, server: ServerId) {
        self.servers.remove(&server);
    }

    /// Ends the announcements.
    pub(super) const fn leave(&mut self) {
        self.announce_at = Duration::MAX;
    }

    /// Forgets dead servers. Returns whether an announcement is due.
    pub(super) fn tick(&mut self, now: Duration) -> bool {
        self.started_at.get_or_insert(now);
        self.servers
            .retain(|_, live| now.saturating_sub(live.heard_at) < timing::FLOW_SILENCE);
        let is_due = now >= self.announce_at;
        if is_due {
            self.announce_at = now + timing::PRESENCE_INTERVAL;
        }
        is_due
    }

    /// Returns the live servers. Includes this one once it has heard itself.
    pub(super) fn servers(&self) -> impl Iterator<Item = ServerId> {
        self.servers.keys().copied()
    }

    /// Returns the servers that have been heard for a while, and read this format.
    pub(super) fn steady(&self, format: u8, now: Duration) -> impl Iterator<Item = ServerId> {
        let is_steady = move |live: &Live| {
            live.is_heard(now)
                && now.saturating_sub(live.since) >= timing::STEADY_AFTER
                && live.format >= format
        };
        let steady = self.servers.iter().filter(move |(_, live)| is_steady(live));
        steady.map(|(server, _)| *server)
    }

    /// Returns the newest format that all live servers read.
    pub(super) fn format(&self, now: Duration) -> u8 {
        let has_listened = self
            .started_at
            .is_some_and(|at| now.saturating_sub(at) >= timing::FLOW_SILENCE);
        if !has_listened {
            return OLDEST_FORMAT;
        }
        self.servers
            .values()
            .map(|live| live.format)
            .min()
            .map_or(self.newest, |of| of.min(self.newest))
    }
}

impl Live {
    /// Returns whether an announcement arrived recently.
    fn is_heard(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard_at) < timing::STEADY_HEARD
    }
}
