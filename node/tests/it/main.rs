//! The library from outside.
//!
//! | module | content |
//! | --- | --- |
//! | `harness` | a machine with its clock, driven by a test |
//! | `memory` | the memory that calls leave in the real binary, with jemalloc |
//! | `samples` | the real binary, byte for byte |
//! | `sim` | the simulated cluster |
//! | `streams` | streams, in the real binary and on virtual time |
//! | `workloads` | the standard workloads on a simulated cluster |
//! | the others | the tests of the library, on virtual time |
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod answers;
mod any_lines;
mod api;
mod calls;
mod ending;
mod harness;
mod leaks;
mod limits;
mod lines;
#[cfg(all(target_os = "linux", feature = "jemalloc"))]
mod memory;
mod noise;
mod order;
mod panics;
mod samples;
mod sim;
mod streams;
mod workloads;
