//! What the protocol crate promises, seen from outside: the bytes of every
//! command, decoding however the bytes are cut up, and the correlation against
//! a model of it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod any_bytes;
mod classic;
mod correlation;
mod golden;
mod native;
mod reader;
mod strategies;
