//! The node as its program sees it: handlers are registered with it, and they
//! send, call, wait and remember through it.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::{Call, RPC_TIMEOUT};
use crate::core::{Core, Identity};
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::{Body, Message};
use crate::request::{Request, Responder};
use crate::storage::Storage;
use crate::tasks::LocalFuture;
use crate::timers::Sleep;

/// A handle to the node, with the program's state `S`. Clones are handles to
/// the same node. It stays on one thread.
pub struct Node<S> {
    core: Rc<Core>,
    program: Rc<Program<S>>,
}

impl<S> Clone for Node<S> {
    fn clone(&self) -> Self {
        Self { core: Rc::clone(&self.core), program: Rc::clone(&self.program) }
    }
}

struct Program<S> {
    state: RefCell<S>,
    handlers: RefCell<HashMap<String, Rc<Handler<S>>>>,
    /// What begins with the node's name.
    on_init: RefCell<Vec<LocalFuture>>,
}

/// Makes the task for one message.
type Handler<S> = dyn Fn(Node<S>, &str, Responder, String) -> LocalFuture;

impl<S: 'static> Node<S> {
    pub(crate) fn new(core: Rc<Core>, state: S) -> Self {
        let program =
            Program { state: RefCell::new(state), handlers: RefCell::default(), on_init: RefCell::default() };
        Self { core, program: Rc::new(program) }
    }

    /// Answers requests of a type: with what `handler` returns, as a body of
    /// that type and `_ok` (`()` for one without fields), or with its error. A
    /// body that is not a `B` gets error 12, a panic 13.
    ///
    /// Handlers run in the order in which messages come, each up to its first
    /// wait. A second handler of a type takes the place of the first.
    ///
    /// ```
    /// # use hark_node::{Node, Request};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Deserialize)]
    /// struct Add {
    ///     delta: u64,
    /// }
    ///
    /// #[derive(Serialize)]
    /// struct Added {
    ///     value: u64,
    /// }
    ///
    /// // The program's state is a number.
    /// fn program(node: &Node<u64>) {
    ///     node.handle("add", async |node: Node<u64>, request: Request<Add>| {
    ///         let mut value = node.state();
    ///         *value += request.body.delta;
    ///         Ok(Added { value: *value })
    ///     });
    /// }
    /// ```
    pub fn handle<B, R>(
        &self,
        kind: &str,
        handler: impl AsyncFn(Node<S>, Request<B>) -> Result<R, Error> + 'static,
    ) where
        B: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let handler = Rc::new(handler);
        self.register(kind, move |node, request: Request<B>| {
            let handler = Rc::clone(&handler);
            Box::pin(async move {
                let responder = request.responder.clone();
                match handler(node, request).await {
                    Ok(fields) => responder.reply(&fields),
                    Err(error) => responder.fail(&error),
                }
            })
        });
    }

    /// Takes messages of a type and answers nothing by itself: for those that
    /// want no answer, and for handlers that answer later or in parts by the
    /// request's [`Responder`]. Otherwise as [`Self::handle`].
    pub fn receive<B>(&self, kind: &str, handler: impl Fn(&Node<S>, Request<B>) + 'static)
    where
        B: DeserializeOwned + 'static,
    {
        let handler = Rc::new(handler);
        self.register(kind, move |node, request: Request<B>| {
            let handler = Rc::clone(&handler);
            Box::pin(async move { handler(&node, request) })
        });
    }

    pub(crate) const fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Has `task` make the task for each message of a type.
    pub(crate) fn register<B>(&self, kind: &str, task: impl Fn(Node<S>, Request<B>) -> LocalFuture + 'static)
    where
        B: DeserializeOwned + 'static,
    {
        let handler = move |node, body: &str, responder: Responder, src| -> LocalFuture {
            match serde_json::from_str(body) {
                Ok(body) => task(node, Request { src, body, responder }),
                Err(error) => {
                    tracing::warn!(src, %error, "a body is not as its type asks for");
                    responder.fail(&Error::malformed(&error));
                    Box::pin(std::future::ready(()))
                }
            }
        };
        self.program.handlers.borrow_mut().insert(kind.to_owned(), Rc::new(handler));
    }

    /// Runs once the node has a name, after `init` was answered; at once, where
    /// it has one.
    pub fn on_init(&self, task: impl AsyncFnOnce(Node<S>) + 'static) {
        let node = self.clone();
        let task: LocalFuture = Box::pin(async move { task(node).await });
        if self.core.identity().is_some() {
            self.core.tasks.spawn(task, None);
        } else {
            self.program.on_init.borrow_mut().push(task);
        }
    }

    /// Does something again and again, as long as there is input: the first
    /// time so long after `init`, and then so long after the last time ended, by
    /// itself or in a panic.
    pub fn every(&self, pause: Duration, action: impl AsyncFn(Node<S>) + 'static) {
        self.on_init(async move |node: Node<S>| {
            loop {
                Sleep::new(Rc::clone(&node.core), pause, false).await;
                node.core.tasks.alone(None, action(node.clone())).await.unwrap_or_default();
            }
        });
    }

    /// The node's name; empty before `init`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.core.identity().map_or("", |identity| &identity.id)
    }

    /// The names of all nodes, this one among them; none before `init`.
    #[must_use]
    pub fn node_ids(&self) -> &[String] {
        self.core.identity().map_or(&[], |identity| &identity.node_ids)
    }

    /// The names of the other nodes.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.node_ids().iter().map(String::as_str).filter(|id| *id != self.id())
    }

    /// One of the other nodes, at random; `None` where there are none.
    #[must_use]
    pub fn random_peer(&self) -> Option<&str> {
        let peers: Vec<_> = self.peers().collect();
        let place = self.random().checked_rem(u64::try_from(peers.len()).ok()?)?;
        peers.get(usize::try_from(place).ok()?).copied()
    }

    /// The program's state, for as long as it is held. Not to be held over an
    /// `.await`: somebody else would find it taken, and panic.
    #[must_use]
    pub fn state(&self) -> RefMut<'_, S> {
        self.program.state.borrow_mut()
    }

    /// The node's durable storage, which outlives a crash in a simulation.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.core.storage
    }

    /// Sends a message that wants no answer.
    ///
    /// # Errors
    /// 13, where the fields cannot be written; 11 before `init`.
    pub fn send(&self, dest: &str, kind: &str, fields: &impl Serialize) -> Result<(), Error> {
        self.core.send(dest, kind, fields).map(drop)
    }

    /// A call with a body of this type and these fields, to be awaited.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use hark_node::{Error, Node, Retry};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize)]
    /// struct Read<'a> {
    ///     key: &'a str,
    /// }
    ///
    /// #[derive(Deserialize)]
    /// struct ReadOk {
    ///     value: i64,
    /// }
    ///
    /// async fn read(node: &Node<()>, key: &str) -> Result<i64, Error> {
    ///     let call = node.call("lin-kv", "read", &Read { key });
    ///     let reply = call.retry(Retry { attempts: 5, ..Retry::default() }).await?;
    ///     Ok(reply.parse::<ReadOk>()?.value)
    /// }
    /// ```
    pub fn call(&self, dest: &str, kind: &str, fields: &impl Serialize) -> Call {
        Call::new(Rc::clone(&self.core), dest, Body::new(kind, fields))
    }

    /// A call with a body that came from somebody else: of its own it gets a
    /// `msg_id` and loses `in_reply_to`.
    pub fn forward(&self, dest: &str, body: &Json) -> Call {
        Call::new(Rc::clone(&self.core), dest, Body::forwarded(body))
    }

    /// Sends a request now, and passes its end to `callback`: the whole body of
    /// the reply, the error that was replied, or error 0 where nothing came
    /// within 2 s. After the end of the input nothing is sent, and the callback
    /// is dropped.
    ///
    /// # Errors
    /// 13, where the fields cannot be written; 11 before `init`, and with too
    /// many calls open. The callback is not called then.
    ///
    /// ```
    /// # use hark_node::{Error, Node};
    /// // Counts who is there.
    /// fn ask_all(node: &Node<usize>) -> Result<(), Error> {
    ///     for peer in node.peers() {
    ///         node.rpc(peer, "ping", &(), |node, reply| {
    ///             *node.state() += usize::from(reply.is_ok());
    ///         })?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn rpc(
        &self,
        dest: &str,
        kind: &str,
        fields: &impl Serialize,
        callback: impl FnOnce(&Node<S>, Result<Json, Error>) + 'static,
    ) -> Result<(), Error> {
        self.open_rpc(dest, &Body::new(kind, fields)?, callback)
    }

    /// As [`Self::rpc`], with a body that came from somebody else.
    ///
    /// # Errors
    /// As for [`Self::rpc`]; 12, where it is no object with a type.
    pub fn forward_rpc(
        &self,
        dest: &str,
        body: &Json,
        callback: impl FnOnce(&Node<S>, Result<Json, Error>) + 'static,
    ) -> Result<(), Error> {
        self.open_rpc(dest, &Body::forwarded(body)?, callback)
    }

    fn open_rpc(
        &self,
        dest: &str,
        body: &Body,
        callback: impl FnOnce(&Node<S>, Result<Json, Error>) + 'static,
    ) -> Result<(), Error> {
        if self.core.has_ended() {
            return Ok(());
        }
        let id = self.core.send_call(dest, body)?;
        let deadline = self.core.now().saturating_add(RPC_TIMEOUT);
        // What it does is done for the request that is handled now.
        let (node, responder) = (self.clone(), self.core.tasks.current());
        let callback = move |end: Result<Result<Json, Error>, _>| {
            let outcome = end.unwrap_or_else(|error| Err(Error::from(error)));
            let core = Rc::clone(&node.core);
            core.tasks.within(responder, || callback(&node, outcome)).unwrap_or_default();
        };
        let opened = self.core.calls.call_back(id, Some(deadline), callback);
        opened.map_err(|error| Error::new(ErrorCode::Crash, error.to_string()))
    }

    /// The calls that are open, with and without a callback, and the streams of
    /// other nodes that are read.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.core.pending()
    }

    /// Replies that came when nobody waited for them any more.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        self.core.late_replies()
    }

    /// Begins a task; it runs when what runs now waits or ends. A panic ends it
    /// alone.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.core.tasks.spawn(Box::pin(task), self.core.tasks.current());
    }

    /// Waits; where the time is zero, until all else that can run now has run.
    /// What waits so is still waited for after the end of the input.
    pub fn sleep(&self, wait: Duration) -> impl Future<Output = ()> + use<S> {
        Sleep::new(Rc::clone(&self.core), wait, true)
    }

    /// The time since the node began. It stands still while a handler runs.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.core.now()
    }

    /// A random number; in a simulation it depends on the seed alone.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.core.random()
    }
}

