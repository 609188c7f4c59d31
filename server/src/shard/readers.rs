//! Reads of messages, concurrent with the commit thread.

use std::ops::ControlFlow;
use std::sync::Arc;

use hark_protocol::Sequence;

use super::cursors::Cursors;
use crate::ledger::{self, BlockContent, Malformed};
use crate::log::{Block, ReadError, Reader};
use crate::store::{Page, Position, ReadLimit, Unavailable};
use crate::sync::RwLock;

/// The reader of the log, while the log is open.
#[derive(Debug, Default)]
pub(super) struct Readers {
    // A lock, because the log may be replaced during reads. It is held for one clone.
    reader: RwLock<Option<Arc<dyn Reader>>>,
    pub(super) cursors: Cursors,
}

impl Readers {
    /// Replaces the reader. Reads under way finish with the former one.
    pub(super) fn set(&self, reader: Option<Arc<dyn Reader>>) {
        *self.reader.write() = reader;
    }

    /// Reads a page. Blocks on the disk.
    pub(super) fn read(
        &self,
        log: u64,
        after: Position,
        limit: ReadLimit,
    ) -> Result<Page, Unavailable> {
        let reader = self.reader.read().clone();
        let reader = reader.ok_or(Unavailable)?;
        let from = after.sequence.max(self.cursors.get(log).sequence);
        let read = read_page(&*reader, log, from, limit);
        let mut page = read.map_err(|error| {
            tracing::error!(%error, log, "messages cannot be read");
            Unavailable
        })?;
        // Must follow the read: see [`Cursors`].
        let cursor = self.cursors.get(log);
        if cursor.sequence > after.sequence {
            page.messages
                .retain(|message| message.position.sequence > cursor.sequence);
            page.starts_after = page
                .starts_after
                .filter(|gap| gap.sequence > cursor.sequence)
                .or(Some(cursor));
        }
        Ok(page)
    }
}

/// The reason why a page cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// A block is malformed.
    #[error("malformed block: first number {first}")]
    Malformed {
        /// The number of its first message.
        first: u64,
    },
}

/// Reads messages of an inbox or a room after `after`. A page does not extend over a gap: it starts
/// with one, or ends before it.
pub(crate) fn read_page(
    reader: &dyn Reader,
    inbox: u64,
    after: Sequence,
    limit: ReadLimit,
) -> Result<Page, PageError> {
    let mut scan = Scan {
        after,
        limit,
        page: Page {
            complete: true,
            ..Page::default()
        },
        bytes: 0,
    };
    let mut malformed = None;
    let read = reader.read(inbox, after.0, &mut |block| {
        scan.take(&block).unwrap_or_else(|Malformed| {
            malformed = Some(PageError::Malformed { first: block.first });
            ControlFlow::Break(())
        })
    });
    let read = read
        .map_err(PageError::from)
        .and_then(|()| malformed.map_or(Ok(()), Err));
    match read {
        Ok(()) => Ok(scan.page),
        // The messages before the damage are returned; the next read starts with it.
        Err(_) if !scan.page.messages.is_empty() => Ok(Page {
            complete: false,
            ..scan.page
        }),
        Err(error) => Err(error),
    }
}

/// A page that is being read.
struct Scan {
    after: Sequence,
    limit: ReadLimit,
    page: Page,
    /// Bytes of its texts.
    bytes: usize,
}

impl Scan {
    fn take(&mut self, block: &Block) -> Result<ControlFlow<()>, Malformed> {
        let messages = match ledger::decode(block)? {
            BlockContent::Messages(messages) => messages,
            BlockContent::Gap(gap) => return Ok(self.skip(gap.end)),
        };
        for stored in messages {
            let stored = stored?;
            if stored.position.sequence <= self.after {
                continue;
            }
            self.bytes += stored.text.len();
            let is_full = self.page.messages.len() >= self.limit.messages
                || (self.bytes > self.limit.bytes && !self.page.messages.is_empty());
            if is_full {
                self.page.complete = false;
                return Ok(ControlFlow::Break(()));
            }
            let message = stored.message(self.page.messages.last())?;
            self.page.messages.push(Arc::new(message));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn skip(&mut self, end: Position) -> ControlFlow<()> {
        if self.page.messages.is_empty() {
            self.page.starts_after = Some(end);
            return ControlFlow::Continue(());
        }
        self.page.complete = false;
        ControlFlow::Break(())
    }
}
