//! [`Sessions`]: the announcements of sessions that were opened at this server, so that
//! other servers close the connections that hold them. Only liveness depends on them.
//!
//! An announcement may be lost. It is repeated for longer than [`timing::FRESH_MAX`]: a
//! server that was unreachable for all of that time closes every connection.

use std::collections::BTreeMap;
use std::time::Duration;

use hark_protocol::SessionToken;

use super::bugs::{Bug, is_planted};
use super::timing;

/// The announced sessions of this server.
#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<SessionToken, Announced>);

#[derive(Debug)]
struct Announced {
    next_at: Duration,
    /// The wait after that; it doubles each time.
    wait: Duration,
}

impl Sessions {
    /// Records a session whose opening is announced now.
    pub(super) fn open(&mut self, session: SessionToken, now: Duration) {
        let wait = timing::ANNOUNCE_AGAIN_AFTER;
        self.0.insert(
            session,
            Announced {
                next_at: now + wait,
                wait,
            },
        );
    }

    /// Forgets a session that is closed at this server.
    pub(super) fn close(&mut self, session: &SessionToken) {
        self.0.remove(session);
    }

    /// Returns the sessions to announce again.
    pub(super) fn due(&mut self, now: Duration) -> Vec<SessionToken> {
        let due = self
            .0
            .iter_mut()
            .filter(|(_, announced)| now >= announced.next_at);
        let due: Vec<_> = due
            .map(|(session, announced)| {
                (announced.next_at, announced.wait) = (now + announced.wait, 2 * announced.wait);
                session.clone()
            })
            .collect();
        self.0
            .retain(|_, announced| announced.wait <= 2 * timing::FRESH_MAX);
        if is_planted(Bug::AnnouncedOnce) {
            Vec::new()
        } else {
            due
        }
    }
}
