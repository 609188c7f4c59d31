//! [`Spans`]: the ages of the messages of a room, and their bytes by sender, in spans of
//! consecutive messages. Messages are forgotten by the span.
//!
//! A span ends when it is old or large enough, relative to the time and the bytes that
//! the room keeps. So a room has at most a few hundred spans, whatever its traffic, keeps
//! its messages for at most a sixteenth longer than it should, and loses about a sixteenth
//! of them at once.
//!
//! A span names at most [`SENDERS_MAX`] senders. If there are more, the newest one takes
//! over the bytes of the one with the fewest (the algorithm "space-saving"). So the bytes
//! of a sender are exact in rooms of few senders, and otherwise wrong by at most a 64th of
//! the bytes of the room.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::store::Position;

/// What a message takes beside its text, in bytes.
pub(super) const MESSAGE_BYTES: u64 = 32;

/// The part of a room's time and bytes that a span has at most.
const SPAN_DIVISOR: u32 = 16;

/// Bytes that a span may have in any case.
const SPAN_BYTES_MIN: u64 = 4 * 1024;

/// The most senders that a span names.
const SENDERS_MAX: usize = 64;

/// Returns the bytes of a text that count for quotas.
pub(super) const fn counted_bytes(text_bytes: usize) -> u64 {
    text_bytes as u64 + MESSAGE_BYTES
}

/// Returns the bytes between two positions of a room that count for quotas.
pub(super) const fn bytes_between(head: Position, tail: Position) -> u64 {
    let messages = tail.messages.saturating_sub(head.messages);
    let beside = messages.saturating_mul(MESSAGE_BYTES);
    tail.bytes.saturating_sub(head.bytes).saturating_add(beside)
}

/// The messages of a room, in spans.
#[derive(Debug, Default)]
pub(super) struct Spans {
    /// In the order of their numbers. The last one takes the next message.
    spans: VecDeque<Span>,
    /// The bytes of each sender in all spans.
    totals: HashMap<u64, u64>,
    /// The spans and senders of the messages in the frame under construction.
    changed: Vec<(u64, u64)>,
}

/// Consecutive messages of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// The number of the first message.
    pub(super) first: u64,
    /// The age of the first message, by the retention clock.
    pub(super) since: Duration,
    /// The age of the last message.
    pub(super) until: Duration,
    /// The position of the last message.
    pub(super) end: Position,
    /// Accounts, and their bytes that count for quotas, in the order of the accounts.
    pub(super) senders: Vec<(u64, u64)>,
}

impl Span {
    fn find(&self, sender: u64) -> Result<usize, usize> {
        self.senders
            .binary_search_by_key(&sender, |(account, _)| *account)
    }

    fn bytes_of(&self, sender: u64) -> u64 {
        let entry = self.find(sender).ok().and_then(|at| self.senders.get(at));
        entry.map_or(0, |(_, bytes)| *bytes)
    }

