//! The send sessions: their outcomes, and how long these are remembered. A state machine
//! without I/O; the running time is an argument.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::SessionToken;
use hark_protocol::limits::OUTCOME_SECONDS_MIN;

use super::dedup::{DedupTable, Known, OutcomeRun};
use super::record::{SESSION_SLOT_MAX, SessionRecord};
use super::slots::Slots;
use crate::store::Outcome;
use crate::store::quota::PerNetworkQuota;

/// The minimum time for which an outcome is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(OUTCOME_SECONDS_MIN);

/// Memory of all sessions at which new ones are refused. No outcome is forgotten early:
/// each admitted session may still grow to [`Session::bytes`] of a full table.
const BYTES_MAX: usize = 256 << 20;

/// Approximate memory of a session without outcomes.
const SESSION_BYTES: usize = 320;

/// The maximum number of sessions forgotten by one frame, which bounds its records.
const FORGOTTEN_MAX: usize = 4096;

/// All sessions, a bounded number of them.
#[derive(Debug)]
pub(super) struct Sessions {
    max: usize,
    /// Memory of all sessions at which new ones are refused.
    bytes_max: usize,
    bytes: usize,
    // Boxed, because a record may name a slot far beyond the others.
    sessions: Slots<Box<Session>>,
    by_token: HashMap<SessionToken, u32>,
    /// The number of sessions that began from each network.
    quota: PerNetworkQuota,
    /// Sessions that may have expired, about in the order of their last use. Each session
    /// that is not open is in here once.
    idle: VecDeque<(Duration, SessionToken)>,
}

#[derive(Debug)]
struct Session {
    token: SessionToken,
    table: DedupTable,
    /// Outcomes above all others that are remembered only if a later one is.
    deferred: Option<Box<DedupTable>>,
    /// The number of its connections.
    open: usize,
    used: Duration,
    /// It is in the idle queue.
    is_idle: bool,
    /// It has a record.
    is_recorded: bool,
    /// The network that it counts against, if any.
    origin: Option<IpAddr>,
}

impl Session {
    /// Returns its approximate memory.
    fn bytes(&self) -> usize {
        let deferred = self.deferred.as_ref().map_or(0, |deferred| {
            size_of::<DedupTable>() + deferred.heap_bytes()
        });
        SESSION_BYTES + self.table.heap_bytes() + deferred
    }
}

/// A forgotten session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forgotten {
    /// Its slot.
    pub(super) slot: u32,
    /// It has a record.
    pub(super) is_recorded: bool,
}

impl Sessions {
    /// Returns an empty table with room for `max` sessions.
    pub(super) fn new(max: usize) -> Self {
        Self::within(max, BYTES_MAX)
    }

    /// Returns an empty table with room for `max` sessions. New ones are admitted while
    /// all take less than `bytes_max`.
    fn within(max: usize, bytes_max: usize) -> Self {
        let max = max.min(SESSION_SLOT_MAX as usize);
        Self {
            max,
            bytes_max,
            bytes: 0,
            sessions: Slots::default(),
            by_token: HashMap::new(),
            quota: PerNetworkQuota::of(max),
            idle: VecDeque::new(),
        }
    }

    /// Adds a connection to a session. Returns whether there is room for the session, in
    /// total and from this network.
    pub(super) fn open(
        &mut self,
        token: &SessionToken,
        from: Option<IpAddr>,
        now: Duration,
    ) -> bool {
        let Some((_, session)) = self.admit(token, from, now) else {
            return false;
        };
        session.open += 1;
        true
    }

    /// Removes a connection from a session. A closed session without sends is forgotten.
    pub(super) fn close(&mut self, token: &SessionToken, now: Duration) {
        let Some(&slot) = self.by_token.get(token) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.open = session.open.saturating_sub(1);
        session.used = session.used.max(now);
        if session.open == 0 && session.table.highest() == 0 && !session.is_idle {
            self.remove(slot);
        } else {
            self.mark_idle(slot);
        }
    }

    /// Looks up an id, and admits its session if that is unknown. Also returns the
    /// session's slot, or `None` if there is no room for it.
    pub(super) fn look_up(
        &mut self,
        token: &SessionToken,
        id: u32,
        from: Option<IpAddr>,
        now: Duration,
    ) -> Option<(u32, Known)> {
        if let Some(&slot) = self.by_token.get(token) {
            return self
                .sessions
                .get(slot)
                .map(|session| (slot, session.table.look_up(id)));
        }
        let (slot, _) = self.admit(token, from, now)?;
        self.mark_idle(slot);
        Some((slot, Known::New))
    }

