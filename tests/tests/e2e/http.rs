//! HTTP as a person with `curl` uses it: every request, its status and its body.

use std::io::{BufRead, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use hark_protocol::message::RoomMode;
use hark_protocol::{Request, RoomRequest};
use hark_tests::{Front, Harkd, Wire, name, wait_until};
use serde_json::{Value, json};

/// The response to a request.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: String,
}

impl Response {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        let lines = self.body.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (header, value) = line.split_once(':')?;
            header.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    #[track_caller]
    pub(crate) fn check(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.json()["code"], code, "{self:?}");
        assert!(!self.json()["explanation"].as_str().unwrap().is_empty());
    }
}

fn command(server: &Harkd, target: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "50",
        ])
        .args(arguments)
        .arg(format!("http://{}{target}", server.address()))
        .stdin(Stdio::null());
    command
}

/// Runs `curl` for a target of the server.
#[track_caller]
pub(crate) fn curl(server: &Harkd, target: &str, arguments: &[&str]) -> Response {
    let output = command(server, target, &[&["--include"], arguments].concat())
        .output()
        .expect("curl, which ./test installs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {target}: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    // An interim response precedes the response.
    let text = text
        .strip_prefix("HTTP/1.1 100 Continue\r\n\r\n")
        .unwrap_or(&text);
    let (headers, body) = text.split_once("\r\n\r\n").unwrap();
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    Response {
        status,
        headers: headers.to_owned(),
        body: body.to_owned(),
    }
}

/// A `curl` whose response is read line by line.
pub(crate) struct Stream {
    curl: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Stream {
    pub(crate) fn open(server: &Harkd, target: &str, arguments: &[&str]) -> Self {
        let arguments = [&["--no-buffer", "--request", "POST"], arguments].concat();
        let mut curl = command(server, target, &arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(curl.stdout.take().unwrap());
        Self { curl, lines }
    }

    /// Returns the next line.
    pub(crate) fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
    }

    /// Returns the text of the next message.
    fn text(&mut self) -> String {
        self.next()["text"].as_str().unwrap().to_owned()
    }

    /// Returns the rest, after the end of the response.
    pub(crate) fn rest(mut self) -> String {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        self.curl.wait().unwrap();
        rest
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.curl.kill());
        drop(self.curl.wait());
    }
}

fn create(server: &Harkd, user: &str) {
    let created = curl(server, &format!("/v1/users/{user}"), &["-X", "PUT"]);
    assert_eq!(created.status, 201, "{created:?}");
}

fn send(server: &Harkd, to: &str, text: &str) -> u64 {
    let sent = curl(server, &format!("/v1/send/{to}"), &["--data-binary", text]);
    assert_eq!(sent.status, 201, "{sent:?}");
    sent.json()["number"].as_u64().unwrap()
}

#[test]
fn sent_text_is_received_byte_for_byte() {
    let server = Harkd::start();
    create(&server, "bob");
    let text = "the backup is done, 100 %\n\"Zoë\" + \u{1f980}\r\n";
    let number = send(&server, "bob", text);
    let received = curl(&server, "/v1/receive/bob", &[]);
    assert_eq!(received.status, 200);
    assert_eq!(
        received.header("content-type"),
        Some("application/x-ndjson")
    );
    assert_eq!(received.header("x-accel-buffering"), Some("no"));
    let [line] = &received.lines()[..] else {
        panic!("{received:?}")
    };
    assert!(line["time"].as_u64().unwrap() > 0);
    let expected = json!({
        "log": "", "number": number, "sender": "", "time": line["time"], "text": text,
    });
    assert_eq!(*line, expected);
}

#[tokio::test]
async fn reading_changes_nothing_and_takes_nothing_over() {
    let server = Harkd::start();
    create(&server, "bob");
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let number = send(&server, "bob", "hello");
    let message = bob.message().await;
    for arguments in [&[][..], &["--head"], &[]] {
        let read = curl(&server, "/v1/receive/bob", arguments);
        assert_eq!(read.status, 200);
    }
    assert_eq!(curl(&server, "/v1/receive/bob", &[]).lines().len(), 1);
    assert_eq!(message.sequence.0, number);
    assert!(bob.is_quiet().await, "no bye");
    bob.ack(message.sequence).await;
    let acknowledged = || curl(&server, "/v1/receive/bob", &[]).body.is_empty();
    wait_until("the acknowledgement", acknowledged);
}

#[test]
fn long_inbox_is_read_to_its_end() {
    let server = Harkd::start();
    create(&server, "bob");
    let text = "x".repeat(30_000);
    for _ in 0..12 {
        send(&server, "bob", &text);
    }
    let read = curl(&server, "/v1/receive/bob", &[]);
    assert_eq!(read.lines().len(), 12);
    let last = read.lines().pop().unwrap()["number"].to_string();
    let ack = format!("/v1/ack/bob?number={last}");
    assert_eq!(curl(&server, &ack, &["-X", "POST"]).status, 200);
}

#[test]
fn repeat_with_an_idempotency_key_is_stored_once() {
    let server = Harkd::start();
    create(&server, "bob");
    let post = |key: &str| {
        let key = format!("Idempotency-Key: {key}");
        curl(&server, "/v1/send/bob", &["-d", "once", "-H", &key])
    };
    let first = post("job/1");
    assert_eq!(first.status, 201);
    assert_eq!(post("\"job/1\"").json(), first.json());
    assert_eq!(post("job").json(), first.json());
    assert_ne!(post("job/2").json(), first.json());
    post("job/0").check(400, "bad-request");
    assert_eq!(curl(&server, "/v1/receive/bob", &[]).lines().len(), 2);
}

#[test]
fn repeat_after_a_kill_has_the_same_number() {
    let server = Harkd::start();
    create(&server, "bob");
    let key = ["-d", "once", "-H", "Idempotency-Key: job/7"];
    let first = curl(&server, "/v1/send/bob", &key).json();
    let server = server.kill_and_restart();
    assert_eq!(curl(&server, "/v1/send/bob", &key).json(), first);
    assert_eq!(curl(&server, "/v1/receive/bob", &[]).lines().len(), 1);
}

#[test]
fn stream_delivers_and_acknowledgements_count_beside_it() {
    let server = Harkd::start();
    create(&server, "bob");
    send(&server, "bob", "before");
    let mut stream = Stream::open(&server, "/v1/receive/bob", &[]);
    assert_eq!(stream.text(), "before");
    let number = send(&server, "bob", "during");
    assert_eq!(stream.text(), "during");
    let ack = format!("/v1/ack/bob?number={number}");
    assert_eq!(curl(&server, &ack, &["-X", "POST"]).json(), json!({}));
    let empty = || curl(&server, "/v1/receive/bob", &[]).body.is_empty();
    wait_until("the acknowledgement", empty);
}

#[test]
fn full_window_continues_after_an_acknowledgement() {
    let server = Harkd::start();
    create(&server, "bob");
    let mut last = 0;
    for n in 0..300 {
        last = send(&server, "bob", &n.to_string());
    }
    let mut stream = Stream::open(&server, "/v1/receive/bob?count=300", &[]);
    let mut number = 0;
    for n in 0..256 {
        let line = stream.next();
        assert_eq!(line["text"], n.to_string());
        number = line["number"].as_u64().unwrap();
    }
    let ack = format!("/v1/ack/bob?number={number}");
    assert_eq!(curl(&server, &ack, &["-X", "POST"]).status, 200);
    for n in 256..300 {
        assert_eq!(stream.text(), n.to_string());
    }
    assert_eq!(stream.rest(), "");
    let ack = format!("/v1/ack/bob?number={last}");
    assert_eq!(curl(&server, &ack, &["-X", "POST"]).status, 200);
}

#[test]
fn automatic_acknowledgement_survives_a_kill() {
    let server = Harkd::start();
    create(&server, "bob");
    for text in ["one", "two", "three"] {
        send(&server, "bob", text);
    }
    let mut stream = Stream::open(&server, "/v1/receive/bob?ack=auto&count=2", &[]);
    assert_eq!((stream.text(), stream.text()), ("one".into(), "two".into()));
    assert_eq!(stream.rest(), "");
    let server = server.kill_and_restart();
    let left = curl(&server, "/v1/receive/bob", &[]).lines();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["text"], "three");
}

