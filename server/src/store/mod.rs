//! What keeps accounts, inboxes and remembered sends: the [`Store`] trait, and
//! the stores that there are.
//!
//! The chat and the sessions know this trait and nothing below it; no store
//! knows a front, a socket or a rule of the chat. Only what is in this folder
//! names an engine.

#[cfg(feature = "cluster")]
pub mod cluster;
#[cfg(test)]
pub(crate) mod contract;
mod pending;
pub(crate) mod quota;
mod subscription;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytestring::ByteString;
use hark_protocol::{Code, RequestId, Sequence, SessionToken, UserName};
use tokio::sync::OwnedSemaphorePermit;

pub use pending::{Completer, Pending};
pub use subscription::{BUFFERED_BYTES_MAX, BUFFERED_MESSAGES_MAX, End, Event, Events, Publisher, Subscription};

/// The filters for the log events of libraries.
pub const LIBRARY_LOGS: &[&str] = &[
    #[cfg(feature = "cluster")]
    cluster::CLIENT_LOG,
];

/// Keeps accounts, inboxes and the outcomes of sends.
///
/// What every store owes:
///
/// - **Order.** Operations take effect in the order in which they are called,
///   for each caller. No method blocks; [`Pending`] resolves later.
/// - **Durability.** What changes something resolves when the change is on
///   stable storage, never before. No answer of any method is made from what
///   could still be lost.
/// - **Failure.** [`Unavailable`] means that it is unknown whether the change
///   was made; the store stays usable, and answers again when it can.
/// - **Exactly once.** The outcome of an [`Append`] with a [`SendId`] is decided
///   once, in the same commit that stores the message, and remembered.
/// - **Numbers.** A [`Sequence`] is never used twice for a name, whatever is
///   deleted, created again or restarted.
/// - **Boundedness.** Accounts, sessions and each inbox have a limit of their
///   own. What is under way is bounded by the callers: see [`Append::permit`].
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Makes an account, protected by `password` if it is there.
    fn create(&self, name: &UserName, password: Option<PasswordHash>) -> Pending<Created>;

    /// Looks an account up.
    fn account(&self, name: &UserName) -> Pending<Option<AccountEntry>>;

    /// Sets the password of an account if it is still `old`; whether it was.
    fn set_password(&self, account: &Account, old: Option<PasswordHash>, new: PasswordHash) -> Pending<bool>;

    /// Ends an account: its queue is gone, and who receives for it gets
    /// [`End::Deleted`] after this has resolved. Whether it was there.
    fn delete(&self, account: &Account) -> Pending<bool>;

    /// The names after `after` in byte order, at most `limit` of them.
    fn names(&self, after: Option<&UserName>, limit: usize) -> Pending<Vec<UserName>>;

    /// Stores a message, or refuses it: the commit decides.
    fn append(&self, append: Append) -> Pending<Outcome> {
        let (completer, pending) = Pending::new();
        self.append_all(&mut vec![(append, completer)]);
        pending
    }

    /// As [`Self::append`] for each of these, in their order; it takes them out.
    /// Many at a time cost less than one by one.
    fn append_all(&self, appends: &mut Vec<(Append, Completer<Outcome>)>);

    /// Begins to receive for an account; whoever did before gets
    /// [`End::TakenOver`]. `None` where the account has ended.
    fn receive(&self, account: &Account) -> Pending<Option<Subscription>>;

    /// As [`Self::receive`], but only where nobody receives. `None` where
    /// somebody does, or the account has ended. What was acknowledged before
    /// the last receiver was dropped is not received again.
    fn receive_if_free(&self, account: &Account) -> Pending<Option<Subscription>>;

    /// Reads the messages after `after`, in the order of their numbers: at most
    /// `limit.messages`, and at most `limit.bytes` of text but at least one. What
    /// is durably acknowledged is not read.
    fn read(&self, account: &Account, after: Position, limit: ReadLimit) -> Pending<Page>;

    /// Forgets every message up to `position`, which came from a message of
    /// this inbox. May be lost in a crash, and only then; an older position
    /// than the last changes nothing, nor does one of an ended account.
    fn acknowledge(&self, account: &Account, position: Position);

    /// Makes room for a session, and resolves after everything that was
    /// appended before. False where there are too many, in all or of those that
    /// began `from` this network, which may be a quarter of all; `None` counts in
    /// no share. Until [`Self::close_session`], once for each call, it is not
    /// forgotten.
    fn open_session(&self, session: &SessionToken, from: Option<IpAddr>) -> Pending<bool>;

    /// The connection of a session has ended. Its outcomes are remembered for
    /// ten minutes of running time at least.
    fn close_session(&self, session: &SessionToken);

    /// Whether it works, as far as it knows: while it does not, what it is asked
    /// ends as [`Unavailable`].
    fn is_available(&self) -> bool;

    /// Decides what is under way, keeps what can be kept, and lets go of all
    /// resources. Everything after it is [`Unavailable`].
    fn close(&self) -> Pending<()>;
}

