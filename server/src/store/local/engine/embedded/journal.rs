//! The engine's journals, before the engine sees them.
//!
//! The engine cuts a journal off where it cannot read it, or refuses it where a
//! checksum is wrong, and takes whatever it can read for durable. None of this
//! will do: what is torn at the end after a loss of power is no damage, what is
//! missing from the middle is, and what can be read after a failed sync need
//! not be on the disk, since the kernel may take the pages for clean and never
//! write them. So each journal is checked at each start, and after an unclean
//! end it is written anew and synced, up to its last sound batch.
//!
//! A journal is a sequence of batches, then zeros (all numbers little endian):
//!
//! | bytes | of a batch |
//! | --- | --- |
//! | 1 + 4 + 8 | tag 1, number of items, number of the batch |
//! | 1 + 1 + 1 + 8 + 2 + 4 + 4, key, value | for each item: tag 2, type, compression (0, none), keyspace, length of the key, of the value, and of the value as it stands here |
//! | 1 + 8 + 4 | tag 3, XXH3 of all items, `FJL` and 3 |

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::store::local::folder::sync_folder;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: &[u8] = &[b'F', b'J', b'L', 3];

/// Checks the journals in the engine's folder; if `anew`, writes them anew: all
/// of them are on stable storage when this returns, and interrupted it has
/// changed nothing. What is cut off then is kept beside. Yields how many are
/// damaged; one that is written anew may be torn at its end, if it is the last.
pub(super) fn check(folder: &Path, anew: bool) -> io::Result<usize> {
    let mut journals = journals(folder)?;
    journals.sort_unstable();
    let Some((last, _)) = journals.last().cloned() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "its journal is gone"));
    };
    let mut damaged = 0;
    for (number, path) in journals {
        let bytes = fs::read(&path)?;
        let (sound, rest) = bytes.split_at(sound_length(&bytes));
        let torn = rest.iter().any(|byte| *byte != 0);
        // After an unclean end the last one is torn where it was being written.
        if torn && (!anew || number != last) {
            tracing::warn!(journal = %path.display(), at = sound.len(), "a journal cannot be read to its end");
            damaged += 1;
        }
        if anew {
            // A torn end is what any kill may leave: only the latest is of interest.
            let kept = if number == last { folder.join("last.torn") } else { path.with_extension("torn") };
            replace(&path, sound, torn.then_some(&*kept))?;
        }
    }
    if anew {
        sync_folder(folder)?;
    }
    Ok(damaged)
}

/// The journals with their numbers.
fn journals(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|e| e == "jnl")) {
            journals.push((number, path));
        }
    }
    Ok(journals)
}

/// Replaces a journal; it is kept under another name where there is one.
fn replace(journal: &Path, content: &[u8], kept: Option<&Path>) -> io::Result<()> {
    if let Some(kept) = kept {
        fs::remove_file(kept)
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        fs::hard_link(journal, kept)?;
    }
    let copy = journal.with_extension("new");
    let mut file = File::create(&copy)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&copy, journal)
}

/// How many bytes at the beginning are whole batches.
fn sound_length(journal: &[u8]) -> usize {
    let mut rest = journal;
    while let Some(after) = skip_batch(rest) {
        rest = after;
    }
    journal.len() - rest.len()
}

/// What comes after the batch at the beginning, if that is one.
fn skip_batch(bytes: &[u8]) -> Option<&[u8]> {
    let (start, items) = bytes.split_first_chunk::<13>()?;
    let [START, a, b, c, d, ..] = *start else { return None };
    let mut rest = items;
    for _ in 0..u32::from_le_bytes([a, b, c, d]) {
        rest = skip_item(rest)?;
    }
    let items = items.get(..items.len() - rest.len())?;
    let (END, rest) = rest.split_first().map(|(tag, rest)| (*tag, rest))? else { return None };
    let (checksum, rest) = rest.split_first_chunk::<8>()?;
    let rest = rest.strip_prefix(TRAILER)?;
    (xxh3_64(items) == u64::from_le_bytes(*checksum)).then_some(rest)
}

fn skip_item(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_first_chunk::<21>()?;
    let [ITEM, _, _, _, _, _, _, _, _, _, _, k0, k1, _, _, _, _, v0, v1, v2, v3] = *head else { return None };
    let key = usize::from(u16::from_le_bytes([k0, k1]));
    let value = usize::try_from(u32::from_le_bytes([v0, v1, v2, v3])).ok()?;
    rest.get(key..)?.get(value..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(items: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (key, value) in items {
            encoded.extend([ITEM, 0, 0]);
            encoded.extend(1_u64.to_le_bytes());
            encoded.extend((key.len() as u16).to_le_bytes());
            encoded.extend((value.len() as u32).to_le_bytes());
            encoded.extend((value.len() as u32).to_le_bytes());
            encoded.extend([*key, *value].concat());
        }
        let start = [&[START][..], &(items.len() as u32).to_le_bytes(), &7_u64.to_le_bytes()].concat();
        let end = [&[END][..], &xxh3_64(&encoded).to_le_bytes(), TRAILER].concat();
        [start, encoded, end].concat()
    }

    #[test]
    fn a_journal_is_sound_up_to_its_last_whole_batch() {
        let first = batch(&[(b"k", b"value"), (b"", b"")]);
        let second = batch(&[(b"key", &[0; 5000])]);
        let journal = [&first[..], &second, &[0; 100]].concat();
        assert_eq!(sound_length(&journal), first.len() + second.len());
        for length in 0..second.len() {
            assert_eq!(sound_length(&journal[..first.len() + length]), first.len());
        }
        let mut torn = journal.clone();
        torn[first.len() + 2000] = 1;
        assert_eq!(sound_length(&torn), first.len());
        assert_eq!(sound_length(&[]), 0);
        assert_eq!(sound_length(&[START, 255, 255, 255, 255]), 0);
    }

    #[test]
    fn an_engine_without_a_journal_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check(folder.path(), false).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_the_last_journal_may_be_torn() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let whole = batch(&[(b"k", b"v")]);
        let torn = [&whole[..], &whole[..10]].concat();
        write("9.jnl", &[&whole[..], &[0; 9]].concat());
        write("10.jnl", &torn);
        write("other", b"x");
        assert_eq!(check(folder.path(), false).unwrap(), 1, "after a close none is torn");
        assert_eq!(fs::read(folder.path().join("10.jnl")).unwrap(), torn);
        assert_eq!(check(folder.path(), true).unwrap(), 0);
        assert_eq!(fs::read(folder.path().join("10.jnl")).unwrap(), whole);
        assert_eq!(fs::read(folder.path().join("last.torn")).unwrap(), torn);
        assert_eq!(fs::read(folder.path().join("9.jnl")).unwrap(), whole);
        assert_eq!(check(folder.path(), false).unwrap(), 0);
        write("9.jnl", &torn);
        assert_eq!(check(folder.path(), true).unwrap(), 1);
    }
}
