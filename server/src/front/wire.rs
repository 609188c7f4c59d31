//! The wire front: one connection in the native or the classic framing, as one task. It
//! owns the byte stream and the buffers, and knows no rules.
//!
//! It handles all available input before it writes, so that a burst of requests costs
//! one read and one write. An empty buffer holds no memory.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use hark_protocol::framing::classic::{self, ClassicServerCodec, FIELDS_WAIT_MS};
use hark_protocol::framing::native::{self, ServerCodec};
use hark_protocol::{
    Code, Failure, Frame, Incoming, Malformed, ProtocolError, Push, Refusal, Reply, Request, RequestId,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::codec::Decoder;

use super::delivery;
use super::drain::DRAIN_TIMEOUT;
use crate::chat::{ClientConnection, Output};
use crate::store::Message;

/// The high-water mark of the output buffer, in bytes; one message may exceed it. Messages
/// beyond it stay in the store.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The initial capacity of the output buffer, in bytes.
const OUTPUT_BYTES_FIRST: usize = 2048;

/// The longest wait for the fields of a command (classic).
const FIELDS_WAIT: Duration = Duration::from_millis(FIELDS_WAIT_MS);

/// The most bytes of one read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The lowest rate of a frame that takes longer than `ack_timeout`, in bytes per second.
const FRAME_BYTES_PER_SECOND_MIN: u64 = 1024;

/// The most iterations before other tasks run.
const ITERATIONS_MAX: usize = 32;

/// The framing of a connection.
#[derive(Debug)]
pub enum Framing {
    /// Length, id, message.
    Native(ServerCodec),
    /// The text format of the legacy clients.
    Classic(ClassicServerCodec),
}

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
    /// Whether the latest reply was a part of a list (classic).
    in_list: bool,
    /// Whether the pushes in the output are acknowledged once it is written (classic).
    owes_ack: bool,
    /// The protocol error to report before the connection closes.
    broken: Option<Box<ProtocolError>>,
    stage: WireStage,
    timer: Option<Pin<Box<Sleep>>>,
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

/// A time in eight bytes, for the many connections that are idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(NonZeroU64);

/// The time from which a [`Moment`] counts nanoseconds: an hour before its first
/// use, so that a clock that a test stops is not behind it.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = std::time::Instant::now();
    now.checked_sub(Duration::from_secs(3600)).unwrap_or(now).into()
});

impl Moment {
    fn instant(self) -> Instant {
        *EPOCH + Duration::from_nanos(self.0.get())
    }
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        let since = instant.saturating_duration_since(*EPOCH).as_nanos();
        Self(u64::try_from(since).ok().and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN))
    }
}

