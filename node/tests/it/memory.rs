//! The memory of the real binary after calls that timed out. The bound needs the
//! feature `jemalloc`: the system's allocator keeps the pages of a burst.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum that calls may leave behind, in KiB.
const LEFT_KIB_MAX: u64 = 5 * 1024;

/// The time in which jemalloc returns freed pages. It purges a page ten seconds after it
/// was freed, but the last 4 MiB only when its thread wakes again, ten seconds later.
const DECAY: Duration = Duration::from_secs(25);

const INIT: &str = r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2"]}}"#;
const PENDING_COUNT: &str =
    r#"{"src":"c1","dest":"n1","body":{"type":"pending_count","msg_id":1}}"#;

/// A node that has its name.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hark-node"))
            .env("RUST_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        process.ask(INIT);
        process
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin, "{line}").unwrap();
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).unwrap();
        answer
    }

    /// Opens calls that are never answered, and waits until none is open.
    fn time_out(&mut self, kind: &str, calls: usize) {
        let inner = r#"{"type":"echo","echo":"hello"}"#;
        let fields = format!(r#""type":"{kind}","target":"n2","payload":{inner},"inner":{inner}"#);
        thread::scope(|scope| {
            let stdin = &mut self.stdin;
            scope.spawn(move || {
                for id in 1..=calls {
                    writeln!(
                        stdin,
                        r#"{{"src":"c1","dest":"n1","body":{{{fields},"msg_id":{id}}}}}"#
                    )
                    .unwrap();
                }
            });
            // Each is sent on, and answered at once or with a timeout.
            for _ in 0..2 * calls {
                self.stdout.skip_until(b'\n').unwrap();
            }
        });
        while !self.ask(PENDING_COUNT).contains(r#""count": 0,"#) {
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns the resident memory in KiB, without the pages of the program.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("RssAnon:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[track_caller]
fn check(kind: &str, calls: usize) {
    let mut node = Process::start();
    // The code and the tables of a first call.
    node.time_out(kind, 1);
    let before = node.resident();
    node.time_out(kind, calls);
    let (since, mut left) = (Instant::now(), u64::MAX);
    while left > LEFT_KIB_MAX && since.elapsed() < DECAY {
        thread::sleep(Duration::from_millis(500));
        node.ask(PENDING_COUNT);
        left = node.resident().saturating_sub(before);
    }
    println!(
        "{calls} calls of {kind} leave {left} KiB after {:.1?}",
        since.elapsed()
    );
    assert!(
        left <= LEFT_KIB_MAX,
        "{calls} calls of {kind} leave {left} KiB"
    );
}

#[test]
fn a_million_callbacks_leave_less_than_5_mib() {
    check("send_fire_forget", 1_000_000);
}

#[test]
fn a_million_timed_out_calls_leave_less_than_5_mib() {
    check("proxy", 1_000_000);
}
