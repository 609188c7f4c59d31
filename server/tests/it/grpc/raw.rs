//! HTTP/2 frame by frame, for input that no client library sends.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

/// The flag of DATA and HEADERS for the end of the stream.
pub(crate) const END_STREAM: u8 = 1;
/// The flag of SETTINGS and PING.
pub(crate) const ACK: u8 = 1;
/// The flag of HEADERS and CONTINUATION.
pub(crate) const END_HEADERS: u8 = 4;

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// An HTTP/2 connection.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    /// Connects, and sends the preface and the settings.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        raw.0.write_all(PREFACE).await.unwrap();
        raw.write(&frame(SETTINGS, 0, 0, b"")).await;
        raw
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Sends the headers of a call.
    pub(crate) async fn call(&mut self, stream: u32, path: &str) {
        self.write(&headers(stream, path)).await;
    }

    /// Sends the message of a call and its end.
    pub(crate) async fn data(&mut self, stream: u32, payload: &[u8]) {
        self.write(&frame(DATA, END_STREAM, stream, payload)).await;
    }

    /// Returns the next frame, or `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream,
            payload,
        })
    }

    /// Returns the next frame of this kind, and drops those before it.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Returns the body of the answer to a call.
    pub(crate) async fn answer(&mut self, stream: u32) -> Vec<u8> {
        let mut answer = Vec::new();
        loop {
            let frame = self.next().await.expect("an open connection");
            if frame.stream == stream && frame.kind == DATA {
                answer.extend(frame.payload);
            } else if frame.stream == stream
                && frame.kind == HEADERS
                && frame.flags & END_STREAM != 0
            {
                return answer;
            }
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns a HEADERS frame of a call.
pub(crate) fn headers(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(path))
}

/// Returns the header list of a call.
pub(crate) fn head(path: &str) -> Vec<u8> {
    head_of(path, "application/grpc")
}

/// Encodes headers in HPACK (RFC 7541) without compression: `POST` and
/// `http` from the static table, the rest as literals.
pub(crate) fn head_of(path: &str, content_type: &str) -> Vec<u8> {
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let field = |name: &str, value: &str| [vec![0], literal(name), literal(value)].concat();
    [
        vec![0x83, 0x86, 0x04],
        literal(path),
        field(":authority", "hark"),
        field("content-type", content_type),
        field("te", "trailers"),
    ]
    .concat()
}

/// Returns a message in the framing of gRPC.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    [
        &[0],
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}
