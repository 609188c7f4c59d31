//! `Connect`, `Attach` and `Ack`: a stream of messages, acknowledged by other calls. A
//! receipt in the first reply of the stream links them: an acknowledgement counts for the messages of
//! that stream.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use hark_grpc::reply;
use hark_grpc::v1::chat_reply::Reply as V1Reply;
use hark_grpc::v1::{AttachReply, ConnectReply, Connected, attach_reply, connect_reply};
use hark_protocol::{ByeReason, Code, OkFields, Refusal, Reply, RoomName, Sequence};
use tonic::Status;

use crate::chat::Output;
use crate::front::call::{Call, CallError};
use crate::front::push;
use crate::sync::Mutex;

/// An event of a stream.
pub(super) trait Delivered: Sized + Send + 'static {
    /// Returns the event for the reply to `connect` or `attach`, or for a push, if the
    /// stream has it.
    fn event(reply: V1Reply) -> Option<Self>;
}

impl Delivered for ConnectReply {
    fn event(reply: V1Reply) -> Option<Self> {
        let event = match reply {
            V1Reply::Connected(connected) => connect_reply::Event::Connected(connected),
            V1Reply::Message(message) => connect_reply::Event::Message(message),
            V1Reply::Bye(bye) => connect_reply::Event::Bye(bye),
            _ => return None,
        };
        Some(Self { event: Some(event) })
    }
}

impl Delivered for AttachReply {
    fn event(reply: V1Reply) -> Option<Self> {
        let event = match reply {
            V1Reply::Connected(connected) => attach_reply::Event::Connected(connected),
            V1Reply::Message(message) => attach_reply::Event::Message(message),
            V1Reply::Bye(bye) => attach_reply::Event::Bye(bye),
            V1Reply::Said(said) => attach_reply::Event::Said(said),
            V1Reply::Gap(gap) => attach_reply::Event::Gap(gap),
            V1Reply::Joined(joined) => attach_reply::Event::Joined(joined),
            V1Reply::Left(left) => attach_reply::Event::Left(left),
            V1Reply::Seen(seen) => attach_reply::Event::Seen(seen),
            V1Reply::Device(device) => attach_reply::Event::Device(device),
            _ => return None,
        };
        Some(Self { event: Some(event) })
    }
}

/// The open streams, by receipt.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    // Locked because a receipt is removed where its stream is dropped. Held for one
    // operation on the map.
    open: Mutex<HashMap<String, Arc<ReceiptState>>>,
}

/// The state shared by a stream and its `Ack`s.
#[derive(Debug)]
struct ReceiptState {
    // Locked because acknowledgements come from other calls. Held for one output or one
    // acknowledgement.
    call: Mutex<Call>,
    /// Wakes the stream when an acknowledgement makes room.
    stream: AtomicWaker,
}

/// The response stream of a `Connect` or an `Attach`. Dropping it ends the delivery.
#[derive(Debug)]
pub(super) struct DeliveryStream<T> {
    receipt: String,
    receipts: Arc<Receipts>,
    shared: Arc<ReceiptState>,
    /// The first item, until it is sent.
    connected: Option<Connected>,
    ack_timeout: Duration,
    ended: bool,
    event: PhantomData<fn() -> T>,
}

impl Receipts {
    /// Acknowledges the messages of a log up to `sequence`, on the stream with this receipt.
    /// The log is a room, or the inbox.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if there is no such stream, or the message was not sent on it.
    pub(super) fn acknowledge(
        &self,
        receipt: &str,
        log: Option<&RoomName>,
        sequence: u64,
    ) -> Result<(), Refusal> {
        let shared = self
            .open
            .lock()
            .get(receipt)
            .map(Arc::clone)
            .ok_or_else(|| {
                let explanation =
                    "unknown receipt: its stream has ended; unacknowledged messages will be delivered again";
                Refusal::new(Code::BadRequest, explanation)
            })?;
        let acknowledged = shared
            .call
            .lock()
            .connection
            .acknowledge(log, Sequence(sequence));
        acknowledged
            .map_err(|never_pushed| Refusal::new(Code::BadRequest, never_pushed.to_string()))?;
        shared.stream.wake();
        Ok(())
    }
}

impl<T: Delivered> DeliveryStream<T> {
    /// Returns the stream of a call with this answer to its `connect` or `attach`. After a
    /// takeover, acknowledgements count for `ack_timeout`.
    pub(super) fn new(
        call: Call,
        fields: &OkFields,
        receipts: &Arc<Receipts>,
        ack_timeout: Duration,
    ) -> Self {
        let receipt = format!("{:032x}", rand::random::<u128>());
        let shared = Arc::new(ReceiptState {
            call: Mutex::new(call),
            stream: AtomicWaker::new(),
        });
        receipts
            .open
            .lock()
            .insert(receipt.clone(), Arc::clone(&shared));
        let attached = fields.as_attached();
        let queued = attached.map_or_else(|| fields.as_queued(), |(waiting, _)| Some(waiting));
        Self {
            connected: Some(Connected {
                queued: queued.unwrap_or_default(),
                receipt: receipt.clone(),
                rooms: attached.map(|(_, rooms)| rooms as u64),
            }),
            receipt,
            receipts: Arc::clone(receipts),
            shared,
            ack_timeout,
            ended: false,
            event: PhantomData,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        self.shared.stream.register(cx.waker());
        let mut call = self.shared.call.lock();
        loop {
            if call.is_draining() {
                return call.poll_drained(cx).map(|()| None);
            }
            let pushed = match ready!(call.poll(cx)) {
                Ok(Output::Bye(reason)) => {
                    call.drain(if reason == ByeReason::TakenOver {
                        self.ack_timeout
                    } else {
                        Duration::ZERO
                    });
                    Some(Reply::Bye(reason))
                }
                Ok(output) => push(output),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            };
            let Some(pushed) = pushed else {
                return Poll::Ready(Some(Err(CallError::Ended.into())));
            };
            let event = reply::outgoing(None, pushed).and_then(|pushed| pushed.reply);
            if let Some(event) = event.and_then(T::event) {
                return Poll::Ready(Some(Ok(event)));
            }
        }
    }
}

impl<T: Delivered> Stream for DeliveryStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(connected) = self.connected.take() {
            return Poll::Ready(T::event(V1Reply::Connected(connected)).map(Ok));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.poll_event(cx).map(|event| {
            self.ended = !matches!(event, Some(Ok(_)));
            event
        })
    }
}

impl<T> Drop for DeliveryStream<T> {
    fn drop(&mut self) {
        self.receipts.open.lock().remove(&self.receipt);
    }
}
