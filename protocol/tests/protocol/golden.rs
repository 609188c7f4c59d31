//! The bytes of every command in both framings, written by hand from the
//! protocol document. A change of any of them breaks existing clients.

use bytes::BytesMut;
use hark_protocol::framing::classic::{self, ClassicClientCodec, ClassicServerCodec};
use hark_protocol::framing::native::{self, ClientCodec, ServerCodec};
use hark_protocol::limits::FRAME_BYTES_DEFAULT;
use hark_protocol::message::Message;
use hark_protocol::{
    ByeReason, Code, Delivery, Failure, Frame, OkFields, Password, Refusal, Reply, Request,
    RequestId, Sequence, UserName,
};
use tokio_util::codec::{Decoder, Encoder};

fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

/// Returns a password for an optional field.
fn password(password: &str) -> Option<Password> {
    Some(password.parse().unwrap())
}

/// Checks that the frame is encoded as these bytes and decoded from them.
#[track_caller]
fn check_native<M>(
    mut codec: impl Decoder<Item = hark_protocol::Incoming<M>>,
    id: u32,
    message: M,
    bytes: &[u8],
) where
    M: Message + PartialEq + std::fmt::Debug,
{
    let mut written = BytesMut::new();
    native::encode(RequestId::new(id), &message, &mut written).unwrap();
    assert_eq!(written, bytes);
    let Ok(Some(read)) = codec.decode(&mut written) else {
        panic!("the frame that was written is not read");
    };
    assert_eq!(
        read,
        Frame {
            id: RequestId::new(id),
            message: Ok(message)
        }
    );
    assert!(written.is_empty());
}

#[track_caller]
fn check_native_request(id: u32, request: Request, bytes: &[u8]) {
    check_native(ServerCodec::new(FRAME_BYTES_DEFAULT), id, request, bytes);
}

#[track_caller]
fn check_native_reply(id: u32, reply: Reply, bytes: &[u8]) {
    check_native(ClientCodec::new(FRAME_BYTES_DEFAULT), id, reply, bytes);
}

/// Checks that the request is encoded as these bytes, padded, and decoded from
/// them both bare and padded.
#[track_caller]
fn check_classic_request(request: Request, bytes: &[u8]) {
    let mut written = BytesMut::new();
    ClassicClientCodec
        .encode(request.clone(), &mut written)
        .unwrap();
    assert_eq!(written, block(bytes));
    for mut src in [written, BytesMut::from(bytes)] {
        let read = ClassicServerCodec::default().decode(&mut src).unwrap();
        assert_eq!(read, Some(Ok(request.clone())));
        assert!(src.is_empty());
    }
}

/// Checks that the reply is encoded as these messages, each padded to 1024
/// bytes.
#[track_caller]
fn check_classic_reply(reply: Reply, messages: &[&[u8]]) {
    let mut written = BytesMut::new();
    classic::encode(&reply, &mut written);
    assert_eq!(
        written,
        messages.iter().copied().flat_map(block).collect::<Vec<_>>()
    );
}

fn block(message: &[u8]) -> Vec<u8> {
    let mut block = message.to_vec();
    block.resize(1024, 0);
    block
}