thread_local! {
    /// The buffer of a read, shared by the connections of a thread, so that an idle
    /// connection needs none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Returns a connection over `stream`, whose first byte is unread.
    #[must_use]
    pub fn new(stream: S, framing: Framing, connection: ClientConnection, ack_timeout: Duration) -> Self {
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
            in_list: false,
            owes_ack: false,
            broken: None,
            stage: WireStage::Open,
            timer: None,
        }
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
        for _ in 0..ITERATIONS_MAX {
            self.now = Instant::now();
            if self.connection.poll_abort(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            while self.poll_connection(cx) | self.decode() {}
            if self.poll_read(cx)? && !self.has_drained() {
                continue;
            }
            let progressed = self.poll_write(cx)?;
            if self.is_over() {
                return Poll::Ready(Ok(()));
            }
            if !progressed && !self.poll_timer(cx) {
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
            let Poll::Ready(output) = self.connection.poll(cx, self.now) else { break };
            any = true;
            match output {
                Output::Reply(id, reply) => self.encode(id, &reply),
                Output::Push(message) => self.push(&message),
                Output::Bye(reason) => self.encode(None, &Reply::Bye(reason)),
                Output::Close => {
                    self.stage = WireStage::Closing;
                    if let Some(error) = self.broken.take() {
                        let explanation = error.to_string().into();
                        self.encode(None, &Reply::Error { failure: Failure::Protocol, explanation });
                    }
                }
            }
        }
        any
    }

    /// Returns whether the output buffer takes more. In the classic framing each message is
    /// written before the next, since the write acknowledges it.
    fn takes_output(&self) -> bool {
        let has_room = match self.framing {
            Framing::Native(_) => self.output.len() < OUTPUT_BYTES_MAX,
            Framing::Classic(_) => self.is_written(),
        };
        self.stage == WireStage::Open && has_room
    }

    /// Returns whether all output has reached the socket.
    fn is_written(&self) -> bool {
        self.output.is_empty() && !self.has_unflushed
    }

    fn push(&mut self, message: &Message) {
        self.owing_since.get_or_insert_with(|| self.now.into());
        match &self.framing {
            Framing::Classic(_) => {
                self.owes_ack = true;
                self.encode(None, &Reply::String(delivery(message)));
            }
            Framing::Native(_) => {
                self.begin_output();
                let Message { position, sender, time_ms, text } = message;
                let (sequence, sender) = (position.sequence, sender.as_ref());
                let push = Push { sequence, sender, time_ms: *time_ms, text };
                let encoded = native::encode_push(&push, &mut self.output);
                self.check(encoded);
            }
        }
    }

    fn encode(&mut self, id: Option<RequestId>, reply: &Reply) {
        self.begin_output();
        match &self.framing {
            // Legacy clients expect no `ok` after a list.
            Framing::Classic(_) if matches!(reply, Reply::Ok(_)) && self.in_list => self.in_list = false,
            Framing::Classic(_) => {
                self.in_list = matches!(reply, Reply::List(_));
                classic::encode(reply, &mut self.output);
            }
            // The `ok` with the count 0 suffices.
            Framing::Native(_) if matches!(reply, Reply::List(names) if names.is_empty()) => {}
            Framing::Native(_) => {
                let encoded = native::encode(id, reply, &mut self.output);
                self.check(encoded);
            }
        }
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
        if !self.can_decode() {
            // The peer cannot make progress now; its deadlines restart when it can.
            self.frame_since = None;
            self.fields_since = None;
        }
        any
    }

    fn can_decode(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX && self.wants_input() && !self.input.is_empty()
    }

    fn decode_one(&mut self) -> Result<Option<Incoming<Request>>, ProtocolError> {
        match &mut self.framing {
            Framing::Native(codec) => {
                let Some(frame) = codec.decode(&mut self.input)? else { return Ok(None) };
                Ok(Some(Frame::new(frame.id, frame.message.and_then(|request| with_id(frame.id, request)))))
            }
            Framing::Classic(codec) => {
                if self.fields_since.is_some_and(|since| self.now >= since.instant() + FIELDS_WAIT) {
                    codec.give_up_on_fields();
                }
                let request = codec.decode(&mut self.input)?;
                self.fields_since =
                    codec.awaits_fields(&self.input).then(|| self.fields_since.unwrap_or(self.now.into()));
                Ok(request.map(|request| Frame::new(None, request)))
            }
        }
    }

    /// Returns whether the next request can be handled: in the classic framing one at a
    /// time, after the reply to the previous one is written.
    fn wants_input(&self) -> bool {
        let may_pipeline = match self.framing {
            Framing::Native(_) => true,
            Framing::Classic(_) => self.connection.is_idle() && self.is_written(),
        };
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
            let mut room = ReadBuf::new(scratch);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut room);
            self.input.extend_from_slice(room.filled());
            // The input may hold a password.
            room.filled_mut().fill(0);
            read.map_ok(|()| room.filled().len())
        });
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Ok(self.handle_eof()),
            Poll::Ready(Ok(count)) => {
                self.connection.count_bytes(count, self.now);
                self.last_received_at = self.now.into();
                Ok(true)
            }
            // Over TLS: the peer closed without `close_notify`. The framing detects a
            // truncated message by itself.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(self.handle_eof()),
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
        self.stage = WireStage::Draining { until: self.now + DRAIN_TIMEOUT };
        Ok(true)
    }

    fn has_drained(&self) -> bool {
        matches!(self.stage, WireStage::Draining { until } if self.now >= until)
    }

    /// Returns whether the connection has ended or missed a deadline.
    fn is_over(&mut self) -> bool {
        if let WireStage::Draining { .. } = self.stage {
            return self.has_drained();
        }
        if !self.connection.awaits_ack() {
            self.owing_since = None;
        }
        let is_past = |at: Option<Instant>| at.is_some_and(|at| self.now >= at);
        if is_past(self.dead_at()) {
            tracing::info!(connection = ?self.connection, "slow consumer: neither reads nor acknowledges");
            return true;
        }
        if is_past(self.frame_due()) {
            tracing::info!(connection = ?self.connection, "frame incomplete at its deadline");
            return true;
        }
        false
    }

    /// Returns the deadline of an incomplete frame.
    fn frame_due(&self) -> Option<Instant> {
        let for_its_bytes = Duration::from_secs(self.input.len() as u64 / FRAME_BYTES_PER_SECOND_MIN);
        Some(self.frame_since?.instant() + self.ack_timeout + for_its_bytes)
    }

    /// Returns the time by which the peer must send a byte or read one.
    fn dead_at(&self) -> Option<Instant> {
        let owing_since = match self.framing {
            // Acknowledgements that the server does not read are not owed.
            Framing::Native(_) if self.wants_input() => self.owing_since,
            _ => None,
        };
        let unread_since = (!self.is_written()).then_some(self.last_written_at);
        let since = [owing_since, unread_since].into_iter().flatten().max()?;
        Some(since.max(self.last_received_at).instant() + self.ack_timeout)
    }

    fn deadline(&self) -> Option<Instant> {
        let fields = self.fields_since.map(|since| since.instant() + FIELDS_WAIT);
        let linger = match self.stage {
            WireStage::Draining { until } => Some(until),
            _ => None,
        };
        // A full output buffer waits for the peer, not for the chat.
        let retry = self.connection.wake_at().filter(|_| self.takes_output());
        [self.dead_at(), self.frame_due(), retry, fields, linger].into_iter().flatten().min()
    }

    /// Arms the timer for the next deadline. Returns whether it is due. A timer that is too
    /// early stays: moving it for every message would cost more than one spurious wake-up.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline() else {
            return false;
        };
        if deadline <= self.now {
            return true;
        }
        if self.timer.as_ref().is_none_or(|timer| timer.deadline() > deadline || timer.is_elapsed()) {
            self.timer = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use hark_protocol::UserName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter, DuplexStream};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::chat::{Chat, ShutdownSignal};
    use crate::config::Cli;
    use crate::shard::{ShardConfig, ShardStore};
    use crate::store::{Position, ReadLimit, Store as _};

    const PING: &[u8] = b"\0\0\0\x13\0\0\0\x07ping\0\0\0\0\0\0\0\0\0\0\0";
    const OK: &[u8] = b"\0\0\0\x13\0\0\0\x07ok\0\0\0\0\0\0\0\0\0\0\0\0\0";

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Serves one connection in the native framing over a stream that buffers until it is
    /// flushed, as TLS may.
    fn serve(store: Arc<ShardStore>) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let rules = <Cli as clap::Parser>::parse_from(["harkd"]).serve.rules();
        let chat = Chat::new(store, rules);
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let connection = ClientConnection::new(Arc::new(chat), address, Arc::<ShutdownSignal>::default());
        let (client, ours) = tokio::io::duplex(1024);
        let framing = Framing::Native(ServerCodec::new(1024));
        let wire = Wire::new(BufWriter::new(ours), framing, connection, Duration::from_secs(60));
        (client, tokio::spawn(wire.run()))
    }

    fn memory() -> Arc<ShardStore> {
        Arc::new(ShardStore::memory(ShardConfig { numbers_after: Some(0), ..ShardConfig::DEFAULT }).unwrap())
    }

    fn frame(id: u32, command: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(19 + payload.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(id.to_be_bytes());
        bytes.extend(command.as_bytes());
        bytes.resize(4 + 19, 0);
        bytes.extend(payload);
        bytes
    }

    #[tokio::test]
    async fn send_behind_a_refused_hello_is_not_stored() {
        let hello = |payload: &[u8]| frame(1, "hello", payload);
        let refused = [
            hello(b""),
            hello(b"1"),
            hello(b"one,token"),
            hello(b"1,no token"),
            hello(b"1,\xff"),
            hello(b"2,token"),
            frame(0, "hello", b"1,token"),
            [frame(7, "ping", b""), hello(b"1,token")].concat(),
            [hello(b"1,token"), hello(b"1,token")].concat(),
        ];
        for hello in refused {
            let store = memory();
            let bob: UserName = "bob".parse().unwrap();
            store.create(&bob, None).await.unwrap();
            let account = store.account(&bob).await.unwrap().unwrap().account;
            let (mut client, serving) = serve(Arc::clone(&store));
            let send = frame(2, "send", b"bob,outside of its session");
            client.write_all(&[&*hello, &*send].concat()).await.unwrap();
            let mut replies = Vec::new();
            tokio::time::timeout(TIMEOUT, client.read_to_end(&mut replies)).await.unwrap().unwrap();
            let shown = String::from_utf8_lossy(&hello);
            let refusal = b"notok\0\0\0\0\0\0\0\0\0\0bad-request,";
            assert_eq!(replies.windows(refusal.len()).filter(|part| part == refusal).count(), 1, "{shown:?}");
            drop(client);
            serving.await.unwrap().unwrap();
            let limit = ReadLimit { messages: 1, bytes: 1 };
            assert_eq!(
                store.read(&account, Position::default(), limit).await.unwrap().messages,
                [],
                "{shown:?}"
            );
        }
    }

    #[tokio::test]
    async fn output_is_flushed_and_shut_down() {
        let (mut client, serving) = serve(memory());
        for _ in 0..2 {
            client.write_all(PING).await.unwrap();
            let mut reply = [0; OK.len()];
            tokio::time::timeout(TIMEOUT, client.read_exact(&mut reply)).await.unwrap().unwrap();
            assert_eq!(reply, OK);
        }
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        serving.await.unwrap().unwrap();
    }
}
