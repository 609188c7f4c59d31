//! Connections that are half-open, slow, silent or too many: which of them are
//! closed, and their cost until then.

use std::time::{Duration, Instant};

use hark_protocol::{Code, Failure, Reply, Request};
use hark_tests::{Classic, Harkd, TIMEOUT, Wire, name, wait_until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// The `--ack-timeout` of [`impatient`] servers: longer than a busy machine delays a
/// peer.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);

const MIB: u64 = 1024 * 1024;

/// Starts a server with a short timeout.
fn impatient() -> Harkd {
    Harkd::builder()
        .arg(format!("--ack-timeout={}", ACK_TIMEOUT.as_secs()))
        .start()
}

/// Starts a server with a short timeout, a sender, and bob, who has received
/// and not acknowledged this many messages.
async fn with_unread(messages: usize) -> (Harkd, Wire, Wire) {
    let server = impatient();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    for n in 0..messages {
        alice.sent("bob", &n.to_string()).await;
        assert_eq!(&*bob.message().await.text, n.to_string());
    }
    (server, alice, bob)
}

#[tokio::test]
async fn silent_peer_that_owes_acks_is_dropped() {
    let (server, _alice, mut bob) = with_unread(0).await;
    let mut alice = Wire::connect(server.address()).await;
    let start = Instant::now();
    alice.sent("bob", "one").await;
    alice.sent("bob", "two").await;
    for text in ["one", "two"] {
        assert_eq!(&*bob.message().await.text, text);
    }
    assert_eq!(bob.next().await, None);
    assert!(
        start.elapsed() >= ACK_TIMEOUT,
        "it was given {:?}",
        start.elapsed()
    );
    server.wait_for_log("slow consumer");
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    assert_eq!(&*bob.message().await.text, "one");
}

#[tokio::test]
async fn pinging_peer_that_owes_acks_is_kept() {
    let (_server, mut alice, mut bob) = with_unread(1).await;
    let start = Instant::now();
    while start.elapsed() < 3 * ACK_TIMEOUT {
        sleep(ACK_TIMEOUT / 5).await;
        bob.ping().await;
    }
    alice.sent("bob", "last").await;
    assert_eq!(&*bob.message().await.text, "last");
}

#[tokio::test]
async fn idle_peer_without_debts_is_kept() {
    let (_server, mut alice, mut bob) = with_unread(0).await;
    alice.sent("bob", "before").await;
    let before = bob.message().await;
    bob.ack(before.sequence).await;
    sleep(3 * ACK_TIMEOUT).await;
    alice.sent("bob", "after").await;
    let after = bob.message().await;
    // The timeout starts with the message, not with the silence before it.
    sleep(ACK_TIMEOUT / 4).await;
    bob.ack(after.sequence).await;
    sleep(5 * ACK_TIMEOUT / 4).await;
    assert!(bob.is_quiet().await);
}

#[tokio::test]
async fn each_ack_restarts_the_ack_timeout() {
    let (_server, mut alice, mut bob) = with_unread(0).await;
    for n in 0..6 {
        alice.sent("bob", &n.to_string()).await;
    }
    for _ in 0..6 {
        let message = bob.message().await;
        sleep(ACK_TIMEOUT / 4).await;
        bob.write(
            0,
            Request::Ack {
                log: None,
                sequence: message.sequence,
            },
        )
        .await;
    }
    bob.ping().await;
}

/// Returns the beginning of a large frame.
fn half_a_frame() -> Vec<u8> {
    [
        &60_000_u32.to_be_bytes()[..],
        &1_u32.to_be_bytes(),
        b"send\0\0\0\0\0\0\0\0\0\0\0bob,",
    ]
    .concat()
}

/// Reads a byte now and then, until the server closes the connection.
async fn read_slowly(mut stream: TcpStream) {
    while matches!(stream.read(&mut [0]).await, Ok(1)) {
        sleep(ACK_TIMEOUT / 10).await;
    }
    unreachable!("there is more in between than it can drink");
}

/// Returns incomplete input of several protocols.
fn beginnings() -> [(&'static str, Vec<u8>); 8] {
    [
        ("nothing", Vec::new()),
        ("half a frame", half_a_frame()),
        ("a length", vec![0, 0]),
        ("half a classic command", b"crea".to_vec()),
        // The header of a large record.
        (
            "half a handshake of TLS",
            vec![0x16, 3, 1, 0x3f, 0xff, 1, 0],
        ),
        ("half the preface of HTTP/2", b"PRI * HTTP".to_vec()),
        ("half a method of HTTP", b"POS".to_vec()),
        (
            "half a head of HTTP",
            b"GET /v1/users HTTP/1.1\r\nHost: local".to_vec(),
        ),
    ]
}

#[tokio::test]
async fn incomplete_peers_are_cheap() {
    for (what, bytes) in beginnings() {
        let each = memory_per_connection(&bytes).await;
        println!("{what}: {each} bytes a connection");
        // The buffers of a TLS handshake are the largest.
        assert!(each < 24 * 1024, "{what}: {each} bytes a connection");
    }
}

/// Opens many connections with this input and returns the memory per connection in
/// bytes. The server drops none of them during the measurement, however slow the
/// machine is: the shortest limit is that of a TLS handshake, 10 seconds.
async fn memory_per_connection(bytes: &[u8]) -> u64 {
    const PEERS: u64 = 100;
    let server = Harkd::builder().arg("--ack-timeout=600").start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    // The first one triggers allocations that are shared by all.
    let mut peers = vec![begun(&server, bytes).await];
    server.wait_until_read();
    let before = server.resident_bytes();
    for _ in 0..PEERS {
        peers.push(begun(&server, bytes).await);
    }
    server.wait_until_read();
    alice.sent("bob", "while they are there").await;
    let after = server.resident_bytes();
    assert!(
        server.connections() > peers.len(),
        "all were connected during the measurement"
    );
    after.saturating_sub(before) / PEERS
}

#[tokio::test]
async fn incomplete_peers_are_dropped_in_time() {
    const PEERS_PER_KIND: usize = 20;
    let server = impatient();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let mut peers = Vec::new();
    for (what, bytes) in beginnings() {
        for _ in 0..PEERS_PER_KIND {
            peers.push((what, begun(&server, &bytes).await));
        }
    }
    for (what, mut peer) in peers {
        assert!(
            tokio::time::timeout(TIMEOUT, peer.end()).await.is_ok(),
            "{what}: it is not dropped"
        );
    }
    alice.sent("bob", "afterwards").await;
}

async fn begun(server: &Harkd, bytes: &[u8]) -> Begun {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    Begun(stream)
}

/// A peer with incomplete input.
struct Begun(TcpStream);

impl Begun {
    /// Waits until the server has closed the connection, in order or not.
    async fn end(&mut self) {
        // A reset counts as closed.
        drop(self.0.read_to_end(&mut Vec::new()).await);
    }
}

#[tokio::test]
async fn byte_by_byte_writer_is_dropped_in_time() {
    let server = impatient();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let mut drips = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        drips.spawn(async move {
            let bytes = [half_a_frame(), vec![b'x'; 1000]].concat();
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                sleep(ACK_TIMEOUT / 10).await;
            }
            unreachable!("it was heard to its end");
        });
    }
    while let Some(drip) = drips.join_next().await {
        drip.unwrap();
    }
    server.wait_for_log("frame incomplete at its deadline");
    alice.sent("bob", "still here").await;
}

