//! [`Totals`]: running totals of a ledger for the metrics of a server, so that no figure
//! needs a scan of the accounts. They begin with one scan when the store opens.

use std::collections::VecDeque;
use std::time::Duration;

use super::Ledger;
use super::inboxes::Inbox;
use crate::store::Position;

/// The unit of the times of unacknowledged messages, in seconds.
const UNIT_S: u64 = 15;

/// The most units of time whose last numbers are kept: about a week with messages in each.
const NUMBERS_MAX: usize = 40_000;

/// The totals of a ledger.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// The unacknowledged messages of all inboxes.
    pub(crate) queued_messages: u64,
    /// The bytes of their texts.
    pub(crate) queued_bytes: u64,
    /// The memberships of all rooms.
    pub(crate) members: u64,
    /// The devices of all users.
    pub(crate) devices: u64,
    /// The time of the frame, in units of running time.
    now: u32,
    /// The number of inboxes by the time of their oldest unacknowledged message, the oldest
    /// first.
    inboxes: VecDeque<(u32, u64)>,
    /// The last number of each unit of time with messages since the oldest unacknowledged
    /// one, the oldest first. The oldest entry may stand for several units.
    numbers: VecDeque<(u64, u32)>,
}

impl Totals {
    /// Begins a frame at a running time.
    pub(super) fn begin(&mut self, running: Duration) {
        self.now = self.now.max(units(running));
    }

    /// Returns the age of the oldest unacknowledged message of all inboxes, in steps of 15
    /// seconds. If its inbox was never empty since, the age may be that of another message
    /// behind the last acknowledged one. Messages of before the start of the process count
    /// from then on.
    pub(crate) fn oldest_unread(&self, running: Duration) -> Duration {
        let oldest = self.inboxes.iter().find(|(_, count)| *count > 0);
        oldest.map_or(Duration::ZERO, |(since, _)| {
            let age = u64::from(units(running).saturating_sub(*since));
            Duration::from_secs(age * UNIT_S)
        })
    }

    #[cfg(test)]
    pub(super) fn unread_inboxes(&self) -> u64 {
        self.inboxes.iter().map(|(_, count)| *count).sum()
    }

    fn add_inbox(&mut self, since: u32) {
        match self.inboxes.back_mut() {
            Some((last, count)) if *last == since => *count += 1,
            Some((last, _)) if *last > since => match self.place(since) {
                Ok(at) => {
                    if let Some((_, count)) = self.inboxes.get_mut(at) {
                        *count += 1;
                    }
                }
                Err(at) => self.inboxes.insert(at, (since, 1)),
            },
            _ => self.inboxes.push_back((since, 1)),
        }
    }

    fn remove_inbox(&mut self, since: u32) {
        if let Ok(at) = self.place(since)
            && let Some((_, count)) = self.inboxes.get_mut(at)
        {
            *count = count.saturating_sub(1);
        }
        while self.inboxes.front().is_some_and(|(_, count)| *count == 0) {
            self.inboxes.pop_front();
        }
    }

    fn place(&self, since: u32) -> Result<usize, usize> {
        let last = self.inboxes.len().saturating_sub(1);
        match self.inboxes.back() {
            Some((back, _)) if *back == since => Ok(last),
            _ => self.inboxes.binary_search_by_key(&since, |(unit, _)| *unit),
        }
    }

    /// Notes the number of a message of this frame.
    fn note_number(&mut self, number: u64) {
        match self.numbers.back_mut() {
            Some((last, unit)) if *unit == self.now => *last = number,
            _ => {
                let oldest = self.inboxes.front().map_or(self.now, |(since, _)| *since);
                while self.numbers.front().is_some_and(|(_, unit)| *unit < oldest) {
                    self.numbers.pop_front();
                }
                self.numbers.push_back((number, self.now));
                if self.numbers.len() > NUMBERS_MAX
                    && let Some((_, oldest)) = self.numbers.pop_front()
                    && let Some((_, unit)) = self.numbers.front_mut()
                {
                    *unit = oldest;
                }
            }
        }
    }

    /// Returns the time of the first message behind a number.
    fn time_after(&self, number: u64) -> u32 {
        let at = self.numbers.partition_point(|(last, _)| *last <= number);
        self.numbers.get(at).map_or(self.now, |(_, unit)| *unit)
    }
}

fn units(running: Duration) -> u32 {
    u32::try_from(running.as_secs() / UNIT_S).unwrap_or(u32::MAX)
}

impl Inbox {
    /// Counts a message that was stored, before which the inbox ended at `former`.
    pub(super) fn count_stored(&mut self, former: Position, totals: &mut Totals) {
        let (head, tail) = (self.log.head, self.log.tail);
        totals.queued_messages += 1;
        totals.queued_bytes += tail.bytes.saturating_sub(former.bytes);
        totals.note_number(tail.sequence.0);
        if former.messages == head.messages {
            self.unread_since = totals.now;
            totals.add_inbox(self.unread_since);
        }
    }

    /// Counts messages that were forgotten, before which the inbox began at `former`.
    pub(super) fn count_forgotten(&mut self, former: Position, totals: &mut Totals) {
        let (head, tail) = (self.log.head, self.log.tail);
        let messages = head.messages.saturating_sub(former.messages);
        if messages == 0 {
            return;
        }
        totals.queued_messages = totals.queued_messages.saturating_sub(messages);
        let bytes = head.bytes.saturating_sub(former.bytes);
        totals.queued_bytes = totals.queued_bytes.saturating_sub(bytes);
        let since = totals.time_after(head.sequence.0);
        if head.messages >= tail.messages {
            totals.remove_inbox(self.unread_since);
        } else if since > self.unread_since {
            totals.remove_inbox(self.unread_since);
            self.unread_since = since;
            totals.add_inbox(since);
        }
    }

    /// Counts the end of the inbox.
    pub(super) fn count_end(&self, totals: &mut Totals) {
        let (head, tail) = (self.log.head, self.log.tail);
        let messages = self.log.messages();
        totals.queued_messages = totals.queued_messages.saturating_sub(messages);
        let bytes = tail.bytes.saturating_sub(head.bytes);
        totals.queued_bytes = totals.queued_bytes.saturating_sub(bytes);
        if messages > 0 {
            totals.remove_inbox(self.unread_since);
        }
        let devices = self.devices.count();
        totals.devices = totals.devices.saturating_sub(devices);
    }
}

impl Ledger {
    /// Counts everything, at the open of a store.
    pub(crate) fn count(&mut self, running: Duration) -> Totals {
        let mut totals = Totals::default();
        totals.begin(running);
        totals.members = self.rooms.member_count();
        for inbox in self.inboxes.iter_mut() {
            totals.devices += inbox.devices.count();
            let messages = inbox.log.messages();
            if messages > 0 {
                totals.queued_messages += messages;
                let (head, tail) = (inbox.log.head, inbox.log.tail);
                totals.queued_bytes += tail.bytes.saturating_sub(head.bytes);
                inbox.unread_since = totals.now;
                totals.add_inbox(totals.now);
            }
        }
        totals
    }

    /// Returns the number of rooms.
    pub(crate) fn room_count(&self) -> usize {
        self.rooms.len()
    }
}
