//! The payload of a block: messages of one inbox, or a gap that replaces them.
//!
//! Decoding never panics and trusts no length; the log checks the block's checksum.
//! Numbers are LEB128 (seven bits per byte, lowest first).
//!
//! | payload | bytes |
//! | --- | --- |
//! | messages | 0; messages and bytes that the inbox had before; then for each message: its number minus that of the previous message (for the first: minus the block's first number, plus 1), its time in ms minus that of the previous message (for the first: minus 0), the sender's length as a byte (0: no sender, 255: the sender of the previous message), the sender, the text's length, the text |
//! | gap | 1; messages and bytes that the inbox had before; missing messages and bytes |

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use hark_protocol::{Sequence, UserName};

use super::bytes::{Malformed, name, put_number, take_byte, take_number, take_slice};
use crate::log::Block;
use crate::store::{Message, Position};

/// Size at which a payload takes no more messages, unless it has a single one. A read
/// holds a whole payload in memory, and damage loses all of it.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Initial capacity of a payload, at least.
const PAYLOAD_BYTES_FIRST: usize = 256;

const MESSAGES: u8 = 0;
const GAP: u8 = 1;

/// The length byte for the sender of the previous message. A name has at most 64 bytes.
const SAME_SENDER: u8 = u8::MAX;

/// A block of messages while a frame is built.
#[derive(Debug)]
pub(super) struct BlockBuilder {
    inbox: u64,
    first: u64,
    /// The last message's position.
    tail: Position,
    time_ms: u64,
    sender: Option<UserName>,
    payload: Vec<u8>,
}

impl BlockBuilder {
    /// Returns a block that begins with `message`, which comes after `before` in this inbox.
    pub(super) fn new(inbox: u64, before: Position, message: &Message) -> Self {
        let mut payload = Vec::with_capacity(PAYLOAD_BYTES_FIRST);
        payload.push(MESSAGES);
        put_number(&mut payload, before.messages);
        put_number(&mut payload, before.bytes);
        let first = message.position.sequence.0;
        let tail = Position {
            sequence: Sequence(first.wrapping_sub(1)),
            ..before
        };
        let mut block = Self {
            inbox,
            first,
            tail,
            time_ms: 0,
            sender: None,
            payload,
        };
        block.push(message);
        block
    }

    /// Returns the inbox.
    pub(super) const fn inbox(&self) -> u64 {
        self.inbox
    }

    /// Returns the position of the last message.
    pub(super) const fn tail(&self) -> Position {
        self.tail
    }

    /// Returns whether the block should take no more messages.
    pub(super) const fn is_full(&self) -> bool {
        self.payload.len() >= PAYLOAD_BYTES_MAX && self.tail.sequence.0 != self.first
    }

    /// Returns whether a block that begins after `before` fits and continues this one.
    fn takes(&self, block: &Block, before: Position) -> bool {
        let is_next = (before.messages, before.bytes) == (self.tail.messages, self.tail.bytes);
        is_next && self.payload.len() + block.payload.len() <= PAYLOAD_BYTES_MAX
    }

    /// Adds the next message of the inbox.
    pub(super) fn push(&mut self, message: &Message) {
        let payload = &mut self.payload;
        put_number(
            payload,
            message
                .position
                .sequence
                .0
                .wrapping_sub(self.tail.sequence.0),
        );
        put_number(payload, message.time_ms.wrapping_sub(self.time_ms));
        match &message.sender {
            None => payload.push(0),
            same if *same == self.sender => payload.push(SAME_SENDER),
            Some(sender) => {
                payload.push(sender.as_str().len() as u8);
                payload.extend_from_slice(sender.as_str().as_bytes());
            }
        }
        if message.sender != self.sender {
            self.sender.clone_from(&message.sender);
        }
        put_number(payload, message.text.len() as u64);
        payload.extend_from_slice(message.text.as_bytes());
        (self.tail, self.time_ms) = (message.position, message.time_ms);
    }

    /// Returns the block for the log.
    pub(super) fn finish(self) -> Block {
        let last = self.tail.sequence.0;
        Block {
            inbox: self.inbox,
            first: self.first,
            last,
            payload: self.payload.into(),
        }
    }
}

/// Returns the block of consecutive messages; `None` without messages.
#[cfg(test)]
pub(crate) fn block_of(log: u64, messages: &[Message]) -> Option<Block> {
    let (first, others) = messages.split_first()?;
    let before = Position {
        messages: first.position.messages - 1,
        bytes: first.position.bytes - first.text.len() as u64,
        ..first.position
    };
    let mut block = BlockBuilder::new(log, before, first);
    others.iter().for_each(|message| block.push(message));
    Some(block.finish())
}

