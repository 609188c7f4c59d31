//! [`Entry`]: one message of a shard's stream, and its encoding.
//!
//! Numbers are little endian; the last eight bytes are the XXH3 of all previous ones.
//! Decoding never panics and trusts no length.
//!
//! | bytes | content |
//! | --- | --- |
//! | 1 | format, from [`OLDEST_FORMAT`] to [`NEWEST_FORMAT`] |
//! | 1 | kind: 0 claim, 1 frame, 2 release, 3 index |
//! | 8 × 7 | claim: server, number, sequence (of a claim itself: 0); commit number; sequence that the entry counts at (0: at any); checksum of the entry before; first sequence of the newest complete snapshot (0: none) |
//! | 2 + 8 × n | the number of the servers that may act as accounts of the shard, and their ids |
//! | claim | 1: the newest format that its server reads |
//! | frame | 1: checkpoint part (0 none, else 1 + 2 if first + 4 if last); 4: length of the records; records; 4: number of blocks; for each: inbox, first, last (8 each), 4: length, payload |
//! | index | 4: number of stretches; for each: first, bytes (8 each); 4: number of blocks; for each: inbox, first, last, sequence (8 each), 4: length |

use bytes::{Buf, BufMut, Bytes};
use xxhash_rust::xxh3::xxh3_64;

use super::ServerId;
use crate::ledger::Malformed;
use crate::log::{Block, CheckpointPart, Frame, InboxId};

/// The formats of entries that this version reads and writes. It writes a format only if all
/// live servers read it.
pub(super) const OLDEST_FORMAT: u8 = 1;
pub(super) const NEWEST_FORMAT: u8 = 1;

/// Bytes of an entry before its content.
const HEAD_BYTES: usize = 2 + 7 * 8;
const CHECKSUM_BYTES: usize = 8;

/// Maximum servers that an entry names.
pub(super) const SERVERS_MAX: usize = 256;

mod kind {
    pub(super) const CLAIM: u8 = 0;
    pub(super) const FRAME: u8 = 1;
    pub(super) const RELEASE: u8 = 2;
    pub(super) const INDEX: u8 = 3;
}

/// The unique id of a claim, chosen by the claiming server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClaimId {
    /// The process.
    pub(crate) server: ServerId,
    /// The number of the claim within that process.
    pub(crate) number: u64,
}

/// A claim in the stream. The claim with the higher sequence wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    /// Its sequence in the stream.
    pub(crate) sequence: u64,
    /// Its id.
    pub(crate) id: ClaimId,
}

/// The reason why a message is not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoEntry {
    /// No server wrote it.
    Corrupt,
    /// A later version wrote it.
    Unknown,
}

impl From<Malformed> for NoEntry {
    fn from(Malformed: Malformed) -> Self {
        Self::Unknown
    }
}

/// One message of a shard's stream.
#[derive(Debug)]
pub(super) struct Entry {
    /// The format in which it is written.
    pub(super) format: u8,
    /// The claim that the entry belongs to. Its sequence is 0 in the claim's own entry.
    pub(super) claim: Claim,
    /// The entry's number within its claim; 0 for the claim's own entry.
    pub(super) commit: u64,
    /// The only sequence at which the entry counts; 0 for an unconditional claim.
    pub(super) sequence: u64,
    /// The checksum of the previous counting entry.
    pub(super) previous: u64,
    /// The first sequence of the newest complete snapshot: a replay may begin there, unless
    /// a later snapshot has replaced it. 0 if there is none.
    pub(super) snapshot: u64,
    /// The servers that may act as accounts of the shard: the next owner waits for them
    /// before it deletes one. Empty in a claim, which leaves them as they are.
    pub(super) servers: Vec<ServerId>,
    /// The content.
    pub(super) content: Content,
}

/// The content of an entry.
#[derive(Debug)]
pub(super) enum Content {
    /// A claim by a server that reads entries up to this format.
    Claim {
        /// The newest format that the server reads.
        format: u8,
    },
    /// A commit, or a part of a snapshot.
    Frame(Frame),
    /// The owner releases the shard.
    Release,
    /// A part of a snapshot: places of blocks before it.
    Index(Index),
}

/// Places of live blocks in the stream before a snapshot.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// All stretches of the stream before the snapshot, in the first index of a snapshot.
    pub(super) stretches: Vec<Stretch>,
    /// Blocks of entries before the snapshot.
    pub(super) blocks: Vec<Located>,
}

/// The entries from the beginning of a snapshot to that of the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The first sequence.
    pub(super) first: u64,
    /// The bytes of the entries.
    pub(super) bytes: u64,
}

/// The place of a block in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Located {
    /// The inbox.
    pub(super) inbox: InboxId,
    /// The number of the first message.
    pub(super) first: u64,
    /// The number of the last message.
    pub(super) last: u64,
    /// The sequence of the entry.
    pub(super) sequence: u64,
    /// The bytes of the payload.
    pub(super) bytes: u32,
}

