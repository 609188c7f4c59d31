//! Bugs that a test plants in Raft, to show that the checker finds them.
//! There are none outside of tests.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// A server votes for every candidate of a term that asks.
    VotesTwice,
    /// A leader commits entries of former terms by counting their copies.
    CommitsFormerTerms,
    /// A leader answers reads without asking whether it still leads.
    ReadsWithoutQuorum,
    /// A server writes no entries to its storage.
    ForgetsEntries,
    /// A request that arrives twice is applied twice.
    AppliesTwice,
}

/// Returns whether the test on this thread has planted the bug.
#[cfg(not(test))]
pub(super) const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Returns whether the test on this thread has planted the bug.
#[cfg(test)]
pub(super) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Runs a test with or without a planted bug. Returns whether it failed.
#[cfg(test)]
pub(super) fn fails_with(bug: Option<Bug>, test: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    PLANTED.set(bug);
    let result = std::panic::catch_unwind(test);
    PLANTED.set(None);
    result.is_err()
}
