//! The sends of sessions, as this server remembers them: which are under way,
//! and how those before were decided. What it does not know, the engine may:
//! it knows each message that it has stored for ten minutes.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::limits::{OUTCOME_SECONDS_MIN, OUTCOMES_REMEMBERED};
use hark_protocol::{Code, SessionToken};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::outcomes::{Known, Outcomes};
use crate::store::shares::Shares;
use crate::store::{Decide, Fence, Outcome, SendId, Unavailable};

const KEPT: Duration = Duration::from_secs(OUTCOME_SECONDS_MIN);

/// How often the sessions are looked through for those that are to be forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The sessions of this server.
#[derive(Debug)]
pub(super) struct Sends {
    // A lock, since sends are taken by one task and decided by many. It is held
    // for one operation.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    max: usize,
    sessions: HashMap<SessionToken, Session>,
    /// How many of them began from each network.
    shares: Shares,
    swept_at: Instant,
}

#[derive(Debug)]
struct Session {
    open: usize,
    /// From which network it began, where that counts.
    origin: Option<IpAddr>,
    used_at: Instant,
    outcomes: Outcomes,
    /// The highest id that was taken on.
    taken: u32,
    under_way: HashMap<u32, UnderWay>,
    /// Ids below `taken` of which it is unknown what became.
    undecided: BTreeSet<u32>,
    /// Who waits until nothing is under way: those who open it, and another
    /// server.
    openers: Vec<Decide<bool>>,
    takers: Vec<Decide<()>>,
    /// Where it is open here and another server may ask for it.
    held: Option<CancellationToken>,
    /// Another server has asked for it, and nothing more of it is begun.
    gone: bool,
}

#[derive(Debug, Default)]
struct UnderWay {
    fence: Fence,
    repeats: Vec<Decide<Outcome>>,
}

impl Sends {
    /// None yet, and room for `max`.
    pub(super) fn new(max: usize) -> Self {
        let (sessions, shares) = (HashMap::new(), Shares::of(max));
        Self { state: Mutex::new(State { max, sessions, shares, swept_at: Instant::now() }) }
    }

    /// Counts one more connection of a session. It is open once everything of
    /// it that is under way has been decided.
    pub(super) fn open(&self, token: &SessionToken, from: Option<IpAddr>, decide: Decide<bool>) {
        let mut state = self.lock();
        let Some(session) = state.admit(token, from) else {
            drop(state);
            return decide.decide(Ok(false));
        };
        session.open += 1;
        if session.under_way.is_empty() {
            drop(state);
            decide.decide(Ok(true));
        } else {
            session.openers.push(decide);
        }
    }

    /// Whether another server that wants the session asks here.
    pub(super) fn is_held(&self, token: &SessionToken) -> bool {
        self.lock().sessions.get(token).is_some_and(|session| session.held.is_some())
    }

    /// From now on another server that wants the session asks here, until
    /// `released` is cancelled. False where that is so already, or there is no
    /// room for the session.
    pub(super) fn hold(
        &self,
        token: &SessionToken,
        from: Option<IpAddr>,
        released: CancellationToken,
    ) -> bool {
        let mut state = self.lock();
        let Some(session) = state.admit(token, from) else { return false };
        session.gone = false;
        let is_new = session.held.is_none();
        session.held.get_or_insert(released);
        is_new
    }

