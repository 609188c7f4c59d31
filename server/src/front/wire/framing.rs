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

use crate::chat::delivery;
use crate::store::{Encoding, Message, Said};

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

    /// Returns whether this is the native framing. In the classic framing, a request
    /// waits for the reply to the previous request, and a message is acknowledged once
    /// it is written.
    #[must_use]
    pub const fn is_native(&self) -> bool {
        matches!(self.0, Kind::Native(_))
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
            Kind::Native(_) if matches!(reply, Reply::List(names) if names.is_empty()) => Ok(()),
            Kind::Native(_) => native::encode(id, reply, output),
            Kind::Classic { in_list, .. } => {
                // Legacy clients expect no `ok` after a list.
                let was_in_list = std::mem::replace(in_list, matches!(reply, Reply::List(_)));
                if !(was_in_list && matches!(reply, Reply::Ok(_))) {
                    classic::encode(reply, output);
                }
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
        if !self.is_native() {
            return self.encode(None, &Reply::String(delivery(message)), output);
        }
        let Message {
            position,
            sender,
            time_ms,
            text,
        } = message;
        let (sequence, sender) = (position.sequence, sender.as_ref());
        native::encode_push(
            &Push {
                sequence,
                sender,
                time_ms: *time_ms,
                text,
            },
            output,
        )
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
        if !self.is_native() {
            return Ok(());
        }
        let mut failed = None;
        let encoded = said.encoded(Encoding::Native, |said| {
            let mut encoded = BytesMut::new();
            let reply = Reply::Room(RoomReply::Said {
                room: said.room.clone(),
                delivery: delivery(&said.message),
            });
            failed = native::encode(None, &reply, &mut encoded).err();
            encoded.freeze()
        });
        output.extend_from_slice(encoded);
        failed.map_or(Ok(()), Err)
    }

    /// Decodes the next request from the input, if it is complete.
    pub(super) fn decode(
        &mut self,
        input: &mut BytesMut,
    ) -> Result<Option<Incoming<Request>>, ProtocolError> {
        match &mut self.0 {
            Kind::Native(codec) => {
                let Some(Frame { id, message }) = codec.decode(input)? else {
                    return Ok(None);
                };
                Ok(Some(Frame::new(
                    id,
                    message.and_then(|request| with_id(id, request)),
                )))
            }
            Kind::Classic { codec, .. } => Ok(codec
                .decode(input)?
                .map(|request| Frame::new(None, request))),
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
