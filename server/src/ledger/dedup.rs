//! [`DedupTable`]: the outcomes of the last 1,024 sends of a session, exactly.
//! Without I/O and without a clock.

use std::collections::VecDeque;

use hark_protocol::Sequence;
use hark_protocol::limits::OUTCOMES_REMEMBERED;

use crate::store::Outcome;

/// Consecutive ids of a session whose outcomes continue each other: messages
/// that were stored under consecutive numbers, or refusals with one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first id.
    pub(crate) first: u32,
    /// The number of ids, at least 1.
    pub(crate) length: u32,
    /// The outcome of the first id.
    pub(crate) outcome: Outcome,
}

impl Run {
    /// Returns a run of one id.
    pub(crate) const fn of(id: u32, outcome: Outcome) -> Self {
        Self { first: id, length: 1, outcome }
    }

    /// Returns the id after the last one.
    pub(crate) const fn end(self) -> u64 {
        self.first as u64 + self.length as u64
    }

    /// Returns the outcome of an id that is in this run, or of one that continues it.
    pub(crate) fn outcome_of(self, id: u32) -> Outcome {
        match self.outcome {
            Outcome::Stored(Sequence(number)) => {
                Outcome::Stored(Sequence(number.wrapping_add(u64::from(id.wrapping_sub(self.first)))))
            }
            refused @ Outcome::Refused(_) => refused,
        }
    }

    /// Returns whether `id` and its outcome come right behind this run.
    pub(crate) fn is_continued_by(self, id: u32, outcome: Outcome) -> bool {
        self.end() == u64::from(id) && self.outcome_of(id) == outcome
    }
}

/// The outcomes of the last 1,024 sends of a session: an id that was skipped is
/// not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DedupTable {
    /// The highest id that was decided, 0 if none was.
    highest: u32,
    /// In the order of their ids; two that continue each other are one.
    runs: VecDeque<Run>,
    /// The number of ids in all runs.
    remembered: usize,
}

/// What a table knows about an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is above every id that was decided.
    New,
    /// It was decided.
    Decided(Outcome),
    /// It was skipped: it is above every id that is forgotten.
    Skipped,
    /// It may be too old to be remembered.
    Expired,
}

impl DedupTable {
    /// Restores a table from its runs, or returns `None` if no table has these:
    /// they are out of order or too many.
    pub(crate) fn from_runs(highest: u32, runs: Vec<Run>) -> Option<Self> {
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
        fits.then(|| Self { highest, runs: runs.into(), remembered })
    }

    /// Returns the highest id that was decided, 0 if none was.
    pub(crate) const fn highest(&self) -> u32 {
        self.highest
    }

    /// Returns the runs, in the order of their ids.
    pub(crate) fn runs(&self) -> impl ExactSizeIterator<Item = &Run> {
        self.runs.iter()
    }

    /// Returns the number of outcomes that are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const fn remembered(&self) -> usize {
        self.remembered
    }

    /// Looks an id up.
    pub(crate) fn look_up(&self, id: u32) -> Known {
        if id > self.highest {
            return Known::New;
        }
        let after = self.runs.partition_point(|run| run.first <= id);
        match after.checked_sub(1).and_then(|at| self.runs.get(at)) {
            Some(run) if u64::from(id) < run.end() => Known::Decided(run.outcome_of(id)),
            None if self.remembered >= OUTCOMES_REMEMBERED => Known::Expired,
            _ => Known::Skipped,
        }
    }

    /// Remembers the outcome of an id. An id that was decided before keeps its
    /// outcome.
    pub(crate) fn record(&mut self, id: u32, outcome: Outcome) {
        let last = self.runs.back_mut().filter(|last| last.is_continued_by(id, outcome));
        if id > self.highest
            && let Some(last) = last
        {
            // Nearly always.
            (last.length, self.highest) = (last.length + 1, id);
        } else if matches!(self.look_up(id), Known::Decided(_)) {
            return;
        } else {
            self.insert(Run::of(id, outcome));
        }
        self.remembered += 1;
        if self.remembered > OUTCOMES_REMEMBERED {
            self.forget_oldest();
        }
    }

    fn insert(&mut self, run: Run) {
        let at = self.runs.partition_point(|other| other.first < run.first);
        self.highest = self.highest.max(run.first);
        self.runs.insert(at, run);
        self.join(at + 1);
        self.join(at);
    }

    /// Joins the run at `at` to the one before, if it continues that one.
    fn join(&mut self, at: usize) {
        let Some(before) = at.checked_sub(1) else { return };
        let Some(&run) = self.runs.get(at) else { return };
        let Some(former) = self.runs.get_mut(before) else { return };
        if former.is_continued_by(run.first, run.outcome) {
            former.length += run.length;
            self.runs.remove(at);
        }
    }

    fn forget_oldest(&mut self) {
        let Some(run) = self.runs.front_mut() else { return };
        let next = run.first.wrapping_add(1);
        *run = Run { first: next, length: run.length - 1, outcome: run.outcome_of(next) };
        self.remembered -= 1;
        if run.length == 0 {
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Code;

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
        assert_eq!(table.runs().len(), 1);
        table.record(10, stored(111));
        assert_eq!(table.runs().len(), 2, "the number 110 went elsewhere");
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
        let outcome = |id| if id % 10 == 0 { FULL } else { stored(5000 + u64::from(id)) };
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
    fn outcome_that_is_recorded_twice_counts_once() {
        let mut table = DedupTable::default();
        (1..=3).for_each(|id| table.record(id, stored(u64::from(id))));
        let before = table.clone();
        (1..=3).for_each(|id| table.record(id, stored(u64::from(id))));
        assert_eq!(table, before);
    }

    #[test]
    fn overlapping_and_excessive_runs_are_refused() {
        let run = |first, length| Run { first, length, outcome: FULL };
        assert!(DedupTable::from_runs(9, vec![run(1, 3), run(4, 6)]).is_some());
        assert!(DedupTable::from_runs(9, vec![run(1, 3), run(3, 1)]).is_none());
        assert!(DedupTable::from_runs(9, vec![run(0, 1)]).is_none());
        assert!(DedupTable::from_runs(9, vec![run(1, 0)]).is_none());
        assert!(DedupTable::from_runs(9, vec![run(9, 2)]).is_none());
        assert!(DedupTable::from_runs(5000, vec![run(1, 1025)]).is_none());
        assert!(DedupTable::from_runs(u32::MAX, vec![run(u32::MAX, u32::MAX)]).is_none());
    }
}
