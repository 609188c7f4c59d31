//! [`DedupTable`]: the outcomes of the last 1,024 sends of a session. It has no I/O and
//! no clock.

use hark_protocol::limits::OUTCOMES_REMEMBERED;
use hark_protocol::{Code, Sequence};

use super::bytes::{put_near, put_number, take_byte, take_near, take_number};
use crate::store::Outcome;

/// Consecutive ids of a session whose outcomes continue each other: messages
/// that were stored under consecutive numbers, or refusals with one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutcomeRun {
    /// The first id.
    pub(crate) first: u32,
    /// The number of ids, at least 1.
    pub(crate) length: u32,
    /// The outcome of the first id.
    pub(crate) outcome: Outcome,
}

impl OutcomeRun {
    /// Returns a run of one id.
    pub(crate) const fn of(id: u32, outcome: Outcome) -> Self {
        Self {
            first: id,
            length: 1,
            outcome,
        }
    }

    /// Returns the id after the last one.
    pub(crate) const fn end(self) -> u64 {
        self.first as u64 + self.length as u64
    }

    /// Returns its ids.
    pub(crate) fn ids(self) -> impl Iterator<Item = u32> {
        (0..self.length).map(move |nth| self.first.wrapping_add(nth))
    }

    /// Returns the outcome of an id that is in this run, or of one that continues it.
    pub(crate) fn outcome_of(self, id: u32) -> Outcome {
        match self.outcome {
            Outcome::Stored(Sequence(number)) => Outcome::Stored(Sequence(
                number.wrapping_add(u64::from(id.wrapping_sub(self.first))),
            )),
            refused @ Outcome::Refused(_) => refused,
        }
    }

    /// Returns the run without its first ids; `None` if none is left.
    fn without(self, ids: u32) -> Option<Self> {
        let first = self.first.wrapping_add(ids);
        let length = self.length.checked_sub(ids).filter(|length| *length > 0)?;
        Some(Self {
            first,
            length,
            outcome: self.outcome_of(first),
        })
    }

    /// Returns whether `id` with this outcome directly continues the run.
    pub(crate) fn is_continued_by(self, id: u32, outcome: Outcome) -> bool {
        self.end() == u64::from(id) && self.outcome_of(id) == outcome
    }
}

/// The outcomes of the last 1,024 sends of a session. Skipped ids have no entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct DedupTable {
    /// The highest id with an outcome, 0 for none.
    highest: u32,
    /// The number of ids in all runs.
    remembered: u32,
    /// The runs before the last, in the order of their ids; two that continue each
    /// other are one.
    packed: PackedRuns,
    last: Option<OutcomeRun>,
}

/// The state of an id in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is above every id with an outcome.
    New,
    /// It has an outcome.
    Decided(Outcome),
    /// It was skipped: it is above every forgotten id.
    Skipped,
    /// It may be too old to be remembered.
    Expired,
}

impl DedupTable {
    /// Restores a table from its runs. Returns `None` if they are out of order or too
    /// many.
    pub(crate) fn from_runs(highest: u32, runs: Vec<OutcomeRun>) -> Option<Self> {
        let mut previous_end = 1;
        let mut remembered = 0_usize;
        for run in &runs {
            if run.length == 0 || u64::from(run.first) < previous_end {
                return None;
            }
            previous_end = run.end();
            remembered = remembered.checked_add(usize::try_from(run.length).ok()?)?;
        }
        let fits = remembered <= OUTCOMES_REMEMBERED && previous_end <= u64::from(highest) + 1;
        fits.then(|| Self::of(highest, remembered as u32, runs))
    }

    fn of(highest: u32, remembered: u32, runs: Vec<OutcomeRun>) -> Self {
        let mut table = Self {
            highest,
            remembered,
            ..Self::default()
        };
        runs.into_iter().for_each(|run| table.push(run));
        table
    }

