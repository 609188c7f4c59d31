//! HTTP from hostile or broken clients: slow and giant heads, smuggling, foreign pages,
//! responses that are never read.

use std::time::{Duration, Instant};

use hark_tests::{Harkd, TIMEOUT, Wire, wait_until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::administration::answer;

const MIB: u64 = 1024 * 1024;

/// A connection that sends raw bytes.
struct Raw(TcpStream);

impl Raw {
    async fn open(server: &Harkd) -> Self {
        Self(TcpStream::connect(server.address()).await.unwrap())
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Returns everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let reading = self.0.read_to_end(&mut bytes);
        // A reset counts as an end.
        drop(
            tokio::time::timeout(TIMEOUT, reading)
                .await
                .expect("an end"),
        );
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Returns the responses to these bytes, up to the end of the connection.
async fn exchange(server: &Harkd, bytes: &str) -> String {
    let mut raw = Raw::open(server).await;
    raw.write(bytes.as_bytes()).await;
    raw.rest().await
}

/// Returns a request that closes the connection.
fn request(line: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

#[track_caller]
fn check_status(response: &str, status: u16) {
    let expected = format!("HTTP/1.1 {status} ");
    assert!(
        response.starts_with(&expected),
        "expected {status}: {response}"
    );
}

async fn with_bob() -> (Harkd, Wire) {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    (server, wire)
}

/// Returns the number of bob's messages.
async fn waiting(server: &Harkd) -> u64 {
    Wire::connect(server.address()).await.receive("bob").await
}

#[tokio::test]
async fn ambiguous_length_is_refused_and_closes() {
    let (server, _wire) = with_bob().await;
    let smuggled = request("POST /v1/send/bob", "", "smuggled");
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 0\r\n",
    ] {
        let head = format!("POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\n");
        let responses = exchange(&server, &format!("{head}0\r\n\r\n{smuggled}")).await;
        check_status(&responses, 400);
        assert!(responses.contains("connection: close"), "{responses}");
        assert_eq!(responses.matches("HTTP/1.1").count(), 1, "{responses}");
    }
    assert_eq!(waiting(&server).await, 0);
}

#[tokio::test]
async fn body_of_unknown_length_is_the_last() {
    let (server, _wire) = with_bob().await;
    let chunked = "POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let next = request("POST /v1/send/bob", "", "next");
    let responses = exchange(&server, &format!("{chunked}{next}")).await;
    check_status(&responses, 201);
    assert_eq!(responses.matches("HTTP/1.1").count(), 1, "{responses}");
    assert_eq!(waiting(&server).await, 1);
}

#[tokio::test]
async fn malformed_requests_are_refused_and_close() {
    let (server, _wire) = with_bob().await;
    for head in [
        "POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\nab",
        "POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nab",
        "POST /v1/send/bob HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        "POST /v1/send/bob HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "GET /v1/users HTTP/9\r\n\r\n",
        "GET garbage garbage garbage\r\n\r\n",
    ] {
        let responses = exchange(
            &server,
            &format!("{head}{}", request("GET /v1/users", "", "")),
        )
        .await;
        check_status(&responses, 400);
        assert_eq!(responses.matches("HTTP/1.1").count(), 1, "{responses}");
    }
    assert_eq!(waiting(&server).await, 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (server, _wire) = with_bob().await;
    let one = "POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\none";
    let requests = [
        &one.repeat(20),
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &request("GET /v1/nothing", "", ""),
    ]
    .concat();
    let responses = exchange(&server, &requests).await;
    assert_eq!(responses.matches("HTTP/1.1 201").count(), 20, "{responses}");
    let last = ["HTTP/1.1 200", "HTTP/1.1 404"].map(|status| responses.find(status).unwrap());
    assert!(last[0] < last[1], "{responses}");
    assert_eq!(waiting(&server).await, 20);
}

#[tokio::test]
async fn giant_head_is_refused() {
    let server = Harkd::start();
    let filler = format!("X-Filler: {}\r\n", "x".repeat(9000));
    check_status(
        &exchange(&server, &request("GET /healthz", &filler, "")).await,
        431,
    );
    let many = "X: y\r\n".repeat(200);
    check_status(
        &exchange(&server, &request("GET /healthz", &many, "")).await,
        431,
    );
    let mut endless = Raw::open(&server).await;
    endless.write(b"GET /healthz HTTP/1.1\r\nX: ").await;
    let flood = vec![b'x'; 1 << 20];
    drop(endless.0.write_all(&flood).await);
    endless.rest().await;
    check_status(
        &exchange(&server, &request("GET /healthz", "", "")).await,
        200,
    );
}

#[tokio::test]
async fn slow_head_is_closed_after_ten_seconds() {
    let server = Harkd::start();
    let begun = Instant::now();
    let mut raw = Raw::open(&server).await;
    for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyy" {
        if raw.0.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(raw.rest().await, "");
    let elapsed = begun.elapsed();
    assert!((10..30).contains(&elapsed.as_secs()), "{elapsed:?}");
}

#[tokio::test]
async fn idle_connection_is_closed_after_the_timeout() {
    let server = Harkd::builder().arg("--ack-timeout=2").start();
    let mut raw = Raw::open(&server).await;
    let begun = Instant::now();
    raw.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    check_status(&raw.rest().await, 200);
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn slow_body_is_refused_in_time() {
    let server = Harkd::builder()
        .args(["--ack-timeout=1", "--max-frame=1024"])
        .start();
    let mut raw = Raw::open(&server).await;
    raw.write(b"POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nslow")
        .await;
    check_status(&raw.rest().await, 408);
}

#[tokio::test]
async fn thousand_half_open_requests_are_cheap() {
    const PEERS: u64 = 1000;
    let server = Harkd::builder().arg("--max-connects-per-second=0").start();
    let mut peers = Vec::new();
    for n in 0..=PEERS {
        let mut raw = Raw::open(&server).await;
        raw.write(
            b"POST /v1/send/bob HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\nhalf",
        )
        .await;
        peers.push(raw);
        if n == 0 {
            server.wait_until_read();
        }
    }
    server.wait_until_read();
    let each = server.resident_bytes() / PEERS;
    println!("{each} bytes a request");
    assert!(each < 64 * 1024, "{each} bytes a request");
    check_status(
        &exchange(&server, &request("GET /healthz", "", "")).await,
        200,
    );
}

#[tokio::test]
async fn response_that_is_never_read_ends_in_time() {
    let server = Harkd::builder().arg("--ack-timeout=2").start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let text = "x".repeat(60_000);
    for _ in 0..400 {
        alice.sent("bob", &text).await;
    }
    let before = server.resident_bytes();
    let mut raw = Raw::open(&server).await;
    raw.write(b"GET /v1/receive/bob HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    server.wait_for_log("slow consumer: does not read");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes for a response of 24 MB");
    wait_until("the end of the connection", || server.connections() == 1);
}

#[tokio::test]
async fn foreign_page_changes_nothing() {
    let (server, _wire) = with_bob().await;
    for headers in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
        "Origin: https://evil.example\r\nContent-Type: text/plain\r\n",
    ] {
        for line in [
            "POST /v1/send/bob",
            "DELETE /v1/users/bob",
            "PUT /v1/users/eve",
            "POST /v1/receive/bob",
        ] {
            check_status(&exchange(&server, &request(line, headers, "x")).await, 403);
        }
    }
    assert_eq!(waiting(&server).await, 0);
    let own = format!(
        "Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n",
        server.address()
    );
    let post =
        request("POST /v1/send/bob", &own, "x").replace("localhost", &server.address().to_string());
    check_status(&exchange(&server, &post).await, 201);
}

#[tokio::test]
async fn rebound_name_is_not_served() {
    let server = Harkd::builder().arg("--host=chat.example").start();
    for (host, status) in [
        ("localhost", 200),
        ("chat.example:3000", 200),
        ("evil.example", 421),
        ("evil.example:3000", 421),
    ] {
        let get = request("GET /v1/users", "", "").replace("localhost", host);
        check_status(&exchange(&server, &get).await, status);
    }
    let none = "GET /v1/users HTTP/1.1\r\nConnection: close\r\n\r\n";
    check_status(&exchange(&server, none).await, 400);
}

#[tokio::test]
async fn ban_reaches_clients_behind_a_proxy() {
    let server = Harkd::builder()
        .args(["--proxy-from=127.0.0.1", "--allow-open-accounts"])
        .start();
    answer(&server, &["ban", "::ffff:203.0.113.7"]);
    for (client, expected) in [("203.0.113.7", 403), ("203.0.113.8", 200)] {
        let forwarded = format!("X-Forwarded-For: {client}\r\n");
        let get = request("GET /v1/users", &forwarded, "");
        check_status(&exchange(&server, &get).await, expected);
    }
    let without_address = request("GET /v1/users", "Via: 1.1 proxy\r\n", "");
    check_status(&exchange(&server, &without_address).await, 400);
}

#[tokio::test]
async fn forwarded_request_is_never_local() {
    let (server, _wire) = with_bob().await;
    for header in [
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
        "Via: 1.1 x",
    ] {
        let get = request("GET /healthz", &format!("{header}\r\n"), "");
        check_status(&exchange(&server, &get).await, 403);
    }
    let open = Harkd::builder()
        .arg("--proxy-from=127.0.0.1")
        .try_start()
        .expect_err("a refusal");
    assert!(open.log.contains("--allow-open-accounts"), "{}", open.log);
    // Of a named proxy, the forwarded address counts: it is not exempt from rate limits.
    let proxied = Harkd::builder()
        .args([
            "--proxy-from=127.0.0.1",
            "--allow-open-accounts",
            "--max-commands-per-second=1",
        ])
        .start();
    let get = |client: &str| {
        request(
            "GET /v1/users",
            &format!("X-Forwarded-For: {client}\r\n"),
            "",
        )
    };
    let slowed = Instant::now();
    for _ in 0..10 {
        check_status(&exchange(&proxied, &get("203.0.113.7")).await, 200);
    }
    // A burst of five, and then one a second.
    let slowed = slowed.elapsed();
    assert!(slowed >= Duration::from_secs(4), "{slowed:?}");
    check_status(&exchange(&proxied, &get("203.0.113.8")).await, 200);
    let unclear = request("GET /v1/users", "X-Forwarded-For: unknown\r\n", "");
    check_status(&exchange(&proxied, &unclear).await, 400);
}

#[tokio::test]
async fn open_requests_of_a_forwarded_address_are_limited() {
    let server = Harkd::builder()
        .args([
            "--proxy-from=127.0.0.1",
            "--allow-open-accounts",
            "--limit-loopback",
            "--max-connections-per-address=2",
        ])
        .start();
    let for_client =
        |line: &str, client: &str| request(line, &format!("X-Forwarded-For: {client}\r\n"), "");
    let create = for_client("PUT /v1/users/bob", "203.0.113.7");
    check_status(&exchange(&server, &create).await, 201);
    let mut open = Vec::new();
    for device in ["phone", "tablet"] {
        let line = format!("POST /v1/receive/bob?device={device}");
        let mut raw = Raw::open(&server).await;
        raw.write(for_client(&line, "203.0.113.7").as_bytes()).await;
        let mut head = [0; 12];
        raw.0.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        open.push(raw);
    }
    let get = |client: &str| for_client("GET /v1/users", client);
    let refused = exchange(&server, &get("203.0.113.7")).await;
    check_status(&refused, 503);
    assert!(refused.contains("retry-after: "), "{refused}");
    // Neither the other clients nor the proxy are limited by it.
    check_status(&exchange(&server, &get("203.0.113.8")).await, 200);
    open.pop();
    let start = Instant::now();
    while !exchange(&server, &get("203.0.113.7"))
        .await
        .contains(" 200 ")
    {
        assert!(start.elapsed() < TIMEOUT, "the request is still counted");
    }
}

#[tokio::test]
async fn refused_connection_gets_503_with_a_wait() {
    let server = Harkd::builder().arg("--max-connections=1").start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ping().await;
    let refused = exchange(&server, &request("GET /healthz", "", "")).await;
    check_status(&refused, 503);
    assert!(refused.contains("retry-after: "), "{refused}");
}

#[tokio::test]
async fn plaintext_request_to_a_tls_only_server_is_refused() {
    let server = Harkd::builder().arg("--tls-only").start();
    let refused = exchange(&server, &request("GET /healthz", "", "")).await;
    check_status(&refused, 403);
    assert!(refused.contains("requires TLS"), "{refused}");
}