#[tokio::test]
async fn large_frame_over_slow_link_is_accepted() {
    let server = impatient();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let mut frame = Vec::from(12_023_u32.to_be_bytes());
    frame.extend(
        [
            &1_u32.to_be_bytes()[..],
            b"send\0\0\0\0\0\0\0\0\0\0\0bob,",
            &[b'x'; 12_000],
        ]
        .concat(),
    );
    for piece in frame.chunks(1000) {
        alice.write_bytes(piece).await;
        sleep(ACK_TIMEOUT / 4).await;
    }
    assert!(matches!(alice.reply_to(1).await, Reply::Ok(_)));
}

#[tokio::test]
async fn byte_by_byte_reader_is_dropped_in_time() {
    let (server, mut alice, bob) = with_unread(0).await;
    let before = server.resident_bytes();
    let sipping = tokio::spawn(read_slowly(bob.into_stream()));
    let text = "x".repeat(60_000);
    for _ in 0..500 {
        alice.sent("bob", &text).await;
    }
    server.wait_for_log("slow consumer: neither reads nor acknowledges");
    // The 30 MB are in the store, which has buffers of its own.
    let grown = server.resident_bytes().saturating_sub(before);
    println!("the server has grown by {} KiB", grown / 1024);
    assert!(
        grown < 80 * MIB,
        "the server has grown by {} KiB",
        grown / 1024
    );
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 500);
    assert!(!sipping.is_finished());
}

