//! A request, and the one answer that it gets.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use serde::Serialize;

use crate::call::Reply;
use crate::core::Core;
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
/// Fields that serialize to an array, a number or a string cannot be told at
/// compile time; the request gets error 13, which says so.
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
    core: Rc<Core>,
    to: Rc<Asker>,
}

struct Asker {
    src: String,
    /// As whom it is answered.
    dest: String,
    kind: String,
    /// `None` where no answer is wanted.
    msg_id: Option<MsgId>,
    is_answered: Cell<bool>,
}

impl Responder {
    pub(crate) fn new(core: Rc<Core>, message: &message::Message<'_>) -> Self {
        let dest = core.identity().map_or(&*message.dest, |identity| &*identity.id).to_owned();
        let to = Asker {
            src: message.src.clone().into_owned(),
            dest,
            kind: message.kind.clone().into_owned(),
            msg_id: message.msg_id,
            is_answered: Cell::new(false),
        };
        Self { core, to: Rc::new(to) }
    }

    /// Whether an answer is wanted and none was given.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.to.msg_id.is_some() && !self.to.is_answered.get()
    }

    /// What an answer names.
    pub(crate) fn msg_id(&self) -> Option<MsgId> {
        self.to.msg_id
    }

    /// Answers with a body of the request's type and `_ok`, with these fields:
    /// a structure, a map, or `()` for none; `type`, `in_reply_to` and `msg_id`
    /// are not among them. Only the first answer is sent, and none to a message
    /// that has no `msg_id`. Fields that cannot be written become error 13.
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

    /// Sends one of several replies, which is not the last: it leaves the
    /// request open. Nothing is sent once it is answered, or where no answer is
    /// wanted.
    ///
    /// # Errors
    /// 13, where the fields cannot be written.
    pub fn reply_in_part(&self, kind: &str, fields: &impl Serialize) -> Result<(), Error> {
        if self.is_open() {
            self.post(|out| message::open_body(kind, fields, out))?;
        }
        Ok(())
    }

    /// The handler has panicked.
    pub(crate) fn crashed(&self) {
        self.fail(&Error::new(ErrorCode::Crash, format!("the handler of {} has panicked", self.to.kind)));
    }

    fn answer(&self, body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) {
        if !self.is_open() {
            return;
        }
        let sent = self.post(body).or_else(|error| {
            tracing::error!(kind = self.to.kind, %error, "an answer could not be written");
            self.post(|out| message::open_body("error", &error, out))
        });
        match sent {
            Ok(_) => self.to.is_answered.set(true),
            Err(error) => tracing::error!(%error, "an error could not be written"),
        }
    }

    fn post(&self, body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) -> Result<MsgId, Error> {
        self.core.post(&self.to.dest, &self.to.src, self.to.msg_id, body)
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
