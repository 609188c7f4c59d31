//! [`ColdReads`]: entries that are read from the stream because their blocks are not in
//! memory. Commands continue meanwhile: only the page that needs the entry waits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::decide::Read;
use super::entry::{Content, Entry};
use super::{LogRequest, timing};
use crate::log::Block;

/// The reads of an owner.
#[derive(Debug)]
pub(super) struct ColdReads {
    /// Reads in flight, by the id of their request.
    in_flight: BTreeMap<u64, Cold>,
    waiting: VecDeque<Cold>,
    /// Blocks that have arrived, and the page that needs them.
    ready: Vec<(Read, Vec<Block>)>,
    next_request: u64,
}

#[derive(Debug)]
struct Cold {
    sequence: u64,
    /// `None` if the entry is read for its copies.
    page: Option<Read>,
    asked_at: Duration,
}

/// An entry that has arrived for its copies.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) sequence: u64,
    pub(super) blocks: Vec<Block>,
}

impl ColdReads {
    /// Returns an empty table. `next_request` is the first id of a request.
    pub(super) const fn new(next_request: u64) -> Self {
        Self {
            in_flight: BTreeMap::new(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
            next_request,
        }
    }

    /// Reads an entry for a page. Returns the page if too many wait already.
    pub(super) fn read(&mut self, sequence: u64, page: Read) -> Option<Read> {
        if self.waiting.len() >= timing::COLD_WAITING_MAX {
            return Some(page);
        }
        self.waiting.push_back(Cold {
            sequence,
            page: Some(page),
            asked_at: Duration::ZERO,
        });
        None
    }

    /// Reads an entry for its copies, unless that is under way.
    pub(super) fn read_copies(&mut self, sequence: u64) {
        let mut all = self.in_flight.values().chain(&self.waiting);
        if all.all(|cold| cold.page.is_some()) {
            self.waiting.push_front(Cold {
                sequence,
                page: None,
                asked_at: Duration::ZERO,
            });
        }
    }

    /// Returns the requests that are due: new ones within the bound, and repeated ones.
    pub(super) fn requests(&mut self, now: Duration) -> Vec<LogRequest> {
        let late = self.in_flight.iter_mut().filter_map(|(id, cold)| {
            let is_late = now.saturating_sub(cold.asked_at) >= timing::LOG_RETRY;
            is_late.then(|| {
                cold.asked_at = now;
                LogRequest::Get {
                    id: *id,
                    sequence: cold.sequence,
                }
            })
        });
        let mut requests: Vec<_> = late.collect();
        while self.in_flight.len() < timing::COLD_READS_MAX
            && let Some(cold) = self.waiting.pop_front()
        {
            self.next_request += 1;
            let id = self.next_request;
            requests.push(LogRequest::Get {
                id,
                sequence: cold.sequence,
            });
            self.in_flight.insert(
                id,
                Cold {
                    asked_at: now,
                    ..cold
                },
            );
        }
        requests
    }

    /// Takes a message that was read. Returns it if it was read for its copies.
    pub(super) fn handle(&mut self, id: u64, bytes: Option<&Bytes>) -> Option<Copies> {
        // A node without the message is behind: the request is repeated.
        let bytes = bytes?;
        let Cold { sequence, page, .. } = self.in_flight.remove(&id)?;
        let blocks = match Entry::decode(bytes, u8::MAX) {
            Ok((
                Entry {
                    content: Content::Frame(frame),
                    ..
                },
                _,
            )) => frame.blocks,
            _ => Vec::new(),
        };
        let Some(page) = page else {
            return Some(Copies { sequence, blocks });
        };
        let blocks = blocks
            .into_iter()
            .filter(|block| block.inbox == page.account.incarnation)
            .collect();
        self.ready.push((page, blocks));
        None
    }

    /// Takes the pages whose entry has arrived.
    pub(super) fn take_ready(&mut self) -> Vec<(Read, Vec<Block>)> {
        std::mem::take(&mut self.ready)
    }

    /// Takes the pages that have waited for too long.
    pub(super) fn take_late(&mut self, now: Duration) -> Vec<Read> {
        let is_late = |cold: &Cold| {
            cold.page
                .as_ref()
                .is_some_and(|page| now >= page.since + timing::COLD_DEADLINE)
        };
        let late: Vec<_> = self
            .in_flight
            .iter()
            .filter(|(_, cold)| is_late(cold))
            .map(|(id, _)| *id)
            .collect();
        let late = late
            .into_iter()
            .filter_map(|id| self.in_flight.remove(&id)?.page);
        let mut pages: Vec<_> = late.collect();
        let (late, rest): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(is_late);
        self.waiting = rest.into();
        pages.extend(late.into_iter().filter_map(|cold| cold.page));
        pages
    }
}
