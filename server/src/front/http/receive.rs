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
use hark_protocol::message::{Gap, RoomReply};
use hark_protocol::{RoomName, Sequence, UserName};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::forwarded::ForwardedRequest;
use super::receivers::{Receiver, Receivers, UserDevice};
use super::response::{ResponseBody, write_line};
use crate::chat::{Inbox, Output, UnreadLog, now_ms};
use crate::front::call::{Call, CallError};
use crate::store::{Message, Unavailable};

/// The interval of empty lines, so that both ends and every proxy between them see that
/// the connection lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);

/// The high-water mark of one piece of a response, in bytes; one message may exceed it.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// A message, as a line.
#[derive(Serialize)]
struct MessageLine<'a> {
    log: &'a str,
    number: u64,
    sender: &'a str,
    time: u64,
    text: &'a str,
}

/// Messages that were removed before they were delivered, as a line.
#[derive(Serialize)]
struct GapLine<'a> {
    gap: MissingMessages<'a>,
}

#[derive(Serialize)]
struct MissingMessages<'a> {
    log: &'a str,
    from: u64,
    to: u64,
    count: u64,
}

/// The end of a delivery, as a line.
#[derive(Serialize)]
struct ByeLine {
    bye: &'static str,
}

/// A line that only shows that the connection lives.
#[derive(Serialize)]
struct HeartbeatLine {}

/// Returns the name of a log in a line: of a room, or of the inbox.
fn log_name(log: Option<&RoomName>) -> &str {
    log.map_or("", RoomName::as_str)
}

fn write_message(log: Option<&RoomName>, message: &Message, to: &mut Vec<u8>) {
    let line = MessageLine {
        log: log_name(log),
        number: message.position.sequence.0,
        sender: message.sender.as_ref().map_or("", UserName::as_str),
        time: message.time_ms,
        text: &message.text,
    };
    write_line(&line, to);
}

fn write_gap(gap: &Gap, to: &mut Vec<u8>) {
    let gap = MissingMessages {
        log: log_name(gap.log.as_ref()),
        from: gap.from.0,
        to: gap.to.0,
        count: gap.count,
    };
    write_line(&GapLine { gap }, to);
}

/// The last push of each log in a piece.
#[derive(Debug, Default)]
struct LastPushes(Vec<(Option<RoomName>, Sequence)>);

impl LastPushes {
    fn note(&mut self, log: Option<&RoomName>, number: Sequence) {
        let mut logs = self.0.iter_mut();
        match logs.find(|(other, _)| other.as_ref() == log) {
            Some((_, last)) => *last = number,
            None => self.0.push((log.cloned(), number)),
        }
    }

    /// Acknowledges them. Returns false if another connection has taken over.
    fn acknowledge(&self, call: &mut Call) -> bool {
        self.0.iter().all(|(log, last)| {
            let acknowledged = call.connection.acknowledge(log.as_ref(), *last);
            acknowledged.is_ok()
        })
    }
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
    device: UserDevice,
    receivers: Arc<Receivers>,
    receiver: Arc<Receiver>,
    options: DeliveryOptions,
    /// Messages that are being acknowledged before they are written.
    unconfirmed: Option<Unconfirmed>,
    heartbeat_at: Instant,
    timer: Pin<Box<Sleep>>,
    ended: bool,
    /// Counts the response for the address of the client.
    _held: Option<Arc<ForwardedRequest>>,
}

/// Messages that are written once their acknowledgement is durable.
struct Unconfirmed {
    piece: Vec<u8>,
    confirmed: Pin<Box<dyn Future<Output = Result<(), Unavailable>> + Send>>,
}

/// Returns the body that delivers the messages of a device that `call` has attached.
pub(super) fn deliver(
    device: UserDevice,
    call: Call,
    receivers: Arc<Receivers>,
    options: DeliveryOptions,
    held: Option<Arc<ForwardedRequest>>,
) -> ResponseBody {
    let heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
    DeliveryBody {
        receiver: receivers.open(&device, call),
        device,
        receivers,
        options,
        unconfirmed: None,
        heartbeat_at,
        timer: Box::pin(tokio::time::sleep_until(heartbeat_at)),
        ended: options.count == Some(0),
        _held: held,
    }
    .boxed_unsync()
}

