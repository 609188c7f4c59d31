//! The WebSocket framing: its handshake, its end, its limits, and Python's `websockets` as
//! an independent client. The contract of the chat runs over it as over every front.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hark_protocol::{Code, Failure, Reply, Request};
use hark_tests::{
    Client, Front, Harkd, Link as _, TIMEOUT, WebSocket, Wire, name, send, wait_until,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const HANDSHAKE: &str = "GET /v1/ws HTTP/1.1\r\n\
    Host: localhost\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: hark.v1\r\n";

async fn open(server: &Harkd) -> WebSocket {
    WebSocket::connect(server.address()).await.unwrap()
}

/// Reads to the end of the connection, and returns the code of the close.
async fn closed_with(mut socket: WebSocket) -> Option<u16> {
    while tokio::time::timeout(TIMEOUT, socket.next())
        .await
        .expect("an end")
        .is_some()
    {}
    socket.closed().map(|close| close.code.into())
}

/// Returns the first line of the response to a handshake.
async fn handshake(server: &Harkd, headers: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let request = format!("{HANDSHAKE}{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = vec![0; 12];
    stream.read_exact(&mut response).await.unwrap();
    String::from_utf8(response).unwrap()
}

#[tokio::test]
async fn handshake_obeys_the_rules_of_origins() {
    let server = Harkd::builder()
        .arg("--allow-origin=https://app.example")
        .start();
    for (headers, expected) in [
        ("", "101"),
        ("Origin: http://localhost\r\n", "101"),
        (
            "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n",
            "101",
        ),
        ("Origin: https://evil.example\r\n", "403"),
        ("Origin: null\r\n", "403"),
        ("Authorization: Basic Ym9iOg==\r\n", "400"),
        ("X-Forwarded-For: 1.2.3.4\r\n", "403"),
    ] {
        let line = handshake(&server, headers).await;
        assert_eq!(line, format!("HTTP/1.1 {expected}"), "{headers}");
    }
}

#[tokio::test]
async fn frames_sent_with_the_handshake_are_handled() {
    let server = Harkd::start();
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // A ping of the chat, with a mask of zeros.
    let ping = b"\x82\x93\0\0\0\0\0\0\0\x07ping\0\0\0\0\0\0\0\0\0\0\0";
    let bytes = [format!("{HANDSHAKE}\r\n").as_bytes(), ping].concat();
    stream.write_all(&bytes).await.unwrap();
    let expected = b"\x82\x13\0\0\0\x07ok\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut received = Vec::new();
    while !received.ends_with(expected) {
        let read = tokio::time::timeout(TIMEOUT, stream.read_buf(&mut received));
        assert_ne!(read.await.unwrap().unwrap(), 0, "{received:?}");
    }
}

#[tokio::test]
async fn requests_are_pipelined_and_answered() {
    let server = Harkd::start();
    let mut alice = Client::over(open(&server).await);
    alice.create("bob").await;
    let texts = 0..500_u32;
    alice
        .write_all(texts.clone().map(|n| (n + 1, send("bob", &n.to_string()))))
        .await;
    for n in texts.clone() {
        assert!(matches!(alice.reply_to(n + 1).await, Reply::Ok(_)));
    }
    let mut bob = Client::over(open(&server).await);
    assert_eq!(bob.receive("bob").await, 500);
    for n in texts {
        let message = bob.message().await;
        assert_eq!(&*message.text, n.to_string());
        bob.write(
            0,
            Request::Ack {
                log: None,
                sequence: message.sequence,
            },
        )
        .await;
    }
    assert!(bob.is_quiet().await);
}

#[tokio::test]
async fn close_code_says_why_the_server_ends() {
    let mut server = Harkd::builder().arg("--max-frame=2048").start();
    let text = |socket: WebSocket, message: Message| async move {
        let mut socket = socket;
        socket.send(message).await.unwrap();
        let error = socket.next().await.map(|frame| frame.message);
        let is_protocol = matches!(
            error,
            Some(Reply::Error {
                failure: Failure::Protocol,
                ..
            })
        );
        assert!(is_protocol, "{error:?}");
        closed_with(socket).await
    };
    assert_eq!(
        text(open(&server).await, Message::text("hello")).await,
        Some(1003)
    );
    let short = Message::binary(&b"short"[..]);
    assert_eq!(text(open(&server).await, short).await, Some(1002));
    let long = Message::binary(vec![0; 3000]);
    assert_eq!(text(open(&server).await, long).await, Some(1009));
    let mut normal = open(&server).await;
    normal.send(Message::Close(None)).await.unwrap();
    assert_eq!(closed_with(normal).await, None);
    let mut refused = Client::over(open(&server).await);
    refused.ping().await;
    let hello = Request::Hello {
        version: 1,
        session: "s".parse().unwrap(),
    };
    refused.refused(hello, Code::BadRequest).await;
    assert_eq!(closed_with(refused.into_link()).await, Some(1008));
    let mut stopped = Client::over(open(&server).await);
    stopped.ping().await;
    server.signal("TERM");
    assert_eq!(closed_with(stopped.into_link()).await, Some(1001));
    assert!(server.wait().success());
}

#[tokio::test]
async fn pings_are_answered() {
    let server = Harkd::start();
    let mut socket = open(&server).await;
    socket
        .send(Message::Ping(b"alive"[..].into()))
        .await
        .unwrap();
    let mut client = Client::over(socket);
    client.ping().await;
}

#[tokio::test]
async fn peer_that_never_pongs_is_dropped() {
    let server = Harkd::builder().arg("--ack-timeout=2").start();
    let silent = open(&server).await.into_stream();
    let mut answering = Client::over(open(&server).await);
    let begun = Instant::now();
    let mut stream = silent;
    let mut received = Vec::new();
    let reading = stream.read_to_end(&mut received);
    // A client that reads answers pings by itself.
    let idling = tokio::time::timeout(Duration::from_secs(8), answering.next());
    let (read, idle) = tokio::join!(tokio::time::timeout(TIMEOUT, reading), idling);
    drop(read.expect("an end"));
    assert_eq!(received, b"\x89\0");
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    assert!(idle.is_err(), "{idle:?}");
    server.wait_for_log("ping unanswered at its deadline");
    answering.ping().await;
}

#[tokio::test]
async fn peer_that_does_not_read_is_dropped_in_time() {
    let server = Harkd::builder().arg("--ack-timeout=2").start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let mut bob = Client::over(open(&server).await);
    bob.receive("bob").await;
    let text = "x".repeat(60_000);
    for _ in 0..200 {
        alice.sent("bob", &text).await;
    }
    // Of the missing acknowledgements and the missing pong, the first counts.
    wait_until("the end of the connection", || {
        let log = server.log();
        log.contains("slow consumer") || log.contains("ping unanswered")
    });
    assert_eq!(
        Wire::connect(server.address()).await.receive("bob").await,
        200
    );
}

#[tokio::test]
async fn idle_user_takes_little_memory() {
    const USERS: u64 = 500;
    let server = Harkd::builder()
        .args(["--ack-timeout=600", "--max-connects-per-second=0"])
        .start();
    let mut users = Vec::new();
    let mut before = 0;
    for n in 0..=USERS {
        let mut client = Client::over(open(&server).await);
        client.create(&n.to_string()).await;
        client.receive(&n.to_string()).await;
        users.push(client);
        if n == 0 {
            before = server.resident_bytes();
        }
    }
    let each = server.resident_bytes().saturating_sub(before) / USERS;
    println!("{each} bytes a user");
    // A debug build, with the store's share of the account.
    assert!(each < 12 * 1024, "{each} bytes a user");
}

#[tokio::test]
async fn python_client_talks_to_a_native_one() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    let server = Harkd::start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("alice").await;
    alice.receive("alice").await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/websocket_client.py");
    let output = tokio::task::spawn_blocking({
        let address = server.address().to_string();
        move || {
            Command::new(python)
                .arg(script)
                .arg(address)
                .output()
                .unwrap()
        }
    });
    assert_eq!(&*alice.message().await.text, "hello from Python");
    let mut sender = Front::Native.connect(server.address()).await;
    sender
        .ok(Request::Login {
            user: name("alice"),
            password: None,
        })
        .await;
    sender.sent("python", "hello from Rust").await;
    let output = output.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "alice: hello from Rust\n"
    );
}
