//! [`Driver`]: the task that owns the state machine of a server. It passes operations of
//! the chat, messages of other servers, answers of the streams and the time to the state
//! machine, and performs its actions. It never blocks: requests to streams and messages
//! to servers are sent by others.
//!
//! The state machine knows client connections by an id: that of their fence for sends,
//! and a new one for each other request. A closed connection is a closed fence.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hark_protocol::{Code, UserName};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::network::Network;
use super::operation::{Completion, Input, Listing, Reading, Sent};
use super::senders::{self, Next, Senders};
use super::sessions::Sessions;
use crate::cluster::member::Member;
use crate::cluster::message::{Answer, Message, Reply, Request};
use crate::cluster::{
    Action, Config, ConnectionId, LogReply, LogRequest, Now, ServerId, ShardId, Storage,
};
use crate::log::jetstream::JetStream;
use crate::store::{
    Account, Append, Burst, Completer, Fence, Operation, Outcome, Position, QueuedSend, Unavailable,
};

/// The interval at which the state machine is told the time.
const TICK: Duration = Duration::from_millis(50);

/// The linger of acknowledgements before they are sent alone.
const ACKS_LINGER: Duration = Duration::from_millis(20);

/// Maximum operations that are taken at a time.
const BATCH_MAX: usize = 4096;

/// How long a close waits until its shards are released.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a close waits until its last messages have left.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The channels between a driver and its store.
#[derive(Debug)]
pub(super) struct Channels {
    /// For subscriptions, which report their end.
    pub(super) operations: mpsc::WeakUnboundedSender<Input>,
    pub(super) received: mpsc::UnboundedReceiver<Input>,
    pub(super) shared: Arc<Shared>,
    pub(super) epochs: watch::Sender<u64>,
    /// There has been a flow to the owner of each shard. Until then there are no client
    /// connections.
    pub(super) is_ready: watch::Sender<bool>,
    /// The connection to the cluster is up.
    pub(super) is_up: watch::Receiver<bool>,
    /// The storage of the monitored nodes.
    pub(super) storage: watch::Receiver<Vec<Storage>>,
}

/// The task of a server.
pub(super) struct Driver {
    member: Member,
    server: ServerId,
    begun: Instant,
    streams: Vec<JetStream>,
    /// Requests to the streams, a few for each shard.
    log: FuturesUnordered<BoxFuture<'static, (ShardId, Option<LogReply>)>>,
    network: Network,
    channels: Channels,
    /// Actions to perform, and messages to this server.
    actions: Vec<Action>,
    local: VecDeque<Message>,
    requests: HashMap<u64, (ConnectionId, Completion)>,
    next_request: u64,
    senders: Senders,
    sessions: Sessions,
    /// The latest acknowledgement of each inbox, by shard.
    acks: Vec<HashMap<u64, (Account, Position)>>,
    acks_since: Option<Instant>,
    /// A name of each shard with acknowledgements since the start.
    acked: Vec<Option<UserName>>,
    /// Decided sends, and sessions that open after them.
    decided: Vec<(Sent, Outcome)>,
    opened: Vec<Completer<bool>>,
    closing: Option<Closing>,
}

/// A close of the store under way.
#[derive(Debug)]
struct Closing {
    completer: Completer<()>,
    stage: Stage,
    outcome: Result<(), Unavailable>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Operations in flight are decided.
    Deciding,
    /// Acknowledgements become durable.
    Acknowledging,
    /// Shards are released.
    Releasing { since: Instant },
}

impl Driver {
    /// Returns the driver of a new server.
    pub(super) fn new(
        config: Config,
        sessions_max: usize,
        streams: Vec<JetStream>,
        network: Network,
        channels: Channels,
    ) -> Self {
        let (server, shards) = (network.server(), streams.len());
        Self {
            member: Member::new(server, &[server], shards as u32, config),
            server,
            begun: Instant::now(),
            streams,
            log: FuturesUnordered::new(),
            network,
            channels,
            actions: Vec::new(),
            local: VecDeque::new(),
            requests: HashMap::new(),
            next_request: 0,
            senders: Senders::default(),
            sessions: Sessions::new(sessions_max),
            acks: (0..shards).map(|_| HashMap::new()).collect(),
            acks_since: None,
            acked: vec![None; shards],
            decided: Vec::new(),
            opened: Vec::new(),
            closing: None,
        }
    }

