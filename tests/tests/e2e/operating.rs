//! What an administrator does about users, rooms and space while the server runs.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use hark_protocol::message::{Gap, RoomMode};
use hark_protocol::{Code, Delivery, Frame, Reply, Request, RoomReply, RoomRequest, Sequence};
use hark_tests::{Client, Front, Harkd, StoreLocation, Wire, add_user, hark, name, send};
use serde_json::Value;

use crate::administration::{answer, answers, failure};

/// Attaches a device of a user.
async fn attach(server: &Harkd, user: &str, device: &str) -> Client {
    let mut client = Front::Native.connect(server.address()).await;
    let attach = RoomRequest::Attach {
        user: name(user),
        device: device.parse().unwrap(),
        password: None,
    };
    client.ok(Request::Room(attach)).await;
    client
}

/// Returns the next push to a device.
async fn push(client: &mut Client) -> Reply {
    match client.next().await {
        Some(Frame { id: None, message }) => message,
        other => panic!("no push but {other:?}"),
    }
}

async fn gap(client: &mut Client) -> Gap {
    match push(client).await {
        Reply::Room(RoomReply::Gap(gap)) => gap,
        other => panic!("no gap but {other:?}"),
    }
}

async fn said(client: &mut Client) -> Delivery {
    match push(client).await {
        Reply::Room(RoomReply::Said { delivery, .. }) => delivery,
        other => panic!("no message of a room but {other:?}"),
    }
}

/// Sends numbered texts, and returns their numbers.
async fn send_numbered(client: &mut Wire, to: &str, count: usize) -> Vec<Sequence> {
    let mut numbers = Vec::new();
    for number in 0..count {
        let stored = client.ok(send(to, &number.to_string())).await;
        numbers.push(stored.as_stored().unwrap());
    }
    numbers
}

#[tokio::test]
async fn purge_of_an_inbox_is_announced_to_devices() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    drop(attach(&server, "bob", "phone").await);
    let numbers = send_numbered(&mut wire, "bob", 5).await;
    let up_to = numbers[2].to_string();
    let purged = answer(&server, &["purge", "bob", &up_to]);
    assert_eq!(purged["messages"], 3, "{purged}");
    assert_eq!(purged["silent_for_connect"], false);
    let server = server.kill_and_restart();
    let mut phone = attach(&server, "bob", "phone").await;
    let gap = gap(&mut phone).await;
    assert_eq!((gap.count, gap.to), (3, numbers[2]));
    assert_eq!(&*phone.message().await.text, "3");
    let mut wire = Wire::connect(server.address()).await;
    wire.receive("bob").await;
    let all = answer(&server, &["purge", "bob", "all"]);
    assert_eq!(all["messages"], 2, "{all}");
    assert_eq!(all["silent_for_connect"], true, "{all}");
    assert_eq!(answer(&server, &["show", "bob"])["waiting"], 0);
    assert!(failure(&server, &["purge", "nobody", "all"]).contains("no user or room nobody"));
}

