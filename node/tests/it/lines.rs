//! Lines of all kinds: malformed in every way, long, deep and strange.

use serde_json::json;

use crate::harness::{Driven, echo, line};

/// The code that answers a line, if one does.
#[track_caller]
fn check(line: impl AsRef<[u8]>, code: Option<i64>) {
    let line = line.as_ref();
    let mut driven = Driven::<()>::new(echo);
    let out = driven.take(line);
    let expected = code.map_or(0, |_| 1);
    assert_eq!(
        out.lines().count(),
        expected,
        "{} got {out}",
        String::from_utf8_lossy(line)
    );
    if let Some(code) = code {
        assert!(
            out.contains(&format!(r#""code": {code}, "#)),
            "{} got {out}",
            String::from_utf8_lossy(line)
        );
        assert!(
            out.contains(r#""dest": "c1""#) && out.contains(r#""in_reply_to": 2"#),
            "{out}"
        );
    }
    driven.is_well();
    driven.is_at_rest();
}

#[test]
fn a_malformed_line_without_a_sender_is_ignored() {
    for line in [
        "",
        " ",
        "\u{feff}",
        "null",
        "1",
        "\"text\"",
        "[]",
        "{",
        "{}",
        "}",
        "nonsense",
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}} {}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":2,"echo":01}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":2,"echo":NaN}}"#,
        r#"["c1","n1",{"type":"echo","msg_id":2}]"#,
        r#"{"src":"c1","dest":"n1"}"#,
        r#"{"src":"c1","dest":"n1","body":null}"#,
        r#"{"src":"c1","dest":"n1","body":"echo"}"#,
        r#"{"src":"c1","dest":"n1","body":["echo",2]}"#,
        r#"{"src":"c1","dest":"n1","body":{}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":7}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":7,"msg_id":null}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":"2","echo":1}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":2.5,"echo":1}}"#,
        r#"{"src":"c1","dest":"n1","body":{"type":"echo","msg_id":9223372036854775808,"echo":1}}"#,
        r#"{"src":"c1","src":"c1","dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}}"#,
        r#"{"dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}}"#,
        r#"{"src":null,"dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}}"#,
        r#"{"src":1,"dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}}"#,
        r#"{"src":"\ud800","dest":"n1","body":{"type":"echo","msg_id":2,"echo":1}}"#,
    ] {
        check(line, None);
    }
    check(b"\xff\xfe{}", None);
    check([0; 64], None);
}

#[test]
fn a_malformed_request_with_an_id_is_answered() {
    for body in [
        r#"{"msg_id":2}"#,
        r#"{"type":null,"msg_id":2}"#,
        r#"{"type":7,"msg_id":2}"#,
        r#"{"type":["echo"],"msg_id":2}"#,
        r#"{"type":"\ud800","msg_id":2}"#,
        r#"{"type":"echo","msg_id":2,"in_reply_to":"1","echo":1}"#,
        r#"{"type":"echo","msg_id":2,"echo":1,"echo":2}"#,
    ] {
        check(
            format!(r#"{{"src":"c1","dest":"n1","body":{body}}}"#),
            Some(12),
        );
    }
    // The destination does not matter.
    check(r#"{"src":"c1","body":{"type":"","msg_id":2}}"#, Some(10));
    check(
        r#"{"src":"c1","dest":7,"body":{"type":"x","msg_id":2}}"#,
        Some(10),
    );
}

#[test]
fn a_malformed_reply_is_not_answered() {
    for body in [
        r#"{"msg_id":2,"in_reply_to":1}"#,
        r#"{"type":7,"msg_id":2,"in_reply_to":1}"#,
        r#"{"type":"error","msg_id":2,"in_reply_to":1}"#,
    ] {
        check(format!(r#"{{"src":"c1","dest":"n1","body":{body}}}"#), None);
    }
}

#[test]
fn white_space_and_other_fields_do_not_matter() {
    let mut driven = Driven::<()>::new(echo);
    let out = driven.take(
        "\t { \"id\" : 7 , \"body\":{ \"\\u0074ype\":\"\\u0065cho\",\"x\":[1,{}],\"echo\" : [ 1 ,2 ],\"msg_id\" :0 } ,\"src\":\"c\\u0031\"}\r\n",
    );
    assert_eq!(
        out,
        "{\"src\": \"n1\", \"dest\": \"c1\", \"body\": {\"type\": \"echo_ok\", \"echo\": [1, 2], \"in_reply_to\": 0, \"msg_id\": 1}}\n"
    );
}

/// Checks how a value is passed through as `echo`.
#[track_caller]
fn passes(input: &str, expected: &str) {
    let mut driven = Driven::<()>::new(echo);
    let out = driven.take(format!(
        r#"{{"src":"c1","dest":"n1","body":{{"type":"echo","msg_id":2,"echo":{input}}}}}"#
    ));
    let expected = format!(
        "{{\"src\": \"n1\", \"dest\": \"c1\", \"body\": {{\"type\": \"echo_ok\", \"echo\": {expected}, \"in_reply_to\": 2, \"msg_id\": 1}}}}\n"
    );
    assert!(out == expected, "{:.200} is not {expected:.200}", out);
}

#[test]
fn a_value_of_many_levels_is_passed_through() {
    const LEVELS: usize = 100_000;
    let lists = "[".repeat(LEVELS) + &"]".repeat(LEVELS);
    passes(&lists, &lists);
    let objects = r#"{"a": "#.repeat(LEVELS) + "1" + &"}".repeat(LEVELS);
    passes(&objects, &objects);
}

#[test]
fn a_typed_field_of_many_levels_gets_12() {
    let mut driven = Driven::<()>::new(|node| {
        echo(node);
        node.handle(
            "deep",
            async |_, _: hark_node::Request<std::collections::HashMap<String, serde_json::Value>>| Ok(()),
        );
    });
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let out = driven.take(format!(
        r#"{{"src":"c1","body":{{"type":"deep","msg_id":2,"deep":{deep}}}}}"#
    ));
    assert!(out.contains(r#""code": 12, "#), "{out}");
    driven.is_well();
}

#[test]
fn half_a_surrogate_pair_is_passed_through() {
    passes(r#""\ud800""#, r#""\ud800""#);
    passes(
        r#"{"\uDC00":"\uD83D \uDE00"}"#,
        r#"{"\udc00": "\ud83d \ude00"}"#,
    );
}

#[test]
fn a_line_of_many_mib_is_answered() {
    let long = "é".repeat(1024 * 1024);
    passes(
        &format!("\"{long}\""),
        &format!("\"{}\"", "\\u00e9".repeat(1024 * 1024)),
    );
}

#[test]
fn names_are_passed_through_in_ascii() {
    let mut driven = Driven::<()>::new(echo);
    let out = driven.take(line("ü\"1", &json!({"type": "é\n", "msg_id": 2})));
    assert_eq!(
        out,
        "{\"src\": \"n1\", \"dest\": \"\\u00fc\\\"1\", \"body\": {\"type\": \"error\", \"code\": 10, \"text\": \"there is no handler for \\u00e9\\n\", \"in_reply_to\": 2, \"msg_id\": 1}}\n"
    );
}
