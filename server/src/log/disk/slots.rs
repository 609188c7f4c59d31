//! The files of a log: found at an open, created ahead of use, and blanked after use.
//!
//! A file keeps its name; its header identifies its segment, if any. So reuse changes no
//! name.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::file::{Storage, StorageFile, read_exact};
use super::format::{FRAMES_START, HEADER_SPAN, Header};
use super::segment::Slot;
use super::table::max_bytes;
use super::writer::is_full;
use crate::sync::Mutex;

/// Maximum number of blank files; any others are removed.
pub(super) const SPARES_MAX: usize = 4;

/// The largest segment: offsets in it have 32 bits.
pub(super) const SIZE_MAX: u64 = u32::MAX as u64;

/// Size of a segment that begins before a blank file is ready: small enough to be zeroed
/// at once.
const STOPGAP_BYTES: u64 = 4 << 20;

const EXTENSION: &str = ".segment";
const UNFINISHED: &str = ".new";

/// The files of a log as found by an open.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Files with a valid header.
    pub(super) used: Vec<(Header, Slot)>,
    /// Other files.
    pub(super) blank: Vec<Slot>,
    /// Above the number of every name.
    pub(super) next_name: u64,
}

/// Removes the files that were never finished.
pub(super) fn remove_unfinished(storage: &dyn Storage) -> io::Result<()> {
    let names = storage.list()?;
    names
        .iter()
        .filter(|name| name.ends_with(UNFINISHED))
        .try_for_each(|name| storage.remove(name))
}

/// Looks at every file.
pub(super) fn survey(storage: &dyn Storage) -> io::Result<Survey> {
    let mut survey = Survey::default();
    for name in storage.list()? {
        let Some(number) = name
            .strip_suffix(EXTENSION)
            .and_then(|number| number.parse::<u64>().ok())
        else {
            continue;
        };
        survey.next_name = survey.next_name.max(number.saturating_add(1));
        let file = storage.open(&name)?;
        let size = file.len()?;
        let path = storage.path(&name);
        let header = match read_exact(&*file, 0, 2 * HEADER_SPAN) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            bytes => Header::decode(&bytes?),
        };
        match header {
            // A truncated file is left alone: if the log needs it, it is reported as
            // missing.
            Some(header) if !(FRAMES_START..=size.min(SIZE_MAX)).contains(&header.size) => {}
            Some(header) => {
                survey.used.push((
                    header,
                    Slot {
                        name,
                        path,
                        file,
                        size: header.size,
                    },
                ));
            }
            None => survey.blank.push(Slot {
                name,
                path,
                file,
                size,
            }),
        }
    }
    Ok(survey)
}

/// The files of an open log that hold no segment, and the space for more.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) spares: Spares,
    /// The usual size of a segment.
    pub(super) segment_bytes: u64,
    /// Free space when it was last looked up.
    free_bytes: AtomicU64,
    /// The last file could not be created for lack of space, regardless of the reported
    /// free space: there may be a quota.
    is_exhausted: AtomicBool,
}

impl Files {
    pub(super) fn new(storage: Arc<dyn Storage>, spares: Spares, segment_bytes: u64) -> Self {
        let (free_bytes, is_exhausted) = (u64::MAX.into(), false.into());
        let files = Self {
            storage,
            spares,
            segment_bytes,
            free_bytes,
            is_exhausted,
        };
        files.poll();
        files
    }

    /// Updates the free space.
    pub(super) fn poll(&self) {
        match self.storage.free_bytes() {
            Ok(bytes) => self.free_bytes.store(bytes, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "cannot look up the free space"),
        }
    }

    /// Returns the free space, without the files that hold no segment.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Returns the space for new segments: the free space, and the files that hold no
    /// segment.
    pub(super) fn available_bytes(&self) -> u64 {
        self.usable_bytes().saturating_add(self.spares.bytes())
    }

    /// Returns whether a segment of the usual size can be created.
    pub(super) fn has_segment(&self) -> bool {
        self.spares.has_usual() || self.usable_bytes() >= self.segment_bytes
    }

    fn usable_bytes(&self) -> u64 {
        if self.is_exhausted.load(Ordering::Relaxed) {
            0
        } else {
            self.free_bytes()
        }
    }