#[test]
fn after_acknowledges_before_the_stream_begins() {
    let server = Harkd::start();
    create(&server, "bob");
    let first = send(&server, "bob", "one");
    send(&server, "bob", "two");
    let target = format!("/v1/receive/bob?after={first}&count=1");
    let received = curl(&server, &target, &["-X", "POST"]);
    assert_eq!(received.lines()[0]["text"], "two");
    let beyond = format!("/v1/receive/bob?after={}", u64::MAX);
    curl(&server, &beyond, &["-X", "POST"]).check(400, "bad-request");
}

#[test]
fn acknowledgement_beyond_the_last_message_is_refused() {
    let server = Harkd::start();
    create(&server, "bob");
    let ack = |number: u64| {
        let target = format!("/v1/ack/bob?number={number}&device=&log=");
        curl(&server, &target, &["-X", "POST"])
    };
    assert_eq!(ack(0).status, 200);
    ack(1).check(400, "bad-request");
    let first = send(&server, "bob", "one");
    let second = send(&server, "bob", "two");
    ack(second + 1).check(400, "bad-request");
    assert_eq!(ack(first).status, 200);
    wait_until("the acknowledgement", || {
        curl(&server, "/v1/receive/bob", &[]).lines().len() == 1
    });
    // Between two numbers, a repeat, and all.
    for number in [first, second - 1, second, second] {
        assert_eq!(ack(number).status, 200, "{number}");
    }
    wait_until("the acknowledgement", || {
        curl(&server, "/v1/receive/bob", &[]).body.is_empty()
    });
    curl(&server, "/v1/ack/bob", &["-X", "POST"]).check(400, "bad-request");
    curl(
        &server,
        "/v1/ack/bob?number=1&device=phone",
        &["-X", "POST"],
    )
    .check(400, "bad-request");
    curl(&server, "/v1/ack/eve?number=1", &["-X", "POST"]).check(404, "no-such-user");
}

