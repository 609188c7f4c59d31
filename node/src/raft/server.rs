//! The state of a server: its log, its role, and the committed and applied
//! entries. It sends nothing and waits for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::StateMachine;
use super::bugs::{Bug, is_planted};
use super::log::{Ballot, Entry, Log, Position, Snapshot};
use super::replicated::{Replicated, Request};
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::storage::Storage;

const LIFE: &str = "raft/life";

/// The maximum number of uncommitted entries. Beyond it, a leader refuses
/// requests.
const UNCOMMITTED_MAX: u64 = 10_000;

pub(super) struct Server<M: StateMachine> {
    pub(super) log: Log<M::Command>,
    pub(super) role: Role,
    /// The leader of the current term, if it is known.
    pub(super) leader: Option<String>,
    /// The time of its last message.
    pub(super) heard_at: Duration,
    pub(super) commit: u64,
    applied: u64,
    pub(super) replicated: Replicated<M>,
    /// The numbers of the requests that clients of this server wait for.
    waiting: BTreeSet<u64>,
    requests: u64,
    life: u64,
}

pub(super) enum Role {
    Follower,
    Candidate,
    Leader(Leadership),
}

/// The progress of all followers, as their leader knows it.
#[derive(Default)]
pub(super) struct Leadership {
    /// The entry that the term began with.
    pub(super) first_index: u64,
    /// Counts the reads that ask whether the server still leads.
    pub(super) round: u64,
    pub(super) followers: BTreeMap<String, Progress>,
}

/// The progress of a follower.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// The next entry to send.
    pub(super) next: u64,
    /// The last entry that it certainly has.
    pub(super) matched: u64,
    /// The last round of reads for which it has confirmed the leadership.
    pub(super) confirmed: u64,
    /// The time of its last reply.
    pub(super) heard_at: Duration,
}

impl<M: StateMachine> Server<M> {
    /// Reads the server of a previous incarnation, and begins a new one.
    ///
    /// # Errors
    /// 13 if the storage holds something else.
    pub(super) fn load(storage: &Storage) -> Result<Self, Error> {
        let life = storage.get::<u64>(LIFE)?.unwrap_or_default() + 1;
        storage.put(LIFE, &life)?;
        let log = Log::load(storage)?;
        let mut server = Self {
            role: Role::Follower,
            leader: None,
            heard_at: Duration::ZERO,
            commit: 0,
            applied: 0,
            replicated: Replicated::default(),
            waiting: BTreeSet::new(),
            requests: 0,
            life,
            log,
        };
        if let Some(snapshot) = server.log.snapshot().cloned() {
            server.restore(&snapshot)?;
        }
        Ok(server)
    }

    /// Replaces the state with that of a snapshot.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let unusable =
            |error| Error::new(ErrorCode::Crash, format!("a snapshot is unusable: {error}"));
        self.replicated = snapshot.state.parse().map_err(unusable)?;
        self.commit = snapshot.at.index;
        self.applied = snapshot.at.index;
        Ok(())
    }

    pub(super) const fn term(&self) -> u64 {
        self.log.ballot().term
    }

    pub(super) const fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) const fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Returns the progress of the followers, if this server leads the term.
    pub(super) fn leadership(&mut self, term: u64) -> Option<&mut Leadership> {
        match &mut self.role {
            Role::Leader(leadership) if self.log.ballot().term == term => Some(leadership),
            _ => None,
        }
    }

    /// Follows, with no leader known yet, in a term that is later than its own.
    pub(super) fn observe(&mut self, term: u64) -> Result<(), Error> {
        if term > self.term() {
            self.log.set_ballot(Ballot { term, vote: None })?;
            self.step_down();
        }
        Ok(())
    }

    pub(super) fn step_down(&mut self) {
        self.role = Role::Follower;
        self.leader = None;
    }

    /// Returns whether a candidate with this last entry has everything that may be
    /// committed.
    pub(super) fn is_covered_by(&self, last: Position) -> bool {
        let own = self.log.last();
        (last.term, last.index) >= (own.term, own.index)
    }

    /// Appends a request as the leader, unless it already waits to be committed.
    ///
    /// # Errors
    /// 11 if the server does not lead or too many requests wait: nothing was
    /// appended.
    pub(super) fn append(&mut self, request: Request<M::Command>) -> Result<(), Error> {
        let refused = |text| Err(Error::new(ErrorCode::TemporarilyUnavailable, text));
        if !self.is_leader() {
            return refused("not the leader");
        }
        let last = self.log.last().index;
        if last.saturating_sub(self.commit) >= UNCOMMITTED_MAX {
            return refused("too many requests wait to be committed");
        }
        let is_same = |entry: &Entry<_>| {
            entry
                .request
                .as_ref()
                .is_some_and(|other| other.is_same(&request))
        };
        let is_waiting = self.log.range(self.commit + 1, usize::MAX).any(is_same);
        if is_waiting && !is_planted(Bug::AppliesTwice) {
            return Ok(());
        }
        let term = self.term();
        self.log.push(Entry {
            term,
            request: Some(request),
        })
    }

    /// Commits the entries that a majority has, up to one of the leader's own
    /// term: an entry of a former term may still be replaced although a majority
    /// has it.
    pub(super) fn advance_commit(&mut self, quorum: usize) {
        let Role::Leader(leadership) = &self.role else {
            return;
        };
        let mut matched: Vec<u64> = leadership
            .followers
            .values()
            .map(|progress| progress.matched)
            .collect();
        matched.push(self.log.last().index);
        matched.sort_unstable_by(|one, other| other.cmp(one));
        let Some(index) = matched.get(quorum - 1).copied() else {
            return;
        };
        let is_own = self.log.term_at(index) == Some(self.term());
        if index > self.commit && (is_own || is_planted(Bug::CommitsFormerTerms)) {
            self.commit = index;
        }
    }

    /// Applies the committed entries, and takes a snapshot when it is due.
    ///
    /// # Errors
    /// 13 if the state cannot be represented in JSON.
    pub(super) fn apply(&mut self, snapshot_after: u64) -> Result<(), Error> {
        while self.applied < self.commit {
            let Some(entry) = self.log.get(self.applied + 1) else {
                break;
            };
            if let Some(request) = &entry.request {
                self.replicated.apply(request);
            }
            self.applied += 1;
        }
        let before = self.log.snapshot().map_or(0, |snapshot| snapshot.at.index);
        if self.applied - before < snapshot_after {
            return Ok(());
        }
        let Some(term) = self.log.term_at(self.applied) else {
            return Ok(());
        };
        let unwritable = |error| Error::new(ErrorCode::Crash, format!("no snapshot: {error}"));
        let state = Json::of(&self.replicated).map_err(unwritable)?;
        self.log.compact(
            Position {
                index: self.applied,
                term,
            },
            state,
        )
    }

    /// Begins to wait for a request of a client, and returns its number.
    pub(super) fn begin_request(&mut self) -> u64 {
        self.requests += 1;
        self.waiting.insert(self.requests);
        self.requests
    }

    pub(super) fn end_request(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// Returns a request of this incarnation.
    pub(super) fn request(
        &self,
        origin: &str,
        number: u64,
        command: M::Command,
    ) -> Request<M::Command> {
        let floor = self.waiting.first().copied().unwrap_or(self.requests + 1);
        Request {
            origin: origin.to_owned(),
            life: self.life,
            number,
            floor,
            command,
        }
    }
}
