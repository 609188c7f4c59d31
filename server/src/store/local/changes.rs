//! What the decisions of the ledger lead to, once they are committed.

use std::sync::Arc;

use hark_protocol::UserName;

use super::Entry;
use super::engine::Batch;
use crate::store::{Account, End, Feed, Message};

/// What a number of decisions changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What is to be written.
    pub(super) batch: Batch,
    /// Somebody waits until it is on stable storage.
    pub(super) awaited: bool,
    /// Numbers were set aside: unless that is durable, they could be given out
    /// again after a crash of the machine, to readers that remember them.
    pub(super) reserved: bool,
    /// Accounts that begin.
    pub(super) begun: Vec<u64>,
    /// Accounts that end.
    pub(super) ended: Vec<u64>,
    /// Accounts whose cursor moves, and where to.
    pub(super) cursors: Vec<(u64, u64)>,
    /// Names that change in the directory; `None` for one that leaves.
    pub(super) directory: Vec<(UserName, Option<Entry>)>,
    /// What sessions are told, in this order.
    pub(super) notices: Vec<Notice>,
}

impl Changes {
    /// Adds a notice, after those that are there.
    pub(super) fn tell(&mut self, account: &Account, feed: Feed, news: News) {
        self.notices.push(Notice { account: account.clone(), feed, news });
    }
}

/// What a session is told.
#[derive(Debug)]
pub(super) struct Notice {
    /// Whose inbox it is about.
    pub(super) account: Account,
    /// The way to the session.
    pub(super) feed: Feed,
    /// What it is.
    pub(super) news: News,
}

/// News of an inbox.
#[derive(Debug)]
pub(super) enum News {
    /// A message was stored.
    Appended(Arc<Message>),
    /// The reception ends.
    Ended(End),
}

impl Notice {
    /// Tells it.
    pub(super) fn deliver(self) {
        match self.news {
            News::Appended(message) => self.feed.appended(&message),
            News::Ended(end) => self.feed.end(end),
        }
    }
}
