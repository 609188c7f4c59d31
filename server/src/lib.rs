//! The Hark chat server, as a library; `harkd` is its binary.
//!
//! Layers, each of which knows only those below it: [`server`] (accepting) and
//! [`front`] (bytes), [`chat`] (rules), [`store`] (what is kept). [`limit`] counts
//! for all of them. `ARCHITECTURE.md` has the map.

pub mod admin;
pub mod chat;
#[cfg(test)]
pub(crate) mod cluster;
pub mod config;
pub mod exposure;
pub mod front;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub(crate) mod ledger;
pub mod limit;
pub mod log;
pub mod logging;
pub mod place;
pub mod server;
pub mod shard;
pub mod store;
pub mod throttle;
