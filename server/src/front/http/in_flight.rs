//! The requests in flight of an HTTP/1.1 connection, shared by the stream below hyper and
//! the service above it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};

use super::head::BodyLength;
use crate::sync::Mutex;

/// The requests in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    // Locked because hyper is between both sides. Held for one operation on the queue. It is
    // bounded by the buffer of hyper: each head is at least 16 bytes.
    lengths: Mutex<VecDeque<BodyLength>>,
    /// The requests whose response has not ended.
    unanswered: AtomicUsize,
    /// Wakes the connection at the end of a response: its idle time begins.
    waker: AtomicWaker,
}

impl InFlight {
    /// Records a head that is passed to hyper.
    pub(super) fn begin(&self, length: BodyLength) {
        self.lengths.lock().push_back(length);
        self.unanswered.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the body of the next request that hyper passes to the service. A request
    /// behind a body of unknown length is not recorded; such a body is the last one.
    pub(super) fn take_length(&self) -> BodyLength {
        let length = self.lengths.lock().pop_front();
        length.unwrap_or(BodyLength::Unknown)
    }

    /// Records the end of a response.
    pub(super) fn end(&self) {
        self.unanswered.fetch_sub(1, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Returns whether every request is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.unanswered.load(Ordering::Acquire) == 0
    }

    /// Ready once every request is answered.
    pub(super) fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_idle() {
            self.waker.register(cx.waker());
        }
        // Again, because the last response may have ended before the waker was there.
        if self.is_idle() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// A response body that records its end.
pub(super) struct CountedBody<B> {
    body: B,
    _guard: EndGuard,
}

struct EndGuard(Arc<InFlight>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl<B> CountedBody<B> {
    /// Returns the body of a request in flight.
    pub(super) const fn new(body: B, in_flight: Arc<InFlight>) -> Self {
        Self {
            body,
            _guard: EndGuard(in_flight),
        }
    }
}

impl<B: Body + Unpin> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
