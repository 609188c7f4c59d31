//! The promise, under `kill -9`: what has been answered `ok` is read once, in
//! each sender's order, and what was refused is not read at all, while the
//! server is killed again and again, readers drop their links in the middle of
//! their window and take over from each other, queues are full, and an account
//! is deleted and made again. Each connection takes another way into the server:
//! what was not answered over one is repeated over the next.
//!
//! It prints its seed; `HARK_SEED` and `HARK_CRASH_SECONDS` run it again, or
//! for longer.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hark_protocol::{Code, Delivery, Frame, Reply, Request, RequestId, Sequence};
use hark_tests::{Front, Harkd, Link, PATIENCE, name, send};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{sleep, timeout};

const FRONTS: [Front; 4] = [Front::Native, Front::Tls, Front::Bidi, Front::Calls];
const SENDERS: usize = 4;
const READERS: usize = 3;
/// Sends of one sender that are unanswered.
const IN_FLIGHT: usize = 32;
/// Messages that the queue of one user holds.
const QUEUED_MAX: u64 = 400;

/// What the senders know and the readers have seen.
#[derive(Default)]
struct Record {
    /// The texts that were answered `ok`, by sender and recipient, in the order
    /// of their ids.
    stored: Mutex<BTreeMap<(String, String), Vec<String>>>,
    refused: Mutex<HashSet<String>>,
    queue_full: AtomicU64,
    /// What was read, by recipient.
    read: Mutex<BTreeMap<String, Vec<String>>>,
    /// Connections that were opened, by front.
    opened: [AtomicU64; FRONTS.len()],
    takeovers: AtomicU64,
    rebirths: AtomicU64,
    /// Counts what happens, to tell before from after.
    clock: AtomicU64,
    /// When a message to the reborn account was answered.
    answered_at: Mutex<HashMap<String, u64>>,
    stop_sending: AtomicBool,
    stop_reading: AtomicBool,
}

