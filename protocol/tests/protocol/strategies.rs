//! Strategies for proptest that generate every valid message.

use bytestring::ByteString;
use hark_protocol::{
    ByeReason, Code, Delivery, Failure, OkFields, Password, Refusal, Reply, Request, RequestId,
    Sequence, SessionToken, UserName,
};
use proptest::prelude::*;

pub(crate) fn user_name() -> impl Strategy<Value = UserName> {
    r"[\PC&&[^,\s]]{1,16}".prop_map(|name| name.parse().unwrap())
}

pub(crate) fn password() -> impl Strategy<Value = Password> {
    r"[\PC&&[^,]]{1,32}".prop_map(|password| password.parse().unwrap())
}

pub(crate) fn request_id() -> impl Strategy<Value = Option<RequestId>> {
    prop_oneof![any::<u32>(), 0..3u32].prop_map(RequestId::new)
}

/// Returns any text, with control characters and NULs, of up to a few classic
/// blocks.
pub(crate) fn any_text() -> impl Strategy<Value = ByteString> {
    let long = ("\\PC{1,40}", 0..200usize).prop_map(|(part, times)| part.repeat(times));
    prop_oneof![3 => any::<String>(), 1 => long].prop_map(ByteString::from)
}

/// Returns any text that a classic client can send: no NULs, in one block.
pub(crate) fn classic_text() -> impl Strategy<Value = ByteString> {
    let any_length = (r"[\PC\n,]{1,8}", 0..900usize).prop_map(|(part, bytes)| cycled(&part, bytes));
    prop_oneof![r"[\PC\n,]{0,60}", any_length].prop_map(ByteString::from)
}

/// Repeats a text up to at most `bytes` bytes.
fn cycled(text: &str, bytes: usize) -> String {
    let mut cycled = String::new();
    for c in text.chars().cycle() {
        if cycled.len() + c.len_utf8() > bytes {
            return cycled;
        }
        cycled.push(c);
    }
    cycled
}

/// Returns a request that both framings have, with these texts.
pub(crate) fn common_request(
    text: impl Strategy<Value = ByteString> + 'static,
) -> impl Strategy<Value = Request> {
    let account = || (user_name(), proptest::option::of(password()));
    let pattern = proptest::option::of(r"[\PC]{1,40}").prop_map(|p| p.map(ByteString::from));
    prop_oneof![
        account().prop_map(|(user, password)| Request::Create { user, password }),
        account().prop_map(|(user, password)| Request::Login { user, password }),
        account().prop_map(|(user, password)| Request::Connect { user, password }),
        Just(Request::Disconnect),
        (user_name(), proptest::option::of(password()), password())
            .prop_map(|(user, old, new)| Request::Password { user, old, new }),
        account().prop_map(|(user, password)| Request::Delete { user, password }),
        pattern.prop_map(|pattern| Request::List { pattern }),
        (user_name(), text).prop_map(|(user, text)| Request::Send { user, text }),
        Just(Request::Ping),
    ]
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    let token = "[A-Za-z0-9_-]{1,64}".prop_map(|token| token.parse::<SessionToken>().unwrap());
    prop_oneof![
        9 => common_request(any_text()),
        1 => (any::<u32>(), token).prop_map(|(version, session)| Request::Hello { version, session }),
        1 => any::<u64>().prop_map(|number| Request::Ack { log: None, sequence: Sequence(number) }),
    ]
}

pub(crate) fn reply() -> impl Strategy<Value = Reply> {
    let code = proptest::sample::select(Code::ALL.to_vec());
    let reason = proptest::sample::select(vec![
        ByeReason::TakenOver,
        ByeReason::Deleted,
        ByeReason::Shutdown,
    ]);
    let failure = proptest::sample::select(vec![Failure::Unavailable, Failure::Protocol]);
    prop_oneof![
        ok_fields().prop_map(Reply::Ok),
        proptest::collection::vec(user_name(), 0..50).prop_map(Reply::List),
        delivery().prop_map(Reply::String),
        reason.prop_map(Reply::Bye),
        (code, any::<String>()).prop_map(|(code, why)| Reply::NotOk(Refusal::new(code, why))),
        (failure, any::<String>()).prop_map(|(failure, why)| Reply::Error {
            failure,
            explanation: why.into()
        }),
    ]
}

pub(crate) fn delivery() -> impl Strategy<Value = Delivery> {
    (
        any::<u64>(),
        proptest::option::of(user_name()),
        any::<u64>(),
        any_text(),
    )
        .prop_map(|(number, sender, time_ms, text)| Delivery {
            sequence: Sequence(number),
            sender,
            time_ms,
            text,
        })
}

fn ok_fields() -> impl Strategy<Value = OkFields> {
    prop_oneof![
        Just(OkFields::None),
        (any::<u32>(), any::<usize>()).prop_map(|(version, bytes)| OkFields::Hello(version, bytes)),
        any::<u64>().prop_map(OkFields::Queued),
        any::<u64>().prop_map(|number| OkFields::Stored(Sequence(number))),
        any::<bool>().prop_map(OkFields::Deleted),
        (any::<usize>(), any::<bool>())
            .prop_map(|(names, truncated)| OkFields::Listed(names, truncated)),
    ]
}
