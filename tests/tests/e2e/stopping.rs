//! Shutdown of `harkd`, slow and failed starts, and its output: signals, exit
//! codes, flags and log.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hark_protocol::{ByeReason, Code, Frame, Reply, Request};
use hark_tests::{Classic, Harkd, HarkdBuilder, Wire, harkd, name, send};

use crate::slow_peers::fill_buffers;

const BYE: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::Shutdown));

fn create(user: &str, password: &str) -> Request {
    Request::Create {
        user: name(user),
        password: Some(password.parse().unwrap()),
    }
}

/// Returns a client that has requested more than it reads.
async fn blocked_client(server: &Harkd) -> Wire {
    let mut wire = Wire::connect(server.address()).await;
    fill_buffers(server, &mut wire).await;
    wire
}

#[tokio::test]
async fn sighup_without_changes_is_logged() {
    let mut server = Harkd::builder().certificate(None).start();
    let mut wire = Wire::connect(server.address()).await;
    server.signal("HUP");
    server.wait_for_log("configuration reloaded changed=\"\"");
    wire.ping().await;
    drop(wire);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn shutdown_answers_pending_requests_and_says_bye() {
    for signal in ["TERM", "INT"] {
        let mut server = Harkd::start();
        let mut reader = Wire::connect(server.address()).await;
        reader.create("bob").await;
        reader.receive("bob").await;
        let mut slow = Wire::connect(server.address()).await;
        // The first answer shows that the second request was accepted. Hashing
        // takes longer than the signal.
        let eve = Request::Create {
            user: name("eve"),
            password: None,
        };
        slow.write_all([(1, eve), (2, create("amy", "secret"))])
            .await;
        slow.reply_to(1).await;
        server.signal(signal);
        assert!(
            matches!(slow.reply_to(2).await, Reply::Ok(_)),
            "on SIG{signal}"
        );
        assert_eq!(slow.next().await, Some(BYE));
        assert_eq!(slow.next().await, None);
        assert_eq!(reader.next().await, Some(BYE));
        assert_eq!(reader.next().await, None);
        drop((slow, reader));
        assert_eq!(server.wait().code(), Some(0));
        assert!(server.log().contains("stopped"), "{}", server.log());
        let server = server.restart();
        let mut wire = Wire::connect(server.address()).await;
        wire.refused(create("amy", "secret"), Code::Exists).await;
    }
}

#[tokio::test]
async fn send_stored_during_shutdown_is_answered() {
    let mut server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    wire.write_all((1..=1000).map(|id| (id, send("bob", &id.to_string()))))
        .await;
    server.signal("TERM");
    let mut answered = Vec::new();
    loop {
        match wire.next().await {
            Some(Frame {
                id: Some(id),
                message: Reply::Ok(_),
            }) => answered.push(id.value().to_string()),
            Some(BYE) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(wire.next().await, None);
    drop(wire);
    assert!(server.wait().success());
    let server = server.restart();
    let mut bob = Wire::connect(server.address()).await;
    let mut stored = Vec::new();
    for _ in 0..bob.receive("bob").await {
        let message = bob.message().await;
        bob.ack(message.sequence).await;
        stored.push(message.text.to_string());
    }
    assert_eq!(stored, answered);
}

#[tokio::test]
async fn stopping_server_accepts_no_connection() {
    let mut server = Harkd::builder().arg("--drain-timeout=1").start();
    let holdout = blocked_client(&server).await;
    let mut wire = Wire::connect(server.address()).await;
    wire.ping().await;
    server.signal("TERM");
    assert_eq!(wire.next().await, Some(BYE));
    let refused = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    drop(holdout);
    assert!(server.wait().success());
}

#[tokio::test]
async fn acks_around_the_bye_count() {
    let mut server = Harkd::start();
    let mut sender = Wire::connect(server.address()).await;
    let mut readers = Vec::new();
    for user in ["before", "after"] {
        sender.create(user).await;
        for n in 1..=5 {
            sender.sent(user, &n.to_string()).await;
        }
        let mut reader = Wire::connect(server.address()).await;
        reader.receive(user).await;
        let mut numbers = Vec::new();
        for _ in 1..=5 {
            numbers.push(reader.message().await.sequence);
        }
        readers.push((reader, numbers));
    }
    let [(before, their), (after, its)] = &mut readers[..] else {
        panic!()
    };
    before
        .write(
            0,
            Request::Ack {
                log: None,
                sequence: their[2],
            },
        )
        .await;
    server.signal("TERM");
    assert_eq!(after.next().await, Some(BYE));
    after
        .write(
            0,
            Request::Ack {
                log: None,
                sequence: its[3],
            },
        )
        .await;
    assert_eq!(after.next().await, None);
    assert_eq!(before.next().await, Some(BYE));
    drop(readers);
    drop(sender);
    assert!(server.wait().success());
    let server = server.restart();
    for (user, left) in [("before", ["4", "5"].as_slice()), ("after", &["5"])] {
        let mut reader = Wire::connect(server.address()).await;
        assert_eq!(reader.receive(user).await, left.len() as u64, "{user}");
        for text in left {
            assert_eq!(&*reader.message().await.text, *text, "{user}");
        }
    }
}

#[tokio::test]
async fn classic_clients_get_no_bye() {
    let mut server = Harkd::start();
    let mut bob = Classic::connect(server.address()).await;
    bob.ok("create", "bob").await;
    bob.ok("connect", "bob").await;
    server.signal("TERM");
    assert_eq!(bob.next().await, None);
    drop(bob);
    assert!(server.wait().success());
}

#[tokio::test]
async fn blocked_clients_delay_shutdown_by_drain_timeout() {
    let mut server = Harkd::builder().arg("--drain-timeout=1").start();
    let _holdout = blocked_client(&server).await;
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    let took = start.elapsed();
    // Some extra time for closing the connections and for a slow machine.
    assert!(
        (Duration::from_secs(1)..Duration::from_secs(8)).contains(&took),
        "it took {took:?}"
    );
    assert!(
        server
            .log()
            .contains("drain timeout: closing the remaining connections"),
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let mut server = Harkd::builder().arg("--drain-timeout=600").start();
        let _holdout = blocked_client(&server).await;
        server.signal(first);
        server.wait_for_log("draining: no new connections");
        server.signal(second);
        assert_eq!(
            server.wait().code(),
            Some(1),
            "SIG{first}, then SIG{second}"
        );
    }
}

/// Returns the one-line error of a server that does not start.
#[track_caller]
fn refusal(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    );
    assert!(
        status.code().is_some_and(|code| code != 0),
        "{status}: {stderr}"
    );
    assert_eq!(stdout, "");
    let said: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.contains(" INFO ") && !line.contains(" WARN "))
        .collect();
    let [line] = said[..] else {
        panic!("not one line:\n{stderr}")
    };
    line.to_owned()
}

/// Returns a command for a server on this store that should not start.
fn harkd_on(store: &Path) -> Command {
    let mut command = harkd();
    command.args(["--listen=127.0.0.1:0", "--store"]).arg(store);
    command
}

#[track_caller]
fn check_refusal(command: &mut Command, words: &[&str]) {
    let line = refusal(command);
    assert!(line.starts_with("harkd: "), "{line}");
    assert!(
        words.iter().all(|word| line.contains(word)),
        "{line:?} lacks one of {words:?}"
    );
}

#[test]
fn taken_port_is_refused_with_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = harkd();
    command.args(["--listen", &address, "--store=memory:"]);
    check_refusal(&mut command, &[&address, "in use", "--listen"]);
}

