//! [`Input`]: operations of the chat, on their way to the driver; and [`Completion`]: the
//! destination of the answer to a request.

use hark_protocol::{SessionToken, UserName};
use tokio::sync::OwnedSemaphorePermit;

use crate::cluster::ShardId;
use crate::cluster::message::Import;
use crate::ledger::Imported;
use crate::store::{
    Account, AccountEntry, Append, Completer, Created, Fence, InboxInfo, Kick, Operation, Outcome,
    Page, PeerInfo, Position, QueuedSend, ReadLimit, ShardInfo, StoreUsage, Subscription,
    Unavailable,
};

/// An input of the driver.
#[derive(Debug)]
pub(super) enum Input {
    Operation(Operation),
    /// A command of an import, for this shard.
    Import(ShardId, Import, Completion),
    /// Describe the shards.
    Shards(Completer<Vec<ShardInfo>>),
    /// Describe the servers.
    Servers(Completer<Vec<PeerInfo>>),
    /// Close connections at the other servers.
    KickElsewhere(Kick, Completer<usize>),
    /// The subscription of this id was dropped.
    Unsubscribe(Account, u64),
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
    Imported(Completer<Imported>),
    Inspected(Completer<Vec<InboxInfo>>),
    Usage(Completer<StoreUsage>),
    /// A registration of a sender.
    Registered(Account),
    /// A request that is answered after earlier acknowledgements are durable.
    Barrier,
}

/// An undecided send.
#[derive(Debug)]
pub(super) struct Sent {
    completer: Completer<Outcome>,
    /// The fence of its connection.
    pub(super) fence: Fence,
    /// The token, if it is a send of a session.
    session: Option<SessionToken>,
    /// Its place among the sends of its session.
    pub(super) place: u64,
    /// Released when the send is decided.
    permit: Option<OwnedSemaphorePermit>,
}

impl Sent {
    /// Splits a send into its message and the rest.
    pub(super) fn split(send: QueuedSend, fence: &Fence) -> (Append, Self) {
        let QueuedSend {
            append,
            completer,
            permit,
        } = send;
        let sent = Self {
            completer,
            fence: fence.clone(),
            session: append.send_id.as_ref().map(|id| id.session.clone()),
            place: 0,
            permit,
        };
        (append, sent)
    }

    /// Returns the token of its session.
    pub(super) fn session(&self) -> Option<&SessionToken> {
        self.session.as_ref()
    }

    /// Completes the send.
    pub(super) fn complete(self, outcome: Outcome) {
        drop(self.permit);
        self.completer.complete(Ok(outcome));
    }

    /// Completes the send as unavailable. Closes the fence of its session.
    pub(super) fn fail(self) {
        if self.session.is_some() {
            self.fence.close();
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
