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
use hark_protocol::UserName;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::network::Network;
use super::operation::{Completion, Input, Sent};
use super::questions::Questions;
use super::senders::{self, Senders};
use super::sessions::Sessions;
use crate::cluster::member::Member;
use crate::cluster::message::{Message, Request, Up};
use crate::cluster::{
    Action, Config, ConnectionId, LogReply, LogRequest, Now, ServerId, ShardId, Storage,
};
use crate::log::jetstream::JetStream;
use crate::store::{Account, Completer, Outcome, Position, Unavailable};

/// The interval at which the state machine is told the time.
const TICK: Duration = Duration::from_millis(50);

/// The linger of acknowledgements before they are sent alone.
const ACKS_LINGER: Duration = Duration::from_millis(20);

/// Maximum operations that are taken at a time.
const BATCH_MAX: usize = 4096;

/// How long the requests of connections that are closed together stay unanswered: longer
/// than it takes to close them.
const ABANDONED_FOR: Duration = Duration::from_secs(1);

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
    pub(super) member: Member,
    pub(super) server: ServerId,
    begun: Instant,
    pub(super) streams: Vec<JetStream>,
    /// Requests to the streams, a few for each shard.
    log: FuturesUnordered<BoxFuture<'static, (ShardId, Option<LogReply>)>>,
    /// Operations of administrators that wait for several answers.
    pub(super) tasks: FuturesUnordered<BoxFuture<'static, ()>>,
    pub(super) network: Network,
    pub(super) channels: Channels,
    /// Actions to perform, and messages to this server.
    pub(super) actions: Vec<Action>,
    local: VecDeque<Message>,
    pub(super) requests: HashMap<u64, (ConnectionId, Completion)>,
    pub(super) next_request: u64,
    pub(super) senders: Senders,
    pub(super) sessions: Sessions,
    pub(super) questions: Questions,
    /// The latest acknowledgement of each inbox, by shard.
    pub(super) acks: Vec<HashMap<u64, (Account, Position)>>,
    pub(super) acks_since: Option<Instant>,
    /// A name of each shard with acknowledgements since the start.
    pub(super) acked: Vec<Option<UserName>>,
    /// Decided sends, and sessions that open after them.
    pub(super) decided: Vec<(Sent, Outcome)>,
    pub(super) opened: Vec<Completer<bool>>,
    /// The requests of connections that are closed together, and the time of that.
    pub(super) abandoned: Vec<(Completion, Duration)>,
    pub(super) closing: Option<Closing>,
}

/// A close of the store under way.
#[derive(Debug)]
pub(super) struct Closing {
    completer: Completer<()>,
    stage: Stage,
    pub(super) outcome: Result<(), Unavailable>,
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
    /// Returns the driver of a new server, or of a tool: see [`Member::into_tool`].
    pub(super) fn new(
        (config, is_tool): (Config, bool),
        sessions_max: usize,
        streams: Vec<JetStream>,
        network: Network,
        channels: Channels,
    ) -> Self {
        let (server, shards) = (network.server(), streams.len());
        let member = Member::new(server, &[server], shards as u32, config);
        Self {
            member: if is_tool { member.into_tool() } else { member },
            server,
            begun: Instant::now(),
            streams,
            log: FuturesUnordered::new(),
            tasks: FuturesUnordered::new(),
            network,
            channels,
            actions: Vec::new(),
            local: VecDeque::new(),
            requests: HashMap::new(),
            next_request: 0,
            senders: Senders::default(),
            sessions: Sessions::new(sessions_max),
            questions: Questions::default(),
            acks: (0..shards).map(|_| HashMap::new()).collect(),
            acks_since: None,
            acked: vec![None; shards],
            decided: Vec::new(),
            opened: Vec::new(),
            abandoned: Vec::new(),
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
                Some(()) = self.tasks.next(), if !self.tasks.is_empty() => {}
                () = sleep_until(wake_at) => {}
            }
            let now = self.now();
            self.member
                .handle_suspended(suspended(), now, &mut self.actions);
            self.perform(now);
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
        self.repeat_questions(now);
        self.abandoned
            .retain(|(_, at)| now.running.saturating_sub(*at) < ABANDONED_FOR);
        if self.channels.storage.has_changed().unwrap_or(false) {
            let storage = self.channels.storage.borrow_and_update();
            (0..self.streams.len())
                .for_each(|shard| self.member.handle_storage(shard as ShardId, &storage));
        }
        let metrics = &self.channels.shared.metrics;
        metrics.set_shards_owned(self.member.shards_owned());
        let is_in_touch = *self.channels.is_up.borrow() && self.member.is_in_touch(now);
        self.channels
            .shared
            .is_in_touch
            .store(is_in_touch, Ordering::Release);
        self.channels
            .is_ready
            .send_if_modified(|is_ready| is_in_touch && !std::mem::replace(is_ready, true));
    }

