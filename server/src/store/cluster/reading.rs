//! Pages of an inbox, read from any replica, and finally from the leader of the stream,
//! because a replica may lack the latest messages.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Shared;
use super::engine::{Found, Lost};
use super::lane::{PATIENCE, latest};
use super::record::{END, decode_message};
use crate::store::{Account, Page, Position, ReadLimit, Unavailable};

/// Maximum messages in one request.
const BATCH_MESSAGES: usize = 1000;

/// Maximum bytes in one request, including headers.
const BATCH_BYTES: usize = 1024 * 1024;

/// Approximate size of a message's headers and subject.
const MESSAGE_BYTES: usize = 512;

/// The pause before a failed page is requested again.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads a page of unacknowledged messages after `after`.
pub(super) async fn read(
    shared: &Shared,
    account: &Account,
    after: Position,
    limit: ReadLimit,
) -> Result<Page, Unavailable> {
    let mut scan = Scan { limit, bytes: 0, start: after, last: after.sequence.0, page: Page::default() };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match scan.run(shared, account).await {
            Ok(()) => return Ok(scan.finish(shared, account, after).await),
            // The messages read before the failure are returned.
            Err(_) if !scan.page.messages.is_empty() => {
                scan.page.complete = false;
                return Ok(scan.finish(shared, account, after).await);
            }
            Err(NoPage::Lost) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(_) => return Err(Unavailable),
        }
    }
}

/// The reason why a page cannot be read.
enum NoPage {
    Lost,
    /// One of its messages is damaged. Retrying does not help.
    Unreadable,
}

impl From<Lost> for NoPage {
    fn from(Lost: Lost) -> Self {
        Self::Lost
    }
}

struct Scan {
    limit: ReadLimit,
    bytes: usize,
    /// The position after which the page starts.
    start: Position,
    /// The sequence of the last message taken, or that of `start`.
    last: u64,
    page: Page,
}

impl Scan {
    async fn run(&mut self, shared: &Shared, account: &Account) -> Result<(), NoPage> {
        if !shared.directory.is_alive(account) {
            self.page.complete = true;
            return Ok(());
        }
        self.start = latest(self.start, shared.cursors.of(account));
        if self.start.sequence.0 == 0 {
            self.start = shared.state(account).await?.1.cursor;
        }
        self.last = self.start.sequence.0;
        let (stream, subject) = (shared.names.inbox_stream_of(&account.name), shared.names.inbox(account));
        loop {
            let (messages, bytes) = self.room();
            let batch = shared.engine.page(&stream, &subject, self.last + 1, messages, bytes).await?;
            for found in batch.found {
                if !self.take(account, found)? {
                    return Ok(());
                }
            }
            if batch.more {
                continue;
            }
            match shared.engine.next(&stream, &subject, self.last + 1).await? {
                None => {
                    self.page.complete = true;
                    return Ok(());
                }
                Some(found) => {
                    if !self.take(account, found)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Returns the page. If its first message does not follow `start`, earlier messages
    /// may have been acknowledged at another server and deleted. The state record then
    /// has the new start.
    async fn finish(mut self, shared: &Shared, account: &Account, after: Position) -> Page {
        let has_gap = self.page.messages.first().is_some_and(|first| !first.position.follows(self.start));
        if has_gap && let Ok((_, state)) = shared.state(account).await {
            self.start = latest(self.start, state.cursor);
            self.page.messages.retain(|message| message.position.sequence > self.start.sequence);
        }
        if self.start.sequence > after.sequence {
            self.page.starts_after = Some(self.start);
        }
        self.page
    }

    /// Returns the messages and bytes to request: one message more than fits, to detect
    /// the end.
    fn room(&self) -> (usize, usize) {
        let messages = self.limit.messages.saturating_sub(self.page.messages.len()).saturating_add(1);
        let messages = messages.min(BATCH_MESSAGES);
        let bytes = self.limit.bytes.saturating_sub(self.bytes).saturating_add(messages * MESSAGE_BYTES);
        (messages, bytes.min(BATCH_BYTES))
    }

    /// Adds a message to the page. Returns false if it does not fit, or if it is the end
    /// marker.
    fn take(&mut self, account: &Account, found: Found) -> Result<bool, NoPage> {
        if found.payload == END {
            self.page.complete = true;
            return Ok(false);
        }
        let message = decode_message(found.sequence, found.payload).map_err(|error| {
            tracing::error!(%error, name = %account.name, sequence = found.sequence, "unreadable message");
            NoPage::Unreadable
        })?;
        let bytes = self.bytes.saturating_add(message.text.len());
        let has_some = !self.page.messages.is_empty();
        if self.page.messages.len() >= self.limit.messages || (has_some && bytes > self.limit.bytes) {
            return Ok(false);
        }
        self.bytes = bytes;
        self.last = found.sequence;
        self.page.messages.push(message.into());
        Ok(true)
    }
}
