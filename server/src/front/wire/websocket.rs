//! The WebSocket framing (RFC 6455): each binary message is a native frame without its
//! length. It decodes and encodes; the handshake belongs to the HTTP front.
//!
//! tungstenite parses the headers of frames. Its connection is not used, because it keeps a
//! buffer for each connection, and copies of passwords in it.

use std::io::Cursor;

use bytes::{Buf as _, BufMut as _, BytesMut};
use hark_protocol::framing::native;
use hark_protocol::limits::LENGTH_BYTES;
use hark_protocol::{ByeReason, Failure, Incoming, ProtocolError, Reply, Request};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use zeroize::Zeroize as _;

use super::deadlines::Moment;

/// The longest payload of a control frame, in bytes.
const CONTROL_BYTES_MAX: usize = 125;

/// The longest header of a frame without a mask, in bytes.
const HEADER_BYTES_MAX: usize = 10;

/// The state of a connection's framing.
#[derive(Debug)]
pub(super) struct WebSocketCodec {
    /// The largest message, in bytes.
    frame_bytes_max: usize,
    /// The fragments of an incomplete message.
    fragments: Option<BytesMut>,
    /// Whether the peer has sent its close.
    is_closed: bool,
    /// The code with which the server closes.
    closes_with: CloseCode,
    /// The time of a ping since which no byte has arrived.
    pub(super) pinged_at: Option<Moment>,
}

