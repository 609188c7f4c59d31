//! Replay of the records of a log into a ledger.

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
                self.ledger.recorded = self.ledger.running;
            }
            Record::Counter(bound) => self.reserved = self.reserved.max(Some(bound)),
            Record::Account(account) => self.account(account),
            Record::AccountEnd(incarnation) => self.end(incarnation),
            Record::Head(log, position) => {
                if let Some(inbox) = self.inbox(log) {
                    inbox.log.head = position;
                    inbox.devices.replay_head(position);
                } else {
                    self.ledger.rooms.replay_head(log, position);
                }
            }
            Record::Tail(log, position) => {
                if let Some(inbox) = self.inbox(log) {
                    inbox.log.raise_tail(position);
                } else {
                    self.ledger.rooms.raise_tail(log, position);
                }
            }
            Record::Session(session) => self.ledger.sessions.restore(session),
            Record::Outcomes(slot, run) => {
                self.ledger
                    .sessions
                    .replay_outcomes(slot, run, self.running)
            }
            Record::SessionEnd(slot) => self.ledger.sessions.replay_end(slot),
            Record::Wall(ms) => self.ledger.wall_recorded_ms = ms,
            Record::Stopped(time) => self.ledger.stopped = self.ledger.stopped.max(time),
            Record::AgeMark(mark) => self.ledger.expiries.add(mark),
            Record::Room(record) => self.ledger.rooms.replay(record),
            Record::DeviceCursor(account, id, cursor) => {
                let now = super::seconds(self.running);
                let inbox = self.inbox(account);
                if let Some(device) = inbox.and_then(|inbox| inbox.devices.get_mut(id)) {
                    (device.state.cursor, device.state.acknowledged) = (cursor, now);
                }
            }
            Record::Connected(account, _)
            | Record::Device(account, _)
            | Record::DeviceEnd(account, _)
            | Record::Blocked(account, _)
            | Record::Started(account, _)
            | Record::Limits(account, _)
            | Record::Used(account, _)
            | Record::Token(account, _)
            | Record::TokenEnd(account, _)
            | Record::TokenUsed(account, ..) => {
                if let Some(inbox) = self.inbox(account) {
                    replay_user(inbox, record);
                }
            }
        }
    }

    fn account(&mut self, record: AccountRecord) {
        if let Some(inbox) = self.inbox(record.incarnation) {
            // A record never gives an account another name.
            if inbox.account.name == record.name {
                inbox.password = record.password;
                inbox.is_suspended = record.is_suspended;
                (inbox.log.head, inbox.log.tail) = (record.head, record.tail);
            }
            return;
        }
        self.ledger.inboxes.remove(&record.name);
        self.ledger.inboxes.insert(Inbox::new(record));
    }

    fn end(&mut self, incarnation: u64) {
        let inbox = self.ledger.inboxes.by_id(incarnation);
        if let Some(name) = inbox.map(|inbox| inbox.account.name.clone()) {
            self.ledger.inboxes.remove(&name);
        }
    }

    fn inbox(&mut self, incarnation: u64) -> Option<&mut Inbox> {
        self.ledger.inboxes.by_id_mut(incarnation)
    }

    /// Returns the number of the last forgotten message of a log; `None` if the log has
    /// ended.
    pub(crate) fn head(&mut self, log: u64) -> Option<u64> {
        let inbox = self.inbox(log).map(|inbox| inbox.log.head.sequence.0);
        inbox.or_else(|| self.ledger.rooms.replayed_head(log))
    }

    /// Returns the persisted counter, if there is one.
    pub(crate) const fn counter(&self) -> Option<u64> {
        self.reserved
    }

    /// Returns the replayed ledger. Its numbers come after the persisted counter and
    /// after `counter`.
    pub(crate) fn finish(mut self, counter: u64) -> Ledger {
        let running = Duration::from_secs(self.ledger.running.as_secs());
        for inbox in self.ledger.inboxes.iter_mut() {
            let devices = inbox.devices.end_attachments(running).into_iter();
            let interrupted = devices.map(|device| (inbox.log.id, device));
            self.ledger.interrupted.extend(interrupted);
        }
        self.ledger.rooms.finish_replay();
        for (account, slot, membership) in self.ledger.rooms.memberships() {
            if let Some(inbox) = self.ledger.inboxes.by_id_mut(account) {
                inbox.profile_mut().add(slot, membership);
            }
        }
        self.ledger.age = self.ledger.age();
        self.ledger.prune_marks();
        self.ledger.sessions.finish_replay();
        self.ledger.numbers = Numbers::after(counter.max(self.reserved.unwrap_or(0)));
        self.ledger
    }
}

/// Replays a record of a user's devices, or of what it has beside them.
fn replay_user(inbox: &mut Inbox, record: Record) {
    match record {
        Record::Connected(_, seen_s) => inbox.devices.replay_connected(seen_s),
        Record::Device(_, state) => inbox.devices.restore(state),
        Record::DeviceEnd(_, id) => drop(inbox.devices.remove(id)),
        Record::Blocked(_, blocked) => inbox.profile_mut().blocked = blocked,
        Record::Limits(_, limits) => inbox.profile_mut().limits = limits.shared(),
        Record::Used(_, used_s) => inbox.used_s = used_s,
        Record::Started(_, started) => inbox.profile_mut().started = started,
        Record::Token(_, token) => inbox.profile_mut().tokens.set(token),
        Record::TokenEnd(_, name) => drop(inbox.profile_mut().tokens.remove(&name)),
        Record::TokenUsed(_, name, used_s) => {
            inbox.profile_mut().tokens.replay_use(&name, used_s);
        }
        _ => {}
    }
}