#[tokio::test]
async fn unknown_first_byte_closes_and_is_logged() {
    let server = Harkd::start();
    for first in [b'Z', 0x01, 0xff] {
        let mut wire = Wire::connect(server.address()).await;
        wire.write_bytes(&[first, 3, 1]).await;
        assert_eq!(wire.next().await, None);
        server.wait_for_log(&format!("unknown protocol: first byte {first:#04x}"));
    }
}

#[tokio::test]
async fn protocol_error_is_reported_once() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    // A length below the minimum.
    let noise = 18_u32.to_be_bytes().repeat(1000);
    wire.write_bytes(&noise).await;
    let error = wire.next().await.unwrap().message;
    assert!(
        matches!(
            error,
            Reply::Error {
                failure: Failure::Protocol,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(wire.next().await, None);
    let mut stream = wire.into_stream();
    for _ in 0..3 {
        // The server reads on for a moment, and then the connection is gone.
        if stream.write_all(&noise).await.is_err() {
            break;
        }
        server.wait_until_read();
    }
    assert_eq!(
        server.log().matches("malformed frame").count(),
        1,
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn requester_that_never_reads_is_dropped() {
    let server = impatient();
    let mut wire = Wire::connect(server.address()).await;
    let users = 1..=1000;
    wire.write_all(users.map(|n| {
        (
            n,
            Request::Create {
                user: name(&format!("{n:0>60}")),
                password: None,
            },
        )
    }))
    .await;
    wire.reply_to(1000).await;
    wire.ping().await;
    let before = server.resident_bytes();
    let frame = [
        &19_u32.to_be_bytes()[..],
        &1_u32.to_be_bytes(),
        b"list\0\0\0\0\0\0\0\0\0\0\0",
    ]
    .concat();
    let requests = frame.repeat(1000);
    let mut stream = wire.into_stream();
    // The server reads until too many answers are pending, then stops, then
    // closes the connection.
    let writing = async { while stream.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(TIMEOUT, writing).await.unwrap();
    server.wait_for_log("slow consumer");
    let mut other = Wire::connect(server.address()).await;
    other.ping().await;
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(
        grown < 8 * MIB,
        "the server has grown by {} KiB",
        grown / 1024
    );
}

#[tokio::test]
async fn blocked_reader_does_not_delay_others() {
    let (server, mut alice, _bob) = with_unread(0).await;
    let text = "x".repeat(60_000);
    let mut eve = Wire::connect(server.address()).await;
    eve.create("eve").await;
    eve.receive("eve").await;
    // More than all the buffers on the way to a reader hold.
    for n in 0..500 {
        alice.sent("bob", &text).await;
        if n % 50 == 0 {
            alice.sent("eve", &n.to_string()).await;
            let message = eve.message().await;
            assert_eq!(&*message.text, n.to_string());
            eve.ack(message.sequence).await;
        }
    }
    server.wait_for_log("slow consumer");
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 500);
}

#[tokio::test]
async fn excess_connections_are_refused_in_their_framing() {
    let server = Harkd::builder().arg("--max-connections=2").start();
    let mut first = Wire::connect(server.address()).await;
    first.ping().await;
    let mut second = Classic::connect(server.address()).await;
    second.ok("ping", "").await;

    let mut native = Wire::connect(server.address()).await;
    native.write(1, Request::Ping).await;
    let refused = native.next().await.unwrap();
    assert!(
        matches!(&refused.message, Reply::NotOk(refusal) if refusal.code == Code::TooMany),
        "{refused:?}"
    );
    assert_eq!((refused.id, native.next().await), (None, None));
    let mut classic = Classic::connect(server.address()).await;
    let (answer, why) = classic.ask("ping", "").await;
    assert!(
        answer == "notok" && why.starts_with("too-many,"),
        "{answer} {why}"
    );
    assert_eq!(classic.next().await, None);
    // A connection without input is closed silently.
    assert_eq!(Wire::connect(server.address()).await.next().await, None);

    drop(second);
    let mut is_in = false;
    while !is_in {
        let mut third = Wire::connect(server.address()).await;
        third.write(1, Request::Ping).await;
        is_in = matches!(third.next().await.unwrap().message, Reply::Ok(_));
    }
    first.ping().await;
}

#[tokio::test]
async fn tcp_keepalive_is_on() {
    let server = Harkd::start();
    let mut native = Wire::connect(server.address()).await;
    native.ping().await;
    let silent = Wire::connect(server.address()).await;
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("ping", "").await;
    for client in [native.address(), silent.address(), classic.address()] {
        wait_until("keep-alive", || server.keeps_alive(client));
    }
}
