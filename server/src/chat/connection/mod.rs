//! One connection as the chat sees it: who it is, what it has under way, and
//! what it receives. A front passes requests in and polls for what goes out; it
//! adds no rules.
//!
//! Requests take effect in the order in which they come. Sends and creates are
//! pipelined: the store decides them in that order. Everything else waits until
//! they are decided, and what comes after waits for it.

mod commands;

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hark_protocol::limits::{SENDS_UNANSWERED_MAX, VERSION};
use hark_protocol::{
    ByeReason, Code, Malformed, OkFields, Refusal, Reply, Request, RequestId, Sequence, SessionToken,
    UserName,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::accounts::Entered;
use super::control::{Control, Wish};
use super::pace::{Pace, Turn};
use super::reception::{Received, Reception};
use super::replies::{created_reply, sent_reply};
use super::send_sessions::OpenSession;
use super::{Chat, Fault, NeverPushed};
use crate::limit::network;
use crate::store::{
    Account, Append, Completer, Created, End, Fence, Message, Outcome, Pending, Subscription, Unavailable,
};

/// The output of a connection.
#[derive(Debug)]
pub enum Output {
    /// The reply to a request.
    Reply(Option<RequestId>, Reply),
    /// A message for the user who is connected.
    Push(Arc<Message>),
    /// It receives no more.
    Bye(ByeReason),
    /// Nothing more goes out; the connection is to be closed. Acknowledgements
    /// that still come in are taken.
    Close,
}

/// One connection. Dropping it gives back what it holds; what the store has
/// taken on goes on.
pub struct ClientConnection {
    chat: Arc<Chat>,
    address: IpAddr,
    control: Arc<Control>,
    turn: Turn,
    user: Option<Entered>,
    send_session: Option<Box<SendSession>>,
    /// There is one from the first send on.
    fence: Option<Fence>,
    /// A send of its session is undecided: whatever became of those after it,
    /// they are repeated with it.
    undecided: bool,
    /// Nothing has been asked yet: `hello` is welcome.
    fresh: bool,
    /// Sends of this burst, which the store gets all at once.
    sends: Vec<(Append, Completer<Outcome>)>,
    /// Decided in this order.
    answers: VecDeque<(Option<RequestId>, Answer)>,
    /// A request that waits until `answers` is empty.
    waiting: Option<Box<(Option<RequestId>, Request)>>,
    operation: Option<(Option<RequestId>, Operation)>,
    reception: Option<Reception>,
    /// The reception has ended and the peer has not been told.
    ended: Option<End>,
    end: Stage,
}

/// In which session it sends.
enum SendSession {
    /// In one that it has open, in the order of the ids.
    Open(OpenSession),
    /// In one that others may send in at the same time, in any order.
    Shared(SessionToken),
}

/// How far the end of the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// What is under way is answered, then it ends, with a `bye` or without.
    Ending {
        bye: bool,
    },
    Closed,
}

/// An answer that is there, or that the store owes.
enum Answer {
    Reply(Reply),
    Sent {
        to: UserName,
        outcome: Pending<Outcome>,
    },
    /// It holds its room until it is answered.
    Created {
        user: UserName,
        created: Pending<Created>,
        _room: Option<OwnedSemaphorePermit>,
    },
}

/// A command that takes its time.
type Operation = Pin<Box<dyn Future<Output = Result<Done, Fault>> + Send>>;

/// What comes of an [`Operation`], for the connection to act upon.
enum Done {
    Replies(Vec<Reply>),
    Reply(Reply),
    Hello(OpenSession),
    NoSession(Fault),
    Entered(Entered),
    Receiving(Entered, Subscription),
    Creating(UserName, Pending<Created>),
    RoomFor(Box<Append>),
}

impl ClientConnection {
    /// A connection from `address` that is nobody, and listens to `control`.
    #[must_use]
    pub fn new(chat: Arc<Chat>, address: IpAddr, control: Arc<Control>) -> Self {
        Self {
            turn: Turn::of(address, &chat.rules.rates),
            chat,
            address,
            control,
            user: None,
            send_session: None,
            fence: None,
            undecided: false,
            fresh: true,
            sends: Vec::new(),
            answers: VecDeque::new(),
            waiting: None,
            operation: None,
            reception: None,
            ended: None,
            end: Stage::Open,
        }
    }

