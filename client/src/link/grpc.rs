//! A link over gRPC: one `BiDiChat` on its own HTTP/2 connection. Has no
//! rules.

use std::io;
use std::task::{Context, Poll, ready};

use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryFutureExt as _};
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::{ChatReply, ChatRequest};
use hark_grpc::{reply, request};
use hark_protocol::limits::{FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX};
use hark_protocol::{Incoming, Reply, Request, RequestId};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{DropGuard, PollSender};
use tonic::{Response, Status};

use super::{Link, LinkError, Reader, WRITE_BYTES_MAX, Writer, too_large};
use crate::dial::Stream;
use crate::http2;

/// Largest encoded reply beyond the largest frame, in bytes.
const BESIDE_FRAME_BYTES_MAX: usize = 1024;

/// Number of batches, each of about [`WRITE_BYTES_MAX`], that wait for the
/// connection.
const BATCHES_MAX: usize = 1;

/// Returns a new link over a byte stream.
pub(super) async fn link(stream: Box<dyn Stream>, origin: &str) -> Result<Link, LinkError> {
    let origin = http2::origin(origin)?;
    // The engine sends pings of its own, so HTTP/2 keepalive is off.
    let (connection, guard) = http2::open(stream, None).await?;
    let mut client = ChatClient::with_origin(connection, origin)
        .max_decoding_message_size(FRAME_BYTES_MAX + BESIDE_FRAME_BYTES_MAX);
    let (batches, mut batches_in) = mpsc::channel::<Vec<ChatRequest>>(BATCHES_MAX);
    let requests = stream::poll_fn(move |cx| batches_in.poll_recv(cx)).flat_map(stream::iter);
    // The server may answer the call only after the first request.
    let call = async move { client.bi_di_chat(requests).await.map(Response::into_inner) };
    let reader = GrpcReader {
        replies: call.try_flatten_stream().boxed(),
        last_received_at: Instant::now(),
        has_received: false,
        _connection: guard,
    };
    let writer = GrpcWriter {
        batches: PollSender::new(batches),
        batch: Vec::new(),
        batch_bytes: 0,
        frame_bytes_max: FRAME_BYTES_DEFAULT,
    };
    Ok(Link {
        reader: Box::new(reader),
        writer: Box::new(writer),
    })
}

/// The receiving half.
struct GrpcReader {
    replies: BoxStream<'static, Result<ChatReply, Status>>,
    last_received_at: Instant,
    has_received: bool,
    /// The connection belongs to the reader, which notices its end.
    _connection: DropGuard,
}

impl Reader for GrpcReader {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming<Reply>, LinkError>> {
        let reply = match ready!(self.replies.poll_next_unpin(cx)) {
            Some(Ok(reply)) => reply,
            Some(Err(status)) => return Poll::Ready(Err(http2::ended(&status, self.has_received))),
            None => return Poll::Ready(Err(LinkError::Ended)),
        };
        self.last_received_at = Instant::now();
        self.has_received = true;
        Poll::Ready(Ok(reply::incoming(reply)))
    }

    fn last_received_at(&self) -> Instant {
        self.last_received_at
    }

    // Replies are not framed here; the message size limit covers them.
    fn limit(&mut self, _frame_bytes_max: usize) {}
}

/// The sending half.
struct GrpcWriter {
    batches: PollSender<Vec<ChatRequest>>,
    batch: Vec<ChatRequest>,
    batch_bytes: usize,
    frame_bytes_max: usize,
}

impl Writer for GrpcWriter {
    fn queue(&mut self, id: Option<RequestId>, request: &Request) -> Result<(), String> {
        let message = request::outgoing(id, request.clone());
        let bytes = message.encoded_len();
        if bytes > self.frame_bytes_max {
            return Err(too_large(request, self.frame_bytes_max));
        }
        self.batch_bytes += bytes;
        self.batch.push(message);
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.batch_bytes < WRITE_BYTES_MAX
    }

    fn is_flushed(&self) -> bool {
        self.batch.is_empty()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let reserved = ready!(self.batches.poll_reserve(cx));
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        // A closed channel means that the call has ended; the reader reports
        // why.
        drop(reserved.and_then(|()| self.batches.send_item(batch)));
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.batches.close();
        Poll::Ready(Ok(()))
    }

    fn limit(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }
}
