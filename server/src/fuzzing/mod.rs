//! What the fuzz targets of the server do, for them and for the tests: nothing
//! of this is in a server that is built. Each takes any bytes, and panics where
//! the server does not keep what it promises.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target fails by panicking"
)]

mod session;

pub use session::session;

pub use crate::ledger::fuzzing::records;
pub use crate::log::disk::fuzzing::segments;
