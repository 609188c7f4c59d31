//! The node as its program sees it: the program registers handlers with it, and
//! the handlers send, call, wait and keep their state through it.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rand::distr::uniform::{SampleRange, SampleUniform};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::{Call, FromReply, RPC_TIMEOUT, Reply};
use crate::call_all::CallAll;
use crate::core::{Core, Identity};
use crate::error::{Error, ErrorCode};
use crate::fields;
use crate::json::Json;
use crate::message::{Body, Message};
use crate::request::{IntoAnswer, Request, Responder};
use crate::storage::Storage;
use crate::tasks::{AbortHandle, LocalFuture};
use crate::timers::{Sleep, Timer};

/// A handle to the node, with the program's state `S`. Clones are handles to
/// the same node. A node stays on one thread.
pub struct Node<S> {
    core: Rc<Core>,
    program: Rc<Program<S>>,
}

impl<S> Clone for Node<S> {
    fn clone(&self) -> Self {
        Self {
            core: Rc::clone(&self.core),
            program: Rc::clone(&self.program),
        }
    }
}

struct Program<S> {
    /// `None` once the machine was dropped.
    state: RefCell<Option<S>>,
    handlers: RefCell<HashMap<String, Rc<Handler<S>>>>,
    /// The tasks that wait for the node's name.
    on_init: RefCell<Vec<LocalFuture>>,
}

/// Makes the task for one message.
type Handler<S> = dyn Fn(Node<S>, &str, Responder, String) -> LocalFuture;

