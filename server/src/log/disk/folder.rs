//! The folder of a store on disk: its format, its lock, and its permissions.
//!
//! | file | content |
//! | --- | --- |
//! | `FORMAT` | one line with the version of everything here; written first |
//! | `LOCK` | locked by the process that has the store open; its pid |
//! | `log/` | the files of the disk log |
//! | `log.new/` | a log that is being salvaged |
//! | `log.damaged-1/`, … | logs that were salvaged, as they were |

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::OsStorage;
use super::head::{self, HeadFile};
use crate::log::{LogError, OpenError};

const FORMAT: &str = "FORMAT";
const FORMAT_NAME: &str = "hark store ";
/// The version that this program reads and writes.
const FORMAT_VERSION: u32 = 3;
const LOCK: &str = "LOCK";
const LOG: &str = "log";

/// The name of a log that will replace a damaged one, and the name prefix of damaged
/// ones, which a number follows.
const NEW_LOG: &str = "log.new";
const DAMAGED_LOG: &str = "log.damaged-";

/// Permissions of others in the mode of a folder.
const MODE_OTHERS: u32 = 0o077;

/// How long an open waits for the lock: a large process that was killed holds it until
/// its memory is freed.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// The longest pid with its line break.
const PID_LINE_BYTES_MAX: usize = 16;

/// Returns the folder of the log in a store.
pub(super) fn log_of(store: &Path) -> PathBuf {
    store.join(LOG)
}

/// Writes the format of a store durably.
pub(super) fn write_format(store: &Path) -> io::Result<()> {
    let line = format!("{FORMAT_NAME}{FORMAT_VERSION}\n");
    write_synced(store, FORMAT, line.as_bytes())
}

/// The purpose of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A folder that this process has locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: Option<File>,
}

impl Folder {
    /// Locks the folder, waiting up to `timeout` for another process. Creates the folder
    /// if there is none.
    pub(super) fn open(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        create_folder(path).map_err(io)?;
        // Never write into a folder that may belong to another program.
        if !has_format(path)? && !is_free(path).map_err(io)? {
            return Err(
                missing_format(path).unwrap_or_else(|| OpenError::NotAStore(path.to_owned()))
            );
        }
        let lock = lock(path, timeout)?;
        warn_if_open_to_others(path).map_err(io)?;
        let folder = Self {
            path: path.to_owned(),
            _lock: Some(lock),
        };
        if !has_format(path)? {
            // The log comes first: if it is missing or empty later, it was lost.
            create_folder(&folder.log()).map_err(io)?;
            HeadFile::create(&OsStorage::new(&folder.log())).map_err(io)?;
            write_format(path).map_err(io)?;
        }
        folder.verify()?;
        Ok(folder)
    }

    /// Locks the folder of an existing store.
    pub(super) fn open_existing(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        check_existing(path)?;
        Self::open(path, timeout)
    }

    /// Locks the folder of an existing store against changes by other processes, without
    /// changes to it.
    pub(super) fn open_read_only(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        check_existing(path)?;
        let folder = Self {
            path: path.to_owned(),
            _lock: lock_shared(path, timeout)?,
        };
        folder.verify()?;
        Ok(folder)
    }

    /// Checks that the folder still holds a store with a log.
    pub(super) fn verify(&self) -> Result<(), OpenError> {
        check_existing(&self.path)?;
        if self.log().is_dir() {
            return Ok(());
        }
        Err(OpenError::Damaged {
            path: self.path.clone(),
            what: format!("{LOG} is missing"),
        })
    }

    /// Locks the folder of a store whose log may be damaged or missing.
    pub(super) fn salvage(
        path: &Path,
        timeout: Duration,
        access: Access,
    ) -> Result<Self, OpenError> {
        check_existing(path)?;
        let lock = match access {
            Access::Read => lock_shared(path, timeout)?,
            Access::Write => Some(lock(path, timeout)?),
        };
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Returns the log to salvage: an interrupted salvage may already have moved it
    /// aside.
    pub(super) fn readable_log(&self) -> PathBuf {
        let log = self.log();
        if log.is_dir() {
            log
        } else {
            self.damaged_logs().last().cloned().unwrap_or(log)
        }
    }

    /// Creates the folder of a log that will replace the damaged one.
    pub(super) fn begin_log(&self) -> Result<PathBuf, OpenError> {
        let path = self.path.join(NEW_LOG);
        let made = match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => create_folder(&path),
        };
        made.map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Replaces the damaged log with the new one. Returns the new path of the damaged
    /// log.
    pub(super) fn replace_log(&self) -> Result<PathBuf, LogError> {
        let log = self.log();
        let replace = || {
            let mut aside = self.readable_log();
            if aside == log {
                let number = self.damaged_logs().len() + 1;
                aside = self.path.join(format!("{DAMAGED_LOG}{number}"));
                fs::rename(&log, &aside)?;
            }
            fs::rename(self.path.join(NEW_LOG), &log)?;
            sync_folder(&self.path)?;
            Ok(aside)
        };
        replace().map_err(|source| LogError {
            path: log.clone(),
            source,
        })
    }

    /// Returns the damaged logs, the newest last.
    fn damaged_logs(&self) -> Vec<PathBuf> {
        let paths = (1_u32..).map(|number| self.path.join(format!("{DAMAGED_LOG}{number}")));
        paths.take_while(|path| path.is_dir()).collect()
    }

    /// Returns the folder of the log.
    pub(super) fn log(&self) -> PathBuf {
        log_of(&self.path)
    }
}

/// Creates a folder and its missing parents durably, for this user alone.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    create_folder(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
            return Err(error);
        }
        _ => {}
    }
    sync_folder(parent)
}

