//! Watching of the server's log over gRPC.

use std::time::Duration;

use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::log_watcher_client::LogWatcherClient;
use hark_grpc::v1::watch_logs_reply::Event;
use hark_grpc::v1::{
    CreateRequest, Credentials, LogEvent, LogLevel, PasswordRequest, SendRequest, WatchLogsReply,
    WatchLogsRequest,
};
use hark_protocol::{Code as Word, Request, Sequence};
use hark_tests::{Harkd, TIMEOUT, Wire, add_user, name};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

async fn channel(server: &Harkd) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address())).unwrap();
    // Small flow control windows, so that unread events wait at the server.
    endpoint
        .initial_stream_window_size(65_535)
        .connect()
        .await
        .unwrap()
}

/// A watcher.
struct Watch(Streaming<WatchLogsReply>);

impl Watch {
    async fn try_open(server: &Harkd, request: WatchLogsRequest) -> Result<Self, Status> {
        Ok(Self(
            LogWatcherClient::new(channel(server).await)
                .watch_logs(request)
                .await?
                .into_inner(),
        ))
    }

    async fn open(server: &Harkd, level: LogLevel) -> Self {
        let request = WatchLogsRequest {
            level: level.into(),
            ..WatchLogsRequest::default()
        };
        Self::try_open(server, request).await.unwrap()
    }

    async fn next(&mut self) -> Option<Event> {
        let reply = timeout(TIMEOUT, self.0.message()).await.unwrap().unwrap();
        reply.map(|reply| reply.event.unwrap())
    }

    async fn event(&mut self) -> LogEvent {
        match self.next().await {
            Some(Event::Log(event)) => event,
            other => panic!("{other:?} is not a log event"),
        }
    }

    /// Returns the events up to the marker with this number.
    async fn until(&mut self, number: u64) -> Vec<LogEvent> {
        let mut events = Vec::new();
        loop {
            let event = self.event().await;
            let is_mark = mark_of(&event) == Some(number);
            events.push(event);
            if is_mark {
                return events;
            }
        }
    }
}

/// Makes the server log a marker event with this number at level debug.
async fn mark(wire: &mut Wire, number: u64) {
    wire.ack(Sequence(number)).await;
}

fn mark_of(event: &LogEvent) -> Option<u64> {
    let is_mark = event.message == "ack ignored: connection has no delivery";
    is_mark.then(|| event.fields.get("sequence").unwrap().parse().unwrap())
}

#[tokio::test]
async fn watcher_level_is_independent_of_stderr() {
    let server = Harkd::builder()
        .arg("--watch-logs=loopback")
        .arg("--log=info")
        .start();
    let mut info = Watch::open(&server, LogLevel::Unspecified).await;
    let mut debug = Watch::open(&server, LogLevel::Debug).await;
    let mut wire = Wire::connect(server.address()).await;
    mark(&mut wire, 7).await;
    let event = debug.until(7).await.pop().unwrap();
    assert_eq!(
        (event.level(), &*event.target),
        (LogLevel::Debug, "hark_server::chat::connection")
    );
    assert_eq!(event.fields["address"], "127.0.0.1");
    assert!(event.time_ms > 1_700_000_000_000);
    assert!(
        !server.log().contains("has no delivery"),
        "{}",
        server.log()
    );

    wire.create("eve").await;
    let wrong = Request::Password {
        user: name("eve"),
        old: None,
        new: "secret".parse().unwrap(),
    };
    wire.ok(wrong).await;
    let wrong = Request::Login {
        user: name("eve"),
        password: Some("guess".parse().unwrap()),
    };
    wire.refused(wrong, Word::Denied).await;
    loop {
        let event = info.event().await;
        assert_eq!((event.level(), mark_of(&event)), (LogLevel::Info, None));
        if event.message == "wrong password" {
            assert_eq!(event.fields["user"], "eve");
            break;
        }
    }
    server.wait_for_log("wrong password");
}

#[tokio::test]
async fn events_are_filtered_by_target_and_limited() {
    let server = Harkd::builder().arg("--watch-logs=loopback").start();
    let request = |target_prefix: &str, limit| WatchLogsRequest {
        level: LogLevel::Trace.into(),
        target_prefix: target_prefix.to_owned(),
        limit,
        login: None,
    };
    let mut elsewhere = Watch::try_open(&server, request("hark_server::server", 0))
        .await
        .unwrap();
    let mut two = Watch::try_open(&server, request("hark_server::chat::connection", 2))
        .await
        .unwrap();
    let mut wire = Wire::connect(server.address()).await;
    for number in 1..=3 {
        mark(&mut wire, number).await;
    }
    assert_eq!(mark_of(&two.event().await), Some(1));
    assert_eq!(mark_of(&two.event().await), Some(2));
    assert_eq!(two.next().await, None);
    let mut server = server;
    server.signal("TERM");
    // The stream ends with the server, and had no events of the chat.
    let mut events = 0;
    while let Some(event) = elsewhere.next().await {
        events += 1;
        let Event::Log(event) = event else {
            panic!("{event:?}")
        };
        assert!(event.target.starts_with("hark_server::server"), "{event:?}");
    }
    assert!(events > 0);
    assert!(server.wait().success());
}

