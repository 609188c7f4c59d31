//! The bytes of a segment: its header, its frames and their blocks.
//!
//! ```text
//! segment  header (two copies), frames, free space, index pages, footer
//! header   see Header, padded to HEADER_SPAN
//! frame    head (72 bytes), meta, records, blocks, zeros up to a multiple of 8
//! block    checksum, inbox, first - base, last - first, length, payload
//! ```
//!
//! Every checksum but the header's depends on the salt of the segment's current
//! use. The checksum of a frame covers its head, its meta section, its records
//! and, by the checksum of each block, its blocks; so if a text is damaged, the
//! frame and everything else in it stay readable. Integers are little-endian.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::bugs::{Bug, is_planted};
use super::varint;
use crate::log::{Block, CheckpointPart, InboxId};

/// The number of one use of a segment.
pub(super) type SegmentId = u32;

/// The distance between the copies of a header.
pub(super) const HEADER_SPAN: usize = 4096;
/// The first frame begins after both copies of the header.
pub(super) const FRAMES_START: u64 = 2 * HEADER_SPAN as u64;
/// Frames begin at multiples of this.
pub(super) const FRAME_ALIGNMENT: usize = 8;
/// Bytes of a frame before its meta section.
pub(super) const FRAME_HEAD: usize = 72;
/// Bytes of a block before its payload, at most.
pub(super) const BLOCK_HEAD_MAX: usize = 8 + 4 * varint::MAX_BYTES;
/// The longest frame.
pub(super) const FRAME_MAX: usize = 1 << 30;

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"harkseg3");
const HEADER_BYTES: usize = 8 + 4 + 8 + 16 + (4 + 8 + 8 + 8) + 8 + (8 + 8 + 8) + 8;
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"frm3");
const FLAG_FIRST: u32 = 1;
const FLAG_LAST: u32 = 2;
const FLAG_PART: u32 = 4;

/// Random bytes that distinguish one use of a segment from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt {
    low: u64,
    high: u64,
}

impl Salt {
    /// Returns a salt that was never used.
    pub(super) fn random() -> Self {
        if is_planted(Bug::NoSalt) {
            return Self { low: 0, high: 0 };
        }
        Self {
            low: rand::random(),
            high: rand::random(),
        }
    }

    /// Returns the checksum of bytes at a place of this use. `domain`
    /// distinguishes the kinds of places.
    pub(super) fn check(self, domain: u64, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed(&[domain]))
    }

    /// Returns the checksum of a block.
    pub(super) fn check_block(self, inbox: InboxId, first: u64, last: u64, payload: &[u8]) -> u64 {
        xxh3_64_with_seed(
            payload,
            self.seed(&[inbox, first, last, payload.len() as u64]),
        )
    }

    fn seed(self, values: &[u64]) -> u64 {
        let mut bytes = [0; 40];
        for (slot, value) in bytes
            .chunks_exact_mut(8)
            .zip([self.high].iter().chain(values))
        {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        xxh3_64_with_seed(&bytes, self.low)
    }
}

/// A place in the chain of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FrameLink {
    /// Number of the commit.
    pub(super) commit: u64,
    /// Checksum of its frame.
    pub(super) check: u64,
}

/// The end of the previous segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Previous {
    /// Its use; 0 for the first segment of a store.
    pub(super) id: SegmentId,
    /// The end of its last frame.
    pub(super) end: u64,
    /// Its last frame, or the last one before it.
    pub(super) link: FrameLink,
}

/// A complete checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CheckpointExtent {
    /// The commit of its first part; 0 if there is no checkpoint.
    pub(super) first: u64,
    /// The commit of its last part.
    pub(super) last: u64,
    /// The records of its parts, in bytes.
    pub(super) bytes: u64,
}

/// The header of one use of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The use.
    pub(super) id: SegmentId,
    /// Bytes of the file that belong to the segment.
    pub(super) size: u64,
    /// Part of every checksum.
    pub(super) salt: Salt,
    /// Ends the previous segment.
    pub(super) previous: Previous,
    /// The use is void unless it holds every frame up to this commit, which an
    /// open has copied here; 0 if it copied none.
    pub(super) carried: u64,
    /// The newest complete checkpoint when the use began.
    pub(super) checkpoint: CheckpointExtent,
}