#[tokio::test]
async fn takeover_ends_the_stream_with_bye() {
    let server = Harkd::start();
    create(&server, "bob");
    send(&server, "bob", "hello");
    let mut stream = Stream::open(&server, "/v1/receive/bob", &[]);
    assert_eq!(stream.text(), "hello");
    for front in [Front::Native, Front::WebSocket] {
        let mut bob = front.connect(server.address()).await;
        assert_eq!(bob.receive("bob").await, 1);
        assert_eq!(stream.rest(), "{\"bye\":\"taken-over\"}\n");
        stream = Stream::open(&server, "/v1/receive/bob", &[]);
        assert_eq!(stream.text(), "hello");
    }
    let deleted = curl(&server, "/v1/users/bob", &["-X", "DELETE"]);
    assert_eq!(deleted.json(), json!({"deleted": true}));
    assert_eq!(stream.rest(), "{\"bye\":\"deleted\"}\n");
}

#[test]
fn unacknowledged_stream_ends_after_the_timeout() {
    let server = Harkd::builder().arg("--ack-timeout=2").start();
    create(&server, "bob");
    send(&server, "bob", "hello");
    let mut stream = Stream::open(&server, "/v1/receive/bob", &[]);
    assert_eq!(stream.text(), "hello");
    assert_eq!(stream.rest(), "");
    server.wait_for_log("slow consumer: does not acknowledge");
    assert_eq!(curl(&server, "/v1/receive/bob", &[]).lines().len(), 1);
}

