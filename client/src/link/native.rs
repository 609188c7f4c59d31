//! A link over the native framing on a byte stream. Has no rules.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::{FRAME_BYTES_DEFAULT, LENGTH_BYTES};
use hark_protocol::{Incoming, Reply, Request, RequestId};
use tokio::io::{AsyncWrite as _, ReadHalf, WriteHalf};
use tokio::time::Instant;
use tokio_util::codec::Decoder as _;
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::{Link, LinkError, Reader, WRITE_BYTES_MAX, Writer, too_large};
use crate::dial::Stream;
use crate::tls::TlsError;

/// Size of a read, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// First bytes of a TLS alert, with which a TLS-only server answers plain text.
/// No frame begins with them.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// Returns a new link over a byte stream.
pub(super) fn link(stream: Box<dyn Stream>) -> Link {
    let (reader, writer) = tokio::io::split(stream);
    let reader = NativeReader {
        stream: reader,
        codec: ClientCodec::new(FRAME_BYTES_DEFAULT),
        buffer: BytesMut::new(),
        last_received_at: Instant::now(),
    };
    let writer = NativeWriter {
        stream: writer,
        buffer: BytesMut::new(),
        has_unflushed: false,
        frame_bytes_max: FRAME_BYTES_DEFAULT,
    };
    Link {
        reader: Box::new(reader),
        writer: Box::new(writer),
    }
}

/// The receiving half.
struct NativeReader {
    stream: ReadHalf<Box<dyn Stream>>,
    codec: ClientCodec,
    buffer: BytesMut,
    last_received_at: Instant,
}

impl Reader for NativeReader {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming<Reply>, LinkError>> {
        loop {
            match self.codec.decode(&mut self.buffer) {
                Ok(Some(incoming)) => return Poll::Ready(Ok(incoming)),
                Ok(None) => {}
                Err(_) if self.buffer.starts_with(&TLS_ALERT) => {
                    return Poll::Ready(Err(TlsError::unencrypted().into()));
                }
                Err(error) => return Poll::Ready(Err(LinkError::Protocol(error.to_string()))),
            }
            self.buffer.reserve(READ_BYTES);
            match ready!(poll_read_buf(
                Pin::new(&mut self.stream),
                cx,
                &mut self.buffer
            )) {
                Ok(0) => return Poll::Ready(Err(LinkError::Ended)),
                // A TLS stream that ended without `close_notify`.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Err(LinkError::Ended));
                }
                read => read?,
            };
            self.last_received_at = Instant::now();
        }
    }

    fn last_received_at(&self) -> Instant {
        self.last_received_at
    }

    fn limit(&mut self, frame_bytes_max: usize) {
        self.codec =
            ClientCodec::new(frame_bytes_max.saturating_add(native::PUSH_BYTES_BESIDE_TEXT));
    }
}

/// The sending half.
struct NativeWriter {
    stream: WriteHalf<Box<dyn Stream>>,
    buffer: BytesMut,
    /// Whether the stream has accepted bytes since its last flush.
    has_unflushed: bool,
    frame_bytes_max: usize,
}

impl Writer for NativeWriter {
    fn queue(&mut self, id: Option<RequestId>, request: &Request) -> Result<(), String> {
        let start = self.buffer.len();
        native::encode(id, request, &mut self.buffer).map_err(|error| error.to_string())?;
        if self.buffer.len() - start - LENGTH_BYTES > self.frame_bytes_max {
            self.buffer.truncate(start);
            return Err(too_large(request, self.frame_bytes_max));
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.buffer.len() < WRITE_BYTES_MAX
    }

    fn is_flushed(&self) -> bool {
        self.buffer.is_empty() && !self.has_unflushed
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if !self.buffer.is_empty() {
            if ready!(poll_write_buf(
                Pin::new(&mut self.stream),
                cx,
                &mut self.buffer
            ))? == 0
            {
                return Poll::Ready(Err(LinkError::Ended));
            }
            self.has_unflushed = true;
        }
        if self.buffer.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.has_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn limit(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }
}