    /// Another server has the session from now on: what has not begun does not
    /// begin. Decided once nothing is under way.
    pub(super) fn let_go(&self, token: &SessionToken, decide: Decide<()>) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(token) else {
            drop(state);
            return decide.decide(Ok(()));
        };
        session.held = None;
        session.gone = true;
        session.under_way.values().for_each(|under_way| under_way.fence.close());
        if session.under_way.is_empty() {
            drop(state);
            decide.decide(Ok(()));
        } else {
            session.takers.push(decide);
        }
    }

    /// Counts one connection less.
    pub(super) fn close(&self, token: &SessionToken) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(token) else { return };
        session.open = session.open.saturating_sub(1);
        session.used_at = Instant::now();
        session.release_if_idle();
        if session.open == 0 && session.taken == 0 {
            let origin = session.origin;
            state.sessions.remove(token);
            state.shares.give_back(origin);
        }
    }

    /// Takes a send on: yields its `decide` where it is to be carried out, and
    /// [`Self::decided`] is to be called. Otherwise it was decided before, or it
    /// waits for the one under way, or it is refused.
    pub(super) fn take(
        &self,
        id: &SendId,
        fence: &Fence,
        decide: Decide<Outcome>,
    ) -> Option<Decide<Outcome>> {
        let number = id.id.value();
        let refuse = |decide: Decide<Outcome>, code| {
            decide.decide(Ok(Outcome::Refused(code)));
            None
        };
        let mut state = self.lock();
        let Some(session) = state.admit(&id.session, id.from) else {
            drop(state);
            return refuse(decide, Code::TooMany);
        };
        if session.gone {
            drop(state);
            fence.close();
            decide.decide(Err(Unavailable));
            return None;
        }
        if let Some(under_way) = session.under_way.get_mut(&number) {
            under_way.repeats.push(decide);
            return None;
        }
        let known = session.outcomes.look_up(number);
        if let Known::Decided(outcome) = known {
            drop(state);
            decide.decide(Ok(outcome));
            return None;
        }
        let is_late = number <= session.taken && !session.undecided.contains(&number);
        if is_late && (id.in_order || known == Known::Old) {
            drop(state);
            return refuse(decide, Code::BadRequest);
        }
        session.taken = session.taken.max(number);
        session.undecided.remove(&number);
        session.under_way.insert(number, UnderWay { fence: fence.clone(), repeats: Vec::new() });
        Some(decide)
    }

    /// Remembers how a send was decided, and tells those who have repeated it.
    pub(super) fn decided(&self, id: &SendId, outcome: Result<Outcome, Unavailable>) {
        let number = id.id.value();
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(&id.session) else { return };
        session.used_at = Instant::now();
        match outcome {
            Ok(outcome) => session.outcomes.record(number, outcome),
            Err(Unavailable) => session.leave_undecided(number),
        }
        let repeats = session.under_way.remove(&number).unwrap_or_default().repeats;
        let (mut openers, mut takers) = (Vec::new(), Vec::new());
        if session.under_way.is_empty() {
            std::mem::swap(&mut openers, &mut session.openers);
            std::mem::swap(&mut takers, &mut session.takers);
            session.release_if_idle();
        }
        drop(state);
        repeats.into_iter().for_each(|repeat| repeat.decide(outcome));
        openers.into_iter().for_each(|opener| opener.decide(Ok(true)));
        takers.into_iter().for_each(|taker| taker.decide(Ok(())));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The session, which is taken in where there is room.
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
    /// Its repeat will be welcome, unless it is too old to be one.
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
            outcomes: Outcomes::default(),
            taken: 0,
            under_way: HashMap::new(),
            undecided: BTreeSet::new(),
            openers: Vec::new(),
            takers: Vec::new(),
            held: None,
            gone: false,
        }
    }

    /// Where nothing is under way and no connection has it, nobody need ask.
    fn release_if_idle(&mut self) {
        if self.open == 0
            && self.under_way.is_empty()
            && let Some(held) = self.held.take()
        {
            held.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::RequestId;

    use super::*;
    use crate::store::Pending;

    fn id(number: u32) -> SendId {
        SendId {
            session: "s".parse().unwrap(),
            id: RequestId::new(number).unwrap(),
            in_order: true,
            from: None,
        }
    }

    fn take(sends: &Sends, number: u32) -> (bool, Pending<Outcome>) {
        let (decide, pending) = Pending::new();
        let taken = sends.take(&id(number), &Fence::default(), decide);
        let is_taken = taken.is_some();
        // What is taken on is decided by the test.
        std::mem::forget(taken);
        (is_taken, pending)
    }

    #[tokio::test]
    async fn a_repeat_waits_for_the_one_under_way_and_later_ones_get_its_outcome() {
        let sends = Sends::new(10);
        assert!(take(&sends, 5).0);
        let (taken, repeat) = take(&sends, 5);
        assert!(!taken);
        sends.decided(&id(5), Ok(Outcome::Stored));
        assert_eq!(repeat.await, Ok(Outcome::Stored));
        assert_eq!(take(&sends, 5).1.await, Ok(Outcome::Stored));
    }

    #[tokio::test]
    async fn sends_are_decided_in_any_order_and_one_that_was_left_out_is_refused() {
        let sends = Sends::new(10);
        assert!(take(&sends, 5).0 && take(&sends, 7).0);
        sends.decided(&id(7), Ok(Outcome::Stored));
        assert_eq!(take(&sends, 6).1.await, Ok(Outcome::Refused(Code::BadRequest)));
        sends.decided(&id(5), Ok(Outcome::Refused(Code::QueueFull)));
        assert_eq!(take(&sends, 5).1.await, Ok(Outcome::Refused(Code::QueueFull)));
    }

    #[tokio::test]
    async fn what_was_not_decided_can_be_repeated() {
        let sends = Sends::new(10);
        assert!(take(&sends, 5).0 && take(&sends, 7).0);
        sends.decided(&id(7), Ok(Outcome::Stored));
        sends.decided(&id(5), Err(Unavailable));
        assert!(take(&sends, 5).0);
    }

    #[tokio::test]
    async fn a_session_opens_once_nothing_of_it_is_under_way() {
        let sends = Sends::new(1);
        let token: SessionToken = "s".parse().unwrap();
        assert!(take(&sends, 1).0);
        let (decide, mut opened) = Pending::new();
        sends.open(&token, None, decide);
        assert!(futures::poll!(&mut opened).is_pending());
        sends.decided(&id(1), Ok(Outcome::Stored));
        assert_eq!(opened.await, Ok(true));
        let (decide, other) = Pending::new();
        sends.open(&"other".parse().unwrap(), None, decide);
        assert_eq!(other.await, Ok(false), "there is room for one");
    }

    #[tokio::test]
    async fn a_session_that_another_server_wants_is_let_go_once_nothing_is_under_way() {
        let sends = Sends::new(1);
        let token: SessionToken = "s".parse().unwrap();
        assert!(sends.hold(&token, None, CancellationToken::new()) && sends.is_held(&token));
        let (fence, (decide, _pending)) = (Fence::default(), Pending::new());
        std::mem::forget(sends.take(&id(1), &fence, decide));
        let (decide, mut gone) = Pending::new();
        sends.let_go(&token, decide);
        assert!(futures::poll!(&mut gone).is_pending() && fence.is_closed());
        assert_eq!(take(&sends, 2).1.await, Err(Unavailable));
        sends.decided(&id(1), Err(Unavailable));
        assert_eq!(gone.await, Ok(()));
        assert!(!sends.is_held(&token));
        // It comes back.
        assert!(sends.hold(&token, None, CancellationToken::new()) && take(&sends, 1).0);
    }

    #[tokio::test]
    async fn a_session_is_released_when_its_connection_has_gone_and_nothing_is_under_way() {
        let sends = Sends::new(1);
        let (token, released): (SessionToken, _) = ("s".parse().unwrap(), CancellationToken::new());
        assert!(sends.hold(&token, None, released.clone()));
        let (decide, opened) = Pending::new();
        sends.open(&token, None, decide);
        assert_eq!(opened.await, Ok(true));
        assert!(take(&sends, 1).0);
        sends.close(&token);
        assert!(!released.is_cancelled());
        sends.decided(&id(1), Ok(Outcome::Stored));
        assert!(released.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_forgotten_ten_minutes_after_its_last_use() {
        let sends = Sends::new(1);
        assert!(take(&sends, 1).0);
        sends.decided(&id(1), Ok(Outcome::Stored));
        for (minutes, known) in [(9, true), (20, false)] {
            tokio::time::advance(Duration::from_secs(minutes * 60)).await;
            let (decide, other) = Pending::new();
            sends.open(&"other".parse().unwrap(), None, decide);
            assert_eq!(other.await, Ok(!known));
        }
    }
}
