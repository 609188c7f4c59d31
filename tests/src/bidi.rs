//! A whole session over `BiDiChat`, by the generated client.

use std::net::SocketAddr;

use futures::future::BoxFuture;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::{ChatReply, ChatRequest};
use hark_grpc::{reply, request};
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Frame, Reply, Request, RequestId};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::Link;

/// Capacity of the request queue.
const UNWRITTEN_MAX: usize = 64;

/// Largest size of a message beyond the largest frame, in bytes.
const BESIDE_FRAME_BYTES_MAX: usize = 1024;

/// A stream over a connection of its own, which closes on drop.
#[derive(Debug)]
pub struct Bidi {
    requests: mpsc::Sender<ChatRequest>,
    replies: Streaming<ChatReply>,
}

impl Bidi {
    /// Connects and opens the stream; `None` if there is no server.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let (requests, mut asked) = mpsc::channel(UNWRITTEN_MAX);
        let asked = futures::stream::poll_fn(move |cx| asked.poll_recv(cx));
        let replies =
            ok_unless_closed(client(address).await?.bi_di_chat(asked).await)?.into_inner();
        Some(Self { requests, replies })
    }

    async fn write(&mut self, requests: Vec<(u32, Request)>) -> Option<()> {
        for (id, request) in requests {
            self.requests
                .send(request::outgoing(RequestId::new(id), request))
                .await
                .ok()?;
        }
        Some(())
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        let frame = reply::incoming(ok_unless_closed(self.replies.message().await)??);
        Some(Frame::new(
            frame.id,
            frame.message.expect("a message of the protocol"),
        ))
    }
}

impl Link for Bidi {
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>> {
        Box::pin(self.write(requests))
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        Box::pin(self.read())
    }
}

/// Connects the generated client; `None` if there is no server.
pub(crate) async fn client(address: SocketAddr) -> Option<ChatClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let client = ChatClient::new(endpoint.connect().await.ok()?);
    Some(client.max_decoding_message_size(FRAME_BYTES_MAX + BESIDE_FRAME_BYTES_MAX))
}

/// Returns `None` if the status means that the stream has ended.
///
/// # Panics
/// On any other status: a conforming client never receives one.
pub(crate) fn ok_unless_closed<T>(result: Result<T, Status>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(status) if is_closed(&status) => None,
        Err(status) => panic!("{status:?}"),
    }
}

/// Returns whether the connection was lost, or the server closed the stream.
fn is_closed(status: &Status) -> bool {
    let is_lost = std::error::Error::source(status).is_some();
    is_lost || matches!(status.code(), Code::Unavailable | Code::Aborted)
}
