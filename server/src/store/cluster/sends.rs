//! Sends of each session as this server remembers them: those in flight, and the outcomes
//! of earlier ones. The engine deduplicates the others: it remembers each stored message
//! id for ten minutes.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::limits::{OUTCOME_SECONDS_MIN, OUTCOMES_REMEMBERED};
use hark_protocol::{Code, SessionToken};
use tokio::time::Instant;

use crate::ledger::{DedupTable, Known};
use crate::store::quota::PerNetworkQuota;
use crate::store::{Completer, Outcome, SendId, Unavailable};

const KEPT: Duration = Duration::from_secs(OUTCOME_SECONDS_MIN);

/// How often idle sessions are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The sessions of this server.
#[derive(Debug)]
pub(super) struct Sends {
    // A lock, because many tasks begin and complete sends. It is held for one operation.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    max: usize,
    sessions: HashMap<SessionToken, Session>,
    /// Sessions in use by each network.
    shares: PerNetworkQuota,
    swept_at: Instant,
}

#[derive(Debug)]
struct Session {
    open: usize,
    /// The network that the session counts against, if any.
    origin: Option<IpAddr>,
    used_at: Instant,
    outcomes: DedupTable,
    /// The highest id that was accepted.
    taken: u32,
    /// Sends in flight, with the completers of their repeats.
    under_way: HashMap<u32, Vec<Completer<Outcome>>>,
    /// Ids below `taken` with an unknown outcome.
    undecided: BTreeSet<u32>,
    /// Connections that wait until no send is in flight.
    openers: Vec<Completer<bool>>,
}

impl Sends {
    /// Creates a table with room for `max` sessions.
    pub(super) fn new(max: usize) -> Self {
        let (sessions, shares) = (HashMap::new(), PerNetworkQuota::of(max));
        Self { state: Mutex::new(State { max, sessions, shares, swept_at: Instant::now() }) }
    }

    /// Adds a connection to a session. Completes when all sends of the session in flight
    /// have an outcome.
    pub(super) fn open(&self, token: &SessionToken, from: Option<IpAddr>, completer: Completer<bool>) {
        let mut state = self.lock();
        let Some(session) = state.admit(token, from) else {
            drop(state);
            return completer.complete(Ok(false));
        };
        session.open += 1;
        if session.under_way.is_empty() {
            drop(state);
            completer.complete(Ok(true));
        } else {
            session.openers.push(completer);
        }
    }