impl Header {
    /// Returns both copies.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * HEADER_SPAN);
        bytes.extend(HEADER_MAGIC.to_le_bytes());
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.salt.low.to_le_bytes());
        bytes.extend(self.salt.high.to_le_bytes());
        bytes.extend(self.previous.id.to_le_bytes());
        for value in [
            self.previous.end,
            self.previous.link.commit,
            self.previous.link.check,
            self.carried,
            self.checkpoint.first,
            self.checkpoint.last,
            self.checkpoint.bytes,
        ] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes.resize(HEADER_SPAN, 0);
        bytes.extend_from_within(..);
        bytes
    }

    /// Returns the intact copy with the higher use.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let copies = bytes.chunks(HEADER_SPAN).take(2);
        copies
            .filter_map(Self::decode_copy)
            .max_by_key(|header| header.id)
    }

    fn decode_copy(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.get(..HEADER_BYTES)?.split_last_chunk::<8>()?;
        if xxh3_64(body) != u64::from_le_bytes(*check) {
            return None;
        }
        let rest = &mut { body };
        if take_u64(rest)? != HEADER_MAGIC {
            return None;
        }
        let header = Self {
            id: take_u32(rest)?,
            size: take_u64(rest)?,
            salt: Salt {
                low: take_u64(rest)?,
                high: take_u64(rest)?,
            },
            previous: Previous {
                id: take_u32(rest)?,
                end: take_u64(rest)?,
                link: FrameLink {
                    commit: take_u64(rest)?,
                    check: take_u64(rest)?,
                },
            },
            carried: take_u64(rest)?,
            checkpoint: CheckpointExtent {
                first: take_u64(rest)?,
                last: take_u64(rest)?,
                bytes: take_u64(rest)?,
            },
        };
        (header.id > header.previous.id).then_some(header)
    }
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// Bytes of the frame, a multiple of [`FRAME_ALIGNMENT`].
    pub(super) length: u32,
    meta_length: u32,
    records_length: u32,
    block_count: u32,
    flags: u32,
    /// Number of the commit.
    pub(super) commit: u64,
    /// The last commit that was known to be on stable storage when this one was
    /// written.
    pub(super) synced: u64,
    /// Checksum of the previous frame.
    pub(super) previous: u64,
    base: u64,
    /// Checksum of this frame.
    pub(super) check: u64,
}

impl FrameHead {
    fn encode(&self) -> [u8; FRAME_HEAD - 16] {
        let mut bytes = [0; FRAME_HEAD - 16];
        let (words, longs) = bytes.split_at_mut(24);
        let values = [
            FRAME_MAGIC,
            self.length,
            self.meta_length,
            self.records_length,
            self.block_count,
            self.flags,
        ];
        for (slot, value) in words.chunks_exact_mut(4).zip(values) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        let values = [self.commit, self.synced, self.previous, self.base];
        for (slot, value) in longs.chunks_exact_mut(8).zip(values) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Reads the head of a frame if its own checksum is valid.
    pub(super) fn decode(bytes: &[u8], salt: Salt) -> Option<Self> {
        let bytes = bytes.first_chunk::<FRAME_HEAD>()?;
        let (body, head_check) = bytes.split_last_chunk::<8>()?;
        let rest = &mut { body };
        if take_u32(rest)? != FRAME_MAGIC
            || salt.check(DOMAIN_HEAD, body) != u64::from_le_bytes(*head_check)
        {
            return None;
        }
        Some(Self {
            length: take_u32(rest)?,
            meta_length: take_u32(rest)?,
            records_length: take_u32(rest)?,
            block_count: take_u32(rest)?,
            flags: take_u32(rest)?,
            commit: take_u64(rest)?,
            synced: take_u64(rest)?,
            previous: take_u64(rest)?,
            base: take_u64(rest)?,
            check: take_u64(rest)?,
        })
    }

    /// Returns the part of a checkpoint that the frame holds.
    pub(super) fn part(&self) -> Option<CheckpointPart> {
        (self.flags & FLAG_PART != 0).then_some(CheckpointPart {
            is_first: self.flags & FLAG_FIRST != 0,
            is_last: self.flags & FLAG_LAST != 0,
        })
    }
}

const DOMAIN_HEAD: u64 = 1;
const DOMAIN_FRAME: u64 = 2;
/// The domain of an index frame's pages, to which their numbers are added, and of
/// its footer.
pub(super) const DOMAIN_INDEX: u64 = 1 << 32;

/// A block as it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRecord<'a> {
    pub(super) inbox: InboxId,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) payload: &'a [u8],
}

impl BlockRecord<'_> {
    /// Copies the block.
    pub(super) fn to_block(self) -> Block {
        let Self {
            inbox,
            first,
            last,
            payload,
        } = self;
        Block {
            inbox,
            first,
            last,
            payload: Bytes::copy_from_slice(payload),
        }
    }
}

