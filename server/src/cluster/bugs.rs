//! Bugs that a test plants in the cluster, to show that the simulation finds them. There are
//! none outside of tests.

use crate::planted::plantable;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// A request is decided at once and answered by an append already in flight.
    AnswerByEarlierAppend,
    /// An append is unconditional.
    NoFence,
    /// An append counts although it is stored at another sequence than the next.
    AnySequenceCounts,
    /// The heartbeat of a flow lacks the last number.
    LostLastDelivery,
    /// A flow opens again while earlier connections are still open.
    FlowBeforeClose,
    /// Parts of a snapshot are appended unconditionally, and count at any sequence.
    SnapshotOutsideFence,
    /// A purge extends to the end of a snapshot instead of its beginning: it deletes
    /// cursors before the blocks that they cover.
    CursorBeforeBlock,
    /// A snapshot lacks the places of the blocks that are not copied.
    YoungNotIndexed,
    /// A snapshot lacks the places of the blocks before it.
    NoIndex,
    /// A purge deletes live blocks before the newest snapshot.
    LiveBlocksPurged,
    /// The last subscription to arrive wins, regardless of its generation.
    NoGenerations,
    /// An account is deleted before other servers have ended its connections.
    DeleteBeforeConfirmed,
    /// An owner does not wait for the servers that may be registered with the former one.
    FormerServersForgotten,
    /// A server acts as an account for as long as its flow is open.
    NoProof,
    /// A lost server lapses before its last proof has expired.
    ShortLinger,
    /// After a release, commands are sent to the next owner although answers are missing.
    MissingAnswersIgnored,
    /// A merged page of names extends beyond the incomplete page of a shard.
    ListPastIncomplete,
    /// The client learns of an undecided send while later ones are in flight.
    UnavailableAtOnce,
    /// The opening of a session is announced once.
    AnnouncedOnce,
}

plantable!(Bug);
