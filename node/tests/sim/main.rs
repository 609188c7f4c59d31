//! What the simulated cluster promises to a test.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails loudly")]

mod bounds;
mod check;
mod crash;
mod determinism;
mod journal;
mod network;
mod programs;
mod services;