/// Returns whether the folder holds a store of the known format.
fn has_format(path: &Path) -> Result<bool, OpenError> {
    let file = path.join(FORMAT);
    let line = match fs::read(&file) {
        Ok(line) => line,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(OpenError::Io { path: file, source }),
    };
    match version_in(&line) {
        Some(FORMAT_VERSION) => Ok(true),
        Some(found) if found > 0 => Err(OpenError::OtherFormat {
            path: path.to_owned(),
            found,
            expected: FORMAT_VERSION,
        }),
        _ => Err(OpenError::Damaged {
            path: path.to_owned(),
            what: format!("{FORMAT} names no format"),
        }),
    }
}

fn version_in(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line)
        .ok()?
        .strip_prefix(FORMAT_NAME)?
        .strip_suffix('\n')?;
    let version: u32 = digits.parse().ok()?;
    (version.to_string() == digits).then_some(version)
}

/// Checks that a folder holds a store of the known format.
pub(super) fn check_existing(path: &Path) -> Result<(), OpenError> {
    if has_format(path)? {
        return Ok(());
    }
    let is_free = path.is_dir() && is_free(path).unwrap_or(false);
    let damage = missing_format(path).filter(|_| !is_free);
    Err(damage.unwrap_or_else(|| OpenError::NoStore(path.to_owned())))
}

/// Returns the damage of a store without `FORMAT`, if the folder is a store.
fn missing_format(path: &Path) -> Option<OpenError> {
    let what = format!("{FORMAT} is missing");
    (path.join(LOG).is_dir() && path.join(LOCK).exists()).then(|| OpenError::Damaged {
        path: path.to_owned(),
        what,
    })
}

/// Returns whether a folder is empty except for remnants of a start that was interrupted
/// before it wrote `FORMAT`.
fn is_free(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_empty_log = name == LOG && is_empty_log(&entry.path());
        if name != LOCK && name != temporary(FORMAT).as_str() && !is_empty_log {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether the folder of a log holds at most a `HEAD`.
fn is_empty_log(path: &Path) -> bool {
    let is_head =
        |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() == head::NAME);
    fs::read_dir(path).is_ok_and(|mut files| files.all(is_head))
}

fn lock(path: &Path, timeout: Duration) -> Result<File, OpenError> {
    let lock = path.join(LOCK);
    let mut options = OpenOptions::new();
    options
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600);
    let file = options
        .open(&lock)
        .map_err(|source| OpenError::Io { path: lock, source })?;
    let file = wait_for_lock(path, file, timeout, File::try_lock)?;
    if let Err(error) = write_pid(&file) {
        // The pid is only used in the error message of another process.
        tracing::debug!(%error, "cannot write the pid into the lock file");
    }
    Ok(file)
}

/// Locks a folder against changes by other processes, without a change to it.
fn lock_shared(path: &Path, timeout: Duration) -> Result<Option<File>, OpenError> {
    let lock = path.join(LOCK);
    match File::open(&lock) {
        Ok(file) => wait_for_lock(path, file, timeout, File::try_lock_shared).map(Some),
        // A copy without a lock file is not open anywhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Io { path: lock, source }),
    }
}

fn wait_for_lock(
    path: &Path,
    file: File,
    timeout: Duration,
    try_lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<File, OpenError> {
    let begun = Instant::now();
    let mut is_logged = false;
    loop {
        match try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < timeout => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse {
                    path: path.to_owned(),
                    pid: read_pid(&file),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Io {
                    path: path.join(LOCK),
                    source,
                });
            }
        }
        if !is_logged {
            let (store, timeout_s, pid) = (path.display(), timeout.as_secs(), read_pid(&file));
            tracing::info!(%store, pid, timeout_s, "store in use by another process: waiting for its lock");
            is_logged = true;
        }
        std::thread::sleep(LOCK_RETRY_INTERVAL);
    }
}

fn write_pid(file: &File) -> io::Result<()> {
    let pid = format!("{}\n", std::process::id());
    file.set_len(0)?;
    file.write_all_at(pid.as_bytes(), 0)
}

