//! One client connection: its identity, requests in flight, and delivery. A front
//! passes requests in and polls for output; it adds no rules.
//!
//! Requests take effect in order of arrival. Sends and creates are pipelined: the store
//! decides them in that order. Any other request waits until they are decided, and later
//! requests wait for it.

mod commands;
mod sends;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::limits::{SENDS_UNANSWERED_MAX, VERSION};
use hark_protocol::message::RoomReply;
use hark_protocol::{
    ByeReason, Code, DeviceName, Malformed, OkFields, Refusal, Reply, Request, RequestId, RoomName,
    Sequence, SessionToken, UserName,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use self::commands::{CommandContext, DelayedSend, Done, RunningCommand, continue_answer};
use self::sends::{ConnectionSends, DeliveryCharge, SendSession, SentOutcome, units};
use super::accounts::Authenticated;
use super::delivery::{DeliveryReader, Received};
use super::delivery_window::INBOX;
use super::inbox::sync_acknowledgements;
use super::rate_limiter::{RateLimiter, SendSize, Throttle};
use super::replies::{LOGIN_REQUIRED, created_reply, sent_reply};
use super::rooms::Part;
use super::shutdown::{Shutdown, ShutdownSignal};
use super::tokens::{OUT_OF_SCOPE, Right, out_of_scope};
use super::{Chat, Fault, NeverPushed, audit};
use crate::metrics::Counts;
use crate::store::{
    Account, Append, Created, DeviceId, End, Message, Outcome, Pending, Said, Unavailable,
};

/// The output of a connection.
#[derive(Debug)]
pub enum Output {
    /// The reply to a request.
    Reply(Option<RequestId>, Reply),
    /// A message for the connected user.
    Push(Arc<Message>),
    /// A message of a room of the user.
    Said(Arc<Said>),
    /// Another push that concerns rooms and devices: `gap`, `joined`, `left`, `seen` or
    /// `device`.
    Notice(RoomReply),
    /// The end of the delivery.
    Bye(ByeReason),
    /// The end of the output: the front closes the connection. Acknowledgements that
    /// still arrive count.
    Close,
}

/// A client connection. Dropping it releases its session and subscription; operations
/// that the store has accepted continue.
pub struct ClientConnection {
    chat: Arc<Chat>,
    address: IpAddr,
    shutdown: Arc<ShutdownSignal>,
    throttle: Throttle,
    user: Option<Authenticated>,
    sends: ConnectionSends,
    /// Whether no request has arrived yet, so that `hello` is allowed.
    is_fresh: bool,
    /// Pipelined answers, in the order of their requests.
    answers: VecDeque<(Option<RequestId>, PendingReply)>,
    /// A request that waits until `answers` is empty.
    waiting: Option<Box<(Option<RequestId>, Request)>>,
    running: Option<(Option<RequestId>, RunningCommand)>,
    delivery: Option<DeliveryReader>,
    /// A push that waits for replies. Boxed, because it is rare.
    held: Option<Box<Output>>,
    /// The end of the delivery, until `bye` goes out.
    ended: Option<End>,
    stage: ConnectionStage,
    /// The counts for the metrics since the latest pause of the output.
    counts: Counts,
    /// The metrics count its delivery as behind.
    is_behind: bool,
    /// Whether an acknowledgement without its push was logged as a warning.
    has_warned_of_ack: bool,
}

/// The stage of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionStage {
    Open,
    /// Requests in flight are answered; then the connection closes, after a
    /// `bye shutdown` if `bye` is set.
    Ending {
        bye: bool,
    },
    Closed,
}

/// The answer to a pipelined request.
enum PendingReply {
    Reply(Reply),
    Sent {
        to: UserName,
        outcome: SentOutcome,
    },
    /// Holds its share of the budget until it is answered.
    Created {
        user: UserName,
        created: Pending<Created>,
        _permit: Option<OwnedSemaphorePermit>,
    },
}

