//! The engine's files, before the engine sees them.
//!
//! The engine trusts its folder. A table space without its file `current` it
//! takes for one that was never finished: it deletes the tables and starts
//! over, empty. What its manifests do not name it deletes; a number that is
//! garbled it asks for as memory; at a name that it does not know it panics. So
//! everything that it has written and relies upon is read here first, compared
//! with the checksums that it keeps but does not look at, and changed in
//! nothing. The journals are [`super::journal`]'s.
//!
//! | file, in the engine's folder | what (numbers are little endian) |
//! | --- | --- |
//! | `version` | `FJL` and 3 |
//! | `lock` | nothing; locked while it is open |
//! | `keyspaces/N/` | 0: the names and settings of the others; the others: one for each table of the store |
//! | `…/current` | u64 V, XXH3-128 of `vV`, 0 |
//! | `…/vV` | an archive, one of whose sections, `tables`, says: u8 levels; for each u8 runs; for each u32 tables; for each u64 T, 0, XXH3-128 of `tables/T`, u64 |
//! | `…/tables/T` | sorted records; others than those that `vV` names are remains of an interrupted merge |

use std::fs::{self, File};
use std::io::{self, Cursor, Read as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::super::Table;
use crate::store::local::OpenError;
use crate::store::local::folder::Folder;

const VERSION: &[u8] = b"FJL\x03";

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// A file of a table, and what it must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TableFile {
    number: u64,
    checksum: u128,
}

/// Reads everything but the journals. Yields what is damaged of tables that the
/// engine can open all the same, and then read in part.
///
/// # Errors
/// [`OpenError::Ruined`] where anything else is missing, or is not what was
/// written there; [`OpenError::Io`] where something cannot be read.
pub(super) fn check(folder: &Folder) -> Result<Vec<String>, OpenError> {
    let mut inventory = Inventory { folder, damaged: Vec::new() };
    let engine = folder.engine();
    if inventory.read(&engine.join("version"))? != VERSION {
        return Err(inventory.ruined(&engine.join("version"), "is not what was written there"));
    }
    // There is nothing in it, so nothing is lost with it.
    let lock = engine.join("lock");
    if !lock.try_exists().map_err(|source| io_error(&lock, source))? {
        File::create(&lock).map_err(|source| io_error(&lock, source))?;
    }
    let keyspaces = engine.join("keyspaces");
    for number in 0..=Table::ALL.len() {
        inventory.check_keyspace(&keyspaces.join(number.to_string()))?;
    }
    for path in inventory.entries(&keyspaces)? {
        let number = number_of(&path).filter(|number| *number <= Table::ALL.len() as u64);
        if path.is_dir() && number.is_none() {
            return Err(inventory.ruined(&path, "does not belong there"));
        }
    }
    Ok(inventory.damaged)
}

struct Inventory<'f> {
    folder: &'f Folder,
    damaged: Vec<String>,
}

impl Inventory<'_> {
    fn check_keyspace(&mut self, keyspace: &Path) -> Result<(), OpenError> {
        let current = keyspace.join("current");
        let (version, checksum) = parse_current(&self.read(&current)?)
            .ok_or_else(|| self.ruined(&current, "is not what was written there"))?;
        let manifest = keyspace.join(format!("v{version}"));
        let bytes = self.read(&manifest)?;
        let named = Some(bytes).filter(|bytes| xxh3_128(bytes) == checksum);
        let named = named.as_deref().and_then(parse_manifest);
        let named = named.ok_or_else(|| self.ruined(&manifest, "is not what was written there"))?;
        let tables = keyspace.join("tables");
        for path in self.entries(&tables)? {
            if path.is_dir() || number_of(&path).is_none() {
                return Err(self.ruined(&path, "does not belong there"));
            }
        }
        named.into_iter().try_for_each(|table| self.check_table(&tables, table))
    }

    fn check_table(&mut self, tables: &Path, table: TableFile) -> Result<(), OpenError> {
        let path = tables.join(table.number.to_string());
        let checksum =
            File::open(&path).and_then(checksum_of).map_err(|source| self.unread(&path, source))?;
        if checksum == table.checksum {
            return Ok(());
        }
        if !is_openable(&path).map_err(|source| self.unread(&path, source))? {
            return Err(self.ruined(&path, "is not what was written there"));
        }
        self.damaged.push(format!("{} is not what was written there", self.inside(&path).display()));
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, OpenError> {
        fs::read(path).map_err(|source| self.unread(path, source))
    }

    fn entries(&self, path: &Path) -> Result<Vec<PathBuf>, OpenError> {
        let entries = fs::read_dir(path).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
        });
        entries.map_err(|source| self.unread(path, source))
    }

    fn unread(&self, path: &Path, source: io::Error) -> OpenError {
        match source.kind() {
            io::ErrorKind::NotFound => self.ruined(path, "is gone"),
            io::ErrorKind::IsADirectory => self.ruined(path, "is a folder and no file"),
            io::ErrorKind::NotADirectory => self.ruined(path, "is not in a folder"),
            _ => io_error(path, source),
        }
    }

    fn ruined(&self, path: &Path, what: &str) -> OpenError {
        self.folder.ruined(format!("{} {what}", self.inside(path).display()))
    }

    fn inside<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(self.folder.path()).unwrap_or(path)
    }
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), source }
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The number of the manifest, and its checksum.
fn parse_current(bytes: &[u8]) -> Option<(u64, u128)> {
    let (version, rest) = bytes.split_first_chunk::<8>()?;
    let (checksum, kind) = rest.split_first_chunk::<16>()?;
    (kind == [0]).then(|| (u64::from_le_bytes(*version), u128::from_le_bytes(*checksum)))
}

