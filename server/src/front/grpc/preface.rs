//! The HTTP/2 connection preface, read within a deadline: hyper would wait for it
//! indefinitely.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long the preface may take, from its first byte on.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the preface, and returns the connection with the preface put back. Returns `None`
/// after other bytes or the timeout.
///
/// # Errors
/// An error of the socket.
pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    address: IpAddr,
) -> io::Result<Option<Unread<S>>> {
    match tokio::time::timeout(PREFACE_TIMEOUT, is_preface(&mut stream)).await {
        Ok(Ok(true)) => Ok(Some(Unread {
            preface: PREFACE,
            stream,
        })),
        Ok(Ok(false)) => {
            // Possibly a `POST`, or a health check: debug level suffices.
            tracing::debug!(%address, "connection closed: not HTTP/2");
            Ok(None)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            tracing::info!(%address, "HTTP/2 preface timed out");
            Ok(None)
        }
    }
}

async fn is_preface(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
    let mut bytes = [0; PREFACE.len()];
    let mut came = 0;
    while let Some(buffer) = bytes.get_mut(came..).filter(|buffer| !buffer.is_empty()) {
        let count = stream.read(buffer).await?;
        came += count;
        let so_far = bytes.get(..came).unwrap_or_default();
        if count == 0 || !PREFACE.starts_with(so_far) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A connection whose preface can be read again.
pub(super) struct Unread<S> {
    /// The rest of the preface.
    preface: &'static [u8],
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Unread<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let (now, later) = self
            .preface
            .split_at(self.preface.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unread<S> {
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
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
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
