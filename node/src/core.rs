//! What a node is apart from the program it runs: its name, what it has sent,
//! its open calls, its timers and its tasks. It knows neither handlers nor
//! input, output or a clock: the time is told to it.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use hark_protocol::correlation::Correlator;
use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::{self, Body, MsgId};
use crate::storage::Storage;
use crate::stream::Inbox;
use crate::tasks::Tasks;
use crate::timers::Timers;

/// Calls that are open at once, at most: so many tasks and table entries a peer
/// that never answers can cost.
pub(crate) const CALLS_MAX: usize = 1 << 20;

/// What comes of a call: the whole body of the reply, or why there is none.
pub(crate) type Outcome = Result<Json, Error>;

/// Who a node is.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) node_ids: Vec<String>,
}

pub(crate) struct Core {
    /// Since the node began.
    now: Cell<Duration>,
    identity: OnceCell<Identity>,
    next_msg_id: Cell<i64>,
    /// Whole lines that are to be written.
    output: RefCell<Vec<u8>>,
    pub(crate) calls: Correlator<MsgId, Duration, Outcome>,
    /// Calls that get many replies; each is removed by who reads them.
    pub(crate) inboxes: RefCell<HashMap<MsgId, Rc<Inbox>>>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) tasks: Tasks,
    random: RefCell<SmallRng>,
    pub(crate) storage: Storage,
    late_replies: Cell<u64>,
    /// No message comes any more.
    has_ended: Cell<bool>,
}

impl Core {
    pub(crate) fn new(seed: u64, storage: Storage) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::default(),
            identity: OnceCell::new(),
            next_msg_id: Cell::default(),
            output: RefCell::default(),
            calls: Correlator::default(),
            inboxes: RefCell::default(),
            timers: RefCell::default(),
            tasks: Tasks::default(),
            random: RefCell::new(SmallRng::seed_from_u64(seed)),
            storage,
            late_replies: Cell::default(),
            has_ended: Cell::default(),
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.now.get()
    }

    /// The time never goes back.
    pub(crate) fn advance(&self, now: Duration) {
        self.now.set(self.now().max(now));
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Whether it was nobody before.
    pub(crate) fn identify(&self, identity: Identity) -> bool {
        self.identity.set(identity).is_ok()
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    pub(crate) fn random_range<T: SampleUniform>(&self, range: impl SampleRange<T>) -> T {
        self.random.borrow_mut().random_range(range)
    }

    /// Returns a random part of a time, from none of it to all of it.
    pub(crate) fn random_part(&self, time: Duration) -> Duration {
        self.random_range(Duration::ZERO..=time)
    }

    pub(crate) fn late_replies(&self) -> u64 {
        self.late_replies.get()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// From now on no call is sent, none expires, and nothing is waited for
    /// but what keeps the node alive.
    pub(crate) fn end(&self) {
        self.has_ended.set(true);
        self.timers.borrow_mut().end();
    }

    /// Sends a message as `src`.
    ///
    /// # Errors
    /// 13, where the fields cannot be written; nothing was sent then.
    pub(crate) fn post(
        &self,
        src: &str,
        dest: &str,
        in_reply_to: Option<MsgId>,
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
    ) -> Result<MsgId, Error> {
        let mut unfinished = Unfinished::new(self.output.borrow_mut());
        message::open_message(src, dest, &mut unfinished.output);
        body(&mut unfinished.output)?;
        let id = self.next_msg_id.get();
        self.next_msg_id.set(id.saturating_add(1));
        message::close_message(in_reply_to, MsgId(id), &mut unfinished.output);
        unfinished.finish();
        Ok(MsgId(id))
    }

    /// Sends a message that is no reply.
    ///
    /// # Errors
    /// As for [`Self::post`]; 11 before the node has a name.
    pub(crate) fn send(&self, dest: &str, kind: &str, fields: &impl Serialize) -> Result<MsgId, Error> {
        let src = self.name()?;
        self.post(src, dest, None, |out| message::open_body(kind, fields, out))
    }

    /// Sends a body that is there already.
    ///
    /// # Errors
    /// 11, before the node has a name or with too many calls open.
    pub(crate) fn send_call(&self, dest: &str, body: &Body) -> Result<MsgId, Error> {
        if self.pending() >= CALLS_MAX {
            return Err(Error::new(ErrorCode::TemporarilyUnavailable, "too many calls are open"));
        }
        self.post(self.name()?, dest, None, |out| {
            body.open(out);
            Ok(())
        })
    }

    /// The node's name.
    ///
    /// # Errors
    /// 11, before it has one.
    pub(crate) fn name(&self) -> Result<&str, Error> {
        let unnamed = || Error::new(ErrorCode::TemporarilyUnavailable, "the node is not initialised yet");
        self.identity().map(|identity| &*identity.id).ok_or_else(unnamed)
    }

    /// Calls that are open, with one reply or many.
    pub(crate) fn pending(&self) -> usize {
        self.calls.pending() + self.inboxes.borrow().len()
    }

    /// Passes a reply on to the call that it names.
    pub(crate) fn complete(&self, id: MsgId, src: &str, outcome: Outcome) {
        let inbox = self.inboxes.borrow().get(&id).cloned();
        if let Some(inbox) = inbox {
            inbox.take(outcome);
        } else if self.calls.complete(&id, outcome).is_err() {
            self.late_replies.set(self.late_replies().saturating_add(1));
            tracing::warn!(%id, src, late = self.late_replies(), "nobody waits for this reply any more");
        }
    }

    /// Ends what is due.
    pub(crate) fn expire(&self) {
        let now = self.now();
        if !self.has_ended() {
            let reaped = self.calls.expire(&now);
            if reaped > 0 {
                tracing::warn!(reaped, pending = self.calls.pending(), "calls were not answered in time");
            }
        }
        let due = self.timers.borrow_mut().take_due(now);
        due.into_iter().for_each(std::task::Waker::wake);
    }

    /// When something is due next, since the node began.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        let timer = self.timers.borrow().next_due();
        let call = if self.has_ended() { None } else { self.calls.next_deadline() };
        timer.into_iter().chain(call).min()
    }

    /// The ids of what is sent from now on count up from `first`.
    pub(crate) fn count_from(&self, first: MsgId) {
        self.next_msg_id.set(first.0);
    }

    /// Moves what was sent to the end of `out`.
    pub(crate) fn take_output(&self, out: &mut Vec<u8>) {
        let mut output = self.output.borrow_mut();
        if out.is_empty() {
            // The memory goes along, so that its owner can bound it.
            std::mem::swap(&mut *output, out);
        } else {
            out.append(&mut output);
        }
    }

    /// The bytes that wait to be taken.
    pub(crate) fn output_bytes(&self) -> usize {
        self.output.borrow().len()
    }

    /// Ends, and forgets all that could keep a node alive that is over: tasks
    /// and callbacks hold handles to it.
    pub(crate) fn clear(&self) {
        self.end();
        self.tasks.clear();
        self.calls.clear();
    }
}

/// A message that is being written at the end of the output. It is taken back
/// unless it is finished: writing a program's fields may fail or panic.
struct Unfinished<'a> {
    output: RefMut<'a, Vec<u8>>,
    /// Where it began.
    start: usize,
}

impl<'a> Unfinished<'a> {
    fn new(output: RefMut<'a, Vec<u8>>) -> Self {
        Self { start: output.len(), output }
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
