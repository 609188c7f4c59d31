//! The promise where the disk does not play along: a full disk under the real
//! server, and the order of its system calls.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hark_protocol::{Code, Failure, Frame, Reply, Request, Sequence};
use hark_tests::{Harkd, PATIENCE, SmallDisk, Wire, name, send, wait_until};
use tokio::time::timeout;

const DISK_MIB: u32 = 16;

/// Sends that are under way together.
const BURST: u32 = 20;

fn text(id: u32) -> String {
    format!("{id}:{}", "x".repeat(1000))
}

fn on(disk: &SmallDisk) -> Harkd {
    Harkd::builder().run_by(disk.enter()).store(disk.path().join("store")).start()
}

fn is_unavailable(reply: &Reply) -> bool {
    matches!(reply, Reply::Error { failure: Failure::Unavailable, .. })
}

/// Somebody who sends in a session, and repeats what was not answered.
#[derive(Default)]
struct Sender {
    last_id: u32,
    unanswered: BTreeMap<u32, String>,
    answered: Vec<String>,
}

impl Sender {
    /// One connection: repeats, then sends a burst. Whether the server has
    /// answered all; otherwise it has answered in order up to some send, none
    /// after it, and has closed.
    async fn burst(&mut self, server: &Harkd) -> bool {
        let mut wire = Wire::connect(server.address()).await;
        let hello = Request::Hello { version: 1, session: "session".parse().unwrap() };
        match wire.ask(hello).await {
            Reply::Ok(_) => {}
            reply if is_unavailable(&reply) => return false,
            other => panic!("{other:?}"),
        }
        while self.unanswered.len() < BURST as usize {
            self.last_id += 1;
            self.unanswered.insert(self.last_id, text(self.last_id));
        }
        wire.write_all(self.unanswered.iter().map(|(id, text)| (*id, send("bob", text)))).await;
        let mut is_fenced = false;
        while !self.unanswered.is_empty() {
            match wire.next().await {
                Some(Frame { id: Some(id), message: Reply::Ok(_) }) => {
                    assert!(!is_fenced, "an ok after an unavailable");
                    let (first, text) = self.unanswered.pop_first().unwrap();
                    assert_eq!(first, id.value());
                    self.answered.push(text);
                }
                Some(Frame { id: Some(_), message }) if is_unavailable(&message) => is_fenced = true,
                None => {
                    assert!(is_fenced, "closed without a reason");
                    return false;
                }
                other => panic!("{other:?}"),
            }
        }
        true
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
    texts
}

/// Repeats and sends until all is answered.
async fn recover(sender: &mut Sender, server: &Harkd) {
    timeout(PATIENCE, async {
        while !sender.burst(server).await {
            // It tries again by itself, from time to time.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the server does not go on");
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_answered_falsely_and_the_server_goes_on_after_it() {
    let disk = SmallDisk::new(DISK_MIB);
    let server = on(&disk);
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    wire.create("eve").await;
    let mut sender = Sender::default();
    for _ in 0..2 {
        assert!(sender.burst(&server).await);
        disk.fill();
        while sender.burst(&server).await {}
        // What is already there can be asked, and nothing new is taken.
        wire.ping().await;
        assert!(is_unavailable(&wire.ask(send("bob", "from nobody")).await));
        assert!(is_unavailable(&wire.ask(send("bob", "from nobody")).await), "and it stays open");
        assert!(is_unavailable(&wire.ask(Request::Create { user: name("amy"), password: None }).await));
        assert!(is_unavailable(&wire.ask(Request::Delete { user: name("eve"), password: None }).await));
        wire.ok(Request::Login { user: name("eve"), password: None }).await;
        wire.refused(Request::Login { user: name("amy"), password: None }, Code::NoSuchUser).await;
        wire.write(7, Request::List { pattern: None }).await;
        assert_eq!(wire.reply_to(7).await, Reply::List(vec![name("bob"), name("eve")]));
        assert!(matches!(wire.reply_to(7).await, Reply::Ok(_)));
        assert!(!sender.burst(&server).await, "it is still full");
        disk.free();
        recover(&mut sender, &server).await;
        wire.ok(Request::Login { user: name("eve"), password: None }).await;
    }
    let server = server.kill_and_restart();
    assert!(sender.unanswered.is_empty() && sender.answered.len() >= 4 * BURST as usize);
    let mut texts = read(&server, "bob").await;
    // These were answered `unavailable`: nobody knows.
    texts.retain(|text| text != "from nobody");
    assert_eq!(texts, sender.answered);
}

#[tokio::test]
async fn a_server_that_is_killed_on_a_full_disk_has_lost_nothing() {
    let disk = SmallDisk::new(DISK_MIB);
    let mut server = on(&disk);
    Wire::connect(server.address()).await.create("bob").await;
    let mut sender = Sender::default();
    disk.fill();
    while sender.burst(&server).await {}
    server.kill();
    disk.free();
    let server = server.restart();
    recover(&mut sender, &server).await;
    assert_eq!(read(&server, "bob").await, sender.answered);
}

#[tokio::test]
async fn a_server_that_cannot_start_on_a_full_disk_says_so_and_starts_when_there_is_room() {
    let disk = SmallDisk::new(DISK_MIB);
    let mut server = on(&disk);
    Wire::connect(server.address()).await.create("bob").await;
    let mut sender = Sender::default();
    assert!(sender.burst(&server).await);
    server.kill();
    disk.fill();
    for _ in 0..2 {
        let start = Harkd::builder().run_by(disk.enter()).store(disk.path().join("store")).try_start();
        let refusal = start.expect_err("a start after an unclean end needs room");
        assert_eq!(refusal.status.code(), Some(1), "{refusal:?}");
        let line = refusal.log.lines().last().unwrap();
        assert!(line.starts_with("harkd: ") && line.contains("No space left on device"), "{line}");
        assert!(!refusal.log.contains("panic"), "{refusal:?}");
    }
    disk.free();
    let server = server.restart();
    recover(&mut sender, &server).await;
    assert_eq!(read(&server, "bob").await, sender.answered);
}

#[tokio::test]
async fn a_disk_that_the_store_itself_has_filled_loses_nothing_and_is_used_again_when_there_is_room() {
    let disk = SmallDisk::new(240);
    // As much as a copy of the journals needs.
    disk.take(130);
    let folder = disk.path().join("store");
    let server = Harkd::builder().arg("--max-frame=16777215").run_by(disk.enter()).store(folder).start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    // Far more than is kept in memory: files are written and merged meanwhile.
    let large = |n: usize| format!("{n}:{}", "x".repeat(3 << 20));
    let mut answered = 0;
    loop {
        match wire.ask(send("bob", &large(answered))).await {
            Reply::Ok(_) => answered += 1,
            reply if is_unavailable(&reply) => break,
            other => panic!("{other:?}"),
        }
        assert!(answered < 100, "more than the disk holds");
    }
    assert!(answered > 10, "only {answered}");
    wire.ping().await;
    wire.ok(Request::Login { user: name("bob"), password: None }).await;
    disk.free();
    let goes_on = async {
        while is_unavailable(&wire.ask(Request::Create { user: name("amy"), password: None }).await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, goes_on).await.expect("the server does not go on");
    wire.sent("bob", "after it").await;
    let server = server.kill_and_restart();
    assert!(!server.log().contains("panic"), "{}", server.log());
    let mut texts = read(&server, "bob").await;
    assert_eq!(texts.pop().unwrap(), "after it");
    // The one that was answered `unavailable` may have been stored, at the end.
    assert!(texts.len() == answered || texts.len() == answered + 1, "{} of {answered}", texts.len());
    assert!(texts.iter().enumerate().all(|(n, text)| *text == large(n)));
}

/// A finished system call.
#[derive(Debug)]
struct Call {
    /// Lines of the trace.
    entered: usize,
    returned: usize,
    /// From its name to what it returned.
    text: String,
}

impl Call {
    fn is(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.text.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')))
    }

    fn is_sync(&self) -> bool {
        self.is(&["fdatasync", "fsync"])
    }

    /// The file that it is about.
    fn file(&self) -> &str {
        self.text.split(['(', ',', ')']).nth(1).unwrap()
    }
}

/// A server that is traced, and the calls that it has made.
struct Traced {
    server: Harkd,
    folder: tempfile::TempDir,
}

impl Traced {
    fn start(arguments: &[&str]) -> Self {
        let works = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
        let works = works.expect("strace: install the package strace");
        let said = String::from_utf8_lossy(&works.stderr);
        assert!(works.status.success(), "this test needs to trace processes (ptrace): {said}");
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("trace");
        let trace = "trace=recvfrom,sendto,write,fdatasync,fsync";
        // Detached, so that the process that is started becomes the server.
        let strace = ["strace", "-D", "-f", "-q", "-s", "500", "-e", trace, "-o", output.to_str().unwrap()];
        let builder = Harkd::builder().run_by(strace);
        let server = arguments.iter().fold(builder, |builder, argument| builder.arg(*argument)).start();
        Self { server, folder }
    }

    /// Stops the server.
    fn calls(mut self) -> Vec<Call> {
        self.server.signal("TERM");
        assert!(self.server.wait().success());
        let output = self.folder.path().join("trace");
        // A short process id is padded.
        let end = [&*self.server.pid().to_string(), "+++", "exited"];
        wait_until("the end of the trace", || {
            let trace = std::fs::read_to_string(&output).unwrap();
            trace.lines().any(|line| line.split_whitespace().take(3).eq(end))
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
            calls.push(Call { entered, returned: at, text: format!("{begin}{rest}") });
        } else {
            calls.push(Call { entered: at, returned: at, text: text.to_owned() });
        }
    }
    calls.sort_by_key(|call| call.entered);
    calls
}

/// The request with this in it was read, then synced, then answered.
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

/// How a request was read, and the first that was then written to its socket.
#[track_caller]
fn request<'a>(calls: &'a [Call], marker: &str) -> (&'a Call, &'a Call) {
    let read = calls.iter().find(|call| call.is(&["recvfrom"]) && call.text.contains(marker));
    let read = read.unwrap_or_else(|| panic!("{marker} was not read"));
    let answer = calls
        .iter()
        .find(|call| call.is(&["sendto"]) && call.file() == read.file() && call.entered > read.returned);
    (read, answer.unwrap_or_else(|| panic!("{marker} was not answered")))
}

/// Its text was written to a file, and this file was synced, before it was
/// answered.
#[track_caller]
fn check_stored(calls: &[Call], marker: &str) {
    let (read, answer) = request(calls, marker);
    let write = calls.iter().find(|call| call.is(&["write"]) && call.text.contains(marker));
    let write = write.unwrap_or_else(|| panic!("{marker} was not written"));
    let is_its_sync =
        |call: &&Call| call.is_sync() && call.file() == write.file() && call.entered > write.returned;
    let sync = calls.iter().find(is_its_sync).unwrap_or_else(|| panic!("{marker} was not synced"));
    assert!(read.returned < write.entered && sync.returned < answer.entered, "{marker}: not in order");
}

const SENDS: u32 = 50;

fn marker(n: u32) -> String {
    format!("marker-{n:04}.")
}

#[tokio::test]
async fn every_ok_is_written_after_the_sync_that_covers_it() {
    let traced = Traced::start(&[]);
    let mut wire = Wire::connect(traced.server.address()).await;
    let secret = |password: &str| Some(password.parse().unwrap());
    wire.ok(Request::Create { user: name("open-account"), password: None }).await;
    wire.ok(Request::Create { user: name("closed-account"), password: secret("first") }).await;
    let new = "new-password".parse().unwrap();
    wire.ok(Request::Password { user: name("closed-account"), old: secret("first"), new }).await;
    for n in 0..SENDS {
        wire.sent("open-account", &marker(n)).await;
    }
    wire.ok(Request::Delete { user: name("closed-account"), password: secret("new-password") }).await;
    wire.ok(Request::Delete { user: name("open-account"), password: None }).await;
    drop(wire);
    let calls = traced.calls();
    for n in 0..SENDS {
        check_synced(&calls, &marker(n));
        check_stored(&calls, &marker(n));
    }
    // As strace writes the frames: commands padded with NUL.
    let pad = |command: &str| format!("{command}{}", r"\0".repeat(15 - command.len()));
    check_synced(&calls, &format!("{}open-account", pad("create")));
    check_synced(&calls, &format!("{}closed-account", pad("create")));
    check_synced(&calls, &format!("{}closed-account", pad("password")));
    check_synced(&calls, &format!("{}closed-account", pad("delete")));
    check_synced(&calls, &format!("{}open-account", pad("delete")));
}

#[tokio::test]
async fn with_sync_os_a_send_waits_for_no_sync() {
    let traced = Traced::start(&["--sync=os"]);
    let mut wire = Wire::connect(traced.server.address()).await;
    // The first number may need one: numbers are set aside many at a time.
    wire.create("bob").await;
    for n in 0..SENDS {
        wire.sent("bob", &marker(n)).await;
    }
    drop(wire);
    let calls = traced.calls();
    let (first, last) = (request(&calls, &marker(0)).0, request(&calls, &marker(SENDS - 1)).1);
    let is_between = |call: &&Call| call.entered > first.returned && call.returned < last.entered;
    let between: Vec<&Call> = calls.iter().filter(is_between).collect();
    assert!(between.iter().any(|call| call.is(&["write"]) && call.text.contains(&marker(1))));
    assert!(!between.iter().any(|call| call.is_sync()), "{between:?}");
}
