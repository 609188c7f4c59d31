//! The server from outside, in this process: its gRPC front, asked by a client,
//! and the bound of its log.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod grpc;
mod log_bound;
