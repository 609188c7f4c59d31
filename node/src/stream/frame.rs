//! gRPC's length-prefixed message, for byte streams. It does not read the
//! message.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0 | flag: 1 if the message is compressed, else 0 |
//! | 1–4 | length of the message, u32 big endian |
//! | 5– | the message |
//!
//! Source: "gRPC over HTTP2", `Length-Prefixed-Message`
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>).
//! The peers agree on the compression elsewhere (in gRPC by a header), so the
//! flag is carried and the message left unchanged.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// The flag and the length, in bytes.
pub const HEADER_BYTES: usize = 5;

/// The maximum size of a message by default, in bytes, as in the implementations
/// of gRPC.
pub const MESSAGE_BYTES_MAX_DEFAULT: usize = 4 * 1024 * 1024;

/// A message and its flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message is compressed.
    pub is_compressed: bool,
    /// The message, compressed if the flag is set.
    pub message: Bytes,
}

/// Reads and writes frames.
#[derive(Debug, Clone)]
pub struct FrameCodec {
    message_bytes_max: usize,
}

/// A malformed frame, after which no frame can be read, or a message that does
/// not fit in a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The flag is neither 0 nor 1.
    #[error("the flag of a frame must be 0 or 1, not {0}")]
    UnknownFlag(u8),
    /// The message exceeds the maximum.
    #[error("a message of {bytes} bytes exceeds the maximum of {bytes_max}")]
    TooLong {
        /// The size of the message.
        bytes: usize,
        /// The maximum.
        bytes_max: usize,
    },
    /// Reading or writing the stream failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl FrameCodec {
    /// Returns a codec for messages up to this size.
    #[must_use]
    pub const fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max }
    }

    fn check(&self, bytes: usize) -> Result<(), FrameError> {
        let bytes_max = self.message_bytes_max;
        if bytes > bytes_max {
            Err(FrameError::TooLong { bytes, bytes_max })
        } else {
            Ok(())
        }
    }
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self::new(MESSAGE_BYTES_MAX_DEFAULT)
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    /// Returns the next frame once it is whole. Flag and length are checked first,
    /// before memory is reserved for the message.
    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(&[flag, ref length @ ..]) = src.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let is_compressed = match flag {
            0 => false,
            1 => true,
            flag => return Err(FrameError::UnknownFlag(flag)),
        };
        let bytes = u32::from_be_bytes(*length) as usize;
        self.check(bytes)?;
        let missing = (HEADER_BYTES + bytes).saturating_sub(src.len());
        if missing > 0 {
            src.reserve(missing);
            return Ok(None);
        }
        src.advance(HEADER_BYTES);
        Ok(Some(Frame {
            is_compressed,
            message: src.split_to(bytes).freeze(),
        }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    /// Appends one frame. After an error `dst` is unchanged.
    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> Result<(), FrameError> {
        let bytes = frame.message.len();
        self.check(bytes)?;
        let too_long = |_| FrameError::TooLong {
            bytes,
            bytes_max: u32::MAX as usize,
        };
        let length = u32::try_from(bytes).map_err(too_long)?;
        dst.reserve(HEADER_BYTES + bytes);
        dst.put_u8(frame.is_compressed.into());
        dst.put_u32(length);
        dst.put_slice(&frame.message);
        Ok(())
    }
}
