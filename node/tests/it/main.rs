//! The library from outside: machines on a virtual time, and nodes on streams
//! in memory.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod answers;
mod any_lines;
mod calls;
mod ending;
mod harness;
mod leaks;
mod lines;
mod noise;
mod order;
mod panics;
