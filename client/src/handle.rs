//! Asking: requests go in here, in the order of the calls, and answers come
//! out.

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
use crate::outbox::{Answer, Command};
use crate::taken::TakenStore;

/// Commands on their way to the task.
const COMMANDS_MAX: usize = 16;

/// The way in.
#[derive(Debug)]
pub struct Client;

impl Client {
    /// Starts a client. It connects at once, and again whenever the link is
    /// lost, until [`Handle::close`] or until the last handle is dropped; what
    /// is under way then ends as [`RequestError::Unknown`].
    ///
    /// [`Events`] must be taken for as long as they are kept: while about 256
    /// of them wait, nothing more is read from the server.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    #[must_use]
    pub fn connect(config: Config) -> (Handle, Events) {
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let (stop, stop_in) = watch::channel(Stop::No);
        let taken = Arc::clone(&config.taken);
        let unanswered = Arc::<AtomicUsize>::default();
        let (engine, events) = engine::Engine::new(config, commands_in, stop_in, Arc::clone(&unanswered));
        let tasks = TaskTracker::new();
        tasks.spawn(engine.run());
        tasks.close();
        let link = events.link.clone();
        let commands = Mutex::new(commands);
        (Handle { shared: Arc::new(Shared { commands, stop, taken, tasks, link, unanswered }) }, events)
    }
}

/// A client, to ask through. Clones are the same client.
///
/// Every request is accepted in the order of the calls, also across clones,
/// as soon as there is room: at most 1,024 sends and 256 other requests are
/// under way. A future that is dropped before its request was accepted asks
/// nothing; one that is dropped later leaves the request under way.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // Fair, and held while the queue is full: who called first is queued first.
    commands: Mutex<mpsc::Sender<Command>>,
    stop: watch::Sender<Stop>,
    taken: Arc<dyn TakenStore>,
    tasks: TaskTracker,
    link: watch::Receiver<LinkState>,
    unanswered: Arc<AtomicUsize>,
}

/// The answer to `list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The names, sorted.
    pub names: Vec<UserName>,
    /// Whether there are more than these.
    pub is_truncated: bool,
}

impl Handle {
    /// Makes an account.
    ///
    /// # Errors
    /// As [`RequestError`] says; it is never repeated.
    pub async fn create(&self, user: UserName, password: Option<Password>) -> Result<(), RequestError> {
        self.ask(Request::Create { user, password }).await.map(drop)
    }

    /// Becomes `user` without receiving. It waits until everything before it
    /// is answered.
    ///
    /// # Errors
    /// As [`RequestError`] says; who one is does not change then.
    pub async fn login(&self, user: UserName, password: Option<Password>) -> Result<(), RequestError> {
        self.ask(Request::Login { user, password }).await.map(drop)
    }

    /// Becomes `user` and receives for it; the number of messages that were
    /// queued. It waits until everything before it is answered.
    ///
    /// # Errors
    /// As [`RequestError`] says, [`RequestError::Taken`] included; who one is
    /// does not change then.
    pub async fn connect(&self, user: UserName, password: Option<Password>) -> Result<u64, RequestError> {
        // Looked at before anything is asked: a connect that cannot tell what
        // was taken must not take the reception from another terminal.
        self.shared.taken.load(&user).map_err(|error| RequestError::Taken(error.to_string()))?;
        let answer = self.ask(Request::Connect { user, password }).await?;
        Ok(answer.fields.as_queued().unwrap_or(0))
    }

    /// Becomes nobody and receives no more. It waits until everything before
    /// it is answered.
    ///
    /// # Errors
    /// As [`RequestError`] says.
    pub async fn disconnect(&self) -> Result<(), RequestError> {
        self.ask(Request::Disconnect).await.map(drop)
    }

    /// Sets the password of an account; `old` is `None` where it has none.
    ///
    /// # Errors
    /// As [`RequestError`] says; it is never repeated.
    pub async fn password(
        &self,
        user: UserName,
        old: Option<Password>,
        new: Password,
    ) -> Result<(), RequestError> {
        self.ask(Request::Password { user, old, new }).await.map(drop)
    }

    /// Ends an account and drops its queue; whether there was one.
    ///
    /// # Errors
    /// As [`RequestError`] says; it is never repeated.
    pub async fn delete(&self, user: UserName, password: Option<Password>) -> Result<bool, RequestError> {
        let answer = self.ask(Request::Delete { user, password }).await?;
        Ok(answer.fields.as_deleted().unwrap_or(true))
    }

    /// The names of the users, or of those that match a regular expression.
    ///
    /// # Errors
    /// As [`RequestError`] says.
    pub async fn list(&self, pattern: Option<ByteString>) -> Result<Names, RequestError> {
        let answer = self.ask(Request::List { pattern }).await?;
        let is_truncated = answer.is_cut || answer.fields.as_listed().is_some_and(|(_, truncated)| truncated);
        Ok(Names { names: answer.names, is_truncated })
    }

    /// Asks whether the server is there.
    ///
    /// # Errors
    /// As [`RequestError`] says.
    pub async fn ping(&self) -> Result<(), RequestError> {
        self.ask(Request::Ping).await.map(drop)
    }

    /// Leaves a message for `user`. Waits until there is room for one more
    /// unanswered send; the receipt then waits for the outcome.
    ///
    /// # Errors
    /// [`RequestError::NotSent`] once the client is closed.
    pub async fn send(&self, user: UserName, text: ByteString) -> Result<Receipt, RequestError> {
        self.begin(Request::Send { user, text }).await
    }

    /// The requests that were accepted and not answered.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.shared.unanswered.load(Ordering::Relaxed)
    }

    /// The state of the link, now and when it changes.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.shared.link.clone()
    }

    /// Ends the client: nothing more is accepted, and what is under way may
    /// take up to `within` to be answered, acks included. How many requests
    /// were given up then, with [`RequestError::Unknown`] where they had been
    /// written and [`RequestError::NotSent`] where not.
    pub async fn close(&self, within: Duration) -> usize {
        self.shared.stop.send_modify(|stop| *stop = stop.sooner(Instant::now() + within));
        self.shared.tasks.wait().await;
        self.unanswered()
    }

    async fn ask(&self, request: Request) -> Result<Answer, RequestError> {
        self.begin(request).await?.answer().await
    }

    async fn begin(&self, request: Request) -> Result<Receipt, RequestError> {
        let (answer, receipt) = oneshot::channel();
        let commands = self.shared.commands.lock().await;
        let command = Command { request, answer: Some(answer) };
        commands.send(command).await.map_err(|_| RequestError::closed())?;
        Ok(Receipt { answer: receipt })
    }
}

/// A send under way: a future of its outcome. `Ok` means that the message is
/// on stable storage, and carries its number if the server says it. Dropping
/// the receipt does not take the message back.
#[derive(Debug)]
#[must_use = "the outcome of a send is not known before it is awaited"]
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
            outcome.unwrap_or(Err(RequestError::closed())).map(|answer| answer.fields.as_stored())
        })
    }
}