    /// Returns the bytes of all senders.
    fn bytes(&self) -> u64 {
        let bytes = self.senders.iter().map(|(_, bytes)| *bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// Sets the bytes of a sender, which is not named without any.
    fn set_bytes_of(&mut self, sender: u64, bytes: u64, totals: &mut HashMap<u64, u64>) {
        let before = self.bytes_of(sender);
        match self.find(sender) {
            Ok(at) if bytes == 0 => drop(self.senders.remove(at)),
            Ok(at) => {
                if let Some(entry) = self.senders.get_mut(at) {
                    entry.1 = bytes;
                }
            }
            Err(_) if bytes == 0 => {}
            Err(at) => self.senders.insert(at, (sender, bytes)),
        }
        change_total(totals, sender, before, bytes);
    }

    /// Returns the sender to give way to another one, and its bytes, if there is no room for
    /// one more.
    fn smallest_if_full(&self) -> Option<(u64, u64)> {
        let senders = self.senders.iter().copied();
        let smallest = senders.min_by_key(|(_, bytes)| *bytes);
        smallest.filter(|_| self.senders.len() >= SENDERS_MAX)
    }

    /// Returns the span with the present bytes of these senders alone.
    fn of_senders(&self, senders: impl Iterator<Item = u64>) -> Self {
        Self {
            senders: senders
                .map(|sender| (sender, self.bytes_of(sender)))
                .collect(),
            ..*self
        }
    }
}

/// Replaces a part of the bytes of a sender. Without any, it has no entry.
fn change_total(totals: &mut HashMap<u64, u64>, sender: u64, before: u64, after: u64) {
    let total = totals.entry(sender).or_default();
    *total = total.saturating_sub(before).saturating_add(after);
    if *total == 0 {
        totals.remove(&sender);
    }
}

impl Spans {
    /// Adds the message at `position`, which has this many bytes of text. A span takes at
    /// most its part of `keep`, and of the `held` bytes of the room.
    pub(super) fn push(
        &mut self,
        (position, text_bytes): (Position, usize),
        sender: u64,
        (now, keep): (Duration, Duration),
        held: u64,
    ) {
        let bytes_max = SPAN_BYTES_MIN.max(held / u64::from(SPAN_DIVISOR));
        let is_open = self.spans.back().is_some_and(|span| {
            now.saturating_sub(span.since) < keep / SPAN_DIVISOR && span.bytes() < bytes_max
        });
        if !is_open {
            self.spans.push_back(Span {
                first: position.sequence.0,
                since: now,
                until: now,
                end: position,
                senders: Vec::new(),
            });
        }
        let Some(span) = self.spans.back_mut() else {
            return;
        };
        (span.until, span.end) = (now, position);
        let mut before = span.bytes_of(sender);
        if before == 0
            && let Some((smallest, bytes)) = span.smallest_if_full()
        {
            span.set_bytes_of(smallest, 0, &mut self.totals);
            self.changed.push((span.first, smallest));
            before = bytes;
        }
        let bytes = before.saturating_add(counted_bytes(text_bytes));
        span.set_bytes_of(sender, bytes, &mut self.totals);
        let changed = (span.first, sender);
        if self.changed.last() != Some(&changed) {
            self.changed.push(changed);
        }
    }

    /// Returns the bytes of a sender that count for quotas.
    pub(super) fn bytes_of(&self, sender: u64) -> u64 {
        self.totals.get(&sender).copied().unwrap_or(0)
    }

    /// Returns the last message of the oldest span.
    pub(super) fn oldest(&self) -> Option<Position> {
        self.spans.front().map(|span| span.end)
    }

    /// Returns the age at which the oldest span will have been kept long enough.
    pub(super) fn expiry(&self, keep: Duration) -> Option<Duration> {
        let span = self.spans.front()?;
        Some(span.until.saturating_add(keep))
    }

    /// Removes the spans up to a position.
    pub(super) fn forget(&mut self, through: Position) {
        let is_gone = |span: &mut Span| span.end.sequence <= through.sequence;
        while let Some(span) = self.spans.pop_front_if(is_gone) {
            for (sender, bytes) in span.senders {
                change_total(&mut self.totals, sender, bytes, 0);
            }
        }
    }

    /// Takes the changes of the frame under construction: each span with the senders whose
    /// bytes changed. A span that was forgotten since is left out.
    pub(super) fn take_changes(&mut self) -> Vec<Span> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let runs = changed.chunk_by(|(first, _), (next, _)| first == next);
        let spans = runs.filter_map(|run| {
            let (first, _) = run.first()?;
            let at = self.spans.partition_point(|span| span.first < *first);
            let span = self.spans.get(at).filter(|span| span.first == *first)?;
            Some(span.of_senders(run.iter().map(|(_, sender)| *sender)))
        });
        spans.collect()
    }

    /// Returns the spans from a number on.
    pub(super) fn iter_from(&self, first: u64) -> impl Iterator<Item = &Span> {
        let at = self.spans.partition_point(|span| span.first < first);
        self.spans.range(at..)
    }

    /// Replays a span: it has these bounds, and these bytes of the senders that it names.
    pub(super) fn restore(&mut self, restored: Span) {
        let Self { spans, totals, .. } = self;
        let at = spans.partition_point(|span| span.first < restored.first);
        if spans
            .get(at)
            .is_none_or(|span| span.first != restored.first)
        {
            let senders = Vec::new();
            spans.insert(
                at,
                Span {
                    senders,
                    ..restored
                },
            );
        }
        if let Some(span) = spans.get_mut(at) {
            (span.since, span.until) = (restored.since, restored.until);
            span.end = restored.end;
            for (sender, bytes) in restored.senders {
                span.set_bytes_of(sender, bytes, totals);
            }
        }
    }

    /// Returns the bytes of all senders.
    #[cfg(test)]
    pub(in crate::ledger) fn totals(&self) -> std::collections::BTreeMap<u64, u64> {
        self.totals
            .iter()
            .map(|(of, bytes)| (*of, *bytes))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Sequence;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const KEEP: Duration = Duration::from_secs(32 * 24 * 3600);

    fn at(number: u64) -> Position {
        Position {
            sequence: Sequence(number),
            messages: number,
            bytes: number * 100,
        }
    }

    #[test]
    fn span_lasts_a_sixteenth_of_the_time() {
        let mut spans = Spans::default();
        for day in 0..10 {
            spans.push((at(day + 1), 100), 7, (DAY * day as u32, KEEP), 0);
        }
        let first: Vec<_> = spans.iter_from(0).map(|span| span.first).collect();
        assert_eq!(first, [1, 3, 5, 7, 9]);
        assert_eq!(spans.expiry(KEEP), Some(DAY + KEEP));
        assert_eq!(spans.oldest(), Some(at(2)));
        spans.forget(at(2));
        assert_eq!(spans.expiry(KEEP), Some(3 * DAY + KEEP));
        spans.forget(at(10));
        assert_eq!(spans.expiry(KEEP), None);
    }

    #[test]
    fn large_room_has_large_spans() {
        let mut spans = Spans::default();
        let (mut held, mut number) = (0, 0);
        while held < 256 << 20 {
            number += 1;
            spans.push((at(number), 4064), number % 3, (DAY, KEEP), held);
            held += counted_bytes(4064);
        }
        let count = spans.iter_from(0).count();
        assert!((100..250).contains(&count), "{count} spans");
        let largest = spans.iter_from(0).map(Span::bytes).max().unwrap();
        assert!(largest <= (256 << 20) / 16 + 8192, "{largest} bytes");
        let by_sender: u64 = (0..3).map(|sender| spans.bytes_of(sender)).sum();
        assert_eq!(by_sender, held);
    }

    #[test]
    fn restored_spans_equal_the_pushed_ones() {
        let (mut pushed, mut restored) = (Spans::default(), Spans::default());
        for day in 0..40 {
            let now = DAY * (day as u32 / 3);
            pushed.push((at(day + 1), 100), day % 5, (now, KEEP), 0);
            if day % 4 != 3 {
                continue;
            }
            // A frame may end one span and begin the next.
            let frame = pushed.take_changes();
            for _ in 0..2 {
                frame.iter().for_each(|span| restored.restore(span.clone()));
            }
            assert_same(&restored, &pushed);
        }
    }

    #[track_caller]
    fn assert_same(restored: &Spans, pushed: &Spans) {
        let all = |spans: &Spans| spans.iter_from(0).cloned().collect::<Vec<_>>();
        assert_eq!(all(restored), all(pushed));
        assert_eq!(restored.totals, pushed.totals);
    }

    #[test]
    fn many_senders_take_bounded_memory() {
        let (mut pushed, mut restored) = (Spans::default(), Spans::default());
        let (mut held, mut of_first) = (0, 0);
        for number in 1..=20_000 {
            // One of three messages is of the first sender.
            let sender = if number % 3 == 0 { 0 } else { number };
            pushed.push((at(number), 68), sender, (DAY, KEEP), held);
            held += 100;
            of_first += u64::from(sender == 0) * 100;
            if number % 7 == 0 {
                for span in pushed.take_changes() {
                    restored.restore(span);
                }
            }
        }
        pushed
            .take_changes()
            .into_iter()
            .for_each(|span| restored.restore(span));
        assert_same(&restored, &pushed);
        assert!(
            pushed
                .spans
                .iter()
                .all(|span| span.senders.len() <= SENDERS_MAX)
        );
        let counted = pushed.bytes_of(0);
        let error = counted.abs_diff(of_first);
        assert!(
            error <= held / SENDERS_MAX as u64,
            "{counted} of {of_first}"
        );
        pushed.forget(at(20_000));
        assert!(pushed.totals.is_empty());
    }

    #[test]
    fn small_room_has_small_spans() {
        let mut spans = Spans::default();
        for number in 1..=100 {
            spans.push((at(number), 1000), 7, (DAY, KEEP), number * 1032);
        }
        let largest = spans.iter_from(0).map(Span::bytes).max().unwrap();
        assert!(largest <= 2 * SPAN_BYTES_MIN, "{largest} bytes");
    }
}