    /// Records whether a file of the usual size could be created.
    pub(super) fn note_made<T>(&self, made: &io::Result<T>) {
        match made {
            Ok(_) => self.note_room(),
            Err(error) if is_full(error) => self.is_exhausted.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
    }

    /// Records that there may be room for another file.
    pub(super) fn note_room(&self) {
        self.is_exhausted.store(false, Ordering::Relaxed);
    }

    /// Takes a file for a segment in which a frame of `length` bytes fits, with the
    /// index of its blocks.
    pub(super) fn take(&self, length: usize, index_bytes: usize) -> io::Result<Slot> {
        self.take_or_create(length, index_bytes, || self.spares.take())
    }

    /// Takes a file like [`Self::take`], but none that a later open may need if this one
    /// fails.
    pub(super) fn take_blank(&self, length: usize, index_bytes: usize) -> io::Result<Slot> {
        self.take_or_create(length, index_bytes, || self.spares.take_blank())
    }

    fn take_or_create(
        &self,
        length: usize,
        index_bytes: usize,
        take: impl FnOnce() -> Option<Slot>,
    ) -> io::Result<Slot> {
        let needed = FRAMES_START + (length + max_bytes(index_bytes)) as u64;
        let needed = needed.next_multiple_of(HEADER_SPAN as u64);
        if needed > SIZE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if needed <= self.segment_bytes
            && let Some(slot) = take()
        {
            return Ok(slot);
        }
        let size = needed.max(self.segment_bytes.min(STOPGAP_BYTES));
        let created = self.spares.create(&*self.storage, size);
        // A small file proves no room for a usual one.
        if size == self.segment_bytes || (size < self.segment_bytes && created.is_err()) {
            self.note_made(&created);
        }
        self.poll();
        created
    }
}

/// The files that hold no segment.
#[derive(Debug)]
pub(super) struct Spares {
    /// Held for a lookup, by the thread of the log and the maintenance thread.
    state: Mutex<SpareSlots>,
    /// Bytes of all files that hold no segment.
    bytes: AtomicU64,
    segment_bytes: u64,
}

#[derive(Debug, Default)]
struct SpareSlots {
    /// Blank files of the usual size.
    blank: Vec<Slot>,
    /// Files with the header of a segment that was freed, or of another size.
    dirty: Vec<Slot>,
    next_name: u64,
}

impl Spares {
    /// Creates the set from blank files, and from freed ones with a flag that allows
    /// overwriting at once.
    pub(super) fn new(
        mut blank: Vec<Slot>,
        mut freed: Vec<(Slot, bool)>,
        next_name: u64,
        segment_bytes: u64,
    ) -> Self {
        if !blank.iter().any(|slot| slot.size == segment_bytes)
            && let Some(at) = freed
                .iter()
                .position(|(slot, is_free)| *is_free && slot.size == segment_bytes)
        {
            blank.push(freed.swap_remove(at).0);
        }
        let freed: Vec<_> = freed.into_iter().map(|(slot, _)| slot).collect();
        let bytes = blank
            .iter()
            .chain(&freed)
            .map(|slot| slot.size)
            .sum::<u64>();
        let (blank, other): (Vec<_>, Vec<_>) = blank
            .into_iter()
            .partition(|slot| slot.size == segment_bytes);
        let dirty = freed.into_iter().chain(other).collect();
        Self {
            state: Mutex::new(SpareSlots {
                blank,
                dirty,
                next_name,
            }),
            bytes: bytes.into(),
            segment_bytes,
        }
    }

    /// Takes a blank file of the usual size.
    fn take_blank(&self) -> Option<Slot> {
        let slot = self.state.lock().blank.pop()?;
        self.bytes.fetch_sub(slot.size, Ordering::Relaxed);
        Some(slot)
    }

    /// Takes a blank file of the usual size, or a freed one.
    fn take(&self) -> Option<Slot> {
        let mut state = self.state.lock();
        let slot = match state.blank.pop() {
            Some(slot) => slot,
            None => {
                let at = state
                    .dirty
                    .iter()
                    .position(|slot| slot.size == self.segment_bytes)?;
                state.dirty.swap_remove(at)
            }
        };
        self.bytes.fetch_sub(slot.size, Ordering::Relaxed);
        Some(slot)
    }

    /// Returns whether there is a file of the usual size.
    fn has_usual(&self) -> bool {
        let state = self.state.lock();
        !state.blank.is_empty()
            || state
                .dirty
                .iter()
                .any(|slot| slot.size == self.segment_bytes)
    }

    /// Removes a file that turned out to be in use.
    pub(super) fn remove(&self, name: &str) {
        let mut state = self.state.lock();
        if let Some(at) = state.dirty.iter().position(|slot| slot.name == name) {
            let slot = state.dirty.swap_remove(at);
            self.bytes.fetch_sub(slot.size, Ordering::Relaxed);
        }
    }

    /// Adds a freed file.
    pub(super) fn give(&self, slot: Slot) {
        self.bytes.fetch_add(slot.size, Ordering::Relaxed);
        self.state.lock().dirty.push(slot);
    }

    /// Returns the bytes of all files that hold no segment.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of blank files.
    pub(super) fn blank_count(&self) -> usize {
        self.state.lock().blank.len()
    }