/// Merges consecutive blocks of one inbox, each of them whole. Gaps stay as they are, and
/// no block extends over messages that are missing between two of the given ones.
pub(crate) fn merge(blocks: &[Block]) -> Result<Vec<Block>, Malformed> {
    let mut merged = Vec::new();
    let mut builder: Option<BlockBuilder> = None;
    for block in blocks {
        let BlockContent::Messages(messages) = decode(block)? else {
            merged.extend(builder.take().map(BlockBuilder::finish));
            merged.push(block.clone());
            continue;
        };
        let mut before = messages.position;
        let former = builder.take_if(|builder| !builder.takes(block, before));
        merged.extend(former.map(BlockBuilder::finish));
        for stored in messages {
            let message = stored?.message(None)?;
            match &mut builder {
                Some(builder) => builder.push(&message),
                none => *none = Some(BlockBuilder::new(block.inbox, before, &message)),
            }
            before = message.position;
        }
    }
    merged.extend(builder.map(BlockBuilder::finish));
    Ok(merged)
}

/// Messages that are known to be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The number of the first message that may be missing.
    pub(crate) first: u64,
    /// The position of the last missing message.
    pub(crate) end: Position,
    /// The number of missing messages.
    pub(crate) messages: u64,
    /// The bytes of their texts.
    pub(crate) bytes: u64,
}

impl Gap {
    /// Returns the block that replaces the missing messages.
    pub(crate) fn block(self, inbox: u64) -> Block {
        let mut payload = vec![GAP];
        put_number(
            &mut payload,
            self.end.messages.saturating_sub(self.messages),
        );
        put_number(&mut payload, self.end.bytes.saturating_sub(self.bytes));
        put_number(&mut payload, self.messages);
        put_number(&mut payload, self.bytes);
        Block {
            inbox,
            first: self.first,
            last: self.end.sequence.0,
            payload: payload.into(),
        }
    }
}

/// The content of a block.
#[derive(Debug)]
pub(crate) enum BlockContent<'b> {
    /// Messages, in the order of their numbers.
    Messages(Messages<'b>),
    /// A gap that replaces them.
    Gap(Gap),
}

/// Decodes the payload of a block.
pub(crate) fn decode(block: &Block) -> Result<BlockContent<'_>, Malformed> {
    let mut rest = &*block.payload;
    let kind = take_byte(&mut rest)?;
    let (messages, bytes) = (take_number(&mut rest)?, take_number(&mut rest)?);
    match kind {
        MESSAGES if !rest.is_empty() => {
            let sequence = Sequence(block.first.checked_sub(1).ok_or(Malformed)?);
            let position = Position {
                sequence,
                messages,
                bytes,
            };
            Ok(BlockContent::Messages(Messages {
                block,
                rest,
                position,
                time_ms: 0,
                sender: &[],
            }))
        }
        GAP => {
            let (missing, missing_bytes) = (take_number(&mut rest)?, take_number(&mut rest)?);
            let end = Position {
                sequence: Sequence(block.last),
                messages: messages.checked_add(missing).ok_or(Malformed)?,
                bytes: bytes.checked_add(missing_bytes).ok_or(Malformed)?,
            };
            let gap = Gap {
                first: block.first,
                end,
                messages: missing,
                bytes: missing_bytes,
            };
            if rest.is_empty() {
                Ok(BlockContent::Gap(gap))
            } else {
                Err(Malformed)
            }
        }
        _ => Err(Malformed),
    }
}

/// Decodes a whole block. Returns the positions before its first message, whose
/// number is that of the block less 1, and of its last message.
pub(crate) fn measure(block: &Block) -> Result<(Position, Position), Malformed> {
    match decode(block)? {
        BlockContent::Messages(messages) => {
            let (before, mut end) = (messages.position, messages.position);
            for stored in messages {
                let stored = stored?;
                stored.message(None)?;
                end = stored.position;
            }
            Ok((before, end))
        }
        BlockContent::Gap(Gap {
            first,
            end,
            messages,
            bytes,
        }) => {
            let before = Position {
                sequence: Sequence(first.saturating_sub(1)),
                messages: end.messages.saturating_sub(messages),
                bytes: end.bytes.saturating_sub(bytes),
            };
            Ok((before, end))
        }
    }
}

/// The messages of a block.
#[derive(Debug)]
pub(crate) struct Messages<'b> {
    block: &'b Block,
    rest: &'b [u8],
    /// The position of the previous message.
    position: Position,
    time_ms: u64,
    sender: &'b [u8],
}

