//! The gRPC front: one HTTP/2 connection, many calls. It owns the connection
//! and translates; each call is a connection of its own to the chat, and no
//! rules are here.
//!
//! | module | what it owns |
//! | --- | --- |
//! | `chat` | `hark.v1.Chat` |
//! | `list` | its `List` |
//! | `connect` | its `Connect` and `Ack`, and what ties them |
//! | `bidi` | its `BiDiChat` |
//! | `old` | `helloworld.Chat` |
//! | `logs` | `hark.v1.LogWatcher` |
//! | `health` | the standard health service |
//! | `metered` | its bytes, counted as they are read |
//! | `reflection` | the standard services that describe the others |
//! | `preface` | the first bytes of a connection |
//! | `call` | one connection of the chat, as long as a call lasts |
//! | `cut` | what ends a stream that its client does not read |
//! | `deadline` | how long a client waits |

mod bidi;
mod call;
mod chat;
mod connect;
mod abortable;
mod deadline;
mod health;
mod list;
mod logs;
mod rate_limited;
mod legacy;
mod preface;
mod reflection;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hark_grpc::helloworld::chat_server::ChatServer as OldChatServer;
use hark_grpc::status;
use hark_grpc::v1::chat_server::ChatServer;
use hark_grpc::v1::log_watcher_server::LogWatcherServer;
use hark_protocol::Refusal;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Extensions, Status};
use tonic_health::pb::health_server::HealthServer;
use tower_service::Service;

use super::Settings;
use super::drain::DRAIN_TIMEOUT;
use crate::chat::{Chat, ShutdownSignal, RateLimiter, Shutdown};
use chat::ChatService;
use health::HealthService;
use logs::LogService;
use rate_limited::RateLimited;
use legacy::LegacyService;

pub use logs::{MayWatch, WatchLogs};

/// Calls that one connection may have open at a time. More wait at the client.
const STREAMS_MAX: u32 = 128;

/// What a client may send on one call before it is read, in bytes.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;

/// What a client may send on one connection before it is read, in bytes. The
/// windows of its calls add up to less, 16 MiB, so that one that is not read
/// holds up no other. The rest is patience: `h2` adds up what each unread frame
/// has less than 256 bytes, and closes a connection at half of this window.
/// That is reached by tiny frames, and not by messages of 100 bytes on all
/// calls.
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAMS_MAX * STREAM_WINDOW_BYTES;

/// What is written to a call and not taken by the connection yet, in bytes at
/// most. What the client does not take stays in the store.
const CALL_OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// Calls that a client has cancelled before they were looked at, at most: one
/// that cancels faster ends its connection ("rapid reset", CVE-2023-44487).
const RESET_UNSEEN_MAX: usize = 20;

/// Calls of one connection that were reset for what the client did wrong, at
/// most; then it ends.
const RESET_FOR_FAULTS_MAX: usize = 128;

/// A link from which nothing has come for a half of
/// [`Settings::ack_timeout`] is asked for life, idle or not, and has the other
/// half for its answer.
const KEEPALIVE_SHARE: u32 = 2;

/// A call that goes too fast waits for its turn for so long at most, and is
/// refused otherwise: its client had better know.
const CALL_PATIENCE: Duration = Duration::from_secs(1);

/// The largest head of a call, in bytes.
const HEAD_BYTES_MAX: u32 = 16 * 1024;

/// What a request has at most beside what fits in a frame, in bytes: names,
/// passwords and sessions.
const BESIDE_FRAME_BYTES_MAX: usize = 1024;

/// The gRPC front of a server: its services.
#[derive(Debug, Clone)]
pub(super) struct Grpc {
    chat: Arc<Chat>,
    routes: Routes,
    keepalive: Duration,
}

/// Whose call it is. Every request carries it as an extension.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Where the connection comes from.
    address: IpAddr,
    /// What is counted of the connection; none where it may go as fast as it can.
    limiter: Option<Arc<RateLimiter>>,
    /// Told when the connection is to end: what is under way is answered.
    stopping: CancellationToken,
    /// The tasks of its calls, which are waited for.
    calls: TaskTracker,
}

impl Caller {
    /// Whose call it is that has these extensions.
    ///
    /// # Errors
    /// None that a client could cause.
    fn of(extensions: &Extensions) -> Result<&Self, Status> {
        extensions.get().ok_or_else(|| Status::internal("the call has come over no connection"))
    }
}

impl Caller {
    /// Counts a call: when it is its turn, if not now.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] where that is too late.
    fn turn(&self) -> Result<Option<Instant>, Refusal> {
        let Some(limiter) = &self.limiter else { return Ok(None) };
        let now = Instant::now();
        let wait = limiter.call(CALL_PATIENCE, now).map_err(too_fast)?;
        Ok((!wait.is_zero()).then(|| now + wait))
    }
}

