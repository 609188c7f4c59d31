//! The times of the cluster.

use std::time::Duration;

/// The time between two heartbeats of an owner.
pub(super) const CLAIM_HEARTBEAT: Duration = Duration::from_millis(500);

/// How long an append may have no answer before its owner's heartbeats end: another
/// server may reach the stream.
pub(super) const APPEND_HEALTHY: Duration = Duration::from_secs(2);

/// How long neither a heartbeat nor a new frame may come before a server claims.
pub(super) const CLAIM_AFTER: Duration = Duration::from_secs(2);

/// How much longer each server waits than the one that is preferred to it.
pub(super) const CLAIM_STAGGER: Duration = Duration::from_millis(250);

/// How long frames may come without a heartbeat before a server claims.
pub(super) const CLAIM_UNHEARD_AFTER: Duration = Duration::from_secs(10);

/// How often a server that hears no heartbeat looks whether there are new frames.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a server waits after it was deposed before it claims that shard again;
/// the wait doubles with each time.
pub(super) const BACKOFF_MIN: Duration = Duration::from_secs(5);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How long an owner has to last before its next backoff is the shortest.
pub(super) const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(60);

/// How long a request to the stream may have no answer before it is repeated.
pub(super) const LOG_RETRY: Duration = Duration::from_secs(1);

/// How long a command may be undecided before it is answered that it is unavailable.
pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(20);

/// How long an owner without traffic appends nothing: running time that is not in the
/// stream is lost with the owner.
pub(super) const IDLE_FRAME_AFTER: Duration = Duration::from_secs(10);

/// The time between two packets of a flow.
pub(super) const FLOW_HEARTBEAT: Duration = Duration::from_secs(2);

/// How long a flow may be silent.
pub(super) const FLOW_SILENCE: Duration = Duration::from_secs(30);

/// How long an open may have no answer before it is repeated.
pub(super) const OPEN_RETRY: Duration = Duration::from_secs(1);

/// How much running time of a shard may have passed since a server last heard of it
/// before the server closes its connections: they may hold commands that are older
/// than the outcomes that the shard remembers.
pub(super) const FRESH_MAX: Duration = Duration::from_secs(30);

/// Refusals of a claim after which it is made without a condition.
pub(super) const CLAIM_REFUSALS_MAX: u32 = 3;

/// Bytes of a packet. A longer item comes alone: with its texts it fits into a message of
/// the network, since a frame does.
pub(super) const PACKET_BYTES_MAX: u64 = 400 << 10;

/// Bytes of a copy of blocks in one frame; the last block may exceed it.
pub(super) const COPY_BYTES_MAX: usize = 256 << 10;

/// Frames with commands between two parts of a snapshot.
pub(super) const FRAMES_PER_PART: u32 = 4;

/// How long a server may act as an account after its flow to the owner was lost: until
/// its flows to all other shards are silent for too long, too.
pub(super) const IDENTITY_LINGER: Duration = Duration::from_secs(35);

/// How long a deletion may be undecided.
pub(super) const DELETE_DEADLINE: Duration = Duration::from_secs(60);