#[test]
fn native_framing_of_every_request() {
    check_native_request(
        1,
        Request::Hello {
            version: 1,
            session: "a-Z_9".parse().unwrap(),
        },
        b"\0\0\0\x1a\0\0\0\x01hello\0\0\0\0\0\0\0\0\0\x001,a-Z_9",
    );
    check_native_request(
        2,
        Request::Create {
            user: user("bob"),
            password: None,
        },
        b"\0\0\0\x16\0\0\0\x02create\0\0\0\0\0\0\0\0\0bob",
    );
    check_native_request(
        2,
        Request::Create {
            user: user("bob"),
            password: password("pass word"),
        },
        b"\0\0\0\x20\0\0\0\x02create\0\0\0\0\0\0\0\0\0bob,pass word",
    );
    check_native_request(
        3,
        Request::Login {
            user: user("bob"),
            password: None,
        },
        b"\0\0\0\x16\0\0\0\x03login\0\0\0\0\0\0\0\0\0\0bob",
    );
    check_native_request(
        3,
        Request::Login {
            user: user("bob"),
            password: password("pw"),
        },
        b"\0\0\0\x19\0\0\0\x03login\0\0\0\0\0\0\0\0\0\0bob,pw",
    );
    check_native_request(
        0x0102_0304,
        Request::Connect {
            user: user("zoë"),
            password: None,
        },
        b"\0\0\0\x17\x01\x02\x03\x04connect\0\0\0\0\0\0\0\0zo\xc3\xab",
    );
    check_native_request(
        u32::MAX,
        Request::Connect {
            user: user("zoë"),
            password: password("pw"),
        },
        b"\0\0\0\x1a\xff\xff\xff\xffconnect\0\0\0\0\0\0\0\0zo\xc3\xab,pw",
    );
    check_native_request(
        5,
        Request::Disconnect,
        b"\0\0\0\x13\0\0\0\x05disconnect\0\0\0\0\0",
    );
    check_native_request(
        6,
        Request::Password {
            user: user("bob"),
            old: password("old"),
            new: password("new").unwrap(),
        },
        b"\0\0\0\x1e\0\0\0\x06password\0\0\0\0\0\0\0bob,old,new",
    );
    check_native_request(
        6,
        Request::Password {
            user: user("bob"),
            old: None,
            new: password("new").unwrap(),
        },
        b"\0\0\0\x1b\0\0\0\x06password\0\0\0\0\0\0\0bob,,new",
    );
    check_native_request(
        7,
        Request::Delete {
            user: user("bob"),
            password: None,
        },
        b"\0\0\0\x16\0\0\0\x07delete\0\0\0\0\0\0\0\0\0bob",
    );
    check_native_request(
        7,
        Request::Delete {
            user: user("bob"),
            password: password("pw"),
        },
        b"\0\0\0\x19\0\0\0\x07delete\0\0\0\0\0\0\0\0\0bob,pw",
    );
    check_native_request(
        8,
        Request::List { pattern: None },
        b"\0\0\0\x13\0\0\0\x08list\0\0\0\0\0\0\0\0\0\0\0",
    );
    check_native_request(
        8,
        Request::List {
            pattern: Some("^b,?$".into()),
        },
        b"\0\0\0\x18\0\0\0\x08list\0\0\0\0\0\0\0\0\0\0\0^b,?$",
    );
    check_native_request(
        9,
        Request::Send {
            user: user("bob"),
            text: "hello, there\nyou".into(),
        },
        b"\0\0\0\x27\0\0\0\x09send\0\0\0\0\0\0\0\0\0\0\0bob,hello, there\nyou",
    );
    check_native_request(
        9,
        Request::Send {
            user: user("bob"),
            text: "".into(),
        },
        b"\0\0\0\x17\0\0\0\x09send\0\0\0\0\0\0\0\0\0\0\0bob,",
    );
    check_native_request(
        0,
        Request::Ack {
            log: None,
            sequence: Sequence(18_446_744_073_709_551_615),
        },
        b"\0\0\0\x27\0\0\0\0ack\0\0\0\0\0\0\0\0\0\0\0\x0018446744073709551615",
    );
    check_native_request(
        0,
        Request::Ack {
            log: Some("#team".parse().unwrap()),
            sequence: Sequence(7),
        },
        b"\0\0\0\x1a\0\0\0\0ack\0\0\0\0\0\0\0\0\0\0\0\x007,#team",
    );
    check_native_request(
        10,
        Request::Ping,
        b"\0\0\0\x13\0\0\0\x0aping\0\0\0\0\0\0\0\0\0\0\0",
    );
}