/// The tables that a manifest names, whose checksum is right.
fn parse_manifest(bytes: &[u8]) -> Option<Vec<TableFile>> {
    let archive = sfa::Reader::from_reader(&mut Cursor::new(bytes)).ok()?;
    let section = archive.toc().section(b"tables")?;
    let begin = usize::try_from(section.pos()).ok()?;
    let length = usize::try_from(section.len()).ok()?;
    let mut rest = bytes.get(begin..)?.get(..length)?;
    let mut tables = Vec::new();
    for _ in 0..take::<1>(&mut rest)?[0] {
        for _ in 0..take::<1>(&mut rest)?[0] {
            for _ in 0..u32::from_le_bytes(*take(&mut rest)?) {
                let number = u64::from_le_bytes(*take(&mut rest)?);
                let [_kind] = *take(&mut rest)?;
                let checksum = u128::from_le_bytes(*take(&mut rest)?);
                let _level_number: &[u8; 8] = take(&mut rest)?;
                tables.push(TableFile { number, checksum });
            }
        }
    }
    rest.is_empty().then_some(tables)
}

fn take<'b, const N: usize>(rest: &mut &'b [u8]) -> Option<&'b [u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(taken)
}

fn checksum_of(mut file: File) -> io::Result<u128> {
    let mut hasher = Xxh3::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hasher.digest128()),
            Ok(count) => hasher.update(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What must be sound of a table for the engine to open it: the list of its
/// parts. Without it the engine asks for memory by a number that is garbled.
fn is_openable(table: &Path) -> io::Result<bool> {
    let bytes = fs::read(table)?;
    Ok(list_of_parts(&bytes).is_some())
}

/// The last 38 bytes: a mark of 4, version, kind, XXH3-128 of the list, where it
/// begins, and how long it is.
fn list_of_parts(table: &[u8]) -> Option<&[u8]> {
    let (rest, trailer) = table.split_last_chunk::<38>()?;
    let (_, trailer) = trailer.split_first_chunk::<6>()?;
    let (checksum, trailer) = trailer.split_first_chunk::<16>()?;
    let begin = trailer.first_chunk::<8>()?;
    let list = rest.get(usize::try_from(u64::from_le_bytes(*begin)).ok()?..)?;
    (xxh3_128(list) == u128::from_le_bytes(*checksum)).then_some(list)
}

/// What holds of any bytes in the place of the engine's own: they are refused, or
/// name no more than they have room for.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::store::local) fn check_any(bytes: &[u8]) {
    if let Some((version, checksum)) = parse_current(bytes) {
        assert_eq!(bytes, [&version.to_le_bytes()[..], &checksum.to_le_bytes(), &[0]].concat());
    }
    if let Some(tables) = parse_manifest(&manifest_of(bytes)) {
        assert!(tables.len() * TABLE_FILE_BYTES < bytes.len());
    }
    assert!(list_of_parts(bytes).is_none_or(|list| list.len() <= bytes.len()));
    let begin = bytes.first().map_or(0, |begin| u64::from(*begin));
    let list = bytes.get(begin as usize..);
    let checksum = xxh3_128(list.unwrap_or_default()).to_le_bytes();
    let table = [bytes, &[0; 6], &checksum, &begin.to_le_bytes(), &[0; 8]].concat();
    assert_eq!(list_of_parts(&table), list);
}

/// What a manifest says of each table, in bytes.
#[cfg(any(test, feature = "fuzzing"))]
const TABLE_FILE_BYTES: usize = 8 + 1 + 16 + 8;

/// A manifest whose section `tables` is this.
#[cfg(any(test, feature = "fuzzing"))]
#[expect(clippy::expect_used, reason = "memory takes what is written to it")]
fn manifest_of(tables: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut archive = sfa::Writer::from_writer(Cursor::new(Vec::new()));
    archive.start("tables").expect("it is memory");
    archive.write_all(tables).expect("it is memory");
    archive.into_inner().expect("it is memory").into_inner()
}