#[test]
fn store_in_use_is_refused_and_untouched() {
    let server = Harkd::start();
    let path = server.store().display().to_string();
    let pid = format!("in use by another harkd (pid {})", server.pid());
    check_refusal(
        &mut harkd_on(server.store()),
        &[&path, &pid, "choose another"],
    );
    let server = server.kill_and_restart();
    assert!(server.store().join("FORMAT").exists());
}

/// The test holds the lock of the store, for which an open waits.
#[test]
fn port_refuses_connections_until_store_is_open() {
    let mut server = Harkd::start();
    server.kill();
    let lock = File::open(server.store().join("LOCK")).unwrap();
    lock.lock().unwrap();
    let mut starting = harkd()
        .args(["--listen", &server.address().to_string(), "--store"])
        .arg(server.store())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(starting.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let is_waiting = log.any(|line| line.contains("waiting for its lock"));
    let before = TcpStream::connect(server.address());
    lock.unlock().unwrap();
    let is_listening = log.any(|line| line.contains("listening"));
    let after = TcpStream::connect(server.address());
    starting.kill().unwrap();
    starting.wait().unwrap();
    assert!(is_waiting && is_listening);
    assert_eq!(before.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    after.unwrap();
}

#[test]
fn foreign_folder_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let path = folder.path().display().to_string();
    check_refusal(
        &mut harkd_on(folder.path()),
        &[&path, "holds no store", "choose"],
    );
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["thesis.txt"]);
}

