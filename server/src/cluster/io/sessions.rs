//! [`Sessions`]: the open and remembered send sessions of this server, and their sends in
//! flight. Outcomes are remembered by the shards.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::SessionToken;
use hark_protocol::limits::OUTCOME_SECONDS_MIN;

use crate::store::quota::PerNetworkQuota;
use crate::store::{Completer, OnTakeover};

/// How long a closed session with sends counts: the shards remember it.
const REMEMBERED_FOR: Duration = Duration::from_secs(OUTCOME_SECONDS_MIN);

/// The interval at which idle sessions are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The sessions of this server, a bounded number of them.
#[derive(Debug)]
pub(super) struct Sessions {
    max: usize,
    sessions: HashMap<SessionToken, Session>,
    /// The number of sessions that began from each network.
    quota: PerNetworkQuota,
    swept_at: Duration,
}

#[derive(Debug)]
struct Session {
    /// The number of its connections.
    open: usize,
    /// The network that it counts against, if any.
    origin: Option<IpAddr>,
    used_at: Duration,
    /// The number of its sends so far, and those in flight.
    sends: u64,
    in_flight: BTreeSet<u64>,
    /// Connections that wait for the sends up to this one.
    waiting: Vec<(u64, Completer<bool>)>,
    /// Ends the connection that holds it.
    on_takeover: Option<OnTakeover>,
}

impl Sessions {
    /// Returns an empty table with room for `max` sessions.
    pub(super) fn new(max: usize) -> Self {
        let (sessions, quota) = (HashMap::new(), PerNetworkQuota::of(max));
        Self {
            max,
            sessions,
            quota,
            swept_at: Duration::ZERO,
        }
    }

    /// Adds a connection to a session. Completes when all earlier sends of the session are
    /// decided.
    pub(super) fn open(
        &mut self,
        token: &SessionToken,
        from: Option<IpAddr>,
        completer: Completer<bool>,
        now: Duration,
    ) {
        let Some(session) = self.admit(token, from, now) else {
            return completer.complete(Ok(false));
        };
        session.open += 1;
        if session.in_flight.is_empty() {
            completer.complete(Ok(true));
        } else {
            session.waiting.push((session.sends, completer));
        }
    }

    /// Removes a connection from a session. A closed session without sends is forgotten.
    pub(super) fn close(&mut self, token: &SessionToken, now: Duration) {
        let Some(session) = self.sessions.get_mut(token) else {
            return;
        };
        session.open = session.open.saturating_sub(1);
        session.used_at = now;
        if session.open == 0 {
            session.on_takeover = None;
        }
        if session.open == 0 && session.sends == 0 {
            self.remove(token);
        }
    }

    /// Sets the function that ends the connection that holds an open session.
    pub(super) fn on_takeover(&mut self, token: &SessionToken, on_takeover: OnTakeover) {
        if let Some(session) = self
            .sessions
            .get_mut(token)
            .filter(|session| session.open > 0)
        {
            session.on_takeover = Some(on_takeover);
        }
    }

    /// Ends the connection that holds a session: it was opened at another server.
    pub(super) fn taken_over(&mut self, token: &SessionToken) {
        if let Some(OnTakeover(end)) = self
            .sessions
            .get_mut(token)
            .and_then(|open| open.on_takeover.take())
        {
            end();
        }
    }

    /// Begins a send. Returns its place among the sends of the session, or `None` if there
    /// is no room for the session.
    pub(super) fn begin(
        &mut self,
        token: &SessionToken,
        from: Option<IpAddr>,
        now: Duration,
    ) -> Option<u64> {
        let session = self.admit(token, from, now)?;
        session.used_at = now;
        session.sends += 1;
        session.in_flight.insert(session.sends);
        Some(session.sends)
    }

