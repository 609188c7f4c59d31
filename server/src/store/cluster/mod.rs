//! The store of a cluster, on NATS JetStream. A server keeps no state of its own, so any
//! number of servers serve the same chat, and a user can connect to any of them.
//!
//! | file | responsibility |
//! | --- | --- |
//! | `nodes` | the address of a cluster |
//! | `setup` | the connection and the streams |
//! | `monitor` | a check that the nodes sync before they acknowledge |
//! | `record` | subjects and record formats |
//! | `engine` | single requests to JetStream |
//! | `replies` | correlation of replies with requests |
//! | `publisher` | batching of publications to one stream |
//! | `directory` | the cached accounts |
//! | `intake` | requests, in order of arrival |
//! | `sends` | in-flight sends and remembered outcomes of each session |
//! | `lane` | operations on one name, in order |
//! | `cursors` | acknowledgements received by this server |
//! | `reception` | notifications for a connected receiver |
//! | `reading` | pages of an inbox |
//! | `sweeper` | deletion of acknowledged messages |
//!
//! Three properties make it safe. Every write is conditional on the last sequence of its
//! subject, so servers may race and none overwrites another. Every decision relies on an
//! answer from the leader of a stream. And the engine itself deduplicates sends by
//! session and id, for as long as a send may be repeated.

mod cursors;
mod directory;
mod engine;
mod intake;
mod lane;
mod monitor;
mod nodes;
mod publisher;
mod reading;
mod reception;
mod record;
mod replies;
mod sends;
mod setup;
mod sweeper;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Subscriber;
use bytes::Bytes;
use futures::FutureExt;
use hark_protocol::{SessionToken, UserName};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cursors::Cursors;
use self::directory::Directory;
use self::engine::{Engine, Group, Lost, NotStored, Stored, random_id};
use self::intake::{Asked, Count, Counted, Intake};
use self::lane::{Command, Job, Lane, PATIENCE};
use self::publisher::Publisher;
use self::record::{END, Names, State, Told};
use self::sends::Sends;
use self::setup::{ENDED_KEPT, Link};
use self::sweeper::Sweeper;
use super::{
    Account, AccountEntry, Append, Completer, Created, Outcome, Page, PasswordHash, Pending, Position,
    ReadLimit, Store, Subscription, Unavailable,
};

pub use self::nodes::{BadNodes, Nodes};
pub use self::setup::{CLIENT_LOG, ClusterConfig, Credentials, OpenError};

/// A store on a cluster.
///
/// If it is dropped without [`Store::close`], pending operations end as
/// [`super::Unavailable`].
#[derive(Debug)]
pub struct ClusterStore {
    shared: Arc<Shared>,
    asked: mpsc::UnboundedSender<(Asked, Counted)>,
    /// Requests that the intake has not routed yet.
    waiting: Count,
}

/// State shared by the tasks of a store.
#[derive(Debug)]
struct Shared {
    config: ClusterConfig,
    engine: Arc<Engine>,
    names: Names,
    link: watch::Receiver<Link>,
    directory: Directory,
    /// Publishers to the message streams, and one to the state stream.
    inbox_publishers: Vec<Publisher>,
    state_publisher: Publisher,
    sends: Sends,
    cursors: Cursors,
    sweeper: Sweeper,
    // A lock, because commands come from many tasks and a lane removes itself. It is held
    // for one operation. `None` after the store has closed.
    lanes: Mutex<Option<HashMap<UserName, mpsc::UnboundedSender<Job>>>>,
    /// The runtime of the store's tasks: callers may be on another one.
    runtime: Handle,
    /// Tasks that `close` waits for.
    tasks: TaskTracker,
    /// Cancels all tasks of the store.
    stop: CancellationToken,
}

