//! A server of the cluster as a Maelstrom node: the state machine that `harkd` runs, with
//! Maelstrom's network between servers and a stream in `lin-kv` for each shard. It is a
//! test of delivery, over another network and another log than those of `io`. Sockets and
//! the clock belong to `hark_node`.
//!
//! | file | content |
//! | --- | --- |
//! | `server` | the state of a node: a [`Host`](super::host::Host), its inputs and outputs |
//! | `connection` | connections of clients to the server of their node |
//! | `network` | messages between servers |
//! | `stream` | the stream of a shard, with a key for each sequence |
//! | `kafka` | the workload `kafka`: a log is an inbox, an offset the number of a message |
//! | `queue` | sends of sessions, and readers that acknowledge |

mod connection;
mod kafka;
mod network;
mod queue;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use std::process::ExitCode;
use std::time::Duration;

use super::Config;
use super::entry::NEWEST_FORMAT;
use crate::ledger::{Expiry, Limits, RoomLimits, SpaceLimits};
use server::Server;

/// The number of shards.
const SHARDS: u32 = 3;

/// The interval at which the state machine is told the time.
const TICK: Duration = Duration::from_millis(100);

/// The limits of a shard. Snapshots, purges and reads outside of the cache are frequent, so
/// that a test of a minute has many.
const CONFIG: Config = Config {
    limits: Limits {
        accounts_max: 10_000,
        sessions_max: 100_000,
        queued_messages_max: 1_000_000,
        queued_bytes_max: 1 << 30,
        rooms: RoomLimits::DEFAULT,
        space: SpaceLimits::NONE,
        expiry: Expiry::NONE,
    },
    window_bytes: 1 << 20,
    frame_bytes_max: 32 << 10,
    tail_entries_max: 40,
    tail_bytes_max: 64 << 10,
    cache_bytes_max: 2 << 10,
    newest_format: NEWEST_FORMAT,
    slack_bytes: 16 << 10,
};

/// Runs the workload `kafka` on stdin and stdout to the end of the input.
#[must_use]
pub fn kafka() -> ExitCode {
    hark_node::main_with(Server::new(CONFIG), kafka::program)
}

/// Runs the workload `queue` likewise: `create`, `send` and `receive`.
#[must_use]
pub fn queue() -> ExitCode {
    hark_node::main_with(Server::new(CONFIG), queue::program)
}
