//! Verification of the promise under load: senders that repeat unanswered
//! sends, readers that drop their connections in the middle of the window and
//! take over from each other, full inboxes, and an account that is deleted and
//! recreated. Each connection uses another server and front; a send that is
//! unanswered over one is repeated over the next. Meanwhile the test injects
//! faults. In the end, every send that was answered `ok` must have been read
//! once and in each sender's order, and no refused one.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hark_protocol::{Code, Delivery, Failure, Frame, Reply, Request, RequestId, Sequence};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::{Front, Link, TIMEOUT, name, send};

const SENDERS: usize = 4;
const READERS: usize = 3;

/// Largest number of unanswered sends of a sender.
const IN_FLIGHT: usize = 32;

/// Delay before a reconnect.
const AGAIN: Duration = Duration::from_millis(20);

/// Silence after which a reader stops reading.
const QUIET: Duration = Duration::from_millis(100);

/// Environment variables of [`Trial`], and the duration of the short run.
const SEED_VARIABLE: &str = "HARK_SEED";
const SECONDS_VARIABLE: &str = "HARK_TEST_SECONDS";
const SECONDS_DEFAULT: u64 = 3;

/// A randomized run of limited duration.
#[derive(Debug)]
pub struct Trial {
    /// Duration of the fault injection.
    pub time: Duration,
    /// Source of random decisions.
    pub random: StdRng,
}

/// Configuration of the senders and readers.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// The servers. Each connection uses any of them.
    pub servers: Vec<SocketAddr>,
    /// The fronts. Each connection uses any of them.
    pub fronts: Vec<Front>,
    /// Time limit for an answer, after which the connection is dropped and
    /// counted in [`Report::timed_out`].
    pub answer_timeout: Duration,
    /// Time limit for all senders and readers to finish.
    pub end_within: Duration,
    /// Delay of a sender before each of its sends; zero for as many as possible.
    pub pace: Duration,
}

/// Running senders and readers.
#[derive(Debug)]
pub struct Promise {
    record: Arc<Record>,
    begun: Instant,
    random: StdRng,
    senders: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
}

/// Result of a run.
#[derive(Debug)]
pub struct Report {
    /// Number of sends answered `ok`.
    pub answered: usize,
    /// Number of those that were read in order.
    pub compared: usize,
    /// Number of refused sends, and of those refused because of a full inbox.
    pub refused: (usize, u64),
    /// Number of takeovers.
    pub takeovers: u64,
    /// Number of deletions and recreations of an account.
    pub recreations: u64,
    /// Number of connections dropped because of a timeout.
    pub timed_out: u64,
    /// Number of connections that received no `bye` in time after a takeover.
    pub byes_missed: u64,
    /// Number of answers `error unavailable`.
    pub unavailable: u64,
    /// Longest period without an answered send.
    pub longest_pause: Duration,
    /// Longest time from the first attempt of a send to its answer.
    pub longest_send: Duration,
    /// Longest time from the last attempt of a send to its answer.
    pub longest_answer: Duration,
    /// Number of connections, by front.
    pub opened: Vec<(Front, u64)>,
}

/// Shared record of answers and received messages.
#[derive(Debug)]
struct Record {
    config: LoadConfig,
    /// Texts answered `ok`, by sender and recipient, by id.
    stored: Mutex<BTreeMap<(String, String), BTreeMap<u32, String>>>,
    refused: Mutex<HashSet<String>>,
    /// Texts read, by recipient.
    read: Mutex<BTreeMap<String, Vec<String>>>,
    /// Logical clock for the order of events.
    clock: AtomicU64,
    /// Logical times of answers for messages to the recreated account.
    answered_at: Mutex<HashMap<String, u64>>,
    answers: Mutex<Answers>,
    opened: Vec<AtomicU64>,
    queue_full: AtomicU64,
    takeovers: AtomicU64,
    recreations: AtomicU64,
    timed_out: AtomicU64,
    byes_missed: AtomicU64,
    unavailable: AtomicU64,
    stop_sending: AtomicBool,
    stop_reading: AtomicBool,
}

/// Statistics of answered sends.
#[derive(Debug)]
struct Answers {
    count: u64,
    last: Instant,
    longest_pause: Duration,
    longest_send: Duration,
    longest_answer: Duration,
}

