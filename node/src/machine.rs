//! A node without streams and clock: lines and times go in, lines come out. The
//! same lines at the same times give the same output.

use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;

use crate::core::{Core, Identity, Outcome};
use crate::error::{Error, ErrorCode};
use crate::message::{self, Asked, Message, MsgId};
use crate::node::{Node, Running};
use crate::request::Responder;
use crate::storage::Storage;

/// A node that its caller drives. All times are since the node began, and never
/// go back.
///
/// ```
/// # use std::time::Duration;
/// # use hark_node::{Error, Machine, Node, Request};
/// # use serde::Deserialize;
/// #[derive(Deserialize)]
/// struct Ask {}
///
/// let mut machine = Machine::new(
///     |node: &Node<()>| {
///         node.handle("ask", async |node: Node<()>, _: Request<Ask>| {
///             node.call::<()>("n2", "ask", &()).await
///         });
///     },
///     7,
/// );
/// let init = br#"{"src": "c1", "body": {"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": ["n1", "n2"]}}"#;
/// let ask = br#"{"src": "c1", "dest": "n1", "body": {"type": "ask", "msg_id": 2}}"#;
/// machine.handle_line(Duration::ZERO, init);
/// machine.handle_line(Duration::ZERO, ask);
/// assert_eq!((machine.pending(), machine.next_timeout()), (1, Some(Duration::from_secs(1))));
///
/// // No reply has come for a second.
/// machine.handle_timeout(Duration::from_secs(1));
/// assert_eq!((machine.pending(), machine.next_timeout()), (0, None));
/// let mut output = Vec::new();
/// machine.take_output(&mut output);
/// assert_eq!(
///     String::from_utf8(output).unwrap(),
///     r#"{"src": "n1", "dest": "c1", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}
/// {"src": "n1", "dest": "n2", "body": {"type": "ask", "msg_id": 1}}
/// {"src": "n1", "dest": "c1", "body": {"type": "error", "code": 0, "text": "no reply came in time", "in_reply_to": 2, "msg_id": 2}}
/// "#
/// );
/// ```
pub struct Machine {
    core: Rc<Core>,
    node: Box<dyn Running>,
}

#[derive(Deserialize)]
struct Init {
    node_id: String,
    #[serde(default)]
    node_ids: Vec<String>,
}

#[derive(Deserialize)]
struct ErrorReply {
    code: Option<ErrorCode>,
    text: Option<String>,
}

