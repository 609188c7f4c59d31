//! The native framing: round trips, any fragmentation, and peers that violate
//! the framing.

use bytes::{BufMut, BytesMut};
use hark_protocol::framing::native::{
    self, ClientCodec, NativeCodec, PUSH_BYTES_BESIDE_TEXT, ServerCodec,
};
use hark_protocol::limits::{
    COMMAND_BYTES, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, FRAME_BYTES_MIN, LENGTH_BYTES,
    text_bytes_max,
};
use hark_protocol::message::Message;
use hark_protocol::{
    Code, Delivery, Frame, Incoming, ProtocolError, Reply, Request, RequestId, Sequence, UserName,
};
use proptest::prelude::*;
use proptest::sample::Index;
use tokio_util::codec::Decoder;

use crate::any_bytes::{self, LARGEST};
use crate::reader::{Reader, pieces};
use crate::strategies::{reply, request, request_id};

type Frames<M> = Vec<Frame<M>>;

proptest! {
    #[test]
    fn requests_decode_under_any_fragmentation(
        frames in frames(request()), cuts in any::<Vec<Index>>(),
    ) {
        check_cuts(ServerCodec::new(FRAME_BYTES_DEFAULT), &frames, &cuts)?;
    }

    #[test]
    fn replies_decode_under_any_fragmentation(
        frames in frames(reply()), cuts in any::<Vec<Index>>(),
    ) {
        check_cuts(ClientCodec::new(FRAME_BYTES_DEFAULT), &frames, &cuts)?;
    }

    #[test]
    fn hostile_bytes_are_handled(bytes in hostile_bytes(), piece in any::<u8>()) {
        any_bytes::native(&[&[piece], &*bytes].concat());
    }

    #[test]
    fn no_payload_panics(command in "[a-z]{0,15}", payload in any::<String>()) {
        for name in COMMANDS.into_iter().chain([&*command]) {
            let mut bytes = BytesMut::new();
            bytes.put_u8(0);
            bytes.put_u32((FRAME_BYTES_MIN + payload.len()) as u32);
            bytes.put_u32(1);
            bytes.put_slice(name.as_bytes());
            bytes.put_bytes(0, COMMAND_BYTES - name.len());
            bytes.put_slice(payload.as_bytes());
            any_bytes::native(&bytes);
        }
    }
}

const COMMANDS: [&str; 17] = [
    "hello",
    "create",
    "login",
    "connect",
    "disconnect",
    "password",
    "delete",
    "list",
    "send",
    "ack",
    "ping",
    "ok",
    "string",
    "bye",
    "notok",
    "error",
    "",
];

fn frames<M: std::fmt::Debug>(
    message: impl Strategy<Value = M>,
) -> impl Strategy<Value = Frames<M>> {
    let frame = (request_id(), message).prop_map(|(id, message)| Frame { id, message });
    proptest::collection::vec(frame, 0..6)
}

/// Returns headers with wrong lengths, frames with arbitrary content, and
/// arbitrary bytes.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let header = (0..LARGEST as u32 + 2_000, 0..LARGEST).prop_map(|(says, has)| {
        let mut bytes = says.to_be_bytes().to_vec();
        bytes.resize(LENGTH_BYTES + has, b'x');
        bytes
    });
    let frame = (proptest::collection::vec(any::<u8>(), 19..300)).prop_map(|content| {
        let mut bytes = (content.len() as u32).to_be_bytes().to_vec();
        bytes.extend(content);
        bytes
    });
    let nonsense = proptest::collection::vec(any::<u8>(), 0..200);
    proptest::collection::vec(prop_oneof![1 => header, 4 => frame, 1 => nonsense], 0..10)
        .prop_map(|parts| parts.concat())
}

fn check_cuts<M, Out>(
    codec: NativeCodec<M, Out>,
    frames: &Frames<M>,
    cuts: &[Index],
) -> Result<(), TestCaseError>
where
    M: Message + Clone + PartialEq + std::fmt::Debug,
{
    let bytes = encoded(frames);
    let mut reader = Reader::new(codec);
    let mut read = Vec::new();
    for piece in cut(&bytes, cuts) {
        read.extend(reader.read(piece).unwrap());
    }
    let sent: Vec<Incoming<M>> = frames
        .iter()
        .cloned()
        .map(|Frame { id, message }| Frame {
            id,
            message: Ok(message),
        })
        .collect();
    prop_assert_eq!(read, sent);
    prop_assert!(reader.buffer.is_empty());
    Ok(())
}

