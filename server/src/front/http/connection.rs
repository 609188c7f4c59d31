//! One HTTP/1.1 connection, from its first request to its end or until it becomes a
//! WebSocket.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use http::header::CONNECTION;
use http::{HeaderValue, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::HttpError;
use super::head::{BodyLength, HEAD_BYTES_MAX};
use super::in_flight::{CountedBody, InFlight};
use super::response::ResponseBody;
use super::route::{Operation, Parameters, Resource};
use super::stream::RequestStream;
use super::{Http, finish, is_api, websocket};
use crate::chat::{ClientConnection, Shutdown, ShutdownSignal};
use crate::front::caller::Caller;
use crate::front::drain;
use crate::front::rate_limited::RateLimited;
use crate::front::wire::{Framing, Wire};
use crate::metrics::FrontKind;
use crate::sync::Mutex;

/// The size of hyper's buffer for input.
const BUFFER_BYTES: usize = 16 * 1024;

type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response<CountedBody<ResponseBody>>, Infallible>> + Send>>;

/// The state that the requests of a connection share.
struct ConnectionState {
    http: Http,
    caller: Caller,
    in_flight: Arc<InFlight>,
    /// The caller of the request that has made the connection a WebSocket.
    // Locked because requests are futures of their own. Held for one assignment.
    upgraded: Mutex<Option<Caller>>,
}

impl Http {
    /// Serves one connection, of which these first bytes were read, to its end. A connection
    /// that becomes a WebSocket is returned.
    ///
    /// # Errors
    /// An error of the socket.
    pub(in crate::front) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        first: BytesMut,
        address: IpAddr,
        shutdown: Arc<ShutdownSignal>,
    ) -> io::Result<Option<Wire<S>>> {
        let counted = self.0.chat.metrics().open(FrontKind::Http1);
        let limiter = self.0.chat.rate_limiter(address);
        let stream = RateLimited::new(stream, limiter.clone());
        let state = Arc::new(ConnectionState {
            http: self.clone(),
            caller: Caller {
                address,
                client: None,
                connection: Arc::clone(&shutdown),
                limiter,
                stopping: CancellationToken::new(),
                calls: TaskTracker::new(),
            },
            in_flight: Arc::default(),
            upgraded: Mutex::default(),
        });
        let in_flight = Arc::clone(&state.in_flight);
        let stream = RequestStream::new(stream, first, in_flight, self.0.ack_timeout);
        let Some((stream, input)) = serve_requests(stream, &state, &shutdown).await else {
            return Ok(None);
        };
        let upgraded = state.upgraded.lock().take();
        let Some(caller) = upgraded else {
            drain::close(stream, &mut BytesMut::new()).await?;
            return Ok(None);
        };
        drop(counted);
        let counted = self.0.chat.metrics().open(FrontKind::WebSocket);
        let (chat, limiter) = (Arc::clone(&self.0.chat), caller.limiter);
        let frame_bytes_max = chat.rules().frame_bytes_max;
        shutdown.set_address(caller.address);
        let connection = ClientConnection::new(chat, caller.address, shutdown).limited_by(limiter);
        let framing = Framing::websocket(frame_bytes_max);
        let wire = Wire::new(stream, framing, connection, self.0.ack_timeout);
        let wire = wire.with_input(input).counted(counted);
        Ok(Some(wire.of_client(caller.client)))
    }
}

/// Serves requests until the connection ends or becomes a WebSocket. Returns the stream and
/// its unread input, unless the connection is to be closed at once.
async fn serve_requests<S: AsyncRead + AsyncWrite + Unpin>(
    stream: RequestStream<RateLimited<S>>,
    state: &Arc<ConnectionState>,
    shutdown: &ShutdownSignal,
) -> Option<(S, BytesMut)> {
    let service = service_fn(|request: http::Request<Incoming>| -> ResponseFuture {
        let state = Arc::clone(state);
        // Taken here, in the order of the requests.
        let length = state.in_flight.take_length();
        Box::pin(async move {
            let mut response = state.respond(request, length).await;
            if length == BodyLength::Unknown {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            let in_flight = Arc::clone(&state.in_flight);
            Ok(response.map(|body| CountedBody::new(body, in_flight)))
        })
    });
    let mut connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES)
        .max_header_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let stopping = &state.caller.stopping;
    let served = poll_fn(|cx| {
        match shutdown.poll(cx) {
            Poll::Ready(Shutdown::Close) => return Poll::Ready(None),
            Poll::Ready(Shutdown::Drain) if !stopping.is_cancelled() => {
                stopping.cancel();
                Pin::new(&mut connection).graceful_shutdown();
            }
            _ => {}
        }
        connection.poll_without_shutdown(cx).map(Some)
    });
    if let Err(error) = served.await? {
        tracing::debug!(address = %state.caller.address, %error, "HTTP connection failed");
    }
    let parts = connection.into_parts();
    let (stream, rest) = parts.io.into_inner().into_parts();
    let mut input = BytesMut::from(parts.read_buf);
    input.extend_from_slice(&rest);
    Some((stream.into_inner(), input))
}

impl ConnectionState {
    async fn respond(
        &self,
        request: http::Request<Incoming>,
        length: BodyLength,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_api = is_api(&parts);
        let answered = async {
            if length == BodyLength::Ambiguous {
                let error = HttpError::bad_request("both Content-Length and Transfer-Encoding");
                return Err(error.closing());
            }
            let caller = self.http.admit(&parts, &self.caller).await?;
            match Resource::of(&parts.uri)?.operation(&parts.method)? {
                Operation::WebSocket => {
                    self.http.0.guard.check_websocket(&parts)?;
                    Parameters::of(&parts.uri, &[])?;
                    let response = websocket::accept(&parts)?;
                    *self.upgraded.lock() = Some(caller);
                    Ok(response)
                }
                operation => self.http.run(operation, parts, body, &caller).await,
            }
        };
        finish(answered.await, is_api)
    }
}