/// An unanswered send.
struct Unanswered {
    to: String,
    text: String,
    first_sent: Instant,
    /// Time of the last attempt.
    sent: Instant,
}

impl Trial {
    /// Reads the seed from `HARK_SEED` (default: random) and the duration in
    /// seconds from `HARK_TEST_SECONDS` (default: 3), and prints how to repeat
    /// the run.
    ///
    /// # Panics
    /// If they are not numbers.
    #[must_use]
    pub fn from_env() -> Self {
        let setting = |name: &str| {
            std::env::var(name)
                .ok()
                .map(|value| value.parse().expect("a number"))
        };
        let seed: u64 = setting(SEED_VARIABLE).unwrap_or_else(|| rand::rng().random());
        let seconds = setting(SECONDS_VARIABLE).unwrap_or(SECONDS_DEFAULT);
        println!("seed {seed}; again with {SEED_VARIABLE}={seed} {SECONDS_VARIABLE}={seconds}");
        Self {
            time: Duration::from_secs(seconds),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Returns a generator for another task.
    #[must_use]
    pub fn random(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.random.random())
    }
}

impl Promise {
    /// Creates the accounts, and starts all tasks.
    ///
    /// # Panics
    /// If an account cannot be created.
    pub async fn begin(config: LoadConfig, mut random: StdRng) -> Self {
        let record = Arc::new(Record::new(config));
        for user in recipients().chain(["full".into(), "reborn".into()]) {
            record.create(&user, &mut random).await;
        }
        let mut begin = Begin {
            record: Arc::clone(&record),
            random: &mut random,
        };
        let senders = (0..SENDERS)
            .map(|n| begin.task(|record, random| sender(n, record, random)))
            .collect();
        let mut readers: Vec<_> = recipients()
            .map(|user| begin.task(|record, random| reader(user, record, random)))
            .collect();
        readers.push(begin.task(recreated));
        Self {
            record,
            begun: Instant::now(),
            random,
            senders,
            readers,
        }
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns whether a run of this duration may end: it is over, and every
    /// feature was exercised. After [`TIMEOUT`] more it ends in any case, and
    /// [`Report::assert_all_tried`] fails.
    #[must_use]
    pub fn may_end(&self, time: Duration) -> bool {
        let elapsed = self.elapsed();
        elapsed >= time && (self.record.has_tried_all() || elapsed >= time + TIMEOUT)
    }

    /// Returns the number of sends answered so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.record.answers.lock().unwrap().count
    }

    /// Waits until more than `before` sends are answered.
    ///
    /// # Panics
    /// If that takes longer than [`LoadConfig::end_within`].
    pub async fn answer_after(&self, before: u64) {
        let until = Instant::now() + self.record.config.end_within;
        while self.answers() <= before {
            assert!(Instant::now() < until, "nothing is answered any more");
            sleep(AGAIN).await;
        }
    }

    /// Finishes all tasks, prints the result, and compares.
    ///
    /// # Panics
    /// If a task times out, or the promise is broken; the message says where.
    pub async fn end(mut self) -> Report {
        let record = &self.record;
        record.stop_sending.store(true, Ordering::SeqCst);
        for sender in self.senders {
            timeout(record.config.end_within, sender)
                .await
                .expect("a sender got no answer")
                .unwrap();
        }
        record.stop_reading.store(true, Ordering::SeqCst);
        for reader in self.readers {
            timeout(record.config.end_within, reader)
                .await
                .expect("a reader did not end")
                .unwrap();
        }
        let last = StdRng::seed_from_u64(self.random.random());
        timeout(
            record.config.end_within,
            reader("full".into(), Arc::clone(record), last),
        )
        .await
        .expect("full is not drained");
        record.compare()
    }
}

impl Report {
    /// Checks that every feature was exercised.
    ///
    /// # Panics
    /// If one was not.
    pub fn assert_all_tried(&self) {
        let counts = [
            self.compared as u64,
            self.refused.1,
            self.takeovers,
            self.recreations,
        ];
        assert!(
            counts.iter().all(|count| *count > 0),
            "something was not tried: {self}"
        );
        assert!(
            self.opened.iter().all(|(_, count)| *count > 0),
            "a front was not tried: {:?}",
            self.opened
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (refused, queue_full) = self.refused;
        let seconds = |time: Duration| time.as_secs_f64();
        write!(
            f,
            "{} answered, {} compared; {refused} refused, {queue_full} of them by a full queue; \
             {} takeovers, {} accounts recreated; {} unavailable, {} connections timed out, {} byes missed; \
             longest pause {:.1} s, longest send {:.1} s, longest answer {:.1} s; connections by {:?}",
            self.answered,
            self.compared,
            self.takeovers,
            self.recreations,
            self.unavailable,
            self.timed_out,
            self.byes_missed,
            seconds(self.longest_pause),
            seconds(self.longest_send),
            seconds(self.longest_answer),
            self.opened,
        )
    }
}

struct Begin<'a> {
    record: Arc<Record>,
    random: &'a mut StdRng,
}

impl Begin<'_> {
    fn task<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        work: impl FnOnce(Arc<Record>, StdRng) -> F,
    ) -> JoinHandle<()> {
        tokio::spawn(work(
            Arc::clone(&self.record),
            StdRng::seed_from_u64(self.random.random()),
        ))
    }
}

