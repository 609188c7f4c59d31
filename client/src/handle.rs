//! Requests and their answers, in the order of the calls.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::{Password, Request, Sequence, UserName};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::engine::{self, Stop};
use crate::error::RequestError;
use crate::event::{Events, LinkState};
use crate::journal::SendTag;
use crate::outbox::{Answer, QueuedRequest};
use crate::seen::SeenStore;

/// Capacity of the command queue.
const COMMANDS_MAX: usize = 16;

/// Entry point: starts a client.
#[derive(Debug)]
pub struct Client;

impl Client {
    /// Starts a client. It connects at once, and reconnects whenever the link
    /// is lost, until [`Handle::close`] or until the last handle is dropped;
    /// pending requests then end as [`RequestError::Unknown`].
    ///
    /// [`Events`] must be polled for as long as they are kept: while about 256
    /// of them are queued, the client stops reading from the server.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    #[must_use]
    pub fn connect(config: Config) -> (Handle, Events) {
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let (stop, stop_in) = watch::channel(Stop::No);
        let seen = Arc::clone(&config.seen);
        let unanswered = Arc::<AtomicUsize>::default();
        let (engine, events) =
            engine::Engine::new(config, commands_in, stop_in, Arc::clone(&unanswered));
        let tasks = TaskTracker::new();
        tasks.spawn(engine.run());
        tasks.close();
        let link = events.link.clone();
        let commands = Mutex::new(commands);
        (
            Handle {
                shared: Arc::new(Shared {
                    commands,
                    stop,
                    seen,
                    tasks,
                    link,
                    unanswered,
                }),
            },
            events,
        )
    }
}

/// A handle to a client. Clones are handles to the same client.
///
/// Requests are accepted in the order of the calls, across all clones, as soon
/// as there is room: at most 1,024 sends and 256 other requests are pending.
/// Dropping a future before its request was accepted withdraws the request;
/// dropping it later leaves the request in flight.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // Fair, and held while the queue is full: callers are served in order.
    commands: Mutex<mpsc::Sender<QueuedRequest>>,
    stop: watch::Sender<Stop>,
    seen: Arc<dyn SeenStore>,
    tasks: TaskTracker,
    link: watch::Receiver<LinkState>,
    unanswered: Arc<AtomicUsize>,
}

/// The answer to `list` or `members`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The names, sorted.
    pub names: Vec<UserName>,
    /// Whether the list is incomplete.
    pub is_truncated: bool,
}

impl Handle {
    /// Creates an account.
    ///
    /// # Errors
    /// See [`RequestError`]. The request is never repeated.
    pub async fn create(
        &self,
        user: UserName,
        password: Option<Password>,
    ) -> Result<(), RequestError> {
        self.ask(Request::Create { user, password }).await.map(drop)
    }

    /// Authenticates as `user` without receiving. Waits until all earlier
    /// requests are answered.
    ///
    /// # Errors
    /// See [`RequestError`]. The current user does not change in that case.
    pub async fn login(
        &self,
        user: UserName,
        password: Option<Password>,
    ) -> Result<(), RequestError> {
        self.ask(Request::Login { user, password }).await.map(drop)
    }

    /// Authenticates as `user`, receives for it, and returns the number of
    /// queued messages. Waits until all earlier requests are answered.
    ///
    /// # Errors
    /// See [`RequestError`], including [`RequestError::SeenStore`]. The current
    /// user does not change in that case.
    pub async fn connect(
        &self,
        user: UserName,
        password: Option<Password>,
    ) -> Result<u64, RequestError> {
        self.check_seen(&user)?;
        let answer = self.ask(Request::Connect { user, password }).await?;
        Ok(answer.fields.as_queued().unwrap_or(0))
    }

