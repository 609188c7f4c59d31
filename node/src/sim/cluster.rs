//! The cluster: it runs one event after the other. It knows no program and no
//! service; the network decides which messages arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::builder::{Builder, Make};
use super::client::{Operation, Operations};
use super::event::Event;
use super::journal::{Journal, Loss, Number, Record, What};
use super::network::{Fate, Links};
use super::party::Party;
use super::services::Services;
use crate::machine::Machine;
use crate::message::{self, MsgId};
use crate::node::Node;
use crate::storage::Storage;

/// In each incarnation of a node, its message ids begin at a multiple of this.
const LIFE_MSG_IDS: i64 = 1_000_000_000;

/// Rows of the chart that a failing test prints.
const FAILURE_ROWS: usize = 40;

/// The nodes of one program, a network and its services, and clients.
///
/// Time is virtual and begins at 0. It passes while the nodes start, and in
/// [`Self::run_for`], [`Self::run_until`], [`Self::wait`] and [`Self::call`].
/// A cluster that a panic drops prints its seed and the end of its chart on
/// stderr.
///
/// As in the harness, a node that sends a message to a destination that does
/// not exist is mute from then on: no output of it is read again until it is
/// restarted. Such a destination is a name of no party, a client that has given
/// up, and a node or service that has not started. By default this fails the
/// test with the reason.
pub struct Cluster {
    now: Duration,
    seed: u64,
    nodes: Vec<Member>,
    /// The next timer of each node, by time.
    timers: BTreeSet<(Duration, usize)>,
    /// The planned events by time; those with equal times are in the order of
    /// planning.
    plan: BTreeMap<(Duration, u64), Due>,
    planned: u64,
    events: u64,
    events_max: u64,
    time_max: Duration,
    pub(super) links: Links,
    services: Services,
    pub(super) operations: Operations,
    journal: Journal,
    pub(super) random: SmallRng,
    make: Make,
    /// Whole lines that were just sent.
    outbox: Vec<u8>,
    allows_mute: bool,
    /// All nodes have started, and so have the services.
    has_started: bool,
}

/// A node, in its current incarnation.
#[derive(Default)]
struct Member {
    /// `None` while it is down.
    machine: Option<Machine>,
    /// It outlives the machine.
    storage: Storage,
    lives: i64,
    began: Duration,
    wakes_at: Option<Duration>,
    /// The harness does not read its output any more.
    is_mute: bool,
}

enum Due {
    Start(usize),
    Arrival(Number),
    Event(Event),
    Timeout(Operation),
}

#[derive(Serialize)]
struct Init<'a> {
    node_id: &'a str,
    node_ids: &'a [String],
}