    /// Its commands count in the pace of a connection.
    #[must_use]
    pub fn at_pace(self, pace: Option<Arc<Pace>>) -> Self {
        Self { turn: self.turn.at_pace(pace), ..self }
    }

    /// Its sends are of this session, without a `hello`. Any number of connections
    /// may send in it at the same time, with their ids in any order.
    #[must_use]
    pub fn in_session(self, session: SessionToken) -> Self {
        Self { send_session: Some(SendSession::Shared(session).into()), ..self }
    }

    /// Whether the next request can be taken. Until then it stays unread.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.end == Stage::Open
            && self.turn.paused_until().is_none()
            && self.waiting.is_none()
            && self.operation.is_none()
            && self.answers.len() < SENDS_UNANSWERED_MAX
    }

    /// Whether nothing that was asked is unanswered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_none() && self.operation.is_none() && self.answers.is_empty()
    }

    /// Whether something was pushed that is not acknowledged.
    #[must_use]
    pub fn awaits_ack(&self) -> bool {
        self.reception.as_ref().is_some_and(|reception| reception.window().awaits_ack())
    }

    /// When to poll again even if nothing happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if self.end != Stage::Open {
            return None;
        }
        let retry_at = self.reception.as_ref().and_then(|reception| reception.window().retry_at());
        [self.turn.paused_until(), retry_at].into_iter().flatten().min()
    }

    /// Until when it takes no request, since too many have come.
    #[must_use]
    pub const fn paused_until(&self) -> Option<Instant> {
        self.turn.paused_until()
    }

    /// Counts what was read of its connection.
    pub fn count_bytes(&mut self, bytes: usize, now: Instant) {
        self.turn.read(bytes, now);
    }

    /// Takes a request, or what was wrong with one. Only while
    /// [`Self::is_ready`], but for [`Request::Ack`], which is always taken. What
    /// is sent gets to the store at the next [`Self::poll`] or other request.
    pub fn handle(&mut self, id: Option<RequestId>, request: Result<Request, Malformed>) {
        let fresh = std::mem::replace(&mut self.fresh, false);
        self.count(&request);
        if !matches!(request, Ok(Request::Send { .. })) {
            self.pass_sends_on();
        }
        match request {
            Err(Malformed { refusal, is_hello: true }) => self.refuse_hello(id, refusal),
            Err(malformed) => self.answer(id, Answer::Reply(Reply::NotOk(malformed.refusal))),
            Ok(Request::Ack { sequence }) => self.handle_ack(sequence),
            Ok(Request::Ping) => self.answer(id, Answer::Reply(Reply::Ok(OkFields::none()))),
            Ok(Request::Send { user, text }) => self.send(id, user, text),
            Ok(Request::Create { user, password: None }) if self.chat.anybody_creates(&user) => {
                self.create_open(id, user);
            }
            Ok(Request::Hello { .. }) if !fresh => {
                self.refuse_hello(id, Refusal::new(Code::BadRequest, "hello comes first, and once"));
            }
            Ok(request) => self.waiting = Some((id, request).into()),
        }
    }

    /// What was sent gets to the store now, and not only at the next
    /// [`Self::poll`].
    pub fn pass_sends_on(&mut self) {
        if !self.sends.is_empty() {
            self.chat.store.append_all(&mut self.sends);
            self.sends = Vec::new();
        }
    }

    /// The reader has everything up to the last push; it has no acknowledgements
    /// of its own (the classic framing).
    pub fn acknowledge_all(&mut self) {
        if let Some(pushed) = self.reception.as_ref().map(|reception| reception.window().pushed()) {
            self.handle_ack(pushed);
        }
    }

    /// The reader has everything up to `sequence`: what [`Request::Ack`] says,
    /// for a front that answers to it.
    ///
    /// # Errors
    /// [`NeverPushed`] for a number above all that were pushed since the latest
    /// `connect`; it counts for nothing.
    pub fn acknowledge(&mut self, sequence: Sequence) -> Result<(), NeverPushed> {
        match &mut self.reception {
            Some(reception) => reception.acknowledge(sequence, &*self.chat.store),
            None => Err(NeverPushed { highest: Sequence(0) }),
        }
    }

    /// Ends the connection once what is under way has been answered.
    pub fn end(&mut self) {
        if self.end == Stage::Open {
            self.end = Stage::Ending { bye: false };
        }
    }

    /// Ready when the connection has to end at once: it is dropped, whatever it
    /// still has to say. To be polled first, each time that its task is: this is
    /// what wakes it when it is told to end. And even while nothing can be
    /// written, since another connection may wait for it.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.control.poll(cx) {
            Poll::Ready(Wish::Close) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// What goes out next.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Output> {
        if self.end == Stage::Closed {
            return Poll::Pending;
        }
        self.turn.come(now);
        if self.end == Stage::Open && self.control.is_told() {
            self.end = Stage::Ending { bye: true };
        }
        loop {
            if let Poll::Ready((id, reply)) = self.poll_requests(cx) {
                return Poll::Ready(Output::Reply(id, reply));
            }
            if let Some(end) = self.ended.take() {
                return Poll::Ready(Output::Bye(self.bye(end)));
            }
            if self.end != Stage::Open {
                return self.poll_end();
            }
            let Some(reception) = &mut self.reception else {
                return Poll::Pending;
            };
            match ready!(reception.poll(cx, now, &*self.chat.store)) {
                Received::Message(message) => return Poll::Ready(Output::Push(message)),
                // The store resolves a request before it tells of its effects:
                // whoever deletes itself gets the reply first, and a `connect`
                // that takes over from its own connection has replaced this.
                Received::End(end) => self.ended = Some(end),
            }
        }
    }

    /// Counts a request. An acknowledgement only counts as the bytes that it is:
    /// to take it later would hold up what it makes room for.
    fn count(&mut self, request: &Result<Request, Malformed>) {
        let bytes = match request {
            Ok(Request::Ack { .. }) => return,
            Ok(Request::Send { text, .. }) => text.len(),
            _ => 0,
        };
        let user = self.user.as_ref().map(|entered| &entered.account.name);
        self.turn.request(bytes, user, &self.chat.users);
    }

    /// It is somebody from now on. That is a command of this user, so that one
    /// who goes too fast goes no faster on another connection.
    fn become_user(&mut self, entered: Entered) {
        self.turn.enter(&entered.account.name, &self.chat.users);
        self.user = Some(entered);
    }

    /// Where it comes from, unless it may have as much as it likes.
    fn network(&self) -> Option<IpAddr> {
        (!self.chat.rules.rates.spare(self.address)).then(|| network(self.address))
    }

    /// The account that it is.
    fn account(&self) -> Option<&Account> {
        self.user.as_ref().map(|entered| &entered.account)
    }

    fn bye(&mut self, end: End) -> ByeReason {
        match end {
            End::TakenOver => ByeReason::TakenOver,
            End::Deleted => {
                self.user = None;
                ByeReason::Deleted
            }
        }
    }

    fn answer(&mut self, id: Option<RequestId>, answer: Answer) {
        self.answers.push_back((id, answer));
    }

    /// Refuses a `hello` and ends the connection: a send behind it would be
    /// stored outside of its session, and stored again by a repeat.
    fn refuse_hello(&mut self, id: Option<RequestId>, why: impl Into<Fault>) {
        let fault: Fault = why.into();
        self.end();
        self.answer(id, Answer::Reply(fault.into()));
    }

    /// The oldest answer, once it is decided.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<(Option<RequestId>, Reply)> {
        let Some((id, answer)) = self.answers.front_mut() else {
            return Poll::Pending;
        };
        let id = *id;
        let reply = match answer {
            Answer::Reply(reply) => std::mem::replace(reply, Reply::Ok(OkFields::none())),
            Answer::Created { user, created, .. } => match ready!(Pin::new(created).poll(cx)) {
                Ok(created) => created_reply(created, user),
                Err(unavailable) => Fault::from(unavailable).into(),
            },
            Answer::Sent { to, outcome } => match ready!(Pin::new(outcome).poll(cx)) {
                Ok(_) if self.undecided => Fault::from(Unavailable).into(),
                Ok(outcome) => sent_reply(outcome, to, self.chat.rules.text_bytes_max()),
                Err(unavailable) => {
                    self.fence_off();
                    Fault::from(unavailable).into()
                }
            },
        };
        self.answers.pop_front();
        if self.answers.is_empty() {
            // A burst is over; an idle connection holds no memory for it.
            self.answers = VecDeque::new();
        }
        Poll::Ready((id, reply))
    }

    /// A send of a session is undecided: no later one may overtake its repeat.
    fn fence_off(&mut self) {
        if self.send_session.is_some() {
            self.undecided = true;
            self.fence.get_or_insert_default().close();
            self.end();
        }
    }

    /// The next reply to a request.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<(Option<RequestId>, Reply)> {
        loop {
            self.pass_sends_on();
            if !self.answers.is_empty() {
                return self.poll_answers(cx);
            }
            self.begin_waiting();
            if self.answers.is_empty() {
                ready!(self.poll_operation(cx));
            }
        }
    }

    /// Ready when the operation is over and there is something to answer.
    fn poll_operation(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((id, operation)) = &mut self.operation else {
            return Poll::Pending;
        };
        let id = *id;
        let done = ready!(operation.as_mut().poll(cx));
        self.operation = None;
        match done {
            Ok(done) => self.finish(id, done),
            Err(fault) => self.answer(id, Answer::Reply(fault.into())),
        }
        Poll::Ready(())
    }

    fn finish(&mut self, id: Option<RequestId>, done: Done) {
        let reply = match done {
            Done::Reply(reply) => reply,
            Done::Replies(replies) => {
                self.answers.extend(replies.into_iter().map(|reply| (id, Answer::Reply(reply))));
                return;
            }
            Done::RoomFor(append) => return self.append(id, *append),
            Done::Creating(user, created) => {
                return self.answer(id, Answer::Created { user, created, _room: None });
            }
            Done::Hello(session) => {
                self.send_session = Some(SendSession::Open(session).into());
                Reply::Ok(OkFields::hello(VERSION, self.chat.rules.frame_bytes_max))
            }
            Done::NoSession(fault) => return self.refuse_hello(id, fault),
            Done::Entered(entered) => {
                if self.account() != Some(&entered.account) {
                    self.end_reception();
                }
                self.become_user(entered);
                Reply::Ok(OkFields::none())
            }
            Done::Receiving(entered, receiver) => {
                let queued = receiver.queued();
                self.become_user(entered);
                self.reception = Some(Reception::new(receiver));
                self.ended = None;
                Reply::Ok(OkFields::queued(queued))
            }
        };
        self.answer(id, Answer::Reply(reply));
    }

    fn poll_end(&mut self) -> Poll<Output> {
        if !self.is_idle() {
            return Poll::Pending;
        }
        self.end_reception();
        match self.end {
            Stage::Ending { bye: true } => {
                self.end = Stage::Ending { bye: false };
                Poll::Ready(Output::Bye(ByeReason::Shutdown))
            }
            _ => {
                self.end = Stage::Closed;
                Poll::Ready(Output::Close)
            }
        }
    }

    /// The peer has asked for this end, or is told otherwise.
    fn end_reception(&mut self) {
        self.ended = None;
        if let Some(reception) = &mut self.reception {
            reception.end();
        }
    }

    fn handle_ack(&mut self, sequence: Sequence) {
        let Err(never_pushed) = self.acknowledge(sequence) else { return };
        let (user, address) = (self.reception.as_ref().map(|r| &r.account().name), self.address);
        match user {
            Some(user) => tracing::warn!(%user, %sequence, %address, %never_pushed, "ignoring an ack"),
            None => tracing::debug!(%sequence, %address, "an ack from a connection that received nothing"),
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
