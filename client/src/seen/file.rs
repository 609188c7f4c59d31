//! The record of seen messages in files: one for each user of a server or a
//! cluster, and one for each room of a user.
//!
//! A file consists of lines `SEQUENCE TIME_MS.`, in the order in which the
//! messages were seen. Each line is appended with one write. When a file
//! exceeds its limit, it is replaced, by a rename, with one that holds the last
//! window. A process that is killed at any moment leaves one of the two files
//! intact, and at most one torn line, which lacks the full stop and is skipped.
//! Writers in several processes are serialized by a lock on a separate file
//! that is never renamed. Nothing is synced: a power failure may lose the
//! newest lines, which can repeat a message but never loses one.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use hark_protocol::{RoomName, Sequence, UserName};

use super::{MessageId, REMEMBERED, SeenStore};

/// Size in bytes at which a file is truncated. A line has about 20 bytes, a
/// truncated file up to 54 kB.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The record of seen messages in the files of a directory.
#[derive(Debug)]
pub struct FileSeenStore {
    directory: PathBuf,
}

impl FileSeenStore {
    /// Returns the store for the users of `servers`, in a directory below
    /// `directory`. `servers` is one server, or the servers of one cluster
    /// joined by commas in any order. Each set of servers has its own record,
    /// since overlapping sets may still be different stores. No file is created
    /// before the first message is seen.
    #[must_use]
    pub fn new(directory: &Path, servers: &str) -> Self {
        let names: BTreeSet<String> = servers.split(',').map(file_name).collect();
        // No user's file has the name of a second or later server: a plus sign
        // is always escaped.
        let prefixes = std::iter::once("").chain(std::iter::repeat("+"));
        let below = names
            .iter()
            .zip(prefixes)
            .map(|(name, prefix)| format!("{prefix}{name}"));
        Self {
            directory: below.fold(directory.to_owned(), |path, name| path.join(name)),
        }
    }

    fn path(&self, user: &UserName, room: Option<&RoomName>) -> PathBuf {
        let user = file_name(user.as_str());
        match room {
            None => self.directory.join(user),
            // No user's file has this name: a dot is always escaped.
            Some(room) => self
                .directory
                .join(format!("{user}.rooms"))
                .join(file_name(room.as_str())),
        }
    }

    /// Locks the directory against other processes until the file is dropped.
    fn lock(&self) -> io::Result<File> {
        fs::create_dir_all(&self.directory)?;
        // No user's file has this name: a dot is always escaped.
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(".lock"))?;
        lock.lock()?;
        Ok(lock)
    }
}

impl SeenStore for FileSeenStore {
    fn load(&self, user: &UserName, room: Option<&RoomName>) -> io::Result<Vec<MessageId>> {
        let path = self.path(user, room);
        read(&path).map_err(|error| naming(&path, "read", &error))
    }

    fn record(
        &self,
        user: &UserName,
        room: Option<&RoomName>,
        message: MessageId,
    ) -> io::Result<()> {
        let path = self.path(user, room);
        let record = || {
            let _turn = self.lock()?;
            if append(&path, message)? > FILE_BYTES_MAX {
                cut(&path)
            } else {
                Ok(())
            }
        };
        record().map_err(|error| naming(&path, "write", &error))
    }
}

fn naming(path: &Path, verb: &str, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "cannot {verb} the record of seen messages {}: {error}",
            path.display()
        ),
    )
}

fn read(path: &Path) -> io::Result<Vec<MessageId>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter_map(parse)
        .collect())
}

/// Formats a line. The line break comes first, so that a torn line before it
/// stays separate.
fn line(message: MessageId) -> String {
    format!("\n{} {}.", message.sequence, message.time_ms)
}

/// Parses a line; `None` if it is empty or torn.
fn parse(line: &str) -> Option<MessageId> {
    let (sequence, time_ms) = line.strip_suffix('.')?.split_once(' ')?;
    Some(MessageId {
        sequence: Sequence(sequence.parse().ok()?),
        time_ms: time_ms.parse().ok()?,
    })
}

/// Appends a line, and returns the length of the file in bytes.
fn append(path: &Path, message: MessageId) -> io::Result<u64> {
    let mut file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The first room of this user.
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            open(path)?
        }
        opened => opened?,
    };
    file.write_all(line(message).as_bytes())?;
    Ok(file.metadata()?.len())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Truncates a file to one window and the message before it, which marks its
