//! The framing of a wire connection. It encodes replies and decodes requests; only the
//! connection knows when it may do so.

use bytes::BytesMut;
use hark_protocol::framing::classic::{self, ClassicServerCodec};
use hark_protocol::framing::native::{self, ServerCodec};
use hark_protocol::{
    Code, Frame, Incoming, Malformed, ProtocolError, Push, Refusal, Reply, Request, RequestId,
    RoomReply,
};
use tokio_util::codec::Decoder as _;

use super::deadlines::Moment;
use super::websocket::{self, Violation, WebSocketCodec};
use crate::chat::delivery;
use crate::store::{Message, Said};

/// The framing of a connection.
#[derive(Debug)]
pub struct Framing(Kind);

#[derive(Debug)]
enum Kind {
    /// Length, id, message.
    Native(ServerCodec),
    /// The text format of the legacy clients.
    Classic {
        codec: ClassicServerCodec,
        /// Whether the latest reply was a part of a list.
        in_list: bool,
    },
    /// Id and message, as a message of a WebSocket. Boxed, because a connection of another
    /// framing must not reserve memory for it.
    WebSocket(Box<WebSocketCodec>),
}

impl Framing {
    /// Returns the native framing, with frames of up to `frame_bytes_max` bytes.
    #[must_use]
    pub fn native(frame_bytes_max: usize) -> Self {
        Self(Kind::Native(ServerCodec::new(frame_bytes_max)))
    }

    /// Returns the classic framing.
    #[must_use]
    pub fn classic() -> Self {
        Self(Kind::Classic {
            codec: ClassicServerCodec::default(),
            in_list: false,
        })
    }

    /// Returns the framing of a WebSocket, with messages of up to `frame_bytes_max` bytes.
    #[must_use]
    pub fn websocket(frame_bytes_max: usize) -> Self {
        Self(Kind::WebSocket(WebSocketCodec::new(frame_bytes_max).into()))
    }

    /// Returns whether this is the classic framing, in which a request waits for the reply to
    /// the previous request, and a message is acknowledged once it is written.
    #[must_use]
    pub const fn is_classic(&self) -> bool {
        matches!(self.0, Kind::Classic { .. })
    }

    /// Appends a reply.
    ///
    /// # Errors
    /// If the reply exceeds the largest frame.
    pub fn encode(
        &mut self,
        id: Option<RequestId>,
        reply: &Reply,
        output: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        match &mut self.0 {
            // The `ok` with the count 0 suffices.
            Kind::Native(_) | Kind::WebSocket(_) if is_empty_list(reply) => Ok(()),
            Kind::Native(_) => native::encode(id, reply, output),
            Kind::Classic { in_list, .. } => {
                // Legacy clients expect no `ok` after a list.
                let was_in_list = std::mem::replace(in_list, matches!(reply, Reply::List(_)));
                if !(was_in_list && matches!(reply, Reply::Ok(_))) {
                    classic::encode(reply, output);
                }
                Ok(())
            }
            Kind::WebSocket(codec) => {
                codec.note(reply);
                let start = output.len();
                native::encode(id, reply, output)?;
                websocket::wrap(output, start);
                Ok(())
            }
        }
    }