    /// Returns the highest id with an outcome, 0 for none.
    pub(crate) const fn highest(&self) -> u32 {
        self.highest
    }

    /// Returns the runs, in the order of their ids.
    pub(crate) fn runs(&self) -> impl Iterator<Item = OutcomeRun> {
        self.packed.iter().chain(self.last)
    }

    /// Returns its heap size in bytes.
    pub(crate) const fn heap_bytes(&self) -> usize {
        self.packed.bytes.capacity()
    }

    /// Returns the number of remembered outcomes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const fn remembered(&self) -> usize {
        self.remembered as usize
    }

    /// Looks up an id.
    pub(crate) fn look_up(&self, id: u32) -> Known {
        if id > self.highest {
            return Known::New;
        }
        match self.runs().take_while(|run| run.first <= id).last() {
            Some(run) if u64::from(id) < run.end() => Known::Decided(run.outcome_of(id)),
            None if self.remembered as usize >= OUTCOMES_REMEMBERED => Known::Expired,
            _ => Known::Skipped,
        }
    }

    /// Records the outcome of an id. An earlier outcome of the same id stays.
    pub(crate) fn record(&mut self, id: u32, outcome: Outcome) {
        if id > self.highest {
            // The usual case.
            match &mut self.last {
                Some(last) if last.is_continued_by(id, outcome) => last.length += 1,
                _ => self.push(OutcomeRun::of(id, outcome)),
            }
            self.highest = id;
        } else if matches!(self.look_up(id), Known::Decided(_)) {
            return;
        } else {
            self.insert(OutcomeRun::of(id, outcome));
        }
        self.remembered += 1;
        if self.remembered as usize > OUTCOMES_REMEMBERED {
            self.forget_oldest();
        }
    }

    /// Appends a run.
    fn push(&mut self, run: OutcomeRun) {
        if let Some(last) = self.last.replace(run) {
            self.packed.push(last);
        }
    }

    /// Inserts a run among the others.
    fn insert(&mut self, run: OutcomeRun) {
        let mut runs: Vec<_> = self.runs().collect();
        let at = runs.partition_point(|other| other.first < run.first);
        runs.insert(at, run);
        runs.dedup_by(|next, run| {
            let is_continued = run.is_continued_by(next.first, next.outcome);
            if is_continued {
                run.length += next.length;
            }
            is_continued
        });
        *self = Self::of(self.highest, self.remembered, runs);
    }

    fn forget_oldest(&mut self) {
        self.remembered -= 1;
        if !self.packed.forget_oldest() {
            self.last = self.last.and_then(|run| run.without(1));
        }
    }
}

impl PartialEq for DedupTable {
    fn eq(&self, other: &Self) -> bool {
        self.highest == other.highest && self.runs().eq(other.runs())
    }
}

impl Eq for DedupTable {}

/// Runs in a few bytes each, oldest first.
///
/// A run is a byte: 0 for stored messages, or 1 + the index of the code, plus
/// [`IS_NEXT`] if it is a single id directly after the previous run. Otherwise the
/// number of skipped ids follows, and the length. For stored messages their first
/// number follows, as the difference from the previous run.
#[derive(Debug, Clone, Default)]
struct PackedRuns {
    bytes: Vec<u8>,
    /// The offset of the first run.
    start: usize,
    /// The end of the run before the first, and that of the last one.
    before: RunEnd,
    end: RunEnd,
    /// Forgotten ids of the first run.
    forgotten: u32,
}

const IS_NEXT: u8 = 0x80;

/// The longest packed run.
const PACKED_BYTES_MAX: usize = 32;

/// The minimum growth of the memory.
const GROWTH_MIN: usize = 64;

/// The end of a run, relative to which the next one is written.
#[derive(Debug, Clone, Copy, Default)]
struct RunEnd {
    /// The id after the last one.
    id: u64,
    /// The number after the last assigned one.
    number: u64,
}

