//! The gRPC front with a client of this process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;
mod unary;
