//! Reading messages, beside the commit thread.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock};

use super::engine::{EngineError, Fate, Live, Reader, Table};
use super::record::{self, Damaged};
use crate::store::{Account, Page, Position, ReadLimit, Unavailable};
use bytes::Bytes;

/// What reads the engine, while it is open.
#[derive(Debug)]
pub(super) struct Readers {
    // A lock, since the engine may be replaced while others read. A reader
    // holds it for a page, which may wait for the disk, so it is only taken on
    // threads that may block. The engine is let go when all have left.
    reader: RwLock<Option<Box<dyn Reader>>>,
    live: Arc<Live>,
    accept_data_loss: bool,
}

impl Readers {
    /// There is nothing to read yet. A message that is damaged is left out if
    /// the loss is accepted, and cannot be passed otherwise.
    pub(super) fn new(live: Arc<Live>, accept_data_loss: bool) -> Self {
        Self { reader: RwLock::default(), live, accept_data_loss }
    }

    /// Replaces what reads, once nobody uses the former any more.
    pub(super) fn set(&self, reader: Option<Box<dyn Reader>>) {
        *self.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }

    /// Reads a page. Blocks while the disk does.
    pub(super) fn read(
        &self,
        account: &Account,
        after: Position,
        limit: ReadLimit,
    ) -> Result<Page, Unavailable> {
        let reader = self.reader.read().unwrap_or_else(PoisonError::into_inner);
        let reader = reader.as_deref().ok_or(Unavailable)?;
        let cursor = match self.live.fate(account.incarnation) {
            Fate::Unknown => return Err(Unavailable),
            Fate::Dead => return Ok(Page { complete: true, ..Page::default() }),
            Fate::After(cursor) => cursor,
        };
        let mut scan = Scan {
            account,
            limit,
            accept_data_loss: self.accept_data_loss,
            former: (cursor <= after.sequence.0).then_some(after),
            page: Page::default(),
            bytes: 0,
        };
        let read = scan.read(reader, after.sequence.0.max(cursor));
        let page = scan.page;
        match read {
            Ok(()) => Ok(page),
            // What comes before can be had; the next read begins at the damage.
            Err(_) if !page.messages.is_empty() => Ok(Page { complete: false, ..page }),
            Err(error) => {
                tracing::error!(%error, account = %account.name, "messages cannot be read");
                Err(Unavailable)
            }
        }
    }
}

/// One page, while it is being read.
struct Scan<'a> {
    account: &'a Account,
    limit: ReadLimit,
    accept_data_loss: bool,
    /// The message before; `None` if a later one is acknowledged by now.
    former: Option<Position>,
    page: Page,
    /// Bytes of its texts.
    bytes: usize,
}

impl Scan<'_> {
    fn read(&mut self, reader: &dyn Reader, after: u64) -> Result<(), EngineError> {
        // A record stands under the number of its last message, so the first one
        // may begin before this.
        let from = record::message_key(self.account.incarnation, after.saturating_add(1));
        let mut damaged = None;
        self.page.complete = true;
        reader.ascend(Table::Messages, &from, &mut |key, value| {
            if !is_of(self.account, key) {
                return ControlFlow::Break(());
            }
            match self.take(key, value, after) {
                Ok(flow) => flow,
                Err(error) => self.meet(error, key, &mut damaged),
            }
        })?;
        damaged.map_or(Ok(()), |error| Err(EngineError::new(error)))
    }

    /// Takes the messages of a record, up to where the page is full.
    fn take(&mut self, key: &[u8], value: &[u8], after: u64) -> Result<ControlFlow<()>, Damaged> {
        let value = Bytes::copy_from_slice(value);
        for stored in record::decode_messages(key, &value)? {
            let stored = stored?;
            if stored.position.sequence.0 <= after {
                continue;
            }
            let is_start = match self.former {
                None => true,
                Some(former) => self.accept_data_loss && !stored.position.follows(former),
            };
            if is_start && !self.page.messages.is_empty() {
                self.page.complete = false;
                return Ok(ControlFlow::Break(()));
            }
            if is_start {
                self.page.starts_after = Some(stored.before());
            }
            self.former = Some(stored.position);
            self.bytes += stored.text.len();
            let is_full = self.page.messages.len() >= self.limit.messages
                || (self.bytes > self.limit.bytes && !self.page.messages.is_empty());
            if is_full {
                self.page.complete = false;
                return Ok(ControlFlow::Break(()));
            }
            let former = self.page.messages.last().and_then(|message| message.sender.as_ref());
            let message = stored.message(&value, former)?;
            self.page.messages.push(Arc::new(message));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What is damaged is left out, or nothing after it can be had.
    fn meet(&self, error: Damaged, key: &[u8], damaged: &mut Option<Damaged>) -> ControlFlow<()> {
        let sequence = record::parse_message_key(key).map_or(0, |(_, sequence)| sequence);
        tracing::error!(account = %self.account.name, sequence, "messages are damaged, up to this one");
        if self.accept_data_loss {
            return ControlFlow::Continue(());
        }
        *damaged = Some(error);
        ControlFlow::Break(())
    }
}

fn is_of(account: &Account, key: &[u8]) -> bool {
    record::parse_message_key(key).is_ok_and(|(incarnation, _)| incarnation == account.incarnation)
}
