//! [`AdminOperation`]: what an administrator asks a store, besides the operations of the
//! chat; and [`Peer`]: what the servers of a cluster ask each other.

use std::fmt;

use bytestring::ByteString;
use hark_protocol::{Sequence, UserName};

use super::{Account, Completer};
use crate::log::LogCopy;

/// An operation of an administrator.
#[derive(Debug)]
pub enum AdminOperation {
    /// Suspends or resumes an account. Completes with false if it does not exist.
    SetSuspended {
        /// The account.
        account: Account,
        /// Whether it is suspended from now on.
        is_suspended: bool,
        /// Whether the account exists.
        completer: Completer<bool>,
    },
    /// Looks up inboxes, in order. Names without an account are left out.
    Inspect(Vec<UserName>, Completer<Vec<InboxInfo>>),
    /// Returns figures of the store.
    Usage(Completer<StoreUsage>),
    /// Begins a copy of the store at this point; `None` if the store has no files.
    Copy(Completer<Option<Box<dyn LogCopy>>>),
}

/// The connections to close at other servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kick {
    /// Those of a user.
    User(UserName),
    /// Those from a network, such as 192.0.2.0/24.
    Network(String),
}

/// The administration of this server, which other servers call.
pub trait Peer: fmt::Debug + Send + Sync {
    /// Describes the server.
    fn describe(&self) -> ServerDescription;

    /// Closes connections of this server, and returns their number.
    fn kick(&self, kick: &Kick) -> usize;
}

/// A description of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerDescription {
    /// The version of `harkd`.
    pub version: ByteString,
    /// The name of its machine.
    pub host: ByteString,
    /// The id of its process.
    pub pid: u32,
    /// The seconds since it started.
    pub uptime_s: u64,
    /// The number of its client connections.
    pub connections: u64,
}

/// A server of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its id, new at each start.
    pub id: String,
    /// Whether it is the server that was asked.
    pub is_this: bool,
    /// The shards that it owns.
    pub shards: Vec<u32>,
    /// `None` if it did not answer.
    pub description: Option<ServerDescription>,
}

/// A shard of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number.
    pub shard: u32,
    /// The id of the server that owns it, if there is one.
    pub owner: Option<String>,
    /// Its figures, as its owner knows them; `None` if it did not answer.
    pub usage: Option<StoreUsage>,
    /// Its stream; `None` if no node has answered.
    pub replicas: Option<StreamReplicas>,
}

/// The replicas of a shard's stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamReplicas {
    /// The node that leads, if there is one.
    pub leader: Option<String>,
    /// The number of replicas, and of those that are up to date.
    pub count: u64,
    /// See `count`.
    pub current: u64,
    /// The messages by which the slowest one is behind.
    pub lag: u64,
    /// The number of messages in the stream.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An account and its inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxInfo {
    /// The name of the account.
    pub name: UserName,
    /// Whether it has a password.
    pub has_password: bool,
    /// Whether it is suspended.
    pub is_suspended: bool,
    /// Whether a client receives its messages.
    pub is_receiving: bool,
    /// The number of unacknowledged messages.
    pub waiting_messages: u64,
    /// The bytes of their texts.
    pub waiting_bytes: u64,
    /// The number of the last acknowledged message.
    pub acknowledged: Sequence,
    /// The number of the last message.
    pub last: Sequence,
}

/// The figures of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreUsage {
    /// The number of accounts.
    pub accounts: u64,
    /// The last number that was assigned.
    pub last_number: u64,
    /// The bytes of unread messages.
    pub live_bytes: u64,
    /// The bytes of all files.
    pub file_bytes: u64,
    /// Whether sends are refused for lack of space.
    pub is_low_on_space: bool,
}
