//! How the sends of a session were decided: the last 1,024 of them, exactly.
//! Without I/O and without a clock.

use std::collections::VecDeque;

use hark_protocol::limits::OUTCOMES_REMEMBERED;

use super::Outcome;

/// Ids that follow each other and were decided alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first id.
    pub(super) first: u32,
    /// How many there are, at least 1.
    pub(super) length: u32,
    /// How each was decided.
    pub(super) outcome: Outcome,
}

impl Run {
    const fn end(self) -> u64 {
        self.first as u64 + self.length as u64
    }
}

/// The outcomes of the last 1,024 sends of a session, exactly: an id that was
/// left out is not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    highest: u32,
    runs: VecDeque<Run>,
    remembered: usize,
}

/// What is known of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It is above every id that was decided.
    New,
    /// It was decided.
    Decided(Outcome),
    /// It was left out: it is above every id that is forgotten.
    LeftOut,
    /// It may be too old to be remembered.
    Old,
}

impl Outcomes {
    /// Outcomes that were written earlier, or `None` where they cannot be: the
    /// runs are out of order, or there are too many.
    pub(super) fn from_runs(highest: u32, runs: Vec<Run>) -> Option<Self> {
        let mut previous_end = 0;
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

    /// The highest id that was decided, 0 where none was.
    pub(super) const fn highest(&self) -> u32 {
        self.highest
    }

    /// The runs, in the order of the ids.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// How many outcomes are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) const fn remembered(&self) -> usize {
        self.remembered
    }

    /// Looks an id up.
    pub(super) fn look_up(&self, id: u32) -> Known {
        if id > self.highest {
            return Known::New;
        }
        let after = self.runs.partition_point(|run| run.first <= id);
        match after.checked_sub(1).and_then(|at| self.runs.get(at)) {
            Some(run) if u64::from(id) < run.end() => Known::Decided(run.outcome),
            None if self.remembered >= OUTCOMES_REMEMBERED => Known::Old,
            _ => Known::LeftOut,
        }
    }

    /// Remembers the outcome of an id that is new, or was left out.
    pub(super) fn record(&mut self, id: u32, outcome: Outcome) {
        let is_next = id > self.highest;
        match self.runs.back_mut() {
            // As nearly always.
            Some(last) if is_next && last.end() == u64::from(id) && last.outcome == outcome => {
                (last.length, self.highest) = (last.length + 1, id);
            }
            _ => self.insert(id, outcome, is_next),
        }
        self.remembered += 1;
        if self.remembered > OUTCOMES_REMEMBERED {
            self.forget_oldest();
        }
    }

    fn insert(&mut self, id: u32, outcome: Outcome, is_next: bool) {
        let at = if is_next { self.runs.len() } else { self.runs.partition_point(|run| run.first < id) };
        self.highest = self.highest.max(id);
        self.runs.insert(at, Run { first: id, length: 1, outcome });
        self.join(at + 1);
        self.join(at);
    }

    /// Makes one of the run at this place and the one before, where they follow
    /// each other and were decided alike.
    fn join(&mut self, at: usize) {
        let Some(before) = at.checked_sub(1) else { return };
        let Some(&run) = self.runs.get(at) else { return };
        let Some(former) = self.runs.get_mut(before) else { return };
        if former.end() == u64::from(run.first) && former.outcome == run.outcome {
            former.length += run.length;
            self.runs.remove(at);
        }
    }

    fn forget_oldest(&mut self) {
        let Some(run) = self.runs.front_mut() else { return };
        run.first += 1;
        run.length -= 1;
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

    #[test]
    fn an_id_that_was_left_out_is_not_taken_for_decided() {
        let mut outcomes = Outcomes::default();
        assert_eq!(outcomes.look_up(1), Known::New);
        outcomes.record(2, Outcome::Stored);
        outcomes.record(3, Outcome::Stored);
        outcomes.record(5, Outcome::Refused(Code::QueueFull));
        outcomes.record(6, Outcome::Stored);
        assert_eq!(outcomes.look_up(1), Known::LeftOut);
        assert_eq!(outcomes.look_up(2), Known::Decided(Outcome::Stored));
        assert_eq!(outcomes.look_up(3), Known::Decided(Outcome::Stored));
        assert_eq!(outcomes.look_up(4), Known::LeftOut);
        assert_eq!(outcomes.look_up(5), Known::Decided(Outcome::Refused(Code::QueueFull)));
        assert_eq!(outcomes.look_up(6), Known::Decided(Outcome::Stored));
        assert_eq!(outcomes.look_up(7), Known::New);
    }

    #[test]
    fn the_last_1024_outcomes_are_remembered_whatever_the_gaps() {
        for step in [1, 2, 3] {
            let mut outcomes = Outcomes::default();
            for nth in 1..=2000 {
                outcomes.record(nth * step, Outcome::Stored);
            }
            assert_eq!(outcomes.remembered(), OUTCOMES_REMEMBERED);
            assert_eq!(outcomes.look_up(976 * step), Known::Old);
            assert_eq!(outcomes.look_up(977 * step), Known::Decided(Outcome::Stored));
        }
    }

    #[test]
    fn ids_in_any_order_are_remembered_as_if_they_had_come_in_order() {
        let decided = |id| if id % 10 == 0 { Outcome::Refused(Code::QueueFull) } else { Outcome::Stored };
        let mut in_order = Outcomes::default();
        (1..=1024).for_each(|id| in_order.record(id, decided(id)));
        for step in [3, 7, 1023] {
            let mut outcomes = Outcomes::default();
            for nth in 0..1024 {
                let id = 1 + nth * step % 1024;
                assert!(!matches!(outcomes.look_up(id), Known::Decided(_)));
                outcomes.record(id, decided(id));
            }
            assert_eq!(outcomes, in_order);
        }
    }

    #[test]
    fn an_id_below_all_that_are_remembered_may_have_been_forgotten() {
        let mut outcomes = Outcomes::default();
        (2..=1025).for_each(|nth| outcomes.record(2 * nth, Outcome::Stored));
        assert_eq!(outcomes.look_up(3), Known::Old);
        assert_eq!(outcomes.look_up(5), Known::LeftOut);
        outcomes.record(5, Outcome::Stored);
        assert_eq!(outcomes.remembered(), OUTCOMES_REMEMBERED);
        assert_eq!(outcomes.look_up(4), Known::Old, "forgotten for it");
        assert_eq!(outcomes.look_up(5), Known::Decided(Outcome::Stored));
    }

    #[test]
    fn runs_that_overlap_or_are_too_many_are_refused() {
        let run = |first, length| Run { first, length, outcome: Outcome::Stored };
        assert!(Outcomes::from_runs(9, vec![run(1, 3), run(4, 6)]).is_some());
        assert!(Outcomes::from_runs(9, vec![run(1, 3), run(3, 1)]).is_none());
        assert!(Outcomes::from_runs(9, vec![run(1, 0)]).is_none());
        assert!(Outcomes::from_runs(9, vec![run(9, 2)]).is_none());
        assert!(Outcomes::from_runs(5000, vec![run(1, 1025)]).is_none());
        assert!(Outcomes::from_runs(u32::MAX, vec![run(u32::MAX, u32::MAX)]).is_none());
    }
}
