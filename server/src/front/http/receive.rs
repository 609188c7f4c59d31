//! The responses that carry messages, as lines of JSON: the delivery of
//! `POST /v1/receive`, and the unacknowledged messages of `GET /v1/receive`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use hark_protocol::{ByeReason, Sequence, UserName};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::receivers::{Receiver, Receivers};
use super::response::{ResponseBody, write_line};
use crate::chat::{Inbox, Output, now_ms};
use crate::front::call::{Call, CallError};
use crate::store::{Message, Position, Unavailable};

/// The interval of empty lines, so that both ends and every proxy between them see that
/// the connection lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);

/// The high-water mark of one piece of a response, in bytes; one message may exceed it.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// A message, as a line.
#[derive(Serialize)]
struct MessageLine<'a> {
    log: &'static str,
    number: u64,
    sender: &'a str,
    time: u64,
    text: &'a str,
}

/// The end of a delivery, as a line.
#[derive(Serialize)]
struct ByeLine {
    bye: &'static str,
}

/// A line that only shows that the connection lives.
#[derive(Serialize)]
struct HeartbeatLine {}

fn write_message(message: &Message, to: &mut Vec<u8>) {
    let line = MessageLine {
        log: "",
        number: message.position.sequence.0,
        sender: message.sender.as_ref().map_or("", UserName::as_str),
        time: message.time_ms,
        text: &message.text,
    };
    write_line(&line, to);
}

/// The options of a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeliveryOptions {
    /// Whether messages are durably acknowledged before they are written.
    pub(super) acknowledges: bool,
    /// The number of messages after which the response ends.
    pub(super) count: Option<u64>,
    /// How long the client may owe acknowledgements.
    pub(super) ack_timeout: Duration,
}

/// The body of a delivery. Dropping it ends the delivery.
struct DeliveryBody {
    user: UserName,
    receivers: Arc<Receivers>,
    receiver: Arc<Receiver>,
    options: DeliveryOptions,
    /// Messages that are being acknowledged before they are written.
    unconfirmed: Option<Unconfirmed>,
    heartbeat_at: Instant,
    timer: Pin<Box<Sleep>>,
    ended: bool,
}

/// Messages that are written once their acknowledgement is durable.
struct Unconfirmed {
    piece: Vec<u8>,
    confirmed: Pin<Box<dyn Future<Output = Result<(), Unavailable>> + Send>>,
}

/// Returns the body that delivers the messages of a user to whom `call` has connected.
pub(super) fn deliver(
    user: UserName,
    call: Call,
    receivers: &Arc<Receivers>,
    options: DeliveryOptions,
) -> ResponseBody {
    let heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
    DeliveryBody {
        receiver: receivers.open(&user, call),
        user,
        receivers: Arc::clone(receivers),
        options,
        unconfirmed: None,
        heartbeat_at,
        timer: Box::pin(tokio::time::sleep_until(heartbeat_at)),
        ended: options.count == Some(0),
    }
    .boxed_unsync()
}

impl DeliveryBody {
    /// Collects the available messages. Returns an empty piece if there are none.
    fn collect(&mut self, cx: &mut Context<'_>) -> Vec<u8> {
        let mut piece = Vec::new();
        let mut last = None;
        let receiver = Arc::clone(&self.receiver);
        let mut delivery = receiver.delivery.lock();
        while !self.ended && piece.len() < PIECE_BYTES_MAX {
            let Poll::Ready(output) = delivery.call.poll(cx) else {
                break;
            };
            match output {
                Ok(Output::Push(message)) => {
                    write_message(&message, &mut piece);
                    last = Some(message.position.sequence);
                    self.count_message();
                }
                // `connect` delivers the inbox alone.
                Ok(Output::Said(_) | Output::Notice(_)) => {}
                Ok(Output::Bye(reason)) => self.end(reason, &mut piece),
                Ok(Output::Close | Output::Reply(..)) | Err(_) => self.ended = true,
            }
        }
        match last {
            Some(last) if self.options.acknowledges => {
                self.acknowledge(last, &mut delivery.call, &mut piece);
            }
            Some(_) => drop(delivery.owing_since.get_or_insert_with(Instant::now)),
            None => {}
        }
        piece
    }

    fn count_message(&mut self) {
        if let Some(count) = &mut self.options.count {
            *count = count.saturating_sub(1);
            self.ended = *count == 0;
        }
    }

