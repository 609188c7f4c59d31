//! The store of many servers: NATS JetStream. A server keeps nothing of its
//! own, so any number of them serve the same chat, and any user is served by
//! any of them.
//!
//! | file | what it owns |
//! | --- | --- |
//! | `nodes` | the address of a cluster |
//! | `setup` | the connection, and the streams |
//! | `monitor` | whether the nodes sync before they acknowledge |
//! | `record` | subjects, and what is written under them |
//! | `engine` | one request and its answer |
//! | `replies` | which reply belongs to which request |
//! | `publisher` | what is published to a stream together |
//! | `directory` | the accounts, as they are known here |
//! | `intake` | what is asked for, in the order of the calls |
//! | `sends` | which sends of a session are under way, and how others ended |
//! | `lane` | what is done with one name, in order |
//! | `cursors` | what was acknowledged here |
//! | `reception` | what a user who is connected here is told |
//! | `reading` | reading an inbox |
//! | `sweeper` | giving space back |
//!
//! Three things hold it together. Whatever is written is written on the
//! condition that nothing else was written to its subject meanwhile, so that
//! servers race and none overwrites another. Whatever is relied upon comes from
//! the leader of its stream. And a send is known by its session and id to the
//! engine itself, for as long as it may be repeated.

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
/// Where it is dropped without [`Store::close`], what is under way ends as
/// [`super::Unavailable`].
#[derive(Debug)]
pub struct ClusterStore {
    shared: Arc<Shared>,
    asked: mpsc::UnboundedSender<(Asked, Counted)>,
    /// What was asked for and is with the intake.
    waiting: Count,
}

/// What the tasks of a store share.
#[derive(Debug)]
struct Shared {
    config: ClusterConfig,
    engine: Arc<Engine>,
    names: Names,
    link: watch::Receiver<Link>,
    directory: Directory,
    /// To the streams of messages, and to that of states.
    inbox_publishers: Vec<Publisher>,
    state_publisher: Publisher,
    sends: Sends,
    cursors: Cursors,
    sweeper: Sweeper,
    // A lock, since commands come from many tasks, and a lane ends by itself. It
    // is held for one operation. `None` once nothing is taken any more.
    lanes: Mutex<Option<HashMap<UserName, mpsc::UnboundedSender<Job>>>>,
    /// Where its tasks run, since it may be asked from elsewhere.
    runtime: Handle,
    /// What is waited for when the store closes.
    tasks: TaskTracker,
    /// It ends: everything does, wherever it is.
    stop: CancellationToken,
}

impl ClusterStore {
    /// Connects to the cluster, makes the streams that are missing, and reads
    /// the accounts. To be called on the runtime that is to work for it.
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
        tracing::info!(accounts = directory.len(), "the accounts are read");
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
        // These end with the store; `tasks` are waited for when it closes.
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
        // Where nothing is taken any more it is dropped, and so unavailable.
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
            // It overtakes nothing that was asked for before.
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
        // Whoever reads waits for the outcome, and close for the task.
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
    /// Whether what lies between the two is within the limits of an inbox.
    fn holds(&self, cursor: Position, last: Position) -> bool {
        last.messages.saturating_sub(cursor.messages) <= self.queued_messages_max
            && last.bytes.saturating_sub(cursor.bytes) <= self.queued_bytes_max
    }
}

impl Shared {
    /// Brings the accounts up to date with what the cluster had at some moment
    /// after `since`, and tells the lanes of those that have ended.
    async fn refresh(self: &Arc<Self>, since: Instant) -> Result<(), Lost> {
        for account in self.directory.refresh(&self.engine, &self.names, since).await? {
            self.push_if_there(&account.name, Command::Ended(account.clone()));
        }
        Ok(())
    }

    /// Has a message stored or refused, unless its send was decided before.
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

    /// Publishes to the inbox of a name.
    async fn publish_to_inbox(&self, name: &UserName, group: Group) -> Result<Stored, NotStored> {
        let shard = usize::try_from(self.names.shard(name)).ok();
        match shard.and_then(|shard| self.inbox_publishers.get(shard)) {
            Some(publisher) => publisher.publish(group).await,
            None => self.engine.publish_group(&group).await,
        }
    }

    /// Gives a job to the lane of this name, which begins where there is none.
    fn push(self: &Arc<Self>, name: &UserName, job: Job) {
        let mut lanes = self.lock_lanes();
        let Some(lanes) = &mut *lanes else {
            drop(lanes);
            return job.refuse();
        };
        let lane = lanes.entry(name.clone()).or_insert_with(|| self.begin_lane(name));
        if let Err(unsent) = lane.send(job) {
            // It has panicked, and what it had under way is unavailable.
            *lane = self.begin_lane(name);
            drop(lane.send(unsent.0));
        }
    }

    /// As [`Self::push`], and drops the command where there is no lane.
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

    /// Takes the lane of this name out, unless something is to be done; whether
    /// it did.
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

    /// Takes nothing more: the lanes end once they have done what they have.
    fn close_lanes(&self) {
        *self.lock_lanes() = None;
    }

    fn acknowledge(self: &Arc<Self>, account: &Account, position: Position) {
        self.cursors.advance(account, position, || {
            self.push(&account.name, Job::new(Command::Acknowledged(account.clone())));
        });
    }

    /// The state of an inbox as it is written, and the number of that message.
    async fn state(&self, account: &Account) -> Result<(u64, State), Lost> {
        match self.engine.last(&self.names.state_stream(), &self.names.state(account)).await? {
            None => Ok((0, State::default())),
            Some(found) => match State::decode(&found.payload) {
                Ok(state) => Ok((found.sequence, state)),
                Err(error) => {
                    tracing::error!(%error, name = %account.name, "what is acknowledged cannot be read");
                    Err(Lost)
                }
            },
        }
    }

    /// Writes into the inbox of an account that has ended that it has, unless
    /// that is written, and yields the number of that message. From then on
    /// nothing is appended: whoever tries meets it. It is written on a condition
    /// like everything there, since a message that is on its way must not come
    /// to lie behind it.
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

    /// Everything that a server which receives for an account is told.
    async fn subscribe(&self, account: &Account) -> Result<Subscriber, Lost> {
        self.engine.client().subscribe(self.names.told(account)).await.map_err(|_| Lost)
    }

    /// Tells whichever server receives for an account. It may not arrive.
    async fn tell(&self, account: &Account, told: Told) {
        self.publish(self.names.tell(account, told)).await;
    }

    async fn publish(&self, subject: String) {
        if let Err(error) = self.engine.client().publish(subject, Bytes::new()).await {
            tracing::debug!(%error, "another server could not be told");
        }
    }

    fn lock_lanes(&self) -> MutexGuard<'_, Option<HashMap<UserName, mpsc::UnboundedSender<Job>>>> {
        // Nothing panics while the lock is held.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
