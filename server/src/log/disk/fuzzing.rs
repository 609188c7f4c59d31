//! The fuzz target `segments`: arbitrary bytes are opened, read, and opened again.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a target fails by panicking"
)]

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::DiskLog;
use super::file::{Storage, StorageFile};
use super::format::{FRAMES_START, FrameContent, FrameView, Header, Salt};
use super::head::HeadFile;
use super::meta::Meta;
use super::scan::{Frames, scan_tail};
use crate::log::{Durability, Frame, Log as _, OpenError};

const SEGMENT_BYTES: u64 = 24 << 10;
const NAME: &str = "00000000.segment";

/// Reads the bytes as a part of a segment. The first byte selects the part: the meta
/// section of a frame, its records, or patches of a segment with a few valid frames.
///
/// # Panics
/// If encoding does not reproduce the decoded bytes, or if an open neither refuses the
/// bytes nor yields a usable log.
pub fn segments(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => check_meta(data),
        1 => check_frames(data),
        _ => check_open(data),
    }
}

fn check_meta(data: &[u8]) {
    if let Some(meta) = Meta::decode(data) {
        assert_eq!(Meta::decode(&meta.encode()), Some(meta));
    }
}

/// Checks the bytes as records with valid checksums, which an attacker without the salt
/// cannot compute.
fn check_frames(data: &[u8]) {
    let salt = Salt::random();
    let content = FrameContent {
        commit: 1,
        synced: 0,
        previous: 0,
        part: None,
        meta: &[],
        records: data,
        blocks: &[],
    };
    let mut bytes = vec![0; FRAMES_START as usize];
    content.encode(salt, &mut bytes, &mut Vec::new());
    // After the frame, or shifted over it, the bytes are not a frame.
    bytes.extend_from_slice(data);
    let mut frames = Frames::new(&bytes, salt, Default::default());
    let placed = scan_tail(&mut frames, 0).unwrap();
    assert_eq!(placed.len(), 1);
    assert!(placed.iter().all(|placed| placed.frame.records == data));
    assert!(FrameView::decode(data, salt).is_none());
    let _ = Header::decode(data);
}

/// Patches a log with pieces of the bytes: each has a position of two bytes and a length
/// of one.
fn check_open(mut data: &[u8]) {
    let memory = Memory::default();
    HeadFile::create(&memory).unwrap();
    let mut log = DiskLog::open(Arc::new(memory.clone()), Some(SEGMENT_BYTES), &mut |_| {
        Ok(())
    })
    .unwrap();
    for text in [b"one", b"two"] {
        let frame = Frame {
            records: text.to_vec(),
            ..Frame::default()
        };
        log.append(frame, Durability::Machine).unwrap();
    }
    drop(log);
    while let Some((&[high, low, length], rest)) = data.split_first_chunk() {
        let (piece, rest) = rest.split_at(usize::from(length).min(rest.len()));
        memory.patch(usize::from(u16::from_be_bytes([high, low])), piece);
        data = rest;
    }
    let mut records = 0;
    let opened = DiskLog::open(Arc::new(memory.clone()), Some(SEGMENT_BYTES), &mut |_| {
        records += 1;
        Ok(())
    });
    match opened {
        Ok(log) => {
            assert!(records <= 2);
            log.reader()
                .read(1, 0, &mut |_| ControlFlow::Continue(()))
                .unwrap();
        }
        Err(OpenError::Damaged { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// A storage in memory.
#[derive(Debug, Default, Clone)]
struct Memory {
    files: Arc<Mutex<Files>>,
}

type Files = Vec<(String, Arc<MemoryFile>)>;

#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

impl Memory {
    fn find(&self, name: &str) -> Option<Arc<MemoryFile>> {
        let files = self.files.lock().unwrap();
        files
            .iter()
            .find(|(of, _)| of == name)
            .map(|(_, file)| Arc::clone(file))
    }

    /// Overwrites a part of the first segment.
    fn patch(&self, offset: usize, piece: &[u8]) {
        let file = self.find(NAME).unwrap();
        let mut bytes = file.0.lock().unwrap();
        bytes
            .iter_mut()
            .skip(offset)
            .zip(piece)
            .for_each(|(byte, new)| *byte = *new);
    }
}

impl Storage for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self
            .files
            .lock()
            .unwrap()
            .iter()
            .map(|(name, _)| name.clone())
            .collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.find(name).ok_or(io::ErrorKind::NotFound)?)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = Arc::<MemoryFile>::default();
        self.files
            .lock()
            .unwrap()
            .push((name.into(), Arc::clone(&file)));
        Ok(file)
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().unwrap().retain(|(of, _)| of != name);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

impl StorageFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock().unwrap();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let length = bytes.len().max(offset as usize + new.len());
        bytes.resize(length, 0);
        bytes[offset as usize..][..new.len()].copy_from_slice(new);
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let length = bytes.len().max(length as usize);
        bytes.resize(length, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_segment_is_refused_or_opened() {
        hark_seeds::check("segments", super::segments);
    }
}