/// A message, borrowed from its block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'b> {
    /// Its position in the inbox.
    pub(crate) position: Position,
    time_ms: u64,
    sender: &'b [u8],
    /// Its text.
    pub(crate) text: &'b [u8],
    payload: &'b Bytes,
}

impl<'b> Iterator for Messages<'b> {
    type Item = Result<Stored<'b>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let stored = self.take();
        if stored.is_err() {
            self.rest = &[];
        }
        Some(stored)
    }
}

impl<'b> Messages<'b> {
    fn take(&mut self) -> Result<Stored<'b>, Malformed> {
        let rest = &mut self.rest;
        let step = take_number(rest)?;
        self.time_ms = self.time_ms.wrapping_add(take_number(rest)?);
        match take_byte(rest)? {
            SAME_SENDER => {}
            bytes => self.sender = take_slice(rest, u64::from(bytes))?,
        }
        let text_bytes = take_number(rest)?;
        let text = take_slice(rest, text_bytes)?;
        let Position {
            sequence,
            messages,
            bytes,
        } = self.position;
        let sequence = sequence.0.checked_add(step).ok_or(Malformed)?;
        self.position = Position {
            sequence: Sequence(sequence),
            messages: messages.checked_add(1).ok_or(Malformed)?,
            bytes: bytes.checked_add(text_bytes).ok_or(Malformed)?,
        };
        // The block's head names the last message.
        if step == 0 || rest.is_empty() != (sequence == self.block.last) {
            return Err(Malformed);
        }
        let payload = &self.block.payload;
        Ok(Stored {
            position: self.position,
            time_ms: self.time_ms,
            sender: self.sender,
            text,
            payload,
        })
    }
}

impl Stored<'_> {
    /// Returns the message. Its text is a slice of the block. If the sender of the
    /// previous message `former` is the same, the name is shared.
    pub(crate) fn message(&self, former: Option<&Arc<Message>>) -> Result<Message, Malformed> {
        let text =
            ByteString::try_from(self.payload.slice_ref(self.text)).map_err(|_| Malformed)?;
        let former = former.and_then(|message| message.sender.as_ref());
        let sender = match former {
            _ if self.sender.is_empty() => None,
            Some(former) if former.as_str().as_bytes() == self.sender => Some(former.clone()),
            _ => Some(name(self.sender)?),
        };
        Ok(Message {
            position: self.position,
            sender,
            time_ms: self.time_ms,
            text,
        })
    }
}

/// Decodes arbitrary bytes as the payload of a block, and checks that encoding reproduces
/// them.
///
/// # Panics
/// If it does not.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_any(first: u64, last: u64, payload: &[u8]) {
    let block = Block {
        inbox: 7,
        first,
        last,
        payload: Bytes::copy_from_slice(payload),
    };
    if let Ok(messages) = decode_all(&block)
        && let Some(first) = messages.first()
    {
        let before = Position {
            sequence: Sequence(0),
            messages: first.position.messages - 1,
            bytes: first.position.bytes - first.text.len() as u64,
        };
        let mut builder = BlockBuilder::new(7, before, first);
        messages
            .iter()
            .skip(1)
            .for_each(|message| builder.push(message));
        assert_eq!(decode_all(&builder.finish()), Ok(messages));
    }
    if let Ok(BlockContent::Gap(gap)) = decode(&block) {
        assert!(matches!(decode(&gap.block(7)), Ok(BlockContent::Gap(again)) if again == gap));
    }
}

