//! The Hark chat server, as a library; `harkd` is its binary.
//!
//! The layers, from top to bottom: [`process`] (`main`), [`server`] (accept loop) and
//! [`front`] (bytes), [`chat`] (rules), [`store`] (durable state). Each knows only
//! those below it; all use the token buckets of [`limit`]. `ARCHITECTURE.md` has the map.

pub mod admin;
mod administration;
mod bans;
pub mod chat;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod config;
pub mod front;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub(crate) mod ledger;
pub mod limit;
pub mod listener;
pub mod log;
pub mod logging;
pub mod metrics;
mod network;
mod planted;
pub mod process;
mod reload;
pub mod server;
pub mod shard;
mod signals;
pub mod store;
mod supervisor;
pub(crate) mod sync;
