//! Unanswered requests, and the authenticated user.
//!
//! Commands enter in the order of the calls and get an id. They wait to be
//! written ([`Outbox::write_next`]), then to be answered ([`Outbox::reply`]),
//! to expire ([`Outbox::expire`]) or to be repeated on another link
//! ([`Outbox::link_lost`]). No I/O and no clock: times are arguments.
//!
//! A request that changes the identity (`login`, `connect`, `disconnect`, and
//! `delete` or `password` of the current user) is a barrier: it waits until
//! nothing is in flight, and no new request is written before its answer. So
//! every request in flight belongs to the current identity and can be repeated
//! under it.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use hark_protocol::correlation::Calls;
use hark_protocol::limits::SENDS_UNANSWERED_MAX;
use hark_protocol::{
    Code, Failure, OkFields, Refusal, Reply, Request, RequestId, RoomReply, RoomRequest,
    SessionToken, UserName,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::RequestError;
use crate::handle::Names;
use crate::identity::Identity;
use crate::journal::SendTag;

/// Boundary of the id ranges: sends take the ids below, other requests the ids
/// from here, so that the server's record of a session stays dense.
const OTHER_IDS: u32 = 1 << 31;

/// Largest number of pending requests other than sends.
const OTHERS_MAX: usize = 256;

/// An answer of the server.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) fields: OkFields,
    /// The names, if this answers `list` or `members`.
    pub(crate) names: Vec<UserName>,
    /// The parts, if this answers `rooms`, `devices` or `history`.
    pub(crate) parts: Vec<RoomReply>,
    /// Whether names or parts were dropped because of the client's own limit.
    pub(crate) is_cut: bool,
}

/// A request, and the receiver of its answer.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: Request,
    /// `None` for the client's own pings.
    pub(crate) answer: Option<oneshot::Sender<Result<Answer, RequestError>>>,
    /// Whether an `attach` becomes a `connect` if the server has no devices.
    pub(crate) or_connect: bool,
    /// The name of a send in the journal of the application.
    pub(crate) tag: Option<SendTag>,
}

/// The reason why a request was not written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotWritten {
    /// It does not fit into a frame.
    TooLarge(String),
    /// The application has withdrawn it, or cannot record it.
    Withheld(String),
}

/// The effect of a reply beyond its request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The client now receives for the user, with this many messages queued.
    Receives(UserName, u64),
    /// The server failed: the link must be closed, and unanswered requests
    /// repeated on another.
    GiveUp(Failure, Cow<'static, str>),
}