fn encoded<M: Message>(frames: &Frames<M>) -> BytesMut {
    let mut bytes = BytesMut::new();
    for frame in frames {
        native::encode(frame.id, &frame.message, &mut bytes).unwrap();
    }
    bytes
}

fn cut<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    pieces(
        bytes,
        &cuts
            .iter()
            .map(|cut| cut.index(bytes.len() + 1))
            .collect::<Vec<_>>(),
    )
}

fn header(length: usize) -> BytesMut {
    BytesMut::from(&u32::try_from(length).unwrap().to_be_bytes()[..])
}

#[test]
fn excessive_length_is_refused_before_allocation() {
    let mut codec = ServerCodec::new(FRAME_BYTES_DEFAULT);
    for length in [
        FRAME_BYTES_DEFAULT + 1,
        FRAME_BYTES_MAX,
        FRAME_BYTES_MAX + 1,
        u32::MAX as usize,
    ] {
        let whole = header(length);
        let mut src = BytesMut::from(&whole[..3]);
        assert!(matches!(codec.decode(&mut src), Ok(None)));
        src.put_u8(whole[3]);
        let capacity = src.capacity();
        let refused = codec.decode(&mut src);
        assert!(
            matches!(refused, Err(ProtocolError::TooLong { bytes, bytes_max: FRAME_BYTES_DEFAULT })
                if bytes == length),
            "{refused:?}"
        );
        assert_eq!(src.capacity(), capacity);
    }
}

#[test]
fn too_small_length_is_refused() {
    let mut codec = ServerCodec::new(FRAME_BYTES_DEFAULT);
    for length in [0, 1, FRAME_BYTES_MIN - 1] {
        let refused = codec.decode(&mut header(length));
        assert!(
            matches!(refused, Err(ProtocolError::TooShort(bytes)) if bytes == length),
            "{refused:?}"
        );
    }
    assert!(matches!(
        codec.decode(&mut header(FRAME_BYTES_MIN)),
        Ok(None)
    ));
}

#[test]
fn largest_frame_is_decoded_in_exact_room() {
    let user: UserName = "bob".parse().unwrap();
    let text = "x".repeat(FRAME_BYTES_DEFAULT - FRAME_BYTES_MIN - "bob,".len());
    let send = Request::Send {
        user,
        text: text.into(),
    };
    let bytes = encoded(&vec![Frame::new(RequestId::new(1), send.clone())]);
    assert_eq!(bytes.len(), LENGTH_BYTES + FRAME_BYTES_DEFAULT);

    let mut reader = Reader::new(ServerCodec::new(FRAME_BYTES_DEFAULT));
    let read = reader.read(&bytes).unwrap();
    assert_eq!(read, [Frame::new(RequestId::new(1), Ok(send))]);
    assert_eq!(reader.capacity_max, bytes.len());
}

#[test]
fn frames_late_in_the_buffer_never_double_it() {
    let text = |bytes: usize| bytestring::ByteString::from("x".repeat(bytes));
    let send = |bytes| Request::Send {
        user: "bob".parse().unwrap(),
        text: text(bytes),
    };
    let mut reader = Reader::new(ServerCodec::new(FRAME_BYTES_DEFAULT));
    for round in 0..50 {
        let small = encoded(&vec![Frame::new(None, send(round))]);
        let large = encoded(&vec![Frame::new(
            None,
            send(text_bytes_max(FRAME_BYTES_DEFAULT)),
        )]);
        let (begin, end) = large.split_at(40_000 - round * 700);
        assert_eq!(reader.read(&small).unwrap().len(), 1);
        assert_eq!(reader.read(begin).unwrap().len(), 0);
        assert_eq!(reader.read(end).unwrap().len(), 1);
    }
    assert!(
        reader.capacity_max <= LENGTH_BYTES + FRAME_BYTES_DEFAULT,
        "{}",
        reader.capacity_max
    );
}

