//! Mistakes that a test plants in the log, to show that the suite finds them.
//! Outside of tests there are none.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// Every use of a segment has the same salt.
    NoSalt,
    /// A copy of a block is appended although the block was released meanwhile.
    RevivedCopy,
    /// A segment is recycled although a reader holds it.
    RecycledUnderReader,
    /// An open trusts frames that may be in the cache alone.
    TrustedCache,
    /// A segment is recycled before the frame that frees it is on stable storage.
    RecycledEarly,
}

/// Whether the test of this thread has planted the mistake.
#[cfg(not(test))]
pub(super) const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether the test of this thread has planted the mistake.
#[cfg(test)]
pub(super) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Runs a test with a mistake planted, or without; returns whether it failed.
#[cfg(test)]
pub(super) fn fails_with(bug: Option<Bug>, test: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    PLANTED.set(bug);
    let result = std::panic::catch_unwind(test);
    PLANTED.set(None);
    result.is_err()
}
