//! [`ColdReads`]: entries that are read from the stream because their blocks are not in
//! memory. Commands continue meanwhile: only the pages that need the entry wait.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::blocks::Blocks;
use super::decide::Read;
use super::entry::{Content, Entry};
use super::{LogRequest, timing};
use crate::log::Block;

/// The reads of an owner.
#[derive(Debug)]
pub(super) struct ColdReads {
    /// The entries to read, by sequence.
    entries: BTreeMap<u64, Cold>,
    /// The entries that are not requested yet. Some of them may have gone.
    waiting: VecDeque<u64>,
    /// The entries that are requested, by the id of their request.
    in_flight: BTreeMap<u64, Requested>,
    /// The number of pages that wait.
    pages: usize,
    /// Blocks that have arrived, and the page that needs them.
    ready: Vec<(Read, Vec<Block>)>,
    next_request: u64,
}

/// An entry to read.
#[derive(Debug, Default)]
struct Cold {
    /// The pages that need it.
    pages: Vec<Read>,
    /// It is also read for its copies.
    is_for_copies: bool,
}

#[derive(Debug)]
struct Requested {
    sequence: u64,
    at: Duration,
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
            entries: BTreeMap::new(),
            waiting: VecDeque::new(),
            in_flight: BTreeMap::new(),
            pages: 0,
            ready: Vec::new(),
            next_request,
        }
    }

    /// Reads an entry for a page. Returns the page if too many wait already.
    pub(super) fn read(&mut self, sequence: u64, page: Read) -> Option<Read> {
        if self.pages >= timing::COLD_WAITING_MAX {
            return Some(page);
        }
        self.pages += 1;
        let waiting = &mut self.waiting;
        let entry = self.entries.entry(sequence).or_insert_with(|| {
            waiting.push_back(sequence);
            Cold::default()
        });
        entry.pages.push(page);
        None
    }

    /// Reads an entry for its copies, unless that is under way.
    pub(super) fn read_copies(&mut self, sequence: u64) {
        let waiting = &mut self.waiting;
        let entry = self.entries.entry(sequence).or_insert_with(|| {
            waiting.push_front(sequence);
            Cold::default()
        });
        entry.is_for_copies = true;
    }

    /// Returns the requests that are due: new ones within the bound, and repeated ones.
    pub(super) fn requests(&mut self, now: Duration) -> Vec<LogRequest> {
        let late = self.in_flight.iter_mut().filter_map(|(id, requested)| {
            let is_late = now.saturating_sub(requested.at) >= timing::LOG_RETRY;
            is_late.then(|| {
                requested.at = now;
                LogRequest::Get {
                    id: *id,
                    sequence: requested.sequence,
                }
            })
        });
        let mut requests: Vec<_> = late.collect();
        while self.in_flight.len() < timing::COLD_READS_MAX
            && let Some(sequence) = self.waiting.pop_front()
        {
            if !self.entries.contains_key(&sequence) {
                continue;
            }
            self.next_request += 1;
            let id = self.next_request;
            requests.push(LogRequest::Get { id, sequence });
            self.in_flight.insert(id, Requested { sequence, at: now });
        }
        requests
    }

    /// Takes a message that was read. Its live blocks enter the cache as far as that has
    /// room, for the other inboxes of the entry. Returns it if it was read for its copies.
    pub(super) fn handle(
        &mut self,
        id: u64,
        bytes: Option<&Bytes>,
        cache: &mut Blocks,
    ) -> Option<Copies> {
        // A node without the message is behind: the request is repeated.
        let bytes = bytes?;
        let Requested { sequence, .. } = self.in_flight.remove(&id)?;
        let Cold {
            pages,
            is_for_copies,
        } = self.entries.remove(&sequence)?;
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
        self.pages -= pages.len();
        for page in pages {
            let inbox = page.account.incarnation;
            let of_page = blocks.iter().filter(|block| block.inbox == inbox);
            let of_page = of_page.cloned().collect();
            self.ready.push((page, of_page));
        }
        cache.warm(sequence, &blocks);
        is_for_copies.then_some(Copies { sequence, blocks })
    }

    /// Takes the pages whose entry has arrived.
    pub(super) fn take_ready(&mut self) -> Vec<(Read, Vec<Block>)> {
        std::mem::take(&mut self.ready)
    }

    /// Takes the pages that have waited for too long.
    pub(super) fn take_late(&mut self, now: Duration) -> Vec<Read> {
        let mut late = Vec::new();
        for cold in self.entries.values_mut() {
            let is_late = |page: &mut Read| now >= page.since + timing::COLD_DEADLINE;
            late.extend(cold.pages.extract_if(.., is_late));
        }
        if late.is_empty() {
            return late;
        }
        self.pages -= late.len();
        self.entries
            .retain(|_, cold| cold.is_for_copies || !cold.pages.is_empty());
        let entries = &self.entries;
        self.in_flight
            .retain(|_, requested| entries.contains_key(&requested.sequence));
        self.waiting
            .retain(|sequence| entries.contains_key(sequence));
        late
    }
}