#[test]
fn classic_framing_of_every_request() {
    check_classic_request(
        Request::Create {
            user: user("bob"),
            password: None,
        },
        b"create\0\0\0\0\0\0\0\0\0bob",
    );
    check_classic_request(
        Request::Create {
            user: user("bob"),
            password: password("pass word"),
        },
        b"create\0\0\0\0\0\0\0\0\0bob,pass word",
    );
    check_classic_request(
        Request::Login {
            user: user("bob"),
            password: None,
        },
        b"login\0\0\0\0\0\0\0\0\0\0bob",
    );
    check_classic_request(
        Request::Login {
            user: user("bob"),
            password: password("pw"),
        },
        b"login\0\0\0\0\0\0\0\0\0\0bob,pw",
    );
    check_classic_request(
        Request::Connect {
            user: user("zoë"),
            password: None,
        },
        b"connect\0\0\0\0\0\0\0\0zo\xc3\xab",
    );
    check_classic_request(
        Request::Connect {
            user: user("zoë"),
            password: password("pw"),
        },
        b"connect\0\0\0\0\0\0\0\0zo\xc3\xab,pw",
    );
    check_classic_request(Request::Disconnect, b"disconnect\0\0\0\0\0");
    check_classic_request(
        Request::Password {
            user: user("bob"),
            old: password("old"),
            new: password("new").unwrap(),
        },
        b"password\0\0\0\0\0\0\0bob,old,new",
    );
    check_classic_request(
        Request::Password {
            user: user("bob"),
            old: None,
            new: password("new").unwrap(),
        },
        b"password\0\0\0\0\0\0\0bob,,new",
    );
    check_classic_request(
        Request::Delete {
            user: user("bob"),
            password: None,
        },
        b"delete\0\0\0\0\0\0\0\0\0bob",
    );
    check_classic_request(
        Request::Delete {
            user: user("bob"),
            password: password("pw"),
        },
        b"delete\0\0\0\0\0\0\0\0\0bob,pw",
    );
    check_classic_request(
        Request::List { pattern: None },
        b"list\0\0\0\0\0\0\0\0\0\0\0",
    );
    check_classic_request(
        Request::List {
            pattern: Some("^b,?$".into()),
        },
        b"list\0\0\0\0\0\0\0\0\0\0\0^b,?$",
    );
    check_classic_request(
        Request::Send {
            user: user("bob"),
            text: "hello, there\nyou".into(),
        },
        b"send\0\0\0\0\0\0\0\0\0\0\0bob,hello, there\nyou",
    );
    check_classic_request(
        Request::Send {
            user: user("bob"),
            text: "".into(),
        },
        b"send\0\0\0\0\0\0\0\0\0\0\0bob,",
    );
    check_classic_request(Request::Ping, b"ping\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn native_framing_of_every_reply() {
    check_native_reply(
        1,
        Reply::Ok(OkFields::None),
        b"\0\0\0\x13\0\0\0\x01ok\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    check_native_reply(
        1,
        Reply::Ok(OkFields::Hello(1, 65_536)),
        b"\0\0\0\x1a\0\0\0\x01ok\0\0\0\0\0\0\0\0\0\0\0\0\x001,65536",
    );
    check_native_reply(
        2,
        Reply::Ok(OkFields::Queued(12)),
        b"\0\0\0\x15\0\0\0\x02ok\0\0\0\0\0\0\0\0\0\0\0\0\x0012",
    );
    check_native_reply(
        9,
        Reply::Ok(OkFields::Stored(Sequence(812))),
        b"\0\0\0\x16\0\0\0\x09ok\0\0\0\0\0\0\0\0\0\0\0\0\0812",
    );
    check_native_reply(
        3,
        Reply::Ok(OkFields::Deleted(true)),
        b"\0\0\0\x1a\0\0\0\x03ok\0\0\0\0\0\0\0\0\0\0\0\0\0deleted",
    );
    check_native_reply(
        3,
        Reply::Ok(OkFields::Deleted(false)),
        b"\0\0\0\x19\0\0\0\x03ok\0\0\0\0\0\0\0\0\0\0\0\0\0absent",
    );
    check_native_reply(
        4,
        Reply::Ok(OkFields::Listed(2, false)),
        b"\0\0\0\x14\0\0\0\x04ok\0\0\0\0\0\0\0\0\0\0\0\0\x002",
    );
    check_native_reply(
        4,
        Reply::Ok(OkFields::Listed(2, true)),
        b"\0\0\0\x1e\0\0\0\x04ok\0\0\0\0\0\0\0\0\0\0\0\0\x002,truncated",
    );
    check_native_reply(
        4,
        Reply::List(vec![user("al"), user("zoë")]),
        b"\0\0\0\x1a\0\0\0\x04list\0\0\0\0\0\0\0\0\0\0\0al,zo\xc3\xab",
    );
    check_native_reply(
        4,
        Reply::List(vec![]),
        b"\0\0\0\x13\0\0\0\x04list\0\0\0\0\0\0\0\0\0\0\0",
    );
    check_native_reply(
        0,
        Reply::String(Delivery {
            sequence: Sequence(7),
            sender: Some(user("al")),
            time_ms: 1_700_000_000_000,
            text: "hi, you".into(),
        }),
        b"\0\0\0\x2d\0\0\0\0string\0\0\0\0\0\0\0\0\x007,al,1700000000000,hi, you",
    );
    check_native_reply(
        0,
        Reply::String(Delivery {
            sequence: Sequence(8),
            sender: None,
            time_ms: 0,
            text: "".into(),
        }),
        b"\0\0\0\x18\0\0\0\0string\0\0\0\0\0\0\0\0\x008,,0,",
    );
    check_native_reply(
        0,
        Reply::Bye(ByeReason::TakenOver),
        b"\0\0\0\x1d\0\0\0\0bye\0\0\0\0\0\0\0\0\0\0\0\0taken-over",
    );
    check_native_reply(
        0,
        Reply::Bye(ByeReason::Deleted),
        b"\0\0\0\x1a\0\0\0\0bye\0\0\0\0\0\0\0\0\0\0\0\0deleted",
    );
    check_native_reply(
        0,
        Reply::Bye(ByeReason::Shutdown),
        b"\0\0\0\x1b\0\0\0\0bye\0\0\0\0\0\0\0\0\0\0\0\0shutdown",
    );
    check_native_reply(
        5,
        Reply::NotOk(Refusal::new(Code::Exists, "taken, sorry")),
        b"\0\0\0\x26\0\0\0\x05notok\0\0\0\0\0\0\0\0\0\0exists,taken, sorry",
    );
    check_native_reply(
        5,
        Reply::NotOk(Refusal::new(Code::Denied, "")),
        b"\0\0\0\x19\0\0\0\x05notok\0\0\0\0\0\0\0\0\0\0denied",
    );
    check_native_reply(
        6,
        Reply::Error {
            failure: Failure::Unavailable,
            explanation: "disk full".into(),
        },
        b"\0\0\0\x28\0\0\0\x06error\0\0\0\0\0\0\0\0\0\0unavailable,disk full",
    );
    check_native_reply(
        0,
        Reply::Error {
            failure: Failure::Protocol,
            explanation: "too long".into(),
        },
        b"\0\0\0\x24\0\0\0\0error\0\0\0\0\0\0\0\0\0\0protocol,too long",
    );
}

#[test]
fn classic_framing_of_every_reply() {
    check_classic_reply(
        Reply::Ok(OkFields::None),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Hello(1, 65_536)),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\x001,65536"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Queued(12)),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\x0012"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Stored(Sequence(812))),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Deleted(true)),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0deleted"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Deleted(false)),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0absent"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Listed(2, false)),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\x002"],
    );
    check_classic_reply(
        Reply::Ok(OkFields::Listed(2, true)),
        &[b"ok\0\0\0\0\0\0\0\0\0\0\0\0\x002,truncated"],
    );
    check_classic_reply(
        Reply::List(vec![user("al"), user("zoë")]),
        &[b"list\0\0\0\0\0\0\0\0\0\0\0al,zo\xc3\xab"],
    );
    check_classic_reply(Reply::List(vec![]), &[b"list\0\0\0\0\0\0\0\0\0\0\0"]);
    check_classic_reply(
        Reply::String(Delivery {
            sequence: Sequence(7),
            sender: Some(user("al")),
            time_ms: 1_700_000_000_000,
            text: "hi, you".into(),
        }),
        &[b"string\0\0\0\0\0\0\0\0\0hi, you"],
    );
    check_classic_reply(
        Reply::String(Delivery {
            sequence: Sequence(8),
            sender: None,
            time_ms: 0,
            text: "".into(),
        }),
        &[b"string\0\0\0\0\0\0\0\0\0"],
    );
    check_classic_reply(Reply::Bye(ByeReason::TakenOver), &[]);
    check_classic_reply(Reply::Bye(ByeReason::Deleted), &[]);
    check_classic_reply(Reply::Bye(ByeReason::Shutdown), &[]);
    check_classic_reply(
        Reply::NotOk(Refusal::new(Code::Exists, "taken, sorry")),
        &[b"notok\0\0\0\0\0\0\0\0\0\0exists,taken, sorry"],
    );
    check_classic_reply(
        Reply::NotOk(Refusal::new(Code::Denied, "")),
        &[b"notok\0\0\0\0\0\0\0\0\0\0denied"],
    );
    check_classic_reply(
        Reply::Error {
            failure: Failure::Unavailable,
            explanation: "disk full".into(),
        },
        &[b"error\0\0\0\0\0\0\0\0\0\0unavailable,disk full"],
    );
    check_classic_reply(
        Reply::Error {
            failure: Failure::Protocol,
            explanation: "too long".into(),
        },
        &[b"error\0\0\0\0\0\0\0\0\0\0protocol,too long"],
    );
}

