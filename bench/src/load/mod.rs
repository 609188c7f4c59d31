//! The load: senders and receivers, each on a thread, over any [`Peer`].

mod connection;
mod opening;
pub(crate) mod queue;
mod room;
pub(crate) mod schedule;
pub(crate) mod text;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

pub(crate) use connection::Connection;
pub(crate) use opening::{open_all, prepare, prepare_room};
use schedule::Schedule;
use text::{Arrivals, Clock, Faults, Stamp, receiver_of};

use crate::peers::{Peer, Role};
use crate::server::{Server, own_cpu_seconds};

/// The longest pause without a message at the end of a measurement, before messages in flight
/// count as lost.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// The interval of a slow receiver's reads.
const SLOW_EVERY: Duration = Duration::from_millis(500);

/// The polling interval.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The longest latency that is recorded exactly, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// The significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// A histogram of latencies, in nanoseconds.
pub(crate) fn latencies() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("{error}"),
    }
}

/// The pacing of the senders.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LoadModel {
    /// Each sender keeps this many sends in flight.
    Closed {
        /// The sends in flight of one sender.
        in_flight: usize,
    },
    /// All senders together send at a fixed rate, independent of the replies.
    Open {
        /// Messages per second.
        per_second: f64,
    },
    /// The senders to a room keep this many messages in flight that its members together do
    /// not have yet.
    Delivered {
        /// The messages in flight of all senders.
        in_flight: usize,
    },
    /// The one sender to a room sends the next message once all members have the former one.
    OneByOne,
}

/// The receivers of each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// One receiver, each in turn.
    One,
    /// All receivers, which are members of one room.
    Room,
}

impl Audience {
    /// Returns the receivers of one message.
    const fn size(self, receivers: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Room => receivers,
        }
    }

    /// Returns the recipients that a sender addresses in turn.
    const fn recipients(self, receivers: usize) -> usize {
        match self {
            Self::One => receivers,
            Self::Room => 1,
        }
    }

    const fn sender(self, index: usize) -> Role {
        match self {
            Self::One => Role::Sender(index),
            Self::Room => Role::Speaker(index),
        }
    }

    const fn receiver(self, user: usize) -> Role {
        match self {
            Self::One => Role::Receiver(user),
            Self::Room => Role::Joining(user),
        }
    }

    /// Returns the expectations of one receiver.
    pub(crate) fn arrivals(self, user: usize, receivers: usize, senders: usize) -> Arrivals {
        match self {
            Self::One => Arrivals::expect(user, receivers, senders),
            Self::Room => Arrivals::expect(0, 1, senders),
        }
    }
}

/// A load of senders and receivers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) senders: usize,
    pub(crate) receivers: usize,
    /// The number of receivers that read only twice a second.
    pub(crate) slow_receivers: usize,
    pub(crate) audience: Audience,
    pub(crate) pace: LoadModel,
    /// The time before the measurement.
    pub(crate) warm_up: Duration,
    /// The time of the measurement.
    pub(crate) measured: Duration,
}

/// The result of a measurement.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    /// The time from a message's due time to its receipt.
    pub(crate) latencies: Histogram<u64>,
    /// The times from the acceptance of a message to its last receipt, in nanoseconds, for
    /// [`LoadModel::OneByOne`].
    pub(crate) spans_ns: Vec<u64>,
    /// The processor time of the server.
    pub(crate) server_cpu_seconds: f64,
    /// The processor time of the load.
    pub(crate) load_cpu_seconds: f64,
    /// The resident memory of the server at the end.
    pub(crate) resident_bytes: u64,
    /// The messages compared with the sent ones, over the whole run.
    pub(crate) compared: u64,
    pub(crate) faults: Faults,
}

/// The progress of a run, shared by its threads.
struct Progress {
    phase: AtomicU64,
    accepted: AtomicU64,
    delivered: AtomicU64,
    /// The time of the last delivery.
    last_ns: AtomicU64,
    /// See [`Outcome::spans_ns`].
    // A lock, because the senders have a thread of their own. It is held for one change.
    spans_ns: Mutex<Vec<u64>>,
    clock: Clock,
}

/// The phases of a run, in this order.
const WARMING_UP: u64 = 0;
const MEASURING: u64 = 1;
const DRAINING: u64 = 2;
const OVER: u64 = 3;