#[tokio::test]
async fn purge_of_a_room_reaches_attached_members() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["amy", "bob"] {
        wire.create(user).await;
    }
    let login = Request::Login {
        user: name("amy"),
        password: None,
    };
    wire.ok(login).await;
    let team: hark_protocol::RoomName = "#team".parse().unwrap();
    let set = RoomRequest::Set {
        room: team.clone(),
        mode: RoomMode::Open,
        keep_s: None,
    };
    wire.ok(Request::Room(set)).await;
    let mut bob = attach(&server, "bob", "phone").await;
    bob.ok(Request::Room(RoomRequest::Join(team.clone()))).await;
    // The window of the device is full: the rest waits in the server.
    let numbers = send_numbered(&mut wire, "#team", 400).await;
    let up_to = numbers[349].to_string();
    let purged = answer(&server, &["purge", "#team", &up_to]);
    assert_eq!(purged["messages"], 350, "{purged}");
    let room = answer(&server, &["show", "#team"]);
    for (field, expected) in [
        ("members", Value::from(2)),
        ("attached", 1.into()),
        ("messages", 50.into()),
        ("mode", "open".into()),
        ("owners", vec!["amy"].into()),
    ] {
        assert_eq!(room[field], expected, "{room}");
    }
    assert_eq!(answers(&server, &["rooms"])[0]["name"], "#team");
    let mut last = Sequence(0);
    for _ in 0..256 {
        last = said(&mut bob).await.sequence;
    }
    let ack = |sequence| Request::Ack {
        log: Some(team.clone()),
        sequence,
    };
    bob.write(0, ack(last)).await;
    let gap = gap(&mut bob).await;
    assert_eq!((gap.count, gap.to), (350 - 256, numbers[349]));
    bob.write(0, ack(gap.to)).await;
    assert_eq!(said(&mut bob).await.sequence, numbers[350]);
    assert!(failure(&server, &["show", "#none"]).contains("no room #none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn top_finds_the_client_that_throttle_slows() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["amy", "bob", "eve"] {
        wire.create(user).await;
    }
    let runaway = tokio::spawn(flood(server.address()));
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let top = answers(&server, &["top", "--seconds=1"]);
    assert_eq!(top[0]["user"], "eve", "{top:?}");
    let rate = top[0]["requests_per_s"].as_f64().unwrap();
    assert!(rate > 5.0, "{top:?}");
    let limits = answer(&server, &["throttle", "eve", "--commands=1"]);
    assert_eq!(limits["commands"], 1);
    let slow = || {
        let top = answers(&server, &["top", "--seconds=2"]);
        let eve = top.iter().find(|entry| entry["user"] == "eve");
        eve.map_or(0.0, |eve| eve["requests_per_s"].as_f64().unwrap()) <= 2.0
    };
    let began = Instant::now();
    while !slow() {
        assert!(began.elapsed() < hark_tests::TIMEOUT, "still fast");
    }
    let fullest = answers(&server, &["top", "--by=waiting", "--limit=1"]);
    assert_eq!(fullest[0]["user"], "amy", "{fullest:?}");
    runaway.abort();
    let server = server.kill_and_restart();
    let eve = answer(&server, &["show", "eve"]);
    assert_eq!(eve["limits"]["commands"], 1, "{eve}");
    let reset = answer(&server, &["throttle", "eve", "--reset"]);
    assert_eq!(reset.as_object().map(serde_json::Map::len), Some(0));
}

/// Sends as fast as it may, as Eve.
async fn flood(server: std::net::SocketAddr) {
    let mut wire = Wire::connect(server).await;
    let login = Request::Login {
        user: name("eve"),
        password: None,
    };
    wire.ok(login).await;
    loop {
        wire.sent("amy", "me again").await;
    }
}

#[tokio::test]
async fn one_user_may_have_a_smaller_inbox() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    answer(&server, &["throttle", "bob", "--queued-messages=2"]);
    send_numbered(&mut wire, "bob", 2).await;
    wire.refused(send("bob", "x"), Code::QueueFull).await;
    let shown = answer(&server, &["show", "bob"]);
    assert_eq!(shown["limits"]["queued_messages"], 2, "{shown}");
    assert!(shown["oldest_unread_ms"].as_u64() > Some(0), "{shown}");
}

