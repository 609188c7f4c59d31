//! Bugs that a test plants in the log, to show that the suite finds them. There are none
//! outside of tests.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// Every use of a segment has the same salt.
    NoSalt,
    /// A copy of a block is appended although the block has been released.
    RevivedCopy,
    /// A segment is recycled while a reader holds it.
    RecycledUnderReader,
    /// An open trusts frames that may exist only in the page cache.
    TrustedCache,
    /// An open keeps the blocks that were merged into another one.
    RevivedParts,
    /// A segment is recycled before the frame that frees it is on stable storage.
    RecycledEarly,
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
