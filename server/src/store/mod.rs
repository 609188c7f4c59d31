//! The durable state of the chat: the [`Store`] trait over accounts, inboxes and the
//! outcomes of sends.
//!
//! The chat knows only this trait; a store does not know about fronts, sockets or the rules
//! of the chat. `config/store.rs` chooses the implementation.

mod admin;
#[cfg(test)]
pub(crate) mod contract;
mod fan_out;
mod operation;
mod pending;
pub(crate) mod quota;
mod ring;
mod rooms;
mod said;
mod subscription;
mod tokens;

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytestring::ByteString;
use hark_protocol::{Code, DeviceName, RequestId, RoomName, Sequence, SessionToken, UserName};
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::log::LogCopy;

pub use admin::{
    AdminOperation, InboxInfo, Kick, Peer, PeerInfo, Purged, RoomInfo, RoomList, ServerDescription,
    ShardInfo, StoreUsage, StreamReplicas, UserLimits,
};
pub(crate) use fan_out::FanOut;
pub use operation::{OnTakeover, Operation};
pub use pending::{Completer, Pending};
pub use ring::{Next, Registration, Ring, name_hash};
pub use rooms::{
    AttachedRoom, DeviceCursors, DeviceEntry, DeviceId, DeviceSubscription, History, Joined,
    MemberPage, NAMELESS, Notice, PastPage, Point, RoomAnswer, RoomCommand, RoomEntry,
    RoomOperation, RoomPage, RoomPlace,
};
pub use said::Said;
pub use subscription::{
    Attachment, BUFFERED_BYTES_MAX, BUFFERED_MESSAGES_MAX, End, Event, Events, NOTICES_MAX,
    Publisher, Ready, Subscription, Waker,
};
pub use tokens::{AccountToken, NewToken, Token, TokenDigest};

/// The default log levels of libraries.
pub const LIBRARY_LOGS: &[&str] = &[
    #[cfg(feature = "cluster")]
    crate::cluster::CLIENT_LOG,
];

