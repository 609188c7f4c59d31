//! A node without input, output or a clock: lines and the time go in, lines
//! come out. The same lines at the same times give the same output.

use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;

use crate::core::{Core, Identity, Outcome};
use crate::error::{Error, ErrorCode};
use crate::message::{self, Asked, Message, MsgId};
use crate::node::{Node, Running};
use crate::request::Responder;
use crate::storage::Storage;

/// A node that is driven by its caller. All times are since it began, and never
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
/// // Nobody has answered for a second.
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
    /// A node that runs the handlers that `program` registers. All its random
    /// numbers come from `seed`. Its storage is empty.
    pub fn new<S: Default + 'static>(program: impl FnOnce(&Node<S>), seed: u64) -> Self {
        Self::with_state(S::default(), program, seed)
    }

    /// As [`Self::new`], with this state in place of the default.
    pub fn with_state<S: 'static>(state: S, program: impl FnOnce(&Node<S>), seed: u64) -> Self {
        Self::with_storage(state, Storage::default(), program, seed)
    }

    /// As [`Self::with_state`], with the storage of a former life.
    pub fn with_storage<S: 'static>(
        state: S,
        storage: Storage,
        program: impl FnOnce(&Node<S>),
        seed: u64,
    ) -> Self {
        let core = Core::new(seed, storage);
        let node = Node::new(Rc::clone(&core), state);
        program(&node);
        Self { core, node: Box::new(node) }
    }

    /// Takes one line, with or without its end, and runs what comes of it until
    /// everything waits. Whatever the line is, the node goes on.
    pub fn handle_line(&mut self, now: Duration, line: &[u8]) {
        self.core.advance(now);
        match message::parse(line) {
            Ok(message) => self.take(&message),
            Err(malformed) => {
                tracing::warn!(why = malformed.why, "a line is no message");
                if let Some(asked) = malformed.asked {
                    self.answer(&asked, &Error::new(ErrorCode::MalformedRequest, malformed.why));
                }
            }
        }
        self.core.tasks.run();
    }

    /// Ends what is due, and runs what comes of it and what other threads have
    /// woken.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.core.advance(now);
        self.core.expire();
        self.core.tasks.run();
    }

    /// There will be no more lines: open calls will not end, and what was done
    /// again and again is not done any more. What sleeps goes on, so the node is
    /// over when [`Self::next_timeout`] is `None`.
    pub fn handle_end(&mut self, now: Duration) {
        self.core.advance(now);
        self.core.end();
        self.core.tasks.run();
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        self.core.next_timeout()
    }

    /// Moves what was sent to the end of `out`: whole lines with their ends.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        self.core.take_output(out);
    }

    /// The bytes that wait to be taken.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        self.core.output_bytes()
    }

    /// The calls that are open, and the streams of other nodes that are read.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.core.pending()
    }

    /// The ids of what is sent from now on count up from `first`, and not from 0.
    pub(crate) fn count_from(&self, first: MsgId) {
        self.core.count_from(first);
    }

    /// This thread is unparked when another one wakes a task, from now on.
    pub(crate) fn unpark_this_thread(&self) {
        self.core.tasks.unpark(std::thread::current());
    }

    fn take(&self, message: &Message<'_>) {
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
        if let Err(error) = self.hand_over(message, &responder) {
            tracing::warn!(src = &*message.src, kind = &*message.kind, %error, "a message is refused");
            responder.fail(&error);
        }
    }

    fn hand_over(&self, message: &Message<'_>, responder: &Responder) -> Result<(), Error> {
        self.core.name()?;
        if self.core.tasks.is_full() {
            let text = "too many requests are under way";
            return Err(Error::new(ErrorCode::TemporarilyUnavailable, text));
        }
        if !self.node.take(message, responder) {
            let text = format!("there is no handler for {}", message.kind);
            return Err(Error::new(ErrorCode::NotSupported, text));
        }
        Ok(())
    }

    fn init(&self, message: &Message<'_>) {
        let identity = match serde_json::from_str(message.body) {
            Ok(Init { node_id, node_ids }) => Identity { id: node_id, node_ids },
            Err(error) => {
                tracing::warn!(%error, "init is not as it should be");
                return Responder::new(Rc::clone(&self.core), message).fail(&Error::malformed(&error));
            }
        };
        let is_first = self.node.init(identity);
        let responder = Responder::new(Rc::clone(&self.core), message);
        if is_first {
            responder.reply(&());
            self.node.begin();
        } else {
            responder.fail(&Error::new(ErrorCode::PreconditionFailed, "the node is initialised already"));
        }
    }

    /// Answers what could not be parsed.
    fn answer(&self, asked: &Asked<'_>, error: &Error) {
        let src = self.core.identity().map_or(&*asked.dest, |identity| &*identity.id);
        let body = |out: &mut Vec<u8>| message::open_body("error", error, out);
        if let Err(error) = self.core.post(src, &asked.src, Some(asked.msg_id), body) {
            tracing::error!(%error, "an error could not be written");
        }
    }
}

/// The program's tasks, handlers and state hold handles to the node: they end
/// with it.
impl Drop for Machine {
    fn drop(&mut self) {
        self.node.clear();
    }
}

/// What a reply says.
pub(crate) fn outcome(message: &Message<'_>) -> Outcome {
    let unknown = |error: serde_json::Error| Error::new(ErrorCode::Crash, error.to_string());
    if message.kind != "error" {
        return serde_json::from_str(message.body).map_err(unknown);
    }
    let ErrorReply { code, text } = serde_json::from_str(message.body).map_err(unknown)?;
    Err(Error::new(code.unwrap_or(ErrorCode::Crash), text.unwrap_or_default()))
}
