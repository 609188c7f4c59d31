//! The promise with a failing disk: a full disk under the real server, and the
//! order of its system calls.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hark_protocol::{Code, Reply, Request, Sequence};
use hark_tests::{Harkd, HarkdBuilder, SmallDisk, TIMEOUT, Wire, name, send, wait_until};
use tokio::time::timeout;

use super::http::curl;

/// Room for a few segments of 4 MiB and the reserve.
const DISK_MIB: u32 = 40;

/// Number of sends in flight.
const BURST: u32 = 20;

fn text(id: u32) -> String {
    format!("{id}:{}", "x".repeat(1000))
}

fn on(disk: &SmallDisk) -> Harkd {
    builder(disk).start()
}

fn builder(disk: &SmallDisk) -> HarkdBuilder {
    Harkd::builder()
        .run_by(disk.enter())
        .store(disk.path().join("store"))
}

/// A client that sends in a session and never repeats a refused send.
#[derive(Default)]
struct Sender {
    last_id: u32,
    stored: Vec<String>,
}

impl Sender {
    /// Sends a burst over a connection of its own. Returns whether all of it was
    /// stored; otherwise some of it was refused for lack of space.
    async fn burst(&mut self, server: &Harkd) -> bool {
        let mut wire = Wire::hello(server.address(), "session").await;
        let ids = self.last_id + 1..=self.last_id + BURST;
        wire.write_all(ids.clone().map(|id| (id, send("bob", &text(id)))))
            .await;
        let mut refused = 0;
        for id in ids {
            match wire.reply_to(id).await {
                Reply::Ok(_) => self.stored.push(text(id)),
                Reply::NotOk(refusal) if refusal.code == Code::NoSpace => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        self.last_id += BURST;
        refused == 0
    }

    /// Sends until a burst is stored, or until one is refused.
    async fn burst_until(&mut self, is_stored: bool, server: &Harkd) {
        let bursts = async {
            while self.burst(server).await != is_stored {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TIMEOUT, bursts)
            .await
            .expect("the server does not notice");
    }
}

/// Reads and acknowledges everything.
async fn read(server: &Harkd, user: &str) -> Vec<String> {
    let mut wire = Wire::connect(server.address()).await;
    let (mut texts, mut last) = (Vec::new(), Sequence(0));
    for _ in 0..wire.receive(user).await {
        let message = wire.message().await;
        assert!(message.sequence > last);
        last = message.sequence;
        wire.ack(last).await;
        texts.push(message.text.to_string());
    }
    // A barrier after the acknowledgements.
    wire.ok(Request::Create {
        user: name("barrier"),
        password: None,
    })
    .await;
    wire.ok(Request::Delete {
        user: name("barrier"),
        password: None,
    })
    .await;
    texts
}

#[tokio::test]
async fn full_disk_refuses_only_sends() {
    let disk = SmallDisk::new(DISK_MIB);
    let server = on(&disk);
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let (mut sender, mut received) = (Sender::default(), Vec::new());
    for _ in 0..2 {
        assert!(sender.burst(&server).await);
        disk.fill();
        sender.burst_until(false, &server).await;
        wire.refused(send("bob", "from nobody"), Code::NoSpace)
            .await;
        wire.refused(send("amy", "from nobody"), Code::NoSuchUser)
            .await;
        wire.ping().await;
        let ready = curl(&server, "/readyz", &[]);
        assert_eq!(ready.status, 200);
        assert!(ready.body.contains("low on disk space"), "{}", ready.body);
        wire.create("eve").await;
        wire.ok(Request::Login {
            user: name("eve"),
            password: None,
        })
        .await;
        wire.write(7, Request::List { pattern: None }).await;
        assert_eq!(
            wire.reply_to(7).await,
            Reply::List(vec![name("bob"), name("eve")])
        );
        assert!(matches!(wire.reply_to(7).await, Reply::Ok(_)));
        wire.ok(Request::Delete {
            user: name("eve"),
            password: None,
        })
        .await;
        received.extend(read(&server, "bob").await);
        assert_eq!(received, sender.stored);
        assert!(!sender.burst(&server).await, "it is still full");
        disk.free();
        sender.burst_until(true, &server).await;
    }
    let server = server.kill_and_restart();
    received.extend(read(&server, "bob").await);
    assert_eq!(received, sender.stored);
}

#[tokio::test]
async fn server_killed_on_a_full_disk_starts_on_it() {
    let disk = SmallDisk::new(DISK_MIB);
    let server = on(&disk);
    Wire::connect(server.address()).await.create("bob").await;
    let mut sender = Sender::default();
    disk.fill();
    sender.burst_until(false, &server).await;
    let server = server.kill_and_restart();
    assert!(!sender.burst(&server).await, "it is still full");
    assert_eq!(
        read(&server, "bob").await,
        std::mem::take(&mut sender.stored)
    );
    disk.free();
    sender.burst_until(true, &server).await;
    let server = server.kill_and_restart();
    assert_eq!(read(&server, "bob").await, sender.stored);
}

#[tokio::test]
async fn new_store_on_a_full_disk_is_refused_in_one_line() {
    let disk = SmallDisk::new(DISK_MIB);
    disk.fill();
    let refusal = builder(&disk).try_start().expect_err("no room for a store");
    assert_eq!(refusal.status.code(), Some(1), "{refusal:?}");
    let line = refusal.log.lines().last().unwrap();
    assert!(
        line.starts_with("harkd: ") && line.contains("No space left on device"),
        "{line}"
    );
    assert!(!refusal.log.contains("panic"), "{refusal:?}");
}

#[tokio::test]
async fn disk_filled_by_the_store_is_used_again() {
    let disk = SmallDisk::new(DISK_MIB);
    let server = builder(&disk).arg("--max-frame=3145728").start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let large = |n: usize| format!("{n}:{}", "x".repeat(1 << 20));
    let mut answered = 0;
    loop {
        match wire.ask(send("bob", &large(answered))).await {
            Reply::Ok(_) => answered += 1,
            Reply::NotOk(refusal) if refusal.code == Code::NoSpace => break,
            other => panic!("{other:?}"),
        }
        assert!(answered < DISK_MIB as usize, "more than the disk holds");
    }
    assert!(answered > 5, "only {answered}");
    wire.ok(Request::Login {
        user: name("bob"),
        password: None,
    })
    .await;
    let texts = read(&server, "bob").await;
    assert!(texts.iter().enumerate().all(|(n, text)| *text == large(n)));
    assert_eq!(texts.len(), answered);
    let goes_on = async {
        while !matches!(wire.ask(send("bob", &large(0))).await, Reply::Ok(_)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, goes_on)
        .await
        .expect("the space is not used again");
    let server = server.kill_and_restart();
    assert!(!server.log().contains("panic"), "{}", server.log());
    assert_eq!(read(&server, "bob").await, [large(0)]);
}

/// A finished system call.
#[derive(Debug)]
struct Call {
    /// Line numbers in the trace.
    entered: usize,
    returned: usize,
    /// The call from its name to its result.
    text: String,
}

impl Call {
    fn is(&self, names: &[&str]) -> bool {
        names.iter().any(|name| {
            self.text
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('('))
        })
    }

    fn is_sync(&self) -> bool {
        self.is(&["fdatasync", "fsync"])
    }

    /// Returns the file that the call refers to.
    fn file(&self) -> &str {
        self.text.split(['(', ',', ')']).nth(1).unwrap()
    }
}

/// A traced server, and its system calls.
struct Traced {
    server: Harkd,
    folder: tempfile::TempDir,
}

impl Traced {
    fn start(arguments: &[&str]) -> Self {
        let works = Command::new("strace")
            .args(["-o", "/dev/null", "true"])
            .output();
        let works = works.expect("strace: install the package strace");
        let said = String::from_utf8_lossy(&works.stderr);
        assert!(
            works.status.success(),
            "this test needs to trace processes (ptrace): {said}"
        );
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("trace");
        let trace = "trace=recvfrom,sendto,write,pwrite64,fdatasync,fsync";
        // Detached, so that the started process becomes the server.
        let strace = [
            "strace",
            "-D",
            "-f",
            "-q",
            "-s",
            "2000",
            "-e",
            trace,
            "-o",
            output.to_str().unwrap(),
        ];
        let builder = Harkd::builder().run_by(strace);
        let server = arguments
            .iter()
            .fold(builder, |builder, argument| builder.arg(*argument))
            .start();
        Self { server, folder }
    }

    /// Stops the server and returns its calls.
    fn calls(mut self) -> Vec<Call> {
        self.server.signal("TERM");
        assert!(self.server.wait().success());
        let output = self.folder.path().join("trace");
        // A short process id is padded.
        let end = [&*self.server.pid().to_string(), "+++", "exited"];
        wait_until("the end of the trace", || {
            let trace = std::fs::read_to_string(&output).unwrap();
            trace
                .lines()
                .any(|line| line.split_whitespace().take(3).eq(end))
        });
        calls(&output)
    }
}

fn calls(output: &Path) -> Vec<Call> {
    let trace = std::fs::read_to_string(output).unwrap();
    let (mut calls, mut unfinished) = (Vec::new(), HashMap::new());
    for (at, line) in trace.lines().enumerate() {
        let (thread, text) = line.split_once(' ').expect("a thread");
        let text = text.trim_start();
        if let Some(begin) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (at, begin));
        } else if let Some((_, rest)) = text.split_once(" resumed>") {
            let (entered, begin) = unfinished.remove(thread).expect("the begin of the call");
            calls.push(Call {
                entered,
                returned: at,
                text: format!("{begin}{rest}"),
            });
        } else {
            calls.push(Call {
                entered: at,
                returned: at,
                text: text.to_owned(),
            });
        }
    }
    calls.sort_by_key(|call| call.entered);
    calls
}

/// Checks that the request that contains `marker` was read, then synced, then
/// answered.
#[track_caller]
fn check_synced(calls: &[Call], marker: &str) {
    let (read, answer) = request(calls, marker);
    let sync = calls.iter().find(|call| {
        call.is_sync()
            && call.entered > read.returned
            && call.returned < answer.entered
            && call.text.ends_with("= 0")
    });
    assert!(sync.is_some(), "{marker} was answered before a sync");
}

/// Returns the read of a request, and the first write to its socket afterwards.
#[track_caller]
fn request<'a>(calls: &'a [Call], marker: &str) -> (&'a Call, &'a Call) {
    let read = calls
        .iter()
        .find(|call| call.is(&["recvfrom"]) && call.text.contains(marker));
    let read = read.unwrap_or_else(|| panic!("{marker} was not read"));
    let answer = calls.iter().find(|call| {
        call.is(&["sendto"]) && call.file() == read.file() && call.entered > read.returned
    });
    (
        read,
        answer.unwrap_or_else(|| panic!("{marker} was not answered")),
    )
}