    /// Ends a send. Returns the connections that now have the session open.
    pub(super) fn end(&mut self, token: &SessionToken, place: u64) -> Vec<Completer<bool>> {
        let Some(session) = self.sessions.get_mut(token) else {
            return Vec::new();
        };
        session.in_flight.remove(&place);
        if session.waiting.is_empty() {
            return Vec::new();
        }
        let oldest = session.in_flight.first().copied().unwrap_or(u64::MAX);
        session
            .waiting
            .extract_if(.., |(last, _)| *last < oldest)
            .map(|(_, completer)| completer)
            .collect()
    }

    /// Forgets idle sessions from time to time.
    pub(super) fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept_at) < SWEEP_INTERVAL {
            return;
        }
        self.swept_at = now;
        let is_idle = |session: &Session| {
            session.open == 0
                && session.in_flight.is_empty()
                && now.saturating_sub(session.used_at) >= REMEMBERED_FOR
        };
        for (_, session) in self.sessions.extract_if(|_, session| is_idle(session)) {
            self.quota.give_back(session.origin);
        }
    }

    fn admit(
        &mut self,
        token: &SessionToken,
        from: Option<IpAddr>,
        now: Duration,
    ) -> Option<&mut Session> {
        if !self.sessions.contains_key(token) {
            if self.sessions.len() >= self.max || !self.quota.take(from) {
                return None;
            }
            let (in_flight, waiting) = (BTreeSet::new(), Vec::new());
            let (open, origin, used_at, sends, on_takeover) = (0, from, now, 0, None);
            let session = Session {
                open,
                origin,
                used_at,
                sends,
                in_flight,
                waiting,
                on_takeover,
            };
            self.sessions.insert(token.clone(), session);
        }
        self.sessions.get_mut(token)
    }

    fn remove(&mut self, token: &SessionToken) {
        if let Some(session) = self.sessions.remove(token) {
            self.quota.give_back(session.origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Pending;

    fn token(text: &str) -> SessionToken {
        text.parse().unwrap()
    }

    async fn open(sessions: &mut Sessions, text: &str) -> bool {
        let (completer, opened) = Pending::new();
        sessions.open(&token(text), None, completer, Duration::ZERO);
        opened.await.unwrap()
    }

    #[tokio::test]
    async fn session_with_sends_counts_for_ten_minutes() {
        let mut sessions = Sessions::new(2);
        assert!(open(&mut sessions, "a").await && open(&mut sessions, "b").await);
        assert!(!open(&mut sessions, "c").await);
        sessions.close(&token("b"), Duration::ZERO);
        assert!(open(&mut sessions, "c").await, "it had no sends");
        let place = sessions.begin(&token("a"), None, Duration::ZERO).unwrap();
        assert!(sessions.end(&token("a"), place).is_empty());
        sessions.close(&token("a"), Duration::ZERO);
        sessions.sweep(REMEMBERED_FOR - Duration::from_secs(1));
        assert!(!open(&mut sessions, "d").await && open(&mut sessions, "a").await);
        sessions.close(&token("a"), Duration::from_secs(1));
        sessions.sweep(2 * REMEMBERED_FOR);
        assert!(open(&mut sessions, "d").await);
        assert!(sessions.begin(&token("a"), None, Duration::ZERO).is_none());
    }

    #[tokio::test]
    async fn session_opens_after_its_earlier_sends() {
        let mut sessions = Sessions::new(2);
        let begin =
            |sessions: &mut Sessions| sessions.begin(&token("a"), None, Duration::ZERO).unwrap();
        let [first, second] = [(); 2].map(|()| begin(&mut sessions));
        let (completer, mut opened) = Pending::new();
        sessions.open(&token("a"), None, completer, Duration::ZERO);
        let later = begin(&mut sessions);
        assert!(sessions.end(&token("a"), second).is_empty());
        let completers = sessions.end(&token("a"), first);
        assert!(futures::poll!(&mut opened).is_pending());
        assert_eq!(completers.len(), 1, "the later send does not count");
        assert!(sessions.end(&token("a"), later).is_empty());
    }
}