    fn end(&mut self, reason: ByeReason, piece: &mut Vec<u8>) {
        let bye = reason.as_str();
        write_line(&ByeLine { bye }, piece);
        self.ended = true;
        self.receivers.close(&self.user, &self.receiver);
    }

    /// Acknowledges the messages of a piece, and keeps it until that is durable.
    fn acknowledge(&mut self, last: Sequence, call: &mut Call, piece: &mut Vec<u8>) {
        if let Err(error) = call.connection.acknowledge(None, last) {
            // Only a bug gets here: the message was pushed on this connection.
            tracing::error!(user = %self.user, %error, "delivery ended");
            self.ended = true;
            return piece.clear();
        }
        self.unconfirmed = Some(Unconfirmed {
            piece: std::mem::take(piece),
            confirmed: Box::pin(call.connection.sync_acknowledgements()),
        });
    }

    /// Ready with the messages whose acknowledgement is durable, if there are any.
    fn poll_confirmed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let Some(unconfirmed) = &mut self.unconfirmed else {
            return Poll::Ready(None);
        };
        let confirmed = ready!(unconfirmed.confirmed.as_mut().poll(cx));
        let piece = self.unconfirmed.take().map(|unconfirmed| unconfirmed.piece);
        if let Err(error) = confirmed {
            // They may be delivered again, but never twice.
            tracing::warn!(user = %self.user, %error, "acknowledgement failed: delivery ended");
            self.ended = true;
            return Poll::Ready(None);
        }
        Poll::Ready(piece)
    }

    /// Ready with a heartbeat, or at the end of the client's time to acknowledge.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let owing_since = self.receiver.delivery.lock().owing_since;
        let ack_due = owing_since.map(|since| since + self.options.ack_timeout);
        let due = ack_due.map_or(self.heartbeat_at, |due| due.min(self.heartbeat_at));
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        ready!(self.timer.as_mut().poll(cx));
        if ack_due == Some(due) {
            tracing::info!(user = %self.user, "slow consumer: does not acknowledge");
            self.ended = true;
            return Poll::Ready(None);
        }
        let mut piece = Vec::new();
        write_line(&HeartbeatLine {}, &mut piece);
        Poll::Ready(Some(piece))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        loop {
            if let Some(piece) = ready!(self.poll_confirmed(cx)) {
                return Poll::Ready(Some(piece));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            self.receiver.waker.register(cx.waker());
            let piece = self.collect(cx);
            if !piece.is_empty() {
                return Poll::Ready(Some(piece));
            }
            if self.unconfirmed.is_none() && !self.ended {
                return self.poll_timer(cx);
            }
        }
    }
}

impl Body for DeliveryBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = ready!(self.poll_piece(cx));
        self.heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece.into()))))
    }
}

impl Drop for DeliveryBody {
    fn drop(&mut self) {
        self.receivers.close(&self.user, &self.receiver);
    }
}

/// Returns the body of the unacknowledged messages of an inbox. The first page is read
/// already, so that an inbox that cannot be read fails with a status.
///
/// # Errors
/// [`CallError::Unavailable`].
pub(super) async fn unread(inbox: Inbox) -> Result<ResponseBody, CallError> {
    let mut unread = Unread {
        inbox,
        after: Position::default(),
        until_ms: now_ms(),
        ended: false,
    };
    let first = unread.next_piece().await?;
    let pieces = stream::try_unfold((Some(first), unread), |(first, mut unread)| async move {
        let piece = match first {
            Some(first) => first,
            // The client sees an incomplete response.
            None => unread.next_piece().await.map_err(io::Error::other)?,
        };
        Ok(piece.map(|piece| (Frame::data(piece), (None, unread))))
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}

/// A reading of the unacknowledged messages.
struct Unread {
    inbox: Inbox,
    after: Position,
    /// The time of the request: later messages may be missing, so that the reading ends.
    until_ms: u64,
    ended: bool,
}

impl Unread {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, CallError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.inbox.read(self.after).await.map_err(CallError::from)?;
        let mut piece = Vec::new();
        for message in &page.messages {
            write_message(message, &mut piece);
            self.after = message.position;
            self.ended |= message.time_ms > self.until_ms;
        }
        self.ended |= page.complete || page.messages.is_empty();
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}
