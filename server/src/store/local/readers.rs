//! Reading messages, beside the commit thread.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock};

use hark_protocol::Sequence;

use super::engine::{EngineError, Fate, Live, Reader, Table};
use super::record::{self, Damaged};
use crate::store::{Account, Message, Page, ReadLimit, Unavailable};

/// What reads the engine, while it is open.
#[derive(Debug)]
pub(super) struct Readers {
    // A lock, since the engine may be replaced while others read. A reader
    // holds it for a page, which may wait for the disk, so it is only taken on
    // threads that may block. The engine is let go when all have left.
    reader: RwLock<Option<Box<dyn Reader>>>,
    live: Arc<Live>,
}

impl Readers {
    /// There is nothing to read yet.
    pub(super) fn new(live: Arc<Live>) -> Self {
        Self { reader: RwLock::default(), live }
    }

    /// Replaces what reads, once nobody uses the former any more.
    pub(super) fn set(&self, reader: Option<Box<dyn Reader>>) {
        *self.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }

    /// Reads a page. Blocks while the disk does.
    pub(super) fn read(
        &self,
        account: &Account,
        after: Sequence,
        limit: ReadLimit,
    ) -> Result<Page, Unavailable> {
        let reader = self.reader.read().unwrap_or_else(PoisonError::into_inner);
        let reader = reader.as_deref().ok_or(Unavailable)?;
        let cursor = match self.live.fate(account.incarnation) {
            Fate::Unknown => return Err(Unavailable),
            Fate::Dead => return Ok(Page { messages: Vec::new(), complete: true }),
            Fate::After(cursor) => cursor,
        };
        scan(reader, account, after.0.max(cursor), limit).map_err(|error| {
            tracing::error!(%error, account = %account.name, "messages cannot be read");
            Unavailable
        })
    }
}

fn scan(reader: &dyn Reader, account: &Account, after: u64, limit: ReadLimit) -> Result<Page, EngineError> {
    let mut page = Page { messages: Vec::new(), complete: true };
    let mut bytes = 0;
    let from = record::message_key(account.incarnation, after.saturating_add(1));
    reader.ascend(Table::Messages, &from, &mut |key, value| {
        if !is_of(account, key) {
            return ControlFlow::Break(());
        }
        let Some(message) = decode(account, key, value) else { return ControlFlow::Continue(()) };
        bytes += message.text.len();
        if page.messages.len() >= limit.messages || (bytes > limit.bytes && !page.messages.is_empty()) {
            page.complete = false;
            return ControlFlow::Break(());
        }
        page.messages.push(Arc::new(message));
        ControlFlow::Continue(())
    })?;
    Ok(page)
}

fn is_of(account: &Account, key: &[u8]) -> bool {
    record::parse_message_key(key).is_ok_and(|(incarnation, _)| incarnation == account.incarnation)
}

/// A message, unless it is damaged: then the others can be had all the same.
fn decode(account: &Account, key: &[u8], value: &[u8]) -> Option<Message> {
    let message = record::decode_message(key, value);
    if message == Err(Damaged) {
        let sequence = record::parse_message_key(key).map_or(0, |(_, sequence)| sequence);
        tracing::error!(account = %account.name, sequence, "a message is damaged and is left out");
    }
    message.ok()
}
