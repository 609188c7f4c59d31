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
    /// The newest format that each server reads, and when it was last heard.
    servers: BTreeMap<ServerId, (u8, Duration)>,
    newest: u8,
    started_at: Option<Duration>,
    announce_at: Duration,
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
        self.servers.insert(server, (format, now));
    }

    /// Forgets dead servers. Returns whether an announcement is due.
    pub(super) fn tick(&mut self, now: Duration) -> bool {
        self.started_at.get_or_insert(now);
        self.servers
            .retain(|_, (_, heard_at)| now.saturating_sub(*heard_at) < timing::FLOW_SILENCE);
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
            .map(|(format, _)| *format)
            .min()
            .map_or(self.newest, |of| of.min(self.newest))
    }
}