#[tokio::test]
async fn sends_are_refused_while_the_store_is_large() {
    let server = Harkd::builder()
        .args(["--segment-size=1", "--max-store-bytes=4194304"])
        .start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let text = "x".repeat(60_000);
    let mut stored = 0;
    loop {
        match wire.ask(send("bob", &text)).await {
            Reply::Ok(_) => stored += 1,
            Reply::NotOk(refusal) => {
                assert_eq!(refusal.code, Code::NoSpace, "{refusal:?}");
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(stored < 200, "no limit");
    }
    server.wait_for_log("limit on space reached: sends are refused");
    assert_eq!(answer(&server, &["stats"])["state"], "low on space");
    // Acknowledging and deleting go on, and make room.
    let waiting = wire.receive("bob").await;
    assert_eq!(waiting, stored);
    for _ in 0..waiting {
        let message = wire.message().await;
        wire.ack(message.sequence).await;
    }
    wire.create("eve").await;
    let began = Instant::now();
    while let Reply::NotOk(refusal) = wire.ask(send("eve", "x")).await {
        assert_eq!(refusal.code, Code::NoSpace);
        assert!(began.elapsed() < hark_tests::TIMEOUT, "still refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.wait_for_log("below the limit on space again");
}

#[tokio::test]
async fn unreasonable_limits_on_space_are_refused() {
    let refused = |argument: &str| {
        let builder = Harkd::builder().args(["--segment-size=1", argument]);
        builder.try_start().unwrap_err().log
    };
    assert!(refused("--max-store-bytes=1000").contains("four segments"));
    assert!(refused("--max-age=5").contains("expected a time"));
    let server = Harkd::builder().arg("--min-free-bytes=1000000000000000");
    let server = server.start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    wire.refused(send("bob", "x"), Code::NoSpace).await;
}

#[tokio::test]
async fn old_messages_and_idle_accounts_expire() {
    let server = Harkd::builder()
        .args(["--max-age=3s", "--max-idle=4s"])
        .start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["bob", "idle"] {
        wire.create(user).await;
    }
    drop(attach(&server, "bob", "phone").await);
    let numbers = send_numbered(&mut wire, "bob", 2).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let late = send_numbered(&mut wire, "bob", 1).await;
    // A part of the inbox expires; it is attached, so the account stays.
    let mut phone = attach(&server, "bob", "phone").await;
    for _ in 0..3 {
        phone.message().await;
    }
    hark_tests::wait_until("two messages to expire", || {
        answer(&server, &["show", "bob"])["acknowledged"] == numbers[1].0
    });
    hark_tests::wait_until("the idle account to end", || {
        answers(&server, &["users"]).len() == 1
    });
    hark_tests::wait_until("the last message to expire", || {
        answer(&server, &["show", "bob"])["acknowledged"] == late[0].0
    });
    server.wait_for_log("idle account removed");
}

#[tokio::test]
async fn compaction_gives_space_back() {
    let server = Harkd::builder().arg("--segment-size=1").start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["bob", "eve"] {
        wire.create(user).await;
    }
    // Two thirds of each segment stay.
    let text = "x".repeat(30_000);
    for n in 0..600 {
        let to = if n % 3 == 0 { "eve" } else { "bob" };
        wire.sent(to, &text).await;
    }
    let mut eve = Wire::connect(server.address()).await;
    for _ in 0..eve.receive("eve").await {
        let message = eve.message().await;
        eve.ack(message.sequence).await;
    }
    hark_tests::wait_until("acknowledgements to be decided", || {
        answer(&server, &["show", "eve"])["waiting"] == 0
    });
    let before = answer(&server, &["compact"])["file_bytes"]
        .as_u64()
        .unwrap();
    hark_tests::wait_until("files to shrink", || {
        let stats = answer(&server, &["stats"]);
        stats["file_bytes"].as_u64().unwrap() + (1 << 20) < before
    });
    let checked = answer(&server, &["check"]);
    assert_eq!(checked["messages"], 400, "{checked}");
    assert_eq!(checked["damaged"].to_string(), "[]");
}

#[tokio::test]
async fn check_names_the_damaged_inbox() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["bob", "eve"] {
        wire.create(user).await;
        wire.sent(user, &format!("for {user}: {}", "needle ".repeat(10)))
            .await;
    }
    assert_eq!(answer(&server, &["check"])["messages"], 2);
    damage(server.store(), b"for bob: needle");
    let error = failure(&server, &["check"]);
    assert!(error.contains("damaged: bob"), "{error}");
    assert!(!error.contains("eve"), "{error}");
}

/// Flips a bit of a text in the files of a store.
fn damage(store: &std::path::Path, text: &[u8]) {
    for folder in [store.to_owned(), store.join("log")] {
        for file in std::fs::read_dir(folder).into_iter().flatten() {
            let path = file.unwrap().path();
            let Ok(bytes) = std::fs::read(&path) else {
                continue;
            };
            if let Some(at) = bytes.windows(text.len()).position(|part| part == text) {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                return file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            }
        }
    }
    panic!("no file has the text");
}

#[tokio::test]
async fn hark_administers_over_the_network() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path().join("store");
    for user in ["ann", "bob"] {
        add_user(&store, user, Some("secret"));
    }
    let builder = Harkd::builder().store(StoreLocation::from(store));
    let server = builder.arg("--admin=ann").start();
    let state = tempfile::tempdir().unwrap();
    let run = |user: &str, arguments: &[&str]| {
        let mut command = hark(state.path());
        command
            .args(["--server", &server.address().to_string()])
            .args(["admin", "--as", user, "--json"])
            .args(arguments)
            .env("HARK_PASSWORD", "secret")
            .env("HARK_NEW_PASSWORD", "other secret");
        command.output().unwrap()
    };
    let stats = run("ann", &["stats"]);
    assert!(stats.status.success(), "{stats:?}");
    let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(stats["accounts"], 2);
    for arguments in [
        &["suspend", "bob"][..],
        &["throttle", "bob", "--bytes=1000"],
        &["set-password", "bob"],
        &["check"],
    ] {
        let output = run("ann", arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    assert_eq!(answer(&server, &["show", "bob"])["suspended"], true);
    let denied = run("bob", &["stats"]);
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    let to = state.path().join("backup");
    let backup = run("ann", &["backup", "--to", to.to_str().unwrap()]);
    assert_eq!(backup.status.code(), Some(1), "{backup:?}");
    drop(server);
    let mut command = hark(state.path());
    command
        .args(["--server", "127.0.0.1:1", "admin", "--as", "ann", "stats"])
        .env("HARK_PASSWORD", "secret");
    assert_eq!(command.output().unwrap().status.code(), Some(3));
}
