//! The native framing: a length, an id, the message.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0–3 | length, u32 big endian: the number of bytes after this field |
//! | 4–7 | id, u32 big endian |
//! | 8– | command (15 bytes) and payload |

use std::marker::PhantomData;

use bytes::{Buf, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{Frame, Incoming, ProtocolError};
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, LENGTH_BYTES, USER_NAME_BYTES_MAX};
use crate::message::{self, Message, Push};
use crate::name::RequestId;
use crate::{Reply, Request};

/// Up to here a buffer grows as it likes: that wastes at most as much again,
/// and keeps it from shrinking to the size of each small frame.
const SMALL_FRAME_BYTES: usize = 8 * 1024;

/// What the fields of a `string` beside its text take in a frame, in bytes, at
/// most: an id, a command, two numbers of 20 digits, a name and three commas.
pub const PUSH_BYTES_BESIDE_TEXT: usize = FRAME_BYTES_MIN + 2 * 20 + USER_NAME_BYTES_MAX + 3;

/// The framing as a server speaks it: requests in, replies out.
pub type ServerCodec = NativeCodec<Request, Reply>;

/// The framing as a client speaks it: replies in, requests out.
pub type ClientCodec = NativeCodec<Reply, Request>;

/// Reads frames of `In` and writes frames of `Out`.
///
/// A length over `frame_bytes_max`, or under an id and a command, is an error
/// as soon as the length field is there, before memory is reserved for it.
#[derive(Debug, Clone)]
pub struct NativeCodec<In, Out> {
    frame_bytes_max: usize,
    direction: PhantomData<fn(Out) -> In>,
}

impl<In, Out> NativeCodec<In, Out> {
    /// A codec that takes frames of up to `frame_bytes_max` bytes, at most
    /// [`FRAME_BYTES_MAX`].
    #[must_use]
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max: frame_bytes_max.min(FRAME_BYTES_MAX), direction: PhantomData }
    }
}

impl<In: Message, Out> Decoder for NativeCodec<In, Out> {
    type Item = Incoming<In>;
    type Error = ProtocolError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Incoming<In>>, ProtocolError> {
        let Some(header) = src.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_be_bytes(*header) as usize;
        if bytes < FRAME_BYTES_MIN {
            return Err(ProtocolError::TooShort(bytes));
        }
        if bytes > self.frame_bytes_max {
            return Err(ProtocolError::TooLong { bytes, bytes_max: self.frame_bytes_max });
        }
        let missing = (LENGTH_BYTES + bytes).saturating_sub(src.len());
        if missing > 0 {
            make_room(src, missing);
            return Ok(None);
        }
        src.advance(LENGTH_BYTES);
        let mut frame = src.split_to(bytes);
        let id = RequestId::new(frame.get_u32());
        Ok(Some(Frame { id, message: super::parse(message::take(&mut frame)) }))
    }
}

impl<In, Out: Message> Encoder<Frame<Out>> for NativeCodec<In, Out> {
    type Error = ProtocolError;

    /// Appends one frame. What is too long for the length field leaves `dst`
    /// as it was.
    ///
    /// # Errors
    /// [`ProtocolError::Unencodable`] for a frame of over [`FRAME_BYTES_MAX`].
    fn encode(&mut self, frame: Frame<Out>, dst: &mut BytesMut) -> Result<(), ProtocolError> {
        encode(frame.id, &frame.message, dst)
    }
}

/// Appends one frame, as [`NativeCodec`] does, from a borrowed message.
///
/// # Errors
/// [`ProtocolError::Unencodable`] where the frame is over [`FRAME_BYTES_MAX`];
/// `dst` is then as it was.
pub fn encode(
    id: Option<RequestId>,
    message: &impl Message,
    dst: &mut BytesMut,
) -> Result<(), ProtocolError> {
    frame(id, message.command(), dst, |dst| message.write_payload(dst))
}

/// Appends a message for the user who is connected, as [`encode`] does.
///
/// # Errors
/// As [`encode`].
pub fn encode_push(push: &Push<'_>, dst: &mut BytesMut) -> Result<(), ProtocolError> {
    frame(None, Push::COMMAND, dst, |dst| push.write_payload(dst))
}

fn frame(
    id: Option<RequestId>,
    command: &str,
    dst: &mut BytesMut,
    write_payload: impl FnOnce(&mut BytesMut),
) -> Result<(), ProtocolError> {
    let start = dst.len();
    dst.put_u32(0);
    dst.put_u32(id.map_or(0, RequestId::value));
    message::write_command(command, dst);
    write_payload(dst);
    let bytes = dst.len() - start - LENGTH_BYTES;
    let fits = bytes <= FRAME_BYTES_MAX;
    match (u32::try_from(bytes), dst.get_mut(start..start + LENGTH_BYTES)) {
        (Ok(length), Some(header)) if fits => {
            header.copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        _ => {
            dst.truncate(start);
            Err(ProtocolError::Unencodable(bytes))
        }
    }
}

/// Makes room for the `missing` bytes of a frame without ever holding more than
/// one largest frame: `reserve` would round up to twice what there was.
///
/// What has come of a frame is copied at most once, since the frame fits then.
fn make_room(src: &mut BytesMut, missing: usize) {
    let bytes = src.len() + missing;
    if bytes <= SMALL_FRAME_BYTES {
        src.reserve(missing);
    } else if src.capacity() < bytes && !src.try_reclaim(missing) {
        let mut room = BytesMut::with_capacity(bytes);
        room.put_slice(src);
        *src = room;
    }
}