impl Machine {
    /// Returns a node that runs the handlers that `program` registers. All its
    /// random numbers come from `seed`. Its storage is empty.
    pub fn new<S: Default + 'static>(program: impl FnOnce(&Node<S>), seed: u64) -> Self {
        Self::with_state(S::default(), program, seed)
    }

    /// As [`Self::new`], with this state instead of the default.
    pub fn with_state<S: 'static>(state: S, program: impl FnOnce(&Node<S>), seed: u64) -> Self {
        Self::with_storage(state, Storage::default(), program, seed)
    }

    /// As [`Self::with_state`], with the storage of a previous incarnation.
    pub fn with_storage<S: 'static>(
        state: S,
        storage: Storage,
        program: impl FnOnce(&Node<S>),
        seed: u64,
    ) -> Self {
        let core = Core::new(seed, storage);
        let node = Node::new(Rc::clone(&core), state);
        program(&node);
        Self {
            core,
            node: Box::new(node),
        }
    }

    /// Handles one line, with or without its end, and runs the tasks until all
    /// wait. A malformed line is logged, and answered if it has an id.
    pub fn handle_line(&mut self, now: Duration, line: &[u8]) {
        self.core.advance(now);
        match message::parse(line) {
            Ok(message) => self.take(&message),
            Err(malformed) => {
                tracing::warn!(why = malformed.why, "malformed message");
                if let Some(asked) = malformed.asked {
                    self.answer(
                        &asked,
                        &Error::new(ErrorCode::MalformedRequest, malformed.why),
                    );
                }
            }
        }
        self.core.tasks.run();
    }

    /// Expires everything that is due, and runs the tasks that were woken,
    /// including by other threads.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.core.advance(now);
        self.core.expire();
        self.core.tasks.run();
    }

    /// Ends the input: open calls never end, and repeated actions stop. Sleeping
    /// tasks continue, so the node has ended when [`Self::next_timeout`] is
    /// `None`.
    pub fn handle_end(&mut self, now: Duration) {
        self.core.advance(now);
        self.core.end();
        self.core.tasks.run();
    }

    /// Returns the time at which to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        self.core.next_timeout()
    }

    /// Moves the output to the end of `out`: whole lines with their ends.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        self.core.take_output(out);
    }

    /// Returns the size of the output, in bytes.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        self.core.output_bytes()
    }

    /// Returns the number of open calls, and of open streams of other nodes.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.core.pending()
    }

    /// Makes message ids count up from `first` instead of 0.
    pub(crate) fn count_from(&self, first: MsgId) {
        self.core.count_from(first);
    }

    /// From now on, runs `signal` on any other thread that wakes a task.
    pub(crate) fn on_wake(&self, signal: impl FnMut() + Send + 'static) {
        self.core.tasks.on_wake(Box::new(signal));
    }

    fn take(&self, message: &Message<'_>) {
        if message.kind != "init" {
            self.core.open();
        }
        if let Some(id) = message.in_reply_to {
            self.core.complete(id, &message.src, outcome(message));
        } else if message.kind == "init" {
            self.init(message);
        } else {
            self.request(message);
        }
    }

    fn request(&self, message: &Message<'_>) {
        let responder = Responder::new(Rc::clone(&self.core), message);
        if let Err((error, responder)) = self.hand_over(message, responder) {
            tracing::warn!(src = &*message.src, kind = &*message.kind, %error, "request refused");
            responder.fail(&error);
        }
    }

    fn hand_over(
        &self,
        message: &Message<'_>,
        responder: Responder,
    ) -> Result<(), (Error, Responder)> {
        if let Err(error) = self.core.name() {
            return Err((error, responder));
        }
        if self.core.tasks.is_full() {
            let text = "too many requests are under way";
            return Err((
                Error::new(ErrorCode::TemporarilyUnavailable, text),
                responder,
            ));
        }
        self.node.take(message, responder).map_err(|responder| {
            let text = format!("there is no handler for {}", message.kind);
            (Error::new(ErrorCode::NotSupported, text), responder)
        })
    }

    fn init(&self, message: &Message<'_>) {
        let identity = match serde_json::from_str(message.body) {
            Ok(Init { node_id, node_ids }) => Identity {
                id: node_id,
                node_ids,
            },
            Err(error) => {
                tracing::warn!(%error, "malformed init");
                return Responder::new(Rc::clone(&self.core), message)
                    .fail(&Error::malformed(&error));
            }
        };
        let is_first = self.node.init(identity);
        let responder = Responder::new(Rc::clone(&self.core), message);
        if is_first {
            responder.reply(&());
            self.node.begin();
        } else {
            responder.fail(&Error::new(
                ErrorCode::PreconditionFailed,
                "the node is already initialized",
            ));
        }
    }

    /// Answers a line that could not be parsed.
    fn answer(&self, asked: &Asked<'_>, error: &Error) {
        let src = self
            .core
            .identity()
            .map_or(&*asked.dest, |identity| &*identity.id);
        let body = |out: &mut Vec<u8>| message::open_body("error", error, out);
        if let Err(error) = self.core.post(src, &asked.src, Some(asked.msg_id), body) {
            tracing::error!(%error, "error cannot be written");
        }
    }
}

/// Drops the tasks, handlers and state of the program, which hold handles to the
/// node.
impl Drop for Machine {
    fn drop(&mut self) {
        self.node.clear();
    }
}

/// Parses the outcome of a call from its reply.
pub(crate) fn outcome(message: &Message<'_>) -> Outcome {
    let unknown = |error: serde_json::Error| Error::new(ErrorCode::Crash, error.to_string());
    if message.kind != "error" {
        return serde_json::from_str(message.body).map_err(unknown);
    }
    let ErrorReply { code, text } = serde_json::from_str(message.body).map_err(unknown)?;
    Err(Error::new(
        code.unwrap_or(ErrorCode::Crash),
        text.unwrap_or_default(),
    ))
}
