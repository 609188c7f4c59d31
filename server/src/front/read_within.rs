//! A response body over HTTP/2 whose client must read it. HTTP/2 polls a body only while the
//! client reads, so a task beside it watches the time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::sync::Mutex;

/// A body that is dropped, with its call, if the client does not read it for a time.
pub(super) struct ReadWithin<B> {
    body: B,
    progress: Arc<Progress>,
    /// Ends the task that watches.
    _watched: DropGuard,
}

#[derive(Debug, Default)]
struct Progress {
    /// The time since which the connection has a frame that it cannot send, or may have.
    // Locked because another task reads it. Held for one access.
    unread_since: Mutex<Option<Instant>>,
}

impl<B> ReadWithin<B> {
    /// Returns a body that a task of `calls` watches. If the client does not read it for
    /// `timeout`, `call` is cancelled.
    pub(super) fn new(
        body: B,
        timeout: Duration,
        call: CancellationToken,
        calls: &TaskTracker,
    ) -> Self {
        let progress = Arc::<Progress>::default();
        let watched = CancellationToken::new();
        let (watch, ended) = (progress.expired(timeout), watched.clone());
        calls.spawn(async move {
            if ended.run_until_cancelled(watch).await.is_some() {
                tracing::info!("slow consumer: does not read");
                call.cancel();
            }
        });
        Self {
            body,
            progress,
            _watched: watched.drop_guard(),
        }
    }
}

impl Progress {
    /// Resolves when a frame has been unread for this time.
    fn expired(self: &Arc<Self>, timeout: Duration) -> impl Future<Output = ()> + use<> {
        let progress = Arc::clone(self);
        async move {
            loop {
                let since = *progress.unread_since.lock();
                let due = since.unwrap_or_else(Instant::now) + timeout;
                if since.is_some() && due <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(due).await;
            }
        }
    }
}

impl<B: Body + Unpin> Body for ReadWithin<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // The next poll comes when this frame is on its way.
        *self.progress.unread_since.lock() = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn endless(
        call: &CancellationToken,
        calls: &TaskTracker,
    ) -> ReadWithin<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        let frames = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(b"x"))));
        ReadWithin::new(StreamBody::new(frames), TIMEOUT, call.clone(), calls)
    }

    #[tokio::test(start_paused = true)]
    async fn unread_body_is_cancelled_after_the_timeout() {
        let (call, calls) = (CancellationToken::new(), TaskTracker::new());
        let mut body = endless(&call, &calls);
        for _ in 0..10 {
            assert!(body.frame().await.is_some());
            tokio::time::sleep(TIMEOUT / 2).await;
        }
        assert!(!call.is_cancelled());
        let begun = Instant::now();
        call.cancelled().await;
        assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn body_without_frames_is_not_cancelled() {
        let (call, calls) = (CancellationToken::new(), TaskTracker::new());
        let frames = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let mut body = ReadWithin::new(StreamBody::new(frames), TIMEOUT, call.clone(), &calls);
        let next = tokio::time::timeout(10 * TIMEOUT, body.frame());
        assert!(next.await.is_err());
        assert!(!call.is_cancelled());
        drop(body);
        calls.close();
        calls.wait().await;
    }
}