/// A violation of the framing by the peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    /// A frame is malformed.
    #[error("malformed WebSocket frame: {0}")]
    Malformed(&'static str),
    /// A message is text.
    #[error("a message must be binary")]
    Text,
    /// A message has no valid length.
    #[error(transparent)]
    Message(#[from] ProtocolError),
}

impl Violation {
    /// Returns the code with which the connection closes.
    const fn close_code(&self) -> CloseCode {
        match self {
            Self::Text => CloseCode::Unsupported,
            Self::Message(ProtocolError::TooLong { .. }) => CloseCode::Size,
            Self::Malformed(_) | Self::Message(_) => CloseCode::Protocol,
        }
    }
}

impl WebSocketCodec {
    /// Returns the framing of a new connection, with messages of up to `frame_bytes_max`
    /// bytes.
    pub(super) const fn new(frame_bytes_max: usize) -> Self {
        Self {
            frame_bytes_max,
            fragments: None,
            is_closed: false,
            closes_with: CloseCode::Policy,
            pinged_at: None,
        }
    }

    /// Returns whether the peer has closed its side.
    pub(super) const fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Returns the bytes of an incomplete message, if there is one.
    pub(super) fn partial_bytes(&self) -> Option<usize> {
        self.fragments.as_ref().map(BytesMut::len)
    }

    /// Decodes the next request, if it is complete. Pongs are appended to `output`.
    ///
    /// # Errors
    /// A violation; the connection is to be closed.
    pub(super) fn decode(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<Option<Incoming<Request>>, Violation> {
        let decoded = self.decode_frames(input, output);
        if let Err(violation) = &decoded {
            self.closes_with = violation.close_code();
        }
        decoded
    }

    fn decode_frames(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<Option<Incoming<Request>>, Violation> {
        while !self.is_closed {
            let mut cursor = Cursor::new(&*input);
            let parsed = FrameHeader::parse(&mut cursor)
                .map_err(|_| Violation::Malformed("reserved opcode"))?;
            let Some((header, length)) = parsed else {
                return Ok(None);
            };
            let header_bytes = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            let (mask, length) = self.check(&header, length)?;
            let missing = (header_bytes + length).saturating_sub(input.len());
            if missing > 0 {
                native::make_room(input, missing);
                return Ok(None);
            }
            input.advance(header_bytes);
            let payload = input.get_mut(..length).unwrap_or_default();
            unmask(payload, mask);
            let request = match header.opcode {
                OpCode::Data(_) => self.take_data(payload, header.is_final)?,
                OpCode::Control(control) => {
                    self.take_control(control, payload, output)?;
                    None
                }
            };
            input.advance(length);
            if request.is_some() {
                return Ok(request);
            }
        }
        input.clear();
        Ok(None)
    }

    /// Checks a header. Returns the mask and the length of its payload.
    fn check(&self, header: &FrameHeader, length: u64) -> Result<([u8; 4], usize), Violation> {
        let mask = header.mask.ok_or(Violation::Malformed("no mask"))?;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::Malformed("reserved bit"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match header.opcode {
            OpCode::Control(_) if !header.is_final || length > CONTROL_BYTES_MAX => {
                return Err(Violation::Malformed("control frame too long or fragmented"));
            }
            OpCode::Control(_) => return Ok((mask, length)),
            OpCode::Data(Data::Text) => return Err(Violation::Text),
            OpCode::Data(Data::Continue) if self.fragments.is_none() => {
                return Err(Violation::Malformed("continuation of no message"));
            }
            OpCode::Data(Data::Binary) if self.fragments.is_some() => {
                return Err(Violation::Malformed("message within a message"));
            }
            OpCode::Data(_) => {}
        }
        let bytes = length.saturating_add(self.partial_bytes().unwrap_or_default());
        if bytes > self.frame_bytes_max {
            let bytes_max = self.frame_bytes_max;
            return Err(ProtocolError::TooLong { bytes, bytes_max }.into());
        }
        Ok((mask, length))
    }

    /// Takes the payload of a data frame. Returns the request that it completes.
    fn take_data(
        &mut self,
        payload: &mut [u8],
        is_final: bool,
    ) -> Result<Option<Incoming<Request>>, Violation> {
        if self.fragments.is_none() && is_final {
            return Ok(Some(native::decode_body(payload)?));
        }
        let fragments = self.fragments.get_or_insert_default();
        fragments.extend_from_slice(payload);
        // It may hold a password.
        payload.zeroize();
        if !is_final {
            return Ok(None);
        }
        let mut message = self.fragments.take().unwrap_or_default();
        Ok(Some(native::decode_body(&mut message)?))
    }

    fn take_control(
        &mut self,
        control: Control,
        payload: &[u8],
        output: &mut BytesMut,
    ) -> Result<(), Violation> {
        match control {
            Control::Ping => write_control(Control::Pong, payload, output),
            Control::Close => {
                self.is_closed = true;
                self.closes_with = close_code(payload)?;
            }
            Control::Pong | Control::Reserved(_) => {}
        }
        Ok(())
    }

    /// Records a reply that may explain the end of the connection.
    pub(super) fn note(&mut self, reply: &Reply) {
        match reply {
            Reply::Bye(ByeReason::Shutdown) => self.closes_with = CloseCode::Away,
            Reply::Error {
                failure: Failure::Unavailable,
                ..
            } => self.closes_with = CloseCode::Again,
            _ => {}
        }
    }

    /// Appends the close of the server.
    pub(super) fn write_close(&self, output: &mut BytesMut) {
        match self.closes_with {
            CloseCode::Status => write_control(Control::Close, &[], output),
            code => write_control(Control::Close, &u16::from(code).to_be_bytes(), output),
        }
    }

    /// Appends a ping.
    pub(super) fn write_ping(&mut self, now: Moment, output: &mut BytesMut) {
        self.pinged_at = Some(now);
        write_control(Control::Ping, &[], output);
    }
}

/// Returns the code of a close.
fn close_code(payload: &[u8]) -> Result<CloseCode, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok(CloseCode::Status),
            _ => Err(Violation::Malformed("close with half a code")),
        };
    };
    let code = CloseCode::from(u16::from_be_bytes(*code));
    if !code.is_allowed() || std::str::from_utf8(reason).is_err() {
        return Err(Violation::Malformed("invalid code or reason of a close"));
    }
    Ok(code)
}

/// Removes the mask of a payload, eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Turns the native frame at `start` into a binary message: its length becomes a header.
pub(super) fn wrap(output: &mut BytesMut, start: usize) {
    let bytes = output.len().saturating_sub(start + LENGTH_BYTES);
    let (header, header_bytes) = header(OpCode::Data(Data::Binary), bytes);
    let end = output.len();
    if header_bytes > LENGTH_BYTES {
        output.put_bytes(0, header_bytes - LENGTH_BYTES);
    }
    if header_bytes != LENGTH_BYTES {
        output.copy_within(start + LENGTH_BYTES..end, start + header_bytes);
    }
    output.truncate(start + header_bytes + bytes);
    let header = header.get(..header_bytes).unwrap_or_default();
    if let Some(place) = output.get_mut(start..start + header_bytes) {
        place.copy_from_slice(header);
    }
}

fn write_control(control: Control, payload: &[u8], output: &mut BytesMut) {
    let (header, header_bytes) = header(OpCode::Control(control), payload.len());
    output.extend_from_slice(header.get(..header_bytes).unwrap_or_default());
    output.extend_from_slice(payload);
}

/// Returns the header of a frame, and its length.
fn header(opcode: OpCode, payload_bytes: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let header = FrameHeader {
        opcode,
        ..FrameHeader::default()
    };
    let mut bytes = [0; HEADER_BYTES_MAX];
    let length = payload_bytes as u64;
    // A header of ten bytes is the longest without a mask.
    drop(header.format(length, &mut bytes.as_mut_slice()));
    (bytes, header.len(length))
}

#[cfg(test)]
mod tests {
    use hark_protocol::{Frame, OkFields, RequestId};
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x12, 0x00, 0xff, 0x7e];

    /// Returns a masked frame of a client.
    fn frame(opcode: OpCode, is_final: bool, payload: &[u8]) -> BytesMut {
        let header = FrameHeader {
            opcode,
            is_final,
            mask: Some(MASK),
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        header.format(payload.len() as u64, &mut bytes).unwrap();
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        unmask(&mut bytes[start..], MASK);
        BytesMut::from(&*bytes)
    }

    const BINARY: OpCode = OpCode::Data(Data::Binary);

    fn ping() -> BytesMut {
        let mut message = BytesMut::new();
        native::encode(RequestId::new(7), &Request::Ping, &mut message).unwrap();
        message.split_off(LENGTH_BYTES)
    }

    type Decoded = Result<Option<Incoming<Request>>, Violation>;

    /// Decodes input that arrives in pieces of this size. Returns the output, too.
    fn decode(
        mut input: BytesMut,
        piece: usize,
    ) -> (Vec<Incoming<Request>>, BytesMut, Option<Violation>) {
        let mut codec = WebSocketCodec::new(1000);
        let (mut requests, mut output, mut buffer) = (Vec::new(), BytesMut::new(), BytesMut::new());
        while !input.is_empty() {
            buffer.extend_from_slice(&input.split_to(piece.min(input.len())));
            loop {
                match codec.decode(&mut buffer, &mut output) {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(violation) => return (requests, output, Some(violation)),
                }
            }
        }
        (requests, output, None)
    }

    #[test]
    fn message_in_fragments_around_a_ping_is_decoded() {
        let message = ping();
        let mut input = frame(BINARY, false, &message[..5]);
        input.unsplit(frame(OpCode::Control(Control::Ping), true, b"alive"));
        input.unsplit(frame(OpCode::Data(Data::Continue), false, &[]));
        input.unsplit(frame(OpCode::Data(Data::Continue), true, &message[5..]));
        input.unsplit(frame(BINARY, true, &message));
        let expected = Frame::new(RequestId::new(7), Ok(Request::Ping));
        for piece in [1, 2, 3, 7, 1000] {
            let (requests, output, violation) = decode(input.clone(), piece);
            assert!(violation.is_none(), "{violation:?}");
            assert_eq!(requests, [expected.clone(), expected.clone()]);
            assert_eq!(&output[..], b"\x8a\x05alive");
        }
    }

    #[track_caller]
    fn check_violation(input: &[u8], code: CloseCode) {
        let mut codec = WebSocketCodec::new(1000);
        let decoded: Decoded = codec.decode(&mut BytesMut::from(input), &mut BytesMut::new());
        assert!(decoded.is_err(), "{decoded:?}");
        let mut output = BytesMut::new();
        codec.write_close(&mut output);
        assert_eq!(output[2..], u16::from(code).to_be_bytes());
    }

    #[test]
    fn violation_closes_with_its_code() {
        check_violation(
            &frame(OpCode::Data(Data::Text), true, b"hi"),
            CloseCode::Unsupported,
        );
        check_violation(&frame(BINARY, true, b"short"), CloseCode::Protocol);
        check_violation(&frame(BINARY, true, &[0; 1001])[..14], CloseCode::Size);
        check_violation(
            &frame(OpCode::Data(Data::Continue), true, &ping()),
            CloseCode::Protocol,
        );
        check_violation(
            &frame(OpCode::Control(Control::Ping), false, b""),
            CloseCode::Protocol,
        );
        check_violation(
            &frame(OpCode::Control(Control::Ping), true, &[0; 126]),
            CloseCode::Protocol,
        );
        check_violation(
            &frame(OpCode::Control(Control::Close), true, &[3]),
            CloseCode::Protocol,
        );
        check_violation(
            &frame(OpCode::Control(Control::Close), true, &[3, 237]),
            CloseCode::Protocol,
        );
        // Without a mask, with a reserved bit, with a reserved opcode.
        check_violation(b"\x82\x02hi", CloseCode::Protocol);
        check_violation(b"\xc2\x80abcd", CloseCode::Protocol);
        check_violation(b"\x83\x80abcd", CloseCode::Protocol);
        // A length of 2^64 - 1.
        check_violation(
            b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xffabcd",
            CloseCode::Size,
        );
    }

    #[test]
    fn close_of_the_peer_is_echoed() {
        for (payload, echo) in [
            (&b"\x03\xe8bye"[..], &b"\x88\x02\x03\xe8"[..]),
            (b"", b"\x88\x00"),
        ] {
            let mut codec = WebSocketCodec::new(1000);
            let mut input = frame(OpCode::Control(Control::Close), true, payload);
            input.extend_from_slice(b"more");
            let decoded = codec.decode(&mut input, &mut BytesMut::new());
            assert!(matches!(decoded, Ok(None)), "{decoded:?}");
            assert!(codec.is_closed() && input.is_empty());
            let mut output = BytesMut::new();
            codec.write_close(&mut output);
            assert_eq!(&output[..], echo);
        }
    }

    #[test]
    fn reply_is_a_binary_message_of_any_length() {
        for text_bytes in [0, 50, 107, 108, 200, 65_500, 65_535, 70_000] {
            let mut output = BytesMut::from(&b"before"[..]);
            let fields = OkFields::Encoded("x".repeat(text_bytes).into());
            native::encode(RequestId::new(1), &Reply::Ok(fields), &mut output).unwrap();
            let message = output[6 + LENGTH_BYTES..].to_vec();
            wrap(&mut output, 6);
            assert_eq!(&output.split_to(6)[..], b"before");
            let mut cursor = Cursor::new(&*output);
            let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            let start = cursor.position() as usize;
            assert!(header.is_final && header.opcode == BINARY);
            assert_eq!(
                (length as usize, &output[start..]),
                (message.len(), &*message)
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_alike_in_any_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..100), piece in 1_usize..10,
        ) {
            let (whole, pieces) = (
                decode(BytesMut::from(&*bytes), 100),
                decode(BytesMut::from(&*bytes), piece),
            );
            prop_assert_eq!((whole.0, whole.1), (pieces.0, pieces.1));
            prop_assert_eq!(whole.2.map(|v| v.to_string()), pieces.2.map(|v| v.to_string()));
        }
    }
}
