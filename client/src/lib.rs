#![doc = include_str!("../README.md")]
//!
//! [`Client::connect`] returns a clonable [`Handle`] for requests, and [`Events`] for
//! messages and state changes. One background task owns the connection.
//!
//! | module | contents |
//! | --- | --- |
//! | [`config`] | servers, timeouts and bounds |
//! | [`handle`] | requests and their answers |
//! | [`rooms`] | requests of rooms, devices and tokens |
//! | [`event`] | messages and the state of the link |
//! | [`journal`] | a record of sends across restarts, by the application |
//! | [`seen`] | the messages that a reader has processed, across restarts |
//! | [`dial`], [`tls`] | opening of connections |
//! | [`command`] | the commands of the terminal |
//! | [`logs`] | a live view of a server's log |
//! | [`error`] | outcomes of requests other than success |
//! | `outbox` | unanswered requests; no I/O, time is an argument |
//! | `identity` | the authenticated user, and the requests that change it |
//! | `inbox` | received messages, and their acknowledgement |
//! | `link` | one connection, over each transport |
//! | `http2` | one HTTP/2 connection, for gRPC |
//! | `failover` | choice of the next server, and backoff; no I/O and no clock |
//! | `engine` | the task that drives them |
//!
//! Invariants: a send keeps its id; ids are written in ascending order; repeats
//! precede new requests; a send is never repeated as another user; a message is
//! acknowledged only after the application has processed it.

pub mod command;
pub mod config;
pub mod dial;
mod engine;
pub mod error;
pub mod event;
mod failover;
pub mod handle;
#[cfg(feature = "grpc")]
mod http2;
mod identity;
mod inbox;
pub mod journal;
mod link;
#[cfg(feature = "grpc")]
pub mod logs;
mod outbox;
pub mod rooms;
pub mod seen;
// Public for the program `hark` only.
#[doc(hidden)]
pub mod sync;
pub mod tls;

pub use config::{Config, Server, Timing, Transport};
pub use error::RequestError;
pub use event::{Event, Events, LinkState, Message, MissingMessages};
pub use handle::{Client, Handle, Names, Receipt};
pub use tls::Trust;
