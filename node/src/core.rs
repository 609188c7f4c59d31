//! A node apart from its program: its name, output, open calls, timers and tasks.
//! It knows no handlers, no streams of bytes and no clock: the time is an
//! argument.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use hark_protocol::correlation::Correlator;
use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use crate::deadlines::Deadlines;
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::{self, Body, MsgId};
use crate::request;
use crate::storage::Storage;
use crate::stream::Inbox;
use crate::tasks::Tasks;
use crate::timers::Timers;

/// The maximum number of open calls, which bounds the memory that a peer without
/// answers can cost.
pub(crate) const CALLS_MAX: usize = 1 << 20;

/// The maximum total size of the messages that wait for the first request, in
/// bytes.
pub(crate) const HELD_BYTES_MAX: usize = 1 << 20;

/// The time within which a request must be answered by default: the harness
/// gives up after 5 s, which leaves half a second for transit and a busy
/// machine.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(4_500);

/// The outcome of a call: the whole body of the reply, or an error.
pub(crate) type Outcome = Result<Json, Error>;

/// The name of a node, and the names of all.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) node_ids: Vec<String>,
}

pub(crate) struct Core {
    /// The time since the node began.
    now: Cell<Duration>,
    identity: OnceCell<Identity>,
    next_msg_id: Cell<i64>,
    /// Whole lines to be written.
    output: RefCell<Vec<u8>>,
    /// Whole lines that wait for the first message other than `init`.
    held: RefCell<Vec<u8>>,
    /// The time of that message. Calls expire by the time since then.
    opened_at: Cell<Option<Duration>>,
    /// The open requests that have a deadline.
    pub(crate) deadlines: RefCell<Deadlines>,
    request_timeout: Cell<Duration>,
    pub(crate) calls: Correlator<MsgId, Duration, Outcome>,
    /// Calls with many replies; each is removed by its reader.
    pub(crate) inboxes: RefCell<HashMap<MsgId, Rc<Inbox>>>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) tasks: Tasks,
    random: RefCell<SmallRng>,
    pub(crate) storage: Storage,
    late_replies: Cell<u64>,
    late_answers: Cell<u64>,
    /// The input has ended.
    has_ended: Cell<bool>,
}