impl<S: 'static> Node<S> {
    pub(crate) fn new(core: Rc<Core>, state: S) -> Self {
        let program = Program {
            state: RefCell::new(Some(state)),
            handlers: RefCell::default(),
            on_init: RefCell::default(),
        };
        Self {
            core,
            program: Rc::new(program),
        }
    }

    /// Registers the handler of a request type. The request is answered with the
    /// return value (see [`IntoAnswer`]), as a body of the type and `_ok`, or
    /// with the error. A body that is not a `B` is answered with error 12, a
    /// panic with error 13.
    ///
    /// Handlers run in the order in which messages arrive, each up to its first
    /// wait. A second handler of a type replaces the first.
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
    /// struct AddOk {
    ///     value: u64,
    /// }
    ///
    /// // The state is a number.
    /// fn program(node: &Node<u64>) {
    ///     node.handle("add", async |node: Node<u64>, request: Request<Add>| {
    ///         let mut value = node.state();
    ///         *value += request.body.delta;
    ///         Ok(AddOk { value: *value })
    ///     });
    /// }
    /// ```
    pub fn handle<B, R>(
        &self,
        kind: &str,
        handler: impl AsyncFn(Node<S>, Request<B>) -> Result<R, Error> + 'static,
    ) where
        B: DeserializeOwned + 'static,
        R: IntoAnswer + 'static,
    {
        let handler = Rc::new(handler);
        self.register(kind, move |node, request: Request<B>| {
            let handler = Rc::clone(&handler);
            Box::pin(async move {
                let responder = request.responder.clone();
                match handler(node, request).await {
                    Ok(answer) => answer.answer(&responder),
                    Err(error) => responder.fail(&error),
                }
            })
        });
    }

    /// Registers the handler of a message type that expects no answer, or of a
    /// request that the handler answers itself, later or in parts, with the
    /// [`Responder`] of the request. Otherwise as [`Self::handle`].
    pub fn receive<B>(&self, kind: &str, handler: impl AsyncFn(Node<S>, Request<B>) + 'static)
    where
        B: DeserializeOwned + 'static,
    {
        let handler = Rc::new(handler);
        self.register(kind, move |node, request: Request<B>| {
            let handler = Rc::clone(&handler);
            Box::pin(async move { handler(node, request).await })
        });
    }

    pub(crate) const fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Registers the function that makes the task for each message of a type.
    pub(crate) fn register<B>(
        &self,
        kind: &str,
        task: impl Fn(Node<S>, Request<B>) -> LocalFuture + 'static,
    ) where
        B: DeserializeOwned + 'static,
    {
        let handler = move |node, body: &str, responder: Responder, src| -> LocalFuture {
            match fields::parse(body) {
                Ok(body) => task(
                    node,
                    Request {
                        src,
                        body,
                        responder,
                    },
                ),
                Err(error) => {
                    tracing::warn!(src, %error, "malformed request body");
                    responder.fail(&Error::malformed(&error));
                    Box::pin(std::future::ready(()))
                }
            }
        };
        self.program
            .handlers
            .borrow_mut()
            .insert(kind.to_owned(), Rc::new(handler));
    }

    /// Runs a task once `init` was answered, or at once if it already was.
    /// Messages that it sends wait until the first message that is not `init`.
    pub fn on_init(&self, task: impl AsyncFnOnce(Node<S>) + 'static) {
        let node = self.clone();
        let task: LocalFuture = Box::pin(async move { task(node).await });
        if self.core.identity().is_some() {
            self.core.tasks.spawn(task, None);
        } else {
            self.program.on_init.borrow_mut().push(task);
        }
    }

    /// Runs an action repeatedly until the end of the input: first this long
    /// after `init`, and then this long after the previous run has ended or
    /// panicked.
    pub fn every(&self, pause: Duration, action: impl AsyncFn(Node<S>) + 'static) {
        self.on_init(async move |node: Node<S>| {
            loop {
                Sleep::new(Rc::clone(&node.core), pause, false).await;
                node.core
                    .tasks
                    .alone(None, action(node.clone()))
                    .await
                    .unwrap_or_default();
            }
        });
    }

    /// Returns the node's name, which is empty before `init`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.core.identity().map_or("", |identity| &identity.id)
    }

    /// Returns the names of all nodes, including this one; none before `init`.
    #[must_use]
    pub fn node_ids(&self) -> &[String] {
        self.core
            .identity()
            .map_or(&[], |identity| &identity.node_ids)
    }

    /// Returns the names of the other nodes.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.node_ids()
            .iter()
            .map(String::as_str)
            .filter(|id| *id != self.id())
    }

    /// Returns a random other node; `None` if there is none.
    #[must_use]
    pub fn random_peer(&self) -> Option<&str> {
        let peers: Vec<_> = self.peers().collect();
        let place = self
            .random()
            .checked_rem(u64::try_from(peers.len()).ok()?)?;
        peers.get(usize::try_from(place).ok()?).copied()
    }

    /// Returns the number of nodes that make a majority, this one included.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.node_ids().len() / 2 + 1
    }

    /// Borrows the program's state. Do not hold it across an `.await`.
    ///
    /// # Panics
    /// If the state is borrowed already, or the node's machine was dropped.
    #[must_use]
    #[expect(clippy::panic, reason = "a program that outlives its node is wrong")]
    pub fn state(&self) -> RefMut<'_, S> {
        let state = RefMut::filter_map(self.program.state.borrow_mut(), Option::as_mut);
        state
            .unwrap_or_else(|_| panic!("the state of a node is used after its machine was dropped"))
    }

    /// Returns the node's durable storage, which outlives a crash in a
    /// simulation.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.core.storage
    }

    /// Sends a message that expects no answer, and so has no `msg_id`.
    ///
    /// # Errors
    /// 13 if the fields cannot be written; 11 before `init`, and if more than 1
    /// MiB waits for the first message other than `init`.
    pub fn send(&self, dest: &str, kind: &str, fields: &impl Serialize) -> Result<(), Error> {
        self.core.send(dest, kind, fields).map(drop)
    }

    /// Returns a call with a body of this type and these fields, which is sent
    /// when it is awaited. It yields the reply as an `R`: a type for its fields,
    /// `()` for none, or [`Reply`].
    ///
    /// ```
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
    ///     let call = node.call::<ReadOk>("lin-kv", "read", &Read { key });
    ///     Ok(call.retry(Retry { attempts: 5, ..Retry::default() }).await?.value)
    /// }
    /// ```
    pub fn call<R: FromReply>(&self, dest: &str, kind: &str, fields: &impl Serialize) -> Call<R> {
        Call::new(Rc::clone(&self.core), dest, Body::new(kind, fields))
    }

    /// Returns the same call to several nodes at once.
    ///
    /// ```
    /// # use hark_node::{Error, Node};
    /// /// Waits until a majority of the nodes has an entry.
    /// async fn replicate(node: &Node<()>, entry: &[(&str, u64)]) -> Result<(), Error> {
    ///     let entry: std::collections::BTreeMap<_, _> = entry.iter().copied().collect();
    ///     let copies = node.call_all::<()>(node.peers(), "append", &entry);
    ///     copies.at_least(node.majority() - 1).await.map(drop)
    /// }
    /// ```
    pub fn call_all<'a, R: FromReply + 'static>(
        &self,
        dests: impl IntoIterator<Item = &'a str>,
        kind: &str,
        fields: &impl Serialize,
    ) -> CallAll<R> {
        let dests = dests.into_iter().map(str::to_owned).collect();
        CallAll::new(Rc::clone(&self.core), dests, Body::new(kind, fields))
    }

    /// Returns a call with a body that another node or a client has sent: its
    /// `msg_id` is replaced, and `in_reply_to` is removed.
    pub fn forward(&self, dest: &str, body: &Json) -> Call<Reply> {
        Call::new(Rc::clone(&self.core), dest, Body::forwarded(body))
    }

    /// Sends a request now, and passes its outcome to `callback`: the whole
    /// body of the reply, the error that was replied, or error 0 if none came
    /// within 2 s. After the end of the input it sends nothing and drops the
    /// callback.
    ///
    /// # Errors
    /// 13 if the fields cannot be written; 11 before `init`, and if too many
    /// calls are open. In these cases the callback is not called.
    ///
    /// ```
    /// # use hark_node::{Error, Node};
    /// // Counts the nodes that answer.
    /// fn ping_all(node: &Node<usize>) -> Result<(), Error> {
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

    /// As [`Self::rpc`], with a body as for [`Self::forward`].
    ///
    /// # Errors
    /// As for [`Self::rpc`]; 12 if the body is not an object with a type.
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
        let deadline = self.core.call_deadline(RPC_TIMEOUT);
        // A panic of the callback is answered to the request that is handled now.
        let (node, responder) = (self.clone(), self.core.tasks.current());
        let callback = move |end: Result<Result<Json, Error>, _>| {
            let outcome = end.unwrap_or_else(|error| Err(Error::from(error)));
            let core = Rc::clone(&node.core);
            core.tasks
                .within(responder, || callback(&node, outcome))
                .unwrap_or_default();
        };
        let opened = self.core.calls.call_back(id, Some(deadline), callback);
        opened.map_err(|error| Error::new(ErrorCode::Crash, error.to_string()))
    }

    /// Sets the time within which each request must be answered, instead of
    /// [`REQUEST_TIMEOUT`](crate::REQUEST_TIMEOUT); `Duration::MAX` means no
    /// limit. A request that is still open then is answered with error 0, and a
    /// later answer is counted and dropped: the harness has given up, and an
    /// answer to a client that is gone makes a node mute.
    pub fn answer_within(&self, limit: Duration) {
        self.core.set_request_timeout(limit);
    }

    /// Returns the number of answers that came after the deadline of their
    /// request.
    #[must_use]
    pub fn late_answers(&self) -> u64 {
        self.core.late_answers()
    }

    /// Returns the number of open calls, with and without a callback, and of
    /// open streams of other nodes.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.core.pending()
    }

    /// Returns the number of replies that came after their call had ended.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        self.core.late_replies()
    }

    /// Begins a task; it runs when the code that runs now waits or ends. A panic
    /// ends only the task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let id = self
            .core
            .tasks
            .spawn(Box::pin(task), self.core.tasks.current());
        AbortHandle::new(Rc::clone(&self.core), id)
    }

    /// Waits for this time; if it is zero, until all other tasks that can run
    /// have run. After the end of the input, the node still waits for sleeps.
    pub fn sleep(&self, wait: Duration) -> impl Future<Output = ()> + use<S> {
        Sleep::new(Rc::clone(&self.core), wait, true)
    }

    /// Waits for a future, which is dropped after this time.
    ///
    /// # Errors
    /// 0 if the time elapsed first.
    pub async fn timeout<F: IntoFuture>(
        &self,
        limit: Duration,
        future: F,
    ) -> Result<F::Output, Error> {
        let mut future = pin!(future.into_future());
        let mut limit = pin!(Sleep::new(Rc::clone(&self.core), limit, false));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => limit
                .as_mut()
                .poll(cx)
                .map(|()| Err(Error::new(ErrorCode::Timeout, "the time is over"))),
        })
        .await
    }

    /// Returns a timer that fires after this time, unless it is reset.
    #[must_use]
    pub fn timer(&self, after: Duration) -> Timer {
        Timer::new(Rc::clone(&self.core), after)
    }

    /// Returns the time since the node began. It stands still while a handler
    /// runs.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.core.now()
    }

    /// Returns a random number. In a simulation it depends only on the seed, as
    /// do all other random values of a node.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.core.random()
    }

    /// Returns a random value of a range of numbers or times.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use hark_node::Node;
    /// fn election_timeout(node: &Node<()>) -> Duration {
    ///     node.random_range(Duration::from_millis(150)..Duration::from_millis(300))
    /// }
    /// ```
    ///
    /// # Panics
    /// If the range is empty.
    #[must_use]
    pub fn random_range<T: SampleUniform>(&self, range: impl SampleRange<T>) -> T {
        self.core.random_range(range)
    }
}

