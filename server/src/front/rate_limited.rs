//! A byte stream read at a limited rate. A client that exceeds its limit is read later,
//! which it experiences as TCP backpressure.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::chat::RateLimiter;

/// A stream whose reads are charged to a rate limiter.
#[derive(Debug)]
pub(super) struct RateLimited<S> {
    stream: S,
    limiter: Option<Arc<RateLimiter>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> RateLimited<S> {
    /// Returns `stream` with this limiter; without one its reads are not limited.
    pub(super) const fn new(stream: S, limiter: Option<Arc<RateLimiter>>) -> Self {
        Self {
            stream,
            limiter,
            pause: None,
        }
    }

    /// Returns the stream.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RateLimited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if let Some(limiter) = &self.limiter {
            let now = Instant::now();
            let wait = limiter.charge_bytes(buffer.filled().len() - before, now);
            self.pause = (!wait.is_zero()).then(|| Box::pin(tokio::time::sleep_until(now + wait)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RateLimited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::chat::Rates;
    use crate::limit::Rate;

    #[tokio::test(start_paused = true)]
    async fn bytes_over_the_limit_are_read_later() {
        let rates = Rates {
            bytes: Rate::per_second(1000),
            ..Rates::NONE
        };
        let (mut writer, reader) = tokio::io::duplex(100);
        let writing = tokio::spawn(async move { writer.write_all(&[0; 12_000]).await });
        let mut read = Vec::new();
        let begun = Instant::now();
        RateLimited::new(reader, Some(Arc::new(RateLimiter::new(&rates))))
            .read_to_end(&mut read)
            .await
            .unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(read.len(), 12_000);
        // A burst of 5,000; then 1,000 a second, without a pause after the last read.
        let elapsed = begun.elapsed();
        assert!(
            (Duration::from_millis(6900)..Duration::from_millis(7100)).contains(&elapsed),
            "{elapsed:?}"
        );
    }
}