    /// Appends a message for the connected user.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) fn encode_push(
        &mut self,
        message: &Message,
        output: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        if self.is_classic() {
            return self.encode(None, &Reply::String(delivery(message)), output);
        }
        let Message {
            position,
            sender,
            time_ms,
            text,
        } = message;
        let (sequence, sender) = (position.sequence, sender.as_ref());
        let push = Push {
            sequence,
            sender,
            time_ms: *time_ms,
            text,
        };
        let start = output.len();
        native::encode_push(&push, output)?;
        if let Kind::WebSocket(_) = &self.0 {
            websocket::wrap(output, start);
        }
        Ok(())
    }

    /// Appends a message of a room, which is encoded once for all its readers. The classic
    /// framing has none.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) fn encode_said(
        &mut self,
        said: &Said,
        output: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        if self.is_classic() {
            return Ok(());
        }
        let mut failed = None;
        let encoded = said.encoded(|said| {
            let mut encoded = BytesMut::new();
            let reply = Reply::Room(RoomReply::Said {
                room: said.room.clone(),
                delivery: delivery(&said.message),
            });
            failed = native::encode(None, &reply, &mut encoded).err();
            encoded.freeze()
        });
        let start = output.len();
        output.extend_from_slice(encoded);
        if let Kind::WebSocket(_) = &self.0 {
            websocket::wrap(output, start);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Decodes the next request from the input, if it is complete. A framing with pings
    /// answers them in the output.
    pub(super) fn decode(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<Option<Incoming<Request>>, Violation> {
        let decoded = match &mut self.0 {
            Kind::Native(codec) => codec.decode(input)?,
            Kind::WebSocket(codec) => codec.decode(input, output)?,
            Kind::Classic { codec, .. } => {
                let request = codec.decode(input)?;
                return Ok(request.map(|request| Frame::new(None, request)));
            }
        };
        Ok(decoded.map(|Frame { id, message }| {
            Frame::new(id, message.and_then(|request| with_id(id, request)))
        }))
    }

    /// Returns whether the peer has closed its side by the framing.
    pub(super) fn is_closed(&self) -> bool {
        matches!(&self.0, Kind::WebSocket(codec) if codec.is_closed())
    }

    /// Returns the bytes of an incomplete message that are not in the input, if there is
    /// one.
    pub(super) fn partial_bytes(&self) -> Option<usize> {
        match &self.0 {
            Kind::WebSocket(codec) => codec.partial_bytes(),
            Kind::Native(_) | Kind::Classic { .. } => None,
        }
    }

    /// Appends the end of the output, if the framing has one.
    pub(super) fn encode_end(&self, output: &mut BytesMut) {
        if let Kind::WebSocket(codec) = &self.0 {
            codec.write_close(output);
        }
    }

    /// Returns the time of an unanswered ping, if the framing has pings.
    pub(super) fn pinged_at(&self) -> Option<Option<Moment>> {
        match &self.0 {
            Kind::WebSocket(codec) => Some(codec.pinged_at),
            Kind::Native(_) | Kind::Classic { .. } => None,
        }
    }

    /// Appends a ping.
    pub(super) fn encode_ping(&mut self, now: Moment, output: &mut BytesMut) {
        if let Kind::WebSocket(codec) = &mut self.0 {
            codec.write_ping(now, output);
        }
    }

    /// Records that bytes of the peer have arrived, which answer a ping.
    pub(super) fn handle_received(&mut self) {
        if let Kind::WebSocket(codec) = &mut self.0 {
            codec.pinged_at = None;
        }
    }

    /// Returns whether the input ends with a command whose fields are missing (classic).
    pub(super) fn awaits_fields(&self, input: &BytesMut) -> bool {
        matches!(&self.0, Kind::Classic { codec, .. } if codec.awaits_fields(input))
    }

    /// Makes the next [`Self::decode`] decode that command without its fields.
    pub(super) fn give_up_on_fields(&mut self) {
        if let Kind::Classic { codec, .. } = &mut self.0 {
            codec.give_up_on_fields();
        }
    }
}

fn is_empty_list(reply: &Reply) -> bool {
    matches!(reply, Reply::List(names) if names.is_empty())
}

/// Checks that a request has an id, which all but `ack` need in the native framing.
fn with_id(id: Option<RequestId>, request: Request) -> Result<Request, Malformed> {
    match request {
        Request::Ack { .. } => Ok(request),
        _ if id.is_some() => Ok(request),
        _ => Err(Malformed {
            refusal: Refusal::new(Code::BadRequest, "a request needs an id other than 0"),
            is_hello: matches!(request, Request::Hello { .. }),
        }),
    }
}
