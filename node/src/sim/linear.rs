//! A checker of linearizability. It knows no cluster: a test collects the history
//! of operations, and defines how an operation changes the state.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::Duration;

/// The maximum number of states that a check visits. More states are a sign of
/// too many concurrent operations.
const STATES_MAX: usize = 4_000_000;

/// An operation, and the span of time in which it took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation<O> {
    /// The time of its request.
    pub began: Duration,
    /// The time of its reply; `None` if none came, so that it may take effect at
    /// any later time, or never.
    pub ended: Option<Duration>,
    /// The operation with its result.
    pub operation: O,
}

/// Returns whether the operations can be ordered in a way that agrees with time
/// and with all results: each takes effect at one moment, between its beginning
/// and its end. `step` returns the state after an operation, or `None` if the
/// operation cannot have had this result in this state.
///
/// A history of several keys is checked key by key. The search is that of Wing
/// and Gong, and visits each pair of a set of operations and a state once
/// (Lowe, "Testing for linearizability", 2017).
///
/// ```
/// # use std::time::Duration;
/// # use hark_node::sim::{Invocation, is_linearizable};
/// enum Register {
///     Read(u64),
///     Write(u64),
/// }
///
/// let step = |value: &u64, operation: &Register| match operation {
///     Register::Read(read) => (read == value).then_some(*value),
///     Register::Write(value) => Some(*value),
/// };
/// let at = |began, ended, operation| Invocation {
///     began: Duration::from_secs(began),
///     ended: Some(Duration::from_secs(ended)),
///     operation,
/// };
/// let fresh = [at(1, 2, Register::Write(7)), at(3, 4, Register::Read(7))];
/// assert!(is_linearizable(0, &fresh, step));
/// let stale = [at(1, 2, Register::Write(7)), at(3, 4, Register::Read(0))];
/// assert!(!is_linearizable(0, &stale, step));
/// ```
///
/// # Panics
/// If the search visits over four million states.
pub fn is_linearizable<S: Clone + Eq + Hash, O>(
    initial: S,
    history: &[Invocation<O>],
    step: impl Fn(&S, &O) -> Option<S>,
) -> bool {
    let mut history: Vec<_> = history.iter().collect();
    history.sort_by_key(|invocation| invocation.began);
    let first = (Done::new(history.len()), initial);
    let (mut seen, mut open) = (HashSet::from([first.clone()]), vec![first]);
    while let Some((done, state)) = open.pop() {
        let Some(first_end) = first_end(&history, &done) else {
            return true;
        };
        let pending = history
            .iter()
            .enumerate()
            .filter(|(index, _)| !done.contains(*index));
        for (index, invocation) in pending.take_while(|(_, pending)| pending.began <= first_end) {
            if let Some(after) = step(&state, &invocation.operation) {
                let next = (done.with(index), after);
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        assert!(
            seen.len() <= STATES_MAX,
            "too many operations at once to check their order"
        );
    }
    false
}

/// Returns the earliest end of the operations that are not done; `None` if all
/// ended operations are done.
fn first_end<O>(history: &[&Invocation<O>], done: &Done) -> Option<Duration> {
    let mut first: Option<Duration> = None;
    for (index, invocation) in history.iter().enumerate() {
        if first.is_some_and(|first| first < invocation.began) {
            break;
        }
        if let Some(ended) = invocation.ended.filter(|_| !done.contains(index)) {
            first = Some(first.map_or(ended, |first| first.min(ended)));
        }
    }
    first
}

/// A set of operations, by their indices.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn contains(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    fn with(&self, index: usize) -> Self {
        let mut with = self.clone();
        if let Some(bits) = with.0.get_mut(index / 64) {
            *bits |= 1 << (index % 64);
        }
        with
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Read(u8),
        Write(u8),
        Cas(u8, u8),
    }

    #[track_caller]
    fn check(expected: bool, history: &[(u64, Option<u64>, Act)]) {
        let history: Vec<_> = history
            .iter()
            .map(|(began, ended, operation)| Invocation {
                began: Duration::from_secs(*began),
                ended: ended.map(Duration::from_secs),
                operation: *operation,
            })
            .collect();
        let step = |value: &u8, act: &Act| match *act {
            Act::Read(read) => (read == *value).then_some(*value),
            Act::Write(value) => Some(value),
            Act::Cas(from, to) => (from == *value).then_some(to),
        };
        assert_eq!(is_linearizable(0, &history, step), expected, "{history:?}");
    }

    #[test]
    fn concurrent_operations_take_any_order() {
        check(
            true,
            &[
                (0, Some(9), Act::Write(1)),
                (1, Some(2), Act::Read(0)),
                (3, Some(4), Act::Read(1)),
            ],
        );
        check(
            false,
            &[
                (0, Some(9), Act::Write(1)),
                (1, Some(2), Act::Read(1)),
                (3, Some(4), Act::Read(0)),
            ],
        );
        check(
            true,
            &[
                (0, Some(9), Act::Cas(2, 3)),
                (0, Some(9), Act::Cas(1, 2)),
                (0, Some(9), Act::Write(1)),
            ],
        );
    }

    #[test]
    fn unanswered_operations_may_happen_later_or_never() {
        check(
            true,
            &[
                (0, None, Act::Write(1)),
                (1, Some(2), Act::Read(0)),
                (3, Some(4), Act::Read(1)),
            ],
        );
        check(
            true,
            &[
                (0, None, Act::Write(1)),
                (1, Some(2), Act::Read(0)),
                (3, Some(4), Act::Read(0)),
            ],
        );
        check(
            false,
            &[
                (0, None, Act::Write(1)),
                (1, Some(2), Act::Read(1)),
                (3, Some(4), Act::Read(0)),
            ],
        );
        check(
            false,
            &[(5, None, Act::Write(1)), (1, Some(2), Act::Read(1))],
        );
    }

    #[test]
    fn lost_updates_are_found() {
        check(
            false,
            &[(0, Some(1), Act::Cas(0, 1)), (2, Some(3), Act::Cas(0, 2))],
        );
        check(
            true,
            &[
                (0, Some(2), Act::Cas(0, 1)),
                (1, Some(3), Act::Cas(1, 2)),
                (4, Some(5), Act::Read(2)),
            ],
        );
    }
}
