//! Intervals and timeouts of the cluster.
//!
//! These depend on each other:
//!
//! | time | | because |
//! | --- | --- | --- |
//! | [`FLOW_SILENCE`] | over three [`FLOW_HEARTBEAT`]s | lost packets are noticed by their numbers, before silence is |
//! | [`COMMAND_DEADLINE`] | over [`COLD_DEADLINE`] and [`SENDS_AHEAD_FOR`] | a slow read, or a send without an answer, ends no flow |
//! | [`IDENTITY_PROOF`] | over two [`IDLE_FRAME_AFTER`] | an idle owner proves the identities in time |
//! | [`IDENTITY_LINGER`] | over [`IDENTITY_PROOF`] and [`FLOW_SILENCE`] together | a lost server acts as no account any more |
//! | [`DELETE_DEADLINE`] | over [`FLOW_SILENCE`] and [`IDENTITY_LINGER`] together | a deletion outlasts a lost server |
//! | [`FRESH_MAX`] | over [`COMMAND_DEADLINE`], far below [`OUTCOME_SECONDS_MIN`] | connections outlast an outage, but no remembered outcome |

use std::time::Duration;

use hark_protocol::limits::OUTCOME_SECONDS_MIN;

const _: () = {
    assert!(is_over(FLOW_SILENCE, FLOW_HEARTBEAT.saturating_mul(3)));
    assert!(is_over(COMMAND_DEADLINE, COLD_DEADLINE));
    assert!(is_over(COMMAND_DEADLINE, SENDS_AHEAD_FOR));
    assert!(is_over(IDENTITY_PROOF, IDLE_FRAME_AFTER.saturating_mul(2)));
    assert!(is_over(
        IDENTITY_LINGER,
        IDENTITY_PROOF.saturating_add(FLOW_SILENCE)
    ));
    assert!(is_over(
        DELETE_DEADLINE,
        FLOW_SILENCE.saturating_add(IDENTITY_LINGER)
    ));
    assert!(is_over(FRESH_MAX, COMMAND_DEADLINE));
    let remembered = Duration::from_secs(OUTCOME_SECONDS_MIN);
    assert!(is_over(remembered, FRESH_MAX.saturating_mul(10)));
};

/// Returns whether a time exceeds another one.
const fn is_over(time: Duration, other: Duration) -> bool {
    time.as_nanos() > other.as_nanos()
}

/// The interval between heartbeats of an owner.
pub(super) const CLAIM_HEARTBEAT: Duration = Duration::from_millis(500);

/// The age of an unanswered append at which the owner stops its heartbeats, because
/// another server may reach the stream. As long as commands may wait: a slow disk is as
/// slow for the next owner, and a change of the owner makes commands unavailable.
pub(super) const APPEND_HEALTHY: Duration = COMMAND_DEADLINE;

/// The time without heartbeats and new frames after which a server claims.
pub(super) const CLAIM_AFTER: Duration = Duration::from_secs(2);

/// The running time of a server before it claims a shard without an owner: it hears of
/// others that have started at the same time.
pub(super) const CLAIM_VACANT_AFTER: Duration = Duration::from_millis(300);

/// The additional wait of each server compared with the next preferred one.
pub(super) const CLAIM_STAGGER: Duration = Duration::from_millis(250);

/// The time after which a server claims if frames arrive but heartbeats do not.
pub(super) const CLAIM_UNHEARD_AFTER: Duration = Duration::from_secs(10);

/// The interval at which a server without heartbeats checks for new frames.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// The wait of a deposed server before it claims that shard again; it doubles each time.
pub(super) const BACKOFF_MIN: Duration = Duration::from_secs(5);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The tenure after which an owner's backoff is reset.
pub(super) const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(60);

/// The timeout after which a request to the stream is repeated.
pub(super) const LOG_RETRY: Duration = Duration::from_secs(1);

/// The longest wait before an append is repeated again; the wait doubles up to it, so that
/// a slow disk is not burdened with the same frame every second.
pub(super) const APPEND_RETRY_MAX: Duration = Duration::from_secs(4);

/// The time after which an undecided command is answered `unavailable`.
pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(20);

/// The age of an unanswered send of a session at which later ones wait for it. If its
/// outcome remains unknown, the client learns of that when the later ones are decided.
pub(super) const SENDS_AHEAD_FOR: Duration = Duration::from_secs(5);

/// The age of the last frame at which another one is appended without traffic: running time
/// that is not in the stream is lost with the owner, and each frame proves to the servers
/// that the owner is not deposed: see [`IDENTITY_PROOF`].
pub(super) const IDLE_FRAME_AFTER: Duration = Duration::from_secs(4);

/// The interval between packets of a flow.
pub(super) const FLOW_HEARTBEAT: Duration = Duration::from_secs(2);