#[test]
fn stop_ends_the_stream_with_bye() {
    let mut server = Harkd::start();
    create(&server, "bob");
    let stream = Stream::open(&server, "/v1/receive/bob", &[]);
    server.wait_for_log("logged in");
    server.signal("TERM");
    assert_eq!(stream.rest(), "{\"bye\":\"shutdown\"}\n");
    assert!(server.wait().success());
}

#[test]
fn accounts_are_created_listed_and_deleted() {
    let server = Harkd::start();
    for user in ["ann", "bob", "Zo%C3%AB"] {
        create(&server, user);
    }
    curl(&server, "/v1/users/bob", &["-X", "PUT"]).check(409, "exists");
    let list = |query: &str| curl(&server, &format!("/v1/users{query}"), &[]).json();
    assert_eq!(list("")["users"], json!(["Zoë", "ann", "bob"]));
    assert_eq!(list("?pattern=%5E%5Bab%5D")["users"], json!(["ann", "bob"]));
    assert_eq!(list("")["truncated"], json!(false));
    curl(&server, "/v1/users?pattern=(", &["--globoff"]).check(400, "bad-pattern");
    let deleted = |user: &str| curl(&server, &format!("/v1/users/{user}"), &["-X", "DELETE"]);
    assert_eq!(deleted("ann").json(), json!({"deleted": true}));
    assert_eq!(deleted("ann").json(), json!({"deleted": false}));
    curl(&server, "/v1/users/%ff", &["-X", "PUT"]).check(400, "bad-name");
    curl(&server, "/v1/users/a%2Cb", &["-X", "PUT"]).check(400, "bad-name");
    create(&server, "a%2Fb");
    assert_eq!(list("?pattern=/")["users"], json!(["a/b"]));
}

#[test]
fn missing_and_wrong_passwords_get_401_with_bearer() {
    let server = Harkd::builder().arg("--require-password").start();
    let put = curl(&server, "/v1/users/ann", &["-X", "PUT", "-d", "hunter2"]);
    assert_eq!(put.status, 201);
    let wrong = ["-u", "ann:wrong"];
    for (target, method) in [
        ("/v1/send/ann", "POST"),
        ("/v1/receive/ann", "GET"),
        ("/v1/receive/ann", "POST"),
        ("/v1/ack/ann?number=0", "POST"),
        ("/v1/users/ann", "DELETE"),
        ("/v1/users", "GET"),
    ] {
        let missing = curl(&server, target, &["-X", method]);
        missing.check(401, "denied");
        assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
    }
    curl(&server, "/v1/receive/ann", &wrong).check(401, "denied");
    curl(
        &server,
        "/v1/receive/ann",
        &["-H", "Authorization: Bearer hk_x"],
    )
    .check(401, "denied");
    let right = ["-u", "ann:hunter2"];
    let sent = curl(
        &server,
        "/v1/send/ann",
        &[&right[..], &["-d", "hi"]].concat(),
    );
    assert_eq!(sent.status, 201, "{sent:?}");
    let received = curl(&server, "/v1/receive/ann", &right);
    assert_eq!(received.lines()[0]["sender"], "ann");
    curl(&server, "/v1/receive/bob", &right).check(403, "denied");
    curl(
        &server,
        "/v1/users/bob",
        &[&right[..], &["-X", "DELETE"]].concat(),
    )
    .check(403, "denied");
}