impl Progress {
    fn start() -> Self {
        Self {
            phase: AtomicU64::new(WARMING_UP),
            accepted: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
            spans_ns: Mutex::default(),
            clock: Clock::start(),
        }
    }

    fn phase(&self) -> u64 {
        self.phase.load(Ordering::Acquire)
    }

    fn enter(&self, phase: u64) {
        self.phase.store(phase, Ordering::Release);
    }
}

impl Load {
    /// Runs the load against a server that listens and is prepared.
    ///
    /// # Errors
    /// If the server refuses a request, ends, or stalls.
    pub(crate) fn run(self, peer: &Arc<dyn Peer>, server: &Server) -> anyhow::Result<Outcome> {
        let progress = Arc::new(Progress::start());
        let address = server.address();
        let (ready, is_ready) = mpsc::channel();
        let receivers = std::thread::spawn({
            let (peer, progress) = (Arc::clone(peer), Arc::clone(&progress));
            move || on_a_runtime(self.receive(&*peer, address, &progress, ready))
        });
        // A receiver that fails to open closes the channel; its error is returned below.
        let measured = match is_ready.recv() {
            Ok(()) => self.measure(peer, server, &progress),
            Err(_) => Err(anyhow!("the receivers failed to open")),
        };
        if measured.is_err() {
            progress.enter(OVER);
        }
        let received = receivers
            .join()
            .map_err(|_| anyhow!("the receivers have panicked"))?;
        let (mut outcome, accepted) = match (measured, &received) {
            (Err(_), Err(error)) => {
                bail!("{}: {error:#}; its output: {}", peer.name(), server.said())
            }
            (measured, _) => {
                measured.with_context(|| format!("{} says: {}", peer.name(), server.said()))?
            }
        };
        let received =
            received.with_context(|| format!("{} says: {}", peer.name(), server.said()))?;
        outcome.latencies = received.latencies;
        if let Ok(mut spans_ns) = progress.spans_ns.lock() {
            outcome.spans_ns = std::mem::take(&mut spans_ns);
        }
        outcome.compared = received.compared;
        for arrivals in &received.arrivals {
            outcome.faults += arrivals.faults(&accepted);
        }
        ensure!(
            outcome.compared > 0,
            "{} delivered no message: {}",
            peer.name(),
            server.said()
        );
        Ok(outcome)
    }

