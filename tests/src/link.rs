//! One connection by one way into the server, as the tests need it: requests
//! out, replies in, and no opinion about either. It may end at any time, which
//! is then said by `None`.

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

use crate::{Bidi, Calls, client_config};

/// What carries the requests and the replies of the protocol.
pub trait Link: Debug + Send {
    /// Says these requests, in one go where the way permits it.
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>>;

    /// The next reply. Nothing is lost where the future is dropped.
    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>>;
}

/// A way into the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// The wire protocol in its native framing.
    Native,
    /// The same inside TLS.
    Tls,
    /// A `BiDiChat` over gRPC.
    Bidi,
    /// Calls of gRPC for everything: `Send`, `Connect`, `Ack` and the others.
    Calls,
}

impl Front {
    /// A connection of its own, where there is a server.
    pub async fn link(self, address: SocketAddr) -> Option<Box<dyn Link>> {
        Some(match self {
            Self::Native => Box::new(Native::connect(address).await?),
            Self::Tls => Box::new(NativeTls::connect_tls(address).await?),
            Self::Bidi => Box::new(Bidi::connect(address).await?),
            Self::Calls => Box::new(Calls::connect(address).await?),
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

/// The wire protocol in its native framing.
#[derive(Debug)]
pub struct Native<S = TcpStream> {
    stream: S,
    codec: ClientCodec,
    input: BytesMut,
}

impl Native {
    /// Connects, where there is a server.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self::over(stream))
    }
}

/// The same inside TLS.
pub type NativeTls = Native<TlsStream<TcpStream>>;

impl NativeTls {
    /// Connects, where there is a server.
    ///
    /// # Panics
    /// Where it has no certificate that the tests trust.
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
    /// A client over this.
    #[must_use]
    pub fn over(stream: S) -> Self {
        Self { stream, codec: ClientCodec::new(FRAME_BYTES_MAX), input: BytesMut::new() }
    }

    /// Its socket.
    #[must_use]
    pub const fn stream(&self) -> &S {
        &self.stream
    }

    /// Says no more and takes no more, without a word to the server.
    #[must_use]
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Writes bytes as they are.
    pub async fn write_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()?;
        self.stream.flush().await.ok()
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.input).expect("the native framing") {
                return Some(Frame::new(frame.id, frame.message.expect("a message of the protocol")));
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return None,
                Ok(_) => {}
                // A server that is killed resets its connections.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) =>
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
            self.codec.encode(Frame::new(RequestId::new(id), request), &mut output).unwrap();
        }
        Box::pin(async move { self.write_bytes(&output).await })
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        Box::pin(self.read())
    }
}
