//! `Connect` and `Ack`: a stream of messages, acknowledged by other calls. A receipt in the
//! first reply of a `Connect` links them: an acknowledgement counts for the messages of
//! that stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use hark_grpc::v1::connect_reply::Event;
use hark_grpc::v1::{ConnectReply, Connected};
use hark_protocol::{ByeReason, Code, Refusal, Sequence};
use tonic::Status;

use crate::chat::Output;
use crate::front::call::{Call, CallError};
use crate::front::delivery;
use crate::sync::Mutex;

/// The open `Connect` calls, by receipt.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    // Locked because a receipt is removed where its stream is dropped. Held for one
    // operation on the map.
    open: Mutex<HashMap<String, Arc<ReceiptState>>>,
}

/// The state shared by a `Connect` and its `Ack`s.
#[derive(Debug)]
struct ReceiptState {
    // Locked because acknowledgements come from other calls. Held for one output or one
    // acknowledgement.
    call: Mutex<Call>,
    /// Wakes the stream when an acknowledgement makes room.
    stream: AtomicWaker,
}

/// The response stream of a `Connect`. Dropping it ends the delivery.
#[derive(Debug)]
pub(super) struct DeliveryStream {
    receipt: String,
    receipts: Arc<Receipts>,
    shared: Arc<ReceiptState>,
    /// The first item, until it is sent.
    connected: Option<Connected>,
    ack_timeout: Duration,
    ended: bool,
}

impl Receipts {
    /// Acknowledges the messages of the `Connect` with this receipt, up to `sequence`.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if there is no such stream, or the message was not sent on it.
    pub(super) fn acknowledge(&self, receipt: &str, sequence: u64) -> Result<(), Refusal> {
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
            .acknowledge(Sequence(sequence));
        acknowledged
            .map_err(|never_pushed| Refusal::new(Code::BadRequest, never_pushed.to_string()))?;
        shared.stream.wake();
        Ok(())
    }
}

impl DeliveryStream {
    /// Returns the stream of a call with `queued` messages waiting. After a takeover,
    /// acknowledgements count for `ack_timeout`.
    pub(super) fn new(
        call: Call,
        queued: u64,
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
        Self {
            connected: Some(Connected {
                queued,
                receipt: receipt.clone(),
            }),
            receipt,
            receipts: Arc::clone(receipts),
            shared,
            ack_timeout,
            ended: false,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Status>>> {
        self.shared.stream.register(cx.waker());
        let mut call = self.shared.call.lock();
        if call.is_draining() {
            return call.poll_drained(cx).map(|()| None);
        }
        call.poll(cx).map(|output| match output {
            Ok(Output::Push(message)) => Some(Ok(Event::Message(delivery(&message).into()))),
            Ok(Output::Bye(reason)) => {
                call.drain(if reason == ByeReason::TakenOver {
                    self.ack_timeout
                } else {
                    Duration::ZERO
                });
                Some(Ok(Event::Bye(reason.into())))
            }
            Ok(Output::Close | Output::Reply(..)) => Some(Err(CallError::Ended.into())),
            Err(error) => Some(Err(error.into())),
        })
    }
}

impl Stream for DeliveryStream {
    type Item = Result<ConnectReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(connected) = self.connected.take() {
            return Poll::Ready(Some(Ok(ConnectReply {
                event: Some(Event::Connected(connected)),
            })));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.poll_event(cx).map(|event| {
            self.ended = !matches!(event, Some(Ok(_)));
            event.map(|event| event.map(|event| ConnectReply { event: Some(event) }))
        })
    }
}

impl Drop for DeliveryStream {
    fn drop(&mut self) {
        self.receipts.open.lock().remove(&self.receipt);
    }
}
