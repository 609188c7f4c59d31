//! After any input the node goes on: it writes JSON in ASCII alone, and answers
//! the next request.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::any_lines::{self, tasks};
use crate::harness::parsed;

/// Any JSON of a few levels.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..6_i64).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,8}".prop_map(Value::from),
        kind().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn kind() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "init", "echo", "proxy", "relay", "error", "echo_ok", "",
    ])
    .prop_map(str::to_owned)
}

fn key() -> impl Strategy<Value = String> {
    let known = [
        "src",
        "dest",
        "body",
        "type",
        "msg_id",
        "in_reply_to",
        "echo",
        "code",
        "text",
        "node_id",
        "target",
        "inner",
        "payload",
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => ".{0,4}"]
}

/// A message whose parts are nearly right.
fn message() -> impl Strategy<Value = Value> {
    let body =
        (kind(), value(), value(), value(), value()).prop_map(|(kind, id, to, echo, any)| {
            let body =
                json!({"type": kind, "msg_id": id, "in_reply_to": to, "echo": echo, "any": any});
            let Value::Object(fields) = body else {
                panic!("{body}")
            };
            // A field may be missing, too.
            fields
                .into_iter()
                .filter(|(_, value)| *value != json!(false))
                .collect::<Map<_, _>>()
                .into()
        });
    prop_oneof![
        4 => body.prop_map(|body: Value| json!({"src": "c1", "dest": "n1", "body": body})),
        1 => value(),
    ]
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let damaged =
        (message(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(message, at, byte)| {
            let mut line = message.to_string().into_bytes();
            let at = at.index(line.len());
            line[at] = byte;
            line
        });
    prop_oneof![
        4 => message().prop_map(|message| message.to_string().into_bytes()),
        2 => damaged,
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ]
}

proptest! {
    #[test]
    fn a_machine_lives_through_any_lines(lines in prop::collection::vec(line(), 0..20)) {
        any_lines::lines(&lines.join(&b'\n'));
    }

    #[test]
    fn a_node_on_streams_lives_through_any_bytes(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let after = r#"{"src":"c9","dest":"n1","body":{"type":"echo","msg_id":0,"echo":"well"}}"#;
        let input = [crate::harness::INIT.as_bytes(), b"\n", &noise, b"\n", after.as_bytes()].concat();
        let mut out = Vec::new();
        hark_node::run(std::io::Cursor::new(input), &mut out, tasks::program).unwrap();
        let answers = parsed(&String::from_utf8(out).unwrap());
        prop_assert!(answers.last().is_some_and(|(dest, body)| dest == "c9" && body["echo"] == "well"));
    }
}