impl ClusterStore {
    /// Connects to the cluster, creates missing streams, and reads the accounts. Must be
    /// called on the runtime that will run the store's tasks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: ClusterConfig) -> Result<Self, OpenError> {
        let (client, link) = setup::connect(&config).await?;
        let names = setup::streams(&client, &config).await?;
        let failed = |reason: String| OpenError::Stream { stream: names.accounts_stream(), reason };
        let engine = Arc::new(Engine::new(client).await.map_err(|error| failed(error.to_string()))?);
        let directory = Directory::default();
        let ends =
            engine.client().subscribe(names.ends()).await.map_err(|error| failed(error.to_string()))?;
        setup::first(|| directory.refresh(&engine, &names, Instant::now()))
            .await
            .map_err(|error| failed(error.to_string()))?;
        tracing::info!(accounts = directory.len(), "accounts read");
        monitor::check(&config.monitors).await;
        let publisher = || Publisher::new(Arc::clone(&engine));
        let (inbox_publishers, publishing): (Vec<_>, Vec<_>) =
            (0..names.shards()).map(|_| publisher()).unzip();
        let (state_publisher, publishing_states) = publisher();
        let shared = Arc::new(Shared {
            inbox_publishers,
            state_publisher,
            sends: Sends::new(config.sessions_max),
            config,
            engine,
            names,
            link,
            directory,
            cursors: Cursors::default(),
            sweeper: Sweeper::default(),
            lanes: Mutex::new(Some(HashMap::new())),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let (asked, intake) = Intake::new(Arc::clone(&shared), ends);
        // These are cancelled with the store. `close` waits only for `tasks`.
        let works =
            [intake.run().boxed(), Sweeper::run(Arc::clone(&shared)).boxed(), publishing_states.boxed()];
        for work in works.into_iter().chain(publishing.into_iter().map(FutureExt::boxed)) {
            let stop = shared.stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled_owned(work).await });
        }
        Ok(Self { shared, asked, waiting: Count::default() })
    }

    fn ask<T>(&self, asked: impl FnOnce(Completer<T>) -> Asked) -> Pending<T> {
        let (completer, pending) = Pending::new();
        self.push(asked(completer));
        pending
    }

    fn push(&self, asked: Asked) {
        // If the intake has stopped, dropping the completer answers with `Unavailable`.
        if let Err(late) = self.asked.send((asked, self.waiting.one_more())) {
            late.0.0.refuse();
        }
    }

    fn ask_lane<T>(&self, name: &UserName, command: impl FnOnce(Completer<T>) -> Command) -> Pending<T> {
        self.ask(|completer| Asked::Lane(name.clone(), command(completer)))
    }
}

impl Store for ClusterStore {
    fn create(&self, name: &UserName, password: Option<PasswordHash>) -> Pending<Created> {
        self.ask_lane(name, |completer| Command::Create(password, completer))
    }

    fn account(&self, name: &UserName) -> Pending<Option<AccountEntry>> {
        self.ask(|completer| Asked::Account(name.clone(), completer))
    }

    fn set_password(&self, account: &Account, old: Option<PasswordHash>, new: PasswordHash) -> Pending<bool> {
        let of = account.clone();
        self.ask_lane(&account.name, |completer| Command::SetPassword { account: of, old, new, completer })
    }

    fn delete(&self, account: &Account) -> Pending<bool> {
        self.ask_lane(&account.name, |completer| Command::Delete(account.clone(), completer))
    }

    fn names(&self, after: Option<&UserName>, limit: usize) -> Pending<Vec<UserName>> {
        self.ask(|completer| Asked::Names(after.cloned(), limit, completer))
    }

    fn append_all(&self, appends: &mut Vec<(Append, Completer<Outcome>)>) {
        for (append, completer) in appends.drain(..) {
            // A direct append overtakes no earlier request.
            if self.waiting.is_zero() && self.shared.directory.knows(&append.to, append.sender.as_ref()) {
                self.shared.append(append, completer, Instant::now() + PATIENCE);
            } else {
                self.push(Asked::Append(append, completer));
            }
        }
    }