    /// Removes a connection from a session.
    pub(super) fn close(&self, token: &SessionToken) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(token) else { return };
        session.open = session.open.saturating_sub(1);
        session.used_at = Instant::now();
        if session.open == 0 && session.taken == 0 {
            let origin = session.origin;
            state.sessions.remove(token);
            state.shares.give_back(origin);
        }
    }

    /// Accepts a send. Returns the completer if the caller must execute the send and call
    /// [`Self::decided`]. Otherwise the completer is answered with the known outcome or a
    /// refusal, or waits for the same send in flight.
    pub(super) fn take(&self, id: &SendId, completer: Completer<Outcome>) -> Option<Completer<Outcome>> {
        let number = id.id.value();
        let refuse = |completer: Completer<Outcome>, code| {
            completer.complete(Ok(Outcome::Refused(code)));
            None
        };
        let mut state = self.lock();
        let Some(session) = state.admit(&id.session, id.from) else {
            drop(state);
            return refuse(completer, Code::TooMany);
        };
        if let Some(repeats) = session.under_way.get_mut(&number) {
            repeats.push(completer);
            return None;
        }
        let known = session.outcomes.look_up(number);
        if let Known::Decided(outcome) = known {
            drop(state);
            completer.complete(Ok(outcome));
            return None;
        }
        let is_late = number <= session.taken && !session.undecided.contains(&number);
        if is_late && (id.in_order || known == Known::Expired) {
            drop(state);
            return refuse(completer, Code::BadRequest);
        }
        session.taken = session.taken.max(number);
        session.undecided.remove(&number);
        session.under_way.insert(number, Vec::new());
        Some(completer)
    }

    /// Records the outcome of a send, and completes its repeats.
    pub(super) fn decided(&self, id: &SendId, outcome: Result<Outcome, Unavailable>) {
        let number = id.id.value();
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(&id.session) else { return };
        session.used_at = Instant::now();
        match outcome {
            Ok(outcome) => session.outcomes.record(number, outcome),
            Err(Unavailable) => session.leave_undecided(number),
        }
        let repeats = session.under_way.remove(&number).unwrap_or_default();
        let mut openers = Vec::new();
        if session.under_way.is_empty() {
            std::mem::swap(&mut openers, &mut session.openers);
        }
        drop(state);
        repeats.into_iter().for_each(|repeat| repeat.complete(outcome));
        openers.into_iter().for_each(|opener| opener.complete(Ok(true)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the session, and creates it if there is room.
    fn admit(&mut self, token: &SessionToken, from: Option<IpAddr>) -> Option<&mut Session> {
        self.forget_idle();
        if !self.sessions.contains_key(token) {
            if self.sessions.len() >= self.max || !self.shares.take(from) {
                return None;
            }
            self.sessions.insert(token.clone(), Session::new(from));
        }
        self.sessions.get_mut(token)
    }

    fn forget_idle(&mut self) {
        if self.swept_at.elapsed() < SWEEP_INTERVAL {
            return;
        }
        self.swept_at = Instant::now();
        let shares = &mut self.shares;
        self.sessions.retain(|_, session| {
            let stays = session.open > 0 || !session.under_way.is_empty() || session.used_at.elapsed() < KEPT;
            if !stays {
                shares.give_back(session.origin);
            }
            stays
        });
    }
}

impl Session {
    /// Lets a repeat of this send be executed again. Remembers a bounded number of such
    /// ids.
    fn leave_undecided(&mut self, number: u32) {
        self.undecided.insert(number);
        if self.undecided.len() > OUTCOMES_REMEMBERED {
            self.undecided.pop_first();
        }
    }

    fn new(origin: Option<IpAddr>) -> Self {
        Self {
            open: 0,
            origin,
            used_at: Instant::now(),
            outcomes: DedupTable::default(),
            taken: 0,
            under_way: HashMap::new(),
            undecided: BTreeSet::new(),
            openers: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::{RequestId, Sequence};

    use super::*;
    use crate::store::Pending;

    const STORED: Outcome = Outcome::Stored(Sequence(7));

    fn id(number: u32) -> SendId {
        SendId {
            session: "s".parse().unwrap(),
            id: RequestId::new(number).unwrap(),
            in_order: true,
            from: None,
        }
    }

    fn take(sends: &Sends, number: u32) -> (bool, Pending<Outcome>) {
        let (completer, pending) = Pending::new();
        let taken = sends.take(&id(number), completer);
        let is_taken = taken.is_some();
        // The test reports the outcome itself.
        std::mem::forget(taken);
        (is_taken, pending)
    }

    #[tokio::test]
    async fn a_repeat_waits_for_the_one_under_way_and_later_ones_get_its_outcome() {
        let sends = Sends::new(10);
        assert!(take(&sends, 5).0);
        let (taken, repeat) = take(&sends, 5);
        assert!(!taken);
        sends.decided(&id(5), Ok(STORED));
        assert_eq!(repeat.await, Ok(STORED));
        assert_eq!(take(&sends, 5).1.await, Ok(STORED));
    }

    #[tokio::test]
    async fn sends_are_decided_in_any_order_and_one_that_was_left_out_is_refused() {
        let sends = Sends::new(10);
        assert!(take(&sends, 5).0 && take(&sends, 7).0);
        sends.decided(&id(7), Ok(STORED));
        assert_eq!(take(&sends, 6).1.await, Ok(Outcome::Refused(Code::BadRequest)));
        sends.decided(&id(5), Ok(Outcome::Refused(Code::QueueFull)));
        assert_eq!(take(&sends, 5).1.await, Ok(Outcome::Refused(Code::QueueFull)));
    }

    #[tokio::test]
    async fn what_was_not_decided_can_be_repeated() {
        let sends = Sends::new(10);
        assert!(take(&sends, 5).0 && take(&sends, 7).0);
        sends.decided(&id(7), Ok(STORED));
        sends.decided(&id(5), Err(Unavailable));
        assert!(take(&sends, 5).0);
    }

    #[tokio::test]
    async fn a_session_opens_once_nothing_of_it_is_under_way() {
        let sends = Sends::new(1);
        let token: SessionToken = "s".parse().unwrap();
        assert!(take(&sends, 1).0);
        let (completer, mut opened) = Pending::new();
        sends.open(&token, None, completer);
        assert!(futures::poll!(&mut opened).is_pending());
        sends.decided(&id(1), Ok(STORED));
        assert_eq!(opened.await, Ok(true));
        let (completer, other) = Pending::new();
        sends.open(&"other".parse().unwrap(), None, completer);
        assert_eq!(other.await, Ok(false), "there is room for one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_forgotten_ten_minutes_after_its_last_use() {
        let sends = Sends::new(1);
        assert!(take(&sends, 1).0);
        sends.decided(&id(1), Ok(STORED));
        for (minutes, known) in [(9, true), (20, false)] {
            tokio::time::advance(Duration::from_secs(minutes * 60)).await;
            let (completer, other) = Pending::new();
            sends.open(&"other".parse().unwrap(), None, completer);
            assert_eq!(other.await, Ok(!known));
        }
    }
}
