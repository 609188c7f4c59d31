//! One HTTP/2 connection with many calls, which gRPC and HTTP share by content type. It
//! owns the connection; each call belongs to one of the two fronts.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hark_grpc::status;
use hark_protocol::Refusal;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;

use super::caller::Caller;
use super::drain::DRAIN_TIMEOUT;
use super::grpc::{Grpc, is_grpc};
use super::http::{self as plain, Http, ResponseBody};
use super::rate_limited::RateLimited;
use super::read_within::ReadWithin;
use crate::chat::{Chat, Shutdown, ShutdownSignal};

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

/// The largest header list of a call, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;

/// The calls of HTTP/2 connections.
#[derive(Debug, Clone)]
pub(super) struct Http2 {
    chat: Arc<Chat>,
    grpc: Grpc,
    http: Http,
    /// How long a client may leave a response unread.
    ack_timeout: Duration,
}

impl Http2 {
    /// Returns both fronts, for clients that answer pings within `ack_timeout`.
    pub(super) fn new(chat: &Arc<Chat>, grpc: Grpc, http: Http, ack_timeout: Duration) -> Self {
        Self {
            chat: Arc::clone(chat),
            grpc,
            http,
            ack_timeout,
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
        let keepalive = self.ack_timeout / KEEPALIVE_SHARE;
        let limiter = self.chat.rate_limiter(address);
        let stopping = CancellationToken::new();
        let stream = RateLimited::new(stream, limiter.clone());
        let caller = Caller {
            address,
            client: None,
            connection: Arc::clone(shutdown),
            limiter,
            stopping: stopping.clone(),
            calls: calls.clone(),
        };
        let service = service_fn(|request: http::Request<Incoming>| {
            let (grpc, http, caller) = (self.grpc.clone(), self.http.clone(), caller.clone());
            let timeout = self.ack_timeout;
            async move {
                if is_grpc(&request) {
                    let response = match http.caller_of_grpc(request.headers(), caller) {
                        Ok(caller) => grpc.call(request, caller).await,
                        Err(refusal) => status::refused(&refusal).into_http(),
                    };
                    return Ok::<_, Infallible>(response);
                }
                let response = http.respond(request, &caller).await;
                Ok(response.map(|body| watched(body, timeout, &caller.calls)))
            }
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
            .keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive)
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

/// Returns the body of an HTTP response. The client must read a long one.
fn watched(body: ResponseBody, timeout: Duration, calls: &TaskTracker) -> Body {
    let bytes = body.size_hint().exact();
    let is_short = bytes.is_some_and(|bytes| bytes <= CALL_OUTPUT_BYTES_MAX as u64);
    let call = THIS_CALL.try_with(CancellationToken::clone);
    match call {
        Ok(call) if !is_short => Body::new(ReadWithin::new(body, timeout, call, calls)),
        _ => Body::new(body),
    }
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
    let service = service_fn(|request: http::Request<Incoming>| {
        let response = if is_grpc(&request) {
            status::refused(refusal).into_http()
        } else {
            plain::refusal(refusal).map(Body::new)
        };
        std::future::ready(Ok::<_, Infallible>(response))
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

tokio::task_local! {
    /// Ends the call whose task this is: its stream is reset.
    static THIS_CALL: CancellationToken;
}

/// The executor of a connection's calls, which tracks their tasks.
#[derive(Debug, Clone)]
struct TrackedExecutor(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for TrackedExecutor {
    fn execute(&self, call: F) {
        let token = CancellationToken::new();
        let call = THIS_CALL.scope(token.clone(), call);
        self.0.spawn(async move {
            token.run_until_cancelled(call).await;
        });
    }
}