    /// Records the outcome of an id after its lookup. Returns the session's first record,
    /// which must precede that of the outcome.
    pub(super) fn record(
        &mut self,
        slot: u32,
        id: u32,
        outcome: Outcome,
        now: Duration,
    ) -> Option<SessionRecord> {
        let session = self.sessions.get_mut(slot)?;
        let first = (!session.is_recorded).then(|| SessionRecord {
            slot,
            token: session.token.clone(),
            used: now,
            table: DedupTable::default(),
        });
        session.is_recorded = true;
        let before = session.bytes();
        session.table.record(id, outcome);
        session.used = session.used.max(now);
        self.bytes = self.bytes - before + session.bytes();
        first
    }

    /// Records a preliminary outcome: the id may be decided again as long as no later one
    /// is remembered.
    pub(super) fn defer(&mut self, slot: u32, id: u32, outcome: Outcome) {
        if let Some(session) = self.sessions.get_mut(slot) {
            let before = session.bytes();
            session.deferred.get_or_insert_default().record(id, outcome);
            self.bytes = self.bytes - before + session.bytes();
        }
    }

    /// Takes the deferred outcomes of ids below this one, which must be remembered before
    /// it.
    pub(super) fn take_deferred(&mut self, slot: u32, id: u32) -> Vec<OutcomeRun> {
        let Some(session) = self.sessions.get_mut(slot) else {
            return Vec::new();
        };
        let before = session.bytes();
        let Some(deferred) = session.deferred.take() else {
            return Vec::new();
        };
        let mut due = Vec::new();
        for run in deferred.runs() {
            let length = run.length.min(id.saturating_sub(run.first));
            if length > 0 {
                due.push(OutcomeRun { length, ..run });
            }
            // The id itself is decided now.
            for later in run.ids().filter(|later| *later > id) {
                session
                    .deferred
                    .get_or_insert_default()
                    .record(later, run.outcome);
            }
        }
        self.bytes = self.bytes - before + session.bytes();
        due
    }

    /// Forgets a bounded number of sessions that are closed and were unused for ten
    /// minutes. Calls `forgotten` for each.
    pub(super) fn forget_idle(&mut self, now: Duration, mut forgotten: impl FnMut(Forgotten)) {
        for _ in 0..FORGOTTEN_MAX {
            let is_due =
                |(since, _): &mut (Duration, _)| now.saturating_sub(*since) >= REMEMBERED_FOR;
            let Some((_, token)) = self.idle.pop_front_if(is_due) else {
                break;
            };
            let Some(&slot) = self.by_token.get(&token) else {
                continue;
            };
            let Some(session) = self.sessions.get_mut(slot) else {
                continue;
            };
            session.is_idle = false;
            if session.open == 0 && now.saturating_sub(session.used) >= REMEMBERED_FOR {
                forgotten(Forgotten {
                    slot,
                    is_recorded: session.is_recorded,
                });
                self.remove(slot);
            } else {
                self.mark_idle(slot);
            }
        }
    }

    /// Returns the open sessions with their numbers of connections.
    pub(super) fn open_counts(&self) -> impl Iterator<Item = (&SessionToken, usize)> {
        let sessions = self.sessions.iter_from(0).map(|(_, session)| session);
        sessions
            .filter(|session| session.open > 0)
            .map(|session| (&session.token, session.open))
    }

    /// Restores the connections of an open session regardless of limits: they were
    /// admitted before.
    pub(super) fn reopen(&mut self, token: &SessionToken, open: usize, now: Duration) {
        let slot = match self.by_token.get(token) {
            Some(slot) => Some(*slot),
            None => self.insert(token, None, now),
        };
        if let Some(session) = slot.and_then(|slot| self.sessions.get_mut(slot)) {
            session.open += open;
            session.used = session.used.max(now);
        }
    }

    /// Replays the record of a session.
    pub(super) fn restore(&mut self, record: SessionRecord) {
        let SessionRecord {
            slot,
            token,
            used,
            table,
        } = record;
        self.replay_end(slot);
        // A token has one slot: the last record wins.
        if let Some(former) = self.by_token.get(&token).copied() {
            self.replay_end(former);
        }
        self.by_token.insert(token.clone(), slot);
        let session = Session {
            token,
            table,
            deferred: None,
            open: 0,
            used,
            is_idle: false,
            is_recorded: true,
            origin: None,
        };
        self.bytes += session.bytes();
        self.sessions.place(slot, Box::new(session));
    }

