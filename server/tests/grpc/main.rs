//! The gRPC front, asked by a client of this process.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod bidi;
mod connect;
mod failing;
mod health;
mod hostile;
mod links;
mod old;
mod raw;
mod reflection;
mod server;
mod unary;
