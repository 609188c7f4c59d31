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

/// Requests that are said and not written yet.
const UNWRITTEN_MAX: usize = 64;

/// What a message has at most beside what fits in a frame, in bytes.
const BESIDE_FRAME_BYTES_MAX: usize = 1024;

/// One stream over a connection of its own. Dropping it closes that.
#[derive(Debug)]
pub struct Bidi {
    requests: mpsc::Sender<ChatRequest>,
    replies: Streaming<ChatReply>,
}

impl Bidi {
    /// Connects and opens the stream, where there is a server.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let (requests, mut asked) = mpsc::channel(UNWRITTEN_MAX);
        let asked = futures::stream::poll_fn(move |cx| asked.poll_recv(cx));
        let replies = unless_gone(client(address).await?.bi_di_chat(asked).await)?.into_inner();
        Some(Self { requests, replies })
    }

    async fn write(&mut self, requests: Vec<(u32, Request)>) -> Option<()> {
        for (id, request) in requests {
            self.requests.send(request::outgoing(RequestId::new(id), request)).await.ok()?;
        }
        Some(())
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        let frame = reply::incoming(unless_gone(self.replies.message().await)??);
        Some(Frame::new(frame.id, frame.message.expect("a message of the protocol")))
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

/// The generated client over a connection of its own, where there is a server.
pub(crate) async fn client(address: SocketAddr) -> Option<ChatClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let client = ChatClient::new(endpoint.connect().await.ok()?);
    Some(client.max_decoding_message_size(FRAME_BYTES_MAX + BESIDE_FRAME_BYTES_MAX))
}

/// `None` for a status that says no more than that the stream has ended.
///
/// # Panics
/// For any other: a client of the protocol should not see it.
pub(crate) fn unless_gone<T>(result: Result<T, Status>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(status) if is_gone(&status) => None,
        Err(status) => panic!("{status:?}"),
    }
}

/// Whether the connection is lost, or the stream was closed by the server.
fn is_gone(status: &Status) -> bool {
    let is_lost = std::error::Error::source(status).is_some();
    is_lost || matches!(status.code(), Code::Unavailable | Code::Aborted)
}
