//! [`MessageLog`]: the bounds of a log of messages, and its block in the frame under
//! construction. It knows neither accounts nor rules.

use super::block::BlockBuilder;
use super::changes::Changes;
use super::record::Record;
use crate::store::{History, Message, Position};

/// The messages of one inbox or room. They lie in blocks in the log of the store.
#[derive(Debug)]
pub(super) struct MessageLog {
    /// The number of its creation, never used again. The blocks carry it.
    pub(super) id: u64,
    /// The position of the last forgotten message.
    pub(super) head: Position,
    /// The position of the last message.
    pub(super) tail: Position,
    /// The index of its block in the frame under construction, valid only if that block
    /// belongs to this log.
    block_at: u32,
}

impl MessageLog {
    /// Returns a log with these bounds.
    pub(super) const fn new(id: u64, head: Position, tail: Position) -> Self {
        Self {
            id,
            head,
            tail,
            block_at: 0,
        }
    }

    /// Returns the position of the next message, if its text has this many bytes.
    pub(super) const fn next_position(&self, number: u64, text_bytes: usize) -> Position {
        Position {
            sequence: hark_protocol::Sequence(number),
            messages: self.tail.messages + 1,
            bytes: self.tail.bytes + text_bytes as u64,
        }
    }

    /// Adds the next message to the frame.
    pub(super) fn push(&mut self, message: &Message, changes: &mut Changes) {
        match changes.block_of(self.id, self.block_at) {
            Some(block) => {
                block.push(message);
                if block.is_full() {
                    changes.note_full();
                }
            }
            None => {
                let block = BlockBuilder::new(self.id, self.tail, message);
                self.block_at = changes.add_block(block);
            }
        }
        self.tail = message.position;
    }

    /// Forgets all messages up to a position, at most all of them.
    pub(super) fn forget(&mut self, through: Position, changes: &mut Changes) {
        // A position from outside must not exceed the end of the log.
        let through = if through.sequence < self.tail.sequence {
            through
        } else {
            self.tail
        };
        if through.sequence <= self.head.sequence {
            return;
        }
        self.head = through;
        changes.record(&Record::Head(self.id, through));
        changes.effects.heads.push((self.id, through));
    }

    /// Returns the messages that are not forgotten.
    pub(super) const fn history(&self) -> History {
        History {
            room: self.id,
            after: self.head.sequence.0,
            last: self.tail,
        }
    }

    /// Moves the tail to a later position.
    pub(super) const fn raise_tail(&mut self, tail: Position) {
        if self.tail.sequence.0 < tail.sequence.0 {
            self.tail = tail;
        }
    }

    /// Returns the number of messages that are not forgotten.
    pub(super) const fn messages(&self) -> u64 {
        self.tail.messages.saturating_sub(self.head.messages)
    }
}