#[test]
fn refusals_have_the_status_of_their_code() {
    let server = Harkd::builder()
        .args([
            "--max-queued-messages=1",
            "--max-accounts=2",
            "--max-frame=1024",
        ])
        .start();
    create(&server, "ann");
    create(&server, "bob");
    send(&server, "bob", "one");
    let post = |target: &str, arguments: &[&str]| curl(&server, target, arguments);
    post("/v1/send/bob", &["-d", "two"]).check(507, "queue-full");
    post("/v1/send/eve", &["-d", "two"]).check(404, "no-such-user");
    post("/v1/send/bob", &["-d", &"x".repeat(769)]).check(413, "too-large");
    post("/v1/send/bob", &["-F", "text=hello"]).check(415, "bad-request");
    post("/v1/send/bob", &["--data-binary", "@/bin/true"]).check(413, "too-large");
    post("/v1/send/bob?x=1", &["-d", "two"]).check(400, "bad-request");
    let limited = post("/v1/users/eve", &["-X", "PUT"]);
    limited.check(429, "too-many");
    assert!(limited.header("retry-after").is_some());
    post("/v1/send/bob", &["-G"]).check(405, "unknown-command");
    post("/v1/nothing", &[]).check(404, "unknown-command");
    post("/", &["-d", ""]).check(405, "unknown-command");
}

#[test]
fn chunked_text_from_a_pipe_is_sent() {
    let server = Harkd::start();
    create(&server, "bob");
    let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", "piped"];
    assert_eq!(curl(&server, "/v1/send/bob", &chunked).status, 201);
    assert_eq!(
        curl(&server, "/v1/receive/bob", &[]).lines()[0]["text"],
        "piped"
    );
}

#[test]
fn every_response_has_the_standard_headers() {
    let server = Harkd::start();
    for (target, is_api) in [
        ("/v1/users", true),
        ("/v1/nothing", true),
        ("/healthz", false),
        ("/nothing", false),
        ("/", false),
    ] {
        let response = curl(&server, target, &["-H", "Accept-Encoding: gzip, br"]);
        for absent in ["content-encoding", "set-cookie"] {
            assert_eq!(response.header(absent), None, "{target}");
        }
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(
            response.header("cache-control"),
            is_api.then_some("no-store")
        );
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
    let options = curl(&server, "/v1/send/bob", &["-X", "OPTIONS"]);
    assert_eq!(
        (options.status, options.header("allow")),
        (204, Some("POST, OPTIONS"))
    );
}

#[test]
fn health_and_readiness_are_answered() {
    let server = Harkd::start();
    assert_eq!(
        curl(&server, "/healthz", &[]).json(),
        json!({"status": "ok"})
    );
    assert_eq!(
        curl(&server, "/readyz", &[]).json(),
        json!({"status": "ready"})
    );
    assert_eq!(curl(&server, "/readyz", &["--head"]).status, 200);
}

#[test]
fn http_2_carries_the_same_requests() {
    let server = Harkd::start();
    let prior_knowledge = ["--http2-prior-knowledge", "-d", "over HTTP/2"];
    create(&server, "bob");
    let sent = curl(&server, "/v1/send/bob", &prior_knowledge);
    assert_eq!(sent.status, 201, "{sent:?}");
    let received = curl(&server, "/v1/receive/bob", &prior_knowledge[..1]);
    assert_eq!(received.lines()[0]["text"], "over HTTP/2");
    let filler = format!("X-Filler: {}", "x".repeat(9000));
    let long = curl(&server, "/healthz", &[prior_knowledge[0], "-H", &filler]);
    long.check(431, "too-large");
    curl(&server, "/v1/ws", &prior_knowledge[..1]).check(400, "bad-request");
    // No upgrade from HTTP/1.1.
    let upgrade = curl(&server, "/v1/receive/bob", &["--http2"]);
    assert!(upgrade.headers.starts_with("HTTP/1.1 200"), "{upgrade:?}");
}

#[test]
fn alpn_chooses_the_version_over_tls() {
    let server = Harkd::start();
    let url = format!("https://{}/healthz", server.address());
    for (version, expected) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--insecure",
            "--noproxy",
            "*",
            version,
            "-o",
            "/dev/null",
        ]);
        let output = curl.args(["-w", "%{http_version}", &url]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}

