//! The real binary: its output for its input, byte for byte. The test plays the
//! network for its calls.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The maximum time of each step.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// The number of runs of each sample.
const ROUNDS: usize = 3;

const INIT: &str = r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1"]}}"#;
const INIT_OF_TWO: &str = r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2"]}}"#;
const INIT_OK: &str =
    r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#;

fn hark_node() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hark-node"));
    command.env_remove("RUST_LOG");
    command
}

/// A node in a process.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Process {
    fn start() -> Self {
        Self::start_with(Stdio::piped(), Stdio::piped())
    }

    /// A stream that is not a pipe yields no lines.
    fn start_with(stdout: Stdio, stderr: Stdio) -> Self {
        let mut child = hark_node()
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("the binary is built with the test");
        let stdout = child.stdout.take().map_or_else(|| mpsc::channel().1, lines);
        let stderr = child.stderr.take().map_or_else(|| mpsc::channel().1, lines);
        Self {
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
        }
    }

    /// Starts a node that has its name.
    #[track_caller]
    fn initialised() -> Self {
        let mut node = Self::start();
        node.write(&[INIT_OF_TWO]);
        node.expect(&[INIT_OK]);
        node
    }

    fn write(&mut self, lines: &[&str]) {
        self.write_bytes(text(lines).as_bytes());
    }

    fn write_bytes(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    /// Expects these lines next.
    #[track_caller]
    fn expect(&self, lines: &[&str]) {
        for expected in lines {
            let line = self
                .stdout
                .recv_timeout(WAIT_MAX)
                .expect("the node puts out another line");
            assert_eq!(line, format!("{expected}\n"));
        }
    }

    /// Ends the input, expects no more output, and returns the log.
    #[track_caller]
    fn end(mut self) -> String {
        drop(self.stdin.take());
        assert_eq!(rest(&self.stdout), "", "the node has put out this besides");
        let log = rest(&self.stderr);
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{log}");
        log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Reads lines with their ends on another thread.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 || sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Returns all lines up to the end.
#[track_caller]
fn rest(lines: &Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match lines.recv_timeout(WAIT_MAX) {
            Ok(line) => text.push_str(&line),
            Err(RecvTimeoutError::Disconnected) => return text,
            Err(RecvTimeoutError::Timeout) => panic!("the node does not end; so far: {text}"),
        }
    }
}

/// A pipe without a reader.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn text(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Checks the output for the input all at once, byte by byte, and without its
/// last newline.
#[track_caller]
fn check(input: &[&str], expected: &[&str]) {
    let input = text(input);
    for _ in 0..ROUNDS {
        for piece in [input.len(), 1] {
            let mut node = Process::start();
            input
                .as_bytes()
                .chunks(piece)
                .for_each(|piece| node.write_bytes(piece));
            node.expect(expected);
            assert_eq!(node.end(), "");
        }
        let mut node = Process::start();
        node.write_bytes(input.trim_end().as_bytes());
        drop(node.stdin.take());
        node.expect(expected);
        assert_eq!(node.end(), "");
    }
}

/// Writes line by line, and expects the output of each.
#[track_caller]
fn converse(steps: &[(&str, &[&str])]) {
    for _ in 0..ROUNDS {
        let mut node = Process::initialised();
        for (line, expected) in steps {
            node.write(&[line]);
            node.expect(expected);
        }
        assert_eq!(node.end(), "");
    }
}

#[test]
fn an_echo_is_answered() {
    check(
        &[
            INIT,
            r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":2,"echo":"async"}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "c1", "body": {"type": "echo_ok", "echo": "async", "in_reply_to": 2, "msg_id": 1}}"#,
        ],
    );
}

#[test]
fn an_echo_keeps_keys_numbers_and_characters() {
    check(
        &[
            INIT,
            r#"{"src":"c1","dest":"n1","body":{"echo":{"z":1.50,"a":[1e400,-0,"é😀\/\u0041"]},"msg_id":0,"type":"echo"}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "c1", "body": {"type": "echo_ok", "echo": {"z": 1.50, "a": [1e400, -0, "\u00e9\ud83d\ude00/A"]}, "in_reply_to": 0, "msg_id": 1}}"#,
        ],
    );
}

#[test]
fn a_batch_without_replies_sends_its_echoes_and_no_answer() {
    check(
        &[
            INIT,
            r#"{"src":"c1","dest":"n1","body":{"type":"batch_echo","msg_id":2,"values":["x"]}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": "x", "msg_id": 1}}"#,
        ],
    );
}

#[test]
fn an_empty_batch_is_answered_at_once() {
    check(
        &[
            INIT,
            r#"{"src":"c1","dest":"n1","body":{"type":"batch_echo","msg_id":2,"values":[]}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "c1", "body": {"type": "batch_echo_ok", "results": [], "in_reply_to": 2, "msg_id": 1}}"#,
        ],
    );
}

#[test]
fn a_proxy_without_a_reply_passes_the_request_on_and_no_more() {
    check(
        &[
            INIT_OF_TWO,
            r#"{"src":"c1","dest":"n1","body":{"type":"proxy","msg_id":2,"target":"n2","inner":{"type":"echo","echo":"test"}}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "n2", "body": {"type": "echo", "echo": "test", "msg_id": 1}}"#,
        ],
    );
}

#[test]
fn a_forwarded_body_keeps_its_order_and_gets_our_id_at_its_end() {
    check(
        &[
            INIT_OF_TWO,
            r#"{"src":"c1","dest":"n1","body":{"type":"relay","msg_id":2,"target":"n2","payload":{"msg_id":77,"z":1.0,"type":"q","in_reply_to":5,"a":null}}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "n2", "body": {"z": 1.0, "type": "q", "a": null, "msg_id": 1}}"#,
        ],
    );
}

#[test]
fn open_calls_are_counted() {
    check(
        &[
            INIT_OF_TWO,
            r#"{"src":"c1","dest":"n1","body":{"type":"pending_count","msg_id":2}}"#,
            r#"{"src":"c1","dest":"n1","body":{"type":"send_fire_forget","msg_id":3,"target":"n2","payload":{"type":"echo","echo":1}}}"#,
            r#"{"src":"c1","dest":"n1","body":{"type":"proxy","msg_id":4,"target":"n2","inner":{"type":"read"}}}"#,
            r#"{"src":"c1","dest":"n1","body":{"type":"pending_count","msg_id":5}}"#,
        ],
        &[
            INIT_OK,
            r#"{"src": "n1", "dest": "c1", "body": {"type": "pending_count_ok", "count": 0, "in_reply_to": 2, "msg_id": 1}}"#,
            r#"{"src": "n1", "dest": "n2", "body": {"type": "echo", "echo": 1, "msg_id": 2}}"#,
            r#"{"src": "n1", "dest": "c1", "body": {"type": "send_fire_forget_ok", "pending": 1, "in_reply_to": 3, "msg_id": 3}}"#,
            r#"{"src": "n1", "dest": "n2", "body": {"type": "read", "msg_id": 4}}"#,
            r#"{"src": "n1", "dest": "c1", "body": {"type": "pending_count_ok", "count": 2, "in_reply_to": 5, "msg_id": 5}}"#,
        ],
    );
}

#[test]
fn the_results_of_a_batch_are_in_the_order_of_its_values() {
    converse(&[
        (
            r#"{"src":"c1","dest":"n1","body":{"type":"batch_echo","msg_id":1,"values":["a","b","c"]}}"#,
            &[
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": "a", "msg_id": 1}}"#,
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": "b", "msg_id": 2}}"#,
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": "c", "msg_id": 3}}"#,
            ],
        ),
        // The echoes and their replies come in another order.
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"echo","echo":"c","msg_id":3}}"#,
            &[
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo_ok", "echo": "c", "in_reply_to": 3, "msg_id": 4}}"#,
            ],
        ),
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"echo","echo":"a","msg_id":1}}"#,
            &[
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo_ok", "echo": "a", "in_reply_to": 1, "msg_id": 5}}"#,
            ],
        ),
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"echo_ok","echo":"c","in_reply_to":3,"msg_id":4}}"#,
            &[],
        ),
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"echo_ok","echo":"b","in_reply_to":2,"msg_id":6}}"#,
            &[],
        ),
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"echo_ok","echo":"a","in_reply_to":1,"msg_id":5}}"#,
            &[
                r#"{"src": "n1", "dest": "c1", "body": {"type": "batch_echo_ok", "results": ["a", "b", "c"], "in_reply_to": 1, "msg_id": 6}}"#,
            ],
        ),
    ]);
}

