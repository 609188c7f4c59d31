//! [`World`]: hosts, streams and clients, by virtual time. It orders the events
//! and is the network; the same seed gives the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hark_protocol::Code;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::clients::{
    CHANGING, Changer, Client, Context, Creator, READERS, Reader, Sender, ToHost,
};
use super::faults::{Fault, Scenario};
use super::judge::{Counts, Judge};
use super::lister::Lister;
use super::stream::{Outcome, Stream};
use crate::cluster::assignment;
use crate::cluster::blocks::WithRead;
use crate::cluster::chain::{Chain, Taken};
use crate::cluster::entry::{Content, Entry, NEWEST_FORMAT};
use crate::cluster::host::{Answered, Host, Input, Output, Push};
use crate::cluster::member::Member;
use crate::cluster::message::{Answer, Message};
use crate::cluster::replay::StreamReplay;
use crate::cluster::{Config, ConnectionId, LogReply, LogRequest, ServerId, ShardId};
use crate::ledger::{Expiry, Limits, RoomLimits, SpaceLimits};
use crate::log::Frame;
use crate::shard::readers::read_page;
use crate::store::{Outcome as StoreOutcome, ReadLimit};

pub(super) const HOSTS: usize = 3;
pub(super) const SHARDS: usize = 2;

const TICK: Duration = Duration::from_millis(250);
const WAKE: Duration = Duration::from_millis(150);
const IDLE_WAKE: Duration = Duration::from_secs(1);

/// The longest calm phase.
const CALM_MAX: Duration = Duration::from_secs(150);

/// The duration of the calm phase after all operations have finished.
const AFTER_END: Duration = Duration::from_secs(3);

const CONFIG: Config = Config {
    limits: Limits {
        accounts_max: 40,
        sessions_max: 20,
        queued_messages_max: 6,
        queued_bytes_max: 1 << 20,
        rooms: RoomLimits::DEFAULT,
        space: SpaceLimits::NONE,
        expiry: Expiry::NONE,
    },
    window_bytes: 1500,
    frame_bytes_max: 600,
    tail_entries_max: 12,
    tail_bytes_max: 1 << 20,
    cache_bytes_max: 60,
    newest_format: NEWEST_FORMAT,
    slack_bytes: 0,
};

#[derive(Debug)]
enum Due {
    /// Input for this process of a host.
    Host(usize, ServerId, Box<Input>),
    /// Input for a host, whichever process it runs.
    FromClient(usize, Box<Input>),
    Stream(usize, LogRequest, (usize, ServerId)),
    Apply(usize),
    Client(usize, ConnectionId, Push),
    Wake(usize),
    Fault(Fault),
}

/// A cluster with its clients.
#[derive(Debug)]
pub(super) struct World {
    now: Duration,
    random: SmallRng,
    due: BTreeMap<(Duration, u64), Due>,
    planned: u64,
    hosts: Vec<Host>,
    paused: Vec<Option<bool>>,
    /// The inputs of a host that stands still.
    backlogs: Vec<Vec<Due>>,
    streams: Vec<Stream>,
    /// The counting messages of the streams, for the judge.
    chains: Vec<Chain>,
    clients: Vec<Client>,
    judge: Judge,
    last_connection: ConnectionId,
    lives: u64,
    /// The arrival of the last message, for each pair of endpoints.
    arrivals: BTreeMap<(usize, usize), Duration>,
    cuts: BTreeSet<(usize, usize)>,
    /// Directed: messages of the first host do not reach the second one.
    mute: BTreeSet<(usize, usize)>,
    log_cuts: BTreeSet<usize>,
    deaf: BTreeSet<usize>,
    hear_streams: bool,
    /// Streams whose storage has too little free space.
    low_space: [bool; SHARDS],
    loss: u32,
    late: u32,
    rest_at: Duration,
    calm_at: Duration,
    config: Config,
}