/// The durable state of a chat.
///
/// An implementation guarantees:
///
/// - **Order.** Operations of one caller take effect in the order of the calls, except that a
///   message with a sender may be delayed: the caller awaits its outcome before any other
///   operation. No method blocks; [`Pending`] resolves later.
/// - **Durability.** A change resolves when it is on stable storage. Every result is based
///   on durable state only.
/// - **Failure.** [`Unavailable`] means that the outcome is unknown. The store stays usable
///   and recovers by itself.
/// - **Exactly once.** The outcome of an [`Append`] with a [`SendId`] is decided once, in the
///   commit that stores the message, and remembered.
/// - **Numbers.** A [`Sequence`] is never reused for a name, across deletion, recreation and
///   restarts.
/// - **Bounds.** Accounts, sessions and each inbox have a limit. Callers bound the operations
///   in flight: see [`QueuedSend::permit`].
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Accepts an operation. Called by the other methods.
    fn submit(&self, operation: Operation);

    /// Returns whether the store serves rooms, devices and tokens. Otherwise their operations
    /// are [`Unavailable`].
    fn has_rooms(&self) -> bool {
        false
    }

    /// Returns whether the store answers [`RoomCommand::Cursors`].
    fn has_cursors(&self) -> bool {
        false
    }

    /// Returns whether the store is healthy, as far as it knows. An unhealthy store answers
    /// [`Unavailable`].
    fn is_available(&self) -> bool;

    /// Returns the number of accounts, if the store knows it.
    fn accounts(&self) -> Option<usize> {
        None
    }

    /// Adds the figures of the store to the metrics of the server.
    fn register_metrics(&self, _registry: &mut Registry) {}

    /// Returns whether the store refuses sends for lack of space, as far as it knows.
    fn is_low_on_space(&self) -> bool {
        false
    }

    /// Returns the epoch of new connections, if the store has epochs. When it increases,
    /// every connection of an earlier epoch must be closed without reading more from it,
    /// because a command of it may have been repeated and forgotten elsewhere; the store
    /// refuses its sends. Connections that are established but not accepted yet belong to
    /// the earlier epoch.
    fn epoch(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Returns the token with this digest.
    fn token(&self, digest: TokenDigest) -> Pending<Option<AccountToken>> {
        ask(self, |completer| {
            Operation::Room(RoomOperation::Token(digest, completer))
        })
    }

    /// Notes that a token was used. It may be saved later, or get lost in a crash.
    fn note_token_use(&self, account: &Account, digest: TokenDigest) {
        let operation = RoomOperation::TokenUse(account.clone(), digest);
        self.submit(Operation::Room(operation));
    }

    /// Carries out a command of a user that concerns rooms, devices or tokens. A refusal changes
    /// nothing. A command may be repeated: if the state is as asked, it succeeds. `origin`
    /// is the device of the connection, if it is attached: it is not notified of its own
    /// command.
    fn room_command(
        &self,
        caller: &Account,
        origin: Option<DeviceId>,
        command: RoomCommand,
    ) -> Pending<Result<RoomAnswer, Code>> {
        ask(self, |completer| {
            Operation::Room(RoomOperation::Command {
                caller: caller.clone(),
                origin,
                command,
                completer,
            })
        })
    }

    /// Attaches a device of a user to its inbox and its rooms, until the subscription is
    /// dropped. A former attachment of the device gets [`End::TakenOver`].
    fn attach(
        &self,
        account: &Account,
        device: &DeviceName,
    ) -> Pending<Result<DeviceSubscription, Code>> {
        ask(self, |completer| {
            let operation = RoomOperation::Attach(account.clone(), device.clone(), completer);
            Operation::Room(operation)
        })
    }

    /// Acknowledges, for a device, every message of the inbox up to `position`, as
    /// [`Self::acknowledge`] does for the nameless device.
    fn acknowledge_inbox(&self, account: &Account, device: DeviceId, position: Position) {
        let operation = RoomOperation::AcknowledgeInbox(account.clone(), device, position);
        self.submit(Operation::Room(operation));
    }

    /// Acknowledges, for a device, every message of a room up to `point`. It may be saved a
    /// second later.
    fn acknowledge_room(&self, account: &Account, device: DeviceId, room: u64, point: Point) {
        let operation = RoomOperation::AcknowledgeRoom(account.clone(), device, room, point);
        self.submit(Operation::Room(operation));
    }

    /// Reads the messages of a room after `after`, as [`Self::read`] does. Messages that
    /// retention removed are skipped.
    fn read_room(&self, room: u64, after: Point, limit: ReadLimit) -> Pending<Page> {
        ask(self, |completer| {
            Operation::Room(RoomOperation::Read {
                room,
                after,
                limit,
                completer,
            })
        })
    }

    /// Reads the last messages of a room before a number (0: from the end), up to `limit`,
    /// which one long message may exceed. `history` is the answer to
    /// [`RoomCommand::History`].
    fn read_back(&self, history: History, before: Sequence, limit: ReadLimit) -> Pending<PastPage> {
        ask(self, |completer| {
            Operation::Room(RoomOperation::ReadBack {
                history,
                before,
                limit,
                completer,
            })
        })
    }

    /// Returns the number of devices that are attached to the room of this name, as far as
    /// this server knows; 0 if there is no such room.
    fn attached_devices(&self, _room: &UserName) -> usize {
        0
    }

    /// Creates an account, with a password if there is one.
    fn create(&self, name: &UserName, password: Option<PasswordHash>) -> Pending<Created> {
        ask(self, |completer| {
            Operation::Create(name.clone(), password, completer)
        })
    }

    /// Returns an account.
    fn account(&self, name: &UserName) -> Pending<Option<AccountEntry>> {
        ask(self, |completer| {
            Operation::Account(name.clone(), completer)
        })
    }

    /// Sets the password of an account if it is still `old`, and ends its tokens. Returns
    /// whether it was.
    fn set_password(
        &self,
        account: &Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
    ) -> Pending<bool> {
        ask(self, |completer| Operation::SetPassword {
            account: account.clone(),
            old,
            new,
            completer,
        })
    }

    /// Deletes an account and its inbox. A subscription gets [`End::Deleted`] after this has
    /// resolved. Returns whether the account existed.
    fn delete(&self, account: &Account) -> Pending<bool> {
        ask(self, |completer| {
            Operation::Delete(account.clone(), completer)
        })
    }

    /// Returns at most `limit` names after `after`, in byte order.
    fn names(&self, after: Option<&UserName>, limit: usize) -> Pending<Vec<UserName>> {
        ask(self, |completer| {
            Operation::Names(after.cloned(), limit, completer)
        })
    }

    /// Stores or refuses a message.
    fn append(&self, append: Append) -> Pending<Outcome> {
        let (send, outcome) = QueuedSend::new(append, None);
        self.append_all(Burst {
            fence: Fence::default(),
            sends: vec![send],
        });
        outcome
    }

    /// Appends each message, in order, as [`Self::append`] does. Cheaper than single calls.
    fn append_all(&self, burst: Burst) {
        self.submit(Operation::Appends(burst));
    }

    /// Subscribes to the inbox of an account. A former subscription gets
    /// [`End::TakenOver`]. Returns `None` if the account was deleted.
    fn receive(&self, account: &Account) -> Pending<Option<Subscription>> {
        ask(self, |completer| Operation::Subscribe {
            account: account.clone(),
            takes_over: true,
            completer,
        })
    }

    /// Subscribes as [`Self::receive`] does, unless there is a subscription already. Returns
    /// `None` in that case, or if the account was deleted. Messages acknowledged before the
    /// former subscription was dropped are not received again.
    fn receive_if_free(&self, account: &Account) -> Pending<Option<Subscription>> {
        ask(self, |completer| Operation::Subscribe {
            account: account.clone(),
            takes_over: false,
            completer,
        })
    }

    /// Reads the messages after `after`, in order of their numbers, up to `limit`, which one
    /// long message may exceed. Durably acknowledged messages are skipped.
    fn read(&self, account: &Account, after: Position, limit: ReadLimit) -> Pending<Page> {
        ask(self, |completer| Operation::Read {
            account: account.clone(),
            after,
            limit,
            completer,
        })
    }

    /// Acknowledges every message up to `position`, which is the position of a message of
    /// this inbox. A crash may undo it; an orderly close does not. A position before the
    /// cursor is ignored, as is one of a deleted account.
    fn acknowledge(&self, account: &Account, position: Position) {
        self.submit(Operation::Acknowledge(account.clone(), position));
    }

    /// Resolves when the acknowledgements of an inbox so far are durable: a subscription
    /// decides them first. A subscription that is granted because there is no other ends at
    /// once.
    fn sync_acknowledgements(&self, account: &Account) -> Pending<Option<Subscription>> {
        self.receive_if_free(account)
    }

    /// Opens a session, after all earlier appends. Returns false if there are too many
    /// sessions, in total or `from` this network, whose quota is a quarter; `None` counts
    /// towards no quota. The session is remembered until [`Self::close_session`], which must
    /// be called once for each call of this method.
    fn open_session(&self, session: &SessionToken, from: Option<IpAddr>) -> Pending<bool> {
        ask(self, |completer| {
            Operation::OpenSession(session.clone(), from, completer)
        })
    }

    /// Closes a session at the end of its connection. Its outcomes stay remembered for at
    /// least ten minutes of running time.
    fn close_session(&self, session: &SessionToken) {
        self.submit(Operation::CloseSession(session.clone()));
    }

    /// Calls `end` when an open session is opened at another server, until it is closed here.
    /// Called after [`Self::open_session`] has succeeded. A store of one server ignores this:
    /// the chat takes over the session.
    fn on_takeover(&self, session: &SessionToken, end: Box<dyn Fn() + Send>) {
        self.submit(Operation::OnTakeover(session.clone(), OnTakeover(end)));
    }

    /// Suspends or resumes an account. Returns false if it does not exist.
    fn set_suspended(&self, account: &Account, is_suspended: bool) -> Pending<bool> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::SetSuspended {
                account: account.clone(),
                is_suspended,
                completer,
            })
        })
    }

    /// Returns the inboxes of these names, in order, without those that do not exist.
    fn inspect(&self, names: Vec<UserName>) -> Pending<Vec<InboxInfo>> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Inspect(names, completer))
        })
    }

    /// Returns figures of the store.
    fn usage(&self) -> Pending<StoreUsage> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Usage(completer))
        })
    }

    /// Begins a copy of the store that includes every change that was resolved before;
    /// `None` if the store has no files.
    fn copy(&self) -> Pending<Option<Box<dyn LogCopy>>> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Copy(completer))
        })
    }

    /// Sets limits of an account, beside its former ones or instead of them. Returns the limits
    /// in effect; `None` if it does not exist.
    fn set_limits(
        &self,
        account: &Account,
        limits: UserLimits,
        is_reset: bool,
    ) -> Pending<Option<UserLimits>> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::SetLimits {
                account: account.clone(),
                limits,
                is_reset,
                completer,
            })
        })
    }

    /// Returns at most `limit` rooms from a place on: 0, or [`RoomList::next`].
    fn rooms(&self, from: u64, limit: usize) -> Pending<RoomList> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Rooms(from, limit, completer))
        })
    }

    /// Returns a room, with its owners.
    fn room(&self, name: &RoomName) -> Pending<Option<RoomInfo>> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Room(name.clone(), completer))
        })
    }

    /// Returns the messages of the inbox or room of this name, as [`Self::read_back`] takes
    /// them.
    fn messages(&self, name: &UserName) -> Pending<Option<History>> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Messages(name.clone(), completer))
        })
    }

    /// Removes the messages of a log up to `through`, the position of one of them. Attached
    /// devices get a gap.
    fn purge(&self, log: u64, through: Position) -> Pending<Purged> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Purge(log, through, completer))
        })
    }

    /// Begins to copy the live parts of files together. Returns the usage before.
    fn compact(&self) -> Pending<StoreUsage> {
        ask(self, |completer| {
            Operation::Admin(AdminOperation::Compact(completer))
        })
    }

    /// Notes that an account is in use, as far as the store removes idle accounts.
    fn note_use(&self, account: &Account) {
        self.submit(Operation::Admin(AdminOperation::NoteUse(account.clone())));
    }

    /// Describes the shards of a cluster, in order. A store of one server has none.
    fn shards(&self) -> Pending<Vec<ShardInfo>> {
        Pending::ready(Ok(Vec::new()))
    }

    /// Describes the servers of a cluster, this one first. A store of one server has none.
    fn servers(&self) -> Pending<Vec<PeerInfo>> {
        Pending::ready(Ok(Vec::new()))
    }

    /// Closes connections at all other servers of a cluster. Returns their number, or
    /// [`Unavailable`] if one of the servers does not answer.
    fn kick_elsewhere(&self, _kick: Kick) -> Pending<usize> {
        Pending::ready(Ok(0))
    }

    /// Sets the administration of this server, for the calls of other servers.
    fn set_peer(&self, _peer: Weak<dyn Peer>) {}

    /// Decides the operations in flight, saves pending acknowledgements, and releases all
    /// resources. Later operations fail with [`Unavailable`].
    fn close(&self) -> Pending<()> {
        ask(self, Operation::Close)
    }
}