#[test]
fn a_batch_with_a_failure_gets_one_error() {
    converse(&[
        (
            r#"{"src":"c1","dest":"n1","body":{"type":"batch_echo","msg_id":1,"values":[1,2]}}"#,
            &[
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": 1, "msg_id": 1}}"#,
                r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": 2, "msg_id": 2}}"#,
            ],
        ),
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"error","code":11,"text":"busy","in_reply_to":2,"msg_id":9}}"#,
            &[
                r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 11, "text": "busy", "in_reply_to": 1, "msg_id": 3}}"#,
            ],
        ),
        (
            r#"{"src":"n1","dest":"n1","body":{"type":"error","code":11,"in_reply_to":1}}"#,
            &[],
        ),
    ]);
}

#[test]
fn a_batch_that_is_not_answered_gets_one_error_0() {
    let mut node = Process::initialised();
    node.write(&[
        r#"{"src":"c1","dest":"n1","body":{"type":"batch_echo","msg_id":1,"values":[1,2]}}"#,
    ]);
    node.expect(&[
        r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": 1, "msg_id": 1}}"#,
        r#"{"src": "n1", "dest": "n1", "body": {"type": "echo", "echo": 2, "msg_id": 2}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 0, "text": "no reply came in time", "in_reply_to": 1, "msg_id": 3}}"#,
    ]);
    let log = node.end();
    assert!(log.contains("reaped=2"), "{log}");
}