#[test]
fn newer_store_format_is_refused() {
    let mut server = Harkd::start();
    server.signal("TERM");
    assert!(server.wait().success());
    fs::write(server.store().join("FORMAT"), "hark store 99\n").unwrap();
    check_refusal(
        &mut harkd_on(server.store()),
        &[
            "its format is 99",
            "reads format 3",
            "version that wrote it",
        ],
    );
}

#[test]
fn unusable_store_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (store, remedy) in [(file.clone(), "--store"), (file.join("store"), "check")] {
        check_refusal(
            &mut harkd_on(&store),
            &[&store.display().to_string(), remedy],
        );
    }
    // Even root cannot follow a link that leads to itself.
    let knot = folder.path().join("knot");
    std::os::unix::fs::symlink(&knot, &knot).unwrap();
    check_refusal(
        &mut harkd_on(&knot),
        &[&knot.display().to_string(), "check"],
    );
}

#[test]
fn invalid_flags_are_refused() {
    for (flag, words) in [
        ("--frobnicate", ["unexpected argument", "--help"]),
        (
            "--listen=nowhere",
            ["--listen <ADDRESS:PORT|unix:PATH>", "--help"],
        ),
        ("--max-frame=10", ["1024..=16777215", "--help"]),
        ("--ack-timeout=0", ["1..=86400", "--help"]),
        ("--sync=never", ["always, os", "--help"]),
        ("--registration=maybe", ["open, closed", "--help"]),
        ("--max-list=-1", ["--max-list <COUNT>", "--help"]),
    ] {
        let Output { status, stderr, .. } =
            harkd().args([flag, "--store=memory:"]).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{flag}: {stderr}");
        assert!(
            words.iter().all(|word| stderr.contains(word)),
            "{stderr:?} lacks one of {words:?}"
        );
    }
    let mut command = harkd();
    command.args(["--log=loud", "--store=memory:"]);
    check_refusal(
        &mut command,
        &["--log", "loud", "expected error, warn, info"],
    );
}

