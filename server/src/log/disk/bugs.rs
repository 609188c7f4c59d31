//! Bugs that a test plants in the log, to show that the suite finds them. There are none
//! outside of tests.

use crate::planted::plantable;

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

plantable!(Bug);