impl Cluster {
    /// Returns the builder of a cluster whose nodes run `program`, each with
    /// its own state. The program is set up again for each incarnation of a
    /// node.
    pub fn builder<S: Default + 'static>(program: impl Fn(&Node<S>) + 'static) -> Builder {
        Builder::new(S::default, program)
    }

    /// As [`Self::builder`], with the state that `state` creates for each
    /// incarnation of a node.
    pub fn builder_with<S: 'static>(
        state: impl Fn() -> S + 'static,
        program: impl Fn(&Node<S>) + 'static,
    ) -> Builder {
        Builder::new(state, program)
    }

    pub(super) fn new(builder: Builder) -> Self {
        let mut random = SmallRng::seed_from_u64(builder.seed);
        let mut cluster = Self {
            now: Duration::ZERO,
            seed: builder.seed,
            nodes: (0..builder.nodes).map(|_| Member::default()).collect(),
            timers: BTreeSet::new(),
            plan: BTreeMap::new(),
            planned: 0,
            events: 0,
            events_max: builder.events_max,
            time_max: builder.time_max,
            links: Links::new(builder.network, random.random()),
            services: Services::new(random.random()),
            operations: Operations::new(builder.client_timeout),
            journal: Journal::new(builder.journal_max),
            random,
            make: builder.make,
            outbox: Vec::new(),
            allows_mute: builder.allows_mute,
            has_started: false,
        };
        cluster.start(builder.stagger);
        cluster
    }

    /// Starts all nodes within this time, the first one last, as the harness
    /// does.
    fn start(&mut self, stagger: Duration) {
        for index in 0..self.nodes.len() {
            if stagger.is_zero() {
                self.begin(index);
            } else {
                let at = if index == 0 {
                    stagger
                } else {
                    self.random.random_range(Duration::ZERO..stagger)
                };
                self.plan(at, Due::Start(index));
            }
        }
        while self.nodes.iter().any(|node| node.lives == 0) && self.step(Duration::MAX) {}
        self.has_started = true;
    }

    /// Returns the virtual time.
    #[must_use]
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// Returns the seed of everything random.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the names of all nodes: `n1` and so on.
    #[must_use]
    pub fn node_ids(&self) -> Vec<String> {
        (0..self.nodes.len())
            .map(|index| Party::Node(index).to_string())
            .collect()
    }

    /// Returns a random number for a choice of the test. It depends only on the
    /// seed.
    pub fn random(&mut self) -> u64 {
        self.random.random()
    }

    /// Returns a random value of a range, as [`Self::random`] does.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn random_range<T: SampleUniform>(&mut self, range: impl SampleRange<T>) -> T {
        self.random.random_range(range)
    }

    /// Returns whether a node is mute.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn is_node_mute(&self, node: &str) -> bool {
        self.is_mute(Party::Node(self.index(node)))
    }

    /// Returns the journal of all events so far.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns the number of calls that a node has open; 0 if it is down.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn pending(&self, node: &str) -> usize {
        let member = self.nodes.get(self.index(node));
        member
            .and_then(|member| member.machine.as_ref())
            .map_or(0, Machine::pending)
    }

    /// Returns the storage of a node, which outlives its crashes.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn storage(&self, node: &str) -> Storage {
        self.nodes
            .get(self.index(node))
            .map(|member| member.storage.clone())
            .unwrap_or_default()
    }

    /// Lets this time pass, with all events in it.
    ///
    /// # Panics
    /// At the bounds of events, time and journal.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.saturating_add(time);
        while self.step(end) {}
        self.advance(end);
    }

    /// Lets time pass until a condition holds, at most this long. Returns whether
    /// it holds; it is evaluated after each event.
    ///
    /// # Panics
    /// At the bounds of events, time and journal.
    #[must_use]
    pub fn run_until(&mut self, longest: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.saturating_add(longest);
        while !holds(self) {
            if !self.step(end) {
                self.advance(end);
                return holds(self);
            }
        }
        true
    }

    /// Runs the next event unless it is after `end`. Returns whether it did.
    pub(super) fn step(&mut self, end: Duration) -> bool {
        let planned = self.plan.first_key_value().map(|(key, _)| key.0);
        let timer = self.timers.first().map(|(at, _)| *at);
        let Some(next) = planned
            .into_iter()
            .chain(timer)
            .min()
            .filter(|next| *next <= end)
        else {
            return false;
        };
        self.advance(next);
        self.count_event();
        if planned == Some(next) {
            // A message that arrives at the time of a deadline is in time.
            match self.plan.pop_first() {
                Some((_, Due::Start(index))) => self.begin(index),
                Some((_, Due::Arrival(number))) => self.arrive(number),
                Some((_, Due::Event(event))) => self.apply(event),
                Some((_, Due::Timeout(operation))) => self.operations.expire(operation, self.now),
                None => {}
            }
        } else if let Some((_, index)) = self.timers.first().copied() {
            self.drive(index, Machine::handle_timeout);
        }
        true
    }

    fn advance(&mut self, now: Duration) {
        let max = self.time_max;
        assert!(
            now <= max,
            "the virtual time comes to {now:?}, and may come to {max:?}: \
             the test waits for an event that never comes, or `Builder::time_max` is too low"
        );
        self.now = self.now.max(now);
    }

    fn count_event(&mut self) {
        self.events += 1;
        let (max, now) = (self.events_max, self.now);
        assert!(
            self.events <= max,
            "{max} events have happened at {now:?}, which is all that may happen: \
             the nodes do not come to rest, or `Builder::events_max` is too low"
        );
    }

    pub(super) fn plan_event(&mut self, time: Duration, event: Event) {
        self.plan(time.max(self.now), Due::Event(event));
    }

    /// Records an external event in the journal.
    pub(super) fn note(&mut self, event: String) {
        self.journal.note(self.now, What::Event(event));
    }

    fn plan(&mut self, at: Duration, due: Due) {
        self.planned += 1;
        self.plan.insert((at, self.planned), due);
    }

    /// Sends a client's request.
    pub(super) fn request(&mut self, operation: Operation, client: Party, line: &[u8]) {
        self.post(client, line);
        let deadline = self.now.saturating_add(self.operations.timeout);
        self.plan(deadline, Due::Timeout(operation));
    }

    /// Sends a line over the network.
    fn post(&mut self, src: Party, line: &[u8]) {
        let record = self.record(src, line);
        let dest = record.dest;
        let number = self.journal.send(record);
        if self.is_mute(src) {
            return self.journal.note(self.now, What::Lost(number, Loss::Mute));
        }
        if let Some(why) = self.absence(dest) {
            self.journal
                .note(self.now, What::Lost(number, Loss::UnknownDestination));
            return self.refuse(number, why);
        }
        match self.links.send(self.now, src, dest) {
            Fate::Lost => self
                .journal
                .note(self.now, What::Lost(number, Loss::Chance)),
            Fate::Cut => self.journal.note(self.now, What::Lost(number, Loss::Cut)),
            Fate::Arrives { at, again_at } => {
                self.plan(at, Due::Arrival(number));
                if let Some(again_at) = again_at {
                    self.journal.note(self.now, What::Doubled(number));
                    self.plan(again_at, Due::Arrival(number));
                }
            }
        }
    }

    #[expect(
        clippy::panic,
        reason = "a program that sends a malformed message fails its test"
    )]
    fn record(&self, src: Party, line: &[u8]) -> Record {
        match message::parse(line) {
            Ok(message) => Record {
                sent_at: self.now,
                src,
                dest: self.named(&message.dest),
                kind: message.kind.into_owned(),
                is_request: message.msg_id.is_some() && message.in_reply_to.is_none(),
                line: line.to_vec(),
            },
            Err(error) => {
                let line = String::from_utf8_lossy(line);
                panic!("{src} has sent a malformed message, {}: {line}", error.why)
            }
        }
    }

    /// Returns the reason for which the harness does not know a destination.
    fn absence(&self, dest: Party) -> Option<&'static str> {
        match dest {
            Party::Unknown => Some("which does not exist"),
            Party::Client(number) if self.operations.is_closed(number) => {
                Some("which has given up its request and is gone")
            }
            Party::Node(index) if self.nodes.get(index).is_some_and(|node| node.lives == 0) => {
                Some("which has not started yet")
            }
            Party::Service(_) if !self.has_started => Some("which has not started yet"),
            _ => None,
        }
    }

    fn is_mute(&self, src: Party) -> bool {
        matches!(src, Party::Node(index) if self.nodes.get(index).is_some_and(|node| node.is_mute))
    }

    /// Ends a message to a destination that the harness does not know. A client
    /// gets error 1, and a node is mute from then on.
    #[expect(
        clippy::panic,
        reason = "a program that makes itself mute fails its test"
    )]
    fn refuse(&mut self, number: Number, why: &str) {
        let Some(record) = self.journal.messages.get(number) else {
            return;
        };
        let (src, kind) = (record.src, &record.kind);
        let Party::Node(index) = src else {
            if record.is_request {
                self.services.refuse(&record.line, &mut self.outbox);
            }
            return self.post_outbox(Party::Unknown);
        };
        let dest = message::parse(&record.line)
            .map_or_else(|_| String::new(), |message| message.dest.into());
        let text = format!("{src} is mute: it has sent {kind} to {dest}, {why}");
        self.journal.note(self.now, What::Event(text.clone()));
        if let Some(node) = self.nodes.get_mut(index) {
            node.is_mute = true;
        }
        if !self.allows_mute {
            panic!("{text}; the harness never reads its output again");
        }
    }

    fn post_outbox(&mut self, src: Party) {
        let outbox = std::mem::take(&mut self.outbox);
        for line in outbox
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            self.post(src, line);
        }
        // Its memory is used again.
        self.outbox = outbox;
        self.outbox.clear();
    }

    fn arrive(&mut self, number: Number) {
        let Some(record) = self.journal.messages.get(number) else {
            return;
        };
        let (src, dest) = (record.src, record.dest);
        let lost = match dest {
            _ if self.links.is_cut(src, dest) => Some(Loss::Cut),
            _ if self.absence(dest).is_some() => Some(Loss::UnknownDestination),
            Party::Node(index) if !self.is_up(index) => Some(Loss::Down),
            _ => None,
        };
        if let Some(why) = lost {
            return self.journal.note(self.now, What::Lost(number, why));
        }
        self.deliver(number, dest);
    }

    fn deliver(&mut self, number: Number, dest: Party) {
        self.journal.note(self.now, What::Delivered(number));
        let Some(record) = self.journal.messages.get_mut(number) else {
            return;
        };
        // It is put back; the journal is not read in between.
        let line = std::mem::take(&mut record.line);
        let src = record.src;
        match dest {
            Party::Node(index) => self.drive(index, |machine, now| machine.handle_line(now, &line)),
            Party::Service(service) => {
                self.services
                    .handle(service, self.now, src, &line, &mut self.outbox);
                self.post_outbox(dest);
            }
            Party::Client(_) => self.operations.take(dest, self.now, &line),
            Party::Unknown => {}
        }
        if let Some(record) = self.journal.messages.get_mut(number) {
            record.line = line;
        }
    }

    /// Runs an action of a node at this time, and posts the messages that it
    /// sends.
    fn drive(&mut self, index: usize, action: impl FnOnce(&mut Machine, Duration)) {
        let Some(member) = self.nodes.get_mut(index) else {
            return;
        };
        let Some(machine) = &mut member.machine else {
            return;
        };
        action(machine, self.now.saturating_sub(member.began));
        machine.take_output(&mut self.outbox);
        let wakes_at = machine
            .next_timeout()
            .map(|at| member.began.saturating_add(at));
        self.wake_at(index, wakes_at);
        self.post_outbox(Party::Node(index));
    }

    fn wake_at(&mut self, index: usize, wakes_at: Option<Duration>) {
        let Some(member) = self.nodes.get_mut(index) else {
            return;
        };
        if member.wakes_at == wakes_at {
            return;
        }
        if let Some(before) = std::mem::replace(&mut member.wakes_at, wakes_at) {
            self.timers.remove(&(before, index));
        }
        self.timers.extend(wakes_at.map(|at| (at, index)));
    }

    fn is_up(&self, index: usize) -> bool {
        self.nodes
            .get(index)
            .is_some_and(|member| member.machine.is_some())
    }

    pub(super) fn crash(&mut self, index: usize) {
        if let Some(member) = self.nodes.get_mut(index) {
            member.machine = None;
        }
        self.wake_at(index, None);
    }

    pub(super) fn restart(&mut self, index: usize) {
        if !self.is_up(index) {
            self.begin(index);
        }
    }

    /// Begins an incarnation of a node.
    fn begin(&mut self, index: usize) {
        let storage = self
            .nodes
            .get(index)
            .map(|member| member.storage.clone())
            .unwrap_or_default();
        let machine = (self.make)(self.random.random(), storage);
        if let Some(member) = self.nodes.get_mut(index) {
            machine.count_from(MsgId(member.lives.saturating_mul(LIFE_MSG_IDS)));
            member.lives += 1;
            member.is_mute = false;
            member.began = self.now;
            member.machine = Some(machine);
        }
        self.init(index);
    }

    /// Gives a node its name, as its first message.
    fn init(&mut self, index: usize) {
        let (client, node) = (Party::Client(0), Party::Node(index));
        let (node_id, node_ids) = (node.to_string(), self.node_ids());
        let init = Init {
            node_id: &node_id,
            node_ids: &node_ids,
        };
        let line = self.operations.init_line(self.now, &node_id, &init);
        let record = self.record(client, line.trim_ascii_end());
        let number = self.journal.send(record);
        self.deliver(number, node);
    }

    pub(super) fn named(&self, name: &str) -> Party {
        Party::named(name, self.nodes.len(), self.operations.connections())
    }
}

/// Prints the events before a failure.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let chart = self.journal.chart().last(FAILURE_ROWS);
            eprintln!(
                "the cluster of seed {} at {:?}:\n{chart}",
                self.seed, self.now
            );
        }
    }
}
