//! Reads of messages, concurrent with the commit thread.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hark_protocol::Sequence;

use super::cursors::Cursors;
use super::history::{position_at, read_back};
use super::merge::{MergePermit, MergedBlocks, is_scattered, is_small_single, merge};
use crate::ledger::{self, BlockContent, Malformed};
use crate::log::{Block, ReadError, Reader};
use crate::store::{History, Page, PastPage, Position, ReadLimit, Unavailable};
use crate::sync::RwLock;

/// The reader of the log, while the log is open.
#[derive(Debug, Default)]
pub(super) struct Readers {
    // A lock, because the log may be replaced during reads. It is held for one clone.
    reader: RwLock<Option<Arc<dyn Reader>>>,
    pub(super) cursors: Cursors,
    is_merging: Arc<AtomicBool>,
}

impl Readers {
    /// Replaces the reader. Reads under way finish with the former one.
    pub(super) fn set(&self, reader: Option<Arc<dyn Reader>>) {
        *self.reader.write() = reader;
    }

    /// Returns whether this is the reader of the open log.
    pub(super) fn is_current(&self, reader: &Arc<dyn Reader>) -> bool {
        let current = self.reader.read();
        current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, reader))
    }

    /// Reads a page. Returns whether the inbox is scattered over small blocks, too.
    /// Blocks on the disk.
    pub(super) fn read(
        &self,
        log: u64,
        after: Position,
        limit: ReadLimit,
    ) -> (Result<Page, Unavailable>, bool) {
        let Some(reader) = self.reader.read().clone() else {
            return (Err(Unavailable), false);
        };
        let from = self.start(log, after);
        match scan(&*reader, log, from, limit) {
            Ok(scan) => {
                let is_scattered = scan.is_scattered();
                (
                    Ok(self.hide_acknowledged(scan.page, log, after)),
                    is_scattered,
                )
            }
            Err(error) => {
                tracing::error!(%error, log, "messages cannot be read");
                (Err(Unavailable), false)
            }
        }
    }

    /// Reads a room backwards. Blocks on the disk.
    pub(super) fn read_back(
        &self,
        history: History,
        before: Sequence,
        limit: ReadLimit,
    ) -> Result<PastPage, Unavailable> {
        let reader = self.reader.read().clone().ok_or(Unavailable)?;
        read_back(&*reader, history, before, limit).map_err(|error| {
            tracing::error!(%error, room = history.room, "messages cannot be read");
            Unavailable
        })
    }

    /// Returns the position of the last message of a log up to a number, if there is one above.
    /// Blocks on the disk.
    pub(super) fn position_at(&self, log: u64, number: u64) -> Option<Position> {
        let reader = self.reader.read().clone()?;
        position_at(&*reader, log, number).unwrap_or_else(|error| {
            tracing::error!(%error, log, "messages cannot be read");
            None
        })
    }

    /// Merges blocks of an inbox or room after a position, unless that is under way.
    /// Blocks on the disk.
    pub(super) fn merge(&self, log: u64, after: Position) -> Option<MergedBlocks> {
        let permit = MergePermit::take(&self.is_merging)?;
        let reader = self.reader.read().clone()?;
        merge(reader, log, self.start(log, after).0, permit)
    }

    fn start(&self, log: u64, after: Position) -> Sequence {
        after.sequence.max(self.cursors.get(log).sequence)
    }

    /// Removes the messages that were acknowledged during the read.
    fn hide_acknowledged(&self, mut page: Page, log: u64, after: Position) -> Page {
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
        page
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
    scan(reader, inbox, after, limit).map(|scan| scan.page)
}

fn scan(
    reader: &dyn Reader,
    inbox: u64,
    after: Sequence,
    limit: ReadLimit,
) -> Result<Scan, PageError> {
    let mut scan = Scan {
        after,
        limit,
        page: Page {
            complete: true,
            ..Page::default()
        },
        bytes: 0,
        singles: 0,
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
        Ok(()) => Ok(scan),
        // The messages before the damage are returned; the next read starts with it.
        Err(_) if !scan.page.messages.is_empty() => {
            scan.page.complete = false;
            Ok(scan)
        }
        Err(error) => Err(error),
    }
}

/// A page that is being read.
struct Scan {
    /// The number of the last message that was read.
    after: Sequence,
    limit: ReadLimit,
    page: Page,
    /// Bytes of its texts.
    bytes: usize,
    /// Its messages in small blocks of their own.
    singles: usize,
}

impl Scan {
    fn is_scattered(&self) -> bool {
        is_scattered(self.singles, self.page.messages.len(), self.page.complete)
    }

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
            self.after = message.position.sequence;
            self.page.messages.push(Arc::new(message));
            self.singles += usize::from(is_small_single(block));
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