/// A point in time by two clocks: the monotonic clock, which may stand still
/// while the machine is suspended, and the wall clock, which may be set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) steady: Instant,
    pub(crate) wall: SystemTime,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self {
            steady: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

/// A pending request.
#[derive(Debug)]
struct Pending {
    command: QueuedRequest,
    answer: Answer,
    /// Time of the first write.
    first_written: Option<Now>,
    /// Whether this is a barrier.
    is_barrier: bool,
    /// Whether this was repeated on another link.
    is_repeat: bool,
}

/// All unanswered requests.
#[derive(Debug)]
pub(crate) struct Outbox {
    session: SessionToken,
    pub(crate) identity: Identity,
    repeat_for: Duration,
    names_max: usize,
    next_send: u32,
    next_other: u32,
    /// Requests that were written at least once.
    calls: Calls<RequestId, Instant, Pending>,
    /// Requests in `calls` that must be repeated, in ascending order of id.
    repeats: VecDeque<RequestId>,
    /// Requests that were never written.
    fresh: VecDeque<(RequestId, Pending)>,
    /// Ids of all sends in `calls` and `fresh`.
    sends: BTreeSet<RequestId>,
    /// A barrier that waits until the requests before it are answered.
    barrier: Option<QueuedRequest>,
    /// Whether a barrier is in flight.
    is_barrier_in_flight: bool,
    /// Whether the barrier is a `connect` or `attach`.
    is_connecting: bool,
}

impl Outbox {
    pub(crate) fn new(session: SessionToken, repeat_for: Duration, names_max: usize) -> Self {
        Self {
            session,
            identity: Identity::default(),
            repeat_for,
            names_max,
            next_send: 1,
            next_other: OTHER_IDS,
            calls: Calls::default(),
            repeats: VecDeque::new(),
            fresh: VecDeque::new(),
            sends: BTreeSet::new(),
            barrier: None,
            is_barrier_in_flight: false,
            is_connecting: false,
        }
    }

    pub(crate) const fn session(&self) -> &SessionToken {
        &self.session
    }

    /// Returns the number of unanswered requests.
    pub(crate) fn len(&self) -> usize {
        self.calls.len() + self.fresh.len() + usize::from(self.barrier.is_some())
    }

    /// Returns whether another command may be accepted.
    pub(crate) fn has_room(&self) -> bool {
        self.barrier.is_none()
            && !self.is_barrier_in_flight
            && self.next_send < OTHER_IDS
            && self.len() - self.sends.len() < OTHERS_MAX
            && self.is_next_send_remembered()
    }

    /// Returns whether the next send keeps all pending sends within the last
    /// 1,024 ids, which the server remembers. Beyond that, the oldest could not
    /// be repeated.
    fn is_next_send_remembered(&self) -> bool {
        let oldest = self.sends.first().map_or(self.next_send, |id| id.value());
        ((self.next_send - oldest) as usize) < SENDS_UNANSWERED_MAX
    }

    /// Accepts a command, after all earlier ones. Requires [`Self::has_room`].
    pub(crate) fn accept(&mut self, command: QueuedRequest) {
        if self.identity.is_changed_by(&command.request) && self.len() > 0 {
            self.barrier = Some(command);
        } else {
            self.enqueue(command);
        }
    }

    fn enqueue(&mut self, command: QueuedRequest) {
        let is_send = matches!(command.request, Request::Send { .. });
        if let (true, Some(why)) = (is_send, self.identity.loss()) {
            let outcome = RequestError::NotSent(why.clone());
            return end(command, Err(outcome));
        }
        let is_barrier = self.identity.is_changed_by(&command.request);
        if is_barrier {
            self.is_barrier_in_flight = true;
            self.is_connecting = matches!(
                command.request,
                Request::Connect { .. } | Request::Room(RoomRequest::Attach { .. })
            );
        }
        if let Some(id) = self.new_id(is_send) {
            let pending = Pending {
                command,
                answer: Answer::default(),
                first_written: None,
                is_barrier,
                is_repeat: false,
            };
            self.fresh.push_back((id, pending));
        }
    }

    /// Returns an unused id. Ids of sends are never reused; the others wrap
    /// around after 2³¹ requests, when the first has long expired.
    fn new_id(&mut self, is_send: bool) -> Option<RequestId> {
        if is_send {
            let id = RequestId::new(self.next_send)?;
            self.next_send += 1;
            self.sends.insert(id);
            return Some(id);
        }
        let id = RequestId::new(self.next_other)?;
        self.next_other = self.next_other.checked_add(1).unwrap_or(OTHER_IDS);
        Some(id)
    }

    /// Returns whether a `connect` or `attach` is in flight, during which nothing may be
    /// acknowledged.
    pub(crate) const fn is_connecting(&self) -> bool {
        self.is_connecting
    }

    /// Passes the next request to `write`, repeats before new ones, and returns
    /// whether there was one. `write` gets the tag of a send at its first write.
    pub(crate) fn write_next(
        &mut self,
        now: Now,
        write: impl FnOnce(RequestId, &Request, Option<SendTag>) -> Result<(), NotWritten>,
    ) -> bool {
        let Some((id, mut pending)) = self.next_to_write() else {
            return false;
        };
        if self.may_be_forgotten(&pending, now) {
            self.conclude_unknown(
                id,
                pending,
                "this machine was suspended for too long to repeat the request",
            );
            return true;
        }
        let is_first = pending.first_written.is_none();
        let tag = pending.command.tag.filter(|_| is_first);
        match write(id, &pending.command.request, tag) {
            Ok(()) => {
                pending.first_written = pending.first_written.or(Some(now));
                self.register(id, pending);
            }
            Err(NotWritten::TooLarge(why)) if is_first => {
                self.conclude(id, pending, Err(Refusal::new(Code::TooLarge, why).into()));
            }
            Err(NotWritten::Withheld(why)) if is_first => {
                self.conclude(id, pending, Err(RequestError::NotSent(why.into())));
            }
            Err(NotWritten::TooLarge(why) | NotWritten::Withheld(why)) => {
                self.conclude_unknown(id, pending, why);
            }
        }
        true
    }

    /// Returns whether the server may have forgotten the request.
    /// [`Self::expire`] watches the monotonic clock; the wall clock covers the
    /// time for which this machine was suspended.
    fn may_be_forgotten(&self, pending: &Pending, now: Now) -> bool {
        pending.first_written.is_some_and(|first| {
            now.wall
                .duration_since(first.wall)
                .is_ok_and(|passed| passed > self.repeat_for)
        })
    }

    fn next_to_write(&mut self) -> Option<(RequestId, Pending)> {
        while let Some(id) = self.repeats.pop_front() {
            if let Some(pending) = self.calls.remove(&id) {
                return Some((id, pending));
            }
        }
        self.fresh.pop_front()
    }

    fn register(&mut self, id: RequestId, pending: Pending) {
        let deadline = pending
            .first_written
            .map(|first| first.steady + self.repeat_for);
        let registered = self.calls.register(id, deadline, pending);
        debug_assert!(
            registered.is_ok(),
            "the id of a pending request is not reused"
        );
    }

    /// Processes a reply. A reply to a request that is no longer pending is
    /// ignored.
    pub(crate) fn reply(&mut self, id: RequestId, reply: Reply) -> Effect {
        let Some(mut pending) = self.calls.remove(&id) else {
            return Effect::None;
        };
        match reply {
            Reply::Ok(fields) => return self.succeed(id, pending, fields),
            Reply::NotOk(refusal) if pending.falls_back(&refusal) => {
                pending.connect();
                self.fresh.push_front((id, pending));
            }
            Reply::NotOk(refusal) if pending.is_done_by(&refusal) => {
                return self.succeed(id, pending, OkFields::None);
            }
            Reply::NotOk(refusal) => self.conclude(id, pending, Err(refusal.into())),
            Reply::List(names) => {
                pending.answer.add(names, self.names_max);
                self.register(id, pending);
            }
            Reply::Error {
                failure,
                explanation,
            } => return self.fail(id, pending, failure, explanation),
            Reply::Room(part) => {
                pending.answer.add_part(part, self.names_max);
                self.register(id, pending);
            }
            // Neither is a reply, despite its id.
            Reply::String(_) | Reply::Bye(_) => self.register(id, pending),
        }
        Effect::None
    }

    /// Processes a reply that cannot be decoded: the outcome is unknown.
    pub(crate) fn reply_unreadable(&mut self, id: RequestId, unreadable: &Refusal) {
        if let Some(pending) = self.calls.remove(&id) {
            let why = format!("malformed answer: {}", unreadable.explanation);
            self.conclude_unknown(id, pending, why);
        }
    }

    /// Enqueues a ping whose answer is ignored.
    pub(crate) fn ping(&mut self) {
        self.enqueue(QueuedRequest {
            request: Request::Ping,
            answer: None,
            or_connect: false,
            tag: None,
        });
    }

    fn succeed(&mut self, id: RequestId, mut pending: Pending, fields: OkFields) -> Effect {
        let receives = self.identity.apply(&pending.command.request, &fields);
        let mut answer = std::mem::take(&mut pending.answer);
        answer.fields = fields;
        self.conclude(id, pending, Ok(answer));
        receives.map_or(Effect::None, |(user, queued)| {
            Effect::Receives(user, queued)
        })
    }

    fn fail(
        &mut self,
        id: RequestId,
        pending: Pending,
        failure: Failure,
        explanation: Cow<'static, str>,
    ) -> Effect {
        if is_repeatable(&pending.command.request) {
            self.register(id, pending);
            return Effect::GiveUp(failure, explanation);
        }
        self.conclude_unknown(id, pending, explanation.clone());
        match failure {
            Failure::Unavailable => Effect::None,
            Failure::Protocol => Effect::GiveUp(failure, explanation),
        }
    }

    /// Ends the link: repeatable requests are queued again in ascending order
    /// of id, and the outcome of the others is unknown.
    pub(crate) fn link_lost(&mut self) {
        self.repeats.clear();
        let mut open = self.calls.drain();
        open.sort_unstable_by_key(|(id, _)| *id);
        for (id, mut pending) in open {
            match &pending.command.request {
                // A keepalive ping concerns the lost link alone.
                Request::Ping if pending.command.answer.is_none() => {
                    self.conclude(id, pending, Ok(Answer::default()));
                }
                request if is_repeatable(request) => {
                    pending.answer = Answer::default();
                    pending.is_repeat = true;
                    self.register(id, pending);
                    self.repeats.push_back(id);
                }
                // A new connection starts anonymous.
                Request::Disconnect => drop(self.succeed(id, pending, OkFields::None)),
                _ => {
                    self.conclude_unknown(id, pending, "the connection was lost before the answer")
                }
            }
        }
        self.drop_sends_of_lost_user();
    }

    /// Drops authentication for this reason, and returns the former user.
    /// Pending sends of that user are not sent as any other user.
    pub(crate) fn identity_lost(&mut self, refusal: &Refusal) -> Option<UserName> {
        let user = self.identity.lose(refusal)?;
        self.drop_sends_of_lost_user();
        Some(user)
    }

    fn drop_sends_of_lost_user(&mut self) {
        let Some(why) = self.identity.loss().cloned() else {
            return;
        };
        let is_send = |pending: &Pending| matches!(pending.command.request, Request::Send { .. });
        let (unwritten, kept) = std::mem::take(&mut self.fresh)
            .into_iter()
            .partition(|(_, pending)| is_send(pending));
        self.fresh = kept;
        let unwritten: VecDeque<(RequestId, Pending)> = unwritten;
        for (id, pending) in unwritten {
            self.conclude(id, pending, Err(RequestError::NotSent(why.clone())));
        }
        for id in self.repeats.clone() {
            if let Some(pending) = self.calls.remove_if(&id, is_send) {
                self.conclude_unknown(id, pending, why.clone());
            }
        }
    }

    /// Returns the time at which the next request expires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.calls.next_deadline().copied()
    }

    /// Expires overdue requests; their outcome is unknown.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((id, pending)) = self.calls.expire_next(&now) {
            self.conclude_unknown(id, pending, "no answer in time");
        }
    }

    /// Returns whether the ids of the session are exhausted and no send is
    /// pending.
    pub(crate) fn is_session_exhausted(&self) -> bool {
        self.next_send >= OTHER_IDS && self.sends.is_empty()
    }

    /// Begins another session, with ids from 1.
    pub(crate) fn renew_session(&mut self, session: SessionToken) {
        self.session = session;
        self.next_send = 1;
    }

    /// Ends all requests because the client is closed, and returns their
    /// number.
    pub(crate) fn abandon(&mut self) -> usize {
        let count = self.len();
        for (_, pending) in self.calls.drain() {
            let outcome = RequestError::unknown(&pending.command.request, "the client is closed");
            end(pending.command, Err(outcome));
        }
        let unwritten = self
            .fresh
            .drain(..)
            .map(|(_, pending)| pending.command)
            .chain(self.barrier.take());
        unwritten.for_each(|command| end(command, Err(RequestError::closed())));
        self.sends.clear();
        count
    }

    fn conclude_unknown(
        &mut self,
        id: RequestId,
        pending: Pending,
        why: impl Into<Cow<'static, str>>,
    ) {
        let outcome = RequestError::unknown(&pending.command.request, why);
        self.conclude(id, pending, Err(outcome));
    }

    /// Ends a request, and releases a barrier that waited for it.
    fn conclude(&mut self, id: RequestId, pending: Pending, outcome: Result<Answer, RequestError>) {
        self.sends.remove(&id);
        if pending.is_barrier {
            self.is_barrier_in_flight = false;
            self.is_connecting = false;
        }
        end(pending.command, outcome);
        if self.calls.is_empty()
            && self.fresh.is_empty()
            && let Some(barrier) = self.barrier.take()
        {
            self.enqueue(barrier);
        }
    }
}

