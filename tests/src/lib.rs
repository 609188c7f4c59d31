//! What the tests share: the real `harkd` as a process ([`Harkd`]), and a
//! client that says exactly what it is told to ([`Wire`]).
//!
//! A test fails by panicking, so these helpers do too.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harkd;
mod wire;

pub use harkd::{Harkd, HarkdBuilder, binary, hark};
pub use wire::{Wire, name, send};

use std::time::Duration;

/// Nothing that a test waits for takes longer than this on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
