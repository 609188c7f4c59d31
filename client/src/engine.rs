//! The task that owns the link: it accepts commands, drives the outbox and the
//! inbox, and reconnects.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hark_protocol::limits::WINDOW_MESSAGES_MAX;
use hark_protocol::{
    ByeReason, Code, Delivery, Incoming, OkFields, Refusal, Reply, Request, RequestId, RoomName,
    RoomReply, RoomRequest, SessionToken, UserName,
};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::event::{Event, Events, LinkState};
use crate::failover::{Failover, Next};
use crate::inbox::Inbox;
use crate::journal::{SendJournal, SendTag};
use crate::link::{self, Handshake, Link, LinkError, Opened};
use crate::outbox::{Effect, NotWritten, Now, Outbox, QueuedRequest};

/// Free slots in the event queue that are needed to process a frame.
const EVENTS_HEADROOM: usize = 4;

/// Capacity of the event queue. A conforming server keeps at most one window
/// unacknowledged, so the queue fills only if the server violates the protocol.
const EVENTS_MAX: usize = WINDOW_MESSAGES_MAX + 2 * EVENTS_HEADROOM;

/// Upper limit for the wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Length of a session token in characters: 190 bits of randomness.
const TOKEN_CHARS: usize = 32;

/// Whether the client is to end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    No,
    /// Once everything is answered, at the latest at this time.
    By(Instant),
}

impl Stop {
    pub(crate) fn earlier(self, other: Instant) -> Self {
        match self {
            Self::No => Self::By(other),
            Self::By(time) => Self::By(time.min(other)),
        }
    }
}

/// State of the task.
pub(crate) struct Engine {
    config: Config,
    outbox: Outbox,
    inbox: Arc<Inbox>,
    failover: Failover,
    commands: mpsc::Receiver<QueuedRequest>,
    /// Whether the command channel is closed and empty.
    is_drained: bool,
    stop: watch::Receiver<Stop>,
    /// Deadline of the shutdown, if one is in progress.
    end_by: Option<Instant>,
    events: mpsc::Sender<Event>,
    link_state: watch::Sender<LinkState>,
    unanswered: Arc<AtomicUsize>,
    /// Whether the server has announced its shutdown.
    is_server_ending: bool,
}

/// The cause of a wakeup.
enum Wake {
    /// A request; `None` if the channel is closed and empty.
    Request(Option<QueuedRequest>),
    /// A deadline has passed.
    Deadline,
    /// [`crate::Handle::close`] was called.
    Stop,
    /// The last handle was dropped.
    Abandoned,
}

impl Engine {
    pub(crate) fn new(
        config: Config,
        commands: mpsc::Receiver<QueuedRequest>,
        stop: watch::Receiver<Stop>,
        unanswered: Arc<AtomicUsize>,
    ) -> (Self, Events) {
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let (link_state, link) = watch::channel(LinkState::Connecting);
        let engine = Self {
            outbox: Outbox::new(new_session(), config.timing.repeat_for, config.names_max),
            inbox: Arc::new(Inbox::new(Arc::clone(&config.seen))),
            failover: Failover::new(config.servers.len(), &config.timing),
            config,
            commands,
            is_drained: false,
            stop,
            end_by: None,
            events,
            link_state,
            unanswered,
            is_server_ending: false,
        };
        (engine, Events { queue, link })
    }

    /// Runs until the client is closed or the last handle is dropped.
    pub(crate) async fn run(mut self) {
        // Boxed because it is large and lives as long as the client.
        while let Some(lost) = Box::pin(self.run_link()).await {
            self.inbox.link_lost();
            self.outbox.link_lost();
            self.is_server_ending = false;
            if self.outbox.is_session_exhausted() {
                self.outbox.renew_session(new_session());
            }
            if self.back_off(&lost).await.is_none() {
                break;
            }
        }
        self.commands.close();
        let given_up = self.commands.len() + self.outbox.abandon();
        self.unanswered.store(given_up, Ordering::Relaxed);
        self.link_state.send_replace(LinkState::Closed);
    }