impl Answer {
    /// Returns the names.
    pub(crate) fn into_names(self) -> Names {
        let is_truncated = |(_, truncated)| truncated;
        Names {
            is_truncated: self.is_cut || self.fields.as_listed().is_some_and(is_truncated),
            names: self.names,
        }
    }

    /// Adds names up to the limit `names_max`.
    fn add(&mut self, names: Vec<UserName>, names_max: usize) {
        let room = names_max.saturating_sub(self.names.len());
        self.is_cut |= names.len() > room;
        self.names.extend(names.into_iter().take(room));
    }

    /// Adds a part up to the limit `parts_max`.
    fn add_part(&mut self, part: RoomReply, parts_max: usize) {
        if self.parts.len() < parts_max {
            self.parts.push(part);
        } else {
            self.is_cut = true;
        }
    }
}

impl Pending {
    /// Returns whether this refusal of a repeat shows that the first attempt
    /// succeeded: a user that has left a room may not see it any more.
    fn is_done_by(&self, refusal: &Refusal) -> bool {
        let is_leave = matches!(self.command.request, Request::Room(RoomRequest::Leave(_)));
        self.is_repeat && is_leave && refusal.code == Code::NoSuchUser
    }

    /// Returns whether this refusal turns an `attach` into a `connect`.
    fn falls_back(&self, refusal: &Refusal) -> bool {
        self.command.or_connect && refusal.code == Code::UnknownCommand
    }

