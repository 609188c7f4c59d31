//! Properties of the translation for arbitrary bytes in place of a message of
//! `BiDiChat`. The fuzz target `grpc` runs this.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hark_grpc::reply;
use hark_grpc::v1::{ChatReply, ChatRequest};
use hark_grpc::{request, status};
use hark_protocol::{Frame, Malformed, Reply};
use prost::Message as _;

/// Decodes the bytes as a request and as a reply. Decoded messages survive
/// another round trip, and refusals survive the translation to a status.
pub(crate) fn grpc(data: &[u8]) {
    if let Ok(asked) = ChatRequest::decode(data) {
        take_request(asked);
    }
    if let Ok(said) = ChatReply::decode(data) {
        take_reply(said);
    }
}

fn take_request(asked: ChatRequest) {
    let Frame { id, message } = request::incoming(asked);
    match message {
        Ok(message) => {
            let again = request::outgoing(id, message.clone()).encode_to_vec();
            let again = request::incoming(ChatRequest::decode(&*again).unwrap());
            assert_eq!(again, Frame::new(id, Ok(message)));
        }
        Err(Malformed { refusal, .. }) => {
            assert_eq!(status::refusal(&status::refused(&refusal)), Some(refusal));
        }
    }
}

fn take_reply(said: ChatReply) {
    let Frame {
        id,
        message: Ok(message),
    } = reply::incoming(said)
    else {
        return;
    };
    match reply::outgoing(id, message.clone()) {
        Some(again) => {
            let again = ChatReply::decode(&*again.encode_to_vec()).unwrap();
            assert_eq!(reply::incoming(again), Frame::new(id, Ok(message)));
        }
        None => assert_eq!(message, Reply::List(Vec::new())),
    }
}

#[test]
fn any_bytes_are_refused_or_round_trip() {
    hark_seeds::check("grpc", grpc);
}
