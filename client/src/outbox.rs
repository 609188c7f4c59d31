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
use hark_protocol::{Code, Failure, OkFields, Refusal, Reply, Request, RequestId, SessionToken, UserName};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::RequestError;
use crate::identity::Identity;

/// Boundary of the id ranges: sends take the ids below, other requests the ids
/// from here, so that the server's record of a session stays dense.
const OTHER_IDS: u32 = 1 << 31;

/// Largest number of pending requests other than sends.
const OTHERS_MAX: usize = 256;

/// An answer of the server.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) fields: OkFields,
    /// The names, if this answers `list`.
    pub(crate) names: Vec<UserName>,
    /// Whether names were dropped because of the client's own limit.
    pub(crate) is_cut: bool,
}

/// A request, and the receiver of its answer.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request: Request,
    /// `None` for the client's own pings.
    pub(crate) answer: Option<oneshot::Sender<Result<Answer, RequestError>>>,
}

/// The effect of a reply beyond its request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The client now receives for the user, with this many messages queued.
    Receives(UserName, u64),
    /// The server failed: the link is to be closed, and unanswered requests are
    /// to be repeated on another.
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
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }
}

/// A pending request.
#[derive(Debug)]
struct Asked {
    command: Command,
    answer: Answer,
    /// Time of the first write.
    first_written: Option<Now>,
    /// Whether this is a barrier.
    is_alone: bool,
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
    calls: Calls<RequestId, Instant, Asked>,
    /// Requests in `calls` that have to be repeated, in ascending order of id.
    repeats: VecDeque<RequestId>,
    /// Requests that were never written.
    fresh: VecDeque<(RequestId, Asked)>,
    /// Ids of all sends in `calls` and `fresh`.
    sends: BTreeSet<RequestId>,
    /// A barrier that waits until the requests before it are answered.
    held: Option<Command>,
    /// Whether a barrier is in flight.
    is_settling: bool,
    /// Whether the barrier is a `connect`.
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
            held: None,
            is_settling: false,
            is_connecting: false,
        }
    }

    pub(crate) const fn session(&self) -> &SessionToken {
        &self.session
    }

    /// Returns the number of unanswered requests.
    pub(crate) fn len(&self) -> usize {
        self.calls.len() + self.fresh.len() + usize::from(self.held.is_some())
    }

    /// Returns whether another command may be accepted.
    pub(crate) fn has_room(&self) -> bool {
        self.held.is_none()
            && !self.is_settling
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

    /// Accepts a command, behind all earlier ones. Requires [`Self::has_room`].
    pub(crate) fn accept(&mut self, command: Command) {
        if self.identity.is_changed_by(&command.request) && self.len() > 0 {
            self.held = Some(command);
        } else {
            self.enqueue(command);
        }
    }

    fn enqueue(&mut self, command: Command) {
        let is_send = matches!(command.request, Request::Send { .. });
        if let (true, Some(why)) = (is_send, self.identity.loss()) {
            let outcome = RequestError::NotSent(why.clone());
            return end(command, Err(outcome));
        }
        let is_alone = self.identity.is_changed_by(&command.request);
        if is_alone {
            self.is_settling = true;
            self.is_connecting = matches!(command.request, Request::Connect { .. });
        }
        if let Some(id) = self.new_id(is_send) {
            let asked = Asked { command, answer: Answer::default(), first_written: None, is_alone };
            self.fresh.push_back((id, asked));
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

    /// Returns whether a `connect` is in flight, during which nothing may be
    /// acknowledged.
    pub(crate) const fn is_connecting(&self) -> bool {
        self.is_connecting
    }

    /// Passes the next request to `write`, repeats before new ones, and returns
    /// whether there was one. `write` fails if the request is too large.
    pub(crate) fn write_next(
        &mut self,
        now: Now,
        write: impl FnOnce(RequestId, &Request) -> Result<(), String>,
    ) -> bool {
        let Some((id, mut asked)) = self.next_to_write() else {
            return false;
        };
        if self.is_forgotten(&asked, now) {
            self.conclude_unknown(id, asked, "this machine was away for too long to ask again");
            return true;
        }
        match write(id, &asked.command.request) {
            Ok(()) => {
                asked.first_written = asked.first_written.or(Some(now));
                self.register(id, asked);
            }
            Err(why) if asked.first_written.is_some() => self.conclude_unknown(id, asked, why),
            Err(why) => self.conclude(id, asked, Err(Refusal::new(Code::TooLarge, why).into())),
        }
        true
    }

    /// Returns whether the server may have forgotten the request.
    /// [`Self::expire`] watches the monotonic clock; the wall clock covers the
    /// time for which this machine was suspended.
    fn is_forgotten(&self, asked: &Asked, now: Now) -> bool {
        asked.first_written.is_some_and(|first| {
            now.wall.duration_since(first.wall).is_ok_and(|passed| passed > self.repeat_for)
        })
    }

    fn next_to_write(&mut self) -> Option<(RequestId, Asked)> {
        while let Some(id) = self.repeats.pop_front() {
            if let Some(asked) = self.calls.remove(&id) {
                return Some((id, asked));
            }
        }
        self.fresh.pop_front()
    }

    fn register(&mut self, id: RequestId, asked: Asked) {
        let deadline = asked.first_written.map(|first| first.steady + self.repeat_for);
        let registered = self.calls.register(id, deadline, asked);
        debug_assert!(registered.is_ok(), "an id is not used while it is under way");
    }

    /// Processes a reply. A reply to a request that is no longer pending is
    /// ignored.
    pub(crate) fn reply(&mut self, id: RequestId, reply: Reply) -> Effect {
        let Some(mut asked) = self.calls.remove(&id) else {
            return Effect::None;
        };
        match reply {
            Reply::Ok(fields) => return self.succeed(id, asked, fields),
            Reply::NotOk(refusal) => self.conclude(id, asked, Err(refusal.into())),
            Reply::List(names) => {
                asked.answer.add(names, self.names_max);
                self.register(id, asked);
            }
            Reply::Error { failure, explanation } => return self.fail(id, asked, failure, explanation),
            // Neither is a reply, despite its id.
            Reply::String(_) | Reply::Bye(_) => self.register(id, asked),
        }
        Effect::None
    }

    /// Processes a reply that cannot be decoded: the outcome is unknown.
    pub(crate) fn reply_unreadable(&mut self, id: RequestId, unreadable: &Refusal) {
        if let Some(asked) = self.calls.remove(&id) {
            let why = format!("the answer cannot be read: {}", unreadable.explanation);
            self.conclude_unknown(id, asked, why);
        }
    }

    /// Enqueues a ping whose answer is ignored.
    pub(crate) fn ping(&mut self) {
        self.enqueue(Command { request: Request::Ping, answer: None });
    }

    fn succeed(&mut self, id: RequestId, mut asked: Asked, fields: OkFields) -> Effect {
        let receives = self.identity.carried_out(&asked.command.request, &fields);
        let mut answer = std::mem::take(&mut asked.answer);
        answer.fields = fields;
        self.conclude(id, asked, Ok(answer));
        receives.map_or(Effect::None, |(user, queued)| Effect::Receives(user, queued))
    }

    fn fail(
        &mut self,
        id: RequestId,
        asked: Asked,
        failure: Failure,
        explanation: Cow<'static, str>,
    ) -> Effect {
        if is_repeatable(&asked.command.request) {
            self.register(id, asked);
            return Effect::GiveUp(failure, explanation);
        }
        self.conclude_unknown(id, asked, explanation.clone());
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
        for (id, mut asked) in open {
            match &asked.command.request {
                // A keepalive ping concerns the lost link alone.
                Request::Ping if asked.command.answer.is_none() => {
                    self.conclude(id, asked, Ok(Answer::default()));
                }
                request if is_repeatable(request) => {
                    asked.answer = Answer::default();
                    self.register(id, asked);
                    self.repeats.push_back(id);
                }
                // A new connection starts anonymous.
                Request::Disconnect => drop(self.succeed(id, asked, OkFields::none())),
                _ => self.conclude_unknown(id, asked, "the link was lost before the answer came"),
            }
        }
        self.drop_sends_of_the_lost();
    }

    /// Drops authentication for this reason, and returns the former user.
    /// Pending sends of that user are not sent as any other user.
    pub(crate) fn identity_lost(&mut self, refusal: &Refusal) -> Option<UserName> {
        let user = self.identity.lose(refusal)?;
        self.drop_sends_of_the_lost();
        Some(user)
    }

    fn drop_sends_of_the_lost(&mut self) {
        let Some(why) = self.identity.loss().cloned() else {
            return;
        };
        let is_send = |asked: &Asked| matches!(asked.command.request, Request::Send { .. });
        let (unwritten, kept) =
            std::mem::take(&mut self.fresh).into_iter().partition(|(_, asked)| is_send(asked));
        self.fresh = kept;
        let unwritten: VecDeque<(RequestId, Asked)> = unwritten;
        for (id, asked) in unwritten {
            self.conclude(id, asked, Err(RequestError::NotSent(why.clone())));
        }
        for id in self.repeats.clone() {
            if let Some(asked) = self.calls.remove_if(&id, is_send) {
                self.conclude_unknown(id, asked, why.clone());
            }
        }
    }

    /// Returns the time at which the next request expires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.calls.next_deadline().copied()
    }

    /// Expires overdue requests; their outcome is unknown.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((id, asked)) = self.calls.expire_next(&now) {
            self.conclude_unknown(id, asked, "no answer came in time");
        }
    }

    /// Returns whether the ids of the session are used up and no send is
    /// pending.
    pub(crate) fn is_session_spent(&self) -> bool {
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
        for (_, asked) in self.calls.drain() {
            let outcome = RequestError::unknown(&asked.command.request, "the client is closed");
            end(asked.command, Err(outcome));
        }
        let unwritten = self.fresh.drain(..).map(|(_, asked)| asked.command).chain(self.held.take());
        unwritten.for_each(|command| end(command, Err(RequestError::closed())));
        self.sends.clear();
        count
    }

    fn conclude_unknown(&mut self, id: RequestId, asked: Asked, why: impl Into<Cow<'static, str>>) {
        let outcome = RequestError::unknown(&asked.command.request, why);
        self.conclude(id, asked, Err(outcome));
    }

    /// Ends a request, and releases a barrier that waited for it.
    fn conclude(&mut self, id: RequestId, asked: Asked, outcome: Result<Answer, RequestError>) {
        self.sends.remove(&id);
        if asked.is_alone {
            self.is_settling = false;
            self.is_connecting = false;
        }
        end(asked.command, outcome);
        if self.calls.is_empty()
            && self.fresh.is_empty()
            && let Some(held) = self.held.take()
        {
            self.enqueue(held);
        }
    }
}

