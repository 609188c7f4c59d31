//! The send sessions: which outcomes are remembered, and for how long. A state
//! machine without I/O; the time is passed in.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::SessionToken;
use hark_protocol::limits::OUTCOME_SECONDS_MIN;

use crate::store::Outcome;
use crate::store::outcomes::{Known, Outcomes};
use crate::store::shares::Shares;

const KEPT: Duration = Duration::from_secs(OUTCOME_SECONDS_MIN);

/// All sessions, a bounded number of them.
#[derive(Debug)]
pub(super) struct Sessions {
    max: usize,
    known: HashMap<SessionToken, Session>,
    /// How many of them began from each network.
    shares: Shares,
    /// Sessions that may have to be forgotten, about in the order of their last
    /// use. A session that is not open stands here once.
    idle: VecDeque<(Duration, SessionToken)>,
    /// Sessions whose record has changed since it was written, each once.
    changed: Vec<SessionToken>,
}

#[derive(Debug, Default)]
struct Session {
    outcomes: Outcomes,
    open: usize,
    used: Duration,
    /// It stands among the idle ones.
    idle: bool,
    /// It stands among the changed ones.
    changed: bool,
    /// From which network it began, where that counts.
    origin: Option<IpAddr>,
}

impl Sessions {
    /// No session yet, and room for `max`.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            known: HashMap::new(),
            shares: Shares::of(max),
            idle: VecDeque::new(),
            changed: Vec::new(),
        }
    }

    /// Puts a session back that was written earlier. It counts as used now.
    pub(super) fn restore(&mut self, token: SessionToken, outcomes: Outcomes, now: Duration) {
        self.known.insert(token.clone(), Session { outcomes, used: now, ..Session::default() });
        self.mark_idle(&token);
    }

    /// Counts one more connection of a session; false where there is no room, or
    /// none for another that begins `from` this network.
    pub(super) fn open(&mut self, token: &SessionToken, from: Option<IpAddr>, now: Duration) -> bool {
        let Some(session) = self.admit(token, from, now) else { return false };
        session.open += 1;
        true
    }

    /// Counts one connection of a session less. One that is open no more and
    /// has sent nothing has nothing to be remembered for.
    pub(super) fn close(&mut self, token: &SessionToken, now: Duration) {
        let Some(session) = self.known.get_mut(token) else { return };
        session.open = session.open.saturating_sub(1);
        session.used = now;
        if session.open == 0 && session.outcomes.is_empty() && !session.idle {
            self.remove(token);
        } else {
            self.mark_idle(token);
        }
    }

    /// What is known of an id; `None` where the session is new and there is no
    /// room for it. A session that was never opened is taken in.
    pub(super) fn look_up(
        &mut self,
        token: &SessionToken,
        id: u32,
        from: Option<IpAddr>,
        now: Duration,
    ) -> Option<Known> {
        if let Some(session) = self.known.get(token) {
            return Some(session.outcomes.look_up(id));
        }
        self.admit(token, from, now)?;
        self.mark_idle(token);
        Some(Known::New)
    }

    /// Remembers the outcome of a new id of a session that was looked up.
    pub(super) fn record(&mut self, token: &SessionToken, id: u32, outcome: Outcome, now: Duration) {
        if let Some(session) = self.known.get_mut(token) {
            session.outcomes.record(id, outcome);
            session.used = now;
            if !std::mem::replace(&mut session.changed, true) {
                self.changed.push(token.clone());
            }
        }
    }

    /// Forgets the sessions that are not open and were not used for ten
    /// minutes, and yields them.
    pub(super) fn forget_idle(&mut self, now: Duration) -> Vec<SessionToken> {
        let mut forgotten = Vec::new();
        while self.idle.front().is_some_and(|(since, _)| now.saturating_sub(*since) >= KEPT) {
            let Some((_, token)) = self.idle.pop_front() else { break };
            let Some(session) = self.known.get_mut(&token) else { continue };
            session.idle = false;
            if session.open == 0 && now.saturating_sub(session.used) >= KEPT {
                self.remove(&token);
                forgotten.push(token);
            } else {
                self.mark_idle(&token);
            }
        }
        forgotten
    }

    /// Calls `write` with each session that has changed since the last time.
    pub(super) fn write_changed(&mut self, mut write: impl FnMut(&SessionToken, &Outcomes)) {
        for token in self.changed.drain(..) {
            if let Some(session) = self.known.get_mut(&token) {
                session.changed = false;
                write(&token, &session.outcomes);
            }
        }
    }

    /// The sessions that are open, and how often.
    pub(super) fn open_counts(&self) -> impl Iterator<Item = (&SessionToken, usize)> {
        self.known.iter().filter(|(_, s)| s.open > 0).map(|(token, s)| (token, s.open))
    }

    /// Counts the connections of a session that is open already, beyond any
    /// limit: they were let in before.
    pub(super) fn reopen(&mut self, token: &SessionToken, open: usize, now: Duration) {
        let session = self.known.entry(token.clone()).or_default();
        session.open += open;
        session.used = now;
    }

    fn admit(&mut self, token: &SessionToken, origin: Option<IpAddr>, now: Duration) -> Option<&mut Session> {
        if !self.known.contains_key(token) {
            if self.known.len() >= self.max {
                return None;
            }
            if !self.shares.take(origin) {
                return None;
            }
            self.known.insert(token.clone(), Session { used: now, origin, ..Session::default() });
        }
        self.known.get_mut(token)
    }

    fn remove(&mut self, token: &SessionToken) {
        if let Some(session) = self.known.remove(token) {
            self.shares.give_back(session.origin);
        }
    }

    /// A session that is not open will be looked at ten minutes after its use.
    fn mark_idle(&mut self, token: &SessionToken) {
        if let Some(session) = self.known.get_mut(token)
            && session.open == 0
            && !session.idle
        {
            session.idle = true;
            self.idle.push_back((session.used, token.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Sequence;

    use super::*;

    const STORED: Outcome = Outcome::Stored(Sequence(7));

    const MINUTE: Duration = Duration::from_secs(60);

    fn token(text: &str) -> SessionToken {
        text.parse().unwrap()
    }

    #[test]
    fn a_session_is_forgotten_ten_minutes_after_its_last_use_and_never_while_open() {
        let mut sessions = Sessions::new(10);
        assert!(sessions.open(&token("a"), None, MINUTE));
        assert!(sessions.open(&token("b"), None, MINUTE));
        sessions.close(&token("a"), 2 * MINUTE);
        assert_eq!(sessions.look_up(&token("a"), 1, None, 3 * MINUTE), Some(Known::New));
        sessions.record(&token("a"), 1, STORED, 3 * MINUTE);
        assert_eq!(sessions.forget_idle(12 * MINUTE), []);
        assert_eq!(sessions.look_up(&token("a"), 1, None, 12 * MINUTE), Some(Known::Decided(STORED)));
        assert_eq!(sessions.forget_idle(13 * MINUTE), [token("a")]);
        assert_eq!(sessions.look_up(&token("a"), 1, None, 13 * MINUTE), Some(Known::New));
        assert_eq!(sessions.forget_idle(1000 * MINUTE), [token("a")], "b is open");
    }

    #[test]
    fn a_session_that_is_opened_and_closed_often_waits_once_to_be_forgotten() {
        let mut sessions = Sessions::new(10);
        for second in 0..1000 {
            let now = Duration::from_secs(second);
            assert!(sessions.open(&token("a"), None, now));
            sessions.record(&token("a"), second as u32 + 1, STORED, now);
            sessions.close(&token("a"), now);
            assert_eq!(sessions.forget_idle(now), []);
        }
        assert_eq!(sessions.idle.len(), 1);
    }

    #[test]
    fn a_session_that_has_sent_nothing_takes_no_room_once_it_is_closed() {
        let mut sessions = Sessions::new(1);
        for n in 0..10 {
            let token = token(&format!("s{n}"));
            assert!(sessions.open(&token, None, MINUTE));
            assert!(sessions.open(&token, None, MINUTE));
            sessions.close(&token, MINUTE);
            assert!(!sessions.open(&self::token("other"), None, MINUTE), "it is open still");
            sessions.close(&token, MINUTE);
        }
        assert!(sessions.known.is_empty() && sessions.idle.is_empty());
    }

    #[test]
    fn when_there_are_too_many_nothing_is_evicted_early() {
        let mut sessions = Sessions::new(2);
        assert!(sessions.open(&token("a"), None, MINUTE));
        sessions.record(&token("a"), 1, STORED, MINUTE);
        sessions.close(&token("a"), MINUTE);
        assert!(sessions.open(&token("b"), None, MINUTE));
        assert!(!sessions.open(&token("c"), None, 2 * MINUTE));
        assert_eq!(sessions.look_up(&token("c"), 1, None, 2 * MINUTE), None);
        assert!(sessions.open(&token("a"), None, 2 * MINUTE), "it is there already");
        sessions.close(&token("a"), 2 * MINUTE);
        assert_eq!(sessions.forget_idle(12 * MINUTE), [token("a")]);
        assert!(sessions.open(&token("c"), None, 12 * MINUTE));
    }

    #[test]
    fn one_network_has_a_quarter_of_all_sessions_and_leaves_the_rest() {
        let address = |text: &str| Some(text.parse().unwrap());
        let (eve, bob) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut sessions = Sessions::new(8);
        assert!(sessions.open(&token("a"), eve, MINUTE));
        assert_eq!(sessions.look_up(&token("b"), 1, eve, MINUTE), Some(Known::New));
        sessions.record(&token("b"), 1, STORED, MINUTE);
        assert!(!sessions.open(&token("c"), eve, MINUTE));
        assert_eq!(sessions.look_up(&token("c"), 1, eve, MINUTE), None);
        assert!(sessions.open(&token("b"), eve, MINUTE), "it is there already");
        assert!(sessions.open(&token("c"), bob, MINUTE));
        for nth in 0..5 {
            assert!(sessions.open(&token(&format!("n{nth}")), None, MINUTE), "these count in no share");
        }
        assert!(!sessions.open(&token("d"), bob, MINUTE), "there are eight");
        sessions.close(&token("a"), MINUTE);
        assert!(sessions.open(&token("d"), eve, MINUTE));
        sessions.close(&token("b"), MINUTE);
        sessions.close(&token("d"), MINUTE);
        assert_eq!(sessions.forget_idle(11 * MINUTE), [token("b")]);
        assert!(!sessions.shares.knows(eve.unwrap()), "who has none leaves nothing behind");
    }
}