    fn receive(&self, account: &Account) -> Pending<Option<Subscription>> {
        let of = account.clone();
        self.ask_lane(&account.name, |completer| Command::Receive {
            account: of,
            takes_over: true,
            completer,
        })
    }

    fn receive_if_free(&self, account: &Account) -> Pending<Option<Subscription>> {
        let of = account.clone();
        self.ask_lane(&account.name, |completer| Command::Receive {
            account: of,
            takes_over: false,
            completer,
        })
    }

    fn read(&self, account: &Account, after: Position, limit: ReadLimit) -> Pending<Page> {
        let (completer, pending) = Pending::new();
        if self.asked.is_closed() {
            drop(completer);
            return pending;
        }
        let (shared, account) = (Arc::clone(&self.shared), account.clone());
        let read = async move {
            let stop = shared.stop.clone();
            if let Some(page) = stop.run_until_cancelled(reading::read(&shared, &account, after, limit)).await
            {
                completer.complete(page);
            }
        };
        // The caller awaits the outcome, and `close` awaits the task.
        drop(self.shared.tasks.spawn_on(read, &self.shared.runtime));
        pending
    }

    fn acknowledge(&self, account: &Account, position: Position) {
        self.shared.acknowledge(account, position);
    }

    fn open_session(&self, session: &SessionToken, from: Option<IpAddr>) -> Pending<bool> {
        self.ask(|completer| Asked::OpenSession(session.clone(), from, completer))
    }

    fn close_session(&self, session: &SessionToken) {
        self.shared.sends.close(session);
    }

    fn is_available(&self) -> bool {
        self.shared.link.borrow().is_up && !self.asked.is_closed()
    }

    fn close(&self) -> Pending<()> {
        self.ask(Asked::Close)
    }
}

impl Drop for ClusterStore {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl ClusterConfig {
    /// Returns whether an inbox with this cursor and this last position is within its
    /// limits.
    fn holds(&self, cursor: Position, last: Position) -> bool {
        last.messages.saturating_sub(cursor.messages) <= self.queued_messages_max
            && last.bytes.saturating_sub(cursor.bytes) <= self.queued_bytes_max
    }
}

impl Shared {
    /// Updates the accounts to a state of the cluster later than `since`, and notifies
    /// the lanes of deleted accounts.
    async fn refresh(self: &Arc<Self>, since: Instant) -> Result<(), Lost> {
        for account in self.directory.refresh(&self.engine, &self.names, since).await? {
            self.push_if_there(&account.name, Command::Ended(account.clone()));
        }
        Ok(())
    }

    /// Stores or refuses a message, unless its send already has an outcome.
    fn append(self: &Arc<Self>, append: Append, completer: Completer<Outcome>, until: Instant) {
        let name = append.to.clone();
        let completer = match &append.send_id {
            Some(_) if append.fence.is_closed() => return completer.complete(Err(Unavailable)),
            Some(id) => self.sends.take(id, completer),
            None => Some(completer),
        };
        if let Some(completer) = completer {
            self.push(&name, Job { command: Command::Append(append, completer), deadline: until });
        }
    }

    /// Publishes a group to the inbox of a name.
    async fn publish_to_inbox(&self, name: &UserName, group: Group) -> Result<Stored, NotStored> {
        let shard = usize::try_from(self.names.shard(name)).ok();
        match shard.and_then(|shard| self.inbox_publishers.get(shard)) {
            Some(publisher) => publisher.publish(group).await,
            None => self.engine.publish_group(&group).await,
        }
    }

    /// Queues a job for the lane of this name, and starts the lane if there is none.
    fn push(self: &Arc<Self>, name: &UserName, job: Job) {
        let mut lanes = self.lock_lanes();
        let Some(lanes) = &mut *lanes else {
            drop(lanes);
            return job.refuse();
        };
        let lane = lanes.entry(name.clone()).or_insert_with(|| self.begin_lane(name));
        if let Err(unsent) = lane.send(job) {
            // The lane has panicked; its pending operations end as unavailable.
            *lane = self.begin_lane(name);
            drop(lane.send(unsent.0));
        }
    }

