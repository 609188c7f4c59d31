//! Mistakes that a test plants in the cluster, to show that the simulation finds
//! them. Outside of tests there are none.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// A request is decided at once and answered by an append that was already in flight.
    AnswerByEarlierAppend,
    /// An append has no condition.
    NoFence,
    /// An append that is stored at another sequence than the next one counts.
    AnySequenceCounts,
    /// A heartbeat of a flow does not tell the last number.
    LostLastDelivery,
    /// A flow opens again although connections from before are open.
    FlowBeforeClose,
    /// Parts of a snapshot are appended without a condition, and count in any place.
    SnapshotOutsideFence,
    /// A purge goes up to the end of a snapshot, and not to its beginning: it frees
    /// cursors before the blocks that they cover.
    CursorBeforeBlock,
    /// A snapshot is complete without the copies of older blocks.
    NoCopies,
    /// The last subscription to arrive wins, whatever its generation.
    NoGenerations,
    /// An account is deleted before other servers have ended its connections.
    DeleteBeforeConfirmed,
}

/// Returns whether the test of this thread has planted the mistake.
#[cfg(not(test))]
pub(super) const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Returns whether the test of this thread has planted the mistake.
#[cfg(test)]
pub(super) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Runs a test with a mistake planted; returns whether it failed.
#[cfg(test)]
pub(super) fn fails_with<T>(bug: Bug, test: impl FnOnce() -> T + std::panic::UnwindSafe) -> bool {
    PLANTED.set(Some(bug));
    let result = std::panic::catch_unwind(test);
    PLANTED.set(None);
    result.is_err()
}
