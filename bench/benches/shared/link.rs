//! A connection to a server with little overhead, for benchmarks that compare rates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::BytesMut;
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{OkFields, Reply, Request, RequestId};
use tokio_util::codec::Decoder;

/// A connection with little overhead.
pub(crate) struct Link {
    stream: TcpStream,
    codec: ClientCodec,
    input: BytesMut,
    output: BytesMut,
    last_id: u32,
}

impl Link {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            codec: ClientCodec::new(FRAME_BYTES_MAX),
            input: BytesMut::new(),
            output: BytesMut::new(),
            last_id: 0,
        }
    }

    fn write(&mut self, id: u32, request: &Request) {
        native::encode(RequestId::new(id), request, &mut self.output).unwrap();
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
        self.codec
            .decode(&mut self.input)
            .unwrap()
            .map(|frame| frame.message.unwrap())
    }

    /// Sends a request, and waits for `ok`.
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