impl World {
    /// Returns a cluster whose accounts exist.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let skews = [
            0,
            random.random_range(0..5000),
            random.random_range(0..5000),
        ]
        .map(Duration::from_millis);
        Self {
            now: Duration::ZERO,
            due: BTreeMap::new(),
            planned: 0,
            hosts: skews.into_iter().map(Host::new).collect(),
            paused: vec![None; HOSTS],
            backlogs: (0..HOSTS).map(|_| Vec::new()).collect(),
            streams: (0..SHARDS).map(|_| Stream::default()).collect(),
            chains: vec![Chain::starting_at(1, NEWEST_FORMAT); SHARDS],
            clients: Vec::new(),
            judge: Judge::default(),
            last_connection: 0,
            lives: random.random_range(0..100),
            arrivals: BTreeMap::new(),
            cuts: BTreeSet::new(),
            mute: BTreeSet::new(),
            log_cuts: BTreeSet::new(),
            deaf: BTreeSet::new(),
            hear_streams: false,
            low_space: [false; SHARDS],
            loss: 0,
            late: 0,
            rest_at: Duration::MAX,
            calm_at: Duration::MAX,
            config: CONFIG,
            random,
        }
    }

    /// Runs a scenario, and checks the promise.
    pub(super) fn run(mut self, mut scenario: Scenario) -> Counts {
        self.config.tail_entries_max = scenario.tail_entries_max;
        (0..HOSTS).for_each(|host| self.start(host));
        self.create_accounts();
        let begun = self.now;
        if scenario.has_roles {
            scenario.cast(self.roles());
        }
        (self.rest_at, self.calm_at) = (begun + scenario.rest_at, begun + scenario.calm_at);
        self.clients
            .extend((0..2).map(|n| Client::Sender(Sender::new(n, scenario.sends))));
        self.clients
            .extend(READERS.map(|user| Client::Reader(Reader::new(user))));
        self.clients.extend(
            (0..)
                .zip(scenario.changers)
                .map(|(n, habit)| Client::Changer(Changer::new(n, habit.from(begun)))),
        );
        self.clients.push(Client::Lister(Lister::default()));
        for client in 1..self.clients.len() {
            let at = self.random_ms(0, 150);
            self.plan(at, Due::Wake(client));
        }
        for (at, fault) in scenario.faults {
            self.plan(begun + at, Due::Fault(fault));
        }
        let mut ended_at = None;
        while let Some(((at, _), due)) = self.due.pop_first() {
            self.now = at;
            self.judge.counts.events += 1;
            let is_wake = matches!(due, Due::Wake(_));
            self.happen(due);
            if self.now < self.calm_at || !is_wake {
                continue;
            }
            if ended_at.is_none() {
                self.calm();
            }
            assert!(
                self.now < self.calm_at + CALM_MAX,
                "it does not come to an end: {:#?}",
                self.clients
            );
            let is_done = self.clients.iter().all(Client::is_done)
                && self.judge.is_complete()
                && !self.is_a_session_open_twice();
            let ended_at = ended_at.get_or_insert(self.now);
            if !is_done {
                *ended_at = self.now;
            } else if self.now >= *ended_at + AFTER_END {
                if self.check_streams() {
                    break;
                }
                // A claim is in progress.
                *ended_at = self.now;
            }
        }
        self.judge.check();
        self.judge.check_claims(scenario.claims_max);
        self.judge.counts.ended_at = self.now;
        self.judge.counts
    }

    /// Returns the owner of the shard of the account that is deleted, that of the other shard
    /// or another host, and the third one.
    fn roles(&self) -> [usize; 3] {
        let owner = |shard: usize| {
            let is_owner = |host: &Host| {
                let seat = host.member().and_then(|member| member.seats().nth(shard));
                seat.is_some_and(|seat| seat.owner().is_some())
            };
            self.hosts.iter().position(is_owner).unwrap_or(0)
        };
        let shard = assignment::shard_of(&CHANGING.parse().unwrap(), SHARDS as u32) as usize;
        let (first, second) = (owner(shard), owner(1 - shard));
        let second = match first == second {
            true => (first + 1) % HOSTS,
            false => second,
        };
        [first, second, HOSTS - first - second]
    }

    /// Returns whether two connections hold the same session.
    fn is_a_session_open_twice(&self) -> bool {
        let mut sessions = BTreeSet::new();
        !self
            .hosts
            .iter()
            .flat_map(Host::holders)
            .all(|session| sessions.insert(session))
    }

    /// Creates the accounts before the first fault.
    fn create_accounts(&mut self) {
        self.clients.push(Client::Creator(Creator::default()));
        self.plan(Duration::ZERO, Due::Wake(0));
        while !self.clients.iter().all(Client::is_done) {
            let ((at, _), due) = self.due.pop_first().unwrap();
            assert!(at < CALM_MAX, "accounts cannot be created");
            self.now = at;
            self.happen(due);
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Host(host, life, input) => {
                if self.hosts[host].life != life || self.hosts[host].member().is_none() {
                    return;
                }
                if self.paused[host].is_some() {
                    if !matches!(*input, Input::Tick) {
                        self.backlogs[host].push(Due::Host(host, life, input));
                    }
                    return;
                }
                let is_tick = matches!(*input, Input::Tick);
                if is_tick {
                    self.hosts[host].poll_storage(&self.low_space);
                }
                self.handle(host, *input);
                if is_tick {
                    self.plan(
                        self.now + TICK,
                        Due::Host(host, life, Box::new(Input::Tick)),
                    );
                }
            }
            Due::FromClient(host, input) if self.paused[host].is_some() => {
                self.backlogs[host].push(Due::FromClient(host, input));
            }
            Due::FromClient(host, input) => self.handle(host, *input),
            Due::Stream(shard, request, client) => self.request(shard, request, client),
            Due::Apply(shard) => self.apply(shard),
            Due::Client(client, connection, push) => {
                self.with_client(client, |client, context| {
                    client.handle(connection, push, context)
                });
            }
            Due::Wake(client) => {
                self.with_client(client, Client::wake);
                let is_idle = self.now >= self.rest_at && self.clients[client].is_done();
                self.plan(
                    self.now + if is_idle { IDLE_WAKE } else { WAKE },
                    Due::Wake(client),
                );
            }
            Due::Fault(fault) => self.fault(fault),
        }
    }

    fn handle(&mut self, host: usize, input: Input) {
        let outputs = self.hosts[host].handle(input, self.now, self.last_connection);
        self.carry_out(host, outputs);
    }

    fn carry_out(&mut self, host: usize, outputs: Vec<Output>) {
        let life = self.hosts[host].life;
        for output in outputs {
            match output {
                Output::Log(shard, request) => self.ask_stream(host, shard as usize, request),
                Output::Send(server, message) => {
                    if let Some(to) = self.hosts.iter().position(|host| host.life == server) {
                        self.send(host, to, Input::Message(message));
                    }
                }
                Output::Broadcast(message) => {
                    if let Message::Heartbeat(shard, claim) = message {
                        self.judge.claimed(shard, claim.sequence);
                    }
                    for to in 0..HOSTS {
                        self.send(host, to, Input::Message(message.clone()));
                    }
                }
                Output::Push(client, connection, push) => {
                    if let Push::Answer(id, Answered::Answer(Answer::Sent(outcome))) = &push
                        && *outcome == StoreOutcome::Refused(Code::NoSpace)
                        && let Client::Sender(sender) = &self.clients[client]
                    {
                        self.judge.refused_for_space(sender.session(), *id as u32);
                    }
                    if let Push::Answer(id, Answered::Unavailable) = &push
                        && matches!(self.clients[client], Client::Sender(_))
                    {
                        self.judge.undecided(connection, *id as u32);
                    }
                    let at = self.arrival((host, 100 + client), 1, 5);
                    self.plan(at, Due::Client(client, connection, push));
                }
            }
        }
        debug_assert_eq!(life, self.hosts[host].life);
    }

    fn ask_stream(&mut self, host: usize, shard: usize, request: LogRequest) {
        if self.log_cuts.contains(&host) || self.is_lost() {
            return;
        }
        let is_append = matches!(request, LogRequest::Append { .. });
        self.judge.counts.gets += u64::from(matches!(request, LogRequest::Get { .. }));
        self.judge.counts.purges += u64::from(matches!(request, LogRequest::Purge { .. }));
        let is_late = is_append && self.random.random_range(0..1000) < self.late;
        let at = if is_late {
            self.random_ms(300, 6000)
        } else {
            self.arrival((host, 50 + shard), 1, 3)
        };
        self.plan(
            at,
            Due::Stream(shard, request, (host, self.hosts[host].life)),
        );
    }

    fn request(&mut self, shard: usize, request: LogRequest, (host, life): (usize, ServerId)) {
        match self.streams[shard].handle(request, (host, life.0)) {
            Outcome::Reply(reply) => self.reply(shard, host, life, reply),
            Outcome::Proposed => {
                let at = self.arrival((50 + shard, 50 + shard), 1, 4);
                self.plan(at, Due::Apply(shard));
            }
            Outcome::Nothing => {}
        }
    }

    fn apply(&mut self, shard: usize) {
        let Stream {
            is_stalled,
            is_electing,
            is_blind,
            ..
        } = self.streams[shard];
        if is_stalled || is_electing || is_blind || !self.streams[shard].has_proposals() {
            // The next leader applies it when it has caught up, unless it is lost.
            return;
        }
        let reply = self.streams[shard].apply();
        if let Some(message) = self.streams[shard].messages().1.last()
            && let Taken::Committed(Frame {
                blocks,
                checkpoint: None,
                ..
            }) = self.chains[shard].take(message)
        {
            self.judge.stored(shard as ShardId, &blocks);
        }
        if let Some(((host, life), reply)) = reply {
            self.reply(shard, host, ServerId(life), reply);
        }
    }

    fn reply(&mut self, shard: usize, host: usize, life: ServerId, reply: LogReply) {
        let is_deaf = self.deaf.contains(&host) && !self.hear_streams;
        if self.log_cuts.contains(&host) || is_deaf || self.is_lost() {
            return;
        }
        let at = self.arrival((50 + shard, host), 1, 3);
        self.plan(
            at,
            Due::Host(host, life, Box::new(Input::Log(shard as ShardId, reply))),
        );
    }

    fn send(&mut self, from: usize, to: usize, input: Input) {
        let is_cut = self.cuts.contains(&(from.min(to), from.max(to)))
            || self.mute.contains(&(from, to))
            || self.deaf.contains(&to);
        if from != to && (is_cut || self.is_lost()) {
            return;
        }
        let at = self.arrival((from, to), 1, if from == to { 2 } else { 8 });
        self.plan(at, Due::Host(to, self.hosts[to].life, Box::new(input)));
    }

    fn with_client(&mut self, client: usize, act: impl FnOnce(&mut Client, &mut Context<'_>)) {
        let mut context = Context {
            now: self.now,
            random: &mut self.random,
            judge: &mut self.judge,
            hosts: HOSTS,
            is_calm: self.now >= self.rest_at,
            last_connection: &mut self.last_connection,
            calls: Vec::new(),
        };
        act(&mut self.clients[client], &mut context);
        for ((connection, host), call) in context.calls {
            let input = match call {
                ToHost::Open => Input::Open(connection, client),
                ToHost::Call(request, call) => Input::Call(connection, request, call),
                ToHost::Hangup => Input::Hangup(connection),
            };
            let at = self.arrival((100 + client, host), 1, 5);
            self.plan(at, Due::FromClient(host, Box::new(input)));
        }
    }

    fn start(&mut self, host: usize) {
        if self.hosts[host].member().is_some() {
            return;
        }
        self.lives += 1;
        let life = ServerId(self.lives * HOSTS as u64 + host as u64);
        let servers: Vec<_> = (0..HOSTS)
            .map(|other| {
                if other == host {
                    life
                } else {
                    self.hosts[other].life
                }
            })
            .collect();
        let member = Member::new(life, &servers, SHARDS as u32, self.config);
        self.hosts[host].start(life, member, self.now);
        let at = self.random_ms(0, 250);
        self.plan(at, Due::Host(host, life, Box::new(Input::Tick)));
    }

    fn crash(&mut self, host: usize) {
        for (client, connection) in self.hosts[host].crash() {
            let at = self.arrival((host, 100 + client), 1, 5);
            self.plan(at, Due::Client(client, connection, Push::Closed));
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Pause { host, stops_clock } => self.paused[host] = Some(stops_clock),
            Fault::Resume(host) => self.resume(host),
            Fault::Crash(host) => self.crash(host),
            Fault::Leave(host) if self.paused[host].is_none() => {
                let outputs = self.hosts[host].leave(self.now);
                self.carry_out(host, outputs);
                let at = self.random_ms(5, 200);
                self.plan(at, Due::Fault(Fault::Crash(host)));
            }
            Fault::Leave(_) => {}
            Fault::Start(host) => self.start(host),
            Fault::Cut(a, b) => {
                self.cuts.insert((a.min(b), a.max(b)));
            }
            Fault::Mute(from, to) => {
                self.mute.insert((from, to));
            }
            Fault::CutLog(host) => {
                self.log_cuts.insert(host);
            }
            Fault::Heal => {
                self.cuts.clear();
                self.mute.clear();
                self.log_cuts.clear();
                self.deaf.clear();
                self.hear_streams = false;
            }
            Fault::Loss(loss) => self.loss = loss,
            Fault::Late(late) => self.late = late,
            Fault::Deaf(host) => {
                self.deaf.insert(host);
            }
            Fault::HearStreams => self.hear_streams = true,
            Fault::Stall(shard) => self.streams[shard].is_stalled = true,
            Fault::LoseLeader(shard) => self.streams[shard].lose_leader(&mut self.random),
            Fault::Elect(shard) => self.elect(shard),
            Fault::Settle(shard) => self.settle(shard),
            Fault::Stale(shard, by) => self.streams[shard].stale_by = by,
            Fault::LowSpace(shard, is_low) => self.low_space[shard] = is_low,
        }
    }

    fn elect(&mut self, shard: usize) {
        let stream = &mut self.streams[shard];
        if std::mem::take(&mut stream.is_electing) {
            stream.is_blind = true;
        }
    }

    /// Has the leader of a stream catch up: it applies all proposals.
    fn settle(&mut self, shard: usize) {
        let stream = &mut self.streams[shard];
        (stream.is_stalled, stream.is_electing, stream.is_blind) = (false, false, false);
        while self.streams[shard].has_proposals() {
            self.apply(shard);
        }
    }

    /// Resumes a host: its backlog is handled in any order of the sources.
    fn resume(&mut self, host: usize) {
        let Some(stops_clock) = self.paused[host].take() else {
            return;
        };
        if stops_clock {
            self.hosts[host].skip_clock(self.now);
        }
        // The server may be slow to read from its clients.
        let mut at = [self.now, self.now, self.random_ms(0, 1500)];
        // Inputs that are on their way come after the backlog.
        let is_underway = |_: &(Duration, u64), due: &mut Due| match due {
            Due::Host(to, _, input) => *to == host && !matches!(**input, Input::Tick),
            Due::FromClient(to, _) => *to == host,
            _ => false,
        };
        let mut backlog = std::mem::take(&mut self.backlogs[host]);
        backlog.extend(self.due.extract_if(.., is_underway).map(|(_, due)| due));
        for due in backlog {
            let source = match &due {
                Due::Host(_, _, input) if matches!(**input, Input::Log(..)) => 0,
                Due::Host(..) => 1,
                _ => 2,
            };
            at[source] += Duration::from_micros(self.random.random_range(0..1000));
            self.plan(at[source], due);
        }
        // Later arrivals come after the backlog.
        for from in 0..200 {
            let source = match from {
                50..100 => 0,
                0..50 => 1,
                _ => 2,
            };
            let arrival = self.arrivals.entry((from, host)).or_default();
            *arrival = (*arrival).max(at[source]);
        }
        let life = self.hosts[host].life;
        self.plan(self.now, Due::Host(host, life, Box::new(Input::Tick)));
    }

    /// Ends all faults.
    fn calm(&mut self) {
        (self.loss, self.late) = (0, 0);
        self.fault(Fault::Heal);
        for host in 0..HOSTS {
            self.resume(host);
            self.start(host);
        }
        for shard in 0..SHARDS {
            self.streams[shard].stale_by = 0;
            self.low_space[shard] = false;
            self.settle(shard);
        }
    }

    fn is_lost(&mut self) -> bool {
        self.loss > 0 && self.random.random_range(0..1000) < self.loss
    }

    fn random_ms(&mut self, from: u64, to: u64) -> Duration {
        self.now + Duration::from_micros(self.random.random_range(from * 1000..to * 1000))
    }

    /// Returns the time of an arrival, after earlier ones of the same link.
    fn arrival(&mut self, link: (usize, usize), from_ms: u64, to_ms: u64) -> Duration {
        let at = self.random_ms(from_ms, to_ms);
        let last = self.arrivals.entry(link).or_default();
        *last = at.max(*last);
        *last
    }

    fn plan(&mut self, at: Duration, due: Due) {
        self.planned += 1;
        self.due.insert((at.max(self.now), self.planned), due);
    }

    /// Checks that the owners agree with their streams, and that exactly the
    /// unacknowledged messages are live. Returns whether each shard has an owner that
    /// knows all receptions.
    fn check_streams(&self) -> bool {
        let mut receptions = 0;
        for (shard, stream) in self.streams.iter().enumerate() {
            let (first, messages) = stream.messages();
            let entries = messages
                .iter()
                .filter_map(|message| Some(Entry::decode(message, NEWEST_FORMAT).ok()?.0));
            let begin = entries
                .map(|entry| entry.snapshot)
                .max()
                .unwrap_or(0)
                .max(first);
            let mut replay = StreamReplay::new(&CONFIG, begin);
            let tail = &messages[(begin - first) as usize..];
            tail.iter()
                .try_for_each(|message| replay.take(message))
                .unwrap();
            let all = messages.iter().filter_map(|message| {
                match Entry::decode(message, NEWEST_FORMAT).ok()?.0.content {
                    Content::Frame(frame) => Some(frame.blocks),
                    _ => None,
                }
            });
            let all: Vec<_> = all.flatten().collect();
            let claim = replay.claim();
            let replayed = replay.finish(0).unwrap();
            let owner = self
                .hosts
                .iter()
                .filter_map(Host::member)
                .find_map(|member| {
                    member
                        .seats()
                        .nth(shard)?
                        .owner()
                        .filter(|owner| Some(owner.claim) == claim)
                });
            let Some(owner) = owner else { return false };
            receptions += owner.reception_count();
            for (entry, cursor, tail) in replayed.ledger.inboxes() {
                let limit = ReadLimit {
                    messages: 1000,
                    bytes: 1 << 20,
                };
                let reader = WithRead {
                    blocks: &replayed.blocks,
                    read: &all,
                };
                let page =
                    read_page(&reader, entry.account.incarnation, cursor.sequence, limit).unwrap();
                let queued = tail.messages - cursor.messages;
                assert_eq!(
                    page.messages.len() as u64,
                    queued,
                    "messages of {}",
                    entry.account.name
                );
            }
            if !owner.is_in_flight() {
                assert_eq!(
                    replayed.blocks.len(),
                    owner.blocks.len(),
                    "live blocks of shard {shard}"
                );
                assert_eq!(replayed.chain, owner.chain);
            }
        }
        // Receptions may be on their way to a new owner.
        receptions == READERS.len()
    }
}