#[tokio::test]
async fn memory_store_writes_no_file() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let builder = Harkd::builder()
        .run_by(["env", "--chdir", path])
        .env("HOME", path);
    let server = builder
        .env("XDG_DATA_HOME", path)
        .env("TMPDIR", path)
        .store("memory:")
        .start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    wire.sent("bob", "hello").await;
    assert_eq!(wire.receive("bob").await, 1);
    assert_eq!(&*wire.message().await.text, "hello");
    assert!(server.log().contains("in memory"), "{}", server.log());
    let first = server.log().lines().next().unwrap_or_default().to_owned();
    assert!(
        first.contains("starting harkd") && first.contains("store=memory:"),
        "{first}"
    );
    let server = server.kill_and_restart();
    let mut wire = Wire::connect(server.address()).await;
    wire.refused(send("bob", "hello"), Code::NoSuchUser).await;
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn help_lists_every_flag_with_variable_and_default() {
    let Output { status, stdout, .. } = harkd().arg("--help").output().unwrap();
    assert!(status.success());
    let help = String::from_utf8(stdout).unwrap();
    let blocks: Vec<&str> = help.split("\n      --").skip(1).collect();
    for (flag, default) in [
        ("listen", "127.0.0.1:3000"),
        ("store", "the folder `hark` in the user's data directory"),
        ("sync", "always"),
        ("numbers-after", ""),
        ("segment-size", "64"),
        ("require-password", ""),
        ("registration", "open"),
        ("max-frame", "65536"),
        ("max-connections", "120000"),
        ("max-connections-per-address", "1000"),
        ("max-queued-messages", "100000"),
        ("max-queued-bytes", "268435456"),
        ("max-accounts", "1000000"),
        ("max-sessions", "250000"),
        ("max-list", "10000"),
        ("ack-timeout", "60"),
        ("drain-timeout", "10"),
        ("log", "info"),
        ("log-format", "text"),
    ] {
        let is_its = |block: &&&str| block.split([' ', '\n']).next() == Some(flag);
        let block = blocks
            .iter()
            .find(is_its)
            .unwrap_or_else(|| panic!("no --{flag} in\n{help}"));
        // The help is wrapped to the terminal.
        let block = block.split_whitespace().collect::<Vec<_>>().join(" ");
        let variable = format!("[env: HARKD_{}=", flag.to_uppercase().replace('-', "_"));
        assert!(block.contains(&variable), "{block}");
        assert!(
            default.is_empty() || block.contains(&format!("[default: {default}]")),
            "{block}"
        );
    }
}

