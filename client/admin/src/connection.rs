//! [`Connection`]: an HTTP/2 connection to a server, and the credentials of its calls. It
//! never reconnects.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hark_grpc::admin::add_credentials;
use hark_grpc::v1::admin_client::AdminClient;
use hark_protocol::{Password, Refusal, UserName};
use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Request;
use tonic::body::Body;
use tower_service::Service;

/// The origin of calls without a name of the server.
const LOCAL: &str = "http://harkd";

/// The time after which a silent server is asked for a sign of life, and that it has for it.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    pub(crate) client: AdminClient<Calls>,
    credentials: Option<(UserName, Password)>,
}

/// The calls of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Calls(SendRequest<Body>);

impl Connection {
    /// Performs the handshake over a byte stream. Calls name the server by `origin`, and
    /// carry the credentials, if there are any. Needs a runtime, on which the connection runs
    /// until it is dropped.
    ///
    /// # Errors
    /// If the peer does not speak HTTP/2, or the user's name cannot be sent.
    pub async fn open<S>(
        stream: S,
        origin: Option<Uri>,
        credentials: Option<(UserName, Password)>,
    ) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(|error| error.to_string())?;
        // Ends with the last call; the calls report its errors.
        tokio::spawn(connection);
        let client = AdminClient::with_origin(
            Calls(requests),
            origin.unwrap_or_else(|| Uri::from_static(LOCAL)),
        );
        let connection = Self {
            client,
            credentials,
        };
        connection
            .request(())
            .map_err(|refusal| refusal.message().into_owned())?;
        Ok(connection)
    }

    /// Returns a call with the credentials.
    pub(crate) fn request<M>(&self, message: M) -> Result<Request<M>, Refusal> {
        let mut request = Request::new(message);
        if let Some((user, password)) = &self.credentials {
            add_credentials(request.metadata_mut(), user, password)?;
        }
        Ok(request)
    }
}

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}
