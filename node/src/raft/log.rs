//! The durable part of a server: its term, its vote, its entries and the
//! snapshot that stands for the entries before them. Every change is in the
//! storage before a method returns. The log knows no role and no other server.

use std::collections::VecDeque;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::bugs::{Bug, is_planted};
use super::replicated::Request;
use crate::error::Error;
use crate::json::Json;
use crate::storage::Storage;

const BALLOT: &str = "raft/ballot";
const BASE: &str = "raft/base";
const SNAPSHOT: &str = "raft/snapshot";
const ENTRY: &str = "raft/entry/";

/// A term, and the candidate that got this server's vote in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ballot {
    pub(super) term: u64,
    pub(super) vote: Option<String>,
}

/// An entry of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry<C> {
    pub(super) term: u64,
    /// `None` in the first entry of a term.
    pub(super) request: Option<Request<C>>,
}

/// A place in the log, and the term of the entry there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) index: u64,
    pub(super) term: u64,
}

/// The replicated state after the entry at a position.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) at: Position,
    pub(super) state: Json,
}

pub(super) struct Log<C> {
    storage: Storage,
    ballot: Ballot,
    snapshot: Option<Snapshot>,
    /// The last entry that is gone. A snapshot covers it.
    base: Position,
    /// The entries after `base`.
    entries: VecDeque<Entry<C>>,
}

impl<C: Serialize + DeserializeOwned + Clone> Log<C> {
    /// Reads the log of a previous incarnation.
    ///
    /// # Errors
    /// 13 if the storage holds something else under these keys.
    pub(super) fn load(storage: &Storage) -> Result<Self, Error> {
        let entries = storage.scan::<Entry<C>>(ENTRY)?;
        Ok(Self {
            ballot: storage.get(BALLOT)?.unwrap_or_default(),
            snapshot: storage.get(SNAPSHOT)?,
            base: storage.get(BASE)?.unwrap_or_default(),
            entries: entries.into_iter().map(|(_, entry)| entry).collect(),
            storage: storage.clone(),
        })
    }

    pub(super) const fn ballot(&self) -> &Ballot {
        &self.ballot
    }

    /// Changes term or vote.
    pub(super) fn set_ballot(&mut self, ballot: Ballot) -> Result<(), Error> {
        self.storage.put(BALLOT, &ballot)?;
        self.ballot = ballot;
        Ok(())
    }

    pub(super) const fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    pub(super) const fn base(&self) -> Position {
        self.base
    }

    /// Returns the position of the last entry.
    pub(super) fn last(&self) -> Position {
        let index = self.base.index + u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        Position {
            index,
            term: self
                .entries
                .back()
                .map_or(self.base.term, |entry| entry.term),
        }
    }

    /// Returns the term of an entry; `None` if it is gone or not there yet.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry<C>> {
        self.entries.get(self.offset(index)?)
    }

    /// Returns at most `max` entries from an index on.
    pub(super) fn range(&self, from: u64, max: usize) -> impl Iterator<Item = &Entry<C>> {
        let offset = self.offset(from).unwrap_or(self.entries.len());
        self.entries.iter().skip(offset).take(max)
    }

    fn offset(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.base.index + 1)?).ok()
    }

    /// Appends an entry.
    pub(super) fn push(&mut self, entry: Entry<C>) -> Result<(), Error> {
        if !is_planted(Bug::ForgetsEntries) {
            self.storage.put(&key(self.last().index + 1), &entry)?;
        }
        self.entries.push_back(entry);
        Ok(())
    }

    /// Removes the entries from an index on, the last one first.
    pub(super) fn truncate(&mut self, from: u64) {
        while self.last().index >= from && self.entries.pop_back().is_some() {
            self.storage.remove(&key(self.last().index + 1));
        }
    }

    /// Takes a snapshot of the state after an entry. The entries before the
    /// previous snapshot are removed; later ones stay for followers that
    /// lag a little.
    pub(super) fn compact(&mut self, at: Position, state: Json) -> Result<(), Error> {
        let former = self.snapshot.as_ref().map(|former| former.at);
        self.set_snapshot(Snapshot { at, state })?;
        former.map_or(Ok(()), |former| self.release(former))
    }

    /// Installs the leader's snapshot. The entries after it stay if they
    /// continue it.
    pub(super) fn install(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let at = snapshot.at;
        let is_continued = self.term_at(at.index) == Some(at.term);
        self.set_snapshot(snapshot)?;
        if !is_continued {
            self.truncate(self.base.index + 1);
        }
        self.release(at)
    }

    fn set_snapshot(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        self.storage.put(SNAPSHOT, &snapshot)?;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    /// Removes the entries up to a position that a snapshot covers.
    fn release(&mut self, base: Position) -> Result<(), Error> {
        self.storage.put(BASE, &base)?;
        while self.base.index < base.index && self.entries.pop_front().is_some() {
            self.base.index += 1;
            self.storage.remove(&key(self.base.index));
        }
        self.base = base;
        Ok(())
    }
}