#[test]
fn version_is_that_of_the_package() {
    let Output { status, stdout, .. } = harkd().arg("--version").output().unwrap();
    assert!(status.success());
    assert_eq!(
        String::from_utf8(stdout).unwrap(),
        concat!("harkd ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[tokio::test]
async fn flags_override_environment_variables() {
    let builder = Harkd::builder()
        .env("HARKD_MAX_FRAME", "5000")
        .env("HARKD_MAX_ACCOUNTS", "7");
    let builder = builder
        .env("HARKD_REQUIRE_PASSWORD", "yes")
        .env("HARKD_ADMIN", "")
        .env("HARKD_TLS_ONLY", "0")
        .env("HARKD_LOG_FORMAT", "json");
    let server = builder.arg("--max-accounts=1").start();
    let mut wire = Wire::connect(server.address()).await;
    let hello = Request::Hello {
        version: 1,
        session: "s".parse().unwrap(),
    };
    assert_eq!(wire.ok(hello).await.as_hello(), Some((1, 5000)));
    wire.refused(
        Request::Create {
            user: name("bob"),
            password: None,
        },
        Code::Denied,
    )
    .await;
    wire.ok(create("bob", "secret")).await;
    wire.refused(create("eve", "secret"), Code::TooMany).await;
    assert!(server.log().starts_with('{'), "{}", server.log());

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check_refusal(
        harkd()
            .env("HARKD_LISTEN", &address)
            .env("HARKD_STORE", "memory:"),
        &[&address],
    );
    let store = server.store().display().to_string();
    check_refusal(
        harkd()
            .env("HARKD_LISTEN", "127.0.0.1:0")
            .env("HARKD_STORE", &store),
        &[&store],
    );
}

/// Secrets that must not be logged, neither as text nor as byte values.
const SECRETS: [&str; 2] = ["Tarantella", "Sesamkringel"];

/// Sends texts and passwords in every way, valid and invalid, to a server at
/// the most verbose log level. Returns its log.
async fn log_of_secrets(builder: HarkdBuilder) -> String {
    let [text, password] = SECRETS;
    let mut server = builder.arg("--log=trace").start();
    native_secrets(&server, text, password).await;
    classic_secrets(&server, text, password).await;
    server.kill();
    let log = server.log();
    server = server.restart();
    let mut bob = Wire::connect(server.address()).await;
    let connect = Request::Connect {
        user: name("bob"),
        password: Some(password.parse().unwrap()),
    };
    assert_eq!(bob.ok(connect).await.as_queued(), Some(1));
    assert_eq!(&*bob.message().await.text, text);
    server.signal("TERM");
    while bob.next().await.is_some() {}
    drop(bob);
    assert!(server.wait().success());
    log + &server.log()
}

async fn native_secrets(server: &Harkd, text: &str, password: &str) {
    let mut wire = Wire::hello(server.address(), "session").await;
    let secret = || Some(password.parse().unwrap());
    wire.ok(create("bob", password)).await;
    wire.ok(Request::Login {
        user: name("bob"),
        password: secret(),
    })
    .await;
    let wrong = Some(format!("not{password}").parse().unwrap());
    wire.refused(
        Request::Login {
            user: name("bob"),
            password: wrong,
        },
        Code::Denied,
    )
    .await;
    let new = format!("new{password}").parse().unwrap();
    wire.ok(Request::Password {
        user: name("bob"),
        old: secret(),
        new,
    })
    .await;
    let old = Some(format!("new{password}").parse().unwrap());
    let new = password.parse().unwrap();
    wire.ok(Request::Password {
        user: name("bob"),
        old,
        new,
    })
    .await;
    wire.sent("bob", text).await;
    wire.refused(send("eve", text), Code::NoSuchUser).await;
    wire.refused(send("bob", &text.repeat(6530)), Code::TooLarge)
        .await;
    for (command, payload) in [
        ("sned", text),
        ("send", text),
        ("ack", text),
        ("create", &*format!(",{password}")),
    ] {
        let length = u32::try_from(19 + payload.len()).unwrap();
        let message = Classic::bare(command, payload);
        wire.write_bytes(&[&length.to_be_bytes()[..], &7_u32.to_be_bytes(), &message].concat())
            .await;
    }
    wire.write_bytes(&[&[0, 0, 0, 18], text.as_bytes()].concat())
        .await;
    while wire.next().await.is_some() {}
}

async fn classic_secrets(server: &Harkd, text: &str, password: &str) {
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("create", &format!("amy,{password}")).await;
    classic.ok("send", &format!("amy,{text}")).await;
    classic.ok("connect", &format!("amy,{password}")).await;
    assert_eq!(classic.text().await, text);
    for (command, payload) in [
        ("sned", text),
        ("login", &*format!("amy,not{password}")),
        ("password", password),
    ] {
        assert_eq!(classic.ask(command, payload).await.0, "notok", "{command}");
    }
    assert_eq!(
        classic
            .ask("send", &format!("amy,{}", text.repeat(300)))
            .await
            .0,
        "notok"
    );
    let mut wrong = Classic::connect(server.address()).await;
    wrong.write(format!("Z{text}{password}").as_bytes()).await;
    assert_eq!(wrong.next().await, None);
}

#[track_caller]
fn check_secrecy(log: &str) {
    assert!(
        log.contains("DEBUG") && log.contains("wrong password") && log.contains("0x5a"),
        "{log}"
    );
    for secret in SECRETS {
        let numbers = format!("{:?}", secret.as_bytes());
        for form in [secret, numbers.trim_matches(['[', ']'])] {
            let leak = log.lines().find(|line| line.contains(form));
            assert_eq!(leak, None, "{secret} is in the log");
        }
    }
}

#[tokio::test]
async fn log_has_neither_texts_nor_passwords() {
    check_secrecy(&log_of_secrets(Harkd::builder()).await);
}

#[tokio::test]
async fn json_log_has_an_object_per_line() {
    let log = log_of_secrets(Harkd::builder().arg("--log-format=json")).await;
    check_secrecy(&log);
    for line in log.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            entry["fields"]["message"].is_string() && entry["level"].is_string(),
            "{line}"
        );
    }
}
