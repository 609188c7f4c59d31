//! What the tests share: the real `harkd` as a process ([`Harkd`]), clients of
//! every [`Front`] that say exactly what they are told to ([`Client`], of which
//! [`Wire`] is one, and [`Classic`]), the real `hark` in a terminal
//! ([`Terminal`]), a disk that gets full ([`SmallDisk`]), a network that can be
//! cut ([`FarMachine`]), a cluster of the real NATS ([`Nats`]), where a server
//! keeps its messages ([`Place`]), and senders and readers who see whether what
//! was promised is kept ([`Promise`]).
//!
//! A test fails by panicking, so these helpers do too.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bidi;
mod calls;
mod certificate;
mod classic;
mod contract;
mod disk;
mod harkd;
mod link;
mod nats;
mod network;
mod place;
mod promise;
mod terminal;
mod wire;

pub use bidi::Bidi;
pub use calls::Calls;
pub use certificate::{Authority, Certificate, client_config, set_mode};
pub use classic::Classic;
pub use disk::SmallDisk;
pub use harkd::{Harkd, HarkdBuilder, Refusal, add_user, binary, hark, harkd};
pub use link::{Front, Link, Native, NativeTls};
pub use nats::{Nats, NatsBuilder};
pub use network::{FarMachine, own_addresses};
pub use place::{Place, keeps_acks_in_order, on_cluster};
pub use promise::{Kept, Promise, Roles, Trial};
pub use terminal::Terminal;
pub use wire::{Client, Wire, name, send};

use std::time::{Duration, Instant};

/// Nothing that a test waits for takes longer than this on a busy machine. Less than
/// the default `--ack-timeout`, so that a shorter one that has no effect is noticed.
pub const PATIENCE: Duration = Duration::from_secs(55);

/// Waits until something is so, for [`PATIENCE`] at most.
///
/// # Panics
/// Where it does not become so.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