/// edge.
fn cut(path: &Path) -> io::Result<()> {
    let all = read(path)?;
    let kept = all.iter().skip(all.len().saturating_sub(REMEMBERED + 1));
    let text: String = kept.copied().map(line).collect();
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// Encodes a text of up to 85 bytes as a file name. Different texts have
/// different names, also on a file system that ignores case.
fn file_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: u64) -> MessageId {
        MessageId {
            sequence: Sequence(n),
            time_ms: 1_700_000_000_000 + n,
        }
    }

    fn user() -> UserName {
        "Bob/..".parse().unwrap()
    }

    #[test]
    fn record_is_loaded_by_another_process() {
        let directory = tempfile::tempdir().unwrap();
        let first = FileSeenStore::new(directory.path(), "127.0.0.1:3000");
        assert_eq!(first.load(&user(), None).unwrap(), vec![]);
        first.record(&user(), None, message(1)).unwrap();
        first.record(&user(), None, message(2)).unwrap();
        let second = FileSeenStore::new(directory.path(), "127.0.0.1:3000");
        assert_eq!(
            second.load(&user(), None).unwrap(),
            vec![message(1), message(2)]
        );
        assert_eq!(second.load(&"bob".parse().unwrap(), None).unwrap(), vec![]);
        let other = FileSeenStore::new(directory.path(), "127.0.0.1:3001");
        assert_eq!(other.load(&user(), None).unwrap(), vec![]);
    }

    #[test]
    fn record_belongs_to_a_set_of_servers() {
        let directory = tempfile::tempdir().unwrap();
        let of = |servers| FileSeenStore::new(directory.path(), servers);
        of("a:1,b:1,c:1").record(&user(), None, message(1)).unwrap();
        for same in ["a:1,b:1,c:1", "c:1,a:1,b:1", "b:1,b:1,c:1,a:1"] {
            assert_eq!(
                of(same).load(&user(), None).unwrap(),
                vec![message(1)],
                "{same}"
            );
        }
        for other in [
            "a:1",
            "b:1",
            "a:1,b:1",
            "a:1,c:1",
            "a:1,b:1,c:1,d:1",
            "a:1,b:1,c:2",
        ] {
            assert_eq!(of(other).load(&user(), None).unwrap(), vec![], "{other}");
        }
        // Names of users that resemble the directory of a server.
        for name in ["b:1", "+b:1"] {
            of("a:1")
                .record(&name.parse().unwrap(), None, message(2))
                .unwrap();
        }
        of("a:1,b:1").record(&user(), None, message(3)).unwrap();
        assert_eq!(of("a:1").load(&user(), None).unwrap(), vec![]);
    }

    #[test]
    fn file_stays_small_and_keeps_last_window() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileSeenStore::new(directory.path(), "here");
        let count = 20_000;
        (1..=count).for_each(|n| store.record(&user(), None, message(n)).unwrap());
        assert!(fs::metadata(store.path(&user(), None)).unwrap().len() <= FILE_BYTES_MAX + 64);
        let loaded = store.load(&user(), None).unwrap();
        assert!(loaded.len() > REMEMBERED);
        assert_eq!(loaded.last(), Some(&message(count)));
        assert!(loaded.is_sorted());
    }

    #[test]
    fn torn_line_is_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileSeenStore::new(directory.path(), "here");
        store.record(&user(), None, message(1)).unwrap();
        let mut file = OpenOptions::new()
            .append(true)
            .open(store.path(&user(), None))
            .unwrap();
        file.write_all(b"\n2 17000").unwrap();
        assert_eq!(store.load(&user(), None).unwrap(), vec![message(1)]);
        store.record(&user(), None, message(3)).unwrap();
        assert_eq!(
            store.load(&user(), None).unwrap(),
            vec![message(1), message(3)]
        );
    }

    #[test]
    fn concurrent_writers_lose_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let write = |from: u64| {
            let store = FileSeenStore::new(directory.path(), "here");
            (from..from + 500).for_each(|n| store.record(&user(), None, message(n)).unwrap());
        };
        std::thread::scope(|scope| {
            scope.spawn(|| write(1));
            scope.spawn(|| write(501));
        });
        let mut all = FileSeenStore::new(directory.path(), "here")
            .load(&user(), None)
            .unwrap();
        all.sort_unstable();
        assert_eq!(all, (1..=1000).map(message).collect::<Vec<_>>());
    }

    #[test]
    fn each_room_has_its_own_record() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileSeenStore::new(directory.path(), "here");
        let rooms = ["#team", "#Team", "#a.b"].map(|room| room.parse::<RoomName>().unwrap());
        store.record(&user(), None, message(1)).unwrap();
        for (n, room) in (2..).zip(&rooms) {
            assert_eq!(store.load(&user(), Some(room)).unwrap(), vec![]);
            store.record(&user(), Some(room), message(n)).unwrap();
        }
        for (n, room) in (2..).zip(&rooms) {
            assert_eq!(store.load(&user(), Some(room)).unwrap(), vec![message(n)]);
        }
        assert_eq!(store.load(&user(), None).unwrap(), vec![message(1)]);
    }

    #[test]
    fn file_names_are_unambiguous() {
        assert_eq!(file_name("bob"), "bob");
        assert_eq!(file_name("Bob"), "%42ob");
        assert_eq!(file_name("../x"), "%2e%2e%2fx");
        assert!(file_name(&"é".repeat(32)).len() <= 255);
    }
}
