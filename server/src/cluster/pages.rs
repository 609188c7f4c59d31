//! [`Pages`]: a stream that is read from a sequence to its end, with several pages in flight.
//! They know nothing about the content of messages.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::{LogRequest, timing};

/// The pages of a stream that are read ahead.
#[derive(Debug)]
pub(super) struct Pages {
    /// In the order of their sequences.
    pages: VecDeque<PageRead>,
    /// The sequence after those that are requested.
    next: u64,
    /// The last sequence of the stream, as far as it is known.
    last: u64,
    /// The messages of the next page: as many as have the bytes of one page, judging from the
    /// last one.
    messages_max: u32,
}

#[derive(Debug)]
struct PageRead {
    request: u64,
    from: u64,
    messages_max: u32,
    /// The time of the last request; `None` before the first one.
    asked_at: Option<Duration>,
    /// The answer.
    messages: Option<Vec<Bytes>>,
}

impl Pages {
    /// Returns a reader without requests that begins with a sequence.
    pub(super) const fn new(from: u64) -> Self {
        Self {
            pages: VecDeque::new(),
            next: from,
            last: from,
            messages_max: timing::PAGE_ENTRIES_MIN,
        }
    }

    /// Returns the requests that are due: new ones within the bound, and repeated ones. A new
    /// one gets an id from `id`.
    pub(super) fn requests(
        &mut self,
        now: Duration,
        mut id: impl FnMut() -> u64,
    ) -> Vec<LogRequest> {
        while self.pages.len() < timing::PAGES_AHEAD_MAX && self.next <= self.last {
            let page = PageRead::new(id(), self.next, self.messages_max);
            self.next += u64::from(page.messages_max);
            self.pages.push_back(page);
        }
        let due = self.pages.iter_mut().filter(|page| page.is_due(now));
        let requests = due.map(|page| {
            page.asked_at = Some(now);
            page.request()
        });
        requests.collect()
    }

    /// Returns whether the request of this id has no answer yet.
    pub(super) fn expects(&self, id: u64) -> bool {
        let mut pages = self.pages.iter();
        pages.any(|page| page.request == id && page.messages.is_none())
    }

    /// Handles an answer. `last` is the last sequence of the stream.
    pub(super) fn handle(&mut self, id: u64, messages: Vec<Bytes>, last: u64) {
        let Some(page) = self.pages.iter_mut().find(|page| page.request == id) else {
            return;
        };
        self.last = last;
        if messages.is_empty() && page.from <= last {
            // The node that answered is behind: the request is repeated.
            return;
        }
        if !messages.is_empty() {
            let bytes: usize = messages.iter().map(Bytes::len).sum();
            let fitting = timing::READ_PAGE_BYTES * messages.len() / bytes.max(1);
            self.messages_max = u32::try_from(fitting)
                .unwrap_or(u32::MAX)
                .clamp(timing::PAGE_ENTRIES_MIN, timing::PAGE_ENTRIES_MAX);
        }
        page.messages = Some(messages);
    }

    /// Takes the next messages in the order of the stream; `None` if they have not arrived.
    /// `id` is for the request for those that are missing in their page.
    pub(super) fn take(&mut self, id: impl FnOnce() -> u64) -> Option<Vec<Bytes>> {
        let page = self.pages.pop_front_if(|page| page.messages.is_some())?;
        let messages = page.messages.unwrap_or_default();
        let (end, asked_end) = (
            page.from + messages.len() as u64,
            page.from + u64::from(page.messages_max),
        );
        if end > self.last {
            // Pages beyond the end may lack messages that are in the stream by now.
            self.pages.clear();
            self.next = end;
        } else if end < asked_end {
            let missing = PageRead::new(id(), end, (asked_end - end) as u32);
            self.pages.push_front(missing);
        }
        Some(messages)
    }

    /// Returns whether everything up to the last sequence is taken.
    pub(super) fn is_complete(&self) -> bool {
        self.pages.is_empty() && self.next > self.last
    }
}

