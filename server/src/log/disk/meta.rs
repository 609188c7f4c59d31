//! The log's own section of a frame: freed segments, and the segments that a checkpoint
//! relies on.

use super::format::SegmentId;
use super::varint;

/// The log's own part of a frame.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    /// Segments without a live block, reusable when this frame is on stable storage.
    pub(super) freed: Vec<SegmentId>,
    /// In the last part of a checkpoint.
    pub(super) checkpoint: Option<CheckpointEnd>,
}

/// The end of a checkpoint, in its last part.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct CheckpointEnd {
    /// The commit of the first part.
    pub(super) first: u64,
    /// The records of all parts, in bytes.
    pub(super) bytes: u64,
    /// Earlier segments than that of the first part which hold live blocks, with the ends
    /// of their frames.
    pub(super) live: Vec<(SegmentId, u64)>,
}

impl Meta {
    /// Returns the encoded section, empty without content.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.freed.is_empty() && self.checkpoint.is_none() {
            return bytes;
        }
        varint::put(&mut bytes, self.freed.len() as u64);
        for &id in &self.freed {
            varint::put(&mut bytes, id.into());
        }
        if let Some(checkpoint) = &self.checkpoint {
            varint::put(&mut bytes, checkpoint.first);
            varint::put(&mut bytes, checkpoint.bytes);
            varint::put(&mut bytes, checkpoint.live.len() as u64);
            for &(id, end) in &checkpoint.live {
                varint::put(&mut bytes, id.into());
                varint::put(&mut bytes, end);
            }
        }
        bytes
    }

    /// Reads the bytes; `None` if they are not a section.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut meta = Self::default();
        if bytes.is_empty() {
            return Some(meta);
        }
        for _ in 0..varint::take(&mut bytes)? {
            meta.freed.push(varint::take_u32(&mut bytes)?);
        }
        if !bytes.is_empty() {
            let (first, length) = (varint::take(&mut bytes)?, varint::take(&mut bytes)?);
            let mut checkpoint = CheckpointEnd {
                first,
                bytes: length,
                live: Vec::new(),
            };
            for _ in 0..varint::take(&mut bytes)? {
                checkpoint
                    .live
                    .push((varint::take_u32(&mut bytes)?, varint::take(&mut bytes)?));
            }
            meta.checkpoint = Some(checkpoint);
        }
        bytes.is_empty().then_some(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_is_read_as_written() {
        let checkpoint = CheckpointEnd {
            first: 7,
            bytes: 1 << 40,
            live: vec![(3, 4096), (1, 1 << 26)],
        };
        for freed in [vec![], vec![5], vec![1, 2, 300]] {
            for checkpoint in [
                None,
                Some(CheckpointEnd::default()),
                Some(checkpoint.clone()),
            ] {
                let meta = Meta {
                    freed: freed.clone(),
                    checkpoint,
                };
                assert_eq!(Meta::decode(&meta.encode()), Some(meta));
            }
        }
    }
}