/// The store cannot say; whether what was asked has happened is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be written or read at the moment; try again")]
pub struct Unavailable;

/// An account, as opposed to another one of the same name before or after it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// Its name.
    pub name: UserName,
    /// Which account of this name.
    pub incarnation: u64,
}

/// What is known of an account.
#[derive(Debug, Clone)]
pub struct AccountEntry {
    /// The account.
    pub account: Account,
    /// What protects it, if anything does.
    pub password: Option<PasswordHash>,
}

/// The hash of a password in the PHC string format. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Arc<str>);

impl PasswordHash {
    /// Takes a PHC string. It is not checked here.
    #[must_use]
    pub fn new(phc: &str) -> Self {
        Self(phc.into())
    }

    /// The PHC string.
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
    /// There is a new account.
    Created,
    /// There was one of this name.
    Exists,
    /// There are as many as there may be.
    TooMany,
}

/// A message to be stored.
#[derive(Debug)]
pub struct Append {
    /// The recipient.
    pub to: UserName,
    /// Who sends it. Where this account has ended it comes from nobody.
    pub sender: Option<Account>,
    /// Whether a message from nobody is stored; else it is
    /// [`Code::Denied`].
    pub from_nobody: bool,
    /// When the server took it, in milliseconds since 1970.
    pub time_ms: u64,
    /// The text.
    pub text: ByteString,
    /// What makes a repeat known as one.
    pub send_id: Option<SendId>,
    /// What the chat has against it. It counts only where this is no repeat.
    pub refusal: Option<Code>,
    /// Whether the connection may still store something.
    pub fence: Fence,
    /// Room for one message under way, given back when it is decided.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// A send of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendId {
    /// The session.
    pub session: SessionToken,
    /// The id within the session.
    pub id: RequestId,
    /// Whether the sends come in the order of their ids: one below the highest
    /// is then refused, unless it was decided. Otherwise only one below all
    /// that are remembered is.
    pub in_order: bool,
    /// From which network the session began, if this begins it: see
    /// [`Store::open_session`].
    pub from: Option<IpAddr>,
}

/// How a send was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The message is in the inbox, or was, under this number.
    Stored(Sequence),
    /// It is not, and will not be.
    Refused(Code),
}

/// Set by the store when an [`Append`] of a session ends as [`Unavailable`]:
/// it then stores nothing more that carries the same fence, so that no later
/// send overtakes one that has to be repeated. One for each connection.
#[derive(Debug, Clone, Default)]
pub struct Fence(Arc<AtomicBool>);

impl Fence {
    /// Lets nothing more through.
    pub fn close(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether nothing more gets through.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A message as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its number, and where it stands in its inbox.
    pub position: Position,
    /// Who sent it; `None` for nobody.
    pub sender: Option<UserName>,
    /// When the server took it, in milliseconds since 1970.
    pub time_ms: u64,
    /// The text.
    pub text: ByteString,
}

/// A place in an inbox: just after a message. Ordered by the number alone.
/// The sums make it known how much lies between two places without counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The number of the message.
    pub sequence: Sequence,
    /// Messages appended to this inbox up to here, this one included.
    pub messages: u64,
    /// Bytes appended to this inbox up to here, this one included.
    pub bytes: u64,
}

impl Position {
    /// Returns whether no message lies between `former` and the message here.
    #[must_use]
    pub fn follows(&self, former: Self) -> bool {
        self.sequence > former.sequence && self.messages.checked_sub(1) == Some(former.messages)
    }
}

/// How much a read yields at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// In messages.
    pub messages: usize,
    /// In bytes of text; the first message comes in any case.
    pub bytes: usize,
}

/// The result of a read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The place after which the page starts, if that is a later one than was
    /// asked for: everything before it is acknowledged, or is damaged and the
    /// operator has dropped it.
    pub starts_after: Option<Position>,
    /// In the order of their numbers, and without a gap in their counts
    /// ([`Position::follows`]).
    pub messages: Vec<Arc<Message>>,
    /// Whether there was no more when it was read.
    pub complete: bool,
}