    /// Opens one link and serves it until it ends; `None` if the client ends.
    async fn run_link(&mut self) -> Option<LinkError> {
        self.link_state.send_replace(LinkState::Connecting);
        let opened = match self.open().await? {
            Ok(opened) => opened,
            Err(error) => return Some(error),
        };
        let mut link = opened.link;
        if let Err(error) = self.on_authenticated(opened.identity).await {
            return Some(error);
        }
        self.link_state.send_replace(LinkState::Up {
            server: self.server(),
        });
        match self.serve(&mut link).await {
            Ok(()) => {
                link.finish().await;
                None
            }
            Err(_) if self.is_due_to_end() => None,
            Err(LinkError::Ended) if self.is_server_ending => Some(LinkError::Stopping),
            Err(error) => Some(error),
        }
    }

    async fn open(&mut self) -> Option<Result<Opened, LinkError>> {
        let handshake = Handshake {
            session: self.outbox.session().clone(),
            identity: self.outbox.identity.authentication(),
        };
        let Some(server) = self.config.servers.get(self.failover.current()).cloned() else {
            return Some(Err(LinkError::NoServer));
        };
        let opening = async move { link::open(&server, &handshake).await };
        let opening = tokio::time::timeout(self.failover.attempt_timeout(), opening);
        let opened = self.meanwhile(opening).await?;
        Some(opened.unwrap_or(Err(LinkError::Silent)))
    }

    /// Processes the answer to the authentication of a new link.
    async fn on_authenticated(
        &mut self,
        identity: Result<OkFields, Refusal>,
    ) -> Result<(), LinkError> {
        match (identity, self.outbox.identity.authentication()) {
            (Ok(fields), Some(Request::Connect { user, .. })) => {
                self.receive_for(user, fields.as_queued().unwrap_or(0))
                    .await
            }
            (Ok(fields), Some(Request::Room(RoomRequest::Attach { user, .. }))) => {
                let queued = fields.as_attached().map_or(0, |(queued, _)| queued);
                self.receive_for(user, queued).await
            }
            (Err(refusal), Some(_)) => {
                self.lose_identity(refusal).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns the address of the current server.
    fn server(&self) -> Arc<str> {
        let server = self.config.servers.get(self.failover.current());
        server.map_or_else(|| Arc::from(""), |server| Arc::clone(&server.address))
    }

    /// Switches to the next server and waits for the backoff, if one is due;
    /// `None` if the client ends.
    async fn back_off(&mut self, lost: &LinkError) -> Option<()> {
        let (server, reason) = (self.server(), lost.to_string());
        let retry_after = lost.retry_after().unwrap_or_default().min(RETRY_AFTER_MAX);
        let Next {
            delay: retry_in,
            is_permanent,
        } = self.failover.on_failure(retry_after, lost.is_permanent());
        self.link_state.send_replace(LinkState::Down {
            server,
            reason,
            retry_in,
            is_permanent,
        });
        self.meanwhile(tokio::time::sleep(retry_in)).await
    }

    /// Awaits `work` without a link, and keeps accepting commands; `None` if
    /// the client ends first.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            self.outbox.expire(Instant::now());
            self.publish();
            if self.is_done() || self.is_due_to_end() {
                return None;
            }
            let wake = tokio::select! {
                done = &mut work => return Some(done),
                wake = self.wake(None) => wake,
            };
            self.handle(wake);
        }
    }

    /// Returns whether the client is shutting down and all requests are
    /// answered.
    fn is_done(&self) -> bool {
        self.end_by.is_some() && self.is_drained && self.outbox.len() == 0
    }

    fn is_due_to_end(&self) -> bool {
        self.end_by.is_some_and(|end_by| end_by <= Instant::now())
    }

    fn publish(&self) {
        self.unanswered.store(self.outbox.len(), Ordering::Relaxed);
    }

    /// Waits for an event other than of the link. Cancel-safe.
    async fn wake(&mut self, timer: Option<Instant>) -> Wake {
        let deadline = [timer, self.outbox.next_deadline(), self.end_by]
            .into_iter()
            .flatten()
            .min();
        let has_room = !self.is_drained && self.outbox.has_room();
        tokio::select! {
            command = self.commands.recv(), if has_room => Wake::Request(command),
            () = sleep_until(deadline) => Wake::Deadline,
            changed = self.stop.changed() => changed.map_or(Wake::Abandoned, |()| Wake::Stop),
        }
    }

    fn handle(&mut self, wake: Wake) {
        match wake {
            Wake::Request(Some(command)) => self.outbox.accept(command),
            Wake::Request(None) => self.is_drained = true,
            Wake::Deadline => {}
            Wake::Abandoned => self.end_by = Some(Instant::now()),
            Wake::Stop => {
                if let Stop::By(end_by) = *self.stop.borrow_and_update() {
                    self.end_by = Some(end_by);
                }
                // Queued commands are still received.
                self.commands.close();
            }
        }
    }

    /// Delivers an event. While the queue is full, only commands are processed,
    /// until there is room or the client ends.
    async fn emit(&mut self, event: Event) {
        let events = self.events.clone();
        // The application may have dropped the receiver.
        drop(self.meanwhile(events.send(event)).await);
    }

    async fn lose_identity(&mut self, refusal: Refusal) {
        if let Some(user) = self.outbox.identity_lost(&refusal) {
            self.emit(Event::IdentityLost { user, refusal }).await;
        }
    }

    async fn receive_for(&mut self, user: UserName, queued: u64) -> Result<(), LinkError> {
        if self
            .inbox
            .begin(&user, queued)
            .map_err(LinkError::SeenStore)?
        {
            self.emit(Event::CaughtUp { user }).await;
        }
        Ok(())
    }
}

/// Serving a link that is up.
impl Engine {
    /// Serves the link until the client is done with it.
    async fn serve(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let (events, inbox) = (self.events.clone(), Arc::clone(&self.inbox));
        let mut pinged = None;
        loop {
            let is_reading = events.is_closed() || events.capacity() >= EVENTS_HEADROOM;
            let timer = self.keep_alive(link, is_reading, &mut pinged)?;
            self.fill(link)?;
            self.publish();
            if self.is_done() && link.writer.is_flushed() {
                return Ok(());
            }
            if self.is_due_to_end() {
                return Err(LinkError::Ended);
            }
            if self.outbox.is_session_exhausted() {
                return Err(LinkError::SessionExhausted);
            }
            tokio::select! {
                incoming = link.reader.next(), if is_reading => self.receive(incoming?).await?,
                flushed = link.writer.flush(), if !link.writer.is_flushed() => flushed?,
                // The permits are dropped: this only waits for room.
                _ = events.reserve_many(EVENTS_HEADROOM), if !is_reading => {}
                () = inbox.changed.notified() => {}
                wake = self.wake(timer) => self.handle(wake),
            }
        }
    }