/// Checks that the text was written to a file and the file synced before the
/// answer.
#[track_caller]
fn check_stored(calls: &[Call], marker: &str) {
    let (read, answer) = request(calls, marker);
    let write = calls
        .iter()
        .find(|call| call.is(&["write", "pwrite64"]) && call.text.contains(marker));
    let write = write.unwrap_or_else(|| panic!("{marker} was not written"));
    let is_its_sync = |call: &&Call| {
        call.is_sync() && call.file() == write.file() && call.entered > write.returned
    };
    let sync = calls
        .iter()
        .find(is_its_sync)
        .unwrap_or_else(|| panic!("{marker} was not synced"));
    assert!(
        read.returned < write.entered && sync.returned < answer.entered,
        "{marker}: not in order"
    );
}

const SENDS: u32 = 50;

fn marker(n: u32) -> String {
    format!("marker-{n:04}.")
}

#[tokio::test]
async fn every_ok_follows_its_sync() {
    let traced = Traced::start(&[]);
    let mut wire = Wire::connect(traced.server.address()).await;
    let secret = |password: &str| Some(password.parse().unwrap());
    wire.ok(Request::Create {
        user: name("open-account"),
        password: None,
    })
    .await;
    wire.ok(Request::Create {
        user: name("closed-account"),
        password: secret("first"),
    })
    .await;
    let new = "new-password".parse().unwrap();
    wire.ok(Request::Password {
        user: name("closed-account"),
        old: secret("first"),
        new,
    })
    .await;
    for n in 0..SENDS {
        wire.sent("open-account", &marker(n)).await;
    }
    wire.ok(Request::Delete {
        user: name("closed-account"),
        password: secret("new-password"),
    })
    .await;
    wire.ok(Request::Delete {
        user: name("open-account"),
        password: None,
    })
    .await;
    drop(wire);
    let calls = traced.calls();
    for n in 0..SENDS {
        check_synced(&calls, &marker(n));
        check_stored(&calls, &marker(n));
    }
    // As strace prints frames: commands padded with NUL.
    let pad = |command: &str| format!("{command}{}", r"\0".repeat(15 - command.len()));
    check_synced(&calls, &format!("{}open-account", pad("create")));
    check_synced(&calls, &format!("{}closed-account", pad("create")));
    check_synced(&calls, &format!("{}closed-account", pad("password")));
    check_synced(&calls, &format!("{}closed-account", pad("delete")));
    check_synced(&calls, &format!("{}open-account", pad("delete")));
}

#[tokio::test]
async fn sync_os_answers_without_sync() {
    let traced = Traced::start(&["--sync=os"]);
    let mut wire = Wire::connect(traced.server.address()).await;
    // The first number may need a sync: numbers are reserved in batches.
    wire.create("bob").await;
    for n in 0..SENDS {
        wire.sent("bob", &marker(n)).await;
    }
    drop(wire);
    let calls = traced.calls();
    let (first, last) = (
        request(&calls, &marker(0)).0,
        request(&calls, &marker(SENDS - 1)).1,
    );
    let is_between = |call: &&Call| call.entered > first.returned && call.returned < last.entered;
    let between: Vec<&Call> = calls.iter().filter(is_between).collect();
    let mut writes = between
        .iter()
        .filter(|call| call.is(&["write", "pwrite64"]));
    let write = writes
        .find(|call| call.text.contains(&marker(1)))
        .expect("it was written");
    // Other files may be prepared meanwhile.
    assert!(
        !between
            .iter()
            .any(|call| call.is_sync() && call.file() == write.file()),
        "{between:?}"
    );
}
