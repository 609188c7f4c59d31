//! The gRPC services of Hark, for its server and its client alike: the code
//! that `grpc/generate` makes from `server/proto/`, and what stands for what in
//! [`hark_protocol`]. It has no I/O and no rules.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`v1`], [`helloworld`] | the generated code |
//! | [`request`] | from a call or a [`v1::ChatRequest`] to a [`hark_protocol::Request`], and back |
//! | [`reply`] | from a [`hark_protocol::Reply`] to a [`v1::ChatReply`], and back |
//! | [`status`] | refusals and failures as the status of a call |

mod debug;
pub mod reply;
pub mod request;
pub mod status;

/// `hark.v1`: the chat, and the log of the server.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    include!("generated/hark.v1.rs");
}

/// `helloworld`: the service of the system that Hark descends from.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod helloworld {
    include!("generated/helloworld.rs");
}

/// The descriptors of all services, as server reflection wants them.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
