//! [`AdminOperation`]: what an administrator asks a store, besides the operations of the
//! chat; and [`Peer`]: what the servers of a cluster ask each other.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;

use hark_protocol::message::RoomMode;
use hark_protocol::{RoomName, Sequence, UserName};

use super::{Account, Completer, DeviceEntry, History, Position};
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
    /// Sets limits of an account. Completes with those in effect; `None` if it does not exist.
    SetLimits {
        /// The account.
        account: Account,
        /// The limits to set.
        limits: UserLimits,
        /// Whether the former limits end first.
        is_reset: bool,
        /// The limits in effect.
        completer: Completer<Option<UserLimits>>,
    },
    /// Lists at most this many rooms from a place on: 0, or [`RoomList::next`].
    Rooms(u64, usize, Completer<RoomList>),
    /// Looks up a room, with its owners.
    Room(RoomName, Completer<Option<RoomInfo>>),
    /// Returns the messages of the inbox or room of this name.
    Messages(UserName, Completer<Option<History>>),
    /// Removes the messages of a log up to the position of one of them.
    Purge(u64, Position, Completer<Purged>),
    /// Begins to copy the live parts of files together. Completes with the usage before.
    Compact(Completer<StoreUsage>),
    /// Notes that an account is in use.
    NoteUse(Account),
}

/// The limits of one user that an administrator has set; `None` is the limit of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserLimits {
    /// Maximum number of unacknowledged messages.
    pub queued_messages: Option<u64>,
    /// Maximum bytes of their texts.
    pub queued_bytes: Option<u64>,
    /// Commands per second; 0 means no limit.
    pub commands: Option<u64>,
    /// Bytes of texts per second; 0 means no limit.
    pub bytes: Option<u64>,
    /// Deliveries to rooms per second; 0 means no limit.
    pub deliveries: Option<u64>,
}

impl UserLimits {
    /// Returns these limits, and those of `former` that they leave open.
    #[must_use]
    pub fn or(self, former: Self) -> Self {
        Self {
            queued_messages: self.queued_messages.or(former.queued_messages),
            queued_bytes: self.queued_bytes.or(former.queued_bytes),
            commands: self.commands.or(former.commands),
            bytes: self.bytes.or(former.bytes),
            deliveries: self.deliveries.or(former.deliveries),
        }
    }

    /// Returns the limits, or `None` if there is none.
    pub(crate) fn shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

/// A room as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomInfo {
    /// Its name.
    pub name: RoomName,
    /// Its mode.
    pub mode: RoomMode,
    /// The number of members.
    pub members: usize,
    /// The messages that it holds.
    pub messages: u64,
    /// Their bytes that count for quotas.
    pub bytes: u64,
    /// The number of the last message that was removed.
    pub removed: Sequence,
    /// The last number.
    pub last: Sequence,
    /// How long it keeps messages.
    pub keep: Duration,
    /// The first owners by name, if they were asked for.
    pub owners: Vec<UserName>,
}

/// A page of rooms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomList {
    /// The rooms.
    pub rooms: Vec<RoomInfo>,
    /// The place of the next page; `None` if this is the last one.
    pub next: Option<u64>,
}

/// The result of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    /// The number of messages that were removed.
    pub messages: u64,
    /// The bytes of their texts.
    pub bytes: u64,
    /// Whether a receiver by `connect` missed some of them, which is not told.
    pub is_silent_for_connect: bool,
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
    /// The devices.
    pub devices: Vec<DeviceEntry>,
    /// The limits of the account alone.
    pub limits: UserLimits,
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
    /// The free space of the file system, if it is known.
    pub free_bytes: Option<u64>,
    /// Whether sends are refused for lack of space.
    pub is_low_on_space: bool,
}
