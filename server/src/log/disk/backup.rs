//! A copy of an open log, taken beside appends: references keep its segments from being
//! recycled, and their frames up to the copied point never change.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::DiskLog;
use super::file::OsStorage;
use super::folder;
pub(crate) use super::folder::create_folder;
use super::head::{Head, HeadFile};
use super::segment::Segment;
use crate::log::LogCopy;

/// The size of a piece, in bytes.
const PIECE_BYTES: usize = 512 * 1024;

/// The use of the disk by a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Each piece is synced, and followed by a pause as long as it took, so that the log's
    /// own writes get at least half of the disk.
    Half,
    /// All of it.
    Full,
}

/// The permissions of a folder and a file: none for others.
const FILE_MODE: u32 = 0o600;

/// A log at one commit.
#[derive(Debug)]
struct DiskCopy {
    /// The segments, the oldest first, and the length of what is copied of each.
    segments: Vec<(Arc<Segment>, u64)>,
    head: Head,
}

impl DiskLog {
    /// Returns a copy of the log as it is now, between two frames.
    pub(super) fn copied(&self) -> Box<dyn LogCopy> {
        let active = self.writer.active();
        let segments = self.shared.segments.select(|_| true);
        let with_length = |segment: Arc<Segment>| {
            // The index of a segment without a table may be half-written; an open builds
            // it from the frames.
            let length = if segment.id == active {
                self.writer.offset()
            } else if segment.table().is_some() {
                segment.slot.size
            } else {
                segment.end().unwrap_or(segment.slot.size)
            };
            (segment, length)
        };
        Box::new(DiskCopy {
            segments: segments.into_iter().map(with_length).collect(),
            head: Head {
                id: active,
                segment_bytes: self.shared.files.segment_bytes,
            },
        })
    }
}

impl LogCopy for DiskCopy {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, length)| length).sum()
    }

    fn write_to(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let log = folder::log_of(folder);
        create_folder(&log)?;
        let mut copied = 0;
        for (segment, length) in &self.segments {
            let to = log.join(&segment.slot.name);
            let (from, size) = (&segment.slot.path, segment.slot.size);
            copy_file((from, *length), (&to, size), Pace::Half, &mut |bytes| {
                copied += bytes;
                progress(copied)
            })?;
        }
        let storage = OsStorage::new(&log);
        HeadFile::create(&storage)?.write(self.head)?;
        File::open(&log)?.sync_all()?;
        folder::write_format(folder)?;
        File::open(folder)?.sync_all()
    }
}

/// Copies the first `length` bytes of a file in pieces into a new file of `size` bytes, and
/// makes it durable.
fn copy_file(
    (from, length): (&Path, u64),
    (to, size): (&Path, u64),
    pace: Pace,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(to)?;
    target.set_len(size)?;
    let mut buffer = vec![0; PIECE_BYTES];
    let mut left = length;
    while left > 0 {
        let begun = Instant::now();
        let piece = usize::try_from(left)
            .unwrap_or(PIECE_BYTES)
            .min(PIECE_BYTES);
        let piece = buffer.get_mut(..piece).unwrap_or_default();
        source.read_exact(piece)?;
        if piece.iter().all(|&byte| byte == 0) {
            // The rest of a segment is zero: it stays a hole.
            target.seek(SeekFrom::Current(piece.len() as i64))?;
        } else {
            target.write_all(piece)?;
            if pace == Pace::Half {
                target.sync_data()?;
            }
        }
        left -= piece.len() as u64;
        if progress(piece.len() as u64).is_break() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if pace == Pace::Half {
            std::thread::sleep(begun.elapsed());
        }
    }
    target.sync_all()
}

/// Copies a store that is not open to a new folder, which appears when it is complete.
///
/// # Errors
/// An error of the operating system. The new folder does not exist then.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    // Without a slash at the end.
    let mut name = to.components().as_path().as_os_str().to_owned();
    name.push(".incomplete");
    let unfinished = Path::new(&name);
    match fs::remove_dir_all(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    copy_entries(from, unfinished)?;
    fs::rename(unfinished, to)?;
    match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn copy_entries(from: &Path, to: &Path) -> io::Result<()> {
    create_folder(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        let Some(name) = entry.file_name() else {
            continue;
        };
        if kind.is_dir() {
            copy_entries(&entry, &to.join(name))?;
        } else if kind.is_file() {
            let size = fs::metadata(&entry)?.len();
            let go_on = &mut |_| ControlFlow::Continue(());
            copy_file((&entry, size), (&to.join(name), size), Pace::Full, go_on)?;
        }
    }
    File::open(to)?.sync_all()
}