/// A node without the type of its state.
pub(crate) trait Running {
    /// Handles a request other than `init`; gives the responder back if its type
    /// is unknown.
    fn take(&self, message: &Message<'_>, responder: Responder) -> Result<(), Responder>;

    /// Sets the node's name. Returns whether it had none.
    fn init(&self, identity: Identity) -> bool;

    /// Begins the tasks that wait for the name.
    fn begin(&self);

    /// Drops all that may hold handles to the node, the state included.
    fn clear(&self);
}

impl<S: 'static> Running for Node<S> {
    fn take(&self, message: &Message<'_>, responder: Responder) -> Result<(), Responder> {
        let handler = self.program.handlers.borrow().get(&*message.kind).cloned();
        let Some(handler) = handler else {
            return Err(responder);
        };
        // Parsing runs code of the program, too.
        let make = || {
            handler(
                self.clone(),
                message.body,
                responder.clone(),
                message.src.clone().into_owned(),
            )
        };
        if let Some(task) = self.core.tasks.within(Some(responder.clone()), make) {
            self.core.tasks.begin(task, Some(responder.clone()));
        }
        responder.wait_by_default();
        Ok(())
    }

    fn init(&self, identity: Identity) -> bool {
        self.core.identify(identity)
    }

    fn begin(&self) {
        let tasks = std::mem::take(&mut *self.program.on_init.borrow_mut());
        tasks
            .into_iter()
            .for_each(|task| self.core.tasks.begin(task, None));
    }

    fn clear(&self) {
        self.core.clear();
        self.program.handlers.borrow_mut().clear();
        self.program.on_init.borrow_mut().clear();
        // Dropped outside of the borrow, as it runs code of the program.
        let state = self
            .program
            .state
            .try_borrow_mut()
            .map(|mut state| state.take());
        drop(state);
    }
}