/// A node whose program's state is nobody's business.
pub(crate) trait Running {
    /// Takes a request that is no `init`; whether its type is known.
    fn take(&self, message: &Message<'_>, responder: &Responder) -> bool;

    /// Gives the node its name; whether it had none.
    fn init(&self, identity: Identity) -> bool;

    /// Begins what waits for the name.
    fn begin(&self);

    /// Forgets what may hold handles to the node: the program's state too.
    fn clear(&self);
}

impl<S: Default + 'static> Running for Node<S> {
    fn take(&self, message: &Message<'_>, responder: &Responder) -> bool {
        let handler = self.program.handlers.borrow().get(&*message.kind).cloned();
        let Some(handler) = handler else { return false };
        // Parsing and serde are a program's code as well.
        let make =
            || handler(self.clone(), message.body, responder.clone(), message.src.clone().into_owned());
        if let Some(task) = self.core.tasks.within(Some(responder.clone()), make) {
            self.core.tasks.begin(task, Some(responder.clone()));
        }
        true
    }

    fn init(&self, identity: Identity) -> bool {
        self.core.identify(identity)
    }

    fn begin(&self) {
        let tasks = std::mem::take(&mut *self.program.on_init.borrow_mut());
        tasks.into_iter().for_each(|task| self.core.tasks.begin(task, None));
    }

    fn clear(&self) {
        self.core.clear();
        self.program.handlers.borrow_mut().clear();
        self.program.on_init.borrow_mut().clear();
        // Outside of the borrow, as it is a program's code that is run.
        let state = self.program.state.try_borrow_mut().map(|mut state| std::mem::take(&mut *state));
        drop(state);
    }
}
