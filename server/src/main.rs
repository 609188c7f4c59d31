//! `harkd`, the Hark chat server. All of it is in the library: generic code would
//! be compiled again for the binary.

use std::process::ExitCode;

/// Messages are allocated on one thread and freed on another, which makes the
/// system's allocator take a lock for each. Jemalloc returns memory to the system
/// on a background thread.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    hark_server::process::main()
}