    /// Sends a ping after a period of silence, and returns the time of the next
    /// check. Silence proves nothing while the link is not being read because
    /// the event queue is full.
    fn keep_alive(
        &mut self,
        link: &Link,
        is_reading: bool,
        pinged: &mut Option<Instant>,
    ) -> Result<Option<Instant>, LinkError> {
        let (now, last_received_at) = (Instant::now(), link.reader.last_received_at());
        self.outbox.expire(now);
        if !is_reading {
            *pinged = None;
            return Ok(None);
        }
        let timing = self.config.timing;
        match pinged.filter(|pinged| *pinged > last_received_at) {
            Some(pinged) if now >= pinged + timing.dead_after => Err(LinkError::Silent),
            Some(pinged) => Ok(Some(pinged + timing.dead_after)),
            None if now >= last_received_at + timing.ping_after => {
                self.outbox.ping();
                *pinged = Some(now);
                Ok(Some(now + timing.dead_after))
            }
            None => Ok(Some(last_received_at + timing.ping_after)),
        }
    }

    /// Encodes pending requests, then the acknowledgements.
    fn fill(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let (now, writer) = (Now::read(), &mut link.writer);
        let journal = &self.config.journal;
        while writer.has_room()
            && self.outbox.write_next(now, |id, request, tag| {
                tag.map_or(Ok(()), |tag| begin(journal.as_ref(), tag))?;
                writer
                    .queue(Some(id), request)
                    .map_err(NotWritten::TooLarge)
            })
        {}
        // During a `connect`, an ack could refer to the wrong user.
        if !self.outbox.is_connecting() {
            while writer.has_room()
                && let Some((log, sequence)) = self.inbox.next_ack(self.end_by.is_some())
            {
                let ack = Request::Ack { log, sequence };
                writer.queue(None, &ack).map_err(LinkError::Protocol)?;
            }
        }
        Ok(())
    }