#[test]
fn a_proxy_passes_the_whole_reply_back() {
    converse(&[
        (
            r#"{"src":"c1","dest":"n1","body":{"type":"proxy","msg_id":1,"target":"n2","inner":{"type":"echo","echo":"hello"}}}"#,
            &[
                r#"{"src": "n1", "dest": "n2", "body": {"type": "echo", "echo": "hello", "msg_id": 1}}"#,
            ],
        ),
        (
            r#"{"src":"n2","dest":"n1","body":{"type":"echo_ok","echo":"hello","in_reply_to":1,"msg_id":40}}"#,
            &[
                r#"{"src": "n1", "dest": "c1", "body": {"type": "proxy_ok", "result": {"type": "echo_ok", "echo": "hello", "in_reply_to": 1, "msg_id": 40}, "in_reply_to": 1, "msg_id": 2}}"#,
            ],
        ),
    ]);
}

#[test]
fn a_proxy_passes_an_error_back_with_its_code() {
    converse(&[
        (
            r#"{"src":"c1","dest":"n1","body":{"type":"proxy","msg_id":1,"target":"n2","inner":{"type":"cas"}}}"#,
            &[r#"{"src": "n1", "dest": "n2", "body": {"type": "cas", "msg_id": 1}}"#],
        ),
        (
            r#"{"src":"n2","dest":"n1","body":{"type":"error","code":1234,"text":"no","in_reply_to":1}}"#,
            &[
                r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 1234, "text": "no", "in_reply_to": 1, "msg_id": 2}}"#,
            ],
        ),
    ]);
}