/// Submits an operation that has an answer.
fn ask<T>(
    store: &(impl Store + ?Sized),
    operation: impl FnOnce(Completer<T>) -> Operation,
) -> Pending<T> {
    let (completer, pending) = Pending::new();
    store.submit(operation(completer));
    pending
}

/// Returns a time in milliseconds since 1970, or 0 if it is before that.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The failure of an operation whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is temporarily unavailable; try again")]
pub struct Unavailable;

/// An account, distinct from earlier and later ones of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// The name.
    pub name: UserName,
    /// The number of its creation.
    pub incarnation: u64,
}

/// The stored data of an account.
#[derive(Debug, Clone)]
pub struct AccountEntry {
    /// The account.
    pub account: Account,
    /// The hash of its password, if it has one.
    pub password: Option<PasswordHash>,
    /// Whether an administrator has suspended it: it cannot log in or send.
    pub is_suspended: bool,
    /// The limits of the account alone, if it has any.
    pub limits: Option<Arc<UserLimits>>,
}

/// The hash of a password in the PHC string format. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Arc<str>);

impl PasswordHash {
    /// Wraps a PHC string, without checking it.
    #[must_use]
    pub fn new(phc: &str) -> Self {
        Self(phc.into())
    }

    /// Returns the PHC string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// The outcome of [`Store::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The account was created.
    Created,
    /// An account of this name exists.
    Exists,
    /// The limit of accounts is reached.
    TooMany,
}

