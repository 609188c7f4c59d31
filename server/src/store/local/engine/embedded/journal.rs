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
//!
//! The checksum does not cover the number of the batch, by which the engine
//! passes over what it has written out already. So each batch says in an item of
//! its own, under [`NUMBER_KEY`], the least that its number can be: that is more
//! than the number of the batch before, and hardly less than its own.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::store::local::OpenError;
use crate::store::local::folder::sync_folder;
use crate::store::local::record::{self, NUMBER_KEY};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
/// What comes after the last batch, compared piece by piece.
const ZEROS: &[u8] = &[0; 4096];
/// Bytes of a journal that are read at a time.
const PIECE_BYTES: u64 = 64 * 1024;
/// Numbers that the engine takes for purposes of its own between two batches,
/// at most.
const NUMBERS_MAX: u64 = 1 << 20;
const TRAILER: &[u8] = &[b'F', b'J', b'L', 3];

/// What is damaged of the journals in the engine's folder; nothing is changed.
/// After an `unclean` end the last one may be torn where it was being written.
///
/// # Errors
/// [`OpenError::Io`] with the file that cannot be read.
pub(super) fn check(folder: &Path, unclean: bool) -> Result<Vec<String>, OpenError> {
    let journals = journals(folder)?;
    let mut damaged = gaps(&journals);
    let last = journals.last().map(|(number, _)| *number);
    for (number, path) in &journals {
        let (bytes, sound) = read(path)?;
        if is_torn(&bytes, sound) && !(unclean && Some(*number) == last) {
            damaged.push(format!("its journal {number} cannot be read beyond byte {sound}"));
        }
    }
    Ok(damaged)
}

/// Writes the journals anew, up to the last sound batch of each: all of them are
/// on stable storage when this returns, and interrupted it has changed nothing.
/// What is cut off is kept beside.
///
/// # Errors
/// [`OpenError::Io`] with the file that cannot be read or written.
pub(super) fn write_anew(folder: &Path) -> Result<(), OpenError> {
    let journals = journals(folder)?;
    let last = journals.last().map(|(number, _)| *number);
    for (number, path) in &journals {
        let (bytes, sound) = read(path)?;
        // A torn end is what any kill may leave: only the latest is of interest.
        let kept = if Some(*number) == last { folder.join("last.torn") } else { path.with_extension("torn") };
        let kept = is_torn(&bytes, sound).then_some(&*kept);
        let whole = bytes.get(..sound).unwrap_or_default();
        replace(path, whole, kept).map_err(|source| io_error(path, source))?;
    }
    sync_folder(folder).map_err(|source| io_error(folder, source))
}

/// A journal but for the zeros at its end, and how many bytes of it are whole
/// batches.
fn read(path: &Path) -> Result<(Vec<u8>, usize), OpenError> {
    let bytes = read_content(path).map_err(|source| io_error(path, source))?;
    let sound = sound_length(&bytes);
    Ok((bytes, sound))
}

/// A file up to the last piece of it that has anything but zeros: the engine
/// makes journals as long as they may become, and memory is not filled with what
/// is not there.
fn read_content(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let (mut content, mut piece, mut zeros) = (Vec::new(), Vec::new(), 0);
    while (&file).take(PIECE_BYTES).read_to_end(&mut piece)? > 0 {
        if is_zero(&piece) {
            zeros += piece.len();
        } else {
            content.resize(content.len() + zeros, 0);
            content.append(&mut piece);
            zeros = 0;
        }
        piece.clear();
    }
    Ok(content)
}

/// Whether something else comes after the batches than zeros.
fn is_torn(bytes: &[u8], sound: usize) -> bool {
    !is_zero(bytes.get(sound..).unwrap_or_default())
}

/// Compares a page at a time, which is fast without optimization, too.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}

/// The journals that are gone, as far as their neighbours tell: they are
/// numbered without gaps, and there is always one.
fn gaps(journals: &[(u64, PathBuf)]) -> Vec<String> {
    if journals.is_empty() {
        return vec!["its journal is gone".to_owned()];
    }
    let pairs = journals.iter().zip(journals.iter().skip(1));
    pairs
        .filter(|((before, _), (after, _))| *after != before + 1)
        .map(|((before, _), (after, _))| format!("a journal between {before} and {after} is gone"))
        .collect()
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), source }
}

