//! A test that runs for many seeds, and prints the one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The environment variable with the one seed to run.
pub const SEED_VARIABLE: &str = "HARK_SIM_SEED";

/// Runs a test for each seed in turn, up to the first that fails. If the
/// environment variable `HARK_SIM_SEED` is set, it runs that seed alone.
///
/// A failure prints its seed and the command to run that seed on stderr. A
/// [`Cluster`](super::Cluster) that a panic drops prints the end of its chart.
///
/// # Panics
/// If the test panics, if there is no seed, and if `HARK_SIM_SEED` is not a
/// number.
pub fn check(seeds: impl IntoIterator<Item = u64>, test: impl Fn(u64)) {
    let seeds: Vec<u64> = match std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse()) {
        None => seeds.into_iter().collect(),
        Some(seed) => {
            assert!(
                seed.is_ok(),
                "{SEED_VARIABLE} is no seed, which is a number from 0 up"
            );
            seed.into_iter().collect()
        }
    };
    assert!(!seeds.is_empty(), "a check without a seed checks nothing");
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("{}", how_to_run_again(seed));
            resume_unwind(panic);
        }
    }
}

fn how_to_run_again(seed: u64) -> String {
    let thread = std::thread::current();
    let name = thread
        .name()
        .filter(|name| *name != "main")
        .unwrap_or_default();
    let command = format!("{SEED_VARIABLE}={seed} cargo test {name}");
    format!("seed {seed} fails; to run it alone: {}", command.trim_end())
}