    /// Queues a command as [`Self::push`] does, but drops it if there is no lane.
    fn push_if_there(&self, name: &UserName, command: Command) {
        if let Some(lane) = self.lock_lanes().as_ref().and_then(|lanes| lanes.get(name)) {
            drop(lane.send(Job::new(command)));
        }
    }

    fn begin_lane(self: &Arc<Self>, name: &UserName) -> mpsc::UnboundedSender<Job> {
        let (sender, jobs) = mpsc::unbounded_channel();
        let (stop, lane) = (self.stop.clone(), Lane::new(Arc::clone(self), name.clone(), jobs));
        self.tasks.spawn_on(async move { stop.run_until_cancelled(lane.run()).await }, &self.runtime);
        sender
    }

    /// Removes the lane of this name if it has no pending jobs. Returns whether it was
    /// removed.
    fn end_lane(&self, name: &UserName, jobs: &mpsc::UnboundedReceiver<Job>) -> bool {
        self.cursors.end_with(name, || {
            let mut lanes = self.lock_lanes();
            let is_idle = jobs.is_empty();
            if let Some(lanes) = lanes.as_mut().filter(|_| is_idle) {
                lanes.remove(name);
            }
            is_idle
        })
    }

    /// Accepts no more jobs. Each lane ends after its pending jobs.
    fn close_lanes(&self) {
        *self.lock_lanes() = None;
    }

    fn acknowledge(self: &Arc<Self>, account: &Account, position: Position) {
        self.cursors.advance(account, position, || {
            self.push(&account.name, Job::new(Command::Acknowledged(account.clone())));
        });
    }

    /// Reads the state record of an inbox and its sequence.
    async fn state(&self, account: &Account) -> Result<(u64, State), Lost> {
        match self.engine.last(&self.names.state_stream(), &self.names.state(account)).await? {
            None => Ok((0, State::default())),
            Some(found) => match State::decode(&found.payload) {
                Ok(state) => Ok((found.sequence, state)),
                Err(error) => {
                    tracing::error!(%error, name = %account.name, "unreadable state record");
                    Err(Lost)
                }
            },
        }
    }

    /// Appends the end marker to the inbox of a deleted account, unless it is already
    /// there, and returns its sequence. Later appends fail on it. The write is
    /// conditional, so that a message in flight cannot be stored behind the marker.
    async fn end_inbox(&self, account: &Account) -> Result<u64, NotStored> {
        let (stream, subject) = (self.names.inbox_stream_of(&account.name), self.names.inbox(account));
        let last = self.engine.last(&stream, &subject).await.map_err(|Lost| NotStored::Lost)?;
        if let Some(found) = last.as_ref().filter(|found| found.payload == END) {
            return Ok(found.sequence);
        }
        let (after, end) = (last.map_or(0, |found| found.sequence), Bytes::from_static(END));
        let stored = self.engine.publish_for(ENDED_KEPT, &subject, &random_id(), Some(after), end).await?;
        Ok(stored.sequence)
    }

    /// Subscribes to the notifications for the receiver of an account.
    async fn subscribe(&self, account: &Account) -> Result<Subscriber, Lost> {
        self.engine.client().subscribe(self.names.told(account)).await.map_err(|_| Lost)
    }

    /// Notifies the server that receives for an account, with no delivery guarantee.
    async fn tell(&self, account: &Account, told: Told) {
        self.publish(self.names.tell(account, told)).await;
    }

    async fn publish(&self, subject: String) {
        if let Err(error) = self.engine.client().publish(subject, Bytes::new()).await {
            tracing::debug!(%error, "notification failed");
        }
    }

    fn lock_lanes(&self) -> MutexGuard<'_, Option<HashMap<UserName, mpsc::UnboundedSender<Job>>>> {
        // No code panics while it holds the lock.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
