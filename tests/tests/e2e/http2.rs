//! HTTP over HTTP/2 from clients that curl cannot play: one that does not read, and one that
//! asks a draining server.

use std::time::Duration;

use hark_tests::{Harkd, TIMEOUT, Wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection that never enlarges its windows, so that the server can send 65,535 bytes.
struct Http2 {
    stream: TcpStream,
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Http2 {
    async fn open(server: &Harkd) -> Self {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let mut http2 = Self { stream };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        http2.stream.write_all(preface).await.unwrap();
        http2.write(SETTINGS, 0, 0, &[]).await;
        http2
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// Makes a request without a body.
    async fn request(&mut self, stream: u32, is_post: bool, path: &str) {
        // HPACK: `:method` and `:scheme` of the static table, and literals without indexing.
        let mut block = vec![if is_post { 0x83 } else { 0x82 }, 0x86];
        for (index, value) in [(0x04, path), (0x01, "localhost")] {
            block.extend([index, u8::try_from(value.len()).unwrap()]);
            block.extend(value.as_bytes());
        }
        self.write(HEADERS, END_HEADERS | END_STREAM, stream, &block)
            .await;
    }

    /// Returns the next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            Some(Frame {
                kind: head[3],
                flags: head[4],
                stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
                payload,
            })
        };
        let read = tokio::time::timeout(TIMEOUT, reading).await;
        read.expect("nothing came in time")
    }

    /// Returns the next frame for which `is_wanted` holds, and answers pings until then.
    async fn wait_for(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection has ended");
            if is_wanted(&frame) {
                return frame;
            }
            if frame.kind == PING && frame.flags & ACK == 0 {
                self.write(PING, ACK, 0, &frame.payload).await;
            }
        }
    }

    /// Returns the first byte of the headers of a response, the index of a status.
    async fn status(&mut self, stream: u32) -> u8 {
        let headers = |frame: &Frame| (frame.kind, frame.stream) == (HEADERS, stream);
        self.wait_for(headers).await.payload[0]
    }
}

/// The index of `:status 200` in the static table of HPACK.
const OK: u8 = 0x88;

#[tokio::test]
async fn response_that_is_never_read_is_reset_in_time() {
    let server = Harkd::builder().arg("--ack-timeout=3").start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let text = "x".repeat(60_000);
    for _ in 0..10 {
        alice.sent("bob", &text).await;
    }
    let mut client = Http2::open(&server).await;
    client.request(1, true, "/v1/receive/bob?ack=auto").await;
    assert_eq!(client.status(1).await, OK);
    let reset = |frame: &Frame| (frame.kind, frame.stream) == (RST_STREAM, 1);
    client.wait_for(reset).await;
    server.wait_for_log("slow consumer: does not read");
    // The delivery has ended, and the connection has not.
    alice.receive("bob").await;
    client.request(3, false, "/healthz").await;
    assert_eq!(client.status(3).await, OK);
    let quiet = tokio::time::timeout(Duration::from_millis(100), alice.next());
    drop(quiet.await);
}

#[tokio::test]
async fn draining_server_is_not_ready() {
    let mut server = Harkd::start();
    Wire::connect(server.address()).await.create("bob").await;
    let mut client = Http2::open(&server).await;
    client.request(1, false, "/readyz").await;
    assert_eq!(client.status(1).await, OK);
    client.request(3, true, "/v1/receive/bob").await;
    assert_eq!(client.status(3).await, OK);
    server.signal("TERM");
    // The server learns from the answer to its ping that no request is on its way; until then,
    // it serves them.
    loop {
        let frame = client.next().await.unwrap();
        if frame.kind == GOAWAY {
            break;
        }
    }
    client.request(5, false, "/readyz").await;
    let body = |frame: &Frame| (frame.kind, frame.stream) == (DATA, 5);
    let body = client.wait_for(body).await.payload;
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains("draining"), "{body}");
    drop(client);
    assert!(server.wait().success());
}
