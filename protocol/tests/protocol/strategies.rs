//! Strategies for proptest that generate every valid message.

use bytestring::ByteString;
use hark_protocol::message::{Gap, LeftReason, RoomMode};
use hark_protocol::{
    ByeReason, Code, Delivery, DeviceName, Failure, OkFields, Password, Refusal, Reply, Request,
    RequestId, RoomName, RoomReply, RoomRequest, Sequence, SessionToken, UserName,
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
        1 => (any::<u64>(), proptest::option::of(room_name()))
            .prop_map(|(number, log)| Request::Ack { log, sequence: Sequence(number) }),
        3 => room_request().prop_map(Request::Room),
    ]
}

fn room_name() -> impl Strategy<Value = RoomName> {
    prop_oneof!["#[A-Za-z0-9_.-]{1,63}", "#=[A-Z2-7]{26}"]
        .prop_map(|name| name.parse::<RoomName>().unwrap())
}

fn device_name() -> impl Strategy<Value = DeviceName> {
    "[A-Za-z0-9_-]{1,32}".prop_map(|name| name.parse::<DeviceName>().unwrap())
}

fn room_request() -> impl Strategy<Value = RoomRequest> {
    let mode = proptest::sample::select(RoomMode::ALL.to_vec());
    let member = || (room_name(), user_name());
    prop_oneof![
        (user_name(), device_name(), proptest::option::of(password())).prop_map(
            |(user, device, password)| RoomRequest::Attach {
                user,
                device,
                password
            }
        ),
        (room_name(), mode, proptest::option::of(any::<u64>()))
            .prop_map(|(room, mode, keep_s)| RoomRequest::Set { room, mode, keep_s }),
        room_name().prop_map(RoomRequest::Join),
        member().prop_map(|(room, user)| RoomRequest::Expel { room, user }),
        user_name().prop_map(RoomRequest::Talk),
        (room_name(), proptest::option::of(user_name()))
            .prop_map(|(room, after)| RoomRequest::Members { room, after }),
        proptest::option::of(device_name()).prop_map(RoomRequest::Forget),
        (room_name(), any::<u64>(), any::<u32>()).prop_map(|(room, before, count)| {
            RoomRequest::History {
                room,
                before: Sequence(before),
                count,
            }
        }),
    ]
}

fn room_reply() -> impl Strategy<Value = RoomReply> {
    let reason = proptest::sample::select(LeftReason::ALL.to_vec());
    prop_oneof![
        delivery().prop_map(RoomReply::Past),
        (room_name(), delivery()).prop_map(|(room, delivery)| RoomReply::Said { room, delivery }),
        (proptest::option::of(room_name()), any::<[u64; 3]>()).prop_map(
            |(log, [from, to, count])| {
                RoomReply::Gap(Gap {
                    log,
                    from: Sequence(from),
                    to: Sequence(to),
                    count,
                })
            }
        ),
        (proptest::option::of(device_name()), any::<[u64; 2]>()).prop_map(
            |(name, [seen_ms, waiting])| RoomReply::Device {
                name,
                seen_ms,
                waiting
            }
        ),
        (room_name(), reason).prop_map(|(room, reason)| RoomReply::Left { room, reason }),
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
        room_reply().prop_map(Reply::Room),
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