impl Entry {
    /// Returns the bytes of the entry.
    pub(super) fn encode(&self) -> Bytes {
        let mut to = Vec::with_capacity(256);
        let kind = match &self.content {
            Content::Claim { .. } => kind::CLAIM,
            Content::Frame(_) => kind::FRAME,
            Content::Release => kind::RELEASE,
            Content::Index(_) => kind::INDEX,
        };
        to.extend_from_slice(&[self.format, kind]);
        let Claim { sequence, id } = self.claim;
        let Self {
            commit,
            sequence: at,
            previous,
            snapshot,
            ..
        } = *self;
        for number in [
            id.server.0,
            id.number,
            sequence,
            commit,
            at,
            previous,
            snapshot,
        ] {
            to.put_u64_le(number);
        }
        to.put_u16_le(self.servers.len() as u16);
        self.servers
            .iter()
            .for_each(|server| to.put_u64_le(server.0));
        match &self.content {
            Content::Claim { format } => to.push(*format),
            Content::Frame(frame) => put_frame(&mut to, frame),
            Content::Release => {}
            Content::Index(index) => put_index(&mut to, index),
        }
        to.put_u64_le(xxh3_64(&to));
        to.into()
    }

    /// Decodes an entry up to the format `newest`. Returns it with its checksum.
    pub(super) fn decode(bytes: &Bytes, newest: u8) -> Result<(Self, u64), NoEntry> {
        let length = bytes
            .len()
            .checked_sub(CHECKSUM_BYTES)
            .ok_or(NoEntry::Corrupt)?;
        let checksum = bytes.slice(length..).get_u64_le();
        let mut rest = bytes.slice(..length);
        if xxh3_64(&rest) != checksum {
            return Err(NoEntry::Corrupt);
        }
        if rest.len() < HEAD_BYTES {
            return Err(NoEntry::Unknown);
        }
        let format = rest.get_u8();
        if !(OLDEST_FORMAT..=newest).contains(&format) {
            return Err(NoEntry::Unknown);
        }
        let kind = rest.get_u8();
        let [
            server,
            number,
            claimed_at,
            commit,
            sequence,
            previous,
            snapshot,
        ] = std::array::from_fn(|_| rest.get_u64_le());
        let id = ClaimId {
            server: ServerId(server),
            number,
        };
        let servers = take_servers(&mut rest)?;
        let content = match kind {
            kind::CLAIM => Content::Claim {
                format: rest.try_get_u8().map_err(|_| Malformed)?,
            },
            kind::FRAME => Content::Frame(take_frame(&mut rest)?),
            kind::RELEASE => Content::Release,
            kind::INDEX => Content::Index(take_index(&mut rest)?),
            _ => return Err(NoEntry::Unknown),
        };
        if rest.has_remaining() {
            return Err(NoEntry::Unknown);
        }
        let claim = Claim {
            sequence: claimed_at,
            id,
        };
        Ok((
            Self {
                format,
                claim,
                commit,
                sequence,
                previous,
                snapshot,
                servers,
                content,
            },
            checksum,
        ))
    }
}

/// Returns the checksum of an encoded entry.
pub(super) fn checksum(encoded: &Bytes) -> u64 {
    encoded
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .map_or(0, |length| encoded.slice(length..).get_u64_le())
}

fn take_servers(rest: &mut Bytes) -> Result<Vec<ServerId>, Malformed> {
    let count = rest.try_get_u16_le().map_err(|_| Malformed)?;
    let server = |_| Ok(ServerId(rest.try_get_u64_le().map_err(|_| Malformed)?));
    (0..count).map(server).collect()
}

fn put_frame(to: &mut Vec<u8>, frame: &Frame) {
    to.push(frame.checkpoint.map_or(0, |part| {
        1 + 2 * u8::from(part.is_first) + 4 * u8::from(part.is_last)
    }));
    to.put_u32_le(frame.records.len() as u32);
    to.extend_from_slice(&frame.records);
    to.put_u32_le(frame.blocks.len() as u32);
    for Block {
        inbox,
        first,
        last,
        payload,
    } in &frame.blocks
    {
        [*inbox, *first, *last]
            .into_iter()
            .for_each(|number| to.put_u64_le(number));
        to.put_u32_le(payload.len() as u32);
        to.extend_from_slice(payload);
    }
}

fn take_frame(rest: &mut Bytes) -> Result<Frame, Malformed> {
    let checkpoint = match rest.try_get_u8().map_err(|_| Malformed)? {
        0 => None,
        bits if bits & 1 == 1 && bits < 8 => Some(CheckpointPart {
            is_first: bits & 2 != 0,
            is_last: bits & 4 != 0,
        }),
        _ => return Err(Malformed),
    };
    let records = take_slice(rest)?.to_vec();
    let count = rest.try_get_u32_le().map_err(|_| Malformed)?;
    let blocks: Result<_, _> = (0..count).map(|_| take_block(rest)).collect();
    Ok(Frame {
        records,
        blocks: blocks?,
        merged: Vec::new(),
        checkpoint,
    })
}

