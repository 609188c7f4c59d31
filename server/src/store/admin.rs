//! [`AdminOperation`]: what an administrator asks a store, besides the operations of the
//! chat. A store on a cluster answers them with [`Unavailable`](super::Unavailable).

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
