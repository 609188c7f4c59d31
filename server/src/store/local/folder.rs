//! The folder of an embedded store: who may open it, and what lies in it.
//!
//! | file | what |
//! | --- | --- |
//! | `FORMAT` | one line with the version of everything here; written first |
//! | `LOCK` | locked by the process that has the store open |
//! | `COMMITS` | how many commits are known to be durable, see [`CommitsFile`] |
//! | `engine/` | what the storage engine keeps; it appears whole or not at all |
//! | `engine.rebuilt/` | one that takes its place where it was damaged, without `engine/` a whole one |
//! | `engine.damaged/` | the one whose place was taken |

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

const FORMAT: &str = "FORMAT";
const FORMAT_LINE: &str = "hark store 3\n";
const FORMAT_NAME: &str = "hark store ";
/// The version in [`FORMAT_LINE`].
const FORMAT_VERSION: u32 = 3;
const LOCK: &str = "LOCK";
const COMMITS: &str = "COMMITS";
const ENGINE: &str = "engine";
const REPLACEMENT: &str = "engine.rebuilt";
const DAMAGED: &str = "engine.damaged";

/// Somebody else than its owner may look into a folder with one of these in its
/// mode.
const MODE_OTHERS: u32 = 0o077;

/// Why a store cannot be opened. Each is one line that says what is wrong and
/// what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store {} is in use by another process; stop that one, or choose another folder", .0.display())]
    InUse(PathBuf),
    /// There are files in the folder, and they are no store.
    #[error("the folder {} is not empty and holds no store; choose an empty or a new folder", .0.display())]
    NotAStore(PathBuf),
    /// The store was written by another version of the program.
    #[error("the store {} has the format {found}, and this version knows the format {FORMAT_VERSION} alone; open it with the version that wrote it", path.display())]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// The version of its format.
        found: u32,
    },
    /// Something that was on stable storage is not there any more, and the
    /// store can go on without it.
    #[error("the store {} is damaged: {what}; restore it from a backup, or go on with what is left by --accept-data-loss", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        what: String,
        /// Commits that were durable and are missing, where that is known.
        lost: Option<u64>,
    },
    /// A file without which nothing of it can be read is missing, or is not
    /// what was written there.
    #[error("the store {} is damaged: {what}; restore it from a backup", path.display())]
    Ruined {
        /// The folder.
        path: PathBuf,
        /// What is wrong with which file.
        what: String,
    },
    /// A file cannot be read or written.
    #[error("{}, which the store needs, cannot be read or written; check the disk and the permissions", path.display())]
    Io {
        /// The folder, or what is in it.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The storage engine refuses.
    #[error("the store {} cannot be opened by its engine; check the disk", path.display())]
    Engine {
        /// The folder.
        path: PathBuf,
        /// What the engine says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A folder that this process has locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder for this process; makes it where there is none.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        // Nothing is written into a folder that may be somebody else's.
        let known = read_format(path)?;
        if !known && !is_free(path).map_err(io)? {
            return Err(unknown(path));
        }
        let lock = lock(path)?;
        warn_if_open_to_others(path).map_err(io)?;
        if !read_format(path)? {
            write_synced(path, FORMAT, FORMAT_LINE.as_bytes()).map_err(io)?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the engine keeps its files, once they are there.
    pub(super) fn engine(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Whether the engine has a folder.
    pub(super) fn has_engine(&self) -> Result<bool, OpenError> {
        let path = self.engine();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(true),
            Ok(_) => Err(self.ruined(format!("{ENGINE} is no folder"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.has_replacement(),
            Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    /// Finishes what [`Self::replace_engine`] was kept from.
    fn has_replacement(&self) -> Result<bool, OpenError> {
        match fs::rename(self.path.join(REPLACEMENT), self.engine()).and_then(|()| sync_folder(&self.path)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(OpenError::Io { path: self.engine(), source }),
        }
    }

    /// Puts another engine, which `make` makes, in the place of the one that is
    /// there and that is kept beside. It happens wholly or not at all.
    pub(super) fn replace_engine(
        &self,
        make: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let io = |source| OpenError::Io { path: self.engine(), source };
        let (replacement, kept) = (self.path.join(REPLACEMENT), self.path.join(DAMAGED));
        for left in [&replacement, &kept] {
            if left.try_exists().map_err(io)? {
                fs::remove_dir_all(left).map_err(io)?;
            }
        }
        make(&replacement)?;
        sync_folder(&self.path).map_err(io)?;
        fs::rename(self.engine(), &kept).map_err(io)?;
        tracing::warn!(engine = %kept.display(), "the damaged engine is kept");
        fs::rename(&replacement, self.engine()).map_err(io)?;
        sync_folder(&self.path).map_err(io)
    }

    /// Makes the engine's folder so that it appears whole or not at all:
    /// `make` fills another one, which is renamed.
    pub(super) fn make_engine(
        &self,
        make: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let io = |source| OpenError::Io { path: self.path.clone(), source };
        let unfinished = self.path.join("engine.new");
        if unfinished.try_exists().map_err(io)? {
            fs::remove_dir_all(&unfinished).map_err(io)?;
        }
        make(&unfinished)?;
        fs::rename(&unfinished, self.engine()).map_err(io)?;
        sync_folder(&self.path).map_err(io)
    }

    /// Where the count of durable commits is kept.
    pub(super) fn commits_path(&self) -> PathBuf {
        self.path.join(COMMITS)
    }

    /// The count of durable commits, or `None` where none was ever kept.
    pub(super) fn commits(&self) -> Result<Option<CommitsFile>, OpenError> {
        let path = self.commits_path();
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(CommitsFile { file })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    /// Begins to count durable commits, or begins anew.
    pub(super) fn make_commits(&self, commits: Commits) -> Result<CommitsFile, OpenError> {
        let path = self.commits_path();
        let io = |source| OpenError::Io { path: path.clone(), source };
        write_synced(&self.path, COMMITS, &commits.encode()).map_err(io)?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io)?;
        Ok(CommitsFile { file })
    }

    /// A loss, for whoever opens the store.
    pub(super) fn damaged(&self, what: impl Into<String>, lost: Option<u64>) -> OpenError {
        OpenError::Damaged { path: self.path.clone(), what: what.into(), lost }
    }

    /// The loss of everything, for whoever opens the store.
    pub(super) fn ruined(&self, what: impl Into<String>) -> OpenError {
        OpenError::Ruined { path: self.path.clone(), what: what.into() }
    }
}

/// What is in `COMMITS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Commits {
    /// Commits that are on stable storage, at least.
    pub(super) durable: u64,
    /// The store was closed in order: nothing has to be recovered.
    pub(super) clean: bool,
}

/// The count of durable commits, kept beside the engine, whose own count must
/// never be lower: that is how it shows when the engine has lost the end of its
/// journal, which it cuts off without a word where it cannot read it.
///
/// It is written after each sync and is itself not synced. So it can be too low
/// after the machine has crashed, but never too high.
#[derive(Debug)]
pub(super) struct CommitsFile {
    file: File,
}

impl CommitsFile {
    /// What it says, or `None` where it cannot be read as a count.
    pub(super) fn read(&self) -> io::Result<Option<Commits>> {
        let mut bytes = Vec::with_capacity(Commits::BYTES);
        (&self.file).take(64).read_to_end(&mut bytes)?;
        Ok(Commits::decode(&bytes))
    }

    /// Notes the count. The operating system has it when this returns.
    pub(super) fn write(&self, commits: Commits) -> io::Result<()> {
        self.file.write_all_at(&commits.encode(), 0)
    }

    /// Notes the count. It is on stable storage when this returns.
    pub(super) fn write_synced(&self, commits: Commits) -> io::Result<()> {
        self.write(commits)?;
        self.file.sync_data()
    }
}

impl Commits {
    const BYTES: usize = 8 + 1 + 4;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (body, crc) = bytes.split_at_mut(9);
        body.copy_from_slice(&[&self.durable.to_be_bytes()[..], &[u8::from(self.clean)]].concat());
        crc.copy_from_slice(&crc32fast::hash(body).to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let (durable, clean) = body.split_first_chunk::<8>()?;
        let whole = crc32fast::hash(body) == u32::from_be_bytes(*crc) && clean.len() == 1;
        whole.then(|| Self { durable: u64::from_be_bytes(*durable), clean: clean == [1] })
    }
}

/// A store that was made by this program is nobody else's. One that an operator
/// has put there may be open on purpose.
fn warn_if_open_to_others(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        let (store, mode) = (path.display(), format!("{mode:03o}"));
        tracing::warn!(%store, mode, "others on this machine may look into the store; chmod 700 makes it yours alone");
    }
    Ok(())
}

/// Whether there is a store of the known format.
fn read_format(path: &Path) -> Result<bool, OpenError> {
    let file = path.join(FORMAT);
    match fs::read(&file) {
        Ok(line) if line == FORMAT_LINE.as_bytes() => Ok(true),
        Ok(line) => Err(match version_in(&line) {
            Some(found) if found > 0 => OpenError::OtherFormat { path: path.to_owned(), found },
            _ => OpenError::Ruined {
                path: path.to_owned(),
                what: format!("{FORMAT} is not what was written there"),
            },
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(OpenError::Io { path: file, source }),
    }
}

fn version_in(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix(FORMAT_NAME)?.strip_suffix('\n')?.parse().ok()
}

/// What a folder is that has files but no `FORMAT`.
fn unknown(path: &Path) -> OpenError {
    if [COMMITS, ENGINE].iter().all(|name| path.join(name).exists()) {
        return OpenError::Ruined { path: path.to_owned(), what: format!("{FORMAT} is gone") };
    }
    OpenError::NotAStore(path.to_owned())
}

/// Whether there is nothing in a folder but what a start leaves behind that was
/// interrupted before `FORMAT` was there.
fn is_free(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != LOCK && name != temporary(FORMAT).as_str() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock = path.join(LOCK);
    let io = |source| OpenError::Io { path: lock.clone(), source };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Writes a small file so that it is there whole or not at all.
fn write_synced(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = folder.join(temporary(name));
    // What is left of an interrupted start, or a link that somebody has put there
    // to have another file overwritten.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, folder.join(name))?;
    sync_folder(folder)
}

fn temporary(name: &str) -> String {
    format!("{name}.new")
}

/// Makes it durable which files there are in a folder.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
