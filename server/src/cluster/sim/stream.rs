//! [`Stream`]: the replicated stream of a shard. Its leader checks the condition of an
//! append when it proposes the message; the message is applied later, perhaps by the
//! next leader, which for a while does not count proposals of the former one.

use std::collections::VecDeque;

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use crate::cluster::{LogReply, LogRequest};

/// Maximum messages of one page.
const PAGE_MESSAGES_MAX: usize = 16;

/// The stream of a shard.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Stream {
    /// The number of purged messages.
    purged: u64,
    applied: Vec<Bytes>,
    proposed: VecDeque<Proposal>,
    /// The leader is isolated.
    pub(super) is_stalled: bool,
    /// There is no leader.
    pub(super) is_electing: bool,
    /// The leader is new: it checks conditions only against applied messages.
    pub(super) is_blind: bool,
    /// Reads are served by a node that is this many messages behind.
    pub(super) stale_by: u64,
}

/// A message that the leader has proposed.
#[derive(Debug)]
struct Proposal {
    bytes: Bytes,
    id: u64,
    /// The receiver of the answer, unless the responsible leader is gone.
    client: Option<(usize, u64)>,
}

/// The outcome of a request.
#[derive(Debug)]
pub(in crate::cluster) enum Outcome {
    Reply(LogReply),
    /// A message was proposed, to be applied later.
    Proposed,
    Nothing,
}

impl Stream {
    fn last(&self) -> u64 {
        self.purged + self.applied.len() as u64
    }

    /// Handles a request of a client.
    pub(in crate::cluster) fn handle(
        &mut self,
        request: LogRequest,
        client: (usize, u64),
    ) -> Outcome {
        if self.is_electing {
            return Outcome::Nothing;
        }
        match request {
            LogRequest::Append { id, bytes, after } => {
                let proposed = if self.is_blind {
                    0
                } else {
                    self.proposed.len() as u64
                };
                let known = self.last() + proposed;
                if after.is_some_and(|after| after != known) {
                    let last = self.last().saturating_sub(self.stale_by);
                    return Outcome::Reply(LogReply::Refused { id, last });
                }
                self.proposed.push_back(Proposal {
                    bytes,
                    id,
                    client: Some(client),
                });
                Outcome::Proposed
            }
            LogRequest::Read {
                id,
                from,
                messages_max,
            } => {
                let last = self.last().saturating_sub(self.stale_by).max(self.purged);
                let skipped = from.saturating_sub(self.purged + 1) as usize;
                let count = (last - self.purged) as usize;
                let messages = match from <= self.purged {
                    true => Vec::new(),
                    false => self.applied[..count]
                        .iter()
                        .skip(skipped)
                        .take(PAGE_MESSAGES_MAX.min(messages_max as usize))
                        .cloned()
                        .collect(),
                };
                Outcome::Reply(LogReply::Page {
                    id,
                    first: self.purged + 1,
                    messages,
                    last,
                })
            }
            LogRequest::Get { id, sequence } => {
                let last = self.last().saturating_sub(self.stale_by);
                let at = sequence
                    .checked_sub(self.purged + 1)
                    .filter(|_| sequence <= last);
                let bytes = at.and_then(|at| self.applied.get(at as usize)).cloned();
                Outcome::Reply(LogReply::Message { id, bytes })
            }
            LogRequest::Purge { before } => {
                assert!(
                    before > 1 && before <= self.last(),
                    "a purge up to {before} of {}",
                    self.last()
                );
                let count = before.saturating_sub(self.purged + 1) as usize;
                self.applied.drain(..count);
                self.purged += count as u64;
                Outcome::Nothing
            }
        }
    }

    /// Applies the next proposed message. Returns the answer to its client.
    pub(in crate::cluster) fn apply(&mut self) -> Option<((usize, u64), LogReply)> {
        let Proposal { bytes, id, client } = self.proposed.pop_front()?;
        self.applied.push(bytes);
        Some((
            client?,
            LogReply::Stored {
                id,
                sequence: self.last(),
            },
        ))
    }

    /// Ends the leader. Its proposals are applied up to some message, without an
    /// answer; the rest is lost.
    pub(in crate::cluster) fn lose_leader(&mut self, random: &mut SmallRng) {
        let kept = random.random_range(0..=self.proposed.len());
        self.proposed.truncate(kept);
        self.proposed
            .iter_mut()
            .for_each(|proposal| proposal.client = None);
        (self.is_stalled, self.is_electing) = (false, true);
    }

    /// Returns the messages.
    pub(in crate::cluster) fn messages(&self) -> (u64, &[Bytes]) {
        (self.purged + 1, &self.applied)
    }

    /// Returns whether a proposed message is not applied.
    pub(in crate::cluster) fn has_proposals(&self) -> bool {
        !self.proposed.is_empty()
    }
}
