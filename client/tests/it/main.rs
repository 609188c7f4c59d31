//! The client against servers that misbehave on purpose.
//!
//! | module | what it owns |
//! | --- | --- |
//! | `peer` | one end of a connection in memory, played by the test frame by frame |
//! | `chat` | a small server that keeps what it answers, with faults to inject |
//! | `hark` | running the real binary |
//! | the others | the tests |

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod acks;
mod chat;
mod exactly_once;
mod hark;
mod identity;
mod links;
mod one_shot;
mod peer;
mod piped;
mod requests;
mod terminal;
