//! The gRPC front: one HTTP/2 connection with many calls. It owns the connection and
//! translates; each call is a separate client connection to the chat. It has no rules.
//!
//! | module | owns |
//! | --- | --- |
//! | `chat` | `hark.v1.Chat` |
//! | `list` | its `List` |
//! | `connect` | its `Connect` and `Ack`, and the receipts that link them |
//! | `bidi` | its `BiDiChat` |
//! | `legacy` | `helloworld.Chat` |
//! | `logs` | `hark.v1.LogWatcher`; `hark.v1.Admin` is in [`crate::administration`] |
//! | `health` | the standard health service |
//! | `reflection` | the standard reflection services |
//! | `preface` | the first bytes of a connection |
//! | `rate_limited` | a byte stream read at a limited rate |
//! | `call` | the client connection of one call |
//! | `abortable` | a response stream that can be dropped while it is not polled |
//! | `deadline` | the client's deadline of a call |

mod abortable;
mod bidi;
mod call;
mod chat;
mod connect;
mod deadline;
mod health;
mod legacy;
mod list;
mod logs;
mod preface;
mod rate_limited;
mod reflection;
mod services;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hark_grpc::helloworld::chat_server::ChatServer as OldChatServer;
use hark_grpc::status;
use hark_grpc::v1::admin_server::AdminServer;
use hark_grpc::v1::chat_server::ChatServer;
use hark_grpc::v1::log_watcher_server::LogWatcherServer;
use hark_protocol::Refusal;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Extensions, Status};
use tonic_health::pb::health_server::HealthServer;

use super::Settings;
use super::drain::DRAIN_TIMEOUT;
use crate::administration::{AdminService, AdminSlot};
use crate::chat::{Chat, RateLimiter, Shutdown, ShutdownSignal};
use chat::ChatService;
use health::HealthService;
use legacy::LegacyService;
use logs::LogService;
use rate_limited::RateLimited;
use services::Services;

pub use logs::{MayWatch, WatchLogs};

/// The maximum number of open calls of one connection. Further calls wait in the client.
const STREAMS_MAX: u32 = 128;

/// The flow-control window of a call, in bytes.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;

/// The flow-control window of a connection, in bytes. It exceeds the sum of its calls'
/// windows (16 MiB), so that an unread call does not block the others. The factor of 4
/// leaves room for small frames: `h2` charges each unread frame for the bytes that it
/// lacks to 256, and closes a connection when the charges reach half of this window.
/// Messages of 100 bytes on all calls stay below that; a flood of tiny frames does not.
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAMS_MAX * STREAM_WINDOW_BYTES;

/// The send buffer of a call, in bytes. Messages beyond it stay in the store.
const CALL_OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The maximum number of calls that a client may cancel before the server accepts them. A
/// client that cancels more is disconnected ("rapid reset", CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;

/// The maximum number of calls of one connection that are reset because of client errors.
/// Beyond it, the connection is closed.
const ERROR_RESETS_MAX: usize = 128;

/// The keepalive interval and timeout, each as a fraction of [`Settings::ack_timeout`].
const KEEPALIVE_SHARE: u32 = 2;

/// The longest delay of a call by the rate limit. A call that would wait longer is
/// refused, so that its client learns of the limit.
const CALL_WAIT_MAX: Duration = Duration::from_secs(1);

/// The largest header list of a call, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;

/// The maximum number of bytes of a request besides its frame: names, passwords and
/// sessions.
const METADATA_BYTES_MAX: usize = 1024;

/// The gRPC front of a server.
#[derive(Debug, Clone)]
pub(super) struct Grpc {
    chat: Arc<Chat>,
    services: Services,
    keepalive: Duration,
}

/// The connection of a call, carried by every request as an extension.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The address of the peer.
    address: IpAddr,
    /// The signal of its connection.
    connection: Arc<ShutdownSignal>,
    /// The rate limiter of the connection; none if it is exempt.
    limiter: Option<Arc<RateLimiter>>,
    /// Cancelled when the connection drains.
    stopping: CancellationToken,
    /// The tasks of its calls, joined at its end.
    calls: TaskTracker,
}

impl Caller {
    /// Returns the connection of the call with these extensions.
    ///
    /// # Errors
    /// An internal status, if the extension is missing.
    fn of(extensions: &Extensions) -> Result<&Self, Status> {
        extensions
            .get()
            .ok_or_else(|| Status::internal("the call has no connection"))
    }

    /// Charges a call, and returns the time at which it may run, if that is later than
    /// now.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] if it would wait longer than
    /// [`CALL_WAIT_MAX`].
    fn admit_call(&self) -> Result<Option<Instant>, Refusal> {
        let Some(limiter) = &self.limiter else {
            return Ok(None);
        };
        let now = Instant::now();
        let wait = limiter
            .charge_call(CALL_WAIT_MAX, now)
            .map_err(too_many_commands)?;
        Ok((!wait.is_zero()).then(|| now + wait))
    }
}

/// Returns the address of the caller, from the extensions of a call.
///
/// # Errors
/// As [`Caller::of`].
pub(crate) fn caller_address(extensions: &Extensions) -> Result<IpAddr, Status> {
    Caller::of(extensions).map(|caller| caller.address)
}

