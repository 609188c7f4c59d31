//! The server's side of a connection, as requests and replies, over each
//! transport.

use std::fmt;
use std::future::ready;
use std::io;
use std::pin::Pin;

use bytes::BytesMut;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Sink, SinkExt as _, StreamExt as _, sink};
use hark_client::dial::Stream;
use hark_grpc::request;
use hark_grpc::v1::{ChatReply, ChatRequest};
use hark_protocol::framing::native::NativeCodec;
use hark_protocol::message::Message;
use hark_protocol::{Frame, Incoming, Refusal, Reply, Request};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_util::codec::Framed;
use tonic::server::StreamingService;
use tonic::{Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Largest frame, in bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Capacity of the reply queue.
const REPLIES_MAX: usize = 1;

/// Send buffer of a gRPC connection, in bytes.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// A message to the client.
#[derive(Debug)]
enum Outgoing {
    /// A reply or push of this protocol version.
    Known(Reply),
    /// A push of a later protocol version.
    Later,
}

impl Message for Outgoing {
    fn command(&self) -> &'static str {
        match self {
            Self::Known(reply) => reply.command(),
            Self::Later => "hologram",
        }
    }

    fn write_payload(&self, to: &mut BytesMut) {
        match self {
            Self::Known(reply) => reply.write_payload(to),
            Self::Later => to.extend_from_slice(b"#team,7,eve,in 3D"),
        }
    }

    fn parse(command: &str, payload: &str) -> Result<Self, Refusal> {
        Reply::parse(command, payload).map(Self::Known)
    }
}

/// A conversation with one client. Dropping it ends the connection after queued
/// replies are on their way.
pub(crate) struct Conversation {
    requests: BoxStream<'static, Incoming<Request>>,
    replies: Pin<Box<dyn Sink<Frame<Outgoing>, Error = io::Error> + Send>>,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conversation")
    }
}

impl Conversation {
    /// Starts a conversation in the native framing.
    pub(crate) fn native(stream: impl Stream + 'static) -> Self {
        let codec = NativeCodec::<Request, Outgoing>::new(FRAME_BYTES_MAX);
        let (replies, requests) = Framed::new(stream, codec).split();
        let requests = requests.scan((), |(), frame| ready(frame.ok()));
        Self {
            requests: requests.boxed(),
            replies: Box::pin(replies.sink_map_err(io::Error::other)),
        }
    }

    /// Starts a conversation over gRPC, after the client has opened its chat.
    pub(crate) async fn grpc(stream: impl Stream + 'static) -> Option<Self> {
        let (chats, mut begun) = mpsc::channel(1);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            assert_eq!(request.uri().path(), "/hark.v1.Chat/BiDiChat");
            let chat = BiDiChat {
                chats: chats.clone(),
            };
            async move {
                let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
                Ok::<_, std::convert::Infallible>(grpc.streaming(chat, request).await)
            }
        });
        let serving = http2::Builder::new(TokioExecutor::new())
            .max_send_buf_size(OUTPUT_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // Ends together with the client's side.
        tokio::spawn(serving.map(drop));
        begun.recv().await
    }

    /// Returns the next request; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Incoming<Request>> {
        self.requests.next().await
    }

    /// Sends a reply. Fails if the client has disconnected.
    pub(crate) async fn send(&mut self, Frame { id, message }: Frame<Reply>) -> io::Result<()> {
        let frame = Frame::new(id, Outgoing::Known(message));
        self.replies.send(frame).await
    }

    /// Pushes a message of a later protocol version, as [`Self::send`] does.
    pub(crate) async fn push_later(&mut self) -> io::Result<()> {
        self.replies.send(Frame::new(None, Outgoing::Later)).await
    }
}

/// The only call that a client makes.
struct BiDiChat {
    chats: mpsc::Sender<Conversation>,
}

impl StreamingService<ChatRequest> for BiDiChat {
    type Response = ChatReply;
    type ResponseStream = BoxStream<'static, Result<ChatReply, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, call: tonic::Request<Streaming<ChatRequest>>) -> Self::Future {
        let (replies, mut replies_in) = mpsc::channel(REPLIES_MAX);
        let requests = call
            .into_inner()
            .scan((), |(), request| ready(request.ok().map(request::incoming)));
        let conversation = Conversation {
            requests: requests.boxed(),
            replies: Box::pin(sink::unfold(replies, reply)),
        };
        let chats = self.chats.clone();
        async move {
            chats
                .send(conversation)
                .await
                .map_err(|_| Status::aborted("the test has gone"))?;
            let replies = futures::stream::poll_fn(move |cx| replies_in.poll_recv(cx))
                .map(Ok)
                .boxed();
            Ok(Response::new(replies))
        }
        .boxed()
    }
}

async fn reply(
    sender: mpsc::Sender<ChatReply>,
    frame: Frame<Outgoing>,
) -> io::Result<mpsc::Sender<ChatReply>> {
    let reply = match frame.message {
        Outgoing::Known(reply) => hark_grpc::reply::outgoing(frame.id, reply),
        // A decoder drops the members of a `oneof` that it does not know.
        Outgoing::Later => Some(ChatReply::default()),
    };
    if let Some(reply) = reply {
        sender
            .send(reply)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
    Ok(sender)
}
