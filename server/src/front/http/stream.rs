//! The byte stream below an HTTP/1.1 connection. It passes the bytes to hyper request by
//! request, with the rules that hyper does not enforce: a head arrives within a time, is
//! not ambiguous about the length of its body, and output that the peer does not read
//! ends the connection.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::head::{BodyLength, HEAD_BYTES_MAX, Head};
use super::in_flight::InFlight;

/// How long a head may take, from its first byte on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The capacity for one read.
const READ_BYTES: usize = 8 * 1024;

/// A byte stream that is read request by request.
#[derive(Debug)]
pub(super) struct RequestStream<S> {
    stream: S,
    in_flight: Arc<InFlight>,
    /// How long the connection may be idle, and how long the peer may leave output unread.
    timeout: Duration,
    input: BytesMut,
    /// The bytes of the input that may be passed on.
    passed: u64,
    length: BodyLength,
    /// The time since which the connection waits for a head, or for the rest of one.
    waiting_since: Option<Instant>,
    /// The time since which the peer has not read.
    unread_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> RequestStream<S> {
    /// Returns `stream`, of which these first bytes were read, with the requests in flight.
    pub(super) const fn new(
        stream: S,
        first: BytesMut,
        in_flight: Arc<InFlight>,
        timeout: Duration,
    ) -> Self {
        Self {
            stream,
            in_flight,
            timeout,
            input: first,
            passed: 0,
            length: BodyLength::Bytes(0),
            waiting_since: None,
            unread_since: None,
            timer: None,
            write_timer: None,
        }
    }

    /// Returns the stream and the bytes that were read and not passed on.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.input)
    }

    /// Looks for a head in the input, which begins with one. Returns whether more bytes
    /// can be passed on.
    fn find_head(&mut self) -> bool {
        match Head::parse(&self.input) {
            Head::Incomplete if self.input.len() <= HEAD_BYTES_MAX => return false,
            // hyper refuses it.
            Head::Incomplete | Head::Malformed => {
                self.length = BodyLength::Unknown;
                self.passed = self.input.len() as u64;
            }
            Head::Complete { bytes, length } => {
                self.in_flight.begin(length);
                self.length = length;
                self.passed = bytes as u64;
            }
        }
        true
    }

    /// Passes on bytes of the body in the input. Returns whether there are any.
    fn find_body(&mut self) -> bool {
        let available = self.input.len() as u64;
        self.passed = match &mut self.length {
            BodyLength::Bytes(left) => {
                let passed = available.min(*left);
                *left -= passed;
                passed
            }
            BodyLength::Unknown | BodyLength::Ambiguous => available,
        };
        self.passed > 0
    }

    /// Returns the time at which the wait for a head ends. A connection that answers a
    /// request may wait for the next one indefinitely.
    fn head_due(&mut self, cx: &mut Context<'_>) -> Option<Instant> {
        if self.length != BodyLength::Bytes(0) {
            self.waiting_since = None;
            return None;
        }
        let timeout = if !self.input.is_empty() {
            HEAD_TIMEOUT
        } else if self.in_flight.poll_idle(cx).is_ready() {
            self.timeout
        } else {
            self.waiting_since = None;
            return None;
        };
        let since = self.waiting_since.get_or_insert_with(Instant::now);
        Some(*since + timeout)
    }
}

impl<S: AsyncRead + Unpin> RequestStream<S> {
    /// Reads more input. Ready with whether there was any.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.input.reserve(READ_BYTES);
        let was_empty = self.input.is_empty();
        match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input) {
            Poll::Ready(read) => {
                if was_empty {
                    // The time of a head begins with its first byte.
                    self.waiting_since = None;
                }
                Poll::Ready(read.map(|count| count > 0))
            }
            Poll::Pending => {
                if self.input.is_empty() {
                    self.input = BytesMut::new();
                }
                let Some(due) = self.head_due(cx) else {
                    return Poll::Pending;
                };
                ready!(poll_until(&mut self.timer, due, cx));
                let reason = if self.input.is_empty() {
                    "idle"
                } else {
                    "head incomplete"
                };
                tracing::debug!(reason, "HTTP connection timed out");
                Poll::Ready(Ok(false))
            }
        }
    }
}