impl Record {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A connection by any front.
    async fn connect(
        &self,
        address: SocketAddr,
        random: &mut StdRng,
        session: Option<&str>,
    ) -> Option<Connection> {
        let nth = random.random_range(0..FRONTS.len());
        let connection = Connection::open(FRONTS[nth], address, session).await?;
        self.opened[nth].fetch_add(1, Ordering::SeqCst);
        Some(connection)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_read_once_and_in_order_whatever_is_killed() {
    let seed: u64 = setting("HARK_SEED").unwrap_or_else(|| rand::rng().random());
    let seconds: u64 = setting("HARK_CRASH_SECONDS").unwrap_or(20);
    println!("seed {seed}; again with HARK_SEED={seed} HARK_CRASH_SECONDS={seconds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Harkd::builder().arg(format!("--max-queued-messages={QUEUED_MAX}")).start();
    let address = server.address();
    let record = Arc::new(Record::default());
    let mut link = Connection::open(Front::Native, address, None).await.unwrap();
    for user in recipients().chain(["full".into(), "reborn".into()]) {
        link.ask(1, Request::Create { user: name(&user), password: None }).await.unwrap();
    }

    let senders: Vec<_> = (0..SENDERS)
        .map(|n| {
            tokio::spawn(sender(n, address, Arc::clone(&record), StdRng::seed_from_u64(random.random())))
        })
        .collect();
    let mut readers: Vec<_> = recipients()
        .map(|user| {
            tokio::spawn(reader(user, address, Arc::clone(&record), StdRng::seed_from_u64(random.random())))
        })
        .collect();
    readers.push(tokio::spawn(reborn(address, Arc::clone(&record), StdRng::seed_from_u64(random.random()))));

    let (mut kills, start) = (0, tokio::time::Instant::now());
    while start.elapsed() < Duration::from_secs(seconds) {
        sleep(Duration::from_millis(random.random_range(200..1500))).await;
        server = tokio::task::block_in_place(|| server.kill_and_restart());
        kills += 1;
    }
    record.stop_sending.store(true, Ordering::SeqCst);
    for sender in senders {
        timeout(PATIENCE, sender).await.expect("a sender got no answer").unwrap();
    }
    record.stop_reading.store(true, Ordering::SeqCst);
    for reader in readers {
        timeout(PATIENCE, reader).await.expect("a reader did not end").unwrap();
    }
    let last = StdRng::seed_from_u64(random.random());
    timeout(PATIENCE, reader("full".into(), address, Arc::clone(&record), last))
        .await
        .expect("full is not drained");
    compare(&record, kills);
    drop(server);
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn recipients() -> impl Iterator<Item = String> {
    (0..READERS).map(|n| format!("reader{n}"))
}

/// Everything that was answered was read, once and in order; nothing else was.
fn compare(record: &Record, kills: u32) {
    let (stored, read) = (record.stored.lock().unwrap(), record.read.lock().unwrap());
    let (mut answered, mut compared) = (0, 0);
    for ((sender, recipient), texts) in stored.iter().filter(|((_, recipient), _)| recipient != "reborn") {
        answered += texts.len();
        let prefix = format!("{sender}:");
        let seen: Vec<&String> =
            read.get(recipient).into_iter().flatten().filter(|text| text.starts_with(&prefix)).collect();
        let difference =
            texts.iter().zip(&seen).position(|(a, b)| a != *b).unwrap_or(texts.len().min(seen.len()));
        assert!(
            seen.len() == texts.len() && difference == texts.len(),
            "{sender} to {recipient}: {} answered and {} read; they differ at {difference}: {:?} was answered, {:?} was read",
            texts.len(),
            seen.len(),
            texts.get(difference),
            seen.get(difference)
        );
        compared += seen.len();
    }
    let refused = record.refused.lock().unwrap();
    let read_though_refused = read.values().flatten().find(|text| refused.contains(*text));
    assert_eq!(read_though_refused, None, "was refused and read all the same");
    let [queue_full, takeovers, rebirths] =
        [&record.queue_full, &record.takeovers, &record.rebirths].map(|count| count.load(Ordering::SeqCst));
    let opened = record.opened.each_ref().map(|count| count.load(Ordering::SeqCst));
    println!("connections by {FRONTS:?}: {opened:?}");
    println!(
        "{kills} kills; {answered} answered, {compared} compared; {} refused, {queue_full} of them by a full queue; \
         {takeovers} takeovers, {rebirths} accounts made again",
        refused.len()
    );
    assert!(
        kills > 0 && compared > 0 && queue_full > 0 && takeovers > 0 && rebirths > 0,
        "something was not tried"
    );
    assert!(opened.iter().all(|count| *count > 0), "a front was not tried");
}

/// Sends until it is told to stop, and repeats what was not answered.
async fn sender(n: usize, address: SocketAddr, record: Arc<Record>, mut random: StdRng) {
    let me = format!("sender{n}");
    let session = format!("{me}-{}", random.random::<u64>());
    let mut unanswered: BTreeMap<u32, (String, String)> = BTreeMap::new();
    let mut last_id = 0;
    loop {
        let stopping = || record.stop_sending.load(Ordering::SeqCst);
        if stopping() && unanswered.is_empty() {
            return;
        }
        let Some(mut link) = record.connect(address, &mut random, Some(&session)).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let repeats: Vec<_> = unanswered.iter().map(|(id, (to, text))| (*id, send(to, text))).collect();
        if link.write_all(repeats).await.is_none() {
            continue;
        }
        while !(stopping() && unanswered.is_empty()) {
            let mut new = Vec::new();
            while unanswered.len() < IN_FLIGHT && !stopping() {
                last_id += random.random_range(1..3);
                let to = match random.random_range(0..10) {
                    0 => "full".to_owned(),
                    1 => "absent".to_owned(),
                    2 => "reborn".to_owned(),
                    other => format!("reader{}", other % READERS),
                };
                let text = format!("{me}:{last_id}");
                new.push((last_id, send(&to, &text)));
                unanswered.insert(last_id, (to, text));
            }
            if link.write_all(new).await.is_none() {
                break;
            }
            let Some(Frame { id: Some(id), message }) = link.next().await else { break };
            let id = id.value();
            let (to, text) = match message {
                Reply::Error { .. } => continue,
                _ => unanswered.remove(&id).expect("an answer to something that waits for one"),
            };
            match message {
                Reply::Ok(_) => {
                    let at = record.tick();
                    if to == "reborn" {
                        record.answered_at.lock().unwrap().insert(text.clone(), at);
                    }
                    record.stored.lock().unwrap().entry((me.clone(), to)).or_default().push(text);
                }
                Reply::NotOk(refusal) => {
                    let expected = match refusal.code {
                        Code::QueueFull => true,
                        Code::NoSuchUser => to == "absent" || to == "reborn",
                        _ => false,
                    };
                    assert!(expected, "a send to {to} got {refusal}");
                    record.queue_full.fetch_add(u64::from(refusal.code == Code::QueueFull), Ordering::SeqCst);
                    record.refused.lock().unwrap().insert(text);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Reads for a user, remembering the last number, until it is told to stop and
/// there is nothing more.
async fn reader(user: String, address: SocketAddr, record: Arc<Record>, mut random: StdRng) {
    let mut last = Sequence(0);
    loop {
        let Some(mut link) = record.connect(address, &mut random, None).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Some(Reply::Ok(fields)) =
            link.ask(1, Request::Connect { user: name(&user), password: None }).await
        else {
            continue;
        };
        let queued = fields.as_queued().unwrap();
        if queued == 0 && record.stop_reading.load(Ordering::SeqCst) {
            return;
        }
        // It ends in the middle of its window, without an ack for what it has
        // taken since the last.
        let patience = random.random_range(1..400);
        for _ in 0..patience {
            let Ok(frame) = timeout(Duration::from_millis(100), link.next()).await else { break };
            let delivery = match frame {
                Some(Frame { message: Reply::String(delivery), .. }) => delivery,
                Some(Frame { message: Reply::Bye(_), .. }) | None => break,
                other => panic!("{other:?}"),
            };
            if delivery.sequence > last {
                last = delivery.sequence;
                record.read.lock().unwrap().entry(user.clone()).or_default().push(delivery.text.to_string());
            }
            if random.random_bool(0.05)
                && link.write_all([(0, Request::Ack { sequence: delivery.sequence })]).await.is_none()
            {
                break;
            }
        }
        if random.random_bool(0.3) {
            take_over(&user, address, &record, &mut random, link).await;
        } else if record.stop_reading.load(Ordering::SeqCst) {
            link.write_all([(0, Request::Ack { sequence: last })]).await;
        }
    }
}

/// Another connection connects while this one receives: this one gets a `bye`,
/// after which nothing more is pushed to it.
async fn take_over(
    user: &str,
    address: SocketAddr,
    record: &Record,
    random: &mut StdRng,
    mut former: Connection,
) {
    let Some(mut latter) = record.connect(address, random, None).await else { return };
    let Some(Reply::Ok(_)) = latter.ask(1, Request::Connect { user: name(user), password: None }).await
    else {
        return;
    };
    let mut said_bye = false;
    loop {
        match timeout(PATIENCE, former.next()).await.expect("no bye") {
            Some(Frame { message: Reply::Bye(_), .. }) => {
                said_bye = true;
                former.write_all([(7, Request::Ping)]).await;
            }
            Some(Frame { message: Reply::String(_), .. }) => assert!(!said_bye, "a push after the bye"),
            Some(Frame { message: Reply::Ok(_), .. }) if said_bye => break,
            Some(other) => panic!("{other:?}"),
            None => return,
        }
    }
    record.takeovers.fetch_add(1, Ordering::SeqCst);
}

/// Deletes an account and makes it again, and checks that the new one never
/// sees what was answered before the old one was deleted.
async fn reborn(address: SocketAddr, record: Arc<Record>, mut random: StdRng) {
    let user = || name("reborn");
    while !record.stop_reading.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(random.random_range(10..200))).await;
        let deleted_from = record.tick();
        let Some(mut link) = record.connect(address, &mut random, None).await else { continue };
        if !matches!(link.ask(1, Request::Delete { user: user(), password: None }).await, Some(Reply::Ok(_)))
        {
            continue;
        }
        // Where the answer to this is lost the account may be there already.
        while !matches!(
            link.ask(2, Request::Create { user: user(), password: None }).await,
            Some(Reply::Ok(_) | Reply::NotOk(_))
        ) {
            sleep(Duration::from_millis(20)).await;
            if let Some(again) = record.connect(address, &mut random, None).await {
                link = again;
            }
        }
        record.rebirths.fetch_add(1, Ordering::SeqCst);
        let connect = Request::Connect { user: user(), password: None };
        let Some(Reply::Ok(_)) = link.ask(3, connect).await else { continue };
        let mut last: Option<Delivery> = None;
        while let Ok(Some(frame)) =
            timeout(Duration::from_millis(random.random_range(5..100)), link.next()).await
        {
            let Reply::String(delivery) = frame.message else { continue };
            let answered_at = record.answered_at.lock().unwrap().get(&*delivery.text).copied();
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

/// A connection that may end at any time, which is then said by `None`.
struct Connection(Box<dyn Link>);

impl Connection {
    async fn open(front: Front, address: SocketAddr, session: Option<&str>) -> Option<Self> {
        let mut connection = Self(front.link(address).await?);
        if let Some(session) = session {
            let hello = Request::Hello { version: 1, session: session.parse().unwrap() };
            let reply = connection.ask(u32::MAX, hello).await?;
            assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
        }
        Some(connection)
    }

    async fn write_all(&mut self, requests: impl IntoIterator<Item = (u32, Request)>) -> Option<()> {
        self.0.write_all(requests.into_iter().collect()).await
    }

    async fn next(&mut self) -> Option<Frame<Reply>> {
        self.0.next().await
    }

    /// Asks, and drops what comes before the answer.
    async fn ask(&mut self, id: u32, request: Request) -> Option<Reply> {
        self.write_all([(id, request)]).await?;
        timeout(PATIENCE, async {
            loop {
                let frame = self.next().await?;
                if frame.id == RequestId::new(id) {
                    return Some(frame.message);
                }
            }
        })
        .await
        .expect("no answer in time")
    }
}