    /// Runs the senders and takes the figures. Also returns the accepted sends of each sender.
    fn measure(
        self,
        peer: &Arc<dyn Peer>,
        server: &Server,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<(Outcome, Vec<u32>)> {
        let (ready, is_ready) = mpsc::channel();
        let senders = std::thread::spawn({
            let (peer, progress, address) =
                (Arc::clone(peer), Arc::clone(progress), server.address());
            move || on_a_runtime(self.send(&*peer, address, &progress, ready))
        });
        let taken = match is_ready.recv() {
            Ok(()) => self.take_figures(server, progress),
            Err(_) => Err(anyhow!("the senders failed to open")),
        };
        progress.enter(DRAINING);
        let accepted = senders
            .join()
            .map_err(|_| anyhow!("the senders have panicked"))??;
        let outcome = taken?;
        progress.accepted.store(
            accepted.iter().map(|&count| u64::from(count)).sum(),
            Ordering::Release,
        );
        progress.enter(OVER);
        Ok((outcome, accepted))
    }

    fn take_figures(self, server: &Server, progress: &Progress) -> anyhow::Result<Outcome> {
        std::thread::sleep(self.warm_up);
        let figures = || {
            let counts = (
                progress.accepted.load(Ordering::Relaxed),
                progress.delivered.load(Ordering::Relaxed),
            );
            anyhow::Ok((
                Instant::now(),
                counts,
                server.cpu_seconds()?,
                own_cpu_seconds()?,
            ))
        };
        progress.enter(MEASURING);
        let (start, before, server_before, own_before) = figures()?;
        std::thread::sleep(self.measured);
        let (end, after, server_after, own_after) = figures()?;
        progress.enter(DRAINING);
        Ok(Outcome {
            seconds: (end - start).as_secs_f64(),
            accepted: after.0 - before.0,
            delivered: after.1 - before.1,
            latencies: latencies(),
            spans_ns: Vec::new(),
            server_cpu_seconds: server_after - server_before,
            load_cpu_seconds: own_after - own_before,
            resident_bytes: server.resident_bytes()?,
            compared: 0,
            faults: Faults::default(),
        })
    }

    /// Opens the receivers, and receives until every accepted message has arrived.
    async fn receive(
        self,
        peer: &dyn Peer,
        address: SocketAddr,
        progress: &Arc<Progress>,
        ready: mpsc::Sender<()>,
    ) -> anyhow::Result<Received> {
        let received = Rc::new(RefCell::new(Received {
            latencies: latencies(),
            arrivals: (0..self.receivers)
                .map(|user| self.audience.arrivals(user, self.receivers, self.senders))
                .collect(),
            compared: 0,
            new: 0,
        }));
        let mut tasks = JoinSet::new();
        let roles = (0..self.receivers).map(|user| self.audience.receiver(user));
        for (user, mut connection) in open_all(peer, address, roles).await? {
            let (received, progress) = (Rc::clone(&received), Arc::clone(progress));
            tasks.spawn_local(async move {
                loop {
                    if user < self.slow_receivers {
                        tokio::time::sleep(SLOW_EVERY).await;
                    }
                    connection.turn().await?;
                    received.borrow_mut().take(
                        user,
                        &mut connection.received.delivered,
                        &progress,
                    )?;
                }
            });
        }
        ready.send(()).context("the measuring thread has ended")?;
        let (mut last, mut last_change) = (0, Instant::now());
        loop {
            match tokio::time::timeout(LOOK_EVERY, tasks.join_next()).await {
                Ok(Some(ended)) => return ended?,
                Ok(None) => bail!("there are no receivers"),
                Err(_) => {}
            }
            let new = received.borrow().new;
            if new != last || progress.phase() < OVER {
                (last, last_change) = (new, Instant::now());
            }
            let copies = self.audience.size(self.receivers) as u64;
            let is_complete = new >= copies * progress.accepted.load(Ordering::Acquire);
            if progress.phase() == OVER && (is_complete || last_change.elapsed() > STALLED_AFTER) {
                tasks.shutdown().await;
                return Rc::into_inner(received)
                    .map(RefCell::into_inner)
                    .context("a receiver goes on");
            }
        }
    }

    /// Opens the senders, and sends until the measurement is over and the sends in flight are
    /// accepted. Returns the accepted sends of each sender.
    async fn send(
        self,
        peer: &dyn Peer,
        address: SocketAddr,
        progress: &Arc<Progress>,
        ready: mpsc::Sender<()>,
    ) -> anyhow::Result<Vec<u32>> {
        let mut senders = Vec::new();
        for index in 0..self.senders {
            let codec = peer.codec(self.audience.sender(index));
            let connection = Connection::open(address, codec).await?;
            let recipients = self.audience.recipients(self.receivers);
            senders.push(Sender::new(connection, index, recipients, u32::MAX));
        }
        ready.send(()).context("the measuring thread has ended")?;
        match self.pace {
            LoadModel::Closed { in_flight } => keep_in_flight(senders, in_flight, progress).await,
            LoadModel::Open { per_second } => keep_schedule(senders, per_second, progress).await,
            LoadModel::Delivered { in_flight } => {
                room::keep_delivering(senders, in_flight, self.receivers, progress).await
            }
            LoadModel::OneByOne => {
                let sender = senders.pop().context("no sender")?;
                room::send_one_by_one(sender, self.receivers, progress).await
            }
        }
    }
}

/// The messages received by all receivers.
struct Received {
    latencies: Histogram<u64>,
    arrivals: Vec<Arrivals>,
    compared: u64,
    new: u64,
}

impl Received {
    fn take(
        &mut self,
        user: usize,
        stamps: &mut Vec<Stamp>,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let now_ns = progress.clock.now_ns();
        let is_measured = progress.phase() == MEASURING;
        let arrivals = self.arrivals.get_mut(user).context("no such receiver")?;
        let mut new = 0;
        for stamp in stamps.drain(..) {
            if is_measured {
                self.latencies
                    .saturating_record(now_ns.saturating_sub(stamp.due_ns));
            }
            new += u64::from(arrivals.take(stamp)?);
            self.compared += 1;
        }
        self.new += new;
        progress.last_ns.store(now_ns, Ordering::Relaxed);
        progress.delivered.fetch_add(new, Ordering::Release);
        Ok(())
    }
}

struct Sender {
    connection: Connection,
    index: usize,
    receivers: usize,
    /// The number of sends.
    sends_max: u32,
    sent: u32,
    accepted: u32,
}

impl Sender {
    const fn new(connection: Connection, index: usize, receivers: usize, sends_max: u32) -> Self {
        Self {
            connection,
            index,
            receivers,
            sends_max,
            sent: 0,
            accepted: 0,
        }
    }

