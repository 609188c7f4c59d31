//! A library for Maelstrom nodes
//! (<https://github.com/jepsen-io/maelstrom/blob/main/doc/protocol.md>).
#![doc = include_str!("../README.md")]

// The tests of a module may include examples, which name the crate.
#[cfg(test)]
extern crate self as hark_node;

mod call;
mod core;
mod error;
mod json;
mod kv;
mod machine;
mod message;
mod node;
pub mod raft;
mod request;
pub mod sim;
mod stdio;
mod storage;
pub mod stream;
mod tasks;
mod timers;

pub use call::{Backoff, CALL_TIMEOUT, Call, RPC_TIMEOUT, Reply, Retry};
pub use error::{Error, ErrorCode};
pub use json::Json;
pub use kv::{Kv, LIN_KV, LIN_TSO, LWW_KV, SEQ_KV, Tso};
pub use machine::Machine;
pub use message::MsgId;
pub use node::Node;
pub use request::{Request, Responder};
pub use stdio::{LINE_BYTES_MAX, main, run};
pub use storage::Storage;