/// A message to be stored.
#[derive(Debug, Clone)]
pub struct Append {
    /// The recipient.
    pub to: UserName,
    /// The sender. If this account was deleted, the message is anonymous.
    pub sender: Option<Account>,
    /// Whether an anonymous message is accepted; otherwise it is [`Code::Denied`].
    pub allow_anonymous: bool,
    /// The time of its arrival, in milliseconds since 1970.
    pub time_ms: u64,
    /// The text.
    pub text: ByteString,
    /// The deduplication id, if it is sent in a session.
    pub send_id: Option<SendId>,
    /// A refusal by the chat, applied unless this is a repeat.
    pub refusal: Option<Code>,
}

/// Sends of one connection, in order.
#[derive(Debug)]
pub struct Burst {
    /// The fence of the connection.
    pub fence: Fence,
    /// The sends.
    pub sends: Vec<QueuedSend>,
}

/// An undecided send.
#[derive(Debug)]
pub struct QueuedSend {
    /// The message.
    pub append: Append,
    /// The share of the caller's budget, released when the send is answered.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Receives its outcome.
    pub completer: Completer<Outcome>,
}

impl QueuedSend {
    /// Returns an undecided send and its outcome.
    #[must_use]
    pub fn new(append: Append, permit: Option<OwnedSemaphorePermit>) -> (Self, Pending<Outcome>) {
        let (completer, outcome) = Pending::new();
        let send = Self {
            append,
            completer,
            permit,
        };
        (send, outcome)
    }
}