#[tokio::test]
async fn rate_limit_slows_requests_and_names_the_wait() {
    let server = Harkd::builder()
        .args(["--limit-loopback", "--max-user-commands-per-second=1"])
        .start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ok(Request::Create {
        user: name("bob"),
        password: None,
    })
    .await;
    let responses: Vec<Response> = std::thread::scope(|scope| {
        let calls = [(); 20].map(|()| scope.spawn(|| curl(&server, "/v1/receive/bob", &[])));
        calls.map(|call| call.join().unwrap()).into()
    });
    let (served, refused): (Vec<_>, Vec<_>) = responses
        .iter()
        .partition(|response| response.status == 200);
    assert!(served.len() >= 5, "{responses:?}");
    let refused = refused.first().expect("a refusal");
    refused.check(429, "rate-limited");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait), "{refused:?}");
}

#[tokio::test]
async fn metrics_count_and_name_nobody() {
    let server = Harkd::builder().arg("--metrics=127.0.0.1:0").start();
    server.wait_for_log("serving metrics");
    let log = server.log();
    let line = log
        .lines()
        .find(|line| line.contains("serving metrics"))
        .unwrap();
    let (_, address) = line.rsplit_once("address=").unwrap();
    let mut socket = Front::WebSocket.connect(server.address()).await;
    socket.create("somebody").await;
    socket.receive("somebody").await;
    socket.sent("somebody", "hello").await;
    let message = socket.message().await;
    socket.ack(message.sequence).await;
    // A message is in flight at the end of a delivery.
    let mut reader = Front::Native.connect(server.address()).await;
    reader.receive("somebody").await;
    reader.sent("somebody", "again").await;
    reader.message().await;
    drop(reader);
    let mut owner = Front::Native.connect(server.address()).await;
    let (user, password) = (name("somebody"), None);
    owner.ok(Request::Login { user, password }).await;
    let room = "#team".parse().unwrap();
    let (mode, keep_s) = (RoomMode::Open, None);
    let set = RoomRequest::Set { room, mode, keep_s };
    owner.ok(Request::Room(set)).await;
    curl(&server, "/v1/send/nobody", &["-d", "x"]).check(404, "no-such-user");
    let scrape = || {
        let url = format!("http://{}/metrics", address.trim());
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "*", &url])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = [
        "hark_connections{front=\"websocket\"} 1",
        "hark_sends_total{outcome=\"stored\"} 2",
        "hark_sends_total{outcome=\"refused\"} 1",
        "hark_refusals_total{code=\"no-such-user\"} 1",
        "hark_deliveries_total 2",
        "hark_acknowledgements_total 1",
        "hark_accounts 1",
        "hark_store_available 1",
        "hark_gaps_total 0",
        "hark_redeliveries_total 1",
        "hark_lagging_subscriptions 0",
        "hark_queued_messages 1",
        "hark_queued_bytes 5",
        "hark_oldest_unread_seconds 0",
        "hark_rooms 1",
        "hark_members 1",
        "hark_devices 1",
    ];
    let has = |text: &str, expected: &str| text.lines().any(|line| line == expected);
    wait_until("the figures", || {
        let text = scrape();
        expected.iter().all(|expected| has(&text, expected))
    });
    let text = scrape();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(
        !text.contains("somebody") && !text.contains("127.0.0.1"),
        "{text}"
    );
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 200, "{series} series");
}

mod long {
    use super::*;

    #[test]
    fn quiet_stream_has_an_empty_line_every_25_seconds() {
        let server = Harkd::start();
        create(&server, "bob");
        let start = std::time::Instant::now();
        let mut stream = Stream::open(&server, "/v1/receive/bob", &[]);
        assert_eq!(stream.next(), json!({}));
        let waited = start.elapsed().as_secs();
        assert!((24..40).contains(&waited), "{waited} s");
        send(&server, "bob", "hello");
        assert_eq!(stream.text(), "hello");
    }
}
