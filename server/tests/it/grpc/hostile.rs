//! Malicious clients, and clients that vanish.

use std::collections::BTreeSet;
use std::time::Duration;

use hark_grpc::v1::chat_reply::Reply;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{CreateRequest, Hello, ListRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::raw::{
    self, ACK, CONTINUATION, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, Raw, SETTINGS, frame,
    headers,
};
use super::server::{SETTINGS as SERVER_SETTINGS, Server, Session, Subscription, to};

const CREATE: &str = "/hark.v1.Chat/Create";

/// The timeout of the server, by the paused clock.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Checks that other clients are still served.
async fn check_serves(server: &Server) {
    timeout(OPERATION_TIMEOUT, server.client_and(&["other"]))
        .await
        .unwrap();
}

/// Returns the bytes up to the end of the connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset counts as an end.
    stream.read_to_end(&mut bytes).await.ok();
    bytes
}

#[tokio::test]
async fn malformed_preface_is_closed_at_once() {
    let server = Server::start().await;
    for garbage in [
        &b"PRI * HTTP/2.0\r\n\r\nXX"[..],
        b"PROPFIND / HTTP/1.1\r\n\r\n",
        b"Ping",
    ] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        assert_eq!(
            timeout(OPERATION_TIMEOUT, rest(&mut stream)).await.unwrap(),
            b""
        );
    }
    let mut raw = Raw(TcpStream::connect(server.address()).await.unwrap());
    raw.write(PREFACE).await;
    raw.write(b"no frames, but more than nine bytes of it")
        .await;
    timeout(OPERATION_TIMEOUT, async {
        while raw.next().await.is_some() {}
    })
    .await
    .unwrap();
    check_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn incomplete_preface_times_out() {
    let server = Server::start().await;
    for part in [1, PREFACE.len() - 1] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(&PREFACE[..part]).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"");
        assert!(
            begun.elapsed() < Duration::from_secs(11),
            "{:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn link_that_ignores_pings_is_dropped() {
    let server = Server::start().await;
    for opened in [false, true] {
        let begun = Instant::now();
        let mut raw = Raw(TcpStream::connect(server.address()).await.unwrap());
        raw.write(PREFACE).await;
        if opened {
            raw.write(&frame(SETTINGS, 0, 0, b"")).await;
        }
        raw.next_of(PING).await.expect("a keepalive ping");
        while raw.next().await.is_some() {}
        let (elapsed, most) = (
            begun.elapsed(),
            SERVER_SETTINGS.ack_timeout + Duration::from_secs(1),
        );
        assert!(elapsed <= most, "{elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_link_that_answers_pings_stays() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    let begun = Instant::now();
    while begun.elapsed() < 10 * SERVER_SETTINGS.ack_timeout {
        let ping = raw.next_of(PING).await.expect("an open connection");
        assert_eq!(ping.flags & ACK, 0);
        raw.write(&frame(PING, ACK, 0, &ping.payload)).await;
    }
}

#[tokio::test]
async fn oversized_message_is_refused_by_its_length() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    raw.call(1, CREATE).await;
    // A gibibyte is announced and never sent.
    raw.write(&frame(raw::DATA, 0, 1, b"\0\x40\0\0\0")).await;
    assert_eq!(
        timeout(OPERATION_TIMEOUT, raw.answer(1)).await.unwrap(),
        b""
    );
    raw.call(3, CREATE).await;
    raw.data(3, &raw::message(b"\x0a\x03bob")).await;
    assert_eq!(raw.answer(3).await, raw::message(b""));
    let users = names(&server).await;
    assert_eq!(users, ["bob"]);
}

#[tokio::test]
async fn every_service_refuses_oversized_messages() {
    const PATHS: [&str; 7] = [
        "/hark.v1.Chat/BiDiChat",
        "/hark.v1.LogWatcher/WatchLogs",
        "/helloworld.Chat/try_command",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    for (stream, path) in (1..).step_by(2).zip(PATHS) {
        raw.call(stream, path).await;
        // A mebibyte is announced and never sent.
        raw.write(&frame(raw::DATA, 0, stream, b"\0\0\x10\0\0"))
            .await;
        let answer = timeout(OPERATION_TIMEOUT, raw.answer(stream)).await;
        assert_eq!(answer.expect(path), b"", "{path}");
    }
}

#[tokio::test]
async fn other_content_types_are_refused() {
    let server = Server::start().await;
    // The first can be sent by a form of a web page.
    for other in [
        "text/plain",
        "application/json",
        "application/grpc-web",
        "application/grpcs",
    ] {
        let mut raw = Raw::open(server.address()).await;
        raw.write(&frame(
            HEADERS,
            raw::END_HEADERS,
            1,
            &raw::head_of(CREATE, other),
        ))
        .await;
        raw.data(1, &raw::message(b"\x0a\x03eve")).await;
        let answer = timeout(OPERATION_TIMEOUT, raw.next_of(HEADERS))
            .await
            .unwrap()
            .unwrap();
        // A request of HTTP, whose host the server does not know: the status is not 200, which
        // HPACK has in one byte.
        assert_eq!(answer.payload[0], 0x48, "{other}");
    }
    let grpc = [
        ("application/grpc", b"amy"),
        ("application/grpc+proto", b"bob"),
        ("application/grpc;a=b", b"cat"),
    ];
    for (content_type, name) in grpc {
        let mut raw = Raw::open(server.address()).await;
        raw.write(&frame(
            HEADERS,
            raw::END_HEADERS,
            1,
            &raw::head_of(CREATE, content_type),
        ))
        .await;
        raw.data(1, &raw::message(&[b"\x0a\x03", &name[..]].concat()))
            .await;
        assert_eq!(
            timeout(OPERATION_TIMEOUT, raw.answer(1)).await.unwrap(),
            raw::message(b"")
        );
    }
    assert_eq!(names(&server).await, ["amy", "bob", "cat"]);
}

async fn names(server: &Server) -> Vec<String> {
    let mut pages = server
        .client()
        .await
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    pages
        .message()
        .await
        .unwrap()
        .map(|page| page.names)
        .unwrap_or_default()
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut request = tonic::Request::new(CreateRequest {
        user: "bob".to_owned(),
        password: String::new(),
        login: None,
    });
    let long = "x".repeat(12_000);
    for name in ["x-1", "x-2"] {
        request.metadata_mut().insert(name, long.parse().unwrap());
    }
    client.create(request).await.unwrap_err();
    assert_eq!(names(&server).await, [""; 0]);
    client
        .create(CreateRequest {
            user: "bob".to_owned(),
            password: String::new(),
            login: None,
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn endless_headers_end_the_connection() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    raw.write(&frame(HEADERS, 0, 1, &raw::head(CREATE))).await;
    let part = frame(CONTINUATION, 0, 1, &[0x00; 16_000]);
    let flood = async {
        // A gigabyte, unless the server stops it.
        for _ in 0..65_536 {
            if raw.0.write_all(&part).await.is_err() {
                return;
            }
        }
        panic!("a head of a gigabyte was taken");
    };
    timeout(OPERATION_TIMEOUT, flood).await.unwrap();
    check_serves(&server).await;
}

#[tokio::test]
async fn calls_over_the_limit_are_refused() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    let settings = raw.next_of(SETTINGS).await.unwrap();
    let streams_max = settings
        .payload
        .chunks(6)
        .find(|setting| setting[..2] == [0, 3])
        .expect("a limit");
    assert_eq!(streams_max[2..], 128u32.to_be_bytes());
    raw.write(&frame(SETTINGS, ACK, 0, b"")).await;
    // Open calls that have not sent their message.
    for nth in 0..200 {
        raw.call(2 * nth + 1, CREATE).await;
    }
    let mut refused = BTreeSet::new();
    while refused.len() < 72 {
        let reset = timeout(OPERATION_TIMEOUT, raw.next_of(RST_STREAM))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(reset.payload, 7u32.to_be_bytes(), "REFUSED_STREAM");
        refused.insert(reset.stream);
    }
    assert_eq!(refused.first(), Some(&(2 * 128 + 1)));
    raw.data(1, &raw::message(b"\x0a\x03bob")).await;
    assert_eq!(raw.answer(1).await, raw::message(b""));
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    let mut flood = Vec::new();
    for nth in 0..20_000 {
        flood.extend(headers(2 * nth + 1, CREATE));
        flood.extend(frame(RST_STREAM, 0, 2 * nth + 1, &8u32.to_be_bytes()));
    }
    // The server may close before all is written.
    timeout(OPERATION_TIMEOUT, raw.0.write_all(&flood))
        .await
        .unwrap()
        .ok();
    let goaway = timeout(OPERATION_TIMEOUT, raw.next_of(GOAWAY))
        .await
        .unwrap();
    if let Some(goaway) = goaway {
        assert_eq!(
            goaway.payload[4..8],
            11u32.to_be_bytes(),
            "ENHANCE_YOUR_CALM"
        );
    }
    check_serves(&server).await;
}

#[tokio::test]
async fn ping_flood_without_reads_is_not_read() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    let pings = frame(PING, 0, 0, b"12345678").repeat(10_000);
    let mut written = 0;
    while let Ok(result) = timeout(Duration::from_secs(1), raw.0.write_all(&pings)).await {
        if result.is_err() {
            break;
        }
        written += pings.len();
        assert!(written < 256 * 1024 * 1024, "it takes pings without end");
    }
    check_serves(&server).await;
}

#[tokio::test]
async fn session_of_an_unread_stream_can_be_taken_over() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let (mut bob, _) = Subscription::connect(&mut client, "bob").await;
    let mut raw = Raw(TcpStream::connect(server.address()).await.unwrap());
    raw.write(PREFACE).await;
    // The window has room for the answer to `hello` only.
    raw.write(&frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\x0f")).await;
    raw.call(1, "/hark.v1.Chat/BiDiChat").await;
    raw.write(&frame(
        raw::DATA,
        0,
        1,
        &raw::message(b"\x08\x01\x12\x0a\x08\x01\x12\x06unread"),
    ))
    .await;
    let answer = raw.next_of(raw::DATA).await.unwrap();
    assert_eq!(answer.payload.len(), 15);
    let ping = raw::message(b"\x08\x02\x62\x00");
    let send = raw::message(b"\x08\x03\x52\x08\x0a\x03bob\x12\x01x");
    raw.write(&frame(raw::DATA, 0, 1, &[ping, send].concat()))
        .await;
    // The answer to the ping is stuck now.
    assert_eq!(bob.message().await.text, "x");
    let mut session = Session::open(&mut client).await;
    let opened = timeout(OPERATION_TIMEOUT, session.ask(1, hello()))
        .await
        .unwrap();
    assert!(matches!(opened, Reply::Hello(_)), "{opened:?}");
    drop(raw);
}

fn hello() -> Command {
    Command::Hello(Hello {
        version: 1,
        session: "unread".to_owned(),
    })
}

#[tokio::test]
async fn cancelled_streams_lose_and_repeat_no_message() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let all = 1000;
    for nth in 0..all {
        client.send(to("bob", &nth.to_string())).await.unwrap();
    }
    let (mut last, mut got) = (0, Vec::new());
    let mut cuts = 0;
    while got.len() < all {
        // A new stream, before the server has noticed the end of the former.
        let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
        assert!(connected.queued as usize >= all - got.len());
        for _ in 0..97 {
            if got.len() == all {
                break;
            }
            let message = bob.message().await;
            if message.sequence > last {
                last = message.sequence;
                got.push(message.text);
            }
        }
        let (receipt, sequence) = (connected.receipt, last);
        client
            .ack(hark_grpc::v1::AckRequest {
                receipt,
                sequence,
                room: None,
            })
            .await
            .unwrap();
        drop(bob);
        cuts += 1;
    }
    assert_eq!(cuts, 11);
    assert_eq!(got, (0..all).map(|nth| nth.to_string()).collect::<Vec<_>>());
}