    /// Logs out and stops receiving. Waits until all earlier requests are
    /// answered.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn disconnect(&self) -> Result<(), RequestError> {
        self.ask(Request::Disconnect).await.map(drop)
    }

    /// Sets the password of an account; `old` is `None` if it has none.
    ///
    /// # Errors
    /// See [`RequestError`]. The request is never repeated.
    pub async fn password(
        &self,
        user: UserName,
        old: Option<Password>,
        new: Password,
    ) -> Result<(), RequestError> {
        self.ask(Request::Password { user, old, new })
            .await
            .map(drop)
    }

    /// Deletes an account and its queue, and returns whether it existed.
    ///
    /// # Errors
    /// See [`RequestError`]. The request is never repeated.
    pub async fn delete(
        &self,
        user: UserName,
        password: Option<Password>,
    ) -> Result<bool, RequestError> {
        let answer = self.ask(Request::Delete { user, password }).await?;
        Ok(answer.fields.as_deleted().unwrap_or(true))
    }

    /// Lists the users, or those that match a regular expression.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn list(&self, pattern: Option<ByteString>) -> Result<Names, RequestError> {
        let answer = self.ask(Request::List { pattern }).await?;
        Ok(answer.into_names())
    }

    /// Checks that the server responds.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn ping(&self) -> Result<(), RequestError> {
        self.ask(Request::Ping).await.map(drop)
    }

    /// Sends a message to `user`. Waits until there is room for another
    /// unanswered send; the receipt then resolves to the outcome.
    ///
    /// # Errors
    /// [`RequestError::NotSent`] once the client is closed.
    pub async fn send(&self, user: UserName, text: ByteString) -> Result<Receipt, RequestError> {
        self.begin(Request::Send { user, text }).await
    }

    /// As [`Self::send`], with a name for the [`SendJournal`](crate::journal::SendJournal)
    /// of the application.
    ///
    /// # Errors
    /// As [`Self::send`]. The receipt resolves to [`RequestError::NotSent`] if the journal
    /// does not want the send, or fails.
    pub async fn send_tagged(
        &self,
        user: UserName,
        text: ByteString,
        tag: SendTag,
    ) -> Result<Receipt, RequestError> {
        let request = Request::Send { user, text };
        self.begin_as(request, false, Some(tag)).await
    }

    /// Returns the number of accepted, unanswered requests.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.shared.unanswered.load(Ordering::Relaxed)
    }

    /// Returns a receiver for the state of the link.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.shared.link.clone()
    }

    /// Closes the client. No further request is accepted; pending requests and
    /// acks have up to `within` to complete. Returns the number of abandoned
    /// requests, which end as [`RequestError::Unknown`] if they had been
    /// written and as [`RequestError::NotSent`] otherwise.
    pub async fn close(&self, within: Duration) -> usize {
        self.shared
            .stop
            .send_modify(|stop| *stop = stop.earlier(Instant::now() + within));
        self.shared.tasks.wait().await;
        self.unanswered()
    }

    /// Reads the record of seen messages: a client that cannot tell which messages
    /// were seen must not take over from another one.
    pub(crate) fn check_seen(&self, user: &UserName) -> Result<(), RequestError> {
        let loaded = self.shared.seen.load(user, None);
        loaded.map_err(|error| RequestError::SeenStore(error.to_string()))?;
        Ok(())
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Answer, RequestError> {
        self.begin(request).await?.answer().await
    }

    /// Makes an `attach`, or a `connect` if the server has no devices.
    pub(crate) async fn ask_or_connect(&self, attach: Request) -> Result<Answer, RequestError> {
        self.begin_as(attach, true, None).await?.answer().await
    }

    async fn begin(&self, request: Request) -> Result<Receipt, RequestError> {
        self.begin_as(request, false, None).await
    }

    async fn begin_as(
        &self,
        request: Request,
        or_connect: bool,
        tag: Option<SendTag>,
    ) -> Result<Receipt, RequestError> {
        let (answer, receipt) = oneshot::channel();
        let commands = self.shared.commands.lock().await;
        let command = QueuedRequest {
            request,
            answer: Some(answer),
            or_connect,
            tag,
        };
        commands
            .send(command)
            .await
            .map_err(|_| RequestError::closed())?;
        Ok(Receipt { answer: receipt })
    }
}

/// The future outcome of a send. `Ok` means that the message is on stable
/// storage, and carries its number if the server names it. Dropping the receipt
/// does not withdraw the message.
#[derive(Debug)]
#[must_use = "the outcome of a send is unknown until it is awaited"]
pub struct Receipt {
    answer: oneshot::Receiver<Result<Answer, RequestError>>,
}

impl Receipt {
    async fn answer(self) -> Result<Answer, RequestError> {
        self.answer.await.unwrap_or(Err(RequestError::closed()))
    }
}

impl Future for Receipt {
    type Output = Result<Option<Sequence>, RequestError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = Pin::new(&mut self.answer).poll(cx);
        ended.map(|outcome| {
            outcome
                .unwrap_or(Err(RequestError::closed()))
                .map(|answer| answer.fields.as_stored())
        })
    }
}
