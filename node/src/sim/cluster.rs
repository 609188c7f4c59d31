//! The cluster: what happens next, and that it does. It knows no program and no
//! service; the network decides what arrives, and the journal remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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

/// The ids of what a node sends begin at a multiple of this in each life.
const LIFE_MSG_IDS: i64 = 1_000_000_000;

/// Rows of the chart that a failing test prints.
const FAILURE_ROWS: usize = 40;

/// The nodes of one program, a network and its services, and clients.
///
/// Time is virtual and begins at 0; it passes in [`Self::run_for`],
/// [`Self::run_until`], [`Self::wait`] and [`Self::call`] alone. One that is
/// dropped by a panic prints its seed and the end of its chart on stderr.
pub struct Cluster {
    now: Duration,
    seed: u64,
    nodes: Vec<Member>,
    /// When which node's timer is due.
    timers: BTreeSet<(Duration, usize)>,
    /// What will happen, by its time; of one time, in the order of planning.
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
    /// What was just sent: whole lines.
    outbox: Vec<u8>,
}

/// A node, in its present life.
#[derive(Default)]
struct Member {
    /// `None` while it is down.
    machine: Option<Machine>,
    /// What outlives a crash.
    storage: Storage,
    lives: i64,
    began: Duration,
    wakes_at: Option<Duration>,
}

