//! [`Operation`]: a call of a [`Store`](super::Store), on its way to the owner of the
//! state.

use std::fmt;
use std::net::IpAddr;

use hark_protocol::{SessionToken, UserName};

use super::{
    Account, AccountEntry, AdminOperation, Burst, Completer, Created, Page, PasswordHash, Position,
    ReadLimit, RoomOperation, Subscription,
};

/// An operation of a store. [`Store`](super::Store) has a method for each.
#[derive(Debug)]
pub enum Operation {
    /// Creates an account.
    Create(UserName, Option<PasswordHash>, Completer<Created>),
    /// Looks up an account.
    Account(UserName, Completer<Option<AccountEntry>>),
    /// Sets a password.
    SetPassword {
        /// The account.
        account: Account,
        /// The expected password.
        old: Option<PasswordHash>,
        /// The new password.
        new: PasswordHash,
        /// Whether the password was `old`.
        completer: Completer<bool>,
    },
    /// Deletes an account.
    Delete(Account, Completer<bool>),
    /// Returns at most this many names after a name.
    Names(Option<UserName>, usize, Completer<Vec<UserName>>),
    /// Stores or refuses messages in this order, with no other operation between them.
    Appends(Burst),
    /// Subscribes to an inbox.
    Subscribe {
        /// The account.
        account: Account,
        /// Whether a former subscription ends; otherwise this one is refused.
        takes_over: bool,
        /// The subscription.
        completer: Completer<Option<Subscription>>,
    },
    /// Reads an inbox.
    Read {
        /// The account.
        account: Account,
        /// The position before the first message.
        after: Position,
        /// The size of the page.
        limit: ReadLimit,
        /// The page.
        completer: Completer<Page>,
    },
    /// Acknowledges the messages up to a position.
    Acknowledge(Account, Position),
    /// Opens a session.
    OpenSession(SessionToken, Option<IpAddr>, Completer<bool>),
    /// Closes a session.
    CloseSession(SessionToken),
    /// Calls a function when the session is opened at another server.
    OnTakeover(SessionToken, OnTakeover),
    /// Concerns rooms, devices or tokens.
    Room(RoomOperation),
    /// An operation of an administrator.
    Admin(AdminOperation),
    /// Closes the store.
    Close(Completer<()>),
}

impl Operation {
    /// Completes the operation with [`Unavailable`](super::Unavailable). If it is a send
    /// of a session, closes its fence against later sends.
    pub fn refuse(self) {
        // Each completer completes when it is dropped.
        if let Self::Appends(Burst { fence, sends }) = self
            && sends.iter().any(|send| send.append.send_id.is_some())
        {
            fence.close();
        }
    }
}

/// A function that ends a connection whose session was opened at another server.
pub struct OnTakeover(pub Box<dyn Fn() + Send>);

impl fmt::Debug for OnTakeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnTakeover(..)")
    }
}
