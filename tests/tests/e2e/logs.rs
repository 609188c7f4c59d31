//! `hark logs`: the log of the real server, shown by the real client.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use hark_tests::{Harkd, add_user, hark};
use serde_json::Value;
use tempfile::TempDir;

fn watched_by(whom: &str) -> (Harkd, TempDir) {
    (
        Harkd::builder().arg(format!("--watch-logs={whom}")).start(),
        tempfile::tempdir().unwrap(),
    )
}

fn command(server: &Harkd, state: &Path, words: &[&str]) -> Command {
    let mut command = hark(state);
    command
        .env("HARK_SERVER", server.address().to_string())
        .args(words);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Returns exit code, stdout and stderr.
fn finish(mut command: Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (
        status
            .code()
            .unwrap_or_else(|| panic!("{status}: {stderr}")),
        stdout,
        stderr,
    )
}

/// Watches up to the event that announces it.
fn watch(server: &Harkd, state: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = command(server, state, &["logs"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(
        line.contains(": log watcher connected address=127.0.0.1"),
        "{line}"
    );
    (child, lines)
}

/// Returns exit code and stderr.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn log_is_shown_up_to_the_limit() {
    let (server, state) = watched_by("loopback");
    let (code, out, err) = finish(command(&server, state.path(), &["logs", "--limit", "1"]));
    assert_eq!((code, err.as_str()), (0, ""));
    let words: Vec<&str> = out.split_whitespace().collect();
    assert!(
        words.starts_with(&[words[0], "INFO", "hark_server::front::grpc::logs:"]),
        "{out}"
    );
    assert!(!out.contains('\x1b') && out.lines().count() == 1, "{out:?}");
}

#[test]
fn json_prints_an_object_per_event() {
    let (server, state) = watched_by("loopback");
    let words = [
        "logs",
        "--json",
        "--limit",
        "1",
        "--target",
        "hark_server::front",
    ];
    let (code, out, err) = finish(command(&server, state.path(), &words));
    assert_eq!((code, err.as_str()), (0, ""));
    let event: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        event.pointer("/fields/address"),
        Some(&Value::from("127.0.0.1"))
    );
    assert_eq!(event.get("level"), Some(&Value::from("info")));
}

#[test]
fn signal_ends_watching_and_shutdown_is_reported() {
    let (mut server, state) = watched_by("loopback");
    for signal in ["TERM", "INT"] {
        let (child, _lines) = watch(&server, state.path());
        let status = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(end(child), (Some(0), String::new()), "{signal}");
    }
    let (child, _lines) = watch(&server, state.path());
    server.signal("TERM");
    server.wait();
    let address = server.address();
    assert_eq!(
        end(child),
        (
            Some(3),
            format!("hark: cannot watch the log of {address}: the server ended the stream\n")
        )
    );
}

#[test]
fn killed_or_absent_server_is_reported() {
    let (mut server, state) = watched_by("loopback");
    let (child, _lines) = watch(&server, state.path());
    server.kill();
    let (code, said) = end(child);
    assert_eq!(
        (code, said.contains("the server closed the connection")),
        (Some(3), true),
        "{said}"
    );
    let (code, _, said) = finish(command(&server, state.path(), &["logs"]));
    assert_eq!((code, said.contains("refused")), (3, true), "{said}");
}

#[test]
fn refused_watcher_learns_of_watch_logs_flag() {
    let (server, state) = (Harkd::start(), tempfile::tempdir().unwrap());
    let (code, out, said) = finish(command(&server, state.path(), &["logs"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        said.starts_with("hark: ") && said.contains("--watch-logs"),
        "{said}"
    );
}

#[test]
fn watcher_is_authenticated_by_password() {
    let state = tempfile::tempdir().unwrap();
    let store = state.path().join("store");
    add_user(&store, "operator", Some("secret"));
    let server = Harkd::builder()
        .arg("--watch-logs=operator")
        .store(&store)
        .start();
    let run = |words: &[&str], password: &str| {
        let mut command = command(&server, state.path(), words);
        command.env("HARK_PASSWORD", password);
        finish(command)
    };
    assert_eq!(
        run(&["logs", "--as", "operator", "--limit", "1"], "secret").0,
        0
    );
    for (words, password) in [
        (&["logs"][..], "secret"),
        (&["logs", "--as", "operator"], "wrong"),
    ] {
        let (code, out, said) = run(words, password);
        assert_eq!(
            (code, out.as_str(), said.starts_with("hark: ")),
            (1, "", true),
            "{said}"
        );
    }
}
