//! The received items of a server stream that are not taken yet, in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use serde::Deserialize;

use super::wire::{self, End, OK};
use crate::core::Outcome;
use crate::error::{Error, ErrorCode};
use crate::json::Json;

/// The maximum number of waiting items of a stream. One more ends the stream
/// with error 11 after those items.
pub const ITEMS_MAX: usize = 1024;

/// The replies to one request, which the network may duplicate and reorder.
/// Duplicates are dropped by `seq`; items after a gap wait until it is
/// filled.
pub(crate) struct Inbox {
    /// Borrowed for one operation, and never while a task is woken.
    state: RefCell<State>,
}

struct State {
    items: BTreeMap<u64, Json>,
    /// The `seq` of the next item to take.
    next: u64,
    end: Option<Result<End, Error>>,
    /// The other side has sent its last reply.
    has_ended: bool,
    waker: Option<Waker>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    seq: Option<u64>,
    data: Option<Json>,
}

/// A reply, as an event of the stream.
enum Event {
    Item(u64, Json),
    End(End),
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            state: RefCell::new(State {
                items: BTreeMap::new(),
                next: 1,
                end: None,
                has_ended: false,
                waker: None,
            }),
        }
    }

    /// Handles one reply.
    pub(crate) fn take(&self, outcome: Outcome) {
        let mut state = self.state.borrow_mut();
        state.has_ended |= outcome.is_err();
        let event = outcome.and_then(|body| event(&body));
        state.has_ended |= matches!(event, Ok(Event::End(_)));
        match event {
            // The reader has seen the end already.
            _ if matches!(state.end, Some(Err(_))) => {}
            Ok(Event::Item(seq, data)) => state.insert(seq, data),
            Ok(Event::End(end)) => state.end = Some(Ok(end)),
            Err(error) => state.end = Some(Err(error)),
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns the next item, or `None` at the end.
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<Result<Option<Json>, Error>> {
        let mut state = self.state.borrow_mut();
        let next = state.next;
        if let Some(item) = state.items.remove(&next) {
            state.next += 1;
            return Poll::Ready(Ok(Some(item)));
        }
        match &state.end {
            Some(Ok(end)) if end.status != OK => {
                let text = format!("the stream has ended with the status {}", end.status);
                Poll::Ready(Err(Error::new(ErrorCode::Abort, text)))
            }
            // Otherwise items are still in flight.
            Some(Ok(end)) if next > end.count => Poll::Ready(Ok(None)),
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            _ => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Returns the end as soon as it has arrived.
    pub(super) fn poll_end(&self, cx: &Context<'_>) -> Poll<Result<End, Error>> {
        let mut state = self.state.borrow_mut();
        match &state.end {
            Some(end) => Poll::Ready(end.clone()),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Returns whether the other side has sent its last reply.
    pub(super) fn has_ended(&self) -> bool {
        self.state.borrow().has_ended
    }
}

impl State {
    fn insert(&mut self, seq: u64, data: Json) {
        if seq < self.next || self.items.contains_key(&seq) {
            tracing::debug!(seq, "duplicate item");
        } else if self.items.len() >= ITEMS_MAX {
            let text = "too many items arrived before they were taken";
            self.end = Some(Err(Error::new(ErrorCode::TemporarilyUnavailable, text)));
        } else {
            self.items.insert(seq, data);
        }
    }
}

fn event(body: &Json) -> Result<Event, Error> {
    let unknown = |why: String| Error::new(ErrorCode::Crash, format!("unexpected reply: {why}"));
    let failed = |error: serde_json::Error| unknown(error.to_string());
    let part: Part = body.parse().map_err(failed)?;
    match (&*part.kind, part.seq, part.data) {
        (wire::ITEM, Some(seq), Some(data)) => Ok(Event::Item(seq, data)),
        (wire::END, ..) => Ok(Event::End(body.parse().map_err(failed)?)),
        (kind, ..) => Err(unknown(format!("a {kind} is not part of a stream"))),
    }
}
