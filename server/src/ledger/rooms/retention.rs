//! [`Spans`]: the ages of the messages of a room, and their bytes by sender, in spans of
//! consecutive messages. Messages are forgotten by the span.
//!
//! A span ends when it is old or large enough, relative to the time and the bytes that
//! the room keeps. So a room has a few dozen spans, whatever its traffic, and keeps its
//! messages for at most a sixteenth longer than it should.

use std::collections::VecDeque;
use std::time::Duration;

use crate::store::Position;

/// What a message takes beside its text, in bytes.
pub(super) const MESSAGE_BYTES: u64 = 32;

/// The part of a room's time and bytes that a span has at most.
const SPAN_DIVISOR: u32 = 16;

/// Bytes that a span may have in any case.
const SPAN_BYTES_MIN: u64 = 64 * 1024;

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
    /// The bytes of all senders.
    bytes: u64,
}

impl Span {
    /// Returns a span with these bounds and without messages.
    pub(super) const fn new(
        first: u64,
        (since, until): (Duration, Duration),
        end: Position,
    ) -> Self {
        Self {
            first,
            since,
            until,
            end,
            senders: Vec::new(),
            bytes: 0,
        }
    }

    fn bytes_of(&self, sender: u64) -> u64 {
        let found = self
            .senders
            .binary_search_by_key(&sender, |(account, _)| *account);
        let entry = found.ok().and_then(|at| self.senders.get(at));
        entry.map_or(0, |(_, bytes)| *bytes)
    }

    /// Sets the bytes of a sender.
    pub(super) fn set_bytes_of(&mut self, sender: u64, bytes: u64) {
        let found = self
            .senders
            .binary_search_by_key(&sender, |(account, _)| *account);
        match found {
            Ok(at) => {
                if let Some((_, before)) = self.senders.get_mut(at) {
                    self.bytes = self.bytes.saturating_sub(*before).saturating_add(bytes);
                    *before = bytes;
                }
            }
            Err(at) => {
                self.senders.insert(at, (sender, bytes));
                self.bytes = self.bytes.saturating_add(bytes);
            }
        }
    }

    /// Returns the span with these senders alone.
    fn of_senders(&self, senders: impl Iterator<Item = u64>) -> Self {
        let mut span = Self::new(self.first, (self.since, self.until), self.end);
        for sender in senders {
            span.set_bytes_of(sender, self.bytes_of(sender));
        }
        span
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
            now.saturating_sub(span.since) < keep / SPAN_DIVISOR && span.bytes < bytes_max
        });
        if !is_open {
            self.spans
                .push_back(Span::new(position.sequence.0, (now, now), position));
        }
        let Some(span) = self.spans.back_mut() else {
            return;
        };
        span.until = now;
        span.end = position;
        let bytes = span.bytes_of(sender) + counted_bytes(text_bytes);
        span.set_bytes_of(sender, bytes);
        let changed = (span.first, sender);
        if self.changed.last() != Some(&changed) {
            self.changed.push(changed);
        }
    }

    /// Returns the bytes of a sender that count for quotas.
    pub(super) fn bytes_of(&self, sender: u64) -> u64 {
        self.spans.iter().map(|span| span.bytes_of(sender)).sum()
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
        while self
            .spans
            .pop_front_if(|span| span.end.sequence <= through.sequence)
            .is_some()
        {}
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
        let at = self
            .spans
            .partition_point(|span| span.first < restored.first);
        match self.spans.get_mut(at) {
            Some(span) if span.first == restored.first => {
                (span.since, span.until) = (restored.since, restored.until);
                span.end = restored.end;
                for (sender, bytes) in restored.senders {
                    span.set_bytes_of(sender, bytes);
                }
            }
            _ => self.spans.insert(at, restored),
        }
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
        assert!((50..150).contains(&count), "{count} spans");
        let largest = spans.iter_from(0).map(|span| span.bytes).max().unwrap();
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
            let all = |spans: &Spans| spans.iter_from(0).cloned().collect::<Vec<_>>();
            assert_eq!(all(&restored), all(&pushed));
        }
    }
}