#[cfg(any(test, feature = "fuzzing"))]
fn decode_all(block: &Block) -> Result<Vec<Message>, Malformed> {
    match decode(block)? {
        BlockContent::Messages(messages) => messages.map(|stored| stored?.message(None)).collect(),
        BlockContent::Gap(_) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Position = Position {
        sequence: Sequence(7),
        messages: 2,
        bytes: 40,
    };

    /// Messages with these numbers after [`BEFORE`].
    fn messages(of: &[(u64, Option<&str>, &str)]) -> Vec<Message> {
        let mut position = BEFORE;
        let of = of.iter().map(|(sequence, sender, text)| {
            position = Position {
                sequence: Sequence(*sequence),
                messages: position.messages + 1,
                bytes: position.bytes + text.len() as u64,
            };
            Message {
                position,
                sender: sender.map(|name| name.parse().unwrap()),
                time_ms: 1_700_000_000_000 + sequence % 100,
                text: ByteString::from(*text),
            }
        });
        of.collect()
    }

    fn encode(messages: &[Message]) -> Block {
        let (first, rest) = messages.split_first().unwrap();
        let mut builder = BlockBuilder::new(7, BEFORE, first);
        rest.iter().for_each(|message| builder.push(message));
        builder.finish()
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let long = "x".repeat(70_000);
        let all = messages(&[
            (9, None, ""),
            (10, Some("bob"), "hello, again\n"),
            (500, Some("bob"), "🦀"),
            (501, Some("amy"), &long),
            (502, None, ""),
            (u64::MAX, Some("amy"), "last"),
        ]);
        for count in 1..=all.len() {
            let block = encode(&all[..count]);
            assert_eq!((block.inbox, block.first), (7, 9));
            assert_eq!(block.last, all[count - 1].position.sequence.0);
            assert_eq!(decode_all(&block).as_deref(), Ok(&all[..count]));
        }
    }

    #[test]
    fn later_messages_of_one_sender_take_few_bytes() {
        let all = messages(&[(1 << 52, Some("bob"), ""), ((1 << 52) + 1, Some("bob"), "")]);
        assert_eq!(
            encode(&all).payload.len() - encode(&all[..1]).payload.len(),
            4
        );
    }

    #[test]
    fn block_under_other_numbers_is_malformed() {
        let block = encode(&messages(&[(8, None, "so"), (9, Some("bob"), "hello")]));
        for last in [7, 8, 10] {
            assert_eq!(
                decode_all(&Block {
                    last,
                    ..block.clone()
                }),
                Err(Malformed)
            );
        }
        for end in 0..block.payload.len() {
            let payload = block.payload.slice(..end);
            assert_eq!(
                decode_all(&Block {
                    payload,
                    ..block.clone()
                }),
                Err(Malformed),
                "{end}"
            );
        }
    }

    #[test]
    fn gap_keeps_the_running_counts() {
        let end = Position {
            sequence: Sequence(30),
            messages: 12,
            bytes: 340,
        };
        let gap = Gap {
            first: 9,
            end,
            messages: 10,
            bytes: 300,
        };
        let block = gap.block(7);
        assert_eq!((block.inbox, block.first, block.last), (7, 9, 30));
        assert!(matches!(decode(&block), Ok(BlockContent::Gap(read)) if read == gap));
    }

    #[test]
    fn merged_block_ends_before_missing_messages() {
        let all = messages(&[9, 10, 11, 12].map(|number| (number, None, "x")));
        let single = |at: usize| {
            let before = at.checked_sub(1).map_or(BEFORE, |at| all[at].position);
            BlockBuilder::new(7, before, &all[at]).finish()
        };
        let merged = merge(&[single(0), single(1), single(3)]).unwrap();
        let ranges: Vec<_> = merged
            .iter()
            .map(|block| (block.first, block.last))
            .collect();
        assert_eq!(ranges, [(9, 10), (12, 12)]);
        let last = decode_all(&merged[1]).unwrap();
        assert_eq!(last[0].position, all[3].position);
    }

    #[test]
    fn merged_blocks_hold_the_same_messages() {
        let long = "x".repeat(PAYLOAD_BYTES_MAX / 2 - 100);
        let of: Vec<_> = (9..20)
            .map(|number| (number, Some("bob"), &*long))
            .collect();
        let all = messages(&of);
        let single = |at: usize| {
            let before = if at == 0 {
                BEFORE
            } else {
                all[at - 1].position
            };
            BlockBuilder::new(7, before, &all[at]).finish()
        };
        let blocks: Vec<_> = (0..all.len()).map(single).collect();
        let merged = merge(&blocks).unwrap();
        assert_eq!(merged.len(), 6);
        let again: Vec<_> = merged
            .iter()
            .flat_map(|block| decode_all(block).unwrap())
            .collect();
        assert_eq!(again, all);
        let gap = Gap {
            first: 3,
            end: BEFORE,
            messages: 1,
            bytes: 5,
        }
        .block(7);
        assert_eq!(
            merge(&[gap.clone(), blocks[0].clone()]).unwrap(),
            [gap, blocks[0].clone()]
        );
    }

    #[test]
    fn block_is_full_after_its_second_message() {
        let long = "x".repeat(PAYLOAD_BYTES_MAX);
        let all = messages(&[(9, None, &long), (10, None, "x")]);
        let mut builder = BlockBuilder::new(7, BEFORE, &all[0]);
        assert!(!builder.is_full());
        builder.push(&all[1]);
        assert!(builder.is_full());
    }
}
