//! A blocking connection with little overhead, in the native framing or that of a WebSocket,
//! for the benchmarks of a server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::{Buf, BytesMut};
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::message::Message as _;
use hark_protocol::{OkFields, Reply, Request, RequestId};
use tokio_util::codec::Decoder;

/// The mask of frames to the server.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];

/// The bytes of a request's id and command.
const HEAD_BYTES: usize = 4 + 15;

/// A connection.
pub(crate) struct Link {
    stream: TcpStream,
    framing: Framing,
    input: BytesMut,
    output: BytesMut,
    last_id: u32,
}

/// The framing of a connection.
enum Framing {
    Native(ClientCodec),
    WebSocket,
}

impl Link {
    /// Connects in the native framing.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(address, Framing::Native(ClientCodec::new(FRAME_BYTES_MAX)))
    }

    /// Opens a WebSocket.
    #[allow(dead_code, reason = "not every benchmark has WebSockets")]
    pub(crate) fn websocket(address: SocketAddr) -> Self {
        let mut link = Self::over(address, Framing::WebSocket);
        let handshake = b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Protocol: hark.v1\r\n\r\n";
        link.stream.write_all(handshake).unwrap();
        loop {
            if let Some(end) = link.input.windows(4).position(|end| end == b"\r\n\r\n") {
                assert!(link.input.starts_with(b"HTTP/1.1 101 "), "{:?}", link.input);
                link.input.advance(end + 4);
                return link;
            }
            link.read();
        }
    }

    fn over(address: SocketAddr, framing: Framing) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            framing,
            input: BytesMut::new(),
            output: BytesMut::new(),
            last_id: 0,
        }
    }

    /// Returns the socket.
    #[allow(dead_code, reason = "not every benchmark needs it")]
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn write(&mut self, id: u32, request: &Request) {
        match &self.framing {
            Framing::Native(_) => {
                native::encode(RequestId::new(id), request, &mut self.output).unwrap();
            }
            Framing::WebSocket => write_websocket(id, request, &mut self.output),
        }
    }

    fn flush(&mut self) {
        self.stream.write_all(&self.output).unwrap();
        self.output.clear();
    }

    fn read(&mut self) {
        let mut buffer = [0; 64 * 1024];
        let count = self.stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the server has closed the connection");
        self.input.extend_from_slice(&buffer[..count]);
    }

    fn next(&mut self) -> Option<Reply> {
        match &mut self.framing {
            Framing::Native(codec) => {
                let frame = codec.decode(&mut self.input).unwrap()?;
                Some(frame.message.unwrap())
            }
            Framing::WebSocket => {
                let (head, payload) = websocket_frame(&self.input)?;
                let mut frame = self.input.split_to(head + payload);
                frame.advance(head);
                let command = std::str::from_utf8(&frame[4..HEAD_BYTES]).unwrap();
                let fields = std::str::from_utf8(&frame[HEAD_BYTES..]).unwrap();
                Some(Reply::parse(command.trim_end_matches('\0'), fields).unwrap())
            }
        }
    }

    /// Sends a request, and waits for `ok`.
    #[allow(dead_code, reason = "not every benchmark needs it")]
    pub(crate) fn ok(&mut self, request: Request) -> OkFields {
        self.last_id = self.last_id % 1_000_000 + 1;
        self.write(self.last_id, &request);
        self.flush();
        loop {
            while let Some(reply) = self.next() {
                match reply {
                    Reply::Ok(fields) => return fields,
                    Reply::List(_) => {}
                    other => panic!("{request:?} got {other:?}"),
                }
            }
            self.read();
        }
    }

    /// Keeps `in_flight` requests in flight until `next` returns `None`. Its argument is
    /// the number of answered requests.
    pub(crate) fn keep_in_flight(
        &mut self,
        in_flight: usize,
        mut next: impl FnMut(u64) -> Option<Request>,
    ) {
        let (mut under_way, mut answered, mut over) = (0, 0, false);
        loop {
            while !over && under_way < in_flight {
                match next(answered) {
                    Some(request) => {
                        self.last_id = self.last_id % 1_000_000 + 1;
                        self.write(self.last_id, &request);
                        under_way += 1;
                    }
                    None => over = true,
                }
            }
            if under_way == 0 {
                break;
            }
            self.flush();
            self.read();
            while let Some(reply) = self.next() {
                assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
                under_way -= 1;
                answered += 1;
            }
        }
        next(answered);
    }
}

/// Writes a request as a masked binary message.
pub(crate) fn write_websocket(id: u32, request: &Request, to: &mut BytesMut) {
    let mut frame = BytesMut::new();
    native::encode(RequestId::new(id), request, &mut frame).unwrap();
    // The message of a WebSocket is a native frame without its length.
    let message = &frame[4..];
    to.extend_from_slice(&[0x82]);
    match u16::try_from(message.len()).expect("a short message") {
        length @ 0..126 => to.extend_from_slice(&[0x80 | length as u8]),
        length => {
            to.extend_from_slice(&[0x80 | 126]);
            to.extend_from_slice(&length.to_be_bytes());
        }
    }
    to.extend_from_slice(&MASK);
    let masked = message.iter().zip(MASK.iter().cycle());
    to.extend(masked.map(|(byte, mask)| byte ^ mask));
}

/// Returns the bytes of the head and of the payload of the first frame, once it is complete.
pub(crate) fn websocket_frame(input: &[u8]) -> Option<(usize, usize)> {
    let (head, payload) = match *input.get(1)? & 0x7f {
        126 => {
            let length = u16::from_be_bytes([*input.get(2)?, *input.get(3)?]);
            (4, usize::from(length))
        }
        127 => panic!("a long message"),
        length => (2, usize::from(length)),
    };
    (input.len() >= head + payload).then_some((head, payload))
}