#[test]
fn every_refusal_code_has_its_word() {
    let names = [
        (Code::UnknownCommand, "unknown-command"),
        (Code::BadRequest, "bad-request"),
        (Code::BadName, "bad-name"),
        (Code::BadPassword, "bad-password"),
        (Code::BadPattern, "bad-pattern"),
        (Code::Exists, "exists"),
        (Code::NoSuchUser, "no-such-user"),
        (Code::Denied, "denied"),
        (Code::TooLarge, "too-large"),
        (Code::QueueFull, "queue-full"),
        (Code::RateLimited, "rate-limited"),
        (Code::TooMany, "too-many"),
        (Code::NoSpace, "no-space"),
    ];
    assert_eq!(names.map(|(code, _)| code), Code::ALL);
    for (code, name) in names {
        assert_eq!(code.as_str(), name);
    }
}

#[track_caller]
fn check_refused(command: &str, payload: &'static str, expected: Code) {
    let refused = Request::parse(command, payload);
    assert_eq!(
        refused.map_err(|refusal| refusal.code),
        Err(expected),
        "{command} {payload}"
    );
}

#[test]
fn malformed_request_is_refused_with_its_code() {
    for (command, payload) in [
        ("hello", ""),
        ("hello", "1"),
        ("hello", "one,token"),
        ("hello", "+1,token"),
        ("hello", "1,no token"),
        ("hello", "1,"),
        ("create", ""),
        ("connect", ""),
        ("disconnect", "bob"),
        ("password", "bob"),
        ("password", "bob,new"),
        ("send", ""),
        ("send", "bob"),
        ("ack", ""),
        ("ack", "x"),
        ("ack", "-1"),
        ("ack", "+1"),
        ("ack", "18446744073709551616"),
        ("ping", "x"),
    ] {
        check_refused(command, payload, Code::BadRequest);
    }
    for (command, payload) in [
        ("create", "a b"),
        ("login", ",pw"),
        ("send", ",hello"),
        ("delete", "a\u{7f}"),
        ("password", ",,new"),
    ] {
        check_refused(command, payload, Code::BadName);
    }
    for (command, payload) in [
        ("create", "bob,"),
        ("create", "bob,a,b"),
        ("password", "bob,old,"),
        ("login", "bob,\n"),
    ] {
        check_refused(command, payload, Code::BadPassword);
    }
    for command in ["", "Create", "create ", "string", "ok", "nonsense"] {
        check_refused(command, "bob", Code::UnknownCommand);
    }
}