impl PageRead {
    const fn new(request: u64, from: u64, messages_max: u32) -> Self {
        Self {
            request,
            from,
            messages_max,
            asked_at: None,
            messages: None,
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        let is_late = |at| now.saturating_sub(at) >= timing::LOG_RETRY;
        self.messages.is_none() && self.asked_at.is_none_or(is_late)
    }

    const fn request(&self) -> LogRequest {
        LogRequest::Read {
            id: self.request,
            from: self.from,
            messages_max: self.messages_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    /// The first sequences and lengths of requests.
    fn asked(pages: &mut Pages, now: Duration, ids: &mut u64) -> Vec<(u64, u64, u32)> {
        let requests = pages.requests(now, || {
            *ids += 1;
            *ids
        });
        let asked = requests.into_iter().map(|request| match request {
            LogRequest::Read {
                id,
                from,
                messages_max,
            } => (id, from, messages_max),
            other => panic!("{other:?}"),
        });
        asked.collect()
    }

    /// Messages that hold their own sequence.
    fn messages(from: u64, count: u64) -> Vec<Bytes> {
        let bytes = |sequence: u64| Bytes::from(vec![sequence as u8; 100 << 10]);
        (from..from + count).map(bytes).collect()
    }

    fn taken(pages: &mut Pages, ids: &mut u64) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(messages) = pages.take(|| {
            *ids += 1;
            *ids
        }) {
            all.extend(messages.iter().map(|message| message[0]));
        }
        all
    }

    #[test]
    fn pages_in_flight_are_taken_in_order() {
        let (mut pages, mut ids) = (Pages::new(5), 0);
        assert_eq!(asked(&mut pages, NOW, &mut ids), [(1, 5, 16)]);
        pages.handle(1, messages(5, 16), 150);
        assert_eq!(taken(&mut pages, &mut ids).len(), 16);
        // Forty messages have the bytes of a page.
        let requests = [(2, 21, 40), (3, 61, 40), (4, 101, 40), (5, 141, 40)];
        assert_eq!(asked(&mut pages, NOW, &mut ids), requests);
        pages.handle(4, messages(101, 40), 150);
        assert!(taken(&mut pages, &mut ids).is_empty());
        // A page is short, because its messages are long.
        pages.handle(2, messages(21, 30), 150);
        pages.handle(3, messages(61, 40), 150);
        assert_eq!(taken(&mut pages, &mut ids).len(), 30);
        assert_eq!(asked(&mut pages, NOW, &mut ids), [(6, 51, 10)]);
        pages.handle(6, messages(51, 10), 150);
        assert!(taken(&mut pages, &mut ids).into_iter().eq(51..141));
        pages.handle(5, messages(141, 10), 150);
        assert!(!pages.is_complete());
        assert_eq!(taken(&mut pages, &mut ids).len(), 10);
        assert!(pages.is_complete());
    }

    #[test]
    fn request_without_an_answer_is_repeated() {
        let (mut pages, mut ids) = (Pages::new(1), 0);
        assert_eq!(asked(&mut pages, NOW, &mut ids), [(1, 1, 16)]);
        assert!(!pages.expects(7));
        // A node that is behind.
        pages.handle(1, Vec::new(), 99);
        assert!(taken(&mut pages, &mut ids).is_empty());
        let later = asked(&mut pages, timing::LOG_RETRY, &mut ids);
        assert_eq!(later[0], (1, 1, 16));
        assert!(pages.expects(1));
        pages.handle(1, messages(1, 16), 99);
        assert!(!pages.expects(1));
    }

    #[test]
    fn stream_that_grows_is_read_without_a_gap() {
        let (mut pages, mut ids) = (Pages::new(1), 0);
        assert_eq!(asked(&mut pages, NOW, &mut ids), [(1, 1, 16)]);
        pages.handle(1, messages(1, 3), 3);
        assert_eq!(taken(&mut pages, &mut ids), [1, 2, 3]);
        assert!(pages.is_complete());
        assert!(asked(&mut pages, NOW, &mut ids).is_empty());
        let mut pages = Pages::new(4);
        assert_eq!(asked(&mut pages, NOW, &mut ids), [(2, 4, 16)]);
        pages.handle(2, Vec::new(), 3);
        assert!(taken(&mut pages, &mut ids).is_empty() && pages.is_complete());
    }
}
