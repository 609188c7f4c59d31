//! The file layer under the disk log: the few operations that it needs, and
//! their implementation by the operating system.
//!
//! Everything that the log does to its folder goes through [`Storage`], so that a
//! test can fail, tear, lose and replay each operation.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder with files.
pub(super) trait Storage: Send + Sync + fmt::Debug {
    /// Returns the names of the files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens an existing file for writes of whole, aligned pages. They bypass the page
    /// cache if the file system supports it.
    fn open_uncached(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.open(name)
    }

    /// Creates an empty file, replacing a file of that name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Renames a file, replacing a file of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Open handles stay valid.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names of the files durable.
    fn sync_names(&self) -> io::Result<()>;

    /// Returns the free space in bytes.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Returns the path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file that is open for reading and writing, from any thread.
pub(super) trait StorageFile: Send + Sync + fmt::Debug {
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads up to the length of the buffer; less only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes. After an error, any part of them may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the file at least this long and reserves the space for it.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Makes all earlier writes durable.
    fn sync(&self) -> io::Result<()>;
}

/// Reads exactly `length` bytes, or fails with `UnexpectedEof`.
pub(super) fn read_exact(
    file: &dyn StorageFile,
    offset: u64,
    length: usize,
) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    if file.read_at(&mut buffer, offset)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer)
}

/// A folder of the operating system.
#[derive(Debug)]
pub(super) struct OsStorage {
    path: PathBuf,
    is_read_only: bool,
}

impl OsStorage {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            is_read_only: false,
        }
    }

    /// Returns a folder whose files cannot be changed.
    pub(super) fn read_only(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            is_read_only: true,
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_read_only {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        } else {
            Ok(())
        }
    }
}

impl Storage for OsStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // The log uses no name that is not UTF-8.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(!self.is_read_only)
            .open(self.path(name))?;
        Ok(Arc::new(OsFile(file)))
    }

    fn open_uncached(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        match OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(self.path(name))
        {
            Ok(file) => Ok(Arc::new(OsFile(file))),
            // The file system does not support it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.open(name),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.check_writable()?;
        // A remnant of an interrupted run, or a link to another file.
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))?;
        Ok(Arc::new(OsFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check_writable()?;
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.path)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[derive(Debug)]
struct OsFile(File);

impl StorageFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        use rustix::io::Errno;
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            // The file system cannot reserve space: a later write may run out of space.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.0.set_len(length.max(self.0.metadata()?.len()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
