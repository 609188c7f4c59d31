//! What is asked and not answered, and who one is while asking.
//!
//! Commands go in in the order of the calls, take an id, and wait until they
//! are written ([`Outbox::write_next`]), then until they are answered
//! ([`Outbox::reply`]), expire ([`Outbox::expire`]) or have to be written once
//! more ([`Outbox::link_lost`]). No I/O and no clock: times are arguments.
//!
//! What changes who one is (`login`, `connect`, `disconnect`, and `delete` or
//! `password` of oneself) is asked alone: it waits until nothing is under way,
//! and nothing new is written before its answer. So whatever is under way
//! belongs to the present identity, and can be repeated under it.

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

/// Sends take their ids below this one and everything else at or above it, so
/// that the server's record of a session stays dense.
const OTHER_IDS: u32 = 1 << 31;

/// Requests other than sends that may be under way at once.
const OTHERS_MAX: usize = 256;

/// What the server has answered.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) fields: OkFields,
    /// The names, if it answers `list`.
    pub(crate) names: Vec<UserName>,
    /// Whether some names were left out here.
    pub(crate) is_cut: bool,
}

/// A request, and who waits for its answer.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request: Request,
    /// `None` for the client's own pings.
    pub(crate) answer: Option<oneshot::Sender<Result<Answer, RequestError>>>,
}

/// What a reply means beyond its request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// This client receives for the user, with so many messages to come.
    Receives(UserName, u64),
    /// The server failed: the link is to be given up, and what was not
    /// answered repeated on another.
    GiveUp(Failure, Cow<'static, str>),
}

/// One moment, by two clocks: the steady one, which may stand still while the
/// machine sleeps, and the wall clock, which may be set.
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

/// A request under way.
#[derive(Debug)]
struct Asked {
    command: Command,
    answer: Answer,
    /// When it was first written.
    first_written: Option<Now>,
    /// Whether nothing else may be under way beside it.
    is_alone: bool,
}

/// Everything that is asked and not answered.
#[derive(Debug)]
pub(crate) struct Outbox {
    session: SessionToken,
    pub(crate) identity: Identity,
    repeat_for: Duration,
    names_max: usize,
    next_send: u32,
    next_other: u32,
    /// What was written at least once.
    calls: Calls<RequestId, Instant, Asked>,
    /// What of `calls` has to be written once more, in the order of the ids.
    repeats: VecDeque<RequestId>,
    /// What was never written.
    fresh: VecDeque<(RequestId, Asked)>,
    /// The ids of all sends in `calls` and `fresh`.
    sends: BTreeSet<RequestId>,
    /// What changes the identity, until everything before it is answered.
    held: Option<Command>,
    /// Whether such a change is under way, alone.
    is_settling: bool,
    /// Whether it is a `connect`.
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

    /// The number of requests that are not answered.
    pub(crate) fn len(&self) -> usize {
        self.calls.len() + self.fresh.len() + usize::from(self.held.is_some())
    }

    /// Whether another command may be accepted.
    pub(crate) fn has_room(&self) -> bool {
        self.held.is_none()
            && !self.is_settling
            && self.next_send < OTHER_IDS
            && self.len() - self.sends.len() < OTHERS_MAX
            && self.is_next_send_remembered()
    }

    /// The server remembers the last 1,024 sends. So the ids that are under
    /// way may not spread over more: the oldest could not be repeated.
    fn is_next_send_remembered(&self) -> bool {
        let oldest = self.sends.first().map_or(self.next_send, |id| id.value());
        ((self.next_send - oldest) as usize) < SENDS_UNANSWERED_MAX
    }

    /// Accepts a command, behind all that were accepted before. Call only
    /// while [`Self::has_room`].
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

    /// An id that is not under way: those of sends are never used again, and
    /// the others come round after 2³¹ requests, by when the first has expired.
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

    /// Whether a `connect` is under way. Nothing may be acknowledged then.
    pub(crate) const fn is_connecting(&self) -> bool {
        self.is_connecting
    }

    /// Passes the next request to `write`, what is repeated before what is
    /// new; whether there was one. `write` says why one is too large.
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

    /// Whether the server may have forgotten a request by now. The steady
    /// clock is seen to by [`Self::expire`]; but the server's goes on while
    /// this machine sleeps, and then the wall clock knows better.
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

    /// Takes a reply. One to a request that is not under way is late, and
    /// means nothing any more.
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
            // Neither answers a request, whatever its id says.
            Reply::String(_) | Reply::Bye(_) => self.register(id, asked),
        }
        Effect::None
    }

    /// Takes a reply that cannot be read. It is not known what it says.
    pub(crate) fn reply_unreadable(&mut self, id: RequestId, unreadable: &Refusal) {
        if let Some(asked) = self.calls.remove(&id) {
            let why = format!("the answer cannot be read: {}", unreadable.explanation);
            self.conclude_unknown(id, asked, why);
        }
    }

    /// Asks for a word, for nobody to hear the answer.
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

    /// The link has ended: what can be repeated is put back, in the order of
    /// the ids, and the outcome of the rest is unknown.
    pub(crate) fn link_lost(&mut self) {
        self.repeats.clear();
        let mut open = self.calls.drain();
        open.sort_unstable_by_key(|(id, _)| *id);
        for (id, mut asked) in open {
            match &asked.command.request {
                // Nobody waits for it: it was about the link that is lost.
                Request::Ping if asked.command.answer.is_none() => {
                    self.conclude(id, asked, Ok(Answer::default()));
                }
                request if is_repeatable(request) => {
                    asked.answer = Answer::default();
                    self.register(id, asked);
                    self.repeats.push_back(id);
                }
                // One is nobody on any new connection.
                Request::Disconnect => drop(self.succeed(id, asked, OkFields::none())),
                _ => self.conclude_unknown(id, asked, "the link was lost before the answer came"),
            }
        }
        self.drop_sends_of_the_lost();
    }

    /// One is no longer who one was, and this is why; who that was. What was
    /// to be sent as that user is not sent as anybody else.
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

    /// When the next request expires, unless it is answered before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.calls.next_deadline().copied()
    }

    /// Ends what has waited for too long; the outcome is unknown.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((id, asked)) = self.calls.expire_next(&now) {
            self.conclude_unknown(id, asked, "no answer came in time");
        }
    }

    /// Whether the ids of this session are used up and nothing depends on them
    /// any more.
    pub(crate) fn is_session_spent(&self) -> bool {
        self.next_send >= OTHER_IDS && self.sends.is_empty()
    }

    /// Begins another session, whose ids start again.
    pub(crate) fn renew_session(&mut self, session: SessionToken) {
        self.session = session;
        self.next_send = 1;
    }

    /// Ends everything; the client is closed. How many requests that were.
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

    /// Ends a request, and lets in what waited for it.
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
    /// Adds names, up to `names_max` of them.
    fn add(&mut self, names: Vec<UserName>, names_max: usize) {
        let room = names_max.saturating_sub(self.names.len());
        self.is_cut |= names.len() > room;
        self.names.extend(names.into_iter().take(room));
    }
}

/// Whether the protocol allows to ask this again when the answer is lost.
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
        // Whoever asked may have stopped waiting; the request was carried out
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

    /// Writes everything there is to write; the ids.
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
