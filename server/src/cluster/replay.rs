//! [`StreamReplay`]: the state of a shard from its stream, message by message.

use bytes::Bytes;

use super::blocks::Blocks;
use super::bugs::{Bug, is_planted};
use super::chain::{Chain, Taken};
use super::entry::Claim;
use crate::ledger::{Ledger, Limits, Replay};
use crate::log::Frame;

/// A replay. It begins with the first message of the stream, which is the first claim
/// or the first part of a complete snapshot: a purge leaves nothing else.
#[derive(Debug)]
pub(super) struct StreamReplay {
    chain: Chain,
    replay: Replay,
    blocks: Blocks,
    first: u64,
    claims: u64,
    /// The first part of the snapshot that is under way.
    begun: Option<u64>,
    /// The first part of the newest complete snapshot.
    snapshot: Option<u64>,
}

/// The state of a shard up to a sequence.
#[derive(Debug)]
pub(super) struct Replayed {
    /// The entries.
    pub(super) chain: Chain,
    /// The state.
    pub(super) ledger: Ledger,
    /// The blocks that are live in it.
    pub(super) blocks: Blocks,
    /// The first sequence that a replay needs.
    pub(super) tail_first: u64,
    /// There was an owner before.
    pub(super) has_former: bool,
}

/// Why a stream cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplayError {
    /// A record is malformed or of a later version.
    #[error("a record is malformed or of a later version: sequence {0}")]
    Malformed(u64),
    /// The stream does not begin with a complete snapshot.
    #[error("the stream begins with sequence {0} and no complete snapshot")]
    NoSnapshot(u64),
}

impl StreamReplay {
    /// Returns a replay of a stream that begins with this sequence.
    pub(super) fn new(limits: Limits, first: u64) -> Self {
        Self {
            chain: Chain::starting_at(first),
            replay: Replay::new(limits),
            blocks: Blocks::default(),
            first,
            claims: 0,
            begun: None,
            snapshot: None,
        }
    }

    /// Returns the next sequence.
    pub(super) const fn next(&self) -> u64 {
        self.chain.last() + 1
    }

    /// Returns the current claim.
    pub(super) const fn claim(&self) -> Option<Claim> {
        self.chain.claim()
    }

    /// Replays the next message.
    ///
    /// # Errors
    /// [`ReplayError::Malformed`]
    pub(super) fn take(&mut self, message: &Bytes) -> Result<(), ReplayError> {
        match self.chain.take(message) {
            Taken::Claimed => (self.begun, self.claims) = (None, self.claims + 1),
            Taken::Committed(frame) => self.frame(frame)?,
            Taken::Released | Taken::Skipped => {}
            Taken::Unknown => return Err(ReplayError::Malformed(self.chain.last())),
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), ReplayError> {
        let sequence = self.chain.last();
        self.replay.frame(&frame.records).map_err(|_| ReplayError::Malformed(sequence))?;
        frame.blocks.into_iter().for_each(|block| self.blocks.insert(sequence, block));
        if let Some(part) = frame.checkpoint {
            if part.is_first {
                self.begun = Some(sequence);
            }
            if part.is_last {
                self.snapshot = self.begun.take().or(self.snapshot);
            }
        }
        Ok(())
    }

    /// Returns the state. `counter` is the least number that the next ones come after.
    ///
    /// # Errors
    /// [`ReplayError::NoSnapshot`]
    pub(super) fn finish(mut self, counter: u64) -> Result<Replayed, ReplayError> {
        if self.first > 1 && self.snapshot.is_none() && !is_planted(Bug::CursorBeforeBlock) {
            return Err(ReplayError::NoSnapshot(self.first));
        }
        self.blocks.retain(|inbox| self.replay.cursor(inbox));
        let mut ledger = self.replay.finish(counter);
        ledger.vouch_for_senders();
        let tail_first = self.snapshot.unwrap_or(self.first);
        let has_former = self.first > 1 || self.claims > 1;
        Ok(Replayed { chain: self.chain, ledger, blocks: self.blocks, tail_first, has_former })
    }

    /// Returns whether the stream has a persisted counter.
    pub(super) const fn has_counter(&self) -> bool {
        self.replay.counter().is_some()
    }
}
