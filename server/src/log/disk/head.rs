//! The file `HEAD`: the newest use of a segment that has frames. It shows when the
//! newest segment is missing, which no other segment names.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::file::{Storage, StorageFile};
use super::format::SegmentId;

pub(super) const NAME: &str = "HEAD";
/// Two copies, written in turn.
const SPAN: usize = 4096;
const BYTES: usize = 12;

/// The file `HEAD`.
#[derive(Debug)]
pub(super) struct HeadFile(Arc<dyn StorageFile>);

impl HeadFile {
    /// Makes the file durable, with the number 0.
    pub(super) fn create(storage: &dyn Storage) -> io::Result<Self> {
        let head = Self(storage.create(NAME)?);
        head.0.write_at(&[0; 2 * SPAN], 0)?;
        head.write(0)?;
        storage.sync_names()?;
        Ok(head)
    }

    /// Opens the file.
    pub(super) fn open(storage: &dyn Storage) -> io::Result<Self> {
        Ok(Self(storage.open(NAME)?))
    }

    /// Returns the newer copy, of those that are intact.
    pub(super) fn read(&self) -> io::Result<Option<SegmentId>> {
        let mut bytes = [0; 2 * SPAN];
        let length = self.0.read_at(&mut bytes, 0)?;
        let copies = bytes.get(..length).unwrap_or_default().chunks(SPAN);
        Ok(copies.filter_map(decode).max())
    }

    /// Notes a use. It is on stable storage when this returns.
    pub(super) fn write(&self, id: SegmentId) -> io::Result<()> {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        self.0.write_at(&bytes, u64::from(id % 2) * SPAN as u64)?;
        self.0.sync()
    }
}

fn decode(bytes: &[u8]) -> Option<SegmentId> {
    let (id, check) = bytes.get(..BYTES)?.split_first_chunk::<4>()?;
    (check == xxh3_64(id).to_le_bytes()).then(|| SegmentId::from_le_bytes(*id))
}