/// Returns the refusal of a call that would wait too long.
fn too_many_commands(wait: Duration) -> Refusal {
    Refusal::rate_limited(wait, "too many commands")
}

impl Grpc {
    /// Returns the services over `chat`.
    pub(super) fn new(chat: &Arc<Chat>, settings: &Settings, admin: AdminSlot) -> Self {
        let request_bytes_max = chat.rules().frame_bytes_max + METADATA_BYTES_MAX;
        let new_chat = ChatServer::new(ChatService::new(Arc::clone(chat), settings.ack_timeout));
        let old_chat = OldChatServer::new(LegacyService::new(Arc::clone(chat)));
        let log = LogWatcherServer::new(LogService::new(
            Arc::clone(chat),
            settings.watch_logs.clone(),
        ));
        let admin = AdminServer::new(AdminService::new(admin));
        let health = HealthServer::new(HealthService::new(
            Arc::clone(chat),
            settings.watch_logs.is_some(),
        ));
        let services = services::Builder::default()
            .add(new_chat.max_decoding_message_size(request_bytes_max))
            .add(old_chat.max_decoding_message_size(request_bytes_max))
            .add(log.max_decoding_message_size(request_bytes_max))
            .add(health.max_decoding_message_size(request_bytes_max))
            .add(admin.max_decoding_message_size(request_bytes_max));
        Self {
            chat: Arc::clone(chat),
            services: reflection::add(services, request_bytes_max).build(),
            keepalive: settings.ack_timeout / KEEPALIVE_SHARE,
        }
    }

    /// Serves one connection to its end, with all its calls.
    ///
    /// # Errors
    /// An error of the connection.
    pub(super) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        address: IpAddr,
        shutdown: &Arc<ShutdownSignal>,
    ) -> io::Result<()> {
        let stream = tokio::select! {
            stream = preface::read(stream, address) => stream?,
            () = poll_fn(|cx| shutdown.poll(cx).map(drop)) => None,
        };
        let Some(stream) = stream else { return Ok(()) };
        let calls = TaskTracker::new();
        let served = self
            .serve_connection(stream, address, shutdown, &calls)
            .await;
        // The end of the connection cancels its remaining calls.
        calls.close();
        calls.wait().await;
        served.map_err(io::Error::other)
    }

    async fn serve_connection(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        address: IpAddr,
        shutdown: &Arc<ShutdownSignal>,
        calls: &TaskTracker,
    ) -> hyper::Result<()> {
        let (limiter, stopping) = (self.chat.rate_limiter(address), CancellationToken::new());
        let stream = RateLimited::new(stream, limiter.clone());
        let caller = Caller {
            address,
            connection: Arc::clone(shutdown),
            limiter,
            stopping: stopping.clone(),
            calls: calls.clone(),
        };
        let service = service_fn(|mut request: http::Request<Incoming>| {
            let turn = caller.admit_call();
            request.extensions_mut().insert(caller.clone());
            let timeout = deadline::timeout(request.headers());
            let call = is_grpc(&request).then(|| self.services.call(request.map(Body::new)));
            deadline::limit(timeout, async move {
                let Some(call) = call else {
                    return Ok(not_grpc());
                };
                match turn {
                    Ok(None) => {}
                    Ok(Some(at)) => tokio::time::sleep_until(at).await,
                    Err(refusal) => return Ok(status::refused(&refusal).into_http()),
                }
                call.await
            })
        });
        let connection = http2::Builder::new(TrackedExecutor(calls.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(CALL_OUTPUT_BYTES_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(ERROR_RESETS_MAX)
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
            () = drained(&stopping, calls) => Ok(()),
        }
    }
}

/// Returns whether a request is a gRPC call. The content type keeps out requests that a
/// web page can make a browser send without a CORS preflight.
fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    let rest = content_type.and_then(|content_type| content_type.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Returns the response to a request that is not a call, as the gRPC specification
/// demands.
fn not_grpc() -> http::Response<Body> {
    let mut response = http::Response::new(Body::default());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// Waits until a draining connection has had no calls for [`DRAIN_TIMEOUT`]. A responsive
/// peer has acknowledged the GOAWAY and closed by then.
async fn drained(stopping: &CancellationToken, calls: &TaskTracker) {
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

/// Refuses every call of a connection until `timeout`.
///
/// # Errors
/// An error of the connection.
pub(super) async fn refuse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    refusal: &Refusal,
    timeout: Duration,
) -> io::Result<()> {
    let status = status::refused(refusal);
    let service = service_fn(|_: http::Request<Incoming>| {
        std::future::ready(Ok::<http::Response<Body>, Infallible>(
            status.clone().into_http(),
        ))
    });
    let calls = TaskTracker::new();
    let connection = http2::Builder::new(TrackedExecutor(calls.clone()))
        .max_concurrent_streams(1)
        .serve_connection(TokioIo::new(stream), service);
    let served = tokio::time::timeout(timeout, connection).await;
    calls.close();
    calls.wait().await;
    served.unwrap_or(Ok(())).map_err(io::Error::other)
}

/// The executor of a connection's calls, which tracks their tasks.
#[derive(Debug, Clone)]
struct TrackedExecutor(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for TrackedExecutor {
    fn execute(&self, call: F) {
        self.0.spawn(call);
    }
}