const TEXT: &str = "a-text-for-nobody-else";
const PASSWORD: &str = "a-password-for-nobody-else";
const NEW_PASSWORD: &str = "another-password-for-nobody-else";

/// Sends texts and passwords, right and wrong, in every way.
async fn send_secrets(server: &Harkd, wire: &mut Wire) {
    let mut chat = ChatClient::new(channel(server).await);
    let login = |user: &str, password: &str| Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    };
    let (user, password) = ("eve".to_owned(), PASSWORD.to_owned());
    chat.create(CreateRequest {
        user,
        password,
        login: None,
    })
    .await
    .unwrap();
    let send = |to: &str, from| SendRequest {
        to: to.to_owned(),
        text: TEXT.to_owned(),
        login: from,
        ..SendRequest::default()
    };
    chat.send(send("eve", None)).await.unwrap();
    chat.send(send("nobody", None)).await.unwrap_err();
    chat.send(send("eve", Some(login("eve", PASSWORD))))
        .await
        .unwrap();
    chat.send(send("eve", Some(login("eve", NEW_PASSWORD))))
        .await
        .unwrap_err();
    chat.send(send("eve", Some(login(TEXT, &format!("{PASSWORD},")))))
        .await
        .unwrap_err();
    let (user, old, new) = (
        "eve".to_owned(),
        PASSWORD.to_owned(),
        NEW_PASSWORD.to_owned(),
    );
    chat.password(PasswordRequest {
        user,
        old,
        new,
        login: None,
    })
    .await
    .unwrap();
    let password = |text: &str| Some(text.parse().unwrap());
    wire.refused(
        Request::Login {
            user: name("eve"),
            password: password(PASSWORD),
        },
        Word::Denied,
    )
    .await;
    wire.ok(Request::Connect {
        user: name("eve"),
        password: password(NEW_PASSWORD),
    })
    .await;
    let last = [wire.message().await, wire.message().await].map(|message| message.sequence)[1];
    wire.ack(last).await;
    wire.ok(Request::Disconnect).await;
    wire.refused(
        Request::List {
            pattern: Some(format!("({TEXT}").into()),
        },
        Word::BadPattern,
    )
    .await;
    // Bytes that violate the protocol.
    let mut broken = Wire::connect(server.address()).await;
    broken.write_bytes(&[0, 0, 0, 1]).await;
    broken.write_bytes(TEXT.as_bytes()).await;
    broken.next().await;
    broken.next().await;
}

