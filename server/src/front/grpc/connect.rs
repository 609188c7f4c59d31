//! `Connect` and `Ack`: what one call receives, and how other calls acknowledge
//! it. The two are tied by a receipt, which the first reply of a `Connect` has:
//! an acknowledgement counts for what that very stream was sent.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use hark_grpc::v1::connect_reply::Event;
use hark_grpc::v1::{ConnectReply, Connected};
use hark_protocol::{ByeReason, Code, Refusal, Sequence};
use tonic::Status;

use super::call::{Call, ended};
use crate::chat::Output;
use crate::front::delivery;

/// Every open `Connect`, by its receipt. No more than there are calls.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    // A lock, since a receipt ends where its stream is dropped. It is held for
    // one operation on the map.
    open: Mutex<HashMap<String, Arc<Shared>>>,
}

/// What a `Connect` and its `Ack`s share.
#[derive(Debug)]
struct Shared {
    // A lock, since acknowledgements come by other calls. It is held for one
    // output or one acknowledgement.
    call: Mutex<Call>,
    /// The stream, to be woken where an acknowledgement has made room.
    stream: AtomicWaker,
}

/// The stream of a `Connect`. Dropping it ends the reception.
#[derive(Debug)]
pub(super) struct InboxReader {
    receipt: String,
    receipts: Arc<Receipts>,
    shared: Arc<Shared>,
    /// What comes first.
    connected: Option<Connected>,
    ack_timeout: Duration,
    ended: bool,
}

impl Receipts {
    /// Every message of the `Connect` with this receipt has been taken, up to
    /// `sequence`.
    ///
    /// # Errors
    /// [`Code::BadRequest`] where there is no such stream, or it was sent no
    /// such message.
    pub(super) fn acknowledge(&self, receipt: &str, sequence: u64) -> Result<(), Refusal> {
        let shared = self.lock().get(receipt).map(Arc::clone).ok_or_else(|| {
            Refusal::new(Code::BadRequest, "no stream has this receipt; what it was sent comes again")
        })?;
        let taken = shared.lock().connection.acknowledge(Sequence(sequence));
        taken.map_err(|never| Refusal::new(Code::BadRequest, never.to_string()))?;
        shared.stream.wake();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Shared>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Call> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InboxReader {
    /// What the peer of this call receives, of which `queued` messages are
    /// there already. After a takeover acknowledgements are taken for as long
    /// as `ack_timeout`.
    pub(super) fn new(call: Call, queued: u64, receipts: &Arc<Receipts>, ack_timeout: Duration) -> Self {
        let receipt = format!("{:032x}", rand::random::<u128>());
        let shared = Arc::new(Shared { call: Mutex::new(call), stream: AtomicWaker::new() });
        receipts.lock().insert(receipt.clone(), Arc::clone(&shared));
        Self {
            connected: Some(Connected { queued, receipt: receipt.clone() }),
            receipt,
            receipts: Arc::clone(receipts),
            shared,
            ack_timeout,
            ended: false,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Status>>> {
        self.shared.stream.register(cx.waker());
        let mut call = self.shared.lock();
        if call.is_draining() {
            return call.poll_drained(cx).map(|()| None);
        }
        call.poll(cx).map(|output| match output {
            Ok(Output::Push(message)) => Some(Ok(Event::Message(delivery(&message).into()))),
            Ok(Output::Bye(reason)) => {
                call.linger(if reason == ByeReason::TakenOver { self.ack_timeout } else { Duration::ZERO });
                Some(Ok(Event::Bye(reason.into())))
            }
            Ok(Output::Close | Output::Reply(..)) => Some(Err(ended())),
            Err(status) => Some(Err(status)),
        })
    }
}

impl Stream for InboxReader {
    type Item = Result<ConnectReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(connected) = self.connected.take() {
            return Poll::Ready(Some(Ok(ConnectReply { event: Some(Event::Connected(connected)) })));
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

impl Drop for InboxReader {
    fn drop(&mut self) {
        self.receipts.lock().remove(&self.receipt);
    }
}
