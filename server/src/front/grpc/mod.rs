//! The gRPC front: one HTTP/2 connection, many calls. It owns the connection
//! and translates; each call is a peer of the chat of its own, and no rules are
//! here.
//!
//! | module | what it owns |
//! | --- | --- |
//! | `chat` | `hark.v1.Chat` |
//! | `list` | its `List` |
//! | `connect` | its `Connect` and `Ack`, and what ties them |
//! | `bidi` | its `BiDiChat` |
//! | `call` | one peer of the chat, as long as a call lasts |
//! | `deadline` | how long a client waits |

mod bidi;
mod call;
mod chat;
mod connect;
mod deadline;
mod list;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hark_grpc::status;
use hark_grpc::v1::chat_server::ChatServer;
use hark_protocol::Refusal;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::Settings;
use crate::chat::{Chat, Control, Wish};
use chat::ChatService;

/// Calls that one connection may have open at a time. More wait at the client.
const STREAMS_MAX: u32 = 128;

/// What a client may send on one call before it is read, in bytes.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;

/// What a client may send on one connection before it is read, in bytes: enough
/// for all calls, so that one that is not read holds up no other.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;

/// What is written to a call and not taken by the connection yet, in bytes at
/// most. What the client does not take stays in the store.
const CALL_OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The largest head of a call, in bytes.
const HEAD_BYTES_MAX: u32 = 16 * 1024;

/// What a request has at most beside what fits in a frame, in bytes: names,
/// passwords and sessions.
const BESIDE_FRAME_BYTES_MAX: usize = 1024;

/// The gRPC front of a server: its services.
#[derive(Debug, Clone)]
pub(super) struct Grpc {
    routes: Routes,
}

/// Whose call it is. Every request carries it as an extension.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Where the connection comes from.
    address: IpAddr,
    /// Told when the connection is to end: what is under way is answered.
    stopping: CancellationToken,
}

impl Grpc {
    /// The services over this chat.
    pub(super) fn new(chat: &Arc<Chat>, settings: Settings) -> Self {
        let request_bytes_max = chat.rules().frame_bytes_max + BESIDE_FRAME_BYTES_MAX;
        let chat = ChatServer::new(ChatService::new(Arc::clone(chat), settings.ack_timeout))
            .max_decoding_message_size(request_bytes_max);
        // Every service has its line here.
        Self { routes: Routes::new(chat).prepare() }
    }

    /// Serves one connection to its end, with all of its calls.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        address: IpAddr,
        control: &Control,
    ) -> io::Result<()> {
        let calls = TaskTracker::new();
        let served = self.serve_connection(stream, address, control, &calls).await;
        // The connection is gone, and every call that is left is told so.
        calls.close();
        calls.wait().await;
        served.map_err(io::Error::other)
    }

    async fn serve_connection(
        &self,
        stream: TcpStream,
        address: IpAddr,
        control: &Control,
        calls: &TaskTracker,
    ) -> hyper::Result<()> {
        let caller = Caller { address, stopping: CancellationToken::new() };
        let stopping = caller.stopping.clone();
        let service = service_fn(|mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            let timeout = deadline::timeout(request.headers());
            deadline::limit(timeout, self.routes.clone().call(request.map(Body::new)))
        });
        let connection = http2::Builder::new(Tracked(calls.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(CALL_OUTPUT_BYTES_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        poll_fn(|cx| {
            match control.poll(cx) {
                Poll::Ready(Wish::Close) => return Poll::Ready(Ok(())),
                Poll::Ready(Wish::Drain) if !stopping.is_cancelled() => {
                    stopping.cancel();
                    connection.as_mut().graceful_shutdown();
                }
                _ => {}
            }
            connection.as_mut().poll(cx)
        })
        .await
    }
}

/// Refuses whatever a connection calls, for so long.
///
/// # Errors
/// What the connection says.
pub(super) async fn refuse(stream: TcpStream, refusal: &Refusal, timeout: Duration) -> io::Result<()> {
    let status = status::refused(refusal);
    let service = service_fn(|_: http::Request<Incoming>| {
        std::future::ready(Ok::<http::Response<Body>, Infallible>(status.clone().into_http()))
    });
    let calls = TaskTracker::new();
    let connection = http2::Builder::new(Tracked(calls.clone()))
        .max_concurrent_streams(1)
        .serve_connection(TokioIo::new(stream), service);
    let served = tokio::time::timeout(timeout, connection).await;
    calls.close();
    calls.wait().await;
    served.unwrap_or(Ok(())).map_err(io::Error::other)
}

/// Runs the calls of a connection as tasks that are waited for.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, call: F) {
        self.0.spawn(call);
    }
}