impl<'a> From<&'a Block> for BlockRecord<'a> {
    fn from(block: &'a Block) -> Self {
        Self {
            inbox: block.inbox,
            first: block.first,
            last: block.last,
            payload: &block.payload,
        }
    }
}

/// The content of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameContent<'a> {
    pub(super) commit: u64,
    pub(super) synced: u64,
    pub(super) previous: u64,
    pub(super) part: Option<CheckpointPart>,
    pub(super) meta: &'a [u8],
    pub(super) records: &'a [u8],
    pub(super) blocks: &'a [BlockRecord<'a>],
}

/// Bytes of a frame in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    /// From the beginning of the frame, or of the segment.
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl FrameContent<'_> {
    /// Returns the maximum length of the frame.
    pub(super) fn max_length(meta: usize, records: usize, blocks: &[BlockRecord<'_>]) -> usize {
        let blocks: usize = blocks
            .iter()
            .map(|block| BLOCK_HEAD_MAX + block.payload.len())
            .sum();
        FRAME_HEAD + meta + records + blocks + FRAME_ALIGNMENT
    }

    /// Appends the frame to `bytes`, and the extent of each block within the frame
    /// to `extents`. Returns the checksum. The frame is shorter than [`FRAME_MAX`].
    pub(super) fn encode(&self, salt: Salt, bytes: &mut Vec<u8>, extents: &mut Vec<Extent>) -> u64 {
        let start = bytes.len();
        bytes.resize(start + FRAME_HEAD, 0);
        bytes.extend_from_slice(self.meta);
        bytes.extend_from_slice(self.records);
        let sections = bytes.len();
        let base = self.blocks.first().map_or(0, |block| block.first);
        let mut block_check = 0;
        for block in self.blocks {
            let begin = bytes.len();
            let check = salt.check_block(block.inbox, block.first, block.last, block.payload);
            bytes.extend(check.to_le_bytes());
            varint::put(bytes, block.inbox);
            varint::put_difference(bytes, block.first, base);
            varint::put(bytes, block.last.wrapping_sub(block.first));
            varint::put(bytes, block.payload.len() as u64);
            block_check = xxh3_64_with_seed(bytes.get(begin..).unwrap_or_default(), block_check);
            bytes.extend_from_slice(block.payload);
            let (offset, length) = ((begin - start) as u32, (bytes.len() - begin) as u32);
            extents.push(Extent { offset, length });
        }
        let length = (bytes.len() - start).next_multiple_of(FRAME_ALIGNMENT);
        bytes.resize(start + length, 0);
        let mut head = FrameHead {
            length: length as u32,
            meta_length: self.meta.len() as u32,
            records_length: self.records.len() as u32,
            block_count: self.blocks.len() as u32,
            flags: flags(self.part),
            commit: self.commit,
            synced: self.synced,
            previous: self.previous,
            base,
            check: 0,
        };
        let sections = bytes.get(start + FRAME_HEAD..sections).unwrap_or_default();
        head.check = frame_check(&head, salt, sections, block_check);
        let mut coded = head.encode().to_vec();
        coded.extend(head.check.to_le_bytes());
        coded.extend(salt.check(DOMAIN_HEAD, &coded).to_le_bytes());
        if let Some(slot) = bytes.get_mut(start..start + FRAME_HEAD) {
            slot.copy_from_slice(&coded);
        }
        head.check
    }
}

fn frame_check(head: &FrameHead, salt: Salt, sections: &[u8], block_check: u64) -> u64 {
    let check = xxh3_64_with_seed(sections, salt.check(DOMAIN_FRAME, &head.encode()));
    xxh3_64_with_seed(&block_check.to_le_bytes(), check)
}

fn flags(part: Option<CheckpointPart>) -> u32 {
    part.map_or(0, |part| {
        FLAG_PART | (u32::from(part.is_first) * FLAG_FIRST) | (u32::from(part.is_last) * FLAG_LAST)
    })
}

/// A block as it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockView<'a> {
    pub(super) record: BlockRecord<'a>,
    /// From the beginning of the frame.
    pub(super) extent: Extent,
    /// The payload is as it was written.
    pub(super) is_intact: bool,
}

/// A frame as it is read, with a valid checksum.
#[derive(Debug)]
pub(super) struct FrameView<'a> {
    pub(super) head: FrameHead,
    pub(super) meta: &'a [u8],
    pub(super) records: &'a [u8],
    pub(super) blocks: Vec<BlockView<'a>>,
}

