//! A connection in the WebSocket framing, by an independent client library.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use hark_protocol::framing::native;
use hark_protocol::limits::LENGTH_BYTES;
use hark_protocol::{Frame, Reply, Request, RequestId};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::Link;

/// A WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    stream: WebSocketStream<TcpStream>,
    /// The close of the server.
    closed: Option<CloseFrame>,
}

impl WebSocket {
    /// Connects; `None` if there is no server.
    ///
    /// # Panics
    /// If the server refuses the handshake.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let mut request = format!("ws://{address}/v1/ws")
            .into_client_request()
            .expect("an address");
        let subprotocol = HeaderValue::from_static("hark.v1");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", subprotocol);
        match client_async(request, stream).await {
            Ok((stream, _)) => Some(Self {
                stream,
                closed: None,
            }),
            Err(error @ Error::Http(_)) => panic!("{error}"),
            Err(_) => None,
        }
    }

    /// Sends one message of the WebSocket.
    pub async fn send(&mut self, message: Message) -> Option<()> {
        self.stream.send(message).await.ok()
    }

    /// Returns the close of the server, once the connection has ended.
    #[must_use]
    pub const fn closed(&self) -> Option<&CloseFrame> {
        self.closed.as_ref()
    }

    /// Returns the client's address of the connection.
    ///
    /// # Panics
    /// If the connection is closed.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().unwrap()
    }

    /// Stops reading and writing without closing the connection.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }

    async fn write(&mut self, requests: Vec<(u32, Request)>) -> Option<()> {
        for (id, request) in requests {
            self.stream.feed(binary(id, &request)).await.ok()?;
        }
        self.stream.flush().await.ok()
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        loop {
            match self.stream.next().await?.ok()? {
                Message::Binary(message) => return Some(decode(message)),
                Message::Close(close) => self.closed = close,
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Returns a request as a message.
fn binary(id: u32, request: &Request) -> Message {
    let mut frame = BytesMut::new();
    native::encode(RequestId::new(id), request, &mut frame).unwrap();
    Message::Binary(frame.split_off(LENGTH_BYTES).freeze())
}

fn decode(message: Bytes) -> Frame<Reply> {
    let frame = native::decode_body(&mut BytesMut::from(message)).expect("id and message");
    Frame::new(frame.id, frame.message.expect("a message of the protocol"))
}

impl Link for WebSocket {
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>> {
        Box::pin(self.write(requests))
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        Box::pin(self.read())
    }
}