impl PackedRuns {
    fn iter(&self) -> impl Iterator<Item = OutcomeRun> {
        let mut rest = self.bytes.get(self.start..).unwrap_or_default();
        let (mut end, mut forgotten) = (self.before, self.forgotten);
        std::iter::from_fn(move || end.take(&mut rest)?.without(std::mem::take(&mut forgotten)))
    }

    fn push(&mut self, run: OutcomeRun) {
        if self.bytes.capacity() - self.bytes.len() < PACKED_BYTES_MAX {
            self.bytes.drain(..self.start);
            self.start = 0;
            // Less than the usual doubling, because there are many tables.
            let more = GROWTH_MIN.max(self.bytes.len() / 8);
            if self.bytes.capacity() - self.bytes.len() < more {
                self.bytes.reserve_exact(more);
            }
        }
        self.end.put(&mut self.bytes, run);
    }

    /// Forgets the first id. Returns whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let mut rest = self.bytes.get(self.start..).unwrap_or_default();
        let mut end = self.before;
        let Some(run) = end.take(&mut rest) else {
            return false;
        };
        self.forgotten += 1;
        if self.forgotten == run.length {
            self.start = self.bytes.len() - rest.len();
            (self.before, self.forgotten) = (end, 0);
        }
        true
    }
}

impl RunEnd {
    fn put(&mut self, bytes: &mut Vec<u8>, run: OutcomeRun) {
        let kind = match run.outcome {
            Outcome::Stored(_) => 0,
            Outcome::Refused(code) => 1 + code.index(),
        };
        if run.length == 1 && u64::from(run.first) == self.id {
            bytes.push(kind | IS_NEXT);
        } else {
            bytes.push(kind);
            put_number(bytes, u64::from(run.first).saturating_sub(self.id));
            put_number(bytes, u64::from(run.length));
        }
        if let Outcome::Stored(Sequence(number)) = run.outcome {
            put_near(bytes, self.number, number);
        }
        self.pass(run);
    }

    fn take(&mut self, rest: &mut &[u8]) -> Option<OutcomeRun> {
        let kind = take_byte(rest).ok()?;
        let (skipped, length) = match kind & IS_NEXT {
            0 => (take_number(rest).ok()?, take_number(rest).ok()?),
            _ => (0, 1),
        };
        let outcome = match (kind & !IS_NEXT).checked_sub(1) {
            None => Outcome::Stored(Sequence(take_near(rest, self.number).ok()?)),
            Some(place) => Outcome::Refused(*Code::ALL.get(usize::from(place))?),
        };
        let run = OutcomeRun {
            first: (self.id + skipped) as u32,
            length: length as u32,
            outcome,
        };
        self.pass(run);
        Some(run)
    }