impl ClientConnection {
    /// Returns an anonymous connection from `address` that obeys `shutdown`.
    #[must_use]
    pub fn new(chat: Arc<Chat>, address: IpAddr, shutdown: Arc<ShutdownSignal>) -> Self {
        Self {
            throttle: Throttle::new(address, &chat.rules().rates),
            chat,
            address,
            shutdown,
            user: None,
            sends: ConnectionSends::default(),
            is_fresh: true,
            answers: VecDeque::new(),
            waiting: None,
            running: None,
            delivery: None,
            held: None,
            ended: None,
            stage: ConnectionStage::Open,
            counts: Counts::default(),
            is_behind: false,
            has_warned_of_ack: false,
        }
    }

    /// Charges its requests to `limiter`, in addition to the limiter of its user.
    #[must_use]
    pub fn limited_by(mut self, limiter: Option<Arc<RateLimiter>>) -> Self {
        self.throttle.set_limiter(limiter);
        self
    }

    /// Sends in `session` without a `hello`. Any number of connections may send in it at
    /// the same time, with ids in any order.
    #[must_use]
    pub fn in_session(mut self, session: SessionToken) -> Self {
        self.sends.set_session(SendSession::Shared(session));
        self
    }

    /// Returns whether the next request can be handled. Until then it stays unread.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stage == ConnectionStage::Open
            && self.throttle.paused_until().is_none()
            && self.waiting.is_none()
            && self.running.is_none()
            && self.answers.len() < SENDS_UNANSWERED_MAX
            && !self.shutdown.is_closing()
    }

    /// Returns whether every request is answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_none() && self.running.is_none() && self.answers.is_empty()
    }

    /// Returns whether a push is unacknowledged.
    #[must_use]
    pub fn awaits_ack(&self) -> bool {
        self.delivery
            .as_ref()
            .is_some_and(|reader| reader.window().awaits_ack())
    }

    /// Returns the time at which to poll even without a wake-up.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if self.stage != ConnectionStage::Open {
            return None;
        }
        let retry_at = self
            .delivery
            .as_ref()
            .and_then(|reader| reader.window().retry_at());
        [self.throttle.paused_until(), retry_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the end of the pause by a rate limit.
    #[must_use]
    pub const fn paused_until(&self) -> Option<Instant> {
        self.throttle.paused_until()
    }

    /// Charges bytes that were read to the rate limit.
    pub fn count_bytes(&mut self, bytes: usize, now: Instant) {
        self.throttle.charge_bytes(bytes, now);
    }

    /// Handles a request or a malformed one. Requires [`Self::is_ready`], except for
    /// [`Request::Ack`]. Sends reach the store at the next [`Self::poll`] or request of
    /// another kind.
    pub fn handle(&mut self, id: Option<RequestId>, request: Result<Request, Malformed>) {
        if self.shutdown.is_closing() {
            return;
        }
        let is_fresh = std::mem::replace(&mut self.is_fresh, false);
        self.charge(&request);
        if !matches!(request, Ok(Request::Send { .. })) {
            self.flush_sends();
        }
        match request {
            Err(Malformed {
                refusal,
                is_hello: true,
            }) => self.refuse_hello(id, refusal),
            Err(malformed) => self.answer(id, PendingReply::Reply(Reply::NotOk(malformed.refusal))),
            Ok(request) if self.is_out_of_scope(&request) => {
                self.answer(id, PendingReply::Reply(Reply::NotOk(out_of_scope())));
            }
            Ok(Request::Ack { log, sequence }) => self.handle_ack(log.as_ref(), sequence),
            Ok(Request::Ping) => self.answer(id, PendingReply::Reply(Reply::Ok(OkFields::None))),
            Ok(Request::Send { user, text }) => self.send(id, user, text),
            Ok(Request::Create {
                user,
                password: None,
            }) if self.chat.is_creation_open(&user) && self.may_pipeline() => {
                self.create_open(id, user);
            }
            Ok(Request::Hello { .. }) if !is_fresh => {
                self.refuse_hello(
                    id,
                    Refusal::new(Code::BadRequest, "hello must be the first request"),
                );
            }
            Ok(request) => self.waiting = Some((id, request).into()),
        }
    }

    /// Returns whether the token of the connection does not allow a request. A send goes to
    /// the store, which remembers its refusal. An acknowledgement has no reply, and no effect
    /// without a delivery.
    fn is_out_of_scope(&self, request: &Request) -> bool {
        if matches!(request, Request::Send { .. } | Request::Ack { .. }) {
            return false;
        }
        let right = Right::of(request);
        self.user.as_ref().is_some_and(|user| !user.has(right))
    }

    /// Returns whether the store takes another command in order behind the sends in
    /// flight: it may delay sends of an account.
    fn may_pipeline(&self) -> bool {
        self.user.is_none() || self.answers.is_empty()
    }

    /// Sends a message, pipelined. Waits for a share of the budget if none is free.
    fn send(&mut self, id: Option<RequestId>, to: UserName, text: ByteString) {
        let rules = self.chat.rules();
        let right = Right::Send(Some(&to));
        let may_send = match &self.user {
            Some(user) => user.has(right),
            None => !rules.require_password,
        };
        let refusal = if !may_send {
            Some(Code::Denied)
        } else if text.len() > rules.text_bytes_max() {
            Some(Code::TooLarge)
        } else {
            None
        };
        let append = Append {
            to,
            sender: self.account().cloned(),
            allow_anonymous: !rules.require_password,
            time_ms: self.sends.time_ms(),
            send_id: self.sends.send_id(id, self.chat.network(self.address)),
            refusal,
            text,
        };
        let wait = self.admit(&append).err();
        if wait.is_none()
            && !self.chat.hides_room(&append.to)
            && let Ok(permit) =
                Arc::clone(&self.chat.budget).try_acquire_many_owned(units(&append.text))
        {
            return self.append(id, append, permit);
        }
        let send = DelayedSend {
            chat: Arc::clone(&self.chat),
            append,
            wait,
            is_exempt: self.throttle.is_exempt(),
        };
        self.running = Some((id, send.start()));
    }

    /// Admits a send by the limits of its user.
    ///
    /// # Errors
    /// The wait before it.
    fn admit(&mut self, append: &Append) -> Result<(), Duration> {
        let users = &self.chat.users;
        let Some(sender) = append
            .sender
            .as_ref()
            .filter(|sender| users.concerns(self.throttle.charged(&sender.name)))
        else {
            return Ok(());
        };
        let send = SendSize {
            bytes: append.text.len(),
            is_to_room: self.chat.is_room(&append.to),
        };
        self.throttle.admit_send(&sender.name, send, users)
    }

    /// Returns the time before a send to `to` is handled, because of the limits of the user.
    #[must_use]
    pub fn wait_to_send(&self, to: &UserName) -> Duration {
        let users = &self.chat.users;
        let user = self.account();
        let charged = user.map(|user| self.throttle.charged(&user.name));
        let charged = charged.filter(|charged| users.concerns(*charged));
        charged.map_or(Duration::ZERO, |charged| {
            let is_to_room = self.chat.is_room(to);
            users.wait_to_send(charged, is_to_room, Instant::now())
        })
    }

    /// Adds a message that has its permit to the burst for the store.
    fn append(&mut self, id: Option<RequestId>, append: Append, permit: OwnedSemaphorePermit) {
        let to = append.to.clone();
        let sender = append.sender.as_ref();
        let charged = sender.map(|sender| self.throttle.charged(&sender.name));
        let charged = charged
            .filter(|charged| self.chat.users.concerns(*charged) && self.chat.is_room(&append.to));
        let charge = charged.map(|charged| {
            Box::new(DeliveryCharge {
                chat: Arc::clone(&self.chat),
                sender: charged.user.clone(),
                is_exempt: charged.is_exempt,
                room: to.clone(),
            })
        });
        let outcome = SentOutcome::new(self.sends.push(append, permit), charge);
        self.answer(id, PendingReply::Sent { to, outcome });
    }

    /// Creates an account without a password, pipelined.
    fn create_open(&mut self, id: Option<RequestId>, user: UserName) {
        if let Err(fault) = self.chat.check_new_account(&user, false) {
            return self.answer(id, PendingReply::Reply(fault.into()));
        }
        // If the budget is exhausted, the request waits instead.
        let Ok(permit) = Arc::clone(&self.chat.budget).try_acquire_owned() else {
            self.waiting = Some(
                (
                    id,
                    Request::Create {
                        user,
                        password: None,
                    },
                )
                    .into(),
            );
            return;
        };
        let created = self.chat.store.create(&user, None);
        self.answer(
            id,
            PendingReply::Created {
                user,
                created,
                _permit: Some(permit),
            },
        );
    }

    /// Passes the burst of sends to the store.
    pub fn flush_sends(&mut self) {
        self.sends.flush(&*self.chat.store, self.shutdown.epoch());
    }

    /// Acknowledges every push, for a framing without acknowledgements (classic).
    pub fn acknowledge_all(&mut self) {
        if let Some(pushed) = self
            .delivery
            .as_ref()
            .map(|reader| reader.window().pushed(INBOX))
        {
            self.handle_ack(None, pushed);
        }
    }

    /// Acknowledges every push of a log up to `sequence`, as [`Request::Ack`] does, for a
    /// front that replies to acknowledgements. The log is a room, or the inbox.
    ///
    /// # Errors
    /// [`NeverPushed`] if the number is above the last push since the latest `connect` or
    /// `attach`; the acknowledgement is ignored. That of a room which the connection does not
    /// receive is ignored without an error.
    pub fn acknowledge(
        &mut self,
        log: Option<&RoomName>,
        sequence: Sequence,
    ) -> Result<(), NeverPushed> {
        match &mut self.delivery {
            Some(reader) => {
                reader.acknowledge(log, sequence, &*self.chat.store)?;
                self.counts.acknowledgements += 1;
                Ok(())
            }
            None if log.is_some() => Ok(()),
            None => Err(NeverPushed {
                highest: Sequence(0),
            }),
        }
    }

    /// Resolves when the acknowledgements so far of the device that receives, the nameless
    /// one without a name, are durable. A failure means that they may not be.
    pub fn sync_acknowledgements(
        &self,
        device: Option<&DeviceName>,
    ) -> impl Future<Output = Result<(), Unavailable>> + use<> {
        let account = self.delivery.as_ref().map(DeliveryReader::account);
        let synced =
            account.map(|account| sync_acknowledgements(&*self.chat.store, account, device));
        async move {
            match synced {
                Some(synced) => synced.await,
                None => Ok(()),
            }
        }
    }

    /// Ends the connection once the requests in flight are answered.
    pub fn end(&mut self) {
        if self.stage == ConnectionStage::Open {
            self.stage = ConnectionStage::Ending { bye: false };
        }
    }

    /// Ready when the front must drop the connection at once, even if output is pending. The
    /// front polls it first, every time its task runs, even while the socket is not
    /// writable: it registers the waker of the shutdown signal, and another connection
    /// may wait for this one.
    pub fn poll_abort(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.shutdown.poll(cx) {
            Poll::Ready(Shutdown::Close) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Polls for the next output.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Output> {
        let polled = self.poll_output(cx, now);
        self.count(&polled);
        polled
    }

    /// Counts an output. The counts are added up when there is none.
    fn count(&mut self, polled: &Poll<Output>) {
        let metrics = &self.chat.metrics;
        match polled {
            Poll::Ready(Output::Push(_) | Output::Said(_)) => self.counts.deliveries += 1,
            Poll::Ready(Output::Reply(_, Reply::Ok(OkFields::Stored(_)))) => {
                self.counts.stored += 1;
            }
            Poll::Ready(Output::Reply(_, Reply::NotOk(refusal))) => {
                metrics.record_refusal(refusal.code);
            }
            Poll::Ready(Output::Notice(RoomReply::Gap(_))) => metrics.record_gap(),
            Poll::Ready(Output::Reply(..) | Output::Notice(_) | Output::Bye(_)) => {}
            Poll::Ready(Output::Close) | Poll::Pending => {
                self.shutdown.count(&self.counts);
                metrics.add(&mut self.counts);
                let reader = self.delivery.as_ref();
                let is_behind = reader.is_some_and(DeliveryReader::is_behind);
                if self.is_behind != is_behind {
                    self.is_behind = is_behind;
                    metrics.record_lag(is_behind);
                }
                let paused = self.throttle.take_paused();
                if !paused.is_zero() {
                    metrics.record_pause(paused);
                }
            }
        }
    }

    fn poll_output(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Output> {
        if self.stage == ConnectionStage::Closed {
            return Poll::Pending;
        }
        if self.shutdown.is_closing() {
            self.stage = ConnectionStage::Closed;
            return Poll::Ready(Output::Close);
        }
        self.throttle.refill(now);
        if self.stage == ConnectionStage::Open && self.shutdown.is_requested() {
            self.stage = ConnectionStage::Ending { bye: true };
        }
        loop {
            if let Poll::Ready((id, reply)) = self.poll_requests(cx) {
                return Poll::Ready(Output::Reply(id, reply));
            }
            if let Some(end) = self.ended.take() {
                match self.bye(end) {
                    Some(reason) => return Poll::Ready(Output::Bye(reason)),
                    None => self.end(),
                }
            }
            if self.stage != ConnectionStage::Open {
                return self.poll_end();
            }
            if let Some(push) = self.held.take() {
                return Poll::Ready(*push);
            }
            let Some(delivery) = &mut self.delivery else {
                return Poll::Pending;
            };
            let push = match ready!(delivery.poll(cx, now, &*self.chat.store)) {
                Received::Message(message) => Output::Push(message),
                Received::Said(said) => Output::Said(said),
                Received::Notice(notice) => Output::Notice(notice),
                // The store completes a request before it notifies of its effects: a user
                // that deletes itself gets the reply first, and a `connect` that takes over
                // from its own connection has replaced this reader.
                Received::End(end) => {
                    self.ended = Some(end);
                    continue;
                }
            };
            if self.answers.is_empty() && self.running.is_none() {
                return Poll::Ready(push);
            }
            // The store has completed the request that caused the push, if it is one of this
            // connection: its reply comes first.
            self.held = Some(push.into());
        }
    }

    /// Charges a request to the rates of commands. Acknowledgements are exempt, since a
    /// delay would hold up the delivery that they make room for.
    fn charge(&mut self, request: &Result<Request, Malformed>) {
        self.counts.requests += 1;
        if let Ok(Request::Send { text, .. }) = request {
            self.counts.sent_bytes += text.len() as u64;
        }
        if matches!(request, Ok(Request::Ack { .. })) {
            return;
        }
        let user = self
            .user
            .as_ref()
            .map(|authenticated| &authenticated.account.name);
        self.throttle.charge_request(user, &self.chat.users);
    }

    /// Sets the identity of the connection. The login counts as a command of the user, so
    /// that a second connection does not evade the user's rate limit.
    fn become_user(&mut self, authenticated: Authenticated) {
        let name = &authenticated.account.name;
        self.throttle.charge_login(name, &self.chat.users);
        audit::logged_in(&authenticated, self.address);
        self.shutdown.set_user(Some(name));
        self.user = Some(authenticated);
    }

    /// Returns the account of the user.
    fn account(&self) -> Option<&Account> {
        self.user
            .as_ref()
            .map(|authenticated| &authenticated.account)
    }

    /// Returns the device that is attached to the connection, if it has the user's name.
    fn device(&self) -> Option<DeviceId> {
        let reader = self.delivery.as_ref()?;
        let is_user = self.account() == Some(reader.account());
        reader.device().filter(|_| is_user)
    }

    /// Applies the end of the delivery. Returns the reason for the client, or `None` if the
    /// connection closes, so that the client connects and attaches again.
    fn bye(&mut self, end: End) -> Option<ByeReason> {
        match end {
            End::TakenOver => Some(ByeReason::TakenOver),
            End::Deleted => {
                self.user = None;
                self.shutdown.set_user(None);
                Some(ByeReason::Deleted)
            }
            End::Interrupted => None,
        }
    }

    /// Begins a delivery. The messages in flight of a former one are pushed again.
    fn deliver(&mut self, reader: DeliveryReader) {
        self.count_redeliveries();
        self.delivery = Some(reader);
    }

    fn count_redeliveries(&self) {
        if let Some(reader) = &self.delivery {
            let in_flight = reader.window().in_flight();
            self.chat.metrics.record_redeliveries(in_flight);
        }
    }

    fn answer(&mut self, id: Option<RequestId>, answer: PendingReply) {
        self.answers.push_back((id, answer));
    }

    /// Refuses a `hello` and ends the connection: a later send would be stored outside
    /// its session, and its repeat stored again.
    fn refuse_hello(&mut self, id: Option<RequestId>, why: impl Into<Fault>) {
        let fault: Fault = why.into();
        self.end();
        self.answer(id, PendingReply::Reply(fault.into()));
    }

    /// Ready with the reply to the oldest pipelined request, once it is decided.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<(Option<RequestId>, Reply)> {
        let Some((id, answer)) = self.answers.front_mut() else {
            return Poll::Pending;
        };
        let id = *id;
        let reply = match answer {
            PendingReply::Reply(reply) => std::mem::replace(reply, Reply::Ok(OkFields::None)),
            PendingReply::Created { user, created, .. } => match ready!(Pin::new(created).poll(cx))
            {
                Ok(created) => {
                    if created == Created::Created {
                        audit::created(user, self.user.as_ref(), self.address);
                    }
                    created_reply(created, user)
                }
                Err(unavailable) => Fault::from(unavailable).into(),
            },
            PendingReply::Sent { to, outcome } => {
                let reply = match ready!(Pin::new(outcome).poll(cx)) {
                    // The client repeats the send of unknown outcome and every later one, so
                    // the outcome of a later one must not reach it.
                    Ok(_) if self.sends.has_unknown_outcome() => Fault::from(Unavailable).into(),
                    Ok(outcome) => {
                        if outcome == Outcome::Refused(Code::QueueFull) {
                            audit::queue_full(to, self.user.as_ref(), self.address);
                        }
                        let lacks = match &self.user {
                            None => Some(LOGIN_REQUIRED),
                            Some(user) if user.has(Right::Send(Some(to))) => None,
                            Some(_) => Some(OUT_OF_SCOPE),
                        };
                        sent_reply(outcome, to, lacks, self.chat.rules().text_bytes_max())
                    }
                    Err(unavailable) => {
                        if self.sends.fence_off() {
                            self.end();
                        }
                        Fault::from(unavailable).into()
                    }
                };
                self.chat.metrics.record_unstored(&reply);
                reply
            }
        };
        self.answers.pop_front();
        if self.answers.is_empty() {
            // An idle connection keeps no buffer.
            self.answers = VecDeque::new();
        }
        Poll::Ready((id, reply))
    }

    /// Polls for the next reply.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<(Option<RequestId>, Reply)> {
        loop {
            self.flush_sends();
            if !self.answers.is_empty() {
                return self.poll_answers(cx);
            }
            self.start_waiting();
            if self.answers.is_empty() {
                ready!(self.poll_running(cx));
            }
        }
    }

    /// Starts the waiting request, if every earlier one is answered.
    fn start_waiting(&mut self) {
        if self.running.is_some() || !self.answers.is_empty() {
            return;
        }
        let Some((id, request)) = self.waiting.take().map(|waiting| *waiting) else {
            return;
        };
        let context = CommandContext {
            chat: Arc::clone(&self.chat),
            address: self.address,
            user: self.user.clone(),
            device: self.device(),
            shutdown: Arc::clone(&self.shutdown),
        };
        self.running = Some((id, context.start(request)));
    }

    /// Ready when the command has finished and its answer is queued.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((id, command)) = &mut self.running else {
            return Poll::Pending;
        };
        let id = *id;
        let done = ready!(command.as_mut().poll(cx));
        self.running = None;
        match done {
            Ok(done) => self.finish(id, done),
            Err(fault) => self.answer(id, PendingReply::Reply(fault.into())),
        }
        Poll::Ready(())
    }

    fn finish(&mut self, id: Option<RequestId>, done: Done) {
        let reply = match done {
            Done::Reply(reply) => reply,
            Done::Part(Part { replies, rest }) => {
                let replies = replies.into_iter();
                self.answers
                    .extend(replies.map(|reply| (id, PendingReply::Reply(reply))));
                self.running = rest.map(|rest| (id, continue_answer(rest)));
                return;
            }
            Done::Replies(replies) => {
                self.answers.extend(
                    replies
                        .into_iter()
                        .map(|reply| (id, PendingReply::Reply(reply))),
                );
                return;
            }
            Done::Permitted(send) => {
                let (append, permit) = *send;
                return self.append(id, append, permit);
            }
            Done::Creating(user, created) => {
                return self.answer(
                    id,
                    PendingReply::Created {
                        user,
                        created,
                        _permit: None,
                    },
                );
            }
            Done::Hello(session) => {
                self.sends.set_session(SendSession::Open(session));
                Reply::Ok(OkFields::Hello(VERSION, self.chat.rules().frame_bytes_max))
            }
            Done::NoSession(fault) => return self.refuse_hello(id, fault),
            Done::LoggedIn(authenticated) => {
                let may_receive = authenticated.has(Right::Receive);
                if self.account() != Some(&authenticated.account) || !may_receive {
                    self.stop_receiving();
                }
                self.become_user(authenticated);
                Reply::Ok(OkFields::None)
            }
            Done::LoggedOut => {
                self.user = None;
                self.shutdown.set_user(None);
                self.stop_receiving();
                Reply::Ok(OkFields::None)
            }
            Done::Receiving(authenticated, subscription) => {
                let queued = subscription.queued();
                self.become_user(authenticated);
                self.stop_receiving();
                self.deliver(DeliveryReader::new(subscription));
                Reply::Ok(OkFields::Queued(queued))
            }
            Done::Attached(authenticated, attached) => {
                let fields = OkFields::Attached(attached.inbox.queued(), attached.rooms.len());
                self.become_user(authenticated);
                self.stop_receiving();
                self.deliver(DeliveryReader::attached(*attached));
                Reply::Ok(fields)
            }
        };
        self.answer(id, PendingReply::Reply(reply));
    }

    fn poll_end(&mut self) -> Poll<Output> {
        if !self.is_idle() {
            return Poll::Pending;
        }
        self.stop_receiving();
        match self.stage {
            ConnectionStage::Ending { bye: true } => {
                self.stage = ConnectionStage::Ending { bye: false };
                Poll::Ready(Output::Bye(ByeReason::Shutdown))
            }
            _ => {
                self.stage = ConnectionStage::Closed;
                Poll::Ready(Output::Close)
            }
        }
    }

    /// Ends the delivery without a `bye`.
    fn stop_receiving(&mut self) {
        self.ended = None;
        self.held = None;
        if let Some(delivery) = &mut self.delivery {
            delivery.end();
        }
    }

    fn handle_ack(&mut self, log: Option<&RoomName>, sequence: Sequence) {
        let Err(never_pushed) = self.acknowledge(log, sequence) else {
            return;
        };
        let (user, address) = (
            self.delivery.as_ref().map(|r| &r.account().name),
            self.address,
        );
        match user {
            // Acknowledgements have no limit of their own, and must not flood the log.
            Some(user) if !std::mem::replace(&mut self.has_warned_of_ack, true) => {
                let highest_pushed = never_pushed.highest;
                tracing::warn!(%user, %sequence, %highest_pushed, %address, "ack ignored");
            }
            Some(user) => tracing::debug!(%user, %sequence, %address, "ack ignored"),
            None => tracing::debug!(%sequence, %address, "ack ignored: connection has no delivery"),
        }
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.count_redeliveries();
        let metrics = &self.chat.metrics;
        metrics.add(&mut self.counts);
        if self.is_behind {
            metrics.record_lag(false);
        }
    }
}

impl std::fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConnection")
            .field("address", &self.address)
            .field("user", &self.account())
            .finish_non_exhaustive()
    }
}
