//! The streams of the real binary, byte for byte.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Each sample is run so often.
const ROUNDS: usize = 3;

/// Gives the binary these bodies, which come from c1 after an init, and
/// compares the bodies that it answers c1 with.
#[track_caller]
fn check(bodies: &[&str], expected: &[&str]) {
    let mut input =
        r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1"]}}"#
            .to_owned();
    let mut output =
        r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#
            .to_owned();
    for body in bodies {
        input += &format!("\n{{\"src\": \"c1\", \"dest\": \"n1\", \"body\": {body}}}");
    }
    for body in expected {
        output += &format!("\n{{\"src\": \"n1\", \"dest\": \"c1\", \"body\": {body}}}");
    }
    for _ in 0..ROUNDS {
        assert_eq!(run(&format!("{input}\n")), format!("{output}\n"));
    }
}

/// All that the binary puts out for this input.
fn run(input: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hark-node"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary is built with the test");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A request to watch the log, with this request.
fn watch(request: &str) -> String {
    format!(
        r#"{{"type": "grpc_server_stream", "msg_id": 1, "service": "LogWatcher", "method": "WatchLogs", "request": {request}}}"#
    )
}

#[test]
fn the_log_is_watched() {
    check(
        &[&watch(r#"{"filter": "ERROR", "limit": 3}"#)],
        &[
            r#"{"type": "grpc_stream_msg", "seq": 1, "data": {"level": "ERROR", "msg": "disk full"}, "in_reply_to": 1, "msg_id": 1}"#,
            r#"{"type": "grpc_stream_msg", "seq": 2, "data": {"level": "ERROR", "msg": "connection reset"}, "in_reply_to": 1, "msg_id": 2}"#,
            r#"{"type": "grpc_stream_msg", "seq": 3, "data": {"level": "ERROR", "msg": "timeout"}, "in_reply_to": 1, "msg_id": 3}"#,
            r#"{"type": "grpc_stream_end", "status": "OK", "count": 3, "in_reply_to": 1, "msg_id": 4}"#,
        ],
    );
}

#[test]
fn a_lower_limit_ends_the_log_earlier() {
    check(
        &[&watch(r#"{"filter": "ERROR", "limit": 1}"#)],
        &[
            r#"{"type": "grpc_stream_msg", "seq": 1, "data": {"level": "ERROR", "msg": "disk full"}, "in_reply_to": 1, "msg_id": 1}"#,
            r#"{"type": "grpc_stream_end", "status": "OK", "count": 1, "in_reply_to": 1, "msg_id": 2}"#,
        ],
    );
    let end =
        r#"{"type": "grpc_stream_end", "status": "OK", "count": 0, "in_reply_to": 1, "msg_id": 1}"#;
    check(&[&watch(r#"{"filter": "ERROR", "limit": 0}"#)], &[end]);
    check(&[&watch(r#"{"filter": "NONE"}"#)], &[end]);
}

#[test]
fn a_limit_that_is_absent_or_larger_gives_what_there_is() {
    let of_errors = run_bodies(&[watch(r#"{"filter": "ERROR", "limit": 3}"#)]);
    for request in [
        r#"{"filter": "ERROR"}"#,
        r#"{"filter": "ERROR", "limit": null}"#,
        r#"{"filter": "ERROR", "limit": 99}"#,
    ] {
        assert_eq!(run_bodies(&[watch(request)]), of_errors);
    }
}

#[test]
fn without_a_filter_all_levels_are_watched() {
    let bodies = run_bodies(&[watch("{}")]);
    let (end, items) = bodies.split_last().unwrap();
    assert_eq!(end["count"], items.len());
    let levels: Vec<_> = items
        .iter()
        .map(|item| item["data"]["level"].as_str().unwrap())
        .collect();
    assert_eq!(levels.iter().filter(|level| **level == "ERROR").count(), 3);
    assert!(levels.iter().any(|level| *level != "ERROR"), "{levels:?}");
    let without_request = r#"{"type": "grpc_server_stream", "msg_id": 1, "service": "LogWatcher", "method": "WatchLogs"}"#;
    assert_eq!(run_bodies(&[without_request.to_owned()]), bodies);
}

/// The bodies that c1 is answered with.
fn run_bodies(bodies: &[String]) -> Vec<serde_json::Value> {
    let mut input =
        r#"{"src":"c0","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":[]}}"#.to_owned();
    for body in bodies {
        input += &format!("\n{{\"src\": \"c1\", \"body\": {body}}}");
    }
    let output = run(&input);
    let body = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["body"].take();
    output.lines().skip(1).map(body).collect()
}

#[test]
fn the_chat_echoes() {
    check(
        &[
            r#"{"type": "grpc_bidi_stream_open", "msg_id": 2, "service": "Chat", "method": "BiDiChat"}"#,
            r#"{"type": "grpc_bidi_stream_send", "msg_id": 3, "stream_id": "s1", "data": {"text": "hello"}}"#,
            r#"{"type": "grpc_bidi_stream_send", "msg_id": 4, "stream_id": "s1", "data": {"text": "é"}}"#,
            r#"{"type": "grpc_bidi_stream_close", "msg_id": 5, "stream_id": "s1"}"#,
        ],
        &[
            r#"{"type": "grpc_bidi_stream_open_ok", "stream_id": "s1", "in_reply_to": 2, "msg_id": 1}"#,
            r#"{"type": "grpc_bidi_stream_recv", "data": {"text": "echo: hello"}, "in_reply_to": 3, "msg_id": 2}"#,
            r#"{"type": "grpc_bidi_stream_recv", "data": {"text": "echo: \u00e9"}, "in_reply_to": 4, "msg_id": 3}"#,
            r#"{"type": "grpc_stream_end", "status": "OK", "count": 2, "in_reply_to": 5, "msg_id": 4}"#,
        ],
    );
}

#[test]
fn what_is_not_there_is_refused() {
    check(
        &[
            r#"{"type": "grpc_server_stream", "msg_id": 2, "service": "LogWatcher", "method": "BiDiChat", "request": {}}"#,
            r#"{"type": "grpc_bidi_stream_open", "msg_id": 3, "service": "None", "method": "BiDiChat"}"#,
            r#"{"type": "grpc_bidi_stream_send", "msg_id": 4, "stream_id": "s1", "data": {}}"#,
            r#"{"type": "grpc_bidi_stream_open", "msg_id": 5, "service": "Chat", "method": "BiDiChat"}"#,
            r#"{"type": "grpc_bidi_stream_close", "msg_id": 6, "stream_id": "s1"}"#,
            r#"{"type": "grpc_bidi_stream_send", "msg_id": 7, "stream_id": "s1", "data": {"text": "late"}}"#,
        ],
        &[
            r#"{"type": "error", "code": 10, "text": "there is no such stream: BiDiChat of LogWatcher", "in_reply_to": 2, "msg_id": 1}"#,
            r#"{"type": "error", "code": 10, "text": "there is no such stream: BiDiChat of None", "in_reply_to": 3, "msg_id": 2}"#,
            r#"{"type": "error", "code": 20, "text": "you have no such stream", "in_reply_to": 4, "msg_id": 3}"#,
            r#"{"type": "grpc_bidi_stream_open_ok", "stream_id": "s1", "in_reply_to": 5, "msg_id": 4}"#,
            r#"{"type": "grpc_stream_end", "status": "OK", "count": 0, "in_reply_to": 6, "msg_id": 5}"#,
            r#"{"type": "error", "code": 22, "text": "the stream is closed", "in_reply_to": 7, "msg_id": 6}"#,
        ],
    );
}