impl<'a> FrameView<'a> {
    /// Reads the frame at the beginning of `bytes`; `None` unless its checksum is
    /// valid. Its blocks may be damaged nevertheless.
    pub(super) fn decode(bytes: &'a [u8], salt: Salt) -> Option<Self> {
        let head = FrameHead::decode(bytes, salt)?;
        let frame = bytes.get(..head.length as usize)?;
        let (meta, rest) = frame
            .get(FRAME_HEAD..)?
            .split_at_checked(head.meta_length as usize)?;
        let (records, mut rest) = rest.split_at_checked(head.records_length as usize)?;
        let sections = frame.get(FRAME_HEAD..FRAME_HEAD + meta.len() + records.len())?;
        // Each block takes some bytes, so their number is bounded by the length.
        let mut blocks = Vec::with_capacity((head.block_count as usize).min(rest.len() / 12));
        let mut block_check = 0;
        for _ in 0..head.block_count {
            let begin = rest;
            let (record, check) = take_block(&mut rest, head.base)?;
            let coded = begin.get(..begin.len() - rest.len() - record.payload.len())?;
            block_check = xxh3_64_with_seed(coded, block_check);
            let extent = Extent {
                offset: (frame.len() - begin.len()) as u32,
                length: (begin.len() - rest.len()) as u32,
            };
            let is_intact =
                check == salt.check_block(record.inbox, record.first, record.last, record.payload);
            blocks.push(BlockView {
                record,
                extent,
                is_intact,
            });
        }
        let is_valid = rest.len() < FRAME_ALIGNMENT
            && rest.iter().all(|&byte| byte == 0)
            && head.check == frame_check(&head, salt, sections, block_check);
        is_valid.then_some(Self {
            head,
            meta,
            records,
            blocks,
        })
    }

    /// Reads the blocks of the frame at the beginning of `bytes` that are intact, even if
    /// the frame is not, as far as its head and theirs can be read.
    pub(super) fn decode_blocks(bytes: &'a [u8], salt: Salt) -> Vec<BlockView<'a>> {
        let mut blocks = Vec::new();
        let Some(head) = FrameHead::decode(bytes, salt) else {
            return blocks;
        };
        let frame = bytes.get(..head.length as usize).unwrap_or(bytes);
        let sections = FRAME_HEAD + head.meta_length as usize + head.records_length as usize;
        let mut rest = frame.get(sections..).unwrap_or_default();
        for _ in 0..head.block_count {
            let begin = rest;
            let Some((record, check)) = take_block(&mut rest, head.base) else {
                break;
            };
            if check == salt.check_block(record.inbox, record.first, record.last, record.payload) {
                let offset = (frame.len() - begin.len()) as u32;
                let extent = Extent {
                    offset,
                    length: (begin.len() - rest.len()) as u32,
                };
                blocks.push(BlockView {
                    record,
                    extent,
                    is_intact: true,
                });
            }
        }
        blocks
    }

    /// Returns the place of the frame in the chain.
    pub(super) fn link(&self) -> FrameLink {
        FrameLink {
            commit: self.head.commit,
            check: self.head.check,
        }
    }

    /// Returns whether every block is as it was written.
    pub(super) fn is_intact(&self) -> bool {
        self.blocks.iter().all(|block| block.is_intact)
    }
}

fn take_block<'a>(bytes: &mut &'a [u8], base: u64) -> Option<(BlockRecord<'a>, u64)> {
    let check = take_u64(bytes)?;
    let inbox = varint::take(bytes)?;
    let first = varint::take_difference(bytes, base)?;
    let last = first.wrapping_add(varint::take(bytes)?);
    let length = usize::try_from(varint::take(bytes)?).ok()?;
    let (payload, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((
        BlockRecord {
            inbox,
            first,
            last,
            payload,
        },
        check,
    ))
}

/// Reads a block alone, whose identity the index names. Returns the range of its
/// payload; `None` unless inbox, numbers and checksum are as expected.
pub(super) fn decode_block(
    bytes: &[u8],
    salt: Salt,
    inbox: InboxId,
    numbers: (u64, u64),
) -> Option<std::ops::Range<usize>> {
    let (first, last) = numbers;
    let rest = &mut { bytes };
    let (record, check) = take_block(rest, 0)?;
    let is_valid = rest.is_empty()
        && record.inbox == inbox
        && record.last.wrapping_sub(record.first) == last.wrapping_sub(first)
        && check == salt.check_block(inbox, first, last, record.payload);
    is_valid.then_some(bytes.len() - record.payload.len()..bytes.len())
}

pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (value, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*value))
}

pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (value, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*value))
}