impl Record {
    fn new(config: LoadConfig) -> Self {
        Self {
            stored: Mutex::default(),
            refused: Mutex::default(),
            read: Mutex::default(),
            clock: AtomicU64::new(0),
            answered_at: Mutex::default(),
            answers: Mutex::new(Answers {
                count: 0,
                last: Instant::now(),
                longest_pause: Duration::ZERO,
                longest_send: Duration::ZERO,
                longest_answer: Duration::ZERO,
            }),
            opened: config.fronts.iter().map(|_| AtomicU64::new(0)).collect(),
            queue_full: AtomicU64::new(0),
            takeovers: AtomicU64::new(0),
            recreations: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            byes_missed: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            stop_sending: AtomicBool::new(false),
            stop_reading: AtomicBool::new(false),
            config,
        }
    }

    fn has_tried_all(&self) -> bool {
        let counts = [&self.queue_full, &self.takeovers, &self.recreations];
        counts
            .into_iter()
            .chain(&self.opened)
            .all(|count| count.load(Ordering::SeqCst) > 0)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    async fn create(&self, user: &str, random: &mut StdRng) {
        let mut link = self.connect(random, None).await.expect("a server");
        let made = link
            .ask(
                1,
                Request::Create {
                    user: name(user),
                    password: None,
                },
            )
            .await;
        assert!(
            matches!(made, Some(Reply::Ok(_))),
            "creating {user}: {made:?}"
        );
    }

    /// Connects to a random server by a random front.
    async fn connect(&self, random: &mut StdRng, session: Option<&str>) -> Option<Connection<'_>> {
        let server = self.config.servers[random.random_range(0..self.config.servers.len())];
        let nth = random.random_range(0..self.config.fronts.len());
        let front = self.config.fronts[nth];
        let opened = timeout(self.config.answer_timeout, front.link(server)).await;
        let link =
            self.count_timeout(opened, || format!("{server} is not reached by {front:?}"))??;
        let mut connection = Connection {
            link,
            at: (server, front),
            record: self,
        };
        if let Some(session) = session {
            let hello = Request::Hello {
                version: 1,
                session: session.parse().unwrap(),
            };
            match connection.ask(u32::MAX, hello).await? {
                Reply::Ok(_) => {}
                Reply::Error {
                    failure: Failure::Unavailable,
                    ..
                } => return None,
                other => panic!("hello got {other:?}"),
            }
        }
        self.opened[nth].fetch_add(1, Ordering::SeqCst);
        Some(connection)
    }

    fn count_timeout<T, E>(
        &self,
        result: Result<T, E>,
        what: impl FnOnce() -> String,
    ) -> Option<T> {
        if result.is_err() {
            println!("timed out: {}", what());
            self.timed_out.fetch_add(1, Ordering::SeqCst);
        }
        result.ok()
    }

    fn answered(&self, send: &Unanswered) {
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap();
        answers.count += 1;
        answers.longest_pause = answers.longest_pause.max(now - answers.last);
        answers.longest_send = answers.longest_send.max(now - send.first_sent);
        answers.longest_answer = answers.longest_answer.max(now - send.sent);
        answers.last = now;
    }

