//! The native framing: length, id, message.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0–3 | length, u32 big endian: the number of bytes after this field |
//! | 4–7 | id, u32 big endian |
//! | 8– | command (15 bytes) and payload |

use std::marker::PhantomData;

use bytes::{Buf as _, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{Frame, Incoming, ProtocolError};
use crate::limits::{
    FRAME_BYTES_MAX, FRAME_BYTES_MIN, ID_BYTES, LENGTH_BYTES, USER_NAME_BYTES_MAX,
};
use crate::message::{self, Message, Push};
use crate::name::RequestId;
use crate::{Reply, Request};

/// Buffers up to this size grow freely: that wastes at most as much again, and
/// avoids shrinking the buffer to the size of each small frame.
const SMALL_FRAME_BYTES: usize = 8 * 1024;

/// Largest size of everything but the text in the frame of a `string`, in
/// bytes: id, command, two numbers of 20 digits, a name and three commas.
pub const PUSH_BYTES_BESIDE_TEXT: usize = FRAME_BYTES_MIN + 2 * 20 + USER_NAME_BYTES_MAX + 3;

/// The server side of the framing: decodes requests and encodes replies.
pub type ServerCodec = NativeCodec<Request, Reply>;

/// The client side of the framing: decodes replies and encodes requests.
pub type ClientCodec = NativeCodec<Reply, Request>;

/// Codec that decodes frames of `In` and encodes frames of `Out`.
///
/// A length above `frame_bytes_max`, or too small for an id and a command, is
/// an error as soon as the length field is complete, before memory is reserved
/// for it.
#[derive(Debug, Clone)]
pub struct NativeCodec<In, Out> {
    frame_bytes_max: usize,
    direction: PhantomData<fn(Out) -> In>,
}

impl<In, Out> NativeCodec<In, Out> {
    /// Returns a codec for frames of up to `frame_bytes_max` bytes, at most
    /// [`FRAME_BYTES_MAX`].
    #[must_use]
    pub fn new(frame_bytes_max: usize) -> Self {
        Self {
            frame_bytes_max: frame_bytes_max.min(FRAME_BYTES_MAX),
            direction: PhantomData,
        }
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
            return Err(ProtocolError::TooLong {
                bytes,
                bytes_max: self.frame_bytes_max,
            });
        }
        let missing = (LENGTH_BYTES + bytes).saturating_sub(src.len());
        if missing > 0 {
            make_room(src, missing);
            return Ok(None);
        }
        src.advance(LENGTH_BYTES);
        let frame = decode_body(src.get_mut(..bytes).unwrap_or_default());
        src.advance(bytes);
        frame.map(Some)
    }
}

/// Decodes the id and the message of one frame, without its length, from a framing
/// that has lengths of its own. A message that may hold a password is wiped.
///
/// # Errors
/// [`ProtocolError::TooShort`].
pub fn decode_body<M: Message>(body: &mut [u8]) -> Result<Incoming<M>, ProtocolError> {
    if body.len() < FRAME_BYTES_MIN {
        return Err(ProtocolError::TooShort(body.len()));
    }
    let Some((id, message)) = body.split_first_chunk_mut::<ID_BYTES>() else {
        return Err(ProtocolError::TooShort(body.len()));
    };
    let id = RequestId::new(u32::from_be_bytes(*id));
    let message = super::parse(message);
    Ok(Frame { id, message })
}

impl<In, Out: Message> Encoder<Frame<Out>> for NativeCodec<In, Out> {
    type Error = ProtocolError;

    /// Appends one frame.
    ///
    /// # Errors
    /// [`ProtocolError::Unencodable`] if the frame exceeds [`FRAME_BYTES_MAX`];
    /// `dst` is unchanged in that case.
    fn encode(&mut self, frame: Frame<Out>, dst: &mut BytesMut) -> Result<(), ProtocolError> {
        encode(frame.id, &frame.message, dst)
    }
}

/// Appends one frame from a borrowed message, as [`NativeCodec`] does.
///
/// # Errors
/// [`ProtocolError::Unencodable`] if the frame exceeds [`FRAME_BYTES_MAX`];
/// `dst` is unchanged in that case.
pub fn encode(
    id: Option<RequestId>,
    message: &impl Message,
    dst: &mut BytesMut,
) -> Result<(), ProtocolError> {
    frame(id, message.command(), dst, |dst| message.write_payload(dst))
}

/// Appends the push of a message, as [`encode`] does.
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
    match (
        u32::try_from(bytes),
        dst.get_mut(start..start + LENGTH_BYTES),
    ) {
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

/// Makes room for the `missing` bytes of a frame without exceeding one largest
/// frame; `reserve` might double the capacity.
///
/// The received part of a frame is copied at most once, since the whole frame
/// fits afterwards.
pub fn make_room(src: &mut BytesMut, missing: usize) {
    let bytes = src.len() + missing;
    if bytes <= SMALL_FRAME_BYTES {
        src.reserve(missing);
    } else if src.capacity() < bytes && !src.try_reclaim(missing) {
        let mut room = BytesMut::with_capacity(bytes);
        room.put_slice(src);
        *src = room;
    }
}
