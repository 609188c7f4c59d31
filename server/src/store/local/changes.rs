//! What the decisions of the ledger lead to, once they are committed.

use std::sync::Arc;

use hark_protocol::UserName;

use super::Entry;
use super::engine::Batch;
use super::record::Block;
use crate::store::{Account, End, Feed, Message};

/// What a number of decisions changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What is to be written.
    pub(super) batch: Batch,
    /// Messages that are to be written, too, and told of.
    pub(super) appended: Vec<Appended>,
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
    /// Sessions that are told that they receive no more.
    pub(super) notices: Vec<Notice>,
}

/// Messages that follow each other in one inbox.
#[derive(Debug)]
pub(super) struct Appended {
    /// What is written of them; `None` once it is in the batch.
    pub(super) block: Option<Block>,
    /// The session that receives, where one does, and what it is told.
    pub(super) news: Option<(Feed, Vec<Arc<Message>>)>,
}

/// The end of a reception.
#[derive(Debug)]
pub(super) struct Notice {
    /// Whose inbox it is about.
    pub(super) account: Account,
    /// The way to the session.
    pub(super) feed: Feed,
    /// Why.
    pub(super) end: End,
}

impl Changes {
    /// The session at `feed` is to be told that it receives no more.
    pub(super) fn end(&mut self, account: &Account, feed: Feed, end: End) {
        self.notices.push(Notice { account: account.clone(), feed, end });
    }

    /// Nothing any more; the memory stays for the next.
    pub(super) fn clear(&mut self) {
        let Self { batch, appended, awaited, reserved, begun, ended, cursors, directory, notices } = self;
        batch.changes.clear();
        appended.clear();
        (*awaited, *reserved) = (false, false);
        begun.clear();
        ended.clear();
        cursors.clear();
        directory.clear();
        notices.clear();
    }

    /// Tells the sessions. An end drops what is told before and after it, so
    /// that it does not matter which comes first.
    pub(super) fn tell(&mut self) {
        for (feed, messages) in self.appended.drain(..).filter_map(|appended| appended.news) {
            feed.appended(messages);
        }
        for notice in self.notices.drain(..) {
            notice.feed.end(notice.end);
        }
    }
}