impl Answer {
    /// Adds names up to the limit `names_max`.
    fn add(&mut self, names: Vec<UserName>, names_max: usize) {
        let room = names_max.saturating_sub(self.names.len());
        self.is_cut |= names.len() > room;
        self.names.extend(names.into_iter().take(room));
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
    )
}

fn end(command: Command, outcome: Result<Answer, RequestError>) {
    if let Some(answer) = command.answer {
        // The caller may have dropped its future; the request has taken effect
        // all the same.
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
        let request = Request::Send { user: "bob".parse().unwrap(), text: "x".into() };
        outbox.accept(Command { request, answer: Some(answer) });
        waiting
    }

    /// Writes all pending requests and returns their ids.
    fn write_all(outbox: &mut Outbox, now: Now) -> Vec<u32> {
        let mut ids = Vec::new();
        while outbox.write_next(now, |id, _| {
            ids.push(id.value());
            Ok(())
        }) {}
        ids
    }

    #[tokio::test]
    async fn a_session_whose_ids_are_used_up_is_followed_by_another() {
        let mut outbox = outbox();
        outbox.next_send = OTHER_IDS - 1;
        let last = send(&mut outbox);
        assert!(!outbox.has_room() && !outbox.is_session_spent());
        assert_eq!(write_all(&mut outbox, Now::read()), [OTHER_IDS - 1]);
        outbox.reply(RequestId::new(OTHER_IDS - 1).unwrap(), Reply::Ok(OkFields::none()));
        last.await.unwrap().unwrap();
        assert!(outbox.is_session_spent());
        outbox.renew_session("another".parse().unwrap());
        assert!(outbox.has_room());
        drop(send(&mut outbox));
        assert_eq!(write_all(&mut outbox, Now::read()), [1]);
    }

    #[tokio::test]
    async fn a_send_is_not_repeated_after_a_sleep_that_only_the_wall_clock_has_seen() {
        for (asleep_s, expected) in [(500, &[1][..]), (600, &[])] {
            let mut outbox = outbox();
            let mut waiting = send(&mut outbox);
            let now = Now::read();
            assert_eq!(write_all(&mut outbox, now), [1]);
            outbox.link_lost();
            let later = Now { wall: now.wall + Duration::from_secs(asleep_s), ..now };
            assert_eq!(write_all(&mut outbox, later), expected);
            let is_unknown = matches!(waiting.try_recv(), Ok(Err(RequestError::Unknown { .. })));
            assert_eq!(is_unknown, expected.is_empty());
        }
    }
}
