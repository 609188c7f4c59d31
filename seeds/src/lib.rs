//! The seeds of the fuzz targets: inputs worth beginning with, a folder for each
//! target, and [`check`], by which an ordinary test plays them and what lies
//! near them. What the bytes of a target mean only the target knows.

#![expect(clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{TestError, TestRunner};

/// The longest input that is made of the seeds, in bytes: as long as libFuzzer
/// makes one.
const BYTES_MAX: usize = 4096;

/// For how long a failing input is made smaller, in milliseconds.
const SHRINK_MS_MAX: u32 = 20_000;

/// Runs `target` on each of its seeds, then on as many inputs made of them as
/// proptest has cases (256, or `PROPTEST_CASES`). What it panics for is made as
/// small as possible and put beside the seeds, so that it is run first the next
/// time: it belongs into the commit that mends it.
///
/// # Panics
/// Where the target does, and where it has no seeds.
#[track_caller]
pub fn check(target: &str, body: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(target);
    let seeds = seeds(&folder);
    for (path, seed) in &seeds {
        let _named = Named(path);
        body(seed);
    }
    let seeds = seeds.into_iter().map(|(_, seed)| seed).collect();
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_time: SHRINK_MS_MAX,
        ..ProptestConfig::default()
    };
    let tried = TestRunner::new(config).run(&input(seeds), |input| {
        body(&input);
        Ok(())
    });
    match tried {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => {
            let path = folder.join(format!("failed-{:016x}", hash(&input)));
            let kept = fs::write(&path, input);
            panic!("{target} fails: {why}; the input is {}: {kept:?}", path.display());
        }
        Err(TestError::Abort(why)) => panic!("{target} was not tried: {why}"),
    }
}

/// The seeds in a folder, in the order of their names.
fn seeds(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> =
        entries.map(|entry| entry.expect("a folder of ours can be read").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are no seeds in {}", folder.display());
    let read = |path: PathBuf| {
        let seed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, seed)
    };
    paths.into_iter().map(read).collect()
}

/// Says which seed it was when the target panics.
struct Named<'p>(&'p Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}", self.0.display());
        }
    }
}

/// A change at a place that an [`Index`] says.
#[derive(Debug, Clone)]
enum Edit {
    Set(u8),
    Flip(u8),
    Insert(Vec<u8>),
    Remove(usize),
    /// So many bytes once more.
    Repeat(usize),
}

/// The beginning of one seed and the end of another, changed in a few places;
/// or nothing of the kind.
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
    let spliced = (seed.clone(), any::<Index>(), seed, any::<Index>()).prop_map(|(a, a_end, b, b_begin)| {
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

/// A name for an input (FNV-1a).
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