/// Returns the pid in a lock file, if there is one.
fn read_pid(file: &File) -> Option<u32> {
    let mut line = [0; PID_LINE_BYTES_MAX];
    let length = file.read_at(&mut line, 0).ok()?;
    std::str::from_utf8(line.get(..length)?)
        .ok()?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// Warns about a folder that other users can access.
fn warn_if_open_to_others(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        let (store, mode) = (path.display(), format!("{mode:03o}"));
        tracing::warn!(%store, mode, "store accessible to other users of this machine; run chmod 700 on it");
    }
    Ok(())
}

/// Writes a small file atomically.
fn write_synced(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = folder.join(temporary(name));
    // A remnant of an interrupted start, or a link to another file.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, folder.join(name))?;
    sync_folder(folder)
}

fn temporary(name: &str) -> String {
    format!("{name}.new")
}

fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::SYNCED.with_borrow_mut(|synced| synced.push(path.to_owned()));
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// The folders that a test on this thread has synced.
        pub(super) static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    fn open(path: &Path) -> Result<Folder, OpenError> {
        Folder::open(path, Duration::ZERO)
    }

    #[test]
    fn parents_of_new_folder_are_synced() {
        let home = tempfile::tempdir().unwrap();
        drop(open(&home.path().join("a/b")).unwrap());
        let synced = SYNCED.take();
        for folder in ["", "a", "a/b"] {
            let folder = home.path().join(folder);
            assert!(synced.contains(&folder), "{} {synced:?}", folder.display());
        }
    }

    #[test]
    fn folder_is_made_private_with_its_parents() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        drop(open(&path).unwrap());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(
            fs::read_to_string(path.join(FORMAT)).unwrap(),
            "hark store 3\n"
        );
        drop(open(&path).unwrap());
    }

    #[test]
    fn locked_folder_is_in_use() {
        let home = tempfile::tempdir().unwrap();
        let folder = open(home.path()).unwrap();
        let error = open(home.path()).unwrap_err();
        assert!(
            matches!(error, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id())
        );
        assert!(error.to_string().contains(&format!(
            "in use by another harkd (pid {})",
            std::process::id()
        )));
        let path = home.path().to_owned();
        let waiting = std::thread::spawn(move || Folder::open(&path, LOCK_TIMEOUT).map(drop));
        std::thread::sleep(Duration::from_millis(120));
        drop(folder);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn formats_before_are_refused() {
        for version in [1, 2, 4] {
            let home = tempfile::tempdir().unwrap();
            fs::write(home.path().join(FORMAT), format!("hark store {version}\n")).unwrap();
            let error = open(home.path()).unwrap_err();
            assert!(
                matches!(error, OpenError::OtherFormat { found, expected: 3, .. } if found == version)
            );
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn folder_of_something_else_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("thesis.txt"), "mine").unwrap();
        assert!(matches!(open(home.path()), Err(OpenError::NotAStore(_))));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn missing_or_garbled_format_is_damage() {
        let home = tempfile::tempdir().unwrap();
        drop(open(home.path()).unwrap());
        fs::write(home.path().join(FORMAT), "hark store 03\n").unwrap();
        assert!(matches!(open(home.path()), Err(OpenError::Damaged { .. })));
        fs::remove_file(home.path().join(FORMAT)).unwrap();
        assert!(open(home.path()).is_ok(), "it has no segment yet");
        fs::remove_file(home.path().join(FORMAT)).unwrap();
        fs::write(home.path().join(LOG).join("00000000.segment"), "").unwrap();
        assert!(matches!(open(home.path()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn missing_log_is_damage() {
        let home = tempfile::tempdir().unwrap();
        drop(open(home.path()).unwrap());
        fs::remove_dir_all(home.path().join(LOG)).unwrap();
        assert!(matches!(open(home.path()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn folder_is_read_without_a_change() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path();
        assert!(matches!(
            Folder::open_read_only(path, Duration::ZERO),
            Err(OpenError::NoStore(_))
        ));
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        let missing = path.join("missing");
        assert!(matches!(
            Folder::open_read_only(&missing, Duration::ZERO),
            Err(OpenError::NoStore(_))
        ));
        let folder = open(path).unwrap();
        assert!(matches!(
            Folder::open_read_only(path, Duration::ZERO),
            Err(OpenError::InUse { .. })
        ));
        drop(folder);
        let readers = [(); 2].map(|()| Folder::open_read_only(path, Duration::ZERO).unwrap());
        assert!(matches!(open(path), Err(OpenError::InUse { .. })));
        drop(readers);
        fs::remove_file(path.join(LOCK)).unwrap();
        Folder::open_read_only(path, Duration::ZERO).unwrap();
        assert!(!path.join(LOCK).exists());
    }

    #[test]
    fn interrupted_start_is_begun_again() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("FORMAT.new"), "hark").unwrap();
        fs::write(home.path().join(LOCK), "").unwrap();
        fs::create_dir(home.path().join(LOG)).unwrap();
        drop(open(home.path()).unwrap());
    }
}
