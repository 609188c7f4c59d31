//! How the sends of a session were decided: the last 1,024 of them, exactly.
//! Without I/O and without a clock.

use std::collections::VecDeque;

use hark_protocol::limits::OUTCOMES_REMEMBERED;

use super::Outcome;

/// A send that was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decided {
    /// Its id in the session, at least 1.
    pub(super) id: u32,
    /// The decision.
    pub(super) outcome: Outcome,
}

/// The outcomes of the last 1,024 sends of a session, exactly: an id that was
/// left out is not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    /// In the order of the ids.
    decided: VecDeque<Decided>,
}

/// The answer of [`Outcomes::look_up`].
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
    /// Returns outcomes that were written earlier, or `None` if no session can
    /// have them: the ids do not increase, or there are too many.
    pub(super) fn from_decided(decided: Vec<Decided>) -> Option<Self> {
        let increases = decided.is_sorted_by(|former, latter| former.id < latter.id);
        let is_numbered = decided.first().is_none_or(|first| first.id > 0);
        let fits = increases && is_numbered && decided.len() <= OUTCOMES_REMEMBERED;
        fits.then(|| Self { decided: decided.into() })
    }

    /// Returns the outcomes in the order of their ids.
    pub(super) fn decided(&self) -> impl Iterator<Item = &Decided> {
        self.decided.iter()
    }

    /// Returns whether nothing was decided yet.
    pub(super) fn is_empty(&self) -> bool {
        self.decided.is_empty()
    }

    /// Returns the number of outcomes that are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn remembered(&self) -> usize {
        self.decided.len()
    }

    /// Looks an id up.
    pub(super) fn look_up(&self, id: u32) -> Known {
        let at = self.decided.partition_point(|decided| decided.id < id);
        match self.decided.get(at) {
            None => Known::New,
            Some(decided) if decided.id == id => Known::Decided(decided.outcome),
            Some(_) if at == 0 && self.decided.len() >= OUTCOMES_REMEMBERED => Known::Old,
            Some(_) => Known::LeftOut,
        }
    }

    /// Remembers the outcome of an id that is new, or was left out.
    pub(super) fn record(&mut self, id: u32, outcome: Outcome) {
        // Before the insertion, so that the memory of 1,024 is enough.
        if self.decided.len() >= OUTCOMES_REMEMBERED {
            self.decided.pop_front();
        }
        let at = self.decided.partition_point(|decided| decided.id < id);
        self.decided.insert(at, Decided { id, outcome });
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::{Code, Sequence};

    use super::*;

    const fn stored(sequence: u64) -> Outcome {
        Outcome::Stored(Sequence(sequence))
    }

    #[test]
    fn an_id_that_was_left_out_is_not_taken_for_decided() {
        let mut outcomes = Outcomes::default();
        assert_eq!(outcomes.look_up(1), Known::New);
        outcomes.record(2, stored(20));
        outcomes.record(3, stored(30));
        outcomes.record(5, Outcome::Refused(Code::QueueFull));
        outcomes.record(6, stored(60));
        assert_eq!(outcomes.look_up(1), Known::LeftOut);
        assert_eq!(outcomes.look_up(2), Known::Decided(stored(20)));
        assert_eq!(outcomes.look_up(3), Known::Decided(stored(30)));
        assert_eq!(outcomes.look_up(4), Known::LeftOut);
        assert_eq!(outcomes.look_up(5), Known::Decided(Outcome::Refused(Code::QueueFull)));
        assert_eq!(outcomes.look_up(6), Known::Decided(stored(60)));
        assert_eq!(outcomes.look_up(7), Known::New);
    }

    #[test]
    fn the_last_1024_outcomes_are_remembered_whatever_the_gaps() {
        for step in [1, 2, 3] {
            let mut outcomes = Outcomes::default();
            for nth in 1..=2000 {
                outcomes.record(nth * step, stored(nth.into()));
            }
            assert_eq!(outcomes.remembered(), OUTCOMES_REMEMBERED);
            assert_eq!(outcomes.look_up(976 * step), Known::Old);
            assert_eq!(outcomes.look_up(977 * step), Known::Decided(stored(977)));
        }
    }

    #[test]
    fn ids_in_any_order_are_remembered_as_if_they_had_come_in_order() {
        let decided = |id: u32| {
            if id.is_multiple_of(10) { Outcome::Refused(Code::QueueFull) } else { stored(id.into()) }
        };
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
        (2..=1025).for_each(|nth| outcomes.record(2 * nth, stored(nth.into())));
        assert_eq!(outcomes.look_up(3), Known::Old);
        assert_eq!(outcomes.look_up(5), Known::LeftOut);
        outcomes.record(5, stored(5));
        assert_eq!(outcomes.remembered(), OUTCOMES_REMEMBERED);
        assert_eq!(outcomes.look_up(4), Known::Old, "forgotten for it");
        assert_eq!(outcomes.look_up(5), Known::Decided(stored(5)));
    }

    #[test]
    fn ids_that_do_not_increase_or_are_too_many_are_refused() {
        let from = |ids: &[u32]| {
            Outcomes::from_decided(ids.iter().map(|&id| Decided { id, outcome: stored(9) }).collect())
        };
        assert!(from(&[]).is_some());
        assert!(from(&[1, 2, 4]).is_some());
        assert!(from(&[1, 2, 2]).is_none());
        assert!(from(&[2, 1]).is_none());
        assert!(from(&[0]).is_none());
        assert!(from(&(1..=1024).collect::<Vec<_>>()).is_some());
        assert!(from(&(1..=1025).collect::<Vec<_>>()).is_none());
    }
}