/// The journals with their numbers, in their order.
fn journals(folder: &Path) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let path = entry.map_err(|source| io_error(folder, source))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|e| e == "jnl")) {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
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
    let written = File::create(&copy).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // On a full disk half a copy would take what room there is.
        fs::remove_file(&copy)?;
        return Err(error);
    }
    fs::rename(&copy, journal)
}

/// How many bytes at the beginning are whole batches with right numbers.
fn sound_length(journal: &[u8]) -> usize {
    let mut rest = journal;
    // The batch before: where it begins, and its number.
    let mut before = (0, None);
    while let Some(batch) = parse_batch(rest) {
        let begin = journal.len() - rest.len();
        if before.1.is_some_and(|number| number >= batch.number_min) {
            return before.0;
        }
        if !(batch.number_min..=batch.number_min.saturating_add(NUMBERS_MAX)).contains(&batch.number) {
            return begin;
        }
        before = (begin, Some(batch.number));
        rest = batch.rest;
    }
    journal.len() - rest.len()
}

/// A batch at the beginning of some bytes.
struct Batch<'b> {
    number: u64,
    /// What it says that its number is at least.
    number_min: u64,
    /// What comes after it.
    rest: &'b [u8],
}

fn parse_batch(bytes: &[u8]) -> Option<Batch<'_>> {
    let (start, items) = bytes.split_first_chunk::<13>()?;
    let [START, a, b, c, d, number @ ..] = *start else { return None };
    let number = u64::from_le_bytes(number);
    let (mut rest, mut number_min) = (items, number);
    for _ in 0..u32::from_le_bytes([a, b, c, d]) {
        let (key, value, after) = split_item(rest)?;
        rest = after;
        if key == NUMBER_KEY {
            number_min = record::decode_number(key, value).unwrap_or(number_min);
        }
    }
    let items = items.get(..items.len() - rest.len())?;
    let (END, rest) = rest.split_first().map(|(tag, rest)| (*tag, rest))? else { return None };
    let (checksum, rest) = rest.split_first_chunk::<8>()?;
    let rest = rest.strip_prefix(TRAILER)?;
    (xxh3_64(items) == u64::from_le_bytes(*checksum)).then_some(Batch { number, number_min, rest })
}

/// Key and value of the item at the beginning, and what comes after it.
fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<21>()?;
    let [ITEM, _, _, _, _, _, _, _, _, _, _, k0, k1, _, _, _, _, v0, v1, v2, v3] = *head else { return None };
    let key = usize::from(u16::from_le_bytes([k0, k1]));
    let value = usize::try_from(u32::from_le_bytes([v0, v1, v2, v3])).ok()?;
    let (key, rest) = rest.split_at_checked(key)?;
    let (value, rest) = rest.split_at_checked(value)?;
    Some((key, value, rest))
}

/// A batch as the engine writes it.
#[cfg(any(test, feature = "fuzzing"))]
fn batch_of(number: u64, items: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (key, value) in items {
        encoded.extend([ITEM, 0, 0]);
        encoded.extend(1_u64.to_le_bytes());
        encoded.extend((key.len() as u16).to_le_bytes());
        encoded.extend((value.len() as u32).to_le_bytes());
        encoded.extend((value.len() as u32).to_le_bytes());
        encoded.extend([*key, *value].concat());
    }
    let start = [&[START][..], &(items.len() as u32).to_le_bytes(), &number.to_le_bytes()].concat();
    let end = [&[END][..], &xxh3_64(&encoded).to_le_bytes(), TRAILER].concat();
    [start, encoded, end].concat()
}