    /// Turns an `attach` into a `connect`. It stays the barrier that it is.
    fn connect(&mut self) {
        self.command.or_connect = false;
        if let Request::Room(RoomRequest::Attach { user, password, .. }) = &self.command.request {
            self.command.request = Request::Connect {
                user: user.clone(),
                password: password.clone(),
            };
        }
    }
}

/// Returns whether the protocol allows repeating the request if its answer is
/// lost.
const fn is_repeatable(request: &Request) -> bool {
    matches!(
        request,
        Request::Send { .. }
            | Request::Connect { .. }
            | Request::Login { .. }
            | Request::List { .. }
            | Request::Ping
            | Request::Room(_)
    )
}

fn end(command: QueuedRequest, outcome: Result<Answer, RequestError>) {
    if let Some(answer) = command.answer {
        // The caller may have dropped its future; the request has taken effect
        // nevertheless.
        drop(answer.send(outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        let repeat_for = Duration::from_secs(540);
        Outbox::new("token".parse().unwrap(), repeat_for, 10)
    }

    type Waiting = oneshot::Receiver<Result<Answer, RequestError>>;

    fn send(outbox: &mut Outbox) -> Waiting {
        let (answer, waiting) = oneshot::channel();
        let request = Request::Send {
            user: "bob".parse().unwrap(),
            text: "x".into(),
        };
        outbox.accept(QueuedRequest {
            request,
            answer: Some(answer),
            or_connect: false,
            tag: None,
        });
        waiting
    }

    /// Writes all pending requests and returns their ids.
    fn write_all(outbox: &mut Outbox, now: Now) -> Vec<u32> {
        let mut ids = Vec::new();
        while outbox.write_next(now, |id, _, _| {
            ids.push(id.value());
            Ok(())
        }) {}
        ids
    }

    #[tokio::test]
    async fn exhausted_session_is_renewed() {
        let mut outbox = outbox();
        outbox.next_send = OTHER_IDS - 1;
        let last = send(&mut outbox);
        assert!(!outbox.has_room() && !outbox.is_session_exhausted());
        assert_eq!(write_all(&mut outbox, Now::read()), [OTHER_IDS - 1]);
        outbox.reply(
            RequestId::new(OTHER_IDS - 1).unwrap(),
            Reply::Ok(OkFields::None),
        );
        last.await.unwrap().unwrap();
        assert!(outbox.is_session_exhausted());
        outbox.renew_session("another".parse().unwrap());
        assert!(outbox.has_room());
        drop(send(&mut outbox));
        assert_eq!(write_all(&mut outbox, Now::read()), [1]);
    }

    #[tokio::test]
    async fn send_is_not_repeated_after_long_suspend() {
        for (asleep_s, expected) in [(500, &[1][..]), (600, &[])] {
            let mut outbox = outbox();
            let mut waiting = send(&mut outbox);
            let now = Now::read();
            assert_eq!(write_all(&mut outbox, now), [1]);
            outbox.link_lost();
            let later = Now {
                wall: now.wall + Duration::from_secs(asleep_s),
                ..now
            };
            assert_eq!(write_all(&mut outbox, later), expected);
            let is_unknown = matches!(waiting.try_recv(), Ok(Err(RequestError::Unknown { .. })));
            assert_eq!(is_unknown, expected.is_empty());
        }
    }

    fn send_tagged(outbox: &mut Outbox, tag: u64) -> Waiting {
        let (answer, waiting) = oneshot::channel();
        let request = Request::Send {
            user: "bob".parse().unwrap(),
            text: "x".into(),
        };
        outbox.accept(QueuedRequest {
            request,
            answer: Some(answer),
            or_connect: false,
            tag: Some(SendTag(tag)),
        });
        waiting
    }

    #[tokio::test]
    async fn only_first_write_passes_the_tag() {
        let mut outbox = outbox();
        let _waiting = send_tagged(&mut outbox, 7);
        for expected in [Some(SendTag(7)), None] {
            let mut passed = Vec::new();
            while outbox.write_next(Now::read(), |_, _, tag| {
                passed.push(tag);
                Ok(())
            }) {}
            assert_eq!(passed, [expected]);
            outbox.link_lost();
        }
    }

    #[tokio::test]
    async fn withheld_send_is_not_sent() {
        let mut outbox = outbox();
        let waiting = send_tagged(&mut outbox, 7);
        let withhold = |_, _: &Request, _| Err(NotWritten::Withheld("withdrawn".to_owned()));
        assert!(outbox.write_next(Now::read(), withhold));
        let outcome = waiting.await.unwrap();
        assert!(matches!(outcome, Err(RequestError::NotSent(why)) if why == "withdrawn"));
        assert_eq!(outbox.len(), 0);
    }
}