#[test]
fn unknown_command_is_escaped_in_the_refusal() {
    let refusal = Request::parse("\u{1b}[2J\"", "").unwrap_err();
    assert_eq!(refusal.explanation, r#"unknown command "\u{1b}[2J\"""#);
}

#[test]
fn ok_fields_are_read_by_request() {
    let encoded = |fields: &str| OkFields::Encoded(fields.into());
    for hello in [OkFields::Hello(1, 65_536), encoded("1,65536")] {
        assert_eq!(hello.as_hello(), Some((1, 65_536)));
    }
    for queued in [OkFields::Queued(7), encoded("7")] {
        assert_eq!(queued.as_queued(), Some(7));
    }
    for stored in [OkFields::Stored(Sequence(7)), encoded("7")] {
        assert_eq!(stored.as_stored(), Some(Sequence(7)));
    }
    for (existed, name) in [(true, "deleted"), (false, "absent")] {
        assert_eq!(OkFields::Deleted(existed).as_deleted(), Some(existed));
        assert_eq!(encoded(name).as_deleted(), Some(existed));
    }
    for (truncated, fields) in [(false, "3"), (true, "3,truncated")] {
        assert_eq!(
            OkFields::Listed(3, truncated).as_listed(),
            Some((3, truncated))
        );
        assert_eq!(encoded(fields).as_listed(), Some((3, truncated)));
    }
    let none = OkFields::None;
    assert_eq!(
        (
            none.as_hello(),
            none.as_queued(),
            none.as_deleted(),
            none.as_listed()
        ),
        (None, None, None, None)
    );
    assert_eq!(
        none.as_stored(),
        None,
        "a server before this field, or the classic framing"
    );
}

#[test]
fn unknown_refusal_code_is_read_as_a_refusal() {
    for (payload, explanation) in [
        ("odd,why, then", "odd,why, then"),
        ("odd", "odd"),
        ("", ""),
        (",x", ",x"),
    ] {
        let reply = Reply::parse("notok", payload);
        assert_eq!(
            reply,
            Ok(Reply::NotOk(Refusal::new(Code::Unknown, explanation))),
            "{payload}"
        );
    }
}
