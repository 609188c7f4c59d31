//! Messages between servers: commands for the owner of a shard, and its answers and
//! deliveries.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Sequence, SessionToken, UserName};

use super::administer::{Administer, Administered, Question, Told};
use super::entry::Claim;
use super::flow::{FlowId, Packet};
use super::{ServerId, ShardId};
use crate::ledger::Imported;
use crate::store::{
    Account, AccountEntry, Append, Created, End, Message as Text, Outcome, Page, PasswordHash,
    Position, ReadLimit, Subscription,
};

/// Approximate bytes of an item besides its text.
const ITEM_BYTES: u64 = 96;

/// Approximate bytes of a name besides its characters.
const NAME_BYTES: u64 = 16;

/// A message from one server to another.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// The owner's claim is in force.
    Heartbeat(ShardId, Claim),
    /// The owner has released the shard, possibly for this server.
    Released(ShardId, Claim, Option<ServerId>),
    /// The server is alive, and reads entries up to this format.
    Present(ServerId, u8),
    /// The server stops, and releases its shards.
    Leaving(ServerId),
    /// Sessions were opened at this server: connections that hold them elsewhere close.
    Sessions(ServerId, Vec<SessionToken>),
    /// A question of a server, with its number, to the administration of each server.
    Ask(ServerId, u64, Question),
    /// The answer of a server.
    Told(ServerId, u64, Told),
    /// From a server to the owner of a shard.
    Up(ShardId, FlowId, Up),
    /// From the owner of a shard to a server.
    Down(ShardId, FlowId, Down),
}

/// A message of a flow, from a server to an owner.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    /// Opens the flow.
    Open,
    /// Commands, or a heartbeat, sent at this time of the server's clock.
    Packet(Packet<Command>, Duration),
    /// Ends the flow at the server.
    End,
}

/// A message of a flow, from an owner to a server.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    /// The flow is open.
    Opened(ShardClock),
    /// Events, or a heartbeat; the clock of the shard; and the time of a packet of the
    /// server that the owner had taken when it built an append that was stored later on: at
    /// that time of the server's clock, there was no later owner.
    Packet(Packet<Event>, ShardClock, Duration),
    /// The flow has ended or is unknown.
    End,
    /// The owner has released the shard, and decides nothing more. It has answered every
    /// command that it has decided, by packets up to this number.
    Released(u64),
}

/// The running time of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardClock {
    /// The owner's count. With each claim it continues from the time in the stream.
    pub(crate) running: Duration,
    /// The time in the stream: it never goes back.
    pub(crate) durable: Duration,
}

/// The order of the receptions of an inbox: the sequence of the frame that admitted the
/// reception, and its index in that frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation {
    pub(crate) sequence: u64,
    pub(crate) place: u32,
}

/// A command for the owner of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// A unique id, returned with the answer.
    pub(crate) id: u64,
    /// The command.
    pub(crate) request: Request,
}

/// The content of a command.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// Create an account.
    Create(UserName, Option<PasswordHash>),
    /// Set the password of an account if it is still `old`.
    SetPassword {
        account: Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
    },
    /// End an account.
    Delete(Account),
    /// Look up an account.
    LookUp(UserName),
    /// Return the first names of the shard after a name, in byte order: at most `limit`.
    Names { after: Option<UserName>, limit: u32 },
    /// Register a connection of this server that acts as an account.
    Register(Account),
    /// No connection of this server acts as the account any more. Has no answer.
    Unregister(Account),
    /// Store a message. The server vouches for the sender: it is registered at the
    /// owner of that account.
    Send(Box<Append>),
    /// Start a reception.
    Subscribe { account: Account, takes_over: bool },
    /// Continue a reception in this flow.
    Resubscribe {
        account: Account,
        generation: Generation,
        /// The last message delivered in this reception.
        delivered: Position,
        acknowledged: Position,
    },
    /// End a reception. Has no answer.
    Unsubscribe(Account, Generation),
    /// Read messages after a position.
    Read {
        account: Account,
        after: Position,
        limit: ReadLimit,
    },
    /// Forget every message up to a position.
    Acknowledge(Account, Position),
    /// Import an account or a message.
    Import(Import),
    /// A request of an administrator.
    Administer(Administer),
}

