//! The bodies of the server's fuzz targets, shared with the tests and absent from a release
//! build. Each takes arbitrary bytes, and panics if the server breaks its contract.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target fails by panicking"
)]

mod session;

pub use session::session;

pub use crate::front::http::fuzzing::http;
pub use crate::ledger::fuzzing::records;
pub use crate::log::disk::fuzzing::segments;