#[test]
fn a_proxy_waits_in_vain_and_does_not_hold_up_others() {
    let mut node = Process::initialised();
    node.write(&[
        r#"{"src":"c1","dest":"n1","body":{"type":"proxy","msg_id":1,"target":"n2","inner":{"type":"q"}}}"#,
        r#"{"src":"c2","dest":"n1","body":{"type":"echo","msg_id":1,"echo":[]}}"#,
    ]);
    node.expect(&[
        r#"{"src": "n1", "dest": "n2", "body": {"type": "q", "msg_id": 1}}"#,
        r#"{"src": "n1", "dest": "c2", "body": {"type": "echo_ok", "echo": [], "in_reply_to": 1, "msg_id": 2}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 0, "text": "no reply came in time", "in_reply_to": 1, "msg_id": 3}}"#,
    ]);
    node.write(&[
        r#"{"src":"n2","dest":"n1","body":{"type":"q_ok","in_reply_to":1,"msg_id":4}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"pending_count","msg_id":2}}"#,
    ]);
    node.expect(&[
        r#"{"src": "n1", "dest": "c1", "body": {"type": "pending_count_ok", "count": 0, "in_reply_to": 2, "msg_id": 4}}"#,
    ]);
    let log = node.end();
    assert!(log.contains("late reply dropped"), "{log}");
}

#[test]
fn a_relay_says_which_attempt_was_answered() {
    converse(&[
        (
            r#"{"src":"c1","dest":"n1","body":{"type":"relay","msg_id":1,"target":"n2","payload":{"type":"echo","echo":1}}}"#,
            &[r#"{"src": "n1", "dest": "n2", "body": {"type": "echo", "echo": 1, "msg_id": 1}}"#],
        ),
        // An indefinite error is retried.
        (
            r#"{"src":"n2","dest":"n1","body":{"type":"error","code":13,"text":"oh","in_reply_to":1}}"#,
            &[r#"{"src": "n1", "dest": "n2", "body": {"type": "echo", "echo": 1, "msg_id": 2}}"#],
        ),
        (
            r#"{"src":"n2","dest":"n1","body":{"type":"echo_ok","echo":1,"in_reply_to":2}}"#,
            &[
                r#"{"src": "n1", "dest": "c1", "body": {"type": "relay_ok", "attempts": 2, "result": {"type": "echo_ok", "echo": 1, "in_reply_to": 2}, "in_reply_to": 1, "msg_id": 3}}"#,
            ],
        ),
    ]);
}

#[test]
fn a_relay_passes_a_definite_error_back() {
    converse(&[
        (
            r#"{"src":"c1","dest":"n1","body":{"type":"relay","msg_id":1,"target":"n2","payload":{"type":"read"}}}"#,
            &[r#"{"src": "n1", "dest": "n2", "body": {"type": "read", "msg_id": 1}}"#],
        ),
        (
            r#"{"src":"n2","dest":"n1","body":{"type":"error","code":20,"text":"no key","in_reply_to":1}}"#,
            &[
                r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 20, "text": "no key", "in_reply_to": 1, "msg_id": 2}}"#,
            ],
        ),
    ]);
}

#[test]
fn a_relay_that_is_never_answered_fails_after_three_attempts() {
    let mut node = Process::initialised();
    node.write(&[
        r#"{"src":"c1","dest":"n1","body":{"type":"relay","msg_id":1,"target":"n2","payload":{"type":"read"}}}"#,
    ]);
    node.expect(&[
        r#"{"src": "n1", "dest": "n2", "body": {"type": "read", "msg_id": 1}}"#,
        r#"{"src": "n1", "dest": "n2", "body": {"type": "read", "msg_id": 2}}"#,
        r#"{"src": "n1", "dest": "n2", "body": {"type": "read", "msg_id": 3}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 0, "text": "RPC failed after 3 attempts", "in_reply_to": 1, "msg_id": 4}}"#,
    ]);
    node.end();
}

#[test]
fn what_nobody_waits_for_is_reaped_and_logged() {
    let mut node = Process::initialised();
    node.write(&[
        r#"{"src":"c1","dest":"n1","body":{"type":"send_fire_forget","msg_id":1,"target":"n2","payload":{"type":"q"}}}"#,
    ]);
    node.expect(&[
        r#"{"src": "n1", "dest": "n2", "body": {"type": "q", "msg_id": 1}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "send_fire_forget_ok", "pending": 1, "in_reply_to": 1, "msg_id": 2}}"#,
    ]);
    let log = node
        .stderr
        .recv_timeout(WAIT_MAX)
        .expect("the reaping is logged");
    assert!(log.contains("reaped=1"), "{log}");
    node.write(&[r#"{"src":"c1","dest":"n1","body":{"type":"pending_count","msg_id":2}}"#]);
    node.expect(&[
        r#"{"src": "n1", "dest": "c1", "body": {"type": "pending_count_ok", "count": 0, "in_reply_to": 2, "msg_id": 3}}"#,
    ]);
    node.end();
}

#[test]
fn malformed_lines_are_logged_and_the_node_goes_on() {
    let mut node = Process::initialised();
    node.write_bytes(b"\xff\xfe\n{\n[]\n\n");
    node.write(&[
        r#"{"src":"c1","dest":"n1","body":{"msg_id":2}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"nonsense","msg_id":3}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"proxy","msg_id":4,"target":"n2","inner":{"echo":1}}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":5,"echo":1}}"#,
    ]);
    node.expect(&[
        r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 12, "text": "the body has no type that is a string", "in_reply_to": 2, "msg_id": 1}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 10, "text": "there is no handler for nonsense", "in_reply_to": 3, "msg_id": 2}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "error", "code": 12, "text": "this is no body to pass on: it has no type that is a string", "in_reply_to": 4, "msg_id": 3}}"#,
        r#"{"src": "n1", "dest": "c1", "body": {"type": "echo_ok", "echo": 1, "in_reply_to": 5, "msg_id": 4}}"#,
    ]);
    assert_eq!(node.end().matches("malformed message").count(), 4);
}

