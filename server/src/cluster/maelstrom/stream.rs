//! [`Stream`]: the stream of a shard in `lin-kv`, with a key for each sequence. It knows
//! neither claims nor frames.
//!
//! From sequence 1 on, the keys hold tombstones, then messages, and then do not exist. So
//! the first and the last sequence are found by bisection, and no second key has to agree
//! with them. An append creates the key of its sequence, which succeeds once; a purge
//! writes tombstones in ascending order.

use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::join_all;
use hark_node::{ErrorCode, Kv, Retry};

use crate::cluster::{LogReply, LogRequest, ShardId};

/// The value of a purged sequence. It is no message, and not `null`, which would equal a
/// missing one in a compare-and-set.
const TOMBSTONE: &str = "";

/// Maximum messages of one page.
const PAGE_MESSAGES_MAX: u64 = 32;

/// Maximum attempts of an unconditional append: other servers append at the same time.
const APPEND_ATTEMPTS_MAX: u32 = 8;

/// Reads and tombstones may be repeated.
const RETRY: Retry = Retry {
    attempts: 3,
    timeout: Duration::from_millis(500),
    backoff: None,
};

/// The content of a sequence.
#[derive(Debug, PartialEq, Eq)]
enum Slot {
    Purged,
    Message(Bytes),
    Missing,
}

/// The stream of a shard, as one server sees it.
#[derive(Debug)]
pub(super) struct Stream {
    shard: ShardId,
    /// Lower bounds of the first and the last sequence, which never decrease.
    first: Cell<u64>,
    last: Cell<u64>,
}

impl Stream {
    /// Returns the stream of a shard.
    pub(super) const fn new(shard: ShardId) -> Self {
        Self {
            shard,
            first: Cell::new(1),
            last: Cell::new(0),
        }
    }

    /// Carries out a request. Returns `None` if it has no answer: the outcome is unknown.
    pub(super) async fn carry_out(&self, kv: &Kv, request: LogRequest) -> Option<LogReply> {
        match request {
            LogRequest::Append { id, bytes, after } => self.append(kv, id, &bytes, after).await,
            LogRequest::Read {
                id,
                from,
                messages_max,
            } => self.read(kv, id, from, messages_max).await,
            LogRequest::Get { id, sequence } => {
                let bytes = match self.slot(kv, sequence).await? {
                    Slot::Message(bytes) => Some(bytes),
                    Slot::Purged | Slot::Missing => None,
                };
                Some(LogReply::Message { id, bytes })
            }
            LogRequest::Purge { before } => {
                self.purge(kv, before).await;
                None
            }
        }
    }

    async fn append(&self, kv: &Kv, id: u64, bytes: &[u8], after: Option<u64>) -> Option<LogReply> {
        let message = BASE64_STANDARD.encode(bytes);
        for _ in 0..APPEND_ATTEMPTS_MAX {
            let sequence = match after {
                Some(after) => after,
                None => self.last(kv).await?,
            } + 1;
            match kv.create(self.key(sequence), &message).await {
                Ok(()) => {
                    raise(&self.last, sequence);
                    return Some(LogReply::Stored { id, sequence });
                }
                Err(error) if error.code != ErrorCode::KeyAlreadyExists => return None,
                Err(_) if after.is_some() => {
                    raise(&self.last, sequence);
                    let last = self.last(kv).await?;
                    return Some(LogReply::Refused { id, last });
                }
                Err(_) => {}
            }
        }
        None
    }

    async fn read(&self, kv: &Kv, id: u64, from: u64, messages_max: u32) -> Option<LogReply> {
        let last = self.last(kv).await?;
        let first = self.first(kv, last).await?;
        let mut messages = Vec::new();
        if (first..=last).contains(&from) {
            let count = PAGE_MESSAGES_MAX.min(messages_max.into());
            let end = from.saturating_add(count).min(last + 1);
            for slot in join_all((from..end).map(|sequence| self.slot(kv, sequence))).await {
                // The rest is left to the next read.
                let Some(Slot::Message(message)) = slot else {
                    break;
                };
                messages.push(message);
            }
        }
        Some(LogReply::Page {
            id,
            first,
            messages,
            last,
        })
    }

    async fn purge(&self, kv: &Kv, before: u64) -> Option<()> {
        let first = self.first(kv, before).await?;
        let kv = kv.clone().retry(RETRY);
        for sequence in first..before {
            // A gap between tombstones would mislead the bisection.
            kv.write(self.key(sequence), TOMBSTONE).await.ok()?;
        }
        raise(&self.first, before);
        Some(())
    }

    /// Returns the last sequence; 0 if there is none.
    async fn last(&self, kv: &Kv) -> Option<u64> {
        let (mut low, mut step) = (self.last.get(), 1);
        while self.slot(kv, low + step).await? != Slot::Missing {
            low += step;
            step *= 2;
        }
        let exists = async |sequence| Some(self.slot(kv, sequence).await? != Slot::Missing);
        let last = bisect(low..low + step, exists).await?;
        raise(&self.last, last);
        Some(last)
    }

    /// Returns the first sequence that is not purged, which is at most `last`, or 1.
    async fn first(&self, kv: &Kv, last: u64) -> Option<u64> {
        let known = self.first.get();
        // Most often nothing was purged meanwhile.
        if last <= known || self.slot(kv, known).await? != Slot::Purged {
            return Some(known);
        }
        let is_purged = async |sequence| Some(self.slot(kv, sequence).await? == Slot::Purged);
        let first = bisect(known..last, is_purged).await? + 1;
        raise(&self.first, first);
        Some(first)
    }

    async fn slot(&self, kv: &Kv, sequence: u64) -> Option<Slot> {
        let found = kv
            .clone()
            .retry(RETRY)
            .find::<String>(self.key(sequence))
            .await;
        Some(match found.ok()? {
            None => Slot::Missing,
            Some(value) if value == TOMBSTONE => Slot::Purged,
            Some(value) => Slot::Message(BASE64_STANDARD.decode(value).ok()?.into()),
        })
    }

    fn key(&self, sequence: u64) -> String {
        format!("shard-{}/{sequence}", self.shard)
    }
}

/// Returns the last number of a range for which a condition holds. It holds for the first
/// one, and for none after the result.
async fn bisect(range: Range<u64>, holds: impl AsyncFn(u64) -> Option<bool>) -> Option<u64> {
    let Range { start, end } = range;
    let (mut low, mut high) = (start, end);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(middle).await? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low)
}

/// Raises a lower bound. Another request may have raised it further.
fn raise(bound: &Cell<u64>, to: u64) {
    bound.set(bound.get().max(to));
}
