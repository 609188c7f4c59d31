//! A response stream that can be aborted while it is not polled. HTTP/2 polls a stream only
//! while its client reads; a connection that takes over a session must not wait for that.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::chat::ShutdownSignal;
use crate::front::call::CallError;
use crate::front::caller::Caller;
use crate::sync::Mutex;

/// A stream that is dropped when a close of its call is requested, even while it is
/// not polled.
#[derive(Debug)]
pub(super) struct Abortable<S> {
    stream: Arc<StreamSlot<S>>,
    /// Ends the task that waits for the request.
    _done: DropGuard,
}

/// The stream, until it is aborted.
// Locked because another task aborts it. Held while the stream is polled.
type StreamSlot<S> = Mutex<Option<S>>;

impl<S: Send + 'static> Abortable<S> {
    /// Returns a stream of a call of `caller` that obeys `shutdown`.
    pub(super) fn new(stream: S, shutdown: Arc<ShutdownSignal>, caller: &Caller) -> Self {
        let stream = Arc::new(Mutex::new(Some(stream)));
        let done = CancellationToken::new();
        let (slot, is_done) = (Arc::clone(&stream), done.clone());
        caller.calls.spawn(async move {
            let requested = poll_fn(|cx| shutdown.poll_close(cx));
            if is_done.run_until_cancelled(requested).await.is_some() {
                // Dropped outside the lock.
                let stream = slot.lock().take();
                drop(stream);
            }
        });
        Self {
            stream,
            _done: done.drop_guard(),
        }
    }
}

impl<S, T> Stream for Abortable<S>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
{
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *self.stream.lock() {
            Some(stream) => Pin::new(stream).poll_next(cx),
            None => Poll::Ready(Some(Err(CallError::Aborted.into()))),
        }
    }
}
