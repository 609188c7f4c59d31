//! The bodies that Raft's servers send each other. The sender of a message is
//! the candidate, the leader or the origin of a request.

use serde::{Deserialize, Serialize};

use super::log::{Entry, Snapshot};
use super::replicated::Request;
use crate::error::Error;

pub(super) const VOTE: &str = "raft_vote";
pub(super) const APPEND: &str = "raft_append";
pub(super) const INSTALL: &str = "raft_install";
pub(super) const PROPOSE: &str = "raft_propose";
pub(super) const READ_INDEX: &str = "raft_read_index";

/// Asks for a vote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Vote {
    pub(super) term: u64,
    /// The candidate only asks whether it would win: no vote is given.
    pub(super) is_trial: bool,
    pub(super) last_index: u64,
    pub(super) last_term: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct VoteReply {
    pub(super) term: u64,
    pub(super) is_granted: bool,
}

/// Replicates entries, or none as a heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Append<C> {
    pub(super) term: u64,
    pub(super) prev_index: u64,
    pub(super) prev_term: u64,
    pub(super) entries: Vec<Entry<C>>,
    pub(super) commit: u64,
}

/// Replaces the entries that the leader has compacted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Install {
    pub(super) term: u64,
    pub(super) snapshot: Snapshot,
}

/// The reply to both.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct AppendReply {
    pub(super) term: u64,
    /// The follower has everything up to the end of the message.
    pub(super) is_matched: bool,
    /// Otherwise the leader continues from here.
    pub(super) next: u64,
}

/// Hands a request to the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Propose<C> {
    pub(super) request: Request<C>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ProposeReply<R> {
    pub(super) outcome: Result<R, Error>,
}

/// The index up to which a server must have applied the log for a read.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ReadIndexReply {
    pub(super) index: u64,
}
