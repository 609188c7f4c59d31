//! What the tests share: the real `harkd` as a process ([`Harkd`]), clients of
//! both framings that say exactly what they are told to ([`Wire`], [`Classic`]),
//! the real `hark` in a terminal ([`Terminal`]), and a disk that gets full
//! ([`SmallDisk`]).
//!
//! A test fails by panicking, so these helpers do too.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod classic;
mod disk;
mod harkd;
mod terminal;
mod wire;

pub use classic::Classic;
pub use disk::SmallDisk;
pub use harkd::{Harkd, HarkdBuilder, Refusal, binary, hark, harkd};
pub use terminal::Terminal;
pub use wire::{Wire, name, send};

use std::time::{Duration, Instant};

/// Nothing that a test waits for takes longer than this on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so, for [`PATIENCE`] at most.
///
/// # Panics
/// Where it does not become so.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