/// The deduplication id of a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendId {
    /// The session.
    pub session: SessionToken,
    /// The id within the session.
    pub id: RequestId,
    /// Whether ids increase: a new id below the highest is then refused. Otherwise only an id
    /// below all remembered ones is refused.
    pub in_order: bool,
    /// The network of the session's first send: see [`Store::open_session`].
    pub from: Option<IpAddr>,
}

/// The outcome of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The message was stored under this number.
    Stored(Sequence),
    /// The message was refused for good.
    Refused(Code),
}

/// The fence of a connection. The store closes it when an [`Append`] of a session ends with
/// [`Unavailable`], and then refuses every append with the same fence, so that no later send
/// overtakes the repeat.
#[derive(Debug, Clone)]
pub struct Fence(Arc<FenceState>);

#[derive(Debug)]
struct FenceState {
    is_closed: AtomicBool,
    #[cfg_attr(
        not(feature = "cluster"),
        expect(dead_code, reason = "only clusters need it")
    )]
    id: u64,
    #[cfg_attr(
        not(feature = "cluster"),
        expect(dead_code, reason = "only clusters need it")
    )]
    epoch: u64,
}

impl Fence {
    /// Returns the open fence of a connection that was accepted in this epoch: see
    /// [`Store::epoch`].
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        Self(Arc::new(FenceState {
            is_closed: AtomicBool::new(false),
            id,
            epoch,
        }))
    }

    /// Closes the fence.
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
    }

    /// Returns whether the fence is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }

    /// Returns its id, unique within the process.
    #[cfg(feature = "cluster")]
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// Returns the epoch of the connection.
    #[cfg(feature = "cluster")]
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch
    }
}

impl Default for Fence {
    fn default() -> Self {
        Self::new(0)
    }
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The number and the position in the inbox.
    pub position: Position,
    /// The sender; `None` if it is anonymous.
    pub sender: Option<UserName>,
    /// The time of its arrival, in milliseconds since 1970.
    pub time_ms: u64,
    /// The text.
    pub text: ByteString,
}

/// The position just after a message of an inbox. The running sums give the messages and
/// bytes between two positions by subtraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The number of the message.
    pub sequence: Sequence,
    /// The messages appended to this inbox so far, including this one.
    pub messages: u64,
    /// The bytes appended to this inbox so far, including this message.
    pub bytes: u64,
}

impl Position {
    /// Returns whether no message lies between `former` and the message here.
    #[must_use]
    pub fn follows(&self, former: Self) -> bool {
        self.sequence > former.sequence && self.messages.checked_sub(1) == Some(former.messages)
    }
}

/// The largest result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReadLimit {
    /// The maximum number of messages.
    pub messages: usize,
    /// The maximum number of bytes of text; the first message may exceed it.
    pub bytes: usize,
}

/// The result of a read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The position after which the page starts, if it is later than the requested one: the
    /// messages before it are acknowledged, or were damaged and dropped by the operator.
    pub starts_after: Option<Position>,
    /// Messages in order of their numbers, with contiguous counts ([`Position::follows`]).
    pub messages: Vec<Arc<Message>>,
    /// Whether the page reached the end of the inbox.
    pub complete: bool,
}

impl Page {
    /// Drops the messages behind a point.
    #[must_use]
    pub(crate) fn up_to(mut self, end: Point) -> Self {
        let count = self.messages.len();
        self.messages
            .retain(|message| message.position.messages <= end.messages);
        self.complete &= self.messages.len() == count;
        self
    }
}