/// The longest silence of a flow.
pub(super) const FLOW_SILENCE: Duration = Duration::from_secs(8);

/// The timeout after which an open is repeated.
pub(super) const OPEN_RETRY: Duration = Duration::from_secs(1);

/// The running time of a shard that may pass between two packets to a server before the
/// server closes its connections: they may hold commands older than the outcomes that the
/// shard remembers.
pub(super) const FRESH_MAX: Duration = Duration::from_secs(30);

/// The suspension of a machine after which its server closes all connections.
pub(super) const SUSPENDED_MAX: Duration = Duration::from_secs(60);

/// The wait before the opening of a session is announced again; it doubles each time, until
/// it exceeds twice [`FRESH_MAX`]: a server that was unreachable for all of that time closes
/// every connection.
pub(super) const ANNOUNCE_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The interval at which a server announces that it is alive. It counts as dead after the
/// longest silence of a flow.
pub(super) const PRESENCE_INTERVAL: Duration = Duration::from_secs(2);

/// The age of its last announcement up to which a server may be handed a shard, and the
/// time for which it must have announced itself.
pub(super) const STEADY_HEARD: Duration = Duration::from_secs(5);
pub(super) const STEADY_AFTER: Duration = Duration::from_secs(5);

/// The tenure before which an owner does not hand its shard over.
pub(super) const TENURE_MIN: Duration = Duration::from_secs(5);

/// How long a shard that was handed over is left to the server that it was released for.
/// Enough for a replay.
pub(super) const HANDED_OVER_FOR: Duration = Duration::from_secs(5);

/// The pause between two hand-overs of a server. It doubles if a shard was not taken.
pub(super) const HANDOVER_PAUSE: Duration = Duration::from_secs(1);
pub(super) const HANDOVER_PAUSE_MAX: Duration = Duration::from_secs(600);

/// The time after which a hand-over counts as failed.
pub(super) const HANDOVER_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum sessions in one announcement.
pub(super) const ANNOUNCED_MAX: usize = 2048;

/// The number of refusals after which a claim is made unconditionally.
pub(super) const CLAIM_REFUSALS_MAX: u32 = 3;

/// Maximum bytes of a packet with several items. A longer item is sent alone: like its
/// frame, it fits into a message of the network.
pub(super) const PACKET_BYTES_MAX: u64 = 400 << 10;

/// Maximum messages and bytes of texts of one page. One longer text is sent alone.
pub(super) const PAGE_MESSAGES_MAX: usize = 2048;
pub(super) const PAGE_BYTES_MAX: usize = 200 << 10;

/// Maximum names in one answer of a shard.
pub(super) const NAMES_MAX: u32 = 1024;

/// Maximum reads of entries outside of the cache in flight, and waiting. An entry has at most
/// half a mebibyte.
pub(super) const COLD_READS_MAX: usize = 32;
pub(super) const COLD_WAITING_MAX: usize = 4096;

/// The time after which such a read is answered `unavailable`. Shorter than the deadline of
/// commands, after which the flow ends.
pub(super) const COLD_DEADLINE: Duration = Duration::from_secs(10);

/// Pages that a candidate reads ahead, and the bytes and entries of one. An entry has at most
/// half a mebibyte.
pub(super) const PAGES_AHEAD_MAX: usize = 4;
pub(super) const READ_PAGE_BYTES: usize = 4 << 20;
pub(super) const PAGE_ENTRIES_MIN: u32 = 16;
pub(super) const PAGE_ENTRIES_MAX: u32 = 256;

/// The number of entries in which a candidate looks for the newest snapshot at a time.
pub(super) const LOOK_BACK: u64 = 16;

/// Places of blocks in one part of a snapshot.
pub(super) const INDEX_BLOCKS_MAX: usize = 4096;

/// Bytes of block copies in one frame; the last block may exceed it.
pub(super) const COPY_BYTES_MAX: usize = 256 << 10;

/// How long an append of the owner proves to a server that its registrations are in force:
/// the time since the server sent the last packet that the owner had taken before. As long
/// as commands may wait: while appends take long, connections still act as their accounts.
pub(super) const IDENTITY_PROOF: Duration = COMMAND_DEADLINE;

/// How long a server may act as an account after the loss of its flow to the owner, or
/// after the claim of a later owner: until its last proof has expired, and if its clocks
/// stand still meanwhile, until the silence of its flows to all other shards is too long.
pub(super) const IDENTITY_LINGER: Duration = IDENTITY_PROOF
    .saturating_add(FLOW_SILENCE)
    .saturating_add(Duration::from_secs(2));

/// The time after which a pending deletion is answered `unavailable`. Longer than the time
/// until a lost server is noticed and has lapsed.
pub(super) const DELETE_DEADLINE: Duration = Duration::from_secs(60);
