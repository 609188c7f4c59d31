//! Opening of connections. The result is a byte stream, independent of the
//! protocol spoken over it.

use std::fmt;
use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A bidirectional byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens connections to one server. The caller limits the time by dropping the
/// future.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens one connection.
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;
}

/// Plain TCP with `TCP_NODELAY`.
#[derive(Debug)]
pub struct TcpDial {
    address: String,
}

impl TcpDial {
    /// Returns a dialer for the server at `address`, `HOST:PORT`. The name is
    /// resolved anew for each connection.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Dial for TcpDial {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async { Ok(Box::new(self.connect().await?) as Box<dyn Stream>) })
    }
}
