//! [`StreamReplay`]: the state of a shard, built from its stream message by message.

use bytes::Bytes;

use super::Config;
use super::blocks::Blocks;
use super::bugs::{Bug, is_planted};
use super::chain::{Chain, Taken};
use super::entry::{Claim, Index, Stretch};
use super::snapshot::History;
use crate::ledger::{Ledger, Replay};
use crate::log::{CheckpointPart, Frame};

/// A replay. It begins with the first message of the stream, which is the first claim, or
/// with the first part of a complete snapshot.
#[derive(Debug)]
pub(super) struct StreamReplay {
    chain: Chain,
    replay: Replay,
    blocks: Blocks,
    first: u64,
    /// Bytes of the messages so far.
    bytes: u64,
    history: History,
    /// The incomplete snapshot.
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    first: u64,
    /// Bytes of the entries from there on.
    bytes: u64,
    stretches: Vec<Stretch>,
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
    /// The stretches of the stream.
    pub(super) history: History,
    /// The number of replayed messages, and their bytes.
    pub(super) replayed: (u64, u64),
}

/// The reason why a stream cannot be replayed.
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
    /// Returns a replay that begins with this sequence.
    pub(super) fn new(config: &Config, first: u64) -> Self {
        let tail = Stretch { first, bytes: 0 };
        Self {
            chain: Chain::starting_at(first, config.newest_format),
            replay: Replay::new(config.limits),
            blocks: Blocks::new(config.cache_bytes_max),
            first,
            bytes: 0,
            history: History {
                tail,
                ..History::default()
            },
            begun: None,
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

    /// Returns the newest format of an entry so far.
    pub(super) const fn format(&self) -> u8 {
        self.chain.format()
    }

    /// Returns the first sequence of the newest complete snapshot; 0 if there is none.
    pub(super) const fn snapshot(&self) -> u64 {
        self.history.snapshot
    }

    /// Replays the next message.
    ///
    /// # Errors
    /// [`ReplayError::Malformed`]
    pub(super) fn take(&mut self, message: &Bytes) -> Result<(), ReplayError> {
        let taken = self.chain.take(message);
        let bytes = message.len() as u64;
        self.bytes += bytes;
        if let Taken::Committed(Frame {
            checkpoint: Some(CheckpointPart { is_first: true, .. }),
            ..
        }) = taken
        {
            self.begun = Some(Begun {
                first: self.chain.last(),
                bytes: 0,
                stretches: Vec::new(),
            });
        }
        self.history.tail.bytes += bytes;
        self.begun.iter_mut().for_each(|begun| begun.bytes += bytes);
        match taken {
            Taken::Claimed => self.begun = None,
            Taken::Committed(frame) => self.frame(frame)?,
            Taken::Indexed(index) => self.index(index),
            Taken::Released | Taken::Skipped => {}
            Taken::Unknown => return Err(ReplayError::Malformed(self.chain.last())),
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), ReplayError> {
        let sequence = self.chain.last();
        self.replay
            .frame(&frame.records)
            .map_err(|_| ReplayError::Malformed(sequence))?;
        let is_copy = frame.checkpoint.is_some();
        frame
            .blocks
            .into_iter()
            .for_each(|block| self.blocks.insert(sequence, block, is_copy));
        if frame.checkpoint.is_some_and(|part| part.is_last)
            && let Some(Begun {
                first,
                bytes,
                stretches,
            }) = self.begun.take()
        {
            let tail = Stretch { first, bytes };
            self.history = History {
                stretches: stretches.into(),
                tail,
                snapshot: first,
            };
        }
        Ok(())
    }

    fn index(&mut self, index: Index) {
        index
            .blocks
            .iter()
            .for_each(|located| self.blocks.insert_located(located));
        if let Some(begun) = &mut self.begun
            && !index.stretches.is_empty()
        {
            begun.stretches = index.stretches;
        }
    }

    /// Returns the state. New numbers come after `counter` and the persisted counter.
    ///
    /// # Errors
    /// [`ReplayError::NoSnapshot`]
    pub(super) fn finish(mut self, counter: u64) -> Result<Replayed, ReplayError> {
        if self.first > 1 && self.history.snapshot == 0 && !is_planted(Bug::CursorBeforeBlock) {
            return Err(ReplayError::NoSnapshot(self.first));
        }
        let replayed = (self.next() - self.first, self.bytes);
        self.blocks.retain(|inbox| self.replay.cursor(inbox));
        let mut ledger = self.replay.finish(counter);
        ledger.vouch_for_senders();
        Ok(Replayed {
            replayed,
            chain: self.chain,
            ledger,
            blocks: self.blocks,
            history: self.history,
        })
    }

    /// Returns whether the stream has a persisted counter.
    pub(super) const fn has_counter(&self) -> bool {
        self.replay.counter().is_some()
    }
}