/// Ready at the time `due`.
fn poll_until(timer: &mut Option<Pin<Box<Sleep>>>, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
    if timer.deadline() != due {
        timer.as_mut().reset(due);
    }
    timer.as_mut().poll(cx)
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.passed == 0 {
            let found = !this.input.is_empty()
                && match this.length {
                    BodyLength::Bytes(0) => this.find_head(),
                    _ => this.find_body(),
                };
            if !found && !ready!(this.poll_input(cx))? {
                // The rest of an incomplete head is of no use.
                return Poll::Ready(Ok(()));
            }
        }
        this.waiting_since = None;
        let count = buffer.remaining().min(this.input.len());
        let count = count.min(usize::try_from(this.passed).unwrap_or(usize::MAX));
        buffer.put_slice(this.input.get(..count).unwrap_or_default());
        this.input.advance(count);
        this.passed -= count as u64;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> RequestStream<S> {
    /// Ends the connection if the peer has not read for too long.
    fn watch_output<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread_since = None;
            return written;
        }
        let since = *self.unread_since.get_or_insert_with(Instant::now);
        ready!(poll_until(&mut self.write_timer, since + self.timeout, cx));
        tracing::info!("slow consumer: does not read");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_output(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.watch_output(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch_output(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn stream(first: &[u8]) -> (DuplexStream, RequestStream<DuplexStream>, Arc<InFlight>) {
        let (client, server) = duplex(1 << 20);
        let in_flight = Arc::<InFlight>::default();
        let stream = RequestStream::new(server, first.into(), Arc::clone(&in_flight), TIMEOUT);
        (client, stream, in_flight)
    }

    /// Returns the bytes of one read.
    async fn read(stream: &mut RequestStream<DuplexStream>) -> Vec<u8> {
        let mut bytes = vec![0; 100_000];
        let count = stream.read(&mut bytes).await.unwrap();
        bytes.truncate(count);
        bytes
    }

    #[tokio::test]
    async fn pipelined_requests_are_passed_one_by_one() {
        let post = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
        let get = b"GET / HTTP/1.1\r\n\r\n";
        let (mut client, mut stream, in_flight) = stream(b"POST ");
        client.write_all(&post[5..]).await.unwrap();
        client.write_all(b"abc").await.unwrap();
        client.write_all(get).await.unwrap();
        assert_eq!(read(&mut stream).await, post);
        assert!(!in_flight.is_idle());
        assert_eq!(read(&mut stream).await, b"abc");
        assert_eq!(read(&mut stream).await, get);
        drop(client);
        assert_eq!(read(&mut stream).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_head_times_out_after_its_first_byte() {
        let (mut client, mut stream, _) = stream(b"");
        let begun = Instant::now();
        let writing = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            for _ in 0..20 {
                client.write_all(b"G").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let (bytes, ()) = tokio::join!(
            async {
                let bytes = read(&mut stream).await;
                assert_eq!(begun.elapsed(), Duration::from_secs(30) + HEAD_TIMEOUT);
                bytes
            },
            writing
        );
        assert_eq!(bytes, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connection_times_out_unless_it_is_answered() {
        let (_client, mut stream, in_flight) = stream(b"");
        in_flight.begin(BodyLength::Bytes(0));
        let waiting = tokio::time::timeout(10 * TIMEOUT, read(&mut stream));
        assert!(waiting.await.is_err());
        in_flight.take_length();
        let begun = Instant::now();
        let ending = async {
            tokio::time::sleep(TIMEOUT).await;
            in_flight.end();
        };
        let (bytes, ()) = tokio::join!(read(&mut stream), ending);
        assert_eq!(bytes, b"");
        assert_eq!(begun.elapsed(), 2 * TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn unread_output_times_out() {
        let (_client, mut stream, _) = stream(b"");
        let begun = Instant::now();
        let written = stream.write_all(&vec![0; 2 << 20]).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), TIMEOUT);
    }
}