    async fn receive(&mut self, incoming: Incoming<Reply>) -> Result<(), LinkError> {
        match (incoming.id, incoming.message) {
            (Some(id), Ok(reply)) => self.receive_reply(id, reply).await,
            (Some(id), Err(malformed)) => {
                self.outbox.reply_unreadable(id, &malformed.refusal);
                Ok(())
            }
            (None, Ok(Reply::String(delivery))) => self.receive_message(None, delivery).await,
            (None, Ok(Reply::Room(push))) => self.receive_push(push).await,
            (None, Ok(Reply::Bye(reason))) => {
                self.receive_bye(reason).await;
                Ok(())
            }
            (
                None,
                Ok(Reply::Error {
                    failure,
                    explanation,
                }),
            ) => Err(link::failed(failure, &explanation)),
            // Unknown pushes of a later protocol version are ignored.
            (None, _) => Ok(()),
        }
    }

    async fn receive_reply(&mut self, id: RequestId, reply: Reply) -> Result<(), LinkError> {
        if !matches!(reply, Reply::Error { .. }) {
            self.failover.on_success();
        }
        match self.outbox.reply(id, reply) {
            Effect::None => Ok(()),
            Effect::Receives(user, queued) => self.receive_for(user, queued).await,
            Effect::GiveUp(failure, explanation) => Err(link::failed(failure, &explanation)),
        }
    }

    async fn receive_message(
        &mut self,
        room: Option<RoomName>,
        delivery: Delivery,
    ) -> Result<(), LinkError> {
        let arrival = self
            .inbox
            .push(room, delivery)
            .map_err(LinkError::SeenStore)?;
        if let Some(message) = arrival.message {
            self.failover.on_success();
            self.emit(Event::Message(message)).await;
        }
        if let Some(user) = arrival.caught_up {
            self.emit(Event::CaughtUp { user }).await;
        }
        Ok(())
    }

    /// Processes a push of rooms and devices.
    async fn receive_push(&mut self, push: RoomReply) -> Result<(), LinkError> {
        let event = match push {
            RoomReply::Said { room, delivery } => {
                return self.receive_message(Some(room), delivery).await;
            }
            RoomReply::Gap(gap) => {
                let Some(gap) = self.inbox.push_gap(gap) else {
                    return Ok(());
                };
                Event::Gap(gap)
            }
            RoomReply::Joined { room, last } => Event::Joined { room, last },
            RoomReply::Left { room, reason } => Event::Left { room, reason },
            RoomReply::Seen { room, sequence } => Event::Seen { room, sequence },
            RoomReply::Device { name, .. } => Event::NewDevice { name },
            // Parts of answers have an id.
            RoomReply::Room(_) | RoomReply::Past(_) | RoomReply::Token(_) => return Ok(()),
        };
        self.emit(event).await;
        Ok(())
    }

    async fn receive_bye(&mut self, reason: ByeReason) {
        match reason {
            ByeReason::TakenOver => {
                if let Some(user) = self.outbox.identity.taken_over() {
                    self.emit(Event::TakenOver { user }).await;
                }
            }
            ByeReason::Deleted => {
                self.lose_identity(Refusal::new(Code::NoSuchUser, "the account was deleted"))
                    .await;
            }
            ByeReason::Shutdown => self.is_server_ending = true,
        }
    }
}

/// Records the first write of a send.
fn begin(journal: &dyn SendJournal, tag: SendTag) -> Result<(), NotWritten> {
    match journal.begin(tag) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NotWritten::Withheld("withdrawn".to_owned())),
        Err(error) => Err(NotWritten::Withheld(format!("cannot record it: {error}"))),
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn new_session() -> SessionToken {
    loop {
        let token: String = rand::rng()
            .sample_iter(&Alphanumeric)
            .take(TOKEN_CHARS)
            .map(char::from)
            .collect();
        if let Ok(token) = token.parse() {
            return token;
        }
    }
}