    /// Replays outcomes. They are ignored for a session that only a later part of the
    /// checkpoint defines, because that part includes them.
    pub(super) fn replay_outcomes(&mut self, slot: u32, run: OutcomeRun, now: Duration) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let before = session.bytes();
        for id in run.ids() {
            session.table.record(id, run.outcome_of(id));
        }
        session.used = session.used.max(now);
        self.bytes = self.bytes - before + session.bytes();
    }

    /// Replays the end of a session.
    pub(super) fn replay_end(&mut self, slot: u32) {
        if let Some(session) = self.sessions.remove(slot) {
            self.bytes -= session.bytes();
            self.by_token.remove(&session.token);
        }
    }

    /// Completes a replay.
    pub(super) fn finish_replay(&mut self) {
        self.sessions.collect_free();
        let mut used: Vec<_> = self
            .sessions
            .iter_from(0)
            .map(|(slot, session)| (session.used, slot))
            .collect();
        used.sort_unstable();
        used.into_iter().for_each(|(_, slot)| self.mark_idle(slot));
    }

    /// Returns the records of the sessions from this slot on.
    pub(super) fn records_from(&self, slot: u32) -> impl Iterator<Item = SessionRecord> {
        let sessions = self
            .sessions
            .iter_from(slot)
            .filter(|(_, session)| session.is_recorded);
        sessions.map(|(slot, session)| SessionRecord {
            slot,
            token: session.token.clone(),
            used: session.used,
            table: session.table.clone(),
        })
    }

    fn admit(
        &mut self,
        token: &SessionToken,
        origin: Option<IpAddr>,
        now: Duration,
    ) -> Option<(u32, &mut Session)> {
        let slot = match self.by_token.get(token) {
            Some(slot) => *slot,
            None if self.by_token.len() >= self.max || self.bytes >= self.bytes_max => return None,
            None if !self.quota.take(origin) => return None,
            None => self.insert(token, origin, now)?,
        };
        self.sessions
            .get_mut(slot)
            .map(|session| (slot, &mut **session))
    }

    fn insert(
        &mut self,
        token: &SessionToken,
        origin: Option<IpAddr>,
        now: Duration,
    ) -> Option<u32> {
        let session = Session {
            token: token.clone(),
            table: DedupTable::default(),
            deferred: None,
            open: 0,
            used: now,
            is_idle: false,
            is_recorded: false,
            origin,
        };
        let bytes = session.bytes();
        let slot = self.sessions.insert(Box::new(session)).ok()?;
        self.bytes += bytes;
        self.by_token.insert(token.clone(), slot);
        Some(slot)
    }

    fn remove(&mut self, slot: u32) {
        if let Some(session) = self.sessions.remove(slot) {
            self.bytes -= session.bytes();
            self.by_token.remove(&session.token);
            self.quota.give_back(session.origin);
        }
    }

    /// Adds a closed session to the idle queue, to be checked ten minutes after its last
    /// use.
    fn mark_idle(&mut self, slot: u32) {
        if let Some(session) = self.sessions.get_mut(slot)
            && session.open == 0
            && !session.is_idle
        {
            session.is_idle = true;
            self.idle.push_back((session.used, session.token.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Sequence;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    const STORED: Outcome = Outcome::Stored(Sequence(9));

    fn token(text: &str) -> SessionToken {
        text.parse().unwrap()
    }

    fn known(sessions: &mut Sessions, text: &str, id: u32, now: Duration) -> Option<Known> {
        sessions
            .look_up(&token(text), id, None, now)
            .map(|(_, known)| known)
    }

    fn record(
        sessions: &mut Sessions,
        text: &str,
        id: u32,
        now: Duration,
    ) -> Option<SessionRecord> {
        let slot = *sessions.by_token.get(&token(text)).unwrap();
        sessions.record(slot, id, STORED, now)
    }

    fn forget(sessions: &mut Sessions, now: Duration) -> usize {
        let mut count = 0;
        sessions.forget_idle(now, |_| count += 1);
        count
    }

    #[test]
    fn session_is_forgotten_ten_minutes_after_its_use() {
        let mut sessions = Sessions::new(10);
        assert!(sessions.open(&token("a"), None, MINUTE));
        assert!(sessions.open(&token("b"), None, MINUTE));
        sessions.close(&token("a"), 2 * MINUTE);
        assert_eq!(known(&mut sessions, "a", 1, 3 * MINUTE), Some(Known::New));
        assert!(record(&mut sessions, "a", 1, 3 * MINUTE).is_some());
        assert!(
            record(&mut sessions, "a", 2, 3 * MINUTE).is_none(),
            "it has a record"
        );
        assert_eq!(forget(&mut sessions, 12 * MINUTE), 0);
        assert_eq!(
            known(&mut sessions, "a", 1, 12 * MINUTE),
            Some(Known::Decided(STORED))
        );
        assert_eq!(forget(&mut sessions, 13 * MINUTE), 1);
        assert_eq!(known(&mut sessions, "a", 1, 13 * MINUTE), Some(Known::New));
        let mut forgotten = Vec::new();
        sessions.forget_idle(1000 * MINUTE, |session| forgotten.push(session));
        assert_eq!(
            forgotten,
            [Forgotten {
                slot: 0,
                is_recorded: false
            }],
            "b is open"
        );
    }

    #[test]
    fn session_opened_often_is_idle_once() {
        let mut sessions = Sessions::new(10);
        for second in 0..1000 {
            let now = Duration::from_secs(second);
            assert!(sessions.open(&token("a"), None, now));
            record(&mut sessions, "a", second as u32 + 1, now);
            sessions.close(&token("a"), now);
            assert_eq!(forget(&mut sessions, now), 0);
        }
        assert_eq!(sessions.idle.len(), 1);
    }

    #[test]
    fn closed_session_without_sends_takes_no_room() {
        let mut sessions = Sessions::new(1);
        for n in 0..10 {
            let token = token(&format!("s{n}"));
            assert!(sessions.open(&token, None, MINUTE));
            assert!(sessions.open(&token, None, MINUTE));
            sessions.close(&token, MINUTE);
            assert!(
                !sessions.open(&self::token("other"), None, MINUTE),
                "it is open still"
            );
            sessions.close(&token, MINUTE);
        }
        assert!(sessions.by_token.is_empty() && sessions.idle.is_empty());
    }

    #[test]
    fn full_table_of_sessions_evicts_nothing_early() {
        let mut sessions = Sessions::new(2);
        assert!(sessions.open(&token("a"), None, MINUTE));
        record(&mut sessions, "a", 1, MINUTE);
        sessions.close(&token("a"), MINUTE);
        assert!(sessions.open(&token("b"), None, MINUTE));
        assert!(!sessions.open(&token("c"), None, 2 * MINUTE));
        assert_eq!(known(&mut sessions, "c", 1, 2 * MINUTE), None);
        assert!(
            sessions.open(&token("a"), None, 2 * MINUTE),
            "it is there already"
        );
        sessions.close(&token("a"), 2 * MINUTE);
        assert_eq!(forget(&mut sessions, 12 * MINUTE), 1);
        assert!(sessions.open(&token("c"), None, 12 * MINUTE));
    }

    #[test]
    fn memory_bounds_new_sessions_and_forgets_no_outcome() {
        let mut sessions = Sessions::within(100, 4 * SESSION_BYTES);
        assert!(sessions.open(&token("a"), None, MINUTE));
        assert!(sessions.open(&token("b"), None, MINUTE));
        let outcome = |id| {
            if id % 2 == 0 {
                STORED
            } else {
                Outcome::Refused(hark_protocol::Code::QueueFull)
            }
        };
        let slot = *sessions.by_token.get(&token("a")).unwrap();
        (1..=1024).for_each(|id| drop(sessions.record(slot, id, outcome(id), MINUTE)));
        assert!(
            !sessions.open(&token("c"), None, MINUTE),
            "there is no room for a third"
        );
        assert!(
            sessions.open(&token("b"), None, MINUTE),
            "it is there already"
        );
        for id in 1..=1024 {
            assert_eq!(
                known(&mut sessions, "a", id, MINUTE),
                Some(Known::Decided(outcome(id)))
            );
        }
        sessions.close(&token("a"), MINUTE);
        assert_eq!(forget(&mut sessions, 11 * MINUTE), 1);
        assert!(sessions.open(&token("c"), None, 11 * MINUTE));
        assert_eq!(sessions.bytes, 2 * SESSION_BYTES);
    }

    #[test]
    fn one_network_has_a_quarter_of_all_sessions() {
        let address = |text: &str| Some(text.parse().unwrap());
        let (eve, bob) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut sessions = Sessions::new(8);
        assert!(sessions.open(&token("a"), eve, MINUTE));
        assert!(sessions.look_up(&token("b"), 1, eve, MINUTE).is_some());
        record(&mut sessions, "b", 1, MINUTE);
        assert!(!sessions.open(&token("c"), eve, MINUTE));
        assert_eq!(sessions.look_up(&token("c"), 1, eve, MINUTE), None);
        assert!(
            sessions.open(&token("b"), eve, MINUTE),
            "it is there already"
        );
        assert!(sessions.open(&token("c"), bob, MINUTE));
        for nth in 0..5 {
            assert!(
                sessions.open(&token(&format!("n{nth}")), None, MINUTE),
                "these have no quota"
            );
        }
        assert!(!sessions.open(&token("d"), bob, MINUTE), "there are eight");
        sessions.close(&token("a"), MINUTE);
        assert!(sessions.open(&token("d"), eve, MINUTE));
        sessions.close(&token("b"), MINUTE);
        sessions.close(&token("d"), MINUTE);
        assert_eq!(forget(&mut sessions, 11 * MINUTE), 1);
        assert!(
            !sessions.quota.knows(eve.unwrap()),
            "a network without sessions leaves nothing behind"
        );
    }
}
