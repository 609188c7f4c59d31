//! Frames: golden bytes, any cut of the bytes, and refusals.

use bytes::{Bytes, BytesMut};
use hark_node::stream::frame::{
    Frame, FrameCodec, FrameError, HEADER_BYTES, MESSAGE_BYTES_MAX_DEFAULT,
};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio_util::codec::{Decoder as _, Encoder as _};

fn frame(is_compressed: bool, message: &[u8]) -> Frame {
    Frame {
        is_compressed,
        message: Bytes::copy_from_slice(message),
    }
}

fn encode(frames: &[Frame]) -> BytesMut {
    let mut bytes = BytesMut::new();
    for frame in frames {
        FrameCodec::default()
            .encode(frame.clone(), &mut bytes)
            .unwrap();
    }
    bytes
}

#[track_caller]
fn check_golden(frame: Frame, bytes: &[u8]) {
    let mut encoded = encode(std::slice::from_ref(&frame));
    assert_eq!(&encoded[..], bytes);
    assert_eq!(
        FrameCodec::default().decode(&mut encoded).unwrap(),
        Some(frame)
    );
    assert!(encoded.is_empty());
}

#[test]
fn a_frame_has_these_bytes() {
    check_golden(frame(false, b""), &[0, 0, 0, 0, 0]);
    check_golden(frame(false, b"{}"), b"\x00\x00\x00\x00\x02{}");
    check_golden(
        frame(true, &[7; 258]),
        &[&[1, 0, 0, 1, 2][..], &[7; 258]].concat(),
    );
}

#[test]
fn a_message_over_the_bound_is_refused_when_its_header_is_there() {
    let mut codec = FrameCodec::new(10);
    let mut bytes = BytesMut::from(&[0, 0, 0, 0][..]);
    assert!(codec.decode(&mut bytes).unwrap().is_none());
    bytes.extend_from_slice(&[11]);
    let capacity = bytes.capacity();
    let refused = codec.decode(&mut bytes).unwrap_err();
    assert!(
        matches!(
            refused,
            FrameError::TooLong {
                bytes: 11,
                bytes_max: 10
            }
        ),
        "{refused}"
    );
    assert_eq!(bytes.capacity(), capacity);
}

#[test]
fn the_largest_message_passes_and_one_byte_more_does_not() {
    let mut codec = FrameCodec::default();
    let mut bytes = BytesMut::new();
    let largest = frame(false, &vec![1; MESSAGE_BYTES_MAX_DEFAULT]);
    codec.encode(largest.clone(), &mut bytes).unwrap();
    assert_eq!(codec.decode(&mut bytes).unwrap(), Some(largest));

    let mut bytes = BytesMut::from("before");
    let refused = codec.encode(
        frame(false, &vec![1; MESSAGE_BYTES_MAX_DEFAULT + 1]),
        &mut bytes,
    );
    assert!(
        matches!(refused, Err(FrameError::TooLong { .. })),
        "{refused:?}"
    );
    assert_eq!(bytes, "before");
}

#[test]
fn an_unknown_flag_is_refused() {
    for flag in 2..=u8::MAX {
        let mut bytes = BytesMut::from(&[flag, 0, 0, 0, 0][..]);
        let refused = FrameCodec::default().decode(&mut bytes).unwrap_err();
        assert!(
            matches!(refused, FrameError::UnknownFlag(unknown) if unknown == flag),
            "{refused}"
        );
    }
}

#[test]
fn a_stream_that_ends_within_a_frame_is_an_error() {
    let mut codec = FrameCodec::default();
    let mut bytes = encode(&[frame(false, b"whole")]);
    bytes.truncate(HEADER_BYTES + 2);
    let cut = codec.decode_eof(&mut bytes).unwrap_err();
    assert!(matches!(cut, FrameError::Io(_)), "{cut}");
}

proptest! {
    #[test]
    fn any_cut_of_the_bytes_gives_the_same_frames(
        frames in vec((any::<bool>(), vec(any::<u8>(), 0..300)), 0..8),
        cuts in vec(1_usize..40, 1..40),
    ) {
        let frames: Vec<_> = frames.iter().map(|(flag, message)| frame(*flag, message)).collect();
        let mut rest = encode(&frames);
        let (mut codec, mut buffer, mut decoded) = (FrameCodec::default(), BytesMut::new(), Vec::new());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            buffer.extend_from_slice(&rest.split_to((*cut).min(rest.len())));
            while let Some(frame) = codec.decode(&mut buffer).unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn no_bytes_panic_or_make_the_decoder_reserve_more_than_the_bound(
        bytes in vec(prop_oneof![Just(0), any::<u8>()], 0..200),
    ) {
        let (mut codec, mut buffer) = (FrameCodec::new(100), BytesMut::from(&bytes[..]));
        let capacity = buffer.capacity();
        while let Ok(Some(frame)) = codec.decode(&mut buffer) {
            prop_assert!(frame.message.len() <= 100);
        }
        prop_assert!(buffer.capacity() <= 2 * (capacity + HEADER_BYTES + 100), "{}", buffer.capacity());
    }
}