    fn pass(&mut self, run: OutcomeRun) {
        self.id = run.end();
        if let Outcome::Stored(Sequence(number)) = run.outcome {
            self.number = number.wrapping_add(u64::from(run.length));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn stored(number: u64) -> Outcome {
        Outcome::Stored(Sequence(number))
    }

    const FULL: Outcome = Outcome::Refused(Code::QueueFull);

    #[test]
    fn skipped_id_is_not_taken_for_decided() {
        let mut table = DedupTable::default();
        assert_eq!(table.look_up(1), Known::New);
        table.record(2, stored(70));
        table.record(3, stored(71));
        table.record(5, FULL);
        table.record(6, stored(90));
        let expected = [
            (1, Known::Skipped),
            (2, Known::Decided(stored(70))),
            (3, Known::Decided(stored(71))),
            (4, Known::Skipped),
            (5, Known::Decided(FULL)),
            (6, Known::Decided(stored(90))),
            (7, Known::New),
        ];
        for (id, known) in expected {
            assert_eq!(table.look_up(id), known, "{id}");
        }
    }

    #[test]
    fn consecutive_numbers_of_consecutive_ids_are_one_run() {
        let mut table = DedupTable::default();
        (1..=9).for_each(|id| table.record(id, stored(100 + u64::from(id))));
        assert_eq!(table.runs().count(), 1);
        table.record(10, stored(111));
        assert_eq!(table.runs().count(), 2, "the number 110 went elsewhere");
        assert_eq!(table.look_up(7), Known::Decided(stored(107)));
    }

    #[test]
    fn last_1024_outcomes_are_remembered_across_gaps() {
        for step in [1, 2, 3] {
            let mut table = DedupTable::default();
            for nth in 1..=2000 {
                table.record(nth * step, stored(u64::from(nth)));
            }
            assert_eq!(table.remembered(), OUTCOMES_REMEMBERED);
            assert_eq!(table.look_up(976 * step), Known::Expired);
            assert_eq!(table.look_up(977 * step), Known::Decided(stored(977)));
        }
    }

    #[test]
    fn order_of_arrival_does_not_change_the_table() {
        let outcome = |id| {
            if id % 10 == 0 {
                FULL
            } else {
                stored(5000 + u64::from(id))
            }
        };
        let mut in_order = DedupTable::default();
        (1..=1024).for_each(|id| in_order.record(id, outcome(id)));
        for step in [3, 7, 1023] {
            let mut table = DedupTable::default();
            for nth in 0..1024 {
                let id = 1 + nth * step % 1024;
                assert!(!matches!(table.look_up(id), Known::Decided(_)));
                table.record(id, outcome(id));
            }
            assert_eq!(table, in_order);
        }
    }

    #[test]
    fn id_below_a_full_table_has_expired() {
        let mut table = DedupTable::default();
        (2..=1025).for_each(|nth| table.record(2 * nth, stored(1)));
        assert_eq!(table.look_up(3), Known::Expired);
        assert_eq!(table.look_up(5), Known::Skipped);
        table.record(5, stored(2));
        assert_eq!(table.remembered(), OUTCOMES_REMEMBERED);
        assert_eq!(table.look_up(4), Known::Expired, "forgotten for it");
        assert_eq!(table.look_up(5), Known::Decided(stored(2)));
    }

    #[test]
    fn alternating_outcomes_take_few_bytes() {
        let mut table = DedupTable::default();
        for id in 1..=5000 {
            let outcome = if id % 2 == 0 {
                FULL
            } else {
                stored((1 << 50) | (u64::from(id) * 37))
            };
            table.record(id, outcome);
            assert_eq!(table.look_up(id), Known::Decided(outcome));
        }
        assert_eq!(table.runs().count(), OUTCOMES_REMEMBERED);
        assert!(table.heap_bytes() < 2500, "{}", table.heap_bytes());
        assert_eq!(
            DedupTable::from_runs(5000, table.runs().collect()),
            Some(table)
        );
    }

    #[test]
    fn outcome_that_is_recorded_twice_counts_once() {
        let mut table = DedupTable::default();
        (1..=3).for_each(|id| table.record(id, stored(u64::from(id))));
        let before = table.clone();
        (1..=3).for_each(|id| table.record(id, stored(u64::from(id))));
        assert_eq!(table, before);
    }

    #[test]
    fn overlapping_and_excessive_runs_are_refused() {
        let run = |first, length| OutcomeRun {
            first,
            length,
            outcome: FULL,
        };
        assert!(DedupTable::from_runs(9, vec![run(1, 3), run(4, 6)]).is_some());
        assert!(DedupTable::from_runs(9, vec![run(1, 3), run(3, 1)]).is_none());
        assert!(DedupTable::from_runs(9, vec![run(0, 1)]).is_none());
        assert!(DedupTable::from_runs(9, vec![run(1, 0)]).is_none());
        assert!(DedupTable::from_runs(9, vec![run(9, 2)]).is_none());
        assert!(DedupTable::from_runs(5000, vec![run(1, 1025)]).is_none());
        assert!(DedupTable::from_runs(u32::MAX, vec![run(u32::MAX, u32::MAX)]).is_none());
    }
}
