//! A client of Hark that survives its link.
//!
//! [`Client::connect`] gives a clonable [`Handle`], through which an
//! application asks, and [`Events`], from which it takes what happens. One
//! background task owns the connection: it reconnects, becomes the same user
//! again, repeats what was not answered, and drops what was already taken.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`config`] | where the servers are, and every time and bound |
//! | [`handle`] | asking: requests in, answers out |
//! | [`event`] | what happens without being asked |
//! | [`taken`] | which messages a reader has taken, across restarts |
//! | [`dial`], [`tls`] | how a connection is opened |
//! | [`command`] | what people type, for a terminal |
//! | [`logs`] | the log of a server, as it happens |
//! | [`error`] | how a request can end without having been carried out |
//! | `outbox` | what is asked and not answered; no I/O, time is an argument |
//! | `identity` | who one is, and what changes that |
//! | `inbox` | what was pushed, and what of it may be acknowledged |
//! | `link` | one connection: requests out and replies in, over each transport |
//! | `http2` | one HTTP/2 connection, for gRPC |
//! | `rounds` | which server is tried next, and when; no I/O and no clock |
//! | `engine` | the task that drives them |
//!
//! ```no_run
//! use hark_client::{Client, Config, Event};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (hark, mut events) = Client::connect(Config::tcp("127.0.0.1:3000"));
//! hark.send("bob".parse()?, "the backup is done".into()).await?.await?; // on the disk
//! hark.connect("amy".parse()?, None).await?;
//! while let Some(event) = events.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{}", message.delivery.text);
//!         message.ack()?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Where several servers share what they store, the client goes from one to the
//! next: `Config::tcp("a.example:3000,b.example:3000")`.
//! [`Config::grpc`] is the same client over gRPC, [`Config::tls`] and
//! `Config::grpc_tls` are both over TLS. The feature `grpc` is on by
//! default; without it there are neither that nor `logs`.
//!
//! Invariants: a send has one id for ever, and ids are written in rising
//! order; nothing new is written before what is repeated; a send is never
//! repeated as somebody else than who sent it; nothing is acknowledged that
//! the application has not taken.

pub mod command;
pub mod config;
pub mod dial;
mod engine;
pub mod error;
pub mod event;
pub mod handle;
#[cfg(feature = "grpc")]
mod http2;
mod identity;
mod inbox;
mod link;
#[cfg(feature = "grpc")]
pub mod logs;
mod outbox;
mod rounds;
pub mod taken;
pub mod tls;

pub use config::{Config, Server, Timing, Transport};
pub use error::RequestError;
pub use event::{Event, Events, LinkState, Message};
pub use handle::{Client, Handle, Names, Receipt};
pub use tls::Trust;
