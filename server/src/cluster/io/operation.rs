//! [`Operation`]: an operation of the chat, on its way to the driver; and [`Completion`]:
//! the destination of the answer to a request.

use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::{SessionToken, UserName};
use tokio::sync::OwnedSemaphorePermit;

use crate::store::{
    Account, AccountEntry, Append, Completer, Created, Fence, Outcome, Page, PasswordHash,
    Position, ReadLimit, Subscription, Unavailable,
};

/// An operation of the chat.
#[derive(Debug)]
pub(super) enum Operation {
    Create(UserName, Option<PasswordHash>, Completer<Created>),
    Account(UserName, Completer<Option<AccountEntry>>),
    SetPassword {
        account: Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
        completer: Completer<bool>,
    },
    Delete(Account, Completer<bool>),
    Names(Option<UserName>, usize, Completer<Vec<UserName>>),
    /// Appends in this order.
    Appends(Vec<(Append, Completer<Outcome>)>),
    Subscribe {
        account: Account,
        takes_over: bool,
        completer: Completer<Option<Subscription>>,
    },
    /// The subscription of this id was dropped.
    Unsubscribe(Account, u64),
    Read {
        account: Account,
        after: Position,
        limit: ReadLimit,
        completer: Completer<Page>,
    },
    Acknowledge(Account, Position),
    OpenSession(SessionToken, Option<IpAddr>, Completer<bool>),
    CloseSession(SessionToken),
    /// Call a function when the session is opened at another server.
    OnTakeover(SessionToken, OnTakeover),
    Close(Completer<()>),
}

/// A function that ends a connection.
pub(super) struct OnTakeover(pub(super) Box<dyn Fn() + Send>);

impl std::fmt::Debug for OnTakeover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnTakeover(..)")
    }
}

impl Operation {
    /// Completes the operation as unavailable. If it is a send of a session, closes its
    /// fence against later sends. Other completers do so when they are dropped.
    pub(super) fn refuse(self) {
        if let Self::Appends(appends) = self {
            appends
                .into_iter()
                .for_each(|(append, completer)| Sent::new(&append, completer).fail());
        }
    }
}

/// The destination of the answer to a request.
#[derive(Debug)]
pub(super) enum Completion {
    Created(Completer<Created>),
    Flag(Completer<bool>),
    Account(Completer<Option<AccountEntry>>),
    Sent(Sent),
    Subscribed(Account, Completer<Option<Subscription>>),
    Page(Box<Reading>),
    Names(Box<Listing>),
    /// A registration of a sender.
    Registered(Account),
    /// A request that is answered after earlier acknowledgements are durable.
    Barrier,
}

/// An undecided send.
#[derive(Debug)]
pub(super) struct Sent {
    completer: Completer<Outcome>,
    /// The fence and the token, if it is a send of a session.
    session: Option<(Fence, SessionToken)>,
    /// Its place among the sends of its session.
    pub(super) place: u64,
    /// Released when the send is decided.
    pub(super) permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Sent {
    /// Returns the undecided send of `append`.
    pub(super) fn new(append: &Append, completer: Completer<Outcome>) -> Self {
        let session = append
            .send_id
            .as_ref()
            .map(|id| (append.fence.clone(), id.session.clone()));
        Self {
            completer,
            session,
            place: 0,
            permit: None,
        }
    }

    /// Returns the token of its session.
    pub(super) fn session(&self) -> Option<&SessionToken> {
        self.session.as_ref().map(|(_, token)| token)
    }

    /// Completes the send.
    pub(super) fn complete(self, outcome: Outcome) {
        drop(self.permit);
        self.completer.complete(Ok(outcome));
    }

    /// Completes the send as unavailable. Closes the fence of its session.
    pub(super) fn fail(self) {
        if let Some((fence, _)) = &self.session {
            fence.close();
        }
        drop(self.permit);
        self.completer.complete(Err(Unavailable));
    }
}

/// A read of several pages.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) account: Account,
    after: Position,
    limit: ReadLimit,
    completer: Completer<Page>,
    page: Page,
    bytes: usize,
}

impl Reading {
    /// Returns a read that has not begun.
    pub(super) fn new(
        account: Account,
        after: Position,
        limit: ReadLimit,
        completer: Completer<Page>,
    ) -> Self {
        Self {
            account,
            after,
            limit,
            completer,
            page: Page::default(),
            bytes: 0,
        }
    }

    /// Returns the position and the limit of the next page.
    pub(super) fn next(&self) -> (Position, ReadLimit) {
        let after = self
            .page
            .messages
            .last()
            .map_or(self.after, |last| last.position);
        let messages = self.limit.messages - self.page.messages.len();
        (
            after,
            ReadLimit {
                messages,
                bytes: self.limit.bytes - self.bytes,
            },
        )
    }

    /// Adds a page. Returns the read if it needs another one, and otherwise completes it.
    pub(super) fn add(mut self: Box<Self>, next: Page) -> Option<Box<Self>> {
        let is_first = self.page.messages.is_empty();
        if is_first {
            self.page.starts_after = next.starts_after;
        } else if next.starts_after.is_some() {
            // Messages between the pages were acknowledged meanwhile.
            self.completer.complete(Ok(self.page));
            return None;
        }
        let bytes: usize = next.messages.iter().map(|message| message.text.len()).sum();
        let is_over = next.complete || next.messages.is_empty();
        // A page is cut where it would exceed the rest of the limit.
        let fits = is_first || self.bytes + bytes <= self.limit.bytes;
        if fits {
            self.bytes += bytes;
            self.page.messages.extend(next.messages);
            self.page.complete = next.complete;
        }
        let is_full = self.page.messages.len() >= self.limit.messages
            || self.bytes >= self.limit.bytes
            || !fits;
        if is_over || is_full {
            self.completer.complete(Ok(self.page));
            return None;
        }
        Some(self)
    }
}

/// A listing of several pages.
#[derive(Debug)]
pub(super) struct Listing {
    after: Option<UserName>,
    limit: usize,
    completer: Completer<Vec<UserName>>,
    names: Vec<UserName>,
}

impl Listing {
    /// Returns a listing that has not begun.
    pub(super) const fn new(
        after: Option<UserName>,
        limit: usize,
        completer: Completer<Vec<UserName>>,
    ) -> Self {
        Self {
            after,
            limit,
            completer,
            names: Vec::new(),
        }
    }

    /// Returns the name before the next page, and its limit.
    pub(super) fn next(&self) -> (Option<UserName>, u32) {
        let limit = self.limit - self.names.len();
        (
            self.names.last().or(self.after.as_ref()).cloned(),
            u32::try_from(limit).unwrap_or(u32::MAX),
        )
    }

    /// Adds a page. Returns the listing if it needs another one, and otherwise completes it.
    pub(super) fn add(
        mut self: Box<Self>,
        names: Vec<UserName>,
        is_complete: bool,
    ) -> Option<Box<Self>> {
        self.names.extend(names);
        if is_complete || self.names.len() >= self.limit {
            self.completer.complete(Ok(self.names));
            return None;
        }
        Some(self)
    }
}