    /// Creates a file at once: zeroed if it is small, otherwise with reserved space.
    fn create(&self, storage: &dyn Storage, size: u64) -> io::Result<Slot> {
        let name = self.next_name();
        let file = storage.create(&name)?;
        let fill = || match size {
            ..=STOPGAP_BYTES => file.write_at(&vec![0; size as usize], 0),
            _ => file.allocate(size),
        };
        if let Err(error) = fill()
            .and_then(|()| file.sync())
            .and_then(|()| storage.sync_names())
        {
            // It would use up the scarce space.
            let _ = storage.remove(&name);
            return Err(error);
        }
        Ok(Slot {
            path: storage.path(&name),
            name,
            file,
            size,
        })
    }

    /// Cleans one freed file: blanks or removes it. After an error, the other files come
    /// first.
    pub(super) fn clean(&self, storage: &dyn Storage) -> io::Result<Cleaned> {
        let (slot, is_kept) = {
            let mut state = self.state.lock();
            let Some(slot) = state.dirty.pop() else {
                return Ok(Cleaned::Nothing);
            };
            let is_kept = slot.size == self.segment_bytes && state.blank.len() < SPARES_MAX;
            (slot, is_kept)
        };
        let cleaned = if is_kept {
            slot.blank()
        } else {
            storage.remove(&slot.name)
        };
        let mut state = self.state.lock();
        match cleaned {
            Ok(()) if is_kept => state.blank.push(slot),
            Ok(()) => {
                self.bytes.fetch_sub(slot.size, Ordering::Relaxed);
            }
            Err(error) => {
                state.dirty.insert(0, slot);
                return Err(error);
            }
        }
        Ok(if is_kept {
            Cleaned::Blanked
        } else {
            Cleaned::Removed
        })
    }

    /// Begins a file that is zeroed ahead of use, and reserves its space.
    pub(super) fn begin(&self, storage: &dyn Storage) -> io::Result<Unfinished> {
        let name = self.next_name();
        let unfinished = format!("{name}{UNFINISHED}");
        let file = storage.create(&unfinished)?;
        let uncached = match file.allocate(self.segment_bytes) {
            Ok(()) => storage.open_uncached(&unfinished),
            Err(error) => Err(error),
        };
        let uncached = uncached.inspect_err(|_| {
            // It would use up the scarce space.
            let _ = storage.remove(&unfinished);
        })?;
        let slot = Slot {
            path: storage.path(&name),
            name,
            file,
            size: self.segment_bytes,
        };
        self.bytes.fetch_add(slot.size, Ordering::Relaxed);
        Ok(Unfinished {
            slot,
            name: unfinished,
            uncached: Some(uncached),
            written: 0,
            has_failed: false,
        })
    }

    /// Adds a finished file, which the caller drops.
    pub(super) fn finish(
        &self,
        storage: &dyn Storage,
        unfinished: &mut Unfinished,
    ) -> io::Result<()> {
        let Unfinished { slot, name, .. } = unfinished;
        slot.file.sync()?;
        storage.rename(name, &slot.name)?;
        name.clone_from(&slot.name);
        storage.sync_names()?;
        self.state.lock().blank.push(slot.clone());
        Ok(())
    }

    /// Removes an unfinished file.
    pub(super) fn abandon(&self, storage: &dyn Storage, unfinished: &Unfinished) -> io::Result<()> {
        storage.remove(&unfinished.name)?;
        self.bytes
            .fetch_sub(unfinished.slot.size, Ordering::Relaxed);
        Ok(())
    }

    fn next_name(&self) -> String {
        let mut state = self.state.lock();
        let number = state.next_name;
        state.next_name += 1;
        format!("{number:08}{EXTENSION}")
    }
}

/// The result of cleaning a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleaned {
    /// There was no file to clean.
    Nothing,
    Blanked,
    Removed,
}

/// A file that is being zeroed.
#[derive(Debug)]
pub(super) struct Unfinished {
    slot: Slot,
    /// The current name of the file.
    name: String,
    /// A handle that bypasses the page cache; `None` if the file does not support it.
    uncached: Option<Arc<dyn StorageFile>>,
    written: u64,
    /// The content is uncertain: the file must be removed.
    pub(super) has_failed: bool,
}

impl Unfinished {
    /// Returns whether any zeros were written.
    pub(super) fn is_begun(&self) -> bool {
        self.written > 0
    }

    /// Writes the next piece of zeros, which are aligned. Returns whether the file is
    /// complete.
    pub(super) fn write(&mut self, zeros: &[u8]) -> io::Result<bool> {
        let length = (self.slot.size - self.written).min(zeros.len() as u64);
        let piece = zeros.get(..length as usize).unwrap_or(zeros);
        let uncached = self
            .uncached
            .as_ref()
            .map(|file| file.write_at(piece, self.written));
        match uncached {
            // One sync at the end: each sync would commit the file system's journal, and
            // the log's own syncs would wait for that.
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => return Err(error),
            _ => {
                self.uncached = None;
                self.slot.file.write_at(piece, self.written)?;
                // In small steps, so that commits do not wait long.
                self.slot.file.sync()?;
            }
        }
        self.written += length;
        Ok(self.written == self.slot.size)
    }
}
