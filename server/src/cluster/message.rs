//! Messages between servers: commands for the owner of a shard, and its answers and
//! deliveries.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::{Code, UserName};

use super::ShardId;
use super::entry::Claim;
use super::flow::{FlowId, Packet};
use crate::store::{
    Account, AccountEntry, Append, Created, End, Fence, Message as Text, Outcome, Page, PasswordHash,
    Position, ReadLimit, SendId, Subscription,
};

/// Bytes of an item of a packet besides its text, about.
const ITEM_BYTES: u64 = 96;

/// A message from one server to another.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// The claim is in force. Its owner sends this.
    Heartbeat(ShardId, Claim),
    /// The owner gave the shard up.
    Released(ShardId, Claim),
    /// From a server to the owner of a shard.
    Up(ShardId, FlowId, Up),
    /// From the owner of a shard to a server.
    Down(ShardId, FlowId, Down),
}

/// From a server to an owner, in a flow.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    /// The server begins the flow.
    Open,
    /// Commands, or a heartbeat.
    Packet(Packet<Command>),
    /// The server has ended the flow.
    End,
}

/// From an owner to a server, in a flow.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    /// The flow has begun.
    Opened(ShardClock),
    /// Events, or a heartbeat.
    Packet(Packet<Event>, ShardClock),
    /// The flow has ended, or never was.
    End,
}

/// The running time of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardClock {
    /// The owner's count. With each claim it goes on from the time in the stream.
    pub(crate) running: Duration,
    /// The time in the stream: it never goes back.
    pub(crate) durable: Duration,
}

/// Orders the receptions of an inbox: the sequence of the frame that admitted one, and
/// its place in that frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation {
    pub(crate) sequence: u64,
    pub(crate) place: u32,
}

/// A command for the owner of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// Comes back with the answer; never used twice by a server.
    pub(crate) id: u64,
    /// The command.
    pub(crate) request: Request,
}

/// What a server asks of the owner of a shard.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// Create an account.
    Create(UserName, Option<PasswordHash>),
    /// Set the password of an account if it is still `old`.
    SetPassword { account: Account, old: Option<PasswordHash>, new: PasswordHash },
    /// End an account.
    Delete(Account),
    /// Look an account up.
    LookUp(UserName),
    /// Register that a connection of this server acts as an account.
    Register(Account),
    /// No connection of this server acts as the account any more. Has no answer.
    Unregister(Account),
    /// Store a message.
    Send(Box<Send>),
    /// Begin a reception.
    Subscribe { account: Account, takes_over: bool },
    /// Continue a reception in this flow.
    Resubscribe {
        account: Account,
        generation: Generation,
        /// The last message that was delivered in this reception.
        delivered: Position,
        acknowledged: Position,
    },
    /// End a reception. Has no answer.
    Unsubscribe(Account, Generation),
    /// Read messages after a place.
    Read { account: Account, after: Position, limit: ReadLimit },
    /// Forget every message up to a position. Has no answer.
    Acknowledge(Account, Position),
}

/// A message to be stored. The server vouches for the sender: it is registered at the
/// owner of that account.
#[derive(Debug, Clone)]
pub(crate) struct Send {
    pub(crate) to: UserName,
    pub(crate) sender: Option<Account>,
    pub(crate) from_nobody: bool,
    pub(crate) time_ms: u64,
    pub(crate) text: ByteString,
    pub(crate) send_id: Option<SendId>,
    pub(crate) refusal: Option<Code>,
}

/// What an owner tells a server.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The answer to a command.
    Answer(u64, Answer),
    /// Messages that were stored, by the incarnation of their account.
    Delivery(u64, Vec<Arc<Text>>),
    /// Messages were stored that were not delivered.
    Lagged(u64),
    /// A reception has ended.
    Ended(u64, Generation, End),
    /// An account is about to end: the server ends whatever acts as it, and then
    /// [`Request::Unregister`]s it.
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
    /// Whether the reception goes on, and if so, whether messages were stored that were
    /// not delivered; or why it has ended.
    Resubscribed(Result<bool, End>),
    Page(Page),
    /// It cannot be answered at the moment.
    Unavailable,
}

/// A reception that has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscribed {
    pub(crate) generation: Generation,
    pub(crate) queued: u64,
    pub(crate) cursor: Position,
}

/// The answer to a request of a connection.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Whether it was carried out is unknown.
    Unavailable,
    /// The answer to [`Request::Subscribe`].
    Subscribed(Option<Subscription>),
    /// Any other answer.
    Answer(Answer),
}

/// The bytes of an item, about.
pub(super) trait Item {
    /// Returns them.
    fn bytes(&self) -> u64;
}

impl Item for Command {
    fn bytes(&self) -> u64 {
        match &self.request {
            Request::Send(send) => ITEM_BYTES + send.text.len() as u64,
            _ => ITEM_BYTES,
        }
    }
}

impl Item for Event {
    fn bytes(&self) -> u64 {
        match self {
            Self::Delivery(_, messages) => texts(messages),
            Self::Answer(_, Answer::Page(page)) => texts(&page.messages),
            _ => ITEM_BYTES,
        }
    }
}

fn texts(messages: &[Arc<Text>]) -> u64 {
    messages.iter().map(|message| ITEM_BYTES + message.text.len() as u64).sum()
}

impl Request {
    /// Returns whether it has an answer.
    pub(super) const fn has_answer(&self) -> bool {
        !matches!(self, Self::Acknowledge(..) | Self::Unsubscribe(..) | Self::Unregister(_))
    }

    /// Returns whether it may change something and has an answer: if that is lost, its
    /// connection closes.
    pub(super) const fn is_change(&self) -> bool {
        matches!(self, Self::Create(..) | Self::SetPassword { .. } | Self::Delete(_) | Self::Send(_))
    }
}

impl Send {
    /// Returns the send for the ledger.
    pub(super) fn into_append(self) -> Append {
        let Self { to, sender, from_nobody, time_ms, text, send_id, refusal } = self;
        let (fence, permit) = (Fence::default(), None);
        Append { to, sender, from_nobody, time_ms, text, send_id, refusal, fence, permit }
    }
}

impl fmt::Display for super::ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
