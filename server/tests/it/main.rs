//! Integration tests of the server in one process: its gRPC front, as seen by a client, and
//! the rate limit of its log.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod grpc;
mod line_limiter;