    /// Checks that every answered send was read once and in order, and no
    /// other.
    fn compare(&self) -> Report {
        let (stored, read) = (self.stored.lock().unwrap(), self.read.lock().unwrap());
        let (mut answered, mut compared) = (0, 0);
        let mut broken = Vec::new();
        for ((sender, recipient), texts) in stored
            .iter()
            .filter(|((_, recipient), _)| recipient != "reborn")
        {
            let texts: Vec<&String> = texts.values().collect();
            answered += texts.len();
            let prefix = format!("{sender}:");
            let seen: Vec<&String> = read
                .get(recipient)
                .into_iter()
                .flatten()
                .filter(|text| text.starts_with(&prefix))
                .collect();
            let same = texts.iter().zip(&seen).take_while(|(a, b)| a == b).count();
            compared += same;
            if same < texts.len() || same < seen.len() {
                let around = same.saturating_sub(2)..same + 6;
                let show = |all: &[&String]| {
                    format!("{:?}", all.get(around.start..around.end.min(all.len())))
                };
                broken.push(format!(
                    "{sender} to {recipient}: {} answered and {} read; they differ at {same}: {} were answered, {} were read",
                    texts.len(),
                    seen.len(),
                    show(&texts),
                    show(&seen),
                ));
            }
        }
        let refused = self.refused.lock().unwrap();
        broken.extend(
            read.values()
                .flatten()
                .filter(|text| refused.contains(*text))
                .map(|text| format!("{text} was refused and read all the same")),
        );
        let report = self.report(answered, compared, refused.len());
        println!("{report}");
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        report
    }

    fn report(&self, answered: usize, compared: usize, refused: usize) -> Report {
        let answers = self.answers.lock().unwrap();
        let count = |count: &AtomicU64| count.load(Ordering::SeqCst);
        Report {
            answered,
            compared,
            refused: (refused, count(&self.queue_full)),
            takeovers: count(&self.takeovers),
            recreations: count(&self.recreations),
            timed_out: count(&self.timed_out),
            byes_missed: count(&self.byes_missed),
            unavailable: count(&self.unavailable),
            longest_pause: answers.longest_pause,
            longest_send: answers.longest_send,
            longest_answer: answers.longest_answer,
            opened: self
                .config
                .fronts
                .iter()
                .copied()
                .zip(self.opened.iter().map(count))
                .collect(),
        }
    }
}

fn recipients() -> impl Iterator<Item = String> {
    (0..READERS).map(|n| format!("reader{n}"))
}

