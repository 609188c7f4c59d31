//! The run of a process: it owns the own messages that it has typed and that are not
//! answered. A lock tells whether the process still lives; a later run adopts the
//! messages of one that has ended.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use rand::distr::Alphanumeric;

/// Length of the name of a run, in characters.
const NAME_CHARS: usize = 16;

/// The run of this process. Its end is the end of the lock.
#[derive(Debug)]
pub(super) struct Run {
    name: String,
    /// `None` in memory.
    _lock: Option<File>,
}

impl Run {
    /// Begins a run, with a locked file in `directory`.
    pub(super) fn begin(directory: Option<&Path>) -> io::Result<Self> {
        let name: String = rand::rng()
            .sample_iter(&Alphanumeric)
            .take(NAME_CHARS)
            .map(char::from)
            .collect();
        let lock = match directory {
            Some(directory) => {
                fs::create_dir_all(directory)?;
                Some(lock_new(&directory.join(&name))?)
            }
            None => None,
        };
        Ok(Self { name, _lock: lock })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// A run that has ended, locked so that no other process adopts its messages.
pub(super) struct EndedRun {
    path: PathBuf,
    _lock: File,
}

impl EndedRun {
    /// Locks a run of this directory; `None` if its process lives.
    pub(super) fn lock(directory: &Path, name: &str) -> io::Result<Option<Self>> {
        let path = directory.join(name);
        let lock = open(&path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the file, once no message belongs to the run.
    pub(super) fn forget(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Creates and locks a file. Until it is locked, another process may remove it.
fn lock_new(path: &Path) -> io::Result<File> {
    loop {
        let lock = open(path)?;
        lock.lock()?;
        if path.try_exists()? {
            return Ok(lock);
        }
    }
}

/// Removes the files of runs that have ended, except those that own messages.
pub(super) fn sweep(directory: &Path, owns_messages: impl Fn(&str) -> bool) -> io::Result<()> {
    for file in fs::read_dir(directory)? {
        let name = file?.file_name();
        if let Some(name) = name.to_str()
            && !owns_messages(name)
            && let Some(ended) = EndedRun::lock(directory, name)?
        {
            ended.forget()?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
