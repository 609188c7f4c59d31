//! Replay of the records of a log into a ledger.

use std::collections::HashMap;
use std::time::Duration;

use super::bytes::Malformed;
use super::inboxes::Inbox;
use super::numbers::Numbers;
use super::record::{AccountRecord, Record, Records};
use super::{Ledger, Limits};

/// A replay of consecutive frames, from the beginning of a checkpoint on.
///
/// Records may name accounts and sessions that only a later part of the checkpoint
/// defines. They are ignored, because that part includes them.
#[derive(Debug)]
pub(crate) struct Replay {
    ledger: Ledger,
    /// The slots of the inboxes by incarnation.
    by_incarnation: HashMap<u64, u32>,
    /// The persisted counter.
    reserved: Option<u64>,
    /// The running time of the frame.
    running: Duration,
}

impl Replay {
    /// Returns an empty replay.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            ledger: Ledger::new(limits, 0),
            by_incarnation: HashMap::new(),
            reserved: None,
            running: Duration::ZERO,
        }
    }

    /// Replays the records of a frame.
    ///
    /// # Errors
    /// [`Malformed`] at the first record that is unknown to this version.
    pub(crate) fn frame(&mut self, records: &[u8]) -> Result<(), Malformed> {
        Records::new(records).try_for_each(|record| {
            self.record(record?);
            Ok(())
        })
    }

    fn record(&mut self, record: Record) {
        match record {
            Record::Clock(clock) => {
                self.running = clock.running;
                self.ledger.running = self.ledger.running.max(clock.running);
                self.ledger.time_ms = self.ledger.time_ms.max(clock.time_ms);
            }
            Record::Counter(bound) => self.reserved = self.reserved.max(Some(bound)),
            Record::Account(account) => self.account(account),
            Record::AccountEnd(incarnation) => self.end(incarnation),
            Record::Cursor(incarnation, position) => {
                if let Some(inbox) = self.inbox(incarnation) {
                    inbox.cursor = position;
                }
            }
            Record::Tail(incarnation, position) => {
                if let Some(inbox) = self.inbox(incarnation) {
                    inbox.tail = position;
                }
            }
            Record::Session(session) => self.ledger.sessions.restore(session),
            Record::Outcomes(slot, run) => {
                self.ledger
                    .sessions
                    .replay_outcomes(slot, run, self.running)
            }
            Record::SessionEnd(slot) => self.ledger.sessions.replay_end(slot),
        }
    }

    fn account(&mut self, record: AccountRecord) {
        if let Some(inbox) = self.inbox(record.incarnation) {
            // A record never gives an account another name.
            if inbox.account.name == record.name {
                *inbox = Inbox::new(record);
            }
            return;
        }
        if let Some(former) = self.ledger.inboxes.remove(&record.name) {
            self.by_incarnation.remove(&former.account.incarnation);
        }
        let incarnation = record.incarnation;
        if let Some(slot) = self.ledger.inboxes.insert(Inbox::new(record)) {
            self.by_incarnation.insert(incarnation, slot);
        }
    }

    fn end(&mut self, incarnation: u64) {
        if let Some(slot) = self.by_incarnation.remove(&incarnation)
            && let Some(name) = self
                .ledger
                .inboxes
                .at(slot)
                .map(|inbox| inbox.account.name.clone())
        {
            self.ledger.inboxes.remove(&name);
        }
    }

    fn inbox(&mut self, incarnation: u64) -> Option<&mut Inbox> {
        self.ledger
            .inboxes
            .at(*self.by_incarnation.get(&incarnation)?)
    }

    /// Returns the replayed cursor of an inbox; `None` if there is no such account.
    pub(crate) fn cursor(&mut self, incarnation: u64) -> Option<u64> {
        self.inbox(incarnation).map(|inbox| inbox.cursor.sequence.0)
    }

    /// Returns the persisted counter, if there is one.
    pub(crate) const fn counter(&self) -> Option<u64> {
        self.reserved
    }

    /// Returns the replayed ledger. Its numbers come after the persisted counter and
    /// after `counter`.
    pub(crate) fn finish(mut self, counter: u64) -> Ledger {
        self.ledger.sessions.finish_replay();
        self.ledger.numbers = Numbers::after(counter.max(self.reserved.unwrap_or(0)));
        self.ledger
    }
}
