//! The cluster: shards whose logs are replicated streams, each owned by one server.
//!
//! Everything outside of `io/` and `maelstrom/` is a state machine without I/O, clock and
//! randomness: messages, answers of the log and times come in as arguments, and actions go
//! out. The conditional append is the fence and the safety argument; leases, heartbeats and
//! flows are liveness, or keep servers from repeating commands that others have decided.
//!
//! | file | content |
//! | --- | --- |
//! | `entry`, `chain` | messages of a stream, and the rule that decides which of them count |
//! | `append` | the one append in flight, until its outcome is known |
//! | `blocks`, `cold` | live blocks and the entries that hold them; reads outside of the cache |
//! | `pages`, `replay`, `candidate` | reading a stream, and claiming the shard |
//! | `owner`, `decide`, `snapshot` | the owner: frames, answers, snapshots and purges |
//! | `reception`, `identity` | subscriptions and logged-in accounts, at the owner |
//! | `seat` | one server's role in one shard: standby, candidate or owner |
//! | `flow`, `message`, `codec` | numbered flows between servers and owners |
//! | `link` | a server's end of its flows to one shard |
//! | `member` | a server: its seats and links |
//! | `io` | the store: a server's I/O around its state machine |
//! | `host` | a server with connections, for `sim` and `maelstrom` |
//! | `maelstrom` | a server as a Maelstrom node, its streams in `lin-kv` |
//! | `listing` | names: the sorted ones of a shard, and the merged pages of all shards |
//! | `send_order` | sends of a session, over all shards |
//! | `presence` | live servers, and the format that all of them read |
//! | `sessions` | announcements of opened sessions |
//! | `administer` | requests of administrators |
//! | `assignment`, `handover` | shards of names, servers of shards, and shards that change their server |

mod administer;
mod append;
mod assignment;
mod blocks;
mod bugs;
mod candidate;
mod chain;
mod codec;
mod cold;
mod decide;
mod entry;
mod flow;
mod handover;
#[cfg(any(test, feature = "maelstrom"))]
mod host;
mod identity;
pub(crate) mod io;
mod link;
mod listing;
#[cfg(any(test, feature = "maelstrom"))]
pub mod maelstrom;
mod member;
mod message;
mod owner;
mod pages;
mod presence;
mod reception;
mod replay;
mod seat;
mod send_order;
mod sessions;
#[cfg(test)]
mod sim;
mod snapshot;
#[cfg(test)]
mod tests;
mod timing;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hark_protocol::SessionToken;

pub use self::io::{
    BadNodes, CLIENT_LOG, ClusterConfig, ClusterStore, Credentials, Nodes, OpenError,
};
use self::message::{Message, Reply};
use crate::ledger::Limits;
use crate::store::{Event, Publisher};

/// The id of a server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServerId(pub(crate) u64);

/// The number of a shard.
pub(crate) type ShardId = u32;

/// The unique id of a client connection to this server.
pub(crate) type ConnectionId = u64;

/// The clocks of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The time since the process started. It never decreases.
    pub(crate) running: Duration,
    /// The wall clock.
    pub(crate) wall: SystemTime,
}

/// The limits of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    /// The limits of its ledger.
    pub(crate) limits: Limits,
    /// Maximum bytes in flight in each direction of a flow.
    pub(crate) window_bytes: u64,
    /// Bytes of texts and records at which a frame takes no more commands.
    pub(crate) frame_bytes_max: usize,
    /// Entries since the beginning of the last snapshot at which the next one is due.
    pub(crate) tail_entries_max: u64,
    /// Bytes of these entries, likewise.
    pub(crate) tail_bytes_max: u64,
    /// Bytes of texts that an owner keeps in memory.
    pub(crate) cache_bytes_max: u64,
    /// The newest format of entries that this server reads.
    pub(crate) newest_format: u8,
    /// Bytes by which a stream may exceed two tails and twice its live bytes.
    pub(crate) slack_bytes: u64,
}

