//! The wire front: one connection in the native, the classic or the WebSocket framing, in
//! one task. It
//! owns the byte stream and the buffers, and knows no rules.
//!
//! It handles all available input before it writes, so that a burst of requests costs
//! one read and one write. An empty buffer holds no memory.

mod deadlines;
mod framing;
#[cfg(test)]
mod tests;
mod websocket;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use hark_protocol::framing::classic::FIELDS_WAIT_MS;
use hark_protocol::{
    Failure, Frame, Incoming, ProtocolError, Reply, Request, RequestId, RoomReply,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use self::deadlines::{Deadline, DeadlineTable, Moment, Timer};
use self::websocket::Violation;
use super::drain::DRAIN_TIMEOUT;
use super::http::ForwardedRequest;
use crate::chat::{ClientConnection, Output};
use crate::metrics::ConnectionGuard;
use crate::store::{Message, Said};

pub use self::framing::Framing;

/// The high-water mark of the output buffer, in bytes; one message may exceed it. Messages
/// beyond it stay in the store.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The initial capacity of the output buffer, in bytes.
const OUTPUT_BYTES_FIRST: usize = 2048;

/// The longest wait for the fields of a command (classic).
const FIELDS_WAIT: Duration = Duration::from_millis(FIELDS_WAIT_MS);

/// The maximum number of bytes in one read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The lowest rate of a frame that takes longer than `ack_timeout`, in bytes per second.
const FRAME_BYTES_PER_SECOND_MIN: u64 = 1024;

/// The maximum number of iterations before other tasks run.
const ITERATIONS_MAX: usize = 32;

/// A connection of the wire front.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    framing: Framing,
    connection: ClientConnection,
    ack_timeout: Duration,
    input: BytesMut,
    output: BytesMut,
    /// Whether the stream buffers bytes that it has not flushed.
    has_unflushed: bool,
    /// The time of this poll.
    now: Instant,
    /// The time of the latest byte from the peer.
    last_received_at: Moment,
    /// The time of the latest progress of the output.
    last_written_at: Moment,
    /// The time since which the peer owes acknowledgements.
    owing_since: Option<Moment>,
    /// The start of an incomplete frame.
    frame_since: Option<Moment>,
    /// The start of a command whose fields are missing (classic).
    fields_since: Option<Moment>,
    /// Whether the pushes in the output are acknowledged once it is written (classic).
    owes_ack: bool,
    /// The violation to report before the connection closes.
    broken: Option<Box<Violation>>,
    stage: WireStage,
    timer: Timer,
    _counted: Option<ConnectionGuard>,
    _client: Option<Arc<ForwardedRequest>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WireStage {
    Open,
    /// The chat has ended the connection; the rest of the output is written.
    Closing,
    /// The output is written and the sending side closed. Acknowledgements in flight
    /// still count.
    Draining {
        until: Instant,
    },
}

thread_local! {
    /// The buffer of a read, shared by the connections of a thread, so that an idle
    /// connection needs none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Returns a connection over `stream`, whose first byte is unread.
    #[must_use]
    pub fn new(
        stream: S,
        framing: Framing,
        connection: ClientConnection,
        ack_timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            framing,
            connection,
            ack_timeout,
            input: BytesMut::new(),
            output: BytesMut::new(),
            has_unflushed: false,
            now,
            last_received_at: now.into(),
            last_written_at: now.into(),
            owing_since: None,
            frame_since: None,
            fields_since: None,
            owes_ack: false,
            broken: None,
            stage: WireStage::Open,
            timer: Timer::default(),
            _counted: None,
            _client: None,
        }
    }

    /// Counts the connection until its end.
    pub(super) fn counted(self, guard: ConnectionGuard) -> Self {
        Self {
            _counted: Some(guard),
            ..self
        }
    }

    /// Counts the connection for the address of a client behind a proxy.
    pub(super) fn of_client(self, client: Option<Arc<ForwardedRequest>>) -> Self {
        Self {
            _client: client,
            ..self
        }
    }

    /// Handles bytes that were read before.
    pub(super) fn with_input(self, input: BytesMut) -> Self {
        Self { input, ..self }
    }

    /// Serves the connection to its end. Not an `async fn`, whose future would hold `self`
    /// twice: as an argument and as a local.
    ///
    /// # Errors
    /// An error of the socket.
    pub fn run(mut self) -> impl Future<Output = io::Result<()>> {
        poll_fn(move |cx| self.poll(cx))
    }

    /// Serves the connection. Ready at its end.
    ///
    /// # Errors
    /// An error of the socket.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for iteration in 1..=ITERATIONS_MAX {
            self.now = Instant::now();
            if self.connection.poll_abort(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            // `|` instead of `||`: both run each time.
            while self.poll_connection(cx) | self.decode() {}
            let has_read = self.poll_read(cx)? && !self.has_drained();
            // Constant input delays writes and deadlines no longer than that.
            if has_read && iteration < ITERATIONS_MAX {
                continue;
            }
            let progressed = has_read | self.poll_write(cx)?;
            let deadlines = self.deadlines();
            if deadlines
                .due(self.now)
                .is_some_and(|missed| self.ends_at(missed))
            {
                return Poll::Ready(Ok(()));
            }
            if !progressed && !self.timer.is_due(cx, deadlines.next(), self.now) {
                self.release_buffers();
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Encodes the output of the chat. Returns whether there was any.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while self.takes_output() {
            let Poll::Ready(output) = self.connection.poll(cx, self.now) else {
                break;
            };
            any = true;
            match output {
                Output::Reply(id, reply) => self.encode(id, &reply),
                Output::Push(message) => self.push(&message),
                Output::Said(said) => self.push_said(&said),
                Output::Notice(notice) => self.notify(notice),
                Output::Bye(reason) => self.encode(None, &Reply::Bye(reason)),
                Output::Close => {
                    self.stage = WireStage::Closing;
                    if let Some(error) = self.broken.take() {
                        let explanation = error.to_string().into();
                        self.encode(
                            None,
                            &Reply::Error {
                                failure: Failure::Protocol,
                                explanation,
                            },
                        );
                    }
                    self.begin_output();
                    self.framing.encode_end(&mut self.output);
                }
            }
        }
        any
    }

    /// Returns whether the output buffer takes more output. In the classic framing each
    /// message is written before the next, because the write acknowledges it.
    fn takes_output(&self) -> bool {
        let has_room = if self.framing.is_classic() {
            self.is_written()
        } else {
            self.output.len() < OUTPUT_BYTES_MAX
        };
        self.stage == WireStage::Open && has_room
    }

    /// Returns whether all output has reached the socket.
    fn is_written(&self) -> bool {
        self.output.is_empty() && !self.has_unflushed
    }

    fn push(&mut self, message: &Message) {
        self.owing_since.get_or_insert_with(|| self.now.into());
        self.owes_ack = self.framing.is_classic();
        self.begin_output();
        let encoded = self.framing.encode_push(message, &mut self.output);
        self.check(encoded);
    }

    fn push_said(&mut self, said: &Said) {
        self.owing_since.get_or_insert_with(|| self.now.into());
        self.begin_output();
        let encoded = self.framing.encode_said(said, &mut self.output);
        self.check(encoded);
    }

    /// Encodes another push of rooms and devices. A gap is acknowledged as a message is.
    fn notify(&mut self, notice: RoomReply) {
        if matches!(notice, RoomReply::Gap(_)) {
            self.owing_since.get_or_insert_with(|| self.now.into());
        }
        self.encode(None, &Reply::Room(notice));
    }

    fn encode(&mut self, id: Option<RequestId>, reply: &Reply) {
        self.begin_output();
        let encoded = self.framing.encode(id, reply, &mut self.output);
        self.check(encoded);
    }

    fn begin_output(&mut self) {
        if self.is_written() {
            self.last_written_at = self.now.into();
            self.output.reserve(OUTPUT_BYTES_FIRST);
        }
    }

    fn check(&mut self, encoded: Result<(), ProtocolError>) {
        // An accepted text fits in a push, and every other reply is short: only a bug gets
        // here.
        if let Err(error) = encoded {
            tracing::error!(connection = ?self.connection, %error, "reply exceeds the largest frame");
            self.connection.end();
        }
    }

    /// Decodes and handles requests from the input. Returns whether there were any.
    fn decode(&mut self) -> bool {
        let mut any = false;
        while self.can_decode() {
            match self.decode_one() {
                Ok(Some(Frame { id, message })) => {
                    any = true;
                    self.frame_since = None;
                    let is_ack = matches!(message, Ok(Request::Ack { .. }));
                    if is_ack || self.stage == WireStage::Open {
                        self.connection.handle(id, message);
                    }
                }
                Ok(None) if self.framing.is_closed() => return self.handle_eof(),
                Ok(None) => {
                    self.frame_since.get_or_insert_with(|| self.now.into());
                    break;
                }
                Err(error) => {
                    self.input = BytesMut::new();
                    // Reported once. Later input while it drains is equally malformed.
                    if self.stage == WireStage::Open {
                        tracing::info!(connection = ?self.connection, %error, "malformed frame");
                        self.broken = Some(error.into());
                        self.connection.end();
                    }
                    return true;
                }
            }
        }
        let is_partial = self.wants_input() && self.framing.partial_bytes().is_some();
        if !self.can_decode() && !is_partial {
            // The peer cannot make progress now; its deadlines restart when it can.
            self.frame_since = None;
            self.fields_since = None;
        }
        any
    }

    fn can_decode(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX && self.wants_input() && !self.input.is_empty()
    }

    fn decode_one(&mut self) -> Result<Option<Incoming<Request>>, Violation> {
        if self
            .fields_since
            .is_some_and(|since| self.now >= since.instant() + FIELDS_WAIT)
        {
            self.framing.give_up_on_fields();
        }
        let request = self.framing.decode(&mut self.input, &mut self.output)?;
        let awaits_fields = self.framing.awaits_fields(&self.input);
        self.fields_since = awaits_fields.then(|| self.fields_since.unwrap_or(self.now.into()));
        Ok(request)
    }

    /// Returns whether the next request can be handled: in the classic framing one at a
    /// time, after the reply to the previous one is written.
    fn wants_input(&self) -> bool {
        let may_pipeline =
            !self.framing.is_classic() || (self.connection.is_idle() && self.is_written());
        match self.stage {
            WireStage::Open => self.connection.is_ready() && may_pipeline,
            WireStage::Closing => false,
            WireStage::Draining { .. } => true,
        }
    }

    /// Reads once if a request can be handled. Returns whether there was input or its end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if !self.wants_input() || self.output.len() >= OUTPUT_BYTES_MAX {
            return Ok(false);
        }
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
            self.input.extend_from_slice(buffer.filled());
            // The input may hold a password.
            buffer.filled_mut().fill(0);
            read.map_ok(|()| buffer.filled().len())
        });
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Ok(self.handle_eof()),
            Poll::Ready(Ok(count)) => {
                self.connection.count_bytes(count, self.now);
                self.last_received_at = self.now.into();
                self.framing.handle_received();
                Ok(true)
            }
            // Over TLS: the peer closed without `close_notify`. The framing detects a
            // truncated message by itself.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(self.handle_eof())
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    /// Handles the end of the input. Requests in flight are still answered.
    fn handle_eof(&mut self) -> bool {
        self.input = BytesMut::new();
        if let WireStage::Draining { until } = &mut self.stage {
            *until = self.now;
            return false;
        }
        self.connection.end();
        true
    }

    /// Writes and flushes the output. Returns whether all of it was written, so that more
    /// can follow.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.is_written() {
            return self.finish_closing(cx);
        }
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output)? {
                Poll::Pending => return Ok(false),
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => {
                    self.last_written_at = self.now.into();
                    self.output.advance(count);
                    self.has_unflushed = true;
                }
            }
        }
        if Pin::new(&mut self.stream).poll_flush(cx)?.is_pending() {
            return Ok(false);
        }
        self.has_unflushed = false;
        if std::mem::take(&mut self.owes_ack) {
            self.connection.acknowledge_all();
        }
        Ok(true)
    }

    /// Closes the sending side once all output is written.
    fn finish_closing(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.stage != WireStage::Closing {
            return Ok(false);
        }
        if Pin::new(&mut self.stream).poll_shutdown(cx)?.is_pending() {
            // Over TLS, `close_notify` is pending.
            self.has_unflushed = true;
            self.last_written_at = self.now.into();
            return Ok(false);
        }
        self.stage = WireStage::Draining {
            until: self.now + DRAIN_TIMEOUT,
        };
        Ok(true)
    }

    fn has_drained(&self) -> bool {
        matches!(self.stage, WireStage::Draining { until } if self.now >= until)
    }

    /// Returns the deadlines in the current state.
    fn deadlines(&mut self) -> DeadlineTable {
        let mut deadlines = DeadlineTable::default();
        if let WireStage::Draining { until } = self.stage {
            deadlines.set(Deadline::Drain, Some(until));
            return deadlines;
        }
        if !self.connection.awaits_ack() {
            self.owing_since = None;
        }
        deadlines.set(Deadline::Progress, self.progress_due());
        deadlines.set(Deadline::Frame, self.frame_due());
        deadlines.set(
            Deadline::Fields,
            self.fields_since.map(|since| since.instant() + FIELDS_WAIT),
        );
        if let Some(pinged_at) = self.framing.pinged_at().filter(|_| self.wants_input()) {
            let timeout = self.ack_timeout / 2;
            let since = pinged_at.unwrap_or(self.last_received_at);
            let deadline = pinged_at.map_or(Deadline::Ping, |_| Deadline::Pong);
            deadlines.set(deadline, Some(since.instant() + timeout));
        }
        // A full output buffer waits for the peer, not for the chat.
        deadlines.set(
            Deadline::Chat,
            self.connection.wake_at().filter(|_| self.takes_output()),
        );
        deadlines
    }

    /// Returns the time by which the peer must send a byte or read one.
    fn progress_due(&self) -> Option<Instant> {
        // Acknowledgements that the server does not read are not owed.
        let is_owed = !self.framing.is_classic() && self.wants_input();
        let owing_since = self.owing_since.filter(|_| is_owed);
        let unread_since = (!self.is_written()).then_some(self.last_written_at);
        let since = [owing_since, unread_since].into_iter().flatten().max()?;
        Some(since.max(self.last_received_at).instant() + self.ack_timeout)
    }

    /// Returns the time by which an incomplete frame must be complete.
    fn frame_due(&self) -> Option<Instant> {
        let bytes = self.input.len() + self.framing.partial_bytes().unwrap_or_default();
        let for_its_bytes = Duration::from_secs(bytes as u64 / FRAME_BYTES_PER_SECOND_MIN);
        Some(self.frame_since?.instant() + self.ack_timeout + for_its_bytes)
    }

    /// Returns whether the connection ends at this deadline.
    fn ends_at(&mut self, missed: Deadline) -> bool {
        match missed {
            Deadline::Progress => {
                tracing::info!(connection = ?self.connection, "slow consumer: neither reads nor acknowledges");
                true
            }
            Deadline::Frame => {
                tracing::info!(connection = ?self.connection, "frame incomplete at its deadline");
                true
            }
            Deadline::Pong => {
                tracing::info!(connection = ?self.connection, "ping unanswered at its deadline");
                true
            }
            Deadline::Ping => {
                self.begin_output();
                self.framing.encode_ping(self.now.into(), &mut self.output);
                false
            }
            Deadline::Drain => true,
            Deadline::Fields | Deadline::Chat => false,
        }
    }

    fn release_buffers(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
    }
}
