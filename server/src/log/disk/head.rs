//! The file `HEAD`: the newest use of a segment with frames, and the usual size of a
//! segment. It reveals the loss of the newest segment, which no other segment names. It
//! is created before the store; a store without it is damaged.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::file::{Storage, StorageFile};
use super::format::{SegmentId, take_u32, take_u64};

pub(super) const NAME: &str = "HEAD";
/// Two copies, written in turn.
const SPAN: usize = 4096;
const BYTES: usize = 20;

/// The content of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Head {
    /// The newest use of a segment; 0 before the first.
    pub(super) id: SegmentId,
    /// The usual size of a segment; 0 before the first.
    pub(super) segment_bytes: u64,
}

/// The file `HEAD`.
#[derive(Debug)]
pub(super) struct HeadFile(Arc<dyn StorageFile>);

impl HeadFile {
    /// Creates the file of a new log durably.
    pub(super) fn create(storage: &dyn Storage) -> io::Result<Self> {
        let head = Self(storage.create(NAME)?);
        head.0.write_at(&[0; 2 * SPAN], 0)?;
        head.write(Head {
            id: 0,
            segment_bytes: 0,
        })?;
        storage.sync_names()?;
        Ok(head)
    }

    /// Opens the file.
    pub(super) fn open(storage: &dyn Storage) -> io::Result<Self> {
        Ok(Self(storage.open(NAME)?))
    }

    /// Returns the newer intact copy.
    pub(super) fn read(&self) -> io::Result<Option<Head>> {
        let mut bytes = [0; 2 * SPAN];
        let length = self.0.read_at(&mut bytes, 0)?;
        let copies = bytes.get(..length).unwrap_or_default().chunks(SPAN);
        Ok(copies.filter_map(decode).max())
    }

    /// Records a use durably.
    pub(super) fn write(&self, head: Head) -> io::Result<()> {
        let mut bytes = head.id.to_le_bytes().to_vec();
        bytes.extend(head.segment_bytes.to_le_bytes());
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        self.0
            .write_at(&bytes, u64::from(head.id % 2) * SPAN as u64)?;
        self.0.sync()
    }
}

fn decode(bytes: &[u8]) -> Option<Head> {
    let (body, check) = bytes.get(..BYTES)?.split_last_chunk::<8>()?;
    if xxh3_64(body) != u64::from_le_bytes(*check) {
        return None;
    }
    let rest = &mut { body };
    Some(Head {
        id: take_u32(rest)?,
        segment_bytes: take_u64(rest)?,
    })
}
