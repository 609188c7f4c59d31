//! A library for Maelstrom nodes
//! (<https://github.com/jepsen-io/maelstrom/blob/main/doc/protocol.md>).
#![doc = include_str!("../README.md")]

// The tests of a module may include examples, which name the crate.
#[cfg(test)]
extern crate self as hark_node;

mod call;
mod call_all;
mod core;
mod deadlines;
mod error;
mod fields;
pub mod gossip;
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

pub use call::{Backoff, CALL_TIMEOUT, Call, FromReply, RPC_TIMEOUT, Reply, Retry};
pub use call_all::CallAll;
pub use core::REQUEST_TIMEOUT;
pub use error::{Error, ErrorCode};
pub use json::Json;
pub use kv::{Kv, LIN_KV, LIN_TSO, LWW_KV, SEQ_KV, Tso, UPDATE_ATTEMPTS_MAX};
pub use machine::Machine;
pub use message::MsgId;
pub use node::Node;
pub use request::{Answer, IntoAnswer, Request, Responder};
pub use stdio::{LINE_BYTES_MAX, main, main_with, run, run_with};
pub use storage::Storage;
pub use tasks::AbortHandle;
pub use timers::Timer;