fn key(index: u64) -> String {
    format!("{ENTRY}{index:020}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with entries of these terms, from index 1 on.
    fn log(storage: &Storage, terms: &[u64]) -> Log<u8> {
        let mut log = Log::load(storage).unwrap();
        for term in terms {
            log.push(Entry {
                term: *term,
                request: None,
            })
            .unwrap();
        }
        log
    }

    /// The terms of all entries that are there, and the same after a restart.
    #[track_caller]
    fn check(log: &Log<u8>, base: Position, terms: &[u64]) {
        let again = Log::<u8>::load(&log.storage).unwrap();
        for log in [log, &again] {
            let found: Vec<_> = log
                .range(base.index + 1, usize::MAX)
                .map(|entry| entry.term)
                .collect();
            assert_eq!((log.base(), &*found), (base, terms));
            let last = terms.last().copied().unwrap_or(base.term);
            assert_eq!(
                log.last(),
                Position {
                    index: base.index + terms.len() as u64,
                    term: last
                }
            );
        }
    }

    fn position(index: u64, term: u64) -> Position {
        Position { index, term }
    }

    #[test]
    fn entries_are_replaced_from_an_index_on() {
        let mut log = log(&Storage::default(), &[1, 1, 2, 2]);
        log.truncate(3);
        log.push(Entry {
            term: 3,
            request: None,
        })
        .unwrap();
        check(&log, Position::default(), &[1, 1, 3]);
        assert_eq!(
            (log.term_at(0), log.term_at(3), log.term_at(4)),
            (Some(0), Some(3), None)
        );
    }

    #[test]
    fn entries_go_at_the_next_snapshot() {
        let mut log = log(&Storage::default(), &[1, 1, 2, 2, 3]);
        log.compact(position(2, 1), Json::of(&"two").unwrap())
            .unwrap();
        check(&log, Position::default(), &[1, 1, 2, 2, 3]);
        log.compact(position(4, 2), Json::of(&"four").unwrap())
            .unwrap();
        check(&log, position(2, 1), &[2, 2, 3]);
        assert_eq!(log.snapshot().unwrap().state.text(), r#""four""#);
        assert_eq!(
            (log.term_at(1), log.term_at(2), log.term_at(3)),
            (None, Some(1), Some(2))
        );
    }

    #[test]
    fn an_installed_snapshot_keeps_what_continues_it() {
        let snapshot = |index, term| Snapshot {
            at: position(index, term),
            state: Json::of(&()).unwrap(),
        };
        let mut kept = log(&Storage::default(), &[1, 1, 2, 2]);
        kept.install(snapshot(3, 2)).unwrap();
        check(&kept, position(3, 2), &[2]);
        let mut replaced = log(&Storage::default(), &[1, 1, 1, 1]);
        replaced.install(snapshot(3, 2)).unwrap();
        check(&replaced, position(3, 2), &[]);
        let mut short = log(&Storage::default(), &[1]);
        short.install(snapshot(9, 4)).unwrap();
        check(&short, position(9, 4), &[]);
    }

    #[test]
    fn term_and_vote_outlive_a_restart() {
        let storage = Storage::default();
        let ballot = Ballot {
            term: 7,
            vote: Some("n2".into()),
        };
        log(&storage, &[]).set_ballot(ballot.clone()).unwrap();
        assert_eq!(*Log::<u8>::load(&storage).unwrap().ballot(), ballot);
    }
}