#[test]
fn a_broken_log_does_not_end_the_node() {
    let mut node = Process::start_with(Stdio::piped(), broken_pipe());
    node.write(&["not a message", INIT]);
    node.expect(&[INIT_OK]);
    node.end();
}

#[test]
fn a_broken_output_ends_the_node_with_an_error() {
    let mut node = Process::start_with(broken_pipe(), Stdio::piped());
    node.write(&[INIT]);
    // Its input is still open.
    let log = rest(&node.stderr);
    assert!(log.contains("the node has ended"), "{log}");
    assert_eq!(node.child.wait().unwrap().code(), Some(1), "{log}");
}

#[test]
fn an_input_that_is_empty_is_an_end() {
    assert_eq!(Process::start().end(), "");
}

#[track_caller]
fn command_line(argument: &str) -> (Option<i32>, String, String) {
    let output = hark_node()
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn help_and_version_are_told() {
    let (code, help, log) = command_line("--help");
    assert!(
        code == Some(0) && help.contains("Usage: hark-node") && log.is_empty(),
        "{code:?} {help} {log}"
    );
    let version = format!("hark-node {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(command_line("--version"), (Some(0), version, String::new()));
}

#[test]
fn each_workload_of_the_help_is_run() {
    let (_, help, _) = command_line("--help");
    let (_, workloads) = help.split_once("Workloads:\n").unwrap();
    let names: Vec<_> = workloads
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(names.contains(&"lin-kv") && names.len() > 10, "{names:?}");
    for name in names {
        let mut command = hark_node();
        let command = command
            .args(["workload", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(format!("{INIT}\n").as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", output.status);
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("{INIT_OK}\n"),
            "{name}"
        );
    }
    let output = hark_node().args(["workload", "lin-vk"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("no workload 'lin-vk'; there are echo, ")
    );
}

#[test]
fn an_argument_that_it_does_not_know_is_refused() {
    let (code, out, log) = command_line("--port");
    assert!(
        code == Some(2) && out.is_empty() && log.contains("--port"),
        "{code:?} {out} {log}"
    );
}