impl Core {
    pub(crate) fn new(seed: u64, storage: Storage) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::default(),
            identity: OnceCell::new(),
            next_msg_id: Cell::default(),
            output: RefCell::default(),
            held: RefCell::default(),
            opened_at: Cell::default(),
            deadlines: RefCell::default(),
            request_timeout: Cell::new(REQUEST_TIMEOUT),
            calls: Correlator::default(),
            inboxes: RefCell::default(),
            timers: RefCell::default(),
            tasks: Tasks::default(),
            random: RefCell::new(SmallRng::seed_from_u64(seed)),
            storage,
            late_replies: Cell::default(),
            late_answers: Cell::default(),
            has_ended: Cell::default(),
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.now.get()
    }

    /// Sets the time, which never goes back.
    pub(crate) fn advance(&self, now: Duration) {
        self.now.set(self.now().max(now));
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Sets the name. Returns whether there was none.
    pub(crate) fn identify(&self, identity: Identity) -> bool {
        self.identity.set(identity).is_ok()
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    pub(crate) fn random_range<T: SampleUniform>(&self, range: impl SampleRange<T>) -> T {
        self.random.borrow_mut().random_range(range)
    }

    /// Returns a random duration from zero up to this one.
    pub(crate) fn random_part(&self, time: Duration) -> Duration {
        self.random_range(Duration::ZERO..=time)
    }

    pub(crate) fn late_replies(&self) -> u64 {
        self.late_replies.get()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    pub(crate) fn late_answers(&self) -> u64 {
        self.late_answers.get()
    }

    pub(crate) fn count_late_answer(&self, src: &str, kind: &str) {
        self.late_answers.set(self.late_answers().saturating_add(1));
        tracing::debug!(src, kind, late = self.late_answers(), "late answer dropped");
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout.get()
    }

    pub(crate) fn set_request_timeout(&self, limit: Duration) {
        self.request_timeout.set(limit);
    }

    /// Sends the messages that were held: a message other than `init` has come,
    /// so the harness knows all nodes and services.
    pub(crate) fn open(&self) {
        if self.opened_at.get().is_none() && self.identity().is_some() {
            self.opened_at.set(Some(self.now()));
            self.output.borrow_mut().append(&mut self.held.take());
        }
    }

    /// Returns the deadline of a call that waits this long. Its time begins
    /// when it can be sent.
    pub(crate) fn call_deadline(&self, timeout: Duration) -> Duration {
        self.call_time().saturating_add(timeout)
    }

    /// Returns the clock of the calls, which stands at zero until messages can
    /// be sent.
    fn call_time(&self) -> Duration {
        self.opened_at.get().map_or(Duration::ZERO, |opened_at| {
            self.now().saturating_sub(opened_at)
        })
    }

    /// Ends the input: from now on, no call is sent or expires, and only the
    /// timers that keep the node alive remain.
    pub(crate) fn end(&self) {
        self.has_ended.set(true);
        self.deadlines.borrow_mut().clear();
        self.timers.borrow_mut().end();
    }

    /// Sends a message that has an id, as `src`.
    ///
    /// # Errors
    /// 13 if the fields cannot be written, 11 if too much is held; in both cases
    /// nothing is sent.
    pub(crate) fn post(
        &self,
        src: &str,
        dest: &str,
        in_reply_to: Option<MsgId>,
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
    ) -> Result<MsgId, Error> {
        let id = MsgId(self.next_msg_id.get());
        self.write(src, dest, (in_reply_to, Some(id)), body)?;
        self.next_msg_id.set(id.0.saturating_add(1));
        Ok(id)
    }

    fn write(
        &self,
        src: &str,
        dest: &str,
        (in_reply_to, msg_id): (Option<MsgId>, Option<MsgId>),
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // A reply goes to a party that exists.
        let is_held = in_reply_to.is_none() && self.opened_at.get().is_none();
        let output = if is_held {
            self.held.borrow_mut()
        } else {
            self.output.borrow_mut()
        };
        if is_held && output.len() >= HELD_BYTES_MAX {
            let text = "too much was sent before the first request";
            return Err(Error::new(ErrorCode::TemporarilyUnavailable, text));
        }
        let mut unfinished = Unfinished::new(output);
        message::open_message(src, dest, &mut unfinished.output);
        body(&mut unfinished.output)?;
        message::close_message(in_reply_to, msg_id, &mut unfinished.output);
        unfinished.finish();
        Ok(())
    }

    /// Sends a message that expects no answer, and so has no id.
    ///
    /// # Errors
    /// As for [`Self::post`]; 11 before the node has a name.
    pub(crate) fn send(
        &self,
        dest: &str,
        kind: &str,
        fields: &impl Serialize,
    ) -> Result<(), Error> {
        self.write(self.name()?, dest, (None, None), |out| {
            message::open_body(kind, fields, out)
        })
    }

    /// Sends a request with a body that is already written.
    ///
    /// # Errors
    /// As for [`Self::post`]; 11 before the node has a name, and if too many
    /// calls are open.
    pub(crate) fn send_call(&self, dest: &str, body: &Body) -> Result<MsgId, Error> {
        if self.pending() >= CALLS_MAX {
            return Err(Error::new(
                ErrorCode::TemporarilyUnavailable,
                "too many calls are open",
            ));
        }
        self.post(self.name()?, dest, None, |out| {
            body.open(out);
            Ok(())
        })
    }

    /// Returns the node's name.
    ///
    /// # Errors
    /// 11 before it has one.
    pub(crate) fn name(&self) -> Result<&str, Error> {
        let unnamed = || {
            Error::new(
                ErrorCode::TemporarilyUnavailable,
                "the node is not initialized yet",
            )
        };
        self.identity()
            .map(|identity| &*identity.id)
            .ok_or_else(unnamed)
    }

    /// Returns the number of open calls, whether they have one reply or many.
    pub(crate) fn pending(&self) -> usize {
        self.calls.pending() + self.inboxes.borrow().len()
    }

    /// Passes a reply to its call.
    pub(crate) fn complete(&self, id: MsgId, src: &str, outcome: Outcome) {
        let inbox = self.inboxes.borrow().get(&id).cloned();
        if let Some(inbox) = inbox {
            inbox.take(outcome);
        } else if self.calls.complete(&id, outcome).is_err() {
            self.late_replies.set(self.late_replies().saturating_add(1));
            tracing::warn!(%id, src, late = self.late_replies(), "late reply dropped");
        }
    }

    /// Expires everything that is due.
    pub(crate) fn expire(&self) {
        if !self.has_ended() {
            let reaped = self.calls.expire(&self.call_time());
            if reaped > 0 {
                tracing::warn!(reaped, pending = self.calls.pending(), "calls timed out");
            }
        }
        request::expire(self);
        let due = self.timers.borrow_mut().take_due(self.now());
        due.into_iter().for_each(std::task::Waker::wake);
    }

    /// Returns the time at which something is next due.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        let timer = self.timers.borrow().next_due();
        let request = self.deadlines.borrow().next_due();
        let call = self
            .opened_at
            .get()
            .filter(|_| !self.has_ended())
            .and_then(|opened_at| {
                self.calls
                    .next_deadline()
                    .map(|deadline| opened_at.saturating_add(deadline))
            });
        timer.into_iter().chain(request).chain(call).min()
    }

    /// Makes message ids count up from `first`.
    pub(crate) fn count_from(&self, first: MsgId) {
        self.next_msg_id.set(first.0);
    }

    /// Moves the output to the end of `out`.
    pub(crate) fn take_output(&self, out: &mut Vec<u8>) {
        let mut output = self.output.borrow_mut();
        if out.is_empty() {
            // The caller owns the memory then, and bounds it.
            std::mem::swap(&mut *output, out);
        } else {
            out.append(&mut output);
        }
    }

    /// Returns the size of the output.
    pub(crate) fn output_bytes(&self) -> usize {
        self.output.borrow().len()
    }

    /// Ends the node, and drops the tasks and callbacks that hold handles to it.
    pub(crate) fn clear(&self) {
        self.end();
        self.tasks.clear();
        self.calls.clear();
    }
}

/// A message that is being written at the end of the output. Dropping it
/// unfinished removes it: writing the fields of a program may fail or panic.
struct Unfinished<'a> {
    output: RefMut<'a, Vec<u8>>,
    /// The beginning of the message.
    start: usize,
}

impl<'a> Unfinished<'a> {
    fn new(output: RefMut<'a, Vec<u8>>) -> Self {
        Self {
            start: output.len(),
            output,
        }
    }

    fn finish(mut self) {
        self.start = self.output.len();
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.output.truncate(self.start);
    }
}