/// A command of an import.
#[derive(Debug, Clone)]
pub(crate) enum Import {
    /// Create an account whose messages up to `cursor` were acknowledged.
    Account {
        name: UserName,
        password: Option<PasswordHash>,
        cursor: Sequence,
    },
    /// Store a message under its own number.
    Message { to: UserName, message: Box<Text> },
    /// Assign no number up to this one.
    SkipNumbers(Sequence),
}

/// An item that an owner sends to a server.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The answer to a command.
    Answer(u64, Answer),
    /// Stored messages, by the incarnation of their account.
    Delivery(u64, Vec<Arc<Text>>),
    /// Stored messages were not delivered.
    Lagged(u64),
    /// A reception has ended.
    Ended(u64, Generation, End),
    /// A deletion of the account is pending: the server must close the connections that
    /// act as it, and then send [`Request::Unregister`].
    AccountEnding(Account),
}

/// The answer to a command.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Created(Created),
    Flag(bool),
    Account(Option<AccountEntry>),
    Sent(Outcome),
    Subscribed(Option<Subscribed>),
    /// Whether messages were missed, if the reception continues; or the reason why it has
    /// ended.
    Resubscribed(Result<bool, End>),
    Page(Page),
    Imported(Imported),
    /// Names in byte order, and whether the shard has no later ones.
    Names {
        names: Vec<UserName>,
        is_complete: bool,
    },
    /// The account is suspended: the server may not act as it.
    Suspended,
    Administered(Administered),
    /// No answer is possible at the moment.
    Unavailable,
}

/// A newly started reception.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscribed {
    pub(crate) generation: Generation,
    pub(crate) queued: u64,
    pub(crate) cursor: Position,
}

/// The answer to a request of a connection.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The outcome is unknown.
    Unavailable,
    /// The answer to [`Request::Subscribe`].
    Subscribed(Option<Subscription>),
    /// Any other answer.
    Answer(Answer),
}

/// An item of a packet, with a size.
pub(super) trait Item {
    /// Returns its approximate bytes.
    fn bytes(&self) -> u64;
}

impl Item for Command {
    fn bytes(&self) -> u64 {
        match &self.request {
            Request::Send(send) => ITEM_BYTES + send.text.len() as u64,
            Request::Import(Import::Message { message, .. }) => {
                ITEM_BYTES + message.text.len() as u64
            }
            Request::Import(Import::Account {
                password: Some(hash),
                ..
            }) => ITEM_BYTES + hash.as_str().len() as u64,
            Request::Administer(Administer::Inspect(names)) => names_bytes(names),
            _ => ITEM_BYTES,
        }
    }
}

impl Item for Event {
    fn bytes(&self) -> u64 {
        match self {
            Self::Delivery(_, messages) => texts(messages),
            Self::Answer(_, Answer::Page(page)) => texts(&page.messages),
            Self::Answer(_, Answer::Names { names, .. }) => names_bytes(names),
            Self::Answer(_, Answer::Administered(Administered::Inspected(inboxes))) => {
                (ITEM_BYTES + NAME_BYTES) * inboxes.len() as u64
            }
            _ => ITEM_BYTES,
        }
    }
}

fn names_bytes(names: &[UserName]) -> u64 {
    let bytes = |name: &UserName| NAME_BYTES + name.as_str().len() as u64;
    names.iter().map(bytes).sum()
}

fn texts(messages: &[Arc<Text>]) -> u64 {
    messages
        .iter()
        .map(|message| ITEM_BYTES + message.text.len() as u64)
        .sum()
}

impl Request {
    /// Returns whether the request has an answer.
    pub(super) const fn has_answer(&self) -> bool {
        !matches!(self, Self::Unsubscribe(..) | Self::Unregister(_))
    }

    /// Returns whether the request may change state and has an answer: if the answer is
    /// lost, its connection closes.
    pub(super) const fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Create(..)
                | Self::SetPassword { .. }
                | Self::Delete(_)
                | Self::Send(_)
                | Self::Import(_)
                | Self::Administer(Administer::SetSuspended { .. })
        )
    }
}

impl fmt::Display for super::ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