enum Due {
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
    /// A cluster of nodes that run what `program` registers, each with a state
    /// of its own. It is set up anew for each node, and each time one is
    /// restarted.
    pub fn builder<S: Default + 'static>(program: impl Fn(&Node<S>) + 'static) -> Builder {
        Builder::new(program)
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
        };
        (0..builder.nodes).for_each(|index| cluster.begin(index));
        cluster
    }

    /// The virtual time.
    #[must_use]
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// What everything random comes from.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The names of all nodes: `n1` and so on.
    #[must_use]
    pub fn node_ids(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|index| Party::Node(index).to_string()).collect()
    }

    /// A random number that depends on the seed alone, for what a test chooses.
    pub fn random(&mut self) -> u64 {
        self.random.random()
    }

    /// All that has happened.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The calls that a node has open; 0, if it is down.
    ///
    /// # Panics
    /// Where there is no such node.
    #[must_use]
    pub fn pending(&self, node: &str) -> usize {
        let member = self.nodes.get(self.index(node));
        member.and_then(|member| member.machine.as_ref()).map_or(0, Machine::pending)
    }

    /// Returns the storage of a node, which outlives its crashes.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn storage(&self, node: &str) -> Storage {
        self.nodes.get(self.index(node)).map(|member| member.storage.clone()).unwrap_or_default()
    }

    /// Lets so much time pass, with all that happens in it.
    ///
    /// # Panics
    /// At the bounds of events, time and journal.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.saturating_add(time);
        while self.step(end) {}
        self.advance(end);
    }

    /// Lets time pass until something is so, at most this long; whether it is.
    /// It is asked again after all that happens.
    ///
    /// # Panics
    /// At the bounds of events, time and journal.
    #[must_use]
    pub fn run_until(&mut self, longest: Duration, mut is_so: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.saturating_add(longest);
        while !is_so(self) {
            if !self.step(end) {
                self.advance(end);
                return is_so(self);
            }
        }
        true
    }

    /// Lets the next thing happen, unless that is after `end`; whether it did.
    pub(super) fn step(&mut self, end: Duration) -> bool {
        let planned = self.plan.first_key_value().map(|(key, _)| key.0);
        let timer = self.timers.first().map(|(at, _)| *at);
        let Some(next) = planned.into_iter().chain(timer).min().filter(|next| *next <= end) else {
            return false;
        };
        self.advance(next);
        self.count_event();
        if planned == Some(next) {
            // What arrives in time for a deadline is in time.
            match self.plan.pop_first() {
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
             a test waits for what does not happen, or `Builder::time_max` is too low"
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

    /// What happens from outside is in the journal too.
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
        let (dest, is_request) = (record.dest, record.is_request);
        let number = self.journal.send(record);
        if dest == Party::Unknown {
            self.journal.note(self.now, What::Lost(number, Loss::Nobody));
            if is_request && src != Party::Unknown {
                self.refuse(number);
            }
            return;
        }
        match self.links.send(self.now, src, dest) {
            Fate::Lost => self.journal.note(self.now, What::Lost(number, Loss::Chance)),
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

    #[expect(clippy::panic, reason = "a program that sends what is no message fails its test")]
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
                panic!("{src} has sent what is no message, {}: {line}", error.why)
            }
        }
    }

    /// Answers what was sent to nobody.
    fn refuse(&mut self, number: Number) {
        if let Some(record) = self.journal.messages.get(number) {
            self.services.refuse(&record.line, &mut self.outbox);
        }
        self.post_outbox(Party::Unknown);
    }

    fn post_outbox(&mut self, src: Party) {
        let outbox = std::mem::take(&mut self.outbox);
        for line in outbox.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.post(src, line);
        }
        // Its memory is used again.
        self.outbox = outbox;
        self.outbox.clear();
    }

    fn arrive(&mut self, number: Number) {
        let Some(record) = self.journal.messages.get(number) else { return };
        let (src, dest) = (record.src, record.dest);
        let lost = match dest {
            _ if self.links.is_cut(src, dest) => Some(Loss::Cut),
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
        let Some(record) = self.journal.messages.get_mut(number) else { return };
        // It is put back; the journal is not read in between.
        let line = std::mem::take(&mut record.line);
        let src = record.src;
        match dest {
            Party::Node(index) => self.drive(index, |machine, now| machine.handle_line(now, &line)),
            Party::Service(service) => {
                self.services.handle(service, self.now, src, &line, &mut self.outbox);
                self.post_outbox(dest);
            }
            Party::Client(_) => self.operations.take(dest, self.now, &line),
            Party::Unknown => {}
        }
        if let Some(record) = self.journal.messages.get_mut(number) {
            record.line = line;
        }
    }

    /// Lets a node do something at this time, and sends what it sends.
    fn drive(&mut self, index: usize, action: impl FnOnce(&mut Machine, Duration)) {
        let Some(member) = self.nodes.get_mut(index) else { return };
        let Some(machine) = &mut member.machine else { return };
        action(machine, self.now.saturating_sub(member.began));
        machine.take_output(&mut self.outbox);
        let wakes_at = machine.next_timeout().map(|at| member.began.saturating_add(at));
        self.wake_at(index, wakes_at);
        self.post_outbox(Party::Node(index));
    }

    fn wake_at(&mut self, index: usize, wakes_at: Option<Duration>) {
        let Some(member) = self.nodes.get_mut(index) else { return };
        if member.wakes_at == wakes_at {
            return;
        }
        if let Some(before) = std::mem::replace(&mut member.wakes_at, wakes_at) {
            self.timers.remove(&(before, index));
        }
        self.timers.extend(wakes_at.map(|at| (at, index)));
    }

    fn is_up(&self, index: usize) -> bool {
        self.nodes.get(index).is_some_and(|member| member.machine.is_some())
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

    /// Begins a node's life.
    fn begin(&mut self, index: usize) {
        let storage = self.nodes.get(index).map(|member| member.storage.clone()).unwrap_or_default();
        let machine = (self.make)(self.random.random(), storage);
        if let Some(member) = self.nodes.get_mut(index) {
            machine.count_from(MsgId(member.lives.saturating_mul(LIFE_MSG_IDS)));
            member.lives += 1;
            member.began = self.now;
            member.machine = Some(machine);
        }
        self.init(index);
    }

    /// Gives a node its name, before it gets anything else.
    fn init(&mut self, index: usize) {
        let (client, node) = (Party::Client(0), Party::Node(index));
        let (node_id, node_ids) = (node.to_string(), self.node_ids());
        let init = Init { node_id: &node_id, node_ids: &node_ids };
        let line = self.operations.init_line(self.now, &node_id, &init);
        let record = self.record(client, line.trim_ascii_end());
        let number = self.journal.send(record);
        self.deliver(number, node);
    }

    pub(super) fn named(&self, name: &str) -> Party {
        Party::named(name, self.nodes.len(), self.operations.clients)
    }
}

/// What went before a failure is what is needed to understand it.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let chart = self.journal.chart().last(FAILURE_ROWS);
            eprintln!("the cluster of seed {} at {:?}:\n{chart}", self.seed, self.now);
        }
    }
}
