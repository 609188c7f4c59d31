//! Shared helpers of the tests: the real `harkd` as a process ([`Harkd`]),
//! scripted clients of every [`Front`] ([`Client`], of which [`Wire`] is one,
//! and [`Classic`]), the real `hark` in a terminal ([`Terminal`]), a real
//! browser ([`Browser`]), a disk that
//! gets full ([`SmallDisk`]), a network that can be cut ([`FarMachine`]), a
//! cluster of the real NATS ([`Nats`]), locations of stores ([`StoreLocation`]), and
//! senders and readers that verify the promise ([`Promise`]).
//!
//! A test fails by panicking, and so do these helpers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod bidi;
mod binaries;
mod browser;
mod calls;
mod certificate;
mod classic;
mod contract;
mod disk;
mod harkd;
mod http;
mod link;
mod location;
mod nats;
mod network;
mod promise;
mod room_promise;
mod terminal;
mod websocket;
mod wire;

pub use bidi::Bidi;
pub use binaries::{add_user, binary, example, hark, harkd};
pub use browser::Browser;
pub use calls::Calls;
pub use certificate::{Authority, Certificate, client_config, set_mode};
pub use classic::Classic;
pub use disk::SmallDisk;
pub use harkd::{Harkd, HarkdBuilder, Refusal};
pub use http::HttpRequests;
pub use link::{Front, Link, Native, NativeTls};
pub use location::{StoreLocation, on_cluster};
pub use nats::{Nats, NatsBuilder};
pub use network::{FarMachine, own_addresses};
pub use promise::{LoadConfig, Promise, Report, Trial};
pub use room_promise::{RoomPromise, RoomReport};
pub use terminal::Terminal;
pub use websocket::WebSocket;
pub use wire::{Client, Wire, name, send};

use std::time::{Duration, Instant};

/// Time limit for anything that a test waits for, generous for slow machines. It is
/// shorter than the default `--ack-timeout`, so that a test of a shorter one can fail.
pub const TIMEOUT: Duration = Duration::from_secs(55);

/// Waits until a condition holds, up to [`TIMEOUT`].
///
/// # Panics
/// On a timeout.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < until, "timeout while waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