#[tokio::test]
async fn watcher_sees_no_secrets_and_no_feedback() {
    let server = Harkd::builder()
        .arg("--watch-logs=loopback")
        .arg("--log=trace")
        .start();
    let mut watch = Watch::open(&server, LogLevel::Trace).await;
    let mut wire = Wire::connect(server.address()).await;
    send_secrets(&server, &mut wire).await;
    // The marker of a receiving client differs.
    let mut marks = Wire::connect(server.address()).await;
    mark(&mut marks, 1).await;
    let mut events = watch.until(1).await;
    // Both connections end once the server has noticed.
    while events
        .iter()
        .filter(|event| event.message == "connection closed")
        .count()
        < 2
    {
        events.push(watch.event().await);
    }
    assert!(
        events.iter().any(|event| event.message == "wrong password"),
        "{events:?}"
    );
    for event in &events {
        let shown = format!("{event:?}");
        assert!(
            ![TEXT, PASSWORD, NEW_PASSWORD]
                .iter()
                .any(|secret| shown.contains(secret)),
            "{shown}"
        );
        assert!(event.target.starts_with("hark"), "{shown}");
    }
    // Sending events to the watcher causes no events.
    for number in 2..=100 {
        mark(&mut marks, number).await;
        let between = watch.until(number).await;
        assert_eq!(between.len(), 1, "{between:?}");
    }
    for secret in [TEXT, PASSWORD, NEW_PASSWORD] {
        assert!(!server.log().contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn watcher_sees_connections_except_its_own() {
    let server = Harkd::builder().arg("--watch-logs=loopback").start();
    let mut watch = Watch::open(&server, LogLevel::Debug).await;
    let mut begun = None;
    for _ in 0..20 {
        drop(Wire::connect(server.address()).await);
        for expected in ["connection opened", "connection closed"] {
            let event = watch.event().await;
            // The first event announces the watcher.
            let event = if event.message == "log watcher connected" {
                watch.event().await
            } else {
                event
            };
            assert_eq!(
                (&*event.message, &*event.target),
                (expected, "hark_server::server")
            );
            assert_eq!(event.fields["address"], "127.0.0.1");
            let connection = Some(event.fields["connection"].clone());
            assert_eq!(
                connection == begun,
                expected == "connection closed",
                "{connection:?} {begun:?}"
            );
            begun = connection;
        }
    }
}

#[tokio::test]
async fn slow_watcher_learns_what_it_missed() {
    let server = Harkd::builder().arg("--watch-logs=loopback").start();
    let mut slow = Watch::open(&server, LogLevel::Debug).await;
    let mut wire = Wire::connect(server.address()).await;
    let all = 20_000;
    for number in 1..=all {
        wire.write(
            0,
            Request::Ack {
                log: None,
                sequence: Sequence(number),
            },
        )
        .await;
    }
    wire.ping().await;
    let (mut seen, mut missed) = (0, 0);
    while seen < all {
        match slow.next().await.unwrap() {
            Event::Missed(count) => {
                missed += count;
                seen += count;
            }
            Event::Log(event) => {
                let Some(number) = mark_of(&event) else {
                    continue;
                };
                seen += 1;
                assert_eq!(number, seen);
            }
        }
    }
    assert!(missed > 0);
    mark(&mut wire, all + 1).await;
    slow.until(all + 1).await;
}

fn login(user: &str, password: &str) -> WatchLogsRequest {
    let login = Some(Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    });
    WatchLogsRequest {
        login,
        ..WatchLogsRequest::default()
    }
}

async fn refused(server: &Harkd, request: WatchLogsRequest) -> Status {
    match Watch::try_open(server, request).await {
        Err(status) => status,
        Ok(_) => panic!("the log is shown"),
    }
}

#[tokio::test]
async fn log_is_private_by_default() {
    let server = Harkd::start();
    let denied = refused(&server, WatchLogsRequest::default()).await;
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("--watch-logs"), "{denied}");
}

#[tokio::test]
async fn watcher_account_is_created_by_operator_or_admin() {
    let server = Harkd::builder().arg("--watch-logs=watcher").start();
    server.wait_for_log(
        "log watcher 'watcher' has no account; create it with: harkd user add watcher",
    );
    let mut wire = Wire::connect(server.address()).await;
    for password in [None, Some("mine".parse().unwrap())] {
        wire.refused(
            Request::Create {
                user: name("watcher"),
                password,
            },
            Word::Denied,
        )
        .await;
    }
    refused(&server, login("watcher", "mine")).await;

    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    add_user(&store, "watcher", None);
    let server = Harkd::builder()
        .arg("--watch-logs=watcher")
        .store(&store)
        .start();
    server.wait_for_log("log watcher 'watcher' has no password");
    let mut wire = Wire::connect(server.address()).await;
    let take = Request::Password {
        user: name("watcher"),
        old: None,
        new: "mine".parse().unwrap(),
    };
    wire.refused(take, Word::Denied).await;
    for password in ["", "mine"] {
        let denied = refused(&server, login("watcher", password)).await;
        assert_eq!(denied.code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn watcher_needs_password_and_guesses_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    add_user(&store, "eve", Some("secret"));
    add_user(&store, "admin", Some("right"));
    let server = Harkd::builder()
        .arg("--watch-logs=admin")
        .store(&store)
        .start();
    for request in [
        WatchLogsRequest::default(),
        login("eve", "secret"),
        login("admin", ""),
    ] {
        assert_eq!(
            refused(&server, request).await.code(),
            Code::PermissionDenied
        );
    }
    let mut watch = Watch::try_open(&server, login("admin", "right"))
        .await
        .unwrap();
    let limited = loop {
        let status = refused(&server, login("admin", "wrong")).await;
        if status.code() != Code::PermissionDenied {
            break status;
        }
    };
    while watch.event().await.message != "wrong password" {}
    assert_eq!(limited.code(), Code::ResourceExhausted);
    assert_eq!(limited.metadata().get("hark-code").unwrap(), "rate-limited");
}

#[tokio::test]
async fn number_of_watchers_is_limited() {
    let server = Harkd::builder().arg("--watch-logs=loopback").start();
    let mut watchers = Vec::new();
    for _ in 0..16 {
        watchers.push(Watch::open(&server, LogLevel::Error).await);
    }
    let full = refused(&server, WatchLogsRequest::default()).await;
    assert_eq!(full.code(), Code::ResourceExhausted);
    watchers.pop();
    let until = std::time::Instant::now() + TIMEOUT;
    while Watch::try_open(&server, WatchLogsRequest::default())
        .await
        .is_err()
    {
        assert!(
            std::time::Instant::now() < until,
            "the place of the former watcher is not free"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn unknown_level_is_refused() {
    let server = Harkd::builder().arg("--watch-logs=loopback").start();
    let status = refused(
        &server,
        WatchLogsRequest {
            level: 9,
            ..WatchLogsRequest::default()
        },
    )
    .await;
    assert_eq!(status.code(), Code::InvalidArgument);
}
