//! A request, and its one answer.

use std::cell::Cell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::Serialize;

use crate::call::Reply;
use crate::core::Core;
use crate::deadlines::Key;
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::{self, Body, MsgId};

/// A message of another node or of a client, with its body as a type.
#[derive(Debug)]
pub struct Request<B> {
    /// The sender.
    pub src: String,
    /// The fields, as the type `B`; `()` takes none.
    pub body: B,
    /// The way to answer, for a handler that does so itself.
    pub responder: Responder,
}

impl<B> Request<B> {
    /// Returns the type of the message.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.responder.to.kind
    }
}

/// A value that a handler can return as its answer: fields (a structure, a map,
/// or `()` for none), which become a body of the request's type and `_ok`; a
/// [`Reply`] of another node, which is passed on; or an [`Answer`], which is
/// one of the two.
///
/// Fields that serialize to an array, a number or a string cannot be detected
/// at compile time; the request then gets error 13, which says so.
pub trait IntoAnswer {
    /// Answers a request with this.
    fn answer(self, responder: &Responder);
}

impl<T: Serialize> IntoAnswer for T {
    fn answer(self, responder: &Responder) {
        responder.reply(&self);
    }
}

impl IntoAnswer for Reply {
    fn answer(self, responder: &Responder) {
        responder.forward(&self.body);
    }
}

/// The answer of a handler that sometimes forwards the reply of another node.
///
/// ```
/// # use hark_node::{Answer, Json, Node, Request};
/// # use serde::Serialize;
/// #[derive(Serialize)]
/// struct ReadOk {
///     value: i64,
/// }
///
/// fn program(node: &Node<i64>) {
///     node.handle("read", async |node: Node<i64>, request: Request<Json>| {
///         if node.id() == "n1" {
///             return Ok(Answer::Fields(ReadOk { value: *node.state() }));
///         }
///         node.forward("n1", &request.body).await.map(Answer::Forward)
///     });
/// }
/// ```
#[derive(Debug, Clone)]
pub enum Answer<T> {
    /// The fields of the handler's own answer.
    Fields(T),
    /// The reply of another node.
    Forward(Reply),
}

impl<T: Serialize> IntoAnswer for Answer<T> {
    fn answer(self, responder: &Responder) {
        match self {
            Self::Fields(fields) => fields.answer(responder),
            Self::Forward(reply) => reply.answer(responder),
        }
    }
}

/// The way to answer a request. Clones answer the same request.
///
/// ```
/// # use hark_node::{Node, Request, Responder};
/// // `go` answers all requests `wait` before it.
/// fn program(node: &Node<Vec<Responder>>) {
///     node.receive("wait", async |node: Node<Vec<Responder>>, request: Request<()>| {
///         node.state().push(request.responder);
///     });
///     node.handle("go", async |node: Node<Vec<Responder>>, _: Request<()>| {
///         for waiting in node.state().drain(..) {
///             waiting.reply(&());
///         }
///         Ok(())
///     });
/// }
/// ```
#[derive(Clone)]
pub struct Responder {
    to: Rc<Asker>,
}

/// The request behind all clones of a [`Responder`].
pub(crate) struct Asker {
    core: Rc<Core>,
    src: String,
    /// The name under which the node answers.
    dest: String,
    kind: String,
    /// `None` if no answer is expected.
    msg_id: Option<MsgId>,
    state: Cell<State>,
    deadline: Cell<Option<Key>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Answered,
    /// Answered with error 0 at its deadline.
    TimedOut,
}

impl Responder {
    pub(crate) fn new(core: Rc<Core>, message: &message::Message<'_>) -> Self {
        let dest = core
            .identity()
            .map_or(&*message.dest, |identity| &*identity.id)
            .to_owned();
        let to = Asker {
            core,
            src: message.src.clone().into_owned(),
            dest,
            kind: message.kind.clone().into_owned(),
            msg_id: message.msg_id,
            state: Cell::new(State::Open),
            deadline: Cell::default(),
        };
        Self { to: Rc::new(to) }
    }

