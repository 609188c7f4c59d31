//! The public contract of the protocol crate: the bytes of every command,
//! decoding under any fragmentation, and the correlation against a model.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod any_bytes;
mod classic;
mod correlation;
mod golden;
mod native;
mod reader;
mod strategies;
