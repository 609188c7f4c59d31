//! One connection over one front: requests out and replies in, without checks.
//! A connection may end at any time, which is reported as `None`.

use std::fmt::Debug;
use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::BytesMut;
use futures::future::BoxFuture;
use hark_protocol::framing::native::ClientCodec;
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Frame, Reply, Request, RequestId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::{Decoder, Encoder};

use crate::{Bidi, Calls, HttpRequests, WebSocket, client_config};

/// A transport for requests and replies.
pub trait Link: Debug + Send {
    /// Sends these requests, in one write if the transport supports it.
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>>;

    /// Returns the next reply. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>>;
}

/// A transport and protocol of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// The native framing.
    Native,
    /// The native framing over TLS.
    Tls,
    /// The WebSocket framing.
    WebSocket,
    /// `BiDiChat` over gRPC.
    Bidi,
    /// gRPC calls for everything: `Send`, `Connect`, `Ack` and the others.
    Calls,
    /// Requests of HTTP/1.1.
    Http,
}

impl Front {
    /// Opens a connection; `None` if there is no server.
    pub async fn link(self, address: SocketAddr) -> Option<Box<dyn Link>> {
        Some(match self {
            Self::Native => Box::new(Native::connect(address).await?),
            Self::Tls => Box::new(NativeTls::connect_tls(address).await?),
            Self::WebSocket => Box::new(WebSocket::connect(address).await?),
            Self::Bidi => Box::new(Bidi::connect(address).await?),
            Self::Calls => Box::new(Calls::connect(address).await?),
            Self::Http => Box::new(HttpRequests::connect(address).await?),
        })
    }
}

impl<L: Link + ?Sized> Link for Box<L> {
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>> {
        (**self).write_all(requests)
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        (**self).next()
    }
}

/// A connection in the native framing.
#[derive(Debug)]
pub struct Native<S = TcpStream> {
    stream: S,
    codec: ClientCodec,
    input: BytesMut,
}

impl Native {
    /// Connects; `None` if there is no server.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self::over(stream))
    }
}

/// A connection in the native framing over TLS.
pub type NativeTls = Native<TlsStream<TcpStream>>;

impl NativeTls {
    /// Connects; `None` if there is no server.
    ///
    /// # Panics
    /// If the server's certificate is not trusted by the tests.
    pub async fn connect_tls(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let connector = TlsConnector::from(client_config(&[]));
        match connector.connect(address.ip().into(), stream).await {
            Ok(stream) => Some(Self::over(stream)),
            Err(error) if error.kind() == ErrorKind::InvalidData => panic!("{error}"),
            Err(_) => None,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Native<S> {
    /// Returns a client over this stream.
    #[must_use]
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            codec: ClientCodec::new(FRAME_BYTES_MAX),
            input: BytesMut::new(),
        }
    }

    /// Returns the stream.
    #[must_use]
    pub const fn stream(&self) -> &S {
        &self.stream
    }

    /// Stops reading and writing without closing the connection.
    #[must_use]
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Writes raw bytes.
    pub async fn write_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()?;
        self.stream.flush().await.ok()
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        loop {
            if let Some(frame) = self
                .codec
                .decode(&mut self.input)
                .expect("the native framing")
            {
                return Some(Frame::new(
                    frame.id,
                    frame.message.expect("a message of the protocol"),
                ));
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return None,
                Ok(_) => {}
                // A killed server resets its connections.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                    ) =>
                {
                    return None;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Debug + Send> Link for Native<S> {
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>> {
        let mut output = BytesMut::new();
        for (id, request) in requests {
            self.codec
                .encode(Frame::new(RequestId::new(id), request), &mut output)
                .unwrap();
        }
        Box::pin(async move { self.write_bytes(&output).await })
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        Box::pin(self.read())
    }
}
