#![doc = include_str!("../README.md")]
//!
//! | module | contents |
//! | --- | --- |
//! | [`v1`], [`helloworld`] | the generated code |
//! | [`admin`] | the credentials of a call of `hark.v1.Admin` |
//! | [`request`] | translation between a call or a [`v1::ChatRequest`] and a [`hark_protocol::Request`] |
//! | [`reply`] | translation between a [`hark_protocol::Reply`] and a [`v1::ChatReply`] |
//! | [`rooms`] | both, for rooms and devices |
//! | [`status`] | translation of refusals and failures to the status of a call |

pub mod admin;
mod debug;
pub mod reply;
pub mod request;
pub mod rooms;
pub mod status;

/// `hark.v1`: the chat, the log of the server, and its administration.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    include!("generated/hark.v1.rs");
}

/// `helloworld`: the service of Hark's predecessor.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod helloworld {
    include!("generated/helloworld.rs");
}

/// File descriptors of all services, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