    /// Sends submitted requests and performs actions until there are none.
    fn settle(&mut self, now: Now) {
        loop {
            self.continue_senders(now);
            self.member.flush(now, &mut self.actions);
            if let Some(message) = self.local.pop_front() {
                self.handle_message(message, now);
            } else if self.actions.is_empty() {
                break;
            }
            self.perform(now);
        }
    }

    fn handle_message(&mut self, message: Message, now: Now) {
        match message {
            Message::Ask(from, id, question) => self.answer_question(from, id, &question),
            Message::Told(server, id, told) => self.questions.told(server, id, told),
            message => self.member.handle_message(message, now, &mut self.actions),
        }
    }

    fn perform(&mut self, now: Now) {
        let actions = std::mem::take(&mut self.actions);
        let closing: HashSet<_> = actions.iter().filter_map(closed_connection).collect();
        for action in actions {
            if !matches!(action, Action::Answer { .. }) {
                self.complete_decided();
            }
            match action {
                Action::Log(shard, request) => self.ask_stream(shard, request),
                Action::Send(server, message) if server == self.server => {
                    self.local.push_back(message)
                }
                Action::Send(server, message) => {
                    if let Message::Up(_, _, Up::Packet(packet, _)) = &message {
                        let metrics = &self.channels.shared.metrics;
                        metrics.record_forwarded(packet.items.len());
                    }
                    self.network.send(server, &message);
                }
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
                // Closed below, after the answers to them.
                Action::Close(_) => {}
                Action::CloseAll => self.close_all(now),
            }
        }
        self.complete_decided();
        if !closing.is_empty() {
            self.close_connections(&closing, now);
        }
    }

    fn ask_stream(&mut self, shard: ShardId, request: LogRequest) {
        if let Some(stream) = self.streams.get(shard as usize).cloned() {
            let is_append = matches!(request, LogRequest::Append { .. });
            let metrics = is_append.then(|| self.channels.shared.metrics.clone());
            self.log.push(Box::pin(async move {
                let begun = Instant::now();
                let reply = stream.carry_out(request).await;
                if let (Some(metrics), Some(_)) = (metrics, &reply) {
                    metrics.record_append(begun.elapsed());
                }
                (shard, reply)
            }));
        }
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
                for name in acked.into_iter().flatten() {
                    let request = Request::LookUp(name.clone());
                    self.submit(&name, request, Completion::Barrier, now);
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

/// Returns the time for which the machine has been suspended since it started.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    let [all, awake] = [ClockId::Boottime, ClockId::Monotonic].map(|clock| {
        // Positive, because both clocks begin with the machine.
        Duration::try_from(clock_gettime(clock)).unwrap_or_default()
    });
    all.saturating_sub(awake)
}

/// Other systems have no such clock.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn suspended() -> Duration {
    Duration::ZERO
}

impl Closing {
    /// Returns a close that has not begun.
    pub(super) const fn new(completer: Completer<()>) -> Self {
        Self {
            completer,
            stage: Stage::Deciding,
            outcome: Ok(()),
        }
    }
}

const fn closed_connection(action: &Action) -> Option<ConnectionId> {
    match action {
        Action::Close(connection) => Some(*connection),
        _ => None,
    }
}