    /// Runs until the store is closed or dropped.
    pub(super) async fn run(mut self) {
        let mut inputs = Vec::new();
        let mut tick_at = self.begun;
        loop {
            let wake_at = self
                .acks_since
                .map_or(tick_at, |since| tick_at.min(since + ACKS_LINGER));
            tokio::select! {
                count = self.channels.received.recv_many(&mut inputs, BATCH_MAX) => {
                    if count == 0 {
                        // The store was dropped.
                        return;
                    }
                }
                message = self.network.next() => self.local.push_back(message),
                Some((shard, reply)) = self.log.next(), if !self.log.is_empty() => {
                    let now = self.now();
                    if let Some(reply) = reply {
                        self.member.handle_log(shard, reply, now, &mut self.actions);
                    }
                }
                () = sleep_until(wake_at) => {}
            }
            let now = self.now();
            inputs.drain(..).for_each(|input| self.handle(input, now));
            if Instant::now() >= tick_at {
                tick_at = Instant::now() + TICK;
                self.tick(now);
            }
            if self
                .acks_since
                .is_some_and(|since| since.elapsed() >= ACKS_LINGER)
            {
                self.flush_acks(now);
            }
            self.settle(now);
            if self.continue_closing(now).await {
                return;
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            running: self.begun.elapsed(),
            wall: SystemTime::now(),
        }
    }

    fn tick(&mut self, now: Now) {
        self.member.tick(now, &mut self.actions);
        for quiet in self.senders.sweep(now.running) {
            self.member.unregister(&quiet, now);
        }
        self.sessions.sweep(now.running);
        if self.channels.storage.has_changed().unwrap_or(false) {
            let storage = self.channels.storage.borrow_and_update();
            (0..self.streams.len())
                .for_each(|shard| self.member.handle_storage(shard as ShardId, &storage));
        }
        let is_in_touch = *self.channels.is_up.borrow() && self.member.is_in_touch(now);
        self.channels
            .shared
            .is_in_touch
            .store(is_in_touch, Ordering::Release);
        self.channels
            .is_ready
            .send_if_modified(|is_ready| is_in_touch && !std::mem::replace(is_ready, true));
    }

    /// Passes an input to the state machine.
    fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Operation(operation) => self.operate(operation, now),
            Input::Unsubscribe(account, subscription) => {
                self.flush_acks_of(self.member.shard_of(&account.name), now);
                self.member
                    .unsubscribe(&account, of_request(subscription), now);
            }
        }
    }

    fn operate(&mut self, operation: Operation, now: Now) {
        match operation {
            Operation::CloseSession(token) => {
                self.sessions.close(&token, now.running);
                self.member.close_session(&token);
            }
            Operation::Close(completer) => {
                self.closing = Some(Closing {
                    completer,
                    stage: Stage::Deciding,
                    outcome: Ok(()),
                });
            }
            late if self.closing.is_some() => late.refuse(),
            Operation::Create(name, password, completer) => {
                let shard = self.member.shard_of(&name);
                self.submit(
                    shard,
                    Request::Create(name, password),
                    Completion::Created(completer),
                    now,
                );
            }
            Operation::Account(name, completer) => {
                let shard = self.member.shard_of(&name);
                self.submit(
                    shard,
                    Request::LookUp(name),
                    Completion::Account(completer),
                    now,
                );
            }
            Operation::SetPassword {
                account,
                old,
                new,
                completer,
            } => {
                let shard = self.member.shard_of(&account.name);
                let request = Request::SetPassword { account, old, new };
                self.submit(shard, request, Completion::Flag(completer), now);
            }
            Operation::Delete(account, completer) => {
                let shard = self.member.shard_of(&account.name);
                self.submit(
                    shard,
                    Request::Delete(account),
                    Completion::Flag(completer),
                    now,
                );
            }
            Operation::Names(after, limit, completer) => {
                self.list(Box::new(Listing::new(after, limit, completer)), now);
            }
            Operation::Appends(Burst { fence, sends }) => {
                sends
                    .into_iter()
                    .for_each(|send| self.append(send, &fence, now));
            }
            Operation::Subscribe {
                account,
                takes_over,
                completer,
            } => {
                let shard = self.member.shard_of(&account.name);
                let completion = Completion::Subscribed(account.clone(), completer);
                self.submit(
                    shard,
                    Request::Subscribe {
                        account,
                        takes_over,
                    },
                    completion,
                    now,
                );
            }
            Operation::Read {
                account,
                after,
                limit,
                completer,
            } => {
                self.read(
                    Box::new(Reading::new(account, after, limit, completer)),
                    now,
                );
            }
            Operation::Acknowledge(account, position) => self.acknowledge(account, position),
            Operation::OpenSession(token, from, completer) => {
                self.sessions.open(&token, from, completer, now.running);
            }
            // Not served yet: see `Store::has_rooms`.
            room @ Operation::Room(_) => room.refuse(),
            Operation::OnTakeover(token, on_takeover) => {
                self.sessions.on_takeover(&token, on_takeover);
                self.member.open_session(token, now, &mut self.actions);
            }
        }
    }

    fn append(&mut self, send: QueuedSend, fence: &Fence, now: Now) {
        let (append, mut sent) = Sent::split(send, fence);
        let is_closed = append.send_id.is_some() && fence.is_closed();
        if is_closed || fence.epoch() < *self.channels.epochs.borrow() {
            return sent.fail();
        }
        if let Some(id) = &append.send_id {
            let Some(place) = self.sessions.begin(&id.session, id.from, now.running) else {
                return sent.complete(Outcome::Refused(Code::TooMany));
            };
            sent.place = place;
        }
        let Some(sender) = append.sender.clone() else {
            return self.send(append, sent, now);
        };
        let member = &self.member;
        if self.senders.may_send(&sender, now.running, |sender| {
            member.is_registered(sender, now)
        }) {
            return self.send(append, sent, now);
        }
        self.senders.hold(&sender, append, sent, now.running);
    }

    /// Submits a send, whose sender is registered.
    fn send(&mut self, append: Append, sent: Sent, now: Now) {
        if sent.session().is_some() && sent.fence.is_closed() {
            return self.fail(Completion::Sent(sent), now);
        }
        let connection = of_fence(&sent.fence);
        let shard = self.member.shard_of(&append.to);
        let request = Request::Send(Box::new(append));
        self.submit_as(connection, shard, request, Completion::Sent(sent), now);
    }

    /// Continues the sends that wait for the registration of their senders.
    fn continue_senders(&mut self, now: Now) {
        loop {
            let member = &self.member;
            let next = self
                .senders
                .next(now.running, |sender| member.is_registered(sender, now));
            match next {
                None => return,
                Some(Next::Submit(held)) => self.send(held.append, held.sent, now),
                Some(Next::Fail(held)) => self.fail(Completion::Sent(held.sent), now),
                Some(Next::Register(account)) => {
                    let (connection, shard) = (
                        senders::connection(&account),
                        self.member.shard_of(&account.name),
                    );
                    let completion = Completion::Registered(account.clone());
                    self.submit_as(
                        connection,
                        shard,
                        Request::Register(account),
                        completion,
                        now,
                    );
                }
            }
        }
    }

    fn read(&mut self, reading: Box<Reading>, now: Now) {
        let (account, (after, limit)) = (reading.account.clone(), reading.next());
        let shard = self.member.shard_of(&account.name);
        self.submit(
            shard,
            Request::Read {
                account,
                after,
                limit,
            },
            Completion::Page(reading),
            now,
        );
    }

    fn list(&mut self, listing: Box<Listing>, now: Now) {
        let (after, limit) = listing.next();
        self.next_request += 1;
        let (connection, id) = (of_request(self.next_request), self.next_request);
        self.requests
            .insert(id, (connection, Completion::Names(listing)));
        self.member
            .list((connection, id), after.as_ref(), limit, now);
    }

    fn acknowledge(&mut self, account: Account, position: Position) {
        let shard = self.member.shard_of(&account.name) as usize;
        let Some(acks) = self.acks.get_mut(shard) else {
            return;
        };
        let latest = acks
            .entry(account.incarnation)
            .or_insert((account, position));
        if latest.1.sequence < position.sequence {
            latest.1 = position;
        }
        self.acks_since.get_or_insert_with(Instant::now);
    }

    /// Submits all acknowledgements.
    fn flush_acks(&mut self, now: Now) {
        self.acks_since = None;
        (0..self.acks.len()).for_each(|shard| self.flush_acks_of(shard as ShardId, now));
    }

    fn flush_acks_of(&mut self, shard: ShardId, now: Now) {
        let acks = self
            .acks
            .get_mut(shard as usize)
            .map(std::mem::take)
            .unwrap_or_default();
        for (account, position) in acks.into_values() {
            self.submit_ack(shard, account, position, now);
        }
    }

    fn submit_ack(&mut self, shard: ShardId, account: Account, position: Position, now: Now) {
        if let Some(acked) = self.acked.get_mut(shard as usize) {
            *acked = Some(account.name.clone());
        }
        self.member
            .submit(shard, (0, 0), Request::Acknowledge(account, position), now);
    }

    fn submit(&mut self, shard: ShardId, request: Request, completion: Completion, now: Now) {
        self.submit_as(
            of_request(self.next_request + 1),
            shard,
            request,
            completion,
            now,
        );
    }

    fn submit_as(
        &mut self,
        connection: ConnectionId,
        shard: ShardId,
        request: Request,
        completion: Completion,
        now: Now,
    ) {
        self.next_request += 1;
        // Acknowledgements take effect before later requests.
        if self
            .acks
            .get(shard as usize)
            .is_some_and(|acks| !acks.is_empty())
        {
            self.flush_acks_of(shard, now);
        }
        self.requests
            .insert(self.next_request, (connection, completion));
        self.member
            .submit(shard, (connection, self.next_request), request, now);
    }

    /// Sends submitted requests and performs actions until there are none.
    fn settle(&mut self, now: Now) {
        loop {
            self.continue_senders(now);
            self.member.flush(now, &mut self.actions);
            if let Some(message) = self.local.pop_front() {
                self.member.handle_message(message, now, &mut self.actions);
            } else if self.actions.is_empty() {
                break;
            }
            self.perform(now);
        }
    }

    fn perform(&mut self, now: Now) {
        let actions = std::mem::take(&mut self.actions);
        let closing: HashSet<_> = actions.iter().filter_map(closed_connection).collect();
        if !closing.is_empty() {
            self.close_connections(&closing, now);
        }
        for action in actions {
            if !matches!(action, Action::Answer { .. }) {
                self.complete_decided();
            }
            match action {
                Action::Log(shard, request) => self.ask_stream(shard, request),
                Action::Send(server, message) if server == self.server => {
                    self.local.push_back(message)
                }
                Action::Send(server, message) => self.network.send(server, &message),
                Action::Broadcast(message) => {
                    self.network.broadcast(&message);
                    self.local.push_back(message);
                }
                Action::Answer { request, reply, .. } => self.answer(request, reply, now),
                Action::Publish(publisher, event) => publisher.publish(event),
                Action::EndIdentity(connection) => {
                    if let Some(incarnation) = senders::incarnation(connection) {
                        self.senders.end(incarnation, now.running);
                    }
                }
                Action::CloseSession(token) => self.sessions.taken_over(&token),
                // Closed above.
                Action::Close(_) => {}
                Action::CloseAll => self.close_all(now),
            }
        }
        self.complete_decided();
    }

    fn ask_stream(&mut self, shard: ShardId, request: LogRequest) {
        if let Some(stream) = self.streams.get(shard as usize).cloned() {
            self.log.push(Box::pin(
                async move { (shard, stream.carry_out(request).await) },
            ));
        }
    }

    fn answer(&mut self, id: u64, reply: Reply, now: Now) {
        let Some((_, completion)) = self.requests.remove(&id) else {
            if let Reply::Subscribed(Some(subscription)) = reply {
                self.member
                    .unsubscribe(subscription.account(), of_request(id), now);
            }
            return;
        };
        match (completion, reply) {
            (Completion::Created(completer), Reply::Answer(Answer::Created(created))) => {
                completer.complete(Ok(created));
            }
            (Completion::Flag(completer), Reply::Answer(Answer::Flag(flag))) => {
                completer.complete(Ok(flag))
            }
            (Completion::Account(completer), Reply::Answer(Answer::Account(entry))) => {
                completer.complete(Ok(entry));
            }
            (Completion::Sent(sent), Reply::Answer(Answer::Sent(outcome))) => {
                if let Some(token) = sent.session() {
                    self.opened.extend(self.sessions.end(token, sent.place));
                }
                self.decided.push((sent, outcome));
            }
            (Completion::Subscribed(account, completer), Reply::Subscribed(subscription)) => {
                let operations = self.channels.operations.clone();
                completer.complete(Ok(subscription.map(|subscription| {
                    subscription.on_drop(move || {
                        if let Some(operations) = operations.upgrade() {
                            // The driver may have ended.
                            drop(operations.send(Input::Unsubscribe(account.clone(), id)));
                        }
                    })
                })));
            }
            (Completion::Page(reading), Reply::Answer(Answer::Page(page))) => {
                if let Some(reading) = reading.add(page) {
                    self.read(reading, now);
                }
            }
            (Completion::Names(listing), Reply::Answer(Answer::Names { names, is_complete })) => {
                if let Some(listing) = listing.add(names, is_complete) {
                    self.list(listing, now);
                }
            }
            (Completion::Registered(account), Reply::Answer(Answer::Flag(is_alive))) => {
                self.senders
                    .registered(&account, Some(is_alive), now.running);
            }
            (Completion::Barrier, Reply::Answer(_)) => {}
            (completion, _) => self.fail(completion, now),
        }
    }

    /// Completes the decided sends, the last one first: a connection waits for its first
    /// send, and so wakes when all of them are complete.
    fn complete_decided(&mut self) {
        self.decided
            .drain(..)
            .rev()
            .for_each(|(sent, outcome)| sent.complete(outcome));
        self.opened
            .drain(..)
            .for_each(|completer| completer.complete(Ok(true)));
    }

    /// Completes a request as unavailable.
    fn fail(&mut self, completion: Completion, now: Now) {
        match completion {
            Completion::Sent(sent) => {
                let opened = sent
                    .session()
                    .map(|token| self.sessions.end(token, sent.place));
                sent.fail();
                self.opened.extend(opened.into_iter().flatten());
            }
            Completion::Registered(account) => self.senders.registered(&account, None, now.running),
            Completion::Barrier => {
                if let Some(closing) = &mut self.closing {
                    closing.outcome = Err(Unavailable);
                }
            }
            // Dropping a completer completes it.
            Completion::Created(_)
            | Completion::Flag(_)
            | Completion::Account(_)
            | Completion::Subscribed(..)
            | Completion::Page(_)
            | Completion::Names(_) => {}
        }
    }

    /// Fails the requests of these connections. The state machine has dropped them.
    fn close_connections(&mut self, connections: &HashSet<ConnectionId>, now: Now) {
        let failed = self
            .requests
            .extract_if(|_, (connection, _)| connections.contains(connection));
        let failed: Vec<_> = failed.map(|(_, (_, completion))| completion).collect();
        failed
            .into_iter()
            .for_each(|completion| self.fail(completion, now));
    }

    /// Fails all requests, and begins an epoch: the server closes all client connections.
    fn close_all(&mut self, now: Now) {
        if *self.channels.is_ready.borrow() {
            self.channels.epochs.send_modify(|epoch| *epoch += 1);
        }
        let failed = std::mem::take(&mut self.requests);
        failed
            .into_values()
            .for_each(|(_, completion)| self.fail(completion, now));
        let held = self.senders.take_held();
        held.into_iter()
            .for_each(|held| self.fail(Completion::Sent(held.sent), now));
    }

    /// Continues a close. Returns whether the store is closed.
    async fn continue_closing(&mut self, now: Now) -> bool {
        let is_idle = self.requests.is_empty() && self.senders.is_idle();
        let Some(closing) = &mut self.closing else {
            return false;
        };
        match closing.stage {
            Stage::Deciding if is_idle => {
                closing.stage = Stage::Acknowledging;
                self.flush_acks(now);
                let acked = std::mem::take(&mut self.acked);
                for (shard, name) in acked.into_iter().enumerate() {
                    if let Some(name) = name {
                        self.submit(
                            shard as ShardId,
                            Request::LookUp(name),
                            Completion::Barrier,
                            now,
                        );
                    }
                }
                self.settle(now);
            }
            Stage::Acknowledging if is_idle => {
                closing.stage = Stage::Releasing {
                    since: Instant::now(),
                };
                self.member.leave(now, &mut self.actions);
                self.settle(now);
            }
            Stage::Releasing { since }
                if self.member.owns_nothing() || since.elapsed() >= RELEASE_TIMEOUT =>
            {
                // The others need no last message: they notice the silence.
                drop(timeout(DRAIN_TIMEOUT, self.network.drain()).await);
                if let Some(Closing {
                    completer, outcome, ..
                }) = self.closing.take()
                {
                    completer.complete(outcome);
                }
                return true;
            }
            _ => {}
        }
        false
    }
}

const fn closed_connection(action: &Action) -> Option<ConnectionId> {
    match action {
        Action::Close(connection) => Some(*connection),
        _ => None,
    }
}

/// Returns the id of the connection with this fence.
fn of_fence(fence: &Fence) -> ConnectionId {
    fence.id() << 2
}

/// Returns the id of the pretended connection of a request.
const fn of_request(request: u64) -> ConnectionId {
    request << 2 | 1
}