impl Config {
    /// Returns the defaults with these limits of the ledger.
    pub(crate) const fn new(limits: Limits) -> Self {
        Self {
            limits,
            window_bytes: 4 << 20,
            frame_bytes_max: 256 << 10,
            tail_entries_max: 20_000,
            tail_bytes_max: 32 << 20,
            cache_bytes_max: 64 << 20,
            newest_format: entry::NEWEST_FORMAT,
            slack_bytes: 256 << 20,
        }
    }
}

/// A request to the stream of a shard. A request may be lost or executed late, and its
/// answer may be lost.
#[derive(Debug, Clone)]
pub(crate) enum LogRequest {
    /// Append a message if the last sequence equals the condition, or unconditionally.
    Append {
        /// Returned with the answer.
        id: u64,
        /// The message.
        bytes: Bytes,
        /// The condition.
        after: Option<u64>,
    },
    /// Read messages from a sequence on.
    Read {
        /// Returned with the answer.
        id: u64,
        /// The first sequence.
        from: u64,
        /// Maximum messages in the answer. It may have fewer.
        messages_max: u32,
    },
    /// Read one message.
    Get {
        /// Returned with the answer.
        id: u64,
        /// Its sequence.
        sequence: u64,
    },
    /// Delete the messages before a sequence, which is at most the last one.
    Purge {
        /// The first sequence that is kept.
        before: u64,
    },
}

/// An answer of the stream of a shard.
#[derive(Debug, Clone)]
pub(crate) enum LogReply {
    /// The message is stored durably.
    Stored {
        /// The id of the request.
        id: u64,
        /// Its sequence.
        sequence: u64,
    },
    /// The condition did not hold.
    Refused {
        /// The id of the request.
        id: u64,
        /// The last sequence.
        last: u64,
    },
    /// Consecutive messages.
    Page {
        /// The id of the request.
        id: u64,
        /// The first sequence of the stream.
        first: u64,
        /// Messages from the requested sequence on, or from the first one that is not
        /// purged.
        messages: Vec<Bytes>,
        /// The last sequence of the stream.
        last: u64,
    },
    /// The message that was requested by [`LogRequest::Get`].
    Message {
        /// The id of the request.
        id: u64,
        /// The message; `None` if the node that answers does not have it.
        bytes: Option<Bytes>,
    },
}

/// The storage of a replica of a stream, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage {
    /// The free part.
    pub(crate) free: u64,
    /// All of it.
    pub(crate) total: u64,
}

impl Storage {
    /// Returns whether it has too little free space for messages.
    const fn is_low(self) -> bool {
        self.free < STORAGE_FREE_MIN || self.free < self.total / STORAGE_FREE_DIVISOR
    }
}

/// The free space, in bytes and as a fraction of the total, below which sends are refused.
const STORAGE_FREE_MIN: u64 = 1 << 30;
const STORAGE_FREE_DIVISOR: u64 = 10;

/// An action of a server; actions are performed in order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Send a request to the stream of a shard.
    Log(ShardId, LogRequest),
    /// Send a message to a server, possibly this one.
    Send(ServerId, Message),
    /// Send a message to every server, including this one.
    Broadcast(Message),
    /// Answer a request of a connection, if it is still open.
    Answer {
        /// The connection.
        connection: ConnectionId,
        /// The id of the request.
        request: u64,
        /// The answer.
        reply: Reply,
    },
    /// Publish an event of a subscription.
    Publish(Publisher, Event),
    /// End the identity of a connection.
    EndIdentity(ConnectionId),
    /// Close a connection without reading more from it.
    Close(ConnectionId),
    /// Close the connection that holds a session, if there is one: the session was opened
    /// at another server.
    CloseSession(SessionToken),
    /// Close every connection, including unaccepted ones, without reading more from them,
    /// before the next action.
    CloseAll,
}