impl DeliveryBody {
    /// Collects the available messages. Returns an empty piece if there are none.
    fn collect(&mut self, cx: &mut Context<'_>) -> Vec<u8> {
        let mut piece = Vec::new();
        let (mut pushed, mut bye) = (LastPushes::default(), None);
        let receiver = Arc::clone(&self.receiver);
        let mut delivery = receiver.delivery.lock();
        while !self.ended && piece.len() < PIECE_BYTES_MAX {
            let Poll::Ready(output) = delivery.call.poll(cx) else {
                break;
            };
            match output {
                Ok(Output::Push(message)) => {
                    write_message(None, &message, &mut piece);
                    pushed.note(None, message.position.sequence);
                    self.count_message();
                }
                Ok(Output::Said(said)) => {
                    write_message(Some(&said.room), &said.message, &mut piece);
                    pushed.note(Some(&said.room), said.message.position.sequence);
                    self.count_message();
                }
                Ok(Output::Notice(RoomReply::Gap(gap))) => {
                    write_gap(&gap, &mut piece);
                    pushed.note(gap.log.as_ref(), gap.to);
                }
                // Scripts do not follow changes of memberships, devices and read marks.
                Ok(Output::Notice(_)) => {}
                Ok(Output::Bye(reason)) => {
                    bye = Some(reason);
                    self.ended = true;
                }
                Ok(Output::Close | Output::Reply(..)) | Err(_) => self.ended = true,
            }
        }
        let acknowledges = self.options.acknowledges;
        if acknowledges && !pushed.acknowledge(&mut delivery.call) {
            // Taken over after the push: the messages belong to the new receiver.
            piece.clear();
            self.ended = true;
        }
        if let Some(reason) = bye {
            let bye = reason.as_str();
            write_line(&ByeLine { bye }, &mut piece);
            self.receivers.close(&self.device, &self.receiver);
        }
        if pushed.0.is_empty() {
            return piece;
        }
        if !acknowledges {
            delivery.owing_since.get_or_insert_with(Instant::now);
            return piece;
        }
        let device = self.device.1.as_ref();
        let confirmed = Box::pin(delivery.call.connection.sync_acknowledgements(device));
        self.unconfirmed = Some(Unconfirmed { piece, confirmed });
        Vec::new()
    }

    fn count_message(&mut self) {
        if let Some(count) = &mut self.options.count {
            *count = count.saturating_sub(1);
            self.ended = *count == 0;
        }
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
            tracing::warn!(user = %self.device.0, %error, "acknowledgement failed: delivery ended");
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
            tracing::info!(user = %self.device.0, "slow consumer: does not acknowledge");
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
        self.receivers.close(&self.device, &self.receiver);
    }
}

/// Returns the body of the unacknowledged messages of a device, log by log. The first page
/// is read already, so that an inbox that cannot be read fails with a status.
///
/// # Errors
/// [`CallError::Unavailable`].
pub(super) async fn unread(
    inbox: Inbox,
    held: Option<Arc<ForwardedRequest>>,
) -> Result<ResponseBody, CallError> {
    let mut logs = inbox.unread_logs().await.map_err(CallError::from)?;
    // The next one is the last.
    logs.reverse();
    let mut unread = Unread {
        inbox,
        logs,
        until_ms: now_ms(),
        _held: held,
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
    /// The logs that are not read to their end, the next one last.
    logs: Vec<UnreadLog>,
    /// The time of the request: later messages may be missing, so that the reading ends.
    until_ms: u64,
    /// Counts the response for the address of the client.
    _held: Option<Arc<ForwardedRequest>>,
}

impl Unread {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, CallError> {
        let mut piece = Vec::new();
        while piece.is_empty()
            && let Some(log) = self.logs.last_mut()
        {
            let page = self.inbox.read(log).await.map_err(CallError::from)?;
            let mut ended = page.complete || page.messages.is_empty();
            if let Some(gap) = &page.gap {
                write_gap(gap, &mut piece);
            }
            for message in &page.messages {
                write_message(log.room(), message, &mut piece);
                ended |= message.time_ms > self.until_ms;
            }
            if ended {
                self.logs.pop();
            }
        }
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}
