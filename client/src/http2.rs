//! One HTTP/2 connection over a stream of bytes, as tonic's clients want it.
//! It never connects again by itself. Knows of the calls over it only how they
//! can end.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hark_grpc::status;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

use crate::dial::Stream;
use crate::link::LinkError;

/// What a server may send on one call before it is read, in bytes.
const CALL_WINDOW_BYTES: u32 = 128 * 1024;

/// What it may send on all calls of a connection, in bytes. There is one call,
/// so its window is the bound. But h2 counts 256 bytes for each shorter DATA
/// frame that waits to be read, and ends a connection where these are more than
/// half of this window: the window of the call has to be full before.
const CONNECTION_WINDOW_BYTES: u32 = 64 * CALL_WINDOW_BYTES;

/// A connection, to make calls on.
#[derive(Debug, Clone)]
pub(crate) struct Http2 {
    requests: SendRequest<Body>,
}

/// How the other end is asked for life: after how long a silence, and how long
/// it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepAlive {
    pub(crate) ping_after: Duration,
    pub(crate) dead_after: Duration,
}

/// Begins to speak HTTP/2. The connection and its calls end when the guard is
/// dropped.
pub(crate) async fn open(
    stream: Box<dyn Stream>,
    keep_alive: Option<KeepAlive>,
) -> Result<(Http2, DropGuard), LinkError> {
    let tasks = Tasks(CancellationToken::new());
    let guard = tasks.0.clone().drop_guard();
    let mut builder = Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if let Some(KeepAlive { ping_after, dead_after }) = keep_alive {
        builder.keep_alive_interval(ping_after).keep_alive_timeout(dead_after);
    }
    let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // What ends a connection is told to its calls.
    hyper::rt::Executor::execute(&tasks, connection.map(drop));
    Ok((Http2 { requests }, guard))
}

/// How calls name a server.
pub(crate) fn origin(origin: &str) -> Result<Uri, LinkError> {
    origin
        .parse()
        .map_err(|bad: http::uri::InvalidUri| io::Error::new(io::ErrorKind::InvalidInput, bad).into())
}

/// Why a call has ended. A status of our own making has a source: then it is
/// the connection that has ended.
pub(crate) fn ended(status: &Status, has_heard: bool) -> LinkError {
    if let Some(source) = status.source() {
        return match has_heard {
            true => LinkError::Ended,
            false => LinkError::NoGrpc(source.to_string()),
        };
    }
    if let Some(refusal) = status::refusal(status) {
        return LinkError::refused(refusal);
    }
    match status.code() {
        Code::Unavailable => LinkError::Unavailable(status.message().to_owned()),
        Code::Unimplemented => LinkError::NoGrpc("it has no such service".to_owned()),
        code => LinkError::Call(format!("{code}: {}", status.message())),
    }
}

impl Service<Request<Body>> for Http2 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Response<Incoming>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.requests.send_request(request).boxed()
    }
}

/// Runs what a connection consists of, until the token is cancelled.
#[derive(Debug, Clone)]
struct Tasks(CancellationToken);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}