    /// Returns whether an answer is expected and none was given.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.to.msg_id.is_some() && self.to.state.get() == State::Open
    }

    /// Returns the id that an answer refers to.
    pub(crate) fn msg_id(&self) -> Option<MsgId> {
        self.to.msg_id
    }

    /// Sets the deadline of the answer to this time from now, or none with
    /// `Duration::MAX`. By default it is that of
    /// [`Node::answer_within`](crate::Node::answer_within).
    pub fn answer_within(&self, limit: Duration) {
        if self.is_open() {
            let core = &self.to.core;
            let deadline = core.now().saturating_add(limit);
            self.to.remove_deadline();
            let key = core
                .deadlines
                .borrow_mut()
                .set(deadline, Rc::downgrade(&self.to));
            self.to.deadline.set(Some(key));
        }
    }

    /// Sets the default deadline if the request is still open after the first
    /// run of its handler, and it can still be answered.
    pub(crate) fn wait_by_default(self) {
        if self.is_open() && self.to.deadline.get().is_none() && Rc::strong_count(&self.to) > 1 {
            self.answer_within(self.to.core.request_timeout());
        }
    }

    /// Answers with a body of the request's type and `_ok`, with these fields:
    /// a structure, a map, or `()` for none. The names `type`, `msg_id` and
    /// `in_reply_to` are reserved. Only the first answer is sent, and none to a
    /// message without `msg_id`. Fields that cannot be written become error 13.
    pub fn reply(&self, fields: &impl Serialize) {
        self.reply_as(&format!("{}_ok", self.to.kind), fields);
    }

    /// As [`Self::reply`], with another type.
    pub fn reply_as(&self, kind: &str, fields: &impl Serialize) {
        self.answer(|out| message::open_body(kind, fields, out));
    }

    /// As [`Self::reply`], with the body of another node's reply.
    pub fn forward(&self, body: &Json) {
        match Body::forwarded(body) {
            Ok(body) => self.answer(|out| {
                body.open(out);
                Ok(())
            }),
            Err(error) => self.fail(&error),
        }
    }

    /// Answers with an error. Only the first answer is sent.
    pub fn fail(&self, error: &Error) {
        self.answer(|out| message::open_body("error", error, out));
    }

    /// Sends one of several replies, which leaves the request open. Sends
    /// nothing if the request is answered or expects no answer.
    ///
    /// # Errors
    /// 13 if the fields cannot be written.
    pub fn reply_in_part(&self, kind: &str, fields: &impl Serialize) -> Result<(), Error> {
        if self.is_open() {
            self.post(|out| message::open_body(kind, fields, out))?;
        }
        Ok(())
    }

    /// Answers that the handler has panicked.
    pub(crate) fn crashed(&self) {
        self.fail(&Error::new(
            ErrorCode::Crash,
            format!("the handler of {} has panicked", self.to.kind),
        ));
    }

    /// Answers with error 0 because the deadline has passed.
    fn expire(&self) {
        tracing::warn!(
            src = self.to.src,
            kind = self.to.kind,
            "request not answered in time"
        );
        self.fail(&Error::new(
            ErrorCode::Timeout,
            "no answer was ready in time",
        ));
        self.to.state.set(State::TimedOut);
    }

    fn answer(&self, body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) {
        if self.to.state.get() == State::TimedOut {
            return self.to.core.count_late_answer(&self.to.src, &self.to.kind);
        }
        if !self.is_open() {
            return;
        }
        let sent = self.post(body).or_else(|error| {
            tracing::error!(kind = self.to.kind, %error, "answer cannot be written");
            self.post(|out| message::open_body("error", &error, out))
        });
        match sent {
            Ok(_) => {
                self.to.state.set(State::Answered);
                self.to.remove_deadline();
            }
            Err(error) => tracing::error!(%error, "error cannot be written"),
        }
    }

    fn post(&self, body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) -> Result<MsgId, Error> {
        self.to
            .core
            .post(&self.to.dest, &self.to.src, self.to.msg_id, body)
    }
}

impl Asker {
    fn remove_deadline(&self) {
        if let Some(key) = self.deadline.take() {
            self.core.deadlines.borrow_mut().remove(&key);
        }
    }
}

/// A request that can no longer be answered has no deadline.
impl Drop for Asker {
    fn drop(&mut self) {
        self.remove_deadline();
    }
}

/// Answers the requests whose deadline has passed with error 0.
pub(crate) fn expire(core: &Core) {
    let due = core.deadlines.borrow_mut().take_due(core.now());
    for to in due.iter().filter_map(Weak::upgrade) {
        to.deadline.set(None);
        Responder { to }.expire();
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("src", &self.to.src)
            .field("kind", &self.to.kind)
            .field("msg_id", &self.to.msg_id)
            .field("is_open", &self.is_open())
            .finish()
    }
}