/// Sends until told to stop, and repeats unanswered sends.
async fn sender(n: usize, record: Arc<Record>, mut random: StdRng) {
    let me = format!("sender{n}");
    let session = format!("{me}-{}", random.random::<u64>());
    let mut unanswered: BTreeMap<u32, Unanswered> = BTreeMap::new();
    let mut last_id = 0;
    loop {
        let stopping = || record.stop_sending.load(Ordering::SeqCst);
        if stopping() && unanswered.is_empty() {
            return;
        }
        let Some(mut link) = record.connect(&mut random, Some(&session)).await else {
            sleep(AGAIN).await;
            continue;
        };
        let repeats = unanswered
            .iter_mut()
            .map(|(id, each)| (*id, each.repeat()))
            .collect::<Vec<_>>();
        if link.write_all(repeats).await.is_none() {
            continue;
        }
        while !(stopping() && unanswered.is_empty()) {
            if !record.config.pace.is_zero() {
                sleep(record.config.pace).await;
            }
            let mut new = Vec::new();
            while unanswered.len() < IN_FLIGHT && !stopping() {
                last_id += random.random_range(1..3);
                let to = match random.random_range(0..10) {
                    0 => "full".to_owned(),
                    1 => "absent".to_owned(),
                    2 => "reborn".to_owned(),
                    other => format!("reader{}", other % READERS),
                };
                let mut each = Unanswered::new(to, format!("{me}:{last_id}"));
                new.push((last_id, each.repeat()));
                unanswered.insert(last_id, each);
            }
            if link.write_all(new).await.is_none() {
                break;
            }
            let Some(Frame {
                id: Some(id),
                message,
            }) = link.next_in_time().await
            else {
                break;
            };
            let id = id.value();
            if let Reply::Error {
                failure: Failure::Unavailable,
                ..
            } = message
            {
                record.unavailable.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let each = unanswered
                .remove(&id)
                .expect("an answer to something that waits for one");
            record.answered(&each);
            record.decided(&me, id, each, message);
        }
    }
}

impl Record {
    fn decided(&self, sender: &str, id: u32, send: Unanswered, reply: Reply) {
        let Unanswered { to, text, .. } = send;
        match reply {
            Reply::Ok(_) => {
                let at = self.tick();
                if to == "reborn" {
                    self.answered_at.lock().unwrap().insert(text.clone(), at);
                }
                self.stored
                    .lock()
                    .unwrap()
                    .entry((sender.to_owned(), to))
                    .or_default()
                    .insert(id, text);
            }
            Reply::NotOk(refusal) => {
                let expected = match refusal.code {
                    Code::QueueFull => true,
                    Code::NoSuchUser => to == "absent" || to == "reborn",
                    _ => false,
                };
                assert!(expected, "a send to {to} got {refusal}");
                self.queue_full
                    .fetch_add(u64::from(refusal.code == Code::QueueFull), Ordering::SeqCst);
                self.refused.lock().unwrap().insert(text);
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Unanswered {
    fn new(to: String, text: String) -> Self {
        Self {
            to,
            text,
            first_sent: Instant::now(),
            sent: Instant::now(),
        }
    }

    fn repeat(&mut self) -> Request {
        self.sent = Instant::now();
        send(&self.to, &self.text)
    }
}

/// Reads for a user and remembers the last number, until told to stop and the
/// inbox is empty.
async fn reader(user: String, record: Arc<Record>, mut random: StdRng) {
    let mut last = Sequence(0);
    loop {
        let Some(mut link) = record.connect(&mut random, None).await else {
            sleep(AGAIN).await;
            continue;
        };
        let Some(Reply::Ok(fields)) = link
            .ask(
                1,
                Request::Connect {
                    user: name(&user),
                    password: None,
                },
            )
            .await
        else {
            continue;
        };
        let queued = fields.as_queued().unwrap();
        if queued == 0 && record.stop_reading.load(Ordering::SeqCst) {
            return;
        }
        // The connection ends in the middle of its window, with messages
        // unacknowledged.
        let frames_max = random.random_range(1..400);
        for _ in 0..frames_max {
            let Ok(frame) = timeout(QUIET, link.next()).await else {
                break;
            };
            let delivery = match frame {
                Some(Frame {
                    message: Reply::String(delivery),
                    ..
                }) => delivery,
                Some(Frame {
                    message: Reply::Bye(_),
                    ..
                })
                | None => break,
                other => panic!("{other:?}"),
            };
            if delivery.sequence > last {
                last = delivery.sequence;
                record
                    .read
                    .lock()
                    .unwrap()
                    .entry(user.clone())
                    .or_default()
                    .push(delivery.text.to_string());
            }
            if random.random_bool(0.05)
                && link
                    .write_all([(
                        0,
                        Request::Ack {
                            log: None,
                            sequence: delivery.sequence,
                        },
                    )])
                    .await
                    .is_none()
            {
                break;
            }
        }
        if random.random_bool(0.3) {
            take_over(&user, &record, &mut random, link).await;
        } else if record.stop_reading.load(Ordering::SeqCst) {
            link.write_all([(
                0,
                Request::Ack {
                    log: None,
                    sequence: last,
                },
            )])
            .await;
        }
    }
}

/// Connects from a second connection while the first one receives, and checks
/// that the first gets a `bye` and no further message.
async fn take_over(user: &str, record: &Record, random: &mut StdRng, mut former: Connection<'_>) {
    let Some(mut latter) = record.connect(random, None).await else {
        return;
    };
    let Some(Reply::Ok(_)) = latter
        .ask(
            1,
            Request::Connect {
                user: name(user),
                password: None,
            },
        )
        .await
    else {
        return;
    };
    let mut said_bye = false;
    loop {
        let Ok(next) = timeout(record.config.answer_timeout, former.next()).await else {
            record.byes_missed.fetch_add(1, Ordering::SeqCst);
            return;
        };
        match next {
            Some(Frame {
                message: Reply::Bye(_),
                ..
            }) => {
                said_bye = true;
                former.write_all([(7, Request::Ping)]).await;
            }
            Some(Frame {
                message: Reply::String(_),
                ..
            }) => assert!(!said_bye, "a push after the bye"),
            Some(Frame {
                message: Reply::Ok(_),
                ..
            }) if said_bye => break,
            Some(other) => panic!("{other:?}"),
            None => return,
        }
    }
    record.takeovers.fetch_add(1, Ordering::SeqCst);
}

/// Deletes and recreates an account repeatedly, and checks that it never
/// receives a message answered before its deletion.
async fn recreated(record: Arc<Record>, mut random: StdRng) {
    let user = || name("reborn");
    while !record.stop_reading.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(random.random_range(10..200))).await;
        let deleted_from = record.tick();
        let Some(mut link) = record.connect(&mut random, None).await else {
            continue;
        };
        if !matches!(
            link.ask(
                1,
                Request::Delete {
                    user: user(),
                    password: None
                }
            )
            .await,
            Some(Reply::Ok(_))
        ) {
            continue;
        }
        // If the answer to this was lost, the account may exist already.
        while !matches!(
            link.ask(
                2,
                Request::Create {
                    user: user(),
                    password: None
                }
            )
            .await,
            Some(Reply::Ok(_) | Reply::NotOk(_))
        ) {
            sleep(AGAIN).await;
            if let Some(again) = record.connect(&mut random, None).await {
                link = again;
            }
        }
        record.recreations.fetch_add(1, Ordering::SeqCst);
        let connect = Request::Connect {
            user: user(),
            password: None,
        };
        let Some(Reply::Ok(_)) = link.ask(3, connect).await else {
            continue;
        };
        let mut last: Option<Delivery> = None;
        while let Ok(Some(frame)) = timeout(
            Duration::from_millis(random.random_range(5..100)),
            link.next(),
        )
        .await
        {
            let Reply::String(delivery) = frame.message else {
                continue;
            };
            let answered_at = record
                .answered_at
                .lock()
                .unwrap()
                .get(&*delivery.text)
                .copied();
            assert!(
                answered_at.is_none_or(|at| at > deleted_from),
                "{:?} was answered before the account it was for was deleted, and reached its successor",
                delivery.text
            );
            assert!(last.is_none_or(|last| last.sequence < delivery.sequence));
            last = Some(delivery);
        }
    }
}

/// A connection that may end at any time, which is reported as `None`.
struct Connection<'a> {
    link: Box<dyn Link>,
    at: (SocketAddr, Front),
    record: &'a Record,
}

impl Connection<'_> {
    async fn write_all(
        &mut self,
        requests: impl IntoIterator<Item = (u32, Request)>,
    ) -> Option<()> {
        // gRPC calls are answered one after the other.
        for chunk in self.in_turn(requests) {
            let written = timeout(
                self.record.config.answer_timeout,
                self.link.write_all(chunk),
            )
            .await;
            self.record
                .count_timeout(written, || format!("{:?} does not take requests", self.at))??;
        }
        Some(())
    }

    /// Splits requests into batches of one write.
    fn in_turn(
        &self,
        requests: impl IntoIterator<Item = (u32, Request)>,
    ) -> Vec<Vec<(u32, Request)>> {
        let requests: Vec<_> = requests.into_iter().collect();
        match self.at.1 {
            Front::Calls | Front::Http => {
                requests.into_iter().map(|request| vec![request]).collect()
            }
            Front::Native | Front::Tls | Front::WebSocket | Front::Bidi => vec![requests],
        }
    }

    async fn next(&mut self) -> Option<Frame<Reply>> {
        self.link.next().await
    }

    async fn next_in_time(&mut self) -> Option<Frame<Reply>> {
        let next = timeout(self.record.config.answer_timeout, self.link.next()).await;
        self.record
            .count_timeout(next, || format!("{:?} does not answer a send", self.at))?
    }

    /// Sends a request, and skips messages before its answer.
    async fn ask(&mut self, id: u32, request: Request) -> Option<Reply> {
        let asked = format!("{request:?}");
        self.write_all([(id, request)]).await?;
        let (record, at) = (self.record, self.at);
        let answer = timeout(record.config.answer_timeout, async {
            loop {
                let frame = self.next().await?;
                if frame.id == RequestId::new(id) {
                    return Some(frame.message);
                }
            }
        });
        record.count_timeout(answer.await, || format!("{at:?} does not answer {asked}"))?
    }
}