/// The refusal of a call whose turn would come only after `wait`.
fn too_fast(wait: Duration) -> Refusal {
    Refusal::rate_limited(wait, "too many commands")
}

impl Grpc {
    /// The services over this chat.
    pub(super) fn new(chat: &Arc<Chat>, settings: &Settings) -> Self {
        let request_bytes_max = chat.rules().frame_bytes_max + BESIDE_FRAME_BYTES_MAX;
        let new_chat = ChatServer::new(ChatService::new(Arc::clone(chat), settings.ack_timeout));
        let old_chat = OldChatServer::new(LegacyService::new(Arc::clone(chat)));
        let log = LogWatcherServer::new(LogService::new(Arc::clone(chat), settings.watch_logs.clone()));
        let health = HealthServer::new(HealthService::new(Arc::clone(chat), settings.watch_logs.is_some()));
        let routes = Routes::new(new_chat.max_decoding_message_size(request_bytes_max))
            .add_service(old_chat.max_decoding_message_size(request_bytes_max))
            .add_service(log.max_decoding_message_size(request_bytes_max))
            .add_service(health.max_decoding_message_size(request_bytes_max));
        Self {
            chat: Arc::clone(chat),
            routes: reflection::add(routes, request_bytes_max).prepare(),
            keepalive: settings.ack_timeout / KEEPALIVE_SHARE,
        }
    }

    /// Serves one connection to its end, with all of its calls.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        address: IpAddr,
        shutdown: &ShutdownSignal,
    ) -> io::Result<()> {
        let stream = tokio::select! {
            stream = preface::read(stream, address) => stream?,
            () = poll_fn(|cx| shutdown.poll(cx).map(drop)) => None,
        };
        let Some(stream) = stream else { return Ok(()) };
        let calls = TaskTracker::new();
        let served = self.serve_connection(stream, address, shutdown, &calls).await;
        // The connection is gone, and every call that is left is told so.
        calls.close();
        calls.wait().await;
        served.map_err(io::Error::other)
    }

    async fn serve_connection(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        address: IpAddr,
        shutdown: &ShutdownSignal,
        calls: &TaskTracker,
    ) -> hyper::Result<()> {
        let (limiter, stopping) = (self.chat.limiter(address), CancellationToken::new());
        let stream = RateLimited::new(stream, limiter.clone());
        let caller = Caller { address, limiter, stopping: stopping.clone(), calls: calls.clone() };
        let service = service_fn(|mut request: http::Request<Incoming>| {
            let turn = caller.turn();
            request.extensions_mut().insert(caller.clone());
            let timeout = deadline::timeout(request.headers());
            let call = is_grpc(&request).then(|| self.routes.clone().call(request.map(Body::new)));
            deadline::limit(timeout, async move {
                let Some(call) = call else { return Ok(not_grpc()) };
                match turn {
                    Ok(None) => {}
                    Ok(Some(at)) => tokio::time::sleep_until(at).await,
                    Err(refusal) => return Ok(status::refused(&refusal).into_http()),
                }
                call.await
            })
        });
        let connection = http2::Builder::new(Tracked(calls.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(CALL_OUTPUT_BYTES_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
            .max_local_error_reset_streams(RESET_FOR_FAULTS_MAX)
            .keep_alive_interval(self.keepalive)
            .keep_alive_timeout(self.keepalive)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let served = poll_fn(|cx| {
            match shutdown.poll(cx) {
                Poll::Ready(Shutdown::Close) => return Poll::Ready(Ok(())),
                Poll::Ready(Shutdown::Drain) if !stopping.is_cancelled() => {
                    stopping.cancel();
                    connection.as_mut().graceful_shutdown();
                }
                _ => {}
            }
            connection.as_mut().poll(cx)
        });
        tokio::select! {
            served = served => served,
            () = silence(&stopping, calls) => Ok(()),
        }
    }
}

/// Whether a request says that it is a call. What a web page can have a browser
/// say without asking does not: it has another content type.
fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    let rest = content_type.and_then(|content_type| content_type.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The answer to what is no call, as gRPC wants it.
fn not_grpc() -> http::Response<Body> {
    let mut response = http::Response::new(Body::default());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// Waits until a connection that is to end has had no calls for
/// [`DRAIN_TIMEOUT`]. One that still listens has ended by then: it confirms
/// that it has been told.
async fn silence(stopping: &CancellationToken, calls: &TaskTracker) {
    stopping.cancelled().await;
    calls.close();
    loop {
        calls.wait().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
        if calls.is_empty() {
            return;
        }
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