/// What holds of any journal: it is sound up to somewhere, and up to there it is
/// sound. The bytes say of what it consists: whole batches, pieces of them, and
/// anything else.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::store::local) fn check_any(data: &[u8]) {
    let (mut journal, mut rest, mut number) = (Vec::new(), data, 0_u64);
    // Up to here it is as the engine writes it.
    let mut written = Some(0);
    while let Some(([what, by, length], after)) = rest.split_first_chunk::<3>() {
        let (part, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        if what % 4 != 0 {
            let least = number + 1;
            number = least + u64::from(*by);
            let (key, value) = part.split_at(part.len() / 3);
            let least = record::encode_number(NUMBER_KEY, least);
            let mut batch = batch_of(number, &[(key, value), (NUMBER_KEY, &least), (value, key)]);
            let is_whole = what % 4 != 1;
            batch.truncate(if is_whole { batch.len() } else { usize::from(*by) });
            journal.extend(batch);
            let is_sound = is_whole && key != NUMBER_KEY && value != NUMBER_KEY;
            written = written.filter(|_| is_sound).map(|_| journal.len());
        } else {
            journal.extend(part);
            written = None;
        }
    }
    let sound = sound_length(&journal);
    assert!(written.is_none_or(|written| written == sound), "{written:?} was written, {sound} is sound");
    assert!(sound <= journal.len());
    let (whole, _) = journal.split_at(sound);
    assert_eq!(sound_length(whole), sound);
    assert!(!is_torn(whole, sound) && is_torn(&[&journal[..], &[1]].concat(), sound));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(items: &[(&[u8], &[u8])]) -> Vec<u8> {
        batch_of(7, items)
    }

    #[test]
    fn a_journal_is_sound_up_to_its_last_whole_batch() {
        let first = batch(&[(b"k", b"value"), (b"", b"")]);
        let second = batch_of(8, &[(b"key", &[0; 5000])]);
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
    fn a_batch_whose_number_was_changed_is_not_sound() {
        let numbers = [10_u64, 11, 14, 15];
        let least = [10_u64, 11, 12, 15];
        let batches: Vec<_> = numbers
            .iter()
            .zip(least)
            .map(|(number, least)| {
                batch_of(*number, &[(NUMBER_KEY, &record::encode_number(NUMBER_KEY, least))])
            })
            .collect();
        let journal = batches.concat();
        assert_eq!(sound_length(&journal), journal.len());
        let mut noticed = 0;
        for bit in 0..batches.len() * 64 {
            let (batch, bit) = (bit / 64, bit % 64);
            let mut flipped = journal.clone();
            let begin: usize = batches.iter().take(batch).map(Vec::len).sum();
            flipped[begin + 5 + bit / 8] ^= 1 << (bit % 8);
            let sound = sound_length(&flipped);
            assert!(sound == journal.len() || sound == begin, "batch {batch}, bit {bit}: {sound}");
            noticed += usize::from(sound == begin);
        }
        // But for where the order stays the same: nothing is passed over then.
        assert!(noticed > 230, "{noticed}");
    }

    #[test]
    fn a_journal_that_has_gone_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check(folder.path(), false).unwrap(), ["its journal is gone"]);
        for number in [8, 9, 11] {
            fs::write(folder.path().join(format!("{number}.jnl")), [0; 9]).unwrap();
        }
        assert_eq!(check(folder.path(), false).unwrap(), ["a journal between 9 and 11 is gone"]);
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
        assert_eq!(check(folder.path(), false).unwrap().len(), 1, "after a close none is torn");
        assert_eq!(fs::read(folder.path().join("10.jnl")).unwrap(), torn);
        assert!(check(folder.path(), true).unwrap().is_empty());
        write_anew(folder.path()).unwrap();
        assert_eq!(fs::read(folder.path().join("10.jnl")).unwrap(), whole);
        assert_eq!(fs::read(folder.path().join("last.torn")).unwrap(), torn);
        assert_eq!(fs::read(folder.path().join("9.jnl")).unwrap(), whole);
        assert!(check(folder.path(), false).unwrap().is_empty());
        write("9.jnl", &torn);
        for _ in 0..2 {
            let damaged = check(folder.path(), true).unwrap();
            assert_eq!(damaged, [format!("its journal 9 cannot be read beyond byte {}", whole.len())]);
        }
        write_anew(folder.path()).unwrap();
        assert_eq!(fs::read(folder.path().join("9.torn")).unwrap(), torn);
    }
}