#[test]
fn frame_byte_by_byte_is_moved_once() {
    let send = Request::Send {
        user: "bob".parse().unwrap(),
        text: "x".repeat(1024 * 1024).into(),
    };
    let bytes = encoded(&vec![Frame::new(RequestId::new(1), send.clone())]);
    let mut reader = Reader::new(ServerCodec::new(FRAME_BYTES_MAX));
    let mut read = Vec::new();
    for byte in bytes.chunks(1) {
        read.extend(reader.read(byte).unwrap());
    }
    assert_eq!(read, [Frame::new(RequestId::new(1), Ok(send))]);
    // Room was made when only the header had arrived. Every further call only
    // reads the four bytes of the length.
    assert!(
        reader.moved <= LENGTH_BYTES,
        "{} bytes were moved",
        reader.moved
    );
}

#[test]
fn many_frames_byte_by_byte_cost_linear_copies() {
    let send = |text: String| Request::Send {
        user: "bob".parse().unwrap(),
        text: text.into(),
    };
    let frames: Vec<_> = (0..2_000)
        .map(|i| Frame::new(None, send("x".repeat(i % 300))))
        .collect();
    let bytes = encoded(&frames);
    let mut reader = Reader::new(ServerCodec::new(FRAME_BYTES_DEFAULT));
    // Every text is retained, so that the buffer cannot be reused.
    let mut held = Vec::new();
    for byte in bytes.chunks(1) {
        held.extend(reader.read(byte).unwrap());
    }
    assert_eq!(held.len(), frames.len());
    assert!(
        reader.moved <= bytes.len(),
        "{} of {} bytes were moved",
        reader.moved,
        bytes.len()
    );
}

#[test]
fn decoding_continues_after_malformed_content() {
    let mut reader = Reader::new(ServerCodec::new(FRAME_BYTES_DEFAULT));
    let bytes = b"\0\0\0\x13\0\0\0\x01nonsense\0\0\0\0\0\0\0\
        \0\0\0\x13\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
        \0\0\0\x13\0\0\0\x03pi\0ng\0\0\0\0\0\0\0\0\0\0\
        \0\0\0\x14\0\0\0\x04list\0\0\0\0\0\0\0\0\0\0\0\xff\
        \0\0\0\x13\0\0\0\x05ping\0\0\0\0\0\0\0\0\0\0\0";
    let read = reader.read(bytes).unwrap();
    let codes: Vec<_> = read
        .into_iter()
        .map(|frame| {
            (
                frame.id.map_or(0, RequestId::value),
                frame.message.map_err(|malformed| malformed.refusal.code),
            )
        })
        .collect();
    assert_eq!(
        codes,
        [
            (1, Err(Code::UnknownCommand)),
            (2, Err(Code::BadRequest)),
            (3, Err(Code::BadRequest)),
            (4, Err(Code::BadRequest)),
            (5, Ok(Request::Ping)),
        ]
    );
}

#[test]
fn character_across_the_command_boundary_is_refused() {
    let mut reader = Reader::new(ServerCodec::new(FRAME_BYTES_DEFAULT));
    let read = reader
        .read("\0\0\0\x14\0\0\0\x01aaaaaaaaaaaaaaé".as_bytes())
        .unwrap();
    assert_eq!(
        read[0].message.as_ref().unwrap_err().refusal.code,
        Code::BadRequest
    );
}

#[test]
fn frame_above_the_maximum_is_not_encoded() {
    let send = Request::Send {
        user: "bob".parse().unwrap(),
        text: "x".repeat(FRAME_BYTES_MAX).into(),
    };
    let mut dst = BytesMut::from(&b"before"[..]);
    let refused = native::encode(None, &send, &mut dst);
    assert!(
        matches!(refused, Err(ProtocolError::Unencodable(_))),
        "{refused:?}"
    );
    assert_eq!(dst, "before");
}

#[test]
fn push_fields_fit_in_reserved_bytes() {
    let delivery = Delivery {
        sequence: Sequence(u64::MAX),
        sender: Some("x".repeat(64).parse().unwrap()),
        time_ms: u64::MAX,
        text: "x".repeat(text_bytes_max(FRAME_BYTES_MAX)).into(),
    };
    let text_bytes = delivery.text.len();
    let bytes = encoded(&vec![Frame::new(None, Reply::String(delivery))]);
    assert_eq!(
        bytes.len() - LENGTH_BYTES,
        text_bytes + PUSH_BYTES_BESIDE_TEXT
    );
    assert_eq!(bytes[0], 0, "every native frame begins with a zero");
}