fn put_index(to: &mut Vec<u8>, Index { stretches, blocks }: &Index) {
    to.put_u32_le(stretches.len() as u32);
    for Stretch { first, bytes } in stretches {
        [*first, *bytes]
            .into_iter()
            .for_each(|number| to.put_u64_le(number));
    }
    to.put_u32_le(blocks.len() as u32);
    for Located {
        inbox,
        first,
        last,
        sequence,
        bytes,
    } in blocks
    {
        [*inbox, *first, *last, *sequence]
            .into_iter()
            .for_each(|number| to.put_u64_le(number));
        to.put_u32_le(*bytes);
    }
}

fn take_index(rest: &mut Bytes) -> Result<Index, Malformed> {
    let count = rest.try_get_u32_le().map_err(|_| Malformed)?;
    let stretches: Result<_, _> = (0..count).map(|_| take_stretch(rest)).collect();
    let stretches = stretches?;
    let count = rest.try_get_u32_le().map_err(|_| Malformed)?;
    let blocks: Result<_, _> = (0..count).map(|_| take_located(rest)).collect();
    Ok(Index {
        stretches,
        blocks: blocks?,
    })
}

fn take_stretch(rest: &mut Bytes) -> Result<Stretch, Malformed> {
    let mut number = || rest.try_get_u64_le().map_err(|_| Malformed);
    Ok(Stretch {
        first: number()?,
        bytes: number()?,
    })
}

fn take_located(rest: &mut Bytes) -> Result<Located, Malformed> {
    let mut number = || rest.try_get_u64_le().map_err(|_| Malformed);
    let (inbox, first, last, sequence) = (number()?, number()?, number()?, number()?);
    Ok(Located {
        inbox,
        first,
        last,
        sequence,
        bytes: rest.try_get_u32_le().map_err(|_| Malformed)?,
    })
}

fn take_block(rest: &mut Bytes) -> Result<Block, Malformed> {
    let mut number = || rest.try_get_u64_le().map_err(|_| Malformed);
    let (inbox, first, last) = (number()?, number()?, number()?);
    Ok(Block {
        inbox,
        first,
        last,
        payload: take_slice(rest)?,
    })
}

fn take_slice(rest: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = rest.try_get_u32_le().map_err(|_| Malformed)? as usize;
    if length <= rest.len() {
        Ok(rest.split_to(length))
    } else {
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> Vec<Entry> {
        let claim = Claim {
            sequence: 9,
            id: ClaimId {
                server: ServerId(7),
                number: 3,
            },
        };
        let block = |first| Block {
            inbox: 4,
            first,
            last: first + 2,
            payload: Bytes::from_static(b"texts"),
        };
        let part = CheckpointPart {
            is_first: true,
            is_last: false,
        };
        let contents = [
            Content::Claim { format: 1 },
            Content::Release,
            Content::Frame(Frame::default()),
            Content::Frame(Frame {
                records: b"records".to_vec(),
                blocks: vec![block(1), block(9)],
                ..Frame::default()
            }),
            Content::Frame(Frame {
                blocks: vec![block(5)],
                checkpoint: Some(part),
                ..Frame::default()
            }),
            Content::Index(Index {
                stretches: vec![Stretch {
                    first: 3,
                    bytes: 1 << 40,
                }],
                blocks: vec![
                    Located {
                        inbox: 4,
                        first: 1,
                        last: 3,
                        sequence: 9,
                        bytes: 5
                    };
                    2
                ],
            }),
        ];
        let entry = |content| Entry {
            format: 1,
            claim,
            commit: 5,
            sequence: 20,
            previous: 77,
            snapshot: 3,
            servers: vec![ServerId(5), ServerId(7)],
            content,
        };
        contents.map(entry).into()
    }

    #[test]
    fn every_entry_comes_back() {
        for entry in entries() {
            let bytes = entry.encode();
            let (decoded, sum) = Entry::decode(&bytes, 1).unwrap();
            assert_eq!(format!("{decoded:?}"), format!("{entry:?}"));
            assert_eq!((sum, decoded.encode()), (checksum(&bytes), bytes));
        }
    }

    #[test]
    fn truncated_or_changed_entry_is_malformed() {
        for bytes in entries().iter().map(Entry::encode) {
            for end in 0..bytes.len() {
                assert!(Entry::decode(&bytes.slice(..end), 1).is_err());
                let mut changed = bytes.to_vec();
                changed[end] ^= 4;
                assert!(Entry::decode(&changed.into(), 1).is_err(), "{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_content_under_a_right_checksum_never_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![NEWEST_FORMAT, kind::FRAME];
            bytes.extend_from_slice(&[0; 58]);
            bytes.extend_from_slice(&content);
            bytes.put_u64_le(xxh3_64(&bytes));
            if let Ok((entry, _)) = Entry::decode(&bytes.clone().into(), 1) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }
    }
}
