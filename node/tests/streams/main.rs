//! Streams: the real binary byte for byte, services and clients on virtual
//! time, and frames.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod clients;
mod frames;
mod net;
mod samples;
mod served;
