//! The bodies of the messages of streams, without types and ids. Both sides share
//! them.

use serde::{Deserialize, Deserializer, Serialize};

use crate::message::MsgId;

pub(super) const SERVER_STREAM: &str = "grpc_server_stream";
pub(super) const CANCEL: &str = "grpc_stream_cancel";
pub(super) const ITEM: &str = "grpc_stream_msg";
pub(super) const END: &str = "grpc_stream_end";
pub(super) const BIDI_OPEN: &str = "grpc_bidi_stream_open";
pub(super) const BIDI_SEND: &str = "grpc_bidi_stream_send";
pub(super) const BIDI_RECV: &str = "grpc_bidi_stream_recv";
pub(super) const BIDI_CLOSE: &str = "grpc_bidi_stream_close";

/// The status of a stream that ended normally.
pub const OK: &str = "OK";

/// The status of a stream that its client has cancelled.
pub const CANCELLED: &str = "CANCELLED";

/// Opens a stream of either kind.
#[derive(Serialize, Deserialize)]
#[serde(bound(deserialize = "Q: Deserialize<'de>"))]
pub(super) struct Open<Q> {
    pub(super) service: String,
    pub(super) method: String,
    /// `null` is a request like any other.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) request: Option<Q>,
}

fn some<'de, D: Deserializer<'de>, Q: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Q>, D::Error> {
    Q::deserialize(deserializer).map(Some)
}

/// Cancels a server stream by the `msg_id` of its request.
#[derive(Serialize, Deserialize)]
pub(super) struct Cancel {
    pub(super) request_id: MsgId,
}

/// One of the replies of a server stream.
#[derive(Serialize)]
pub(super) struct Item<D> {
    /// 1 for the first.
    pub(super) seq: u64,
    pub(super) data: D,
}

/// The end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// [`OK`], [`CANCELLED`], or another status of the other side.
    pub status: String,
    /// The number of items that a server stream has sent, or of messages that a
    /// bidirectional stream has received.
    pub count: u64,
}

impl End {
    pub(super) fn new(status: &str, count: u64) -> Self {
        Self {
            status: status.to_owned(),
            count,
        }
    }
}

/// The name of a bidirectional stream, in the answer to its opening and in its
/// close.
#[derive(Serialize, Deserialize)]
pub(super) struct StreamId {
    pub(super) stream_id: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Send<D> {
    pub(super) stream_id: String,
    pub(super) data: D,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Recv<D> {
    pub(super) data: D,
}
