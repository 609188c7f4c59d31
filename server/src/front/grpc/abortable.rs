//! What ends a stream of replies from outside. The connection polls a stream
//! only while the client takes what comes of it; another connection that waits
//! for the end of this one must not wait for that.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::Caller;
use super::call::cut;
use crate::chat::ShutdownSignal;

/// A stream that is dropped as soon as its call is told to close, whether it is
/// polled or not.
#[derive(Debug)]
pub(super) struct Abortable<S> {
    stream: Arc<Slot<S>>,
    /// Ends the task that waits for the wish.
    _over: DropGuard,
}

/// Where the stream is until it is cut.
// A lock, since it is cut by another task. It is held while the stream is
// polled.
type Slot<S> = Mutex<Option<S>>;

impl<S: Send + 'static> Abortable<S> {
    /// This stream of a call of `caller`, which listens to `shutdown`.
    pub(super) fn new(stream: S, shutdown: Arc<ShutdownSignal>, caller: &Caller) -> Self {
        let stream = Arc::new(Mutex::new(Some(stream)));
        let over = CancellationToken::new();
        let (slot, is_over) = (Arc::clone(&stream), over.clone());
        caller.calls.spawn(async move {
            let told = poll_fn(|cx| shutdown.poll_close(cx));
            if is_over.run_until_cancelled(told).await.is_some() {
                let cut = lock(&slot).take();
                drop(cut);
            }
        });
        Self { stream, _over: over.drop_guard() }
    }
}

impl<S, T> Stream for Abortable<S>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
{
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *lock(&self.stream) {
            Some(stream) => Pin::new(stream).poll_next(cx),
            None => Poll::Ready(Some(Err(cut()))),
        }
    }
}

fn lock<S>(slot: &Slot<S>) -> MutexGuard<'_, Option<S>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