    fn say(&mut self, due_ns: u64) -> anyhow::Result<()> {
        let stamp = Stamp {
            due_ns,
            sender: u16::try_from(self.index)?,
            number: self.sent,
        };
        let to = receiver_of(self.index, self.sent, self.receivers);
        self.connection
            .codec
            .send(to, &stamp.write(), &mut self.connection.output);
        self.sent += 1;
        Ok(())
    }

    fn said(&mut self) {
        self.connection.codec.sent(&mut self.connection.output);
    }

    fn count(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let accepted = u32::try_from(std::mem::take(&mut self.connection.received.accepted))?;
        self.accepted += accepted;
        ensure!(
            self.accepted <= self.sent,
            "more messages accepted than sent"
        );
        progress
            .accepted
            .fetch_add(u64::from(accepted), Ordering::Relaxed);
        Ok(())
    }

    async fn keep_in_flight(
        mut self,
        in_flight: u32,
        progress: Arc<Progress>,
    ) -> anyhow::Result<(usize, u32)> {
        loop {
            let sends_max = if progress.phase() < DRAINING {
                self.sends_max
            } else {
                self.sent
            };
            let sends = (in_flight - (self.sent - self.accepted)).min(sends_max - self.sent);
            if sends > 0 {
                let now_ns = progress.clock.now_ns();
                for _ in 0..sends {
                    self.say(now_ns)?;
                }
                self.said();
            }
            if self.sent == self.accepted {
                return Ok((self.index, self.accepted));
            }
            let turned = tokio::time::timeout(STALLED_AFTER, self.connection.turn()).await;
            turned.map_err(|_| anyhow!("sends are not accepted"))??;
            self.count(&progress)?;
        }
    }
}

async fn keep_in_flight(
    senders: Vec<Sender>,
    in_flight: usize,
    progress: &Arc<Progress>,
) -> anyhow::Result<Vec<u32>> {
    let in_flight = u32::try_from(in_flight)?;
    let mut accepted = vec![0; senders.len()];
    let mut tasks = JoinSet::new();
    for sender in senders {
        tasks.spawn_local(sender.keep_in_flight(in_flight, Arc::clone(progress)));
    }
    while let Some(ended) = tasks.join_next().await {
        let (index, count) = ended??;
        if let Some(of_sender) = accepted.get_mut(index) {
            *of_sender = count;
        }
    }
    Ok(accepted)
}

/// The loop of all senders, on a thread of its own. It sleeps by the system's timer, since the
/// runtime's resolution of a millisecond is too coarse.
async fn keep_schedule(
    mut senders: Vec<Sender>,
    per_second: f64,
    progress: &Progress,
) -> anyhow::Result<Vec<u32>> {
    /// The longest time between two reads of replies.
    const LOOK_EVERY_NS: u64 = 1_000_000;
    let mut schedule = Schedule::new(progress.clock.now_ns(), per_second);
    let count = senders.len() as u64;
    let mut last_change = Instant::now();
    loop {
        let now_ns = progress.clock.now_ns();
        if progress.phase() < DRAINING {
            let due = schedule.due_by(now_ns);
            for message in due.clone() {
                let sender = senders
                    .get_mut((message % count) as usize)
                    .context("no senders")?;
                sender.say(schedule.due_ns(message))?;
            }
            for message in due.take(senders.len()) {
                let sender = senders
                    .get_mut((message % count) as usize)
                    .context("no senders")?;
                sender.said();
            }
        } else if senders.iter().all(|sender| sender.sent == sender.accepted) {
            return Ok(senders.iter().map(|sender| sender.accepted).collect());
        }
        room::exchange(&mut senders, progress, &mut last_change).await?;
        let look_ns = now_ns + LOOK_EVERY_NS;
        let until_ns = if progress.phase() < DRAINING {
            schedule.next_due_ns().min(look_ns)
        } else {
            look_ns
        };
        std::thread::sleep(
            progress
                .clock
                .at(until_ns)
                .saturating_duration_since(Instant::now()),
        );
    }
}

/// Runs a future on this thread, with tasks local to it.
///
/// # Errors
/// The error of the future, or of the runtime.
pub(crate) fn on_a_runtime<T>(done: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, done)
}
