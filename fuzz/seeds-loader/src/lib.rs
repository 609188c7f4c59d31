//! The seeds of the fuzz targets, and [`check`], by which an ordinary test plays
//! them and inputs near them. `fuzz/seeds/` has an archive for each target and
//! a folder of named seeds beside it. Only the target knows the meaning of its bytes.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{TestError, TestRunner};
use tar::Archive;

/// The longest input that is made of the seeds, in bytes: the default limit of
/// libFuzzer.
const BYTES_MAX: usize = 4096;

/// How long a failing input is shrunk, in milliseconds.
const SHRINK_MS_MAX: u32 = 20_000;

/// Runs `body` on each seed of `target`, then on as many inputs made of them as
/// proptest has cases (256, or `PROPTEST_CASES`). A failing input is shrunk and
/// written to the folder of the named seeds, so that the next run begins with
/// it. Commit it with the fix.
///
/// # Panics
/// If `body` panics, or if the seeds cannot be loaded.
#[track_caller]
pub fn check(target: &str, body: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("seeds")
        .join(target);
    let seeds = load(&folder).unwrap_or_else(|error| {
        panic!(
            "cannot load the seeds in {0} and {0}.tar: {error}",
            folder.display()
        )
    });
    for seed in &seeds {
        let _reporter = Reporter(seed);
        body(&seed.bytes);
    }
    let seeds = seeds.into_iter().map(|seed| seed.bytes).collect();
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_time: SHRINK_MS_MAX,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&input(seeds), |input| {
        body(&input);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => {
            let path = folder.join(format!("failed-{:016x}", hash(&input)));
            let written = fs::write(&path, input);
            panic!(
                "{target} fails: {why}; the input is {}: {written:?}",
                path.display()
            );
        }
        Err(TestError::Abort(why)) => panic!("{target} was not tried: {why}"),
    }
}

/// An input that a target starts from.
struct Seed {
    /// Its path, or the path of its archive and its name in there.
    name: String,
    bytes: Vec<u8>,
}

/// Returns the seeds of one target: the named ones, then those of the archive,
/// each in the order of their names.
fn load(folder: &Path) -> io::Result<Vec<Seed>> {
    let mut seeds = named(folder)?;
    seeds.extend(archived(&folder.with_extension("tar"))?);
    if seeds.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the target has no seeds",
        ));
    }
    Ok(seeds)
}

fn named(folder: &Path) -> io::Result<Vec<Seed>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let read = |path: &Path| {
        Ok(Seed {
            name: path.display().to_string(),
            bytes: fs::read(path)?,
        })
    };
    paths.iter().map(|path| read(path)).collect()
}

/// Returns no seeds if there is no archive: the target was not fuzzed yet.
fn archived(path: &Path) -> io::Result<Vec<Seed>> {
    let archive = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        archive => archive?,
    };
    let mut seeds = Vec::new();
    for entry in Archive::new(archive.as_slice()).entries()? {
        let mut entry = entry?;
        let name = format!("{}: {}", path.display(), entry.path()?.display());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        seeds.push(Seed { name, bytes });
    }
    Ok(seeds)
}

/// Prints the name of the seed if the target panics on it.
struct Reporter<'s>(&'s Seed);

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}", self.0.name);
        }
    }
}

/// A change at the place that an [`Index`] chooses.
#[derive(Debug, Clone)]
enum Edit {
    Set(u8),
    Flip(u8),
    Insert(Vec<u8>),
    Remove(usize),
    /// Repeats as many bytes.
    Repeat(usize),
}

/// Returns a strategy for inputs: mostly the beginning of one seed and the end of
/// another, with up to seven edits, otherwise random bytes.
fn input(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let seed = select(seeds);
    let edit = prop_oneof![
        any::<u8>().prop_map(Edit::Set),
        (0..8_u8).prop_map(|bit| Edit::Flip(1 << bit)),
        vec(any::<u8>(), 1..9).prop_map(Edit::Insert),
        (1..40_usize).prop_map(Edit::Remove),
        (1..200_usize).prop_map(Edit::Repeat),
    ];
    let edits = vec((any::<Index>(), edit), 0..8);
    let spliced =
        (seed.clone(), any::<Index>(), seed, any::<Index>()).prop_map(|(a, a_end, b, b_begin)| {
            let (head, _) = a.split_at(a_end.index(a.len() + 1));
            let (_, tail) = b.split_at(b_begin.index(b.len() + 1));
            [head, tail].concat()
        });
    let edited = (spliced, edits).prop_map(|(mut bytes, edits)| {
        for (at, edit) in edits {
            change(&mut bytes, at, edit);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    });
    prop_oneof![7 => edited, 1 => vec(any::<u8>(), 0..400)]
}

fn change(bytes: &mut Vec<u8>, at: Index, edit: Edit) {
    let at = at.index(bytes.len() + 1);
    let to = |length: usize| (at + length).min(bytes.len());
    match edit {
        Edit::Set(byte) => bytes.get_mut(at).into_iter().for_each(|b| *b = byte),
        Edit::Flip(bit) => bytes.get_mut(at).into_iter().for_each(|b| *b ^= bit),
        Edit::Insert(more) => drop(bytes.splice(at..at, more)),
        Edit::Remove(length) => drop(bytes.drain(at..to(length))),
        Edit::Repeat(length) => bytes.extend_from_within(at..to(length)),
    }
}

/// Returns the FNV-1a hash of an input, which names its file.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use super::*;

    /// Returns the archives of all targets.
    fn archives() -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("seeds");
        let paths = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let archives: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|ext| ext == "tar"))
            .collect();
        assert!(!archives.is_empty());
        archives
    }

    #[test]
    fn seeds_of_a_target_differ() {
        for archive in archives() {
            let mut names = HashMap::new();
            for Seed { name, bytes } in load(&archive.with_extension("")).unwrap() {
                let other = names.insert(bytes, name.clone());
                assert_eq!(other, None, "the same bytes as {name}");
            }
        }
    }

    /// Archives must not depend on the machine that packs them.
    #[test]
    fn archives_are_reproducible() {
        for path in archives() {
            let archive = fs::read(&path).unwrap();
            let mut last = PathBuf::new();
            for entry in Archive::new(archive.as_slice()).entries().unwrap() {
                let entry = entry.unwrap();
                let (header, name) = (entry.header(), entry.path().unwrap().into_owned());
                let numbers = [header.uid(), header.gid(), header.mtime()].map(Result::unwrap);
                assert!(
                    header.entry_type().is_file(),
                    "{}: {}",
                    path.display(),
                    name.display()
                );
                assert_eq!(
                    (numbers, header.mode().unwrap()),
                    ([0; 3], 0o644),
                    "{}",
                    path.display()
                );
                assert!(
                    last < name,
                    "{}: {} comes after {}",
                    path.display(),
                    name.display(),
                    last.display()
                );
                last = name;
            }
        }
    }
}
