//! Throughput and latency of servers on a cluster, compared with a bare publisher on the
//! same cluster in the same run: `cargo bench -p hark-bench --bench cluster [--
//! sends|order|two|latency|drain]`.
//!
//! Three nodes, the servers and the clients share one machine, so the ratios are
//! meaningful and the absolute rates are not.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::{HeaderMap, jetstream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::join_all;
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Reply, Request, RequestId, Sequence};
use hark_tests::{Harkd, Nats, name, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Decoder;

/// Rounds of each comparison, interleaved. The median counts.
const ROUNDS: usize = 3;

/// Duration of a measurement, after a warm-up.
const MEASURED: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);

/// Bytes of a measured text, and of the rest of Hark's record.
const TEXT_BYTES: usize = 100;
const BESIDE_BYTES: usize = 26;

/// Streams that the messages are spread over, on both sides.
const STREAMS: usize = 12;

/// Maximum connections of the senders. Further pairs share connections, so that the
/// sockets are not the bottleneck.
const CONNECTIONS_MAX: usize = 32;

/// An upper bound of the id range in flight on a connection.
const IDS_UNDER_WAY_MAX: usize = 1 << 16;

/// Maximum refusals of the bare publisher in one measurement, for each subject.
const REFUSED_MAX: u32 = 100;

/// The longest time to an answer, including `unavailable`.
const ANSWER: Duration = Duration::from_secs(60);

/// Users to drain, messages queued for each, and users drained concurrently.
const READERS: usize = 2_000;
const QUEUED: u64 = 100;
const READERS_AT_ONCE: usize = 64;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    println!(
        "{} processors; texts of {TEXT_BYTES} bytes",
        std::thread::available_parallelism().unwrap()
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let nats = Nats::start();
    let server = || {
        let bounds = [
            "--max-queued-messages=100000000",
            "--max-queued-bytes=100000000000",
        ];
        Harkd::builder()
            .store(format!("{}/bench", nats.url()))
            .args(bounds)
            .arg(format!("--shards={STREAMS}"))
            .start()
    };
    let servers = [server(), server()];
    runtime.block_on(async {
        let bench = Bench {
            bare: bare(&nats.url()).await,
            servers,
        };
        if is_wanted("sends") {
            bench.sends().await;
        }
        if is_wanted("order") {
            bench.order().await;
        }
        if is_wanted("two") {
            bench.two().await;
        }
        if is_wanted("latency") {
            bench.latency().await;
        }
        if is_wanted("drain") {
            bench.drain().await;
        }
    });
}

struct Bench {
    bare: jetstream::Context,
    servers: [Harkd; 2],
}

/// Connects a publisher, and creates streams like those of Hark without republishing.
async fn bare(urls: &str) -> jetstream::Context {
    let urls: Vec<_> = urls.split(',').map(str::to_owned).collect();
    let context = jetstream::new(async_nats::connect(urls).await.unwrap());
    for stream in 0..STREAMS {
        let config = Config {
            name: format!("bare-{stream}"),
            subjects: vec![format!("bare.{stream}.>")],
            storage: StorageType::File,
            num_replicas: 3,
            ..Config::default()
        };
        context.create_stream(config).await.unwrap();
    }
    context
}

impl Bench {
    /// Measures sends with one in flight for each pair of sender and recipient.
    async fn sends(&self) {
        for pairs in [1, 256, 2_000] {
            println!("\n{pairs} pairs, one send of each under way");
            self.users(pairs).await;
            let [mut bare, mut careful, mut hark] = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                bare.push(self.bare_rate(pairs, 1).await);
                careful.push(self.careful_rate(pairs).await);
                hark.push(hark_rate(&[self.servers[0].address()], pairs, 1).await);
            }
            compare(("bare", bare), ("hark", hark.clone()));
            println!(
                "beside a publisher that names each message and the one before it, as hark does:"
            );
            compare(("careful", careful), ("hark", hark));
        }
    }

    /// Measures many sends in flight between one pair: the cost of their order.
    async fn order(&self) {
        println!("\none pair, 256 sends under way; the bare publisher keeps no order");
        self.users(1).await;
        let [mut bare, mut hark, mut one] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            bare.push(self.bare_rate(1, 256).await);
            hark.push(hark_rate(&[self.servers[0].address()], 1, 256).await);
            one.push(self.bare_rate(1, 1).await);
        }
        compare(("bare", bare), ("hark", hark.clone()));
        println!("beside a bare publisher that keeps the order, with one at a time:");
        compare(("bare, one", one), ("hark", hark));
    }

    /// Measures two servers, compared with one.
    async fn two(&self) {
        let [one, two] = [&self.servers[..1], &self.servers[..]]
            .map(|servers| servers.iter().map(Harkd::address).collect::<Vec<_>>());
        for pairs in [256, 2_000] {
            println!("\n{pairs} pairs over one server and over two");
            self.users(pairs).await;
            let [mut rate_of_one, mut rate_of_two] = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                rate_of_one.push(hark_rate(&one, pairs, 1).await);
                rate_of_two.push(hark_rate(&two, pairs, 1).await);
            }
            compare(("one", rate_of_one), ("two", rate_of_two));
        }
    }

    /// Measures the time from a send to its delivery, one message at a time.
    async fn latency(&self) {
        const MESSAGES: usize = 300;
        println!("\nfrom send to reader, one at a time, {ROUNDS} rounds of {MESSAGES}");
        self.users(2).await;
        let [here, there] = [0, 1].map(|server| self.servers[server].address());
        let [mut same, mut other] = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (reader, taken) in [(here, &mut same), (there, &mut other)] {
                let mut sender = Link::connect(here, Some("latency")).await;
                let mut reader = Link::connect(reader, None).await;
                reader.drain(&user(1)).await;
                for id in 1..=u32::try_from(MESSAGES).unwrap() {
                    let began = Instant::now();
                    sender.write(id, &send(&user(1), "hello"));
                    sender.flush().await;
                    let sequence = reader.message().await;
                    taken.push(began.elapsed());
                    reader.ack(sequence).await;
                    sender.ok().await;
                }
            }
        }
        let [same, other] =
            [("same server", same), ("other server", other)].map(|(what, mut taken)| {
                taken.sort_unstable();
                let at = |share: f64| {
                    taken[((taken.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0
                };
                println!(
                    "{what:>12}: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms",
                    at(0.5),
                    at(0.9),
                    at(0.99)
                );
                at(0.5)
            });
        println!("{:>12}: p50 {:+.2} ms", "added", other - same);
    }

    /// Measures many users who fetch their queued messages.
    async fn drain(&self) {
        println!(
            "\n{READERS} users with {QUEUED} queued messages each, {READERS_AT_ONCE} at a time"
        );
        self.users(READERS).await;
        let address = self.servers[0].address();
        // Removes messages left by other measurements.
        each(READERS, |user| async move {
            Link::connect(address, None).await.drain(&user).await
        })
        .await;
        let text = "x".repeat(TEXT_BYTES);
        let text = &*text;
        each(READERS, |user| async move {
            let mut link = Link::connect(address, None).await;
            let count = u32::try_from(QUEUED).unwrap();
            (1..=count).for_each(|id| link.write(id, &send(&user, text)));
            link.flush().await;
            for _ in 0..count {
                link.ok().await;
            }
        })
        .await;
        let began = Instant::now();
        let drained = AtomicU64::new(0);
        let count = &drained;
        each(READERS, |user| async move {
            let mut link = Link::connect(address, None).await;
            count.fetch_add(link.drain(&user).await, Ordering::Relaxed);
        })
        .await;
        let seconds = began.elapsed().as_secs_f64();
        assert_eq!(drained.into_inner(), READERS as u64 * QUEUED);
        println!(
            "{:>12.0} users a second, {:.1} s",
            READERS as f64 / seconds,
            seconds
        );
    }

    /// Creates missing users.
    async fn users(&self, count: usize) {
        let mut link = Link::connect(self.servers[0].address(), None).await;
        for first in (0..count).step_by(256) {
            let some = first..count.min(first + 256);
            for (id, n) in (1..).zip(some.clone()) {
                link.write(
                    id,
                    &Request::Create {
                        user: name(&user(n)),
                        password: None,
                    },
                );
            }
            link.flush().await;
            for _ in some {
                assert!(matches!(
                    link.reply().await.1,
                    Reply::Ok(_) | Reply::NotOk(_)
                ));
            }
        }
    }

    /// Returns publications answered per second, with `each` in flight on each of
    /// `subjects`.
    async fn bare_rate(&self, subjects: usize, each: usize) -> f64 {
        let payload = Bytes::from(vec![b'x'; BESIDE_BYTES + TEXT_BYTES]);
        let clock = Clock::start();
        let publishers = (0..subjects * each).map(|n| {
            let (subject, payload) = (n % subjects, payload.clone());
            let (context, clock) = (self.bare.clone(), clock.clone());
            tokio::spawn(async move {
                let subject = format!("bare.{}.{subject}", subject % STREAMS);
                while clock.goes_on() {
                    context
                        .publish(subject.clone(), payload.clone())
                        .await
                        .unwrap()
                        .await
                        .unwrap();
                    clock.count();
                }
            })
        });
        join_all(publishers)
            .await
            .into_iter()
            .for_each(Result::unwrap);
        clock.rate()
    }

    /// Returns the rate like [`Self::bare_rate`], with one publication in flight on each
    /// subject, each with its own id and conditional on the one before.
    async fn careful_rate(&self, subjects: usize) -> f64 {
        static ROUND: AtomicU64 = AtomicU64::new(0);
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let payload = Bytes::from(vec![b'x'; BESIDE_BYTES + TEXT_BYTES]);
        let clock = Clock::start();
        let publishers = (0..subjects).map(|n| {
            let (context, clock, payload) = (self.bare.clone(), clock.clone(), payload.clone());
            tokio::spawn(async move {
                let subject = format!("bare.{}.{round}.{n}", n % STREAMS);
                let (mut last, mut refused) = (0, 0);
                let mut count = 0_u64;
                while clock.goes_on() {
                    let mut headers = HeaderMap::new();
                    headers.insert("Nats-Msg-Id", format!("{round}.{n}.{count}"));
                    headers.insert("Nats-Expected-Last-Subject-Sequence", last.to_string());
                    let publication =
                        context.publish_with_headers(subject.clone(), headers, payload.clone());
                    match publication.await.unwrap().await {
                        Ok(stored) => last = stored.sequence,
                        // In rare cases the engine still counts the previous one as in
                        // flight.
                        Err(error)
                            if error.kind() == PublishErrorKind::Other && refused < REFUSED_MAX =>
                        {
                            refused += 1;
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    }
                    count += 1;
                    clock.count();
                }
            })
        });
        join_all(publishers)
            .await
            .into_iter()
            .for_each(Result::unwrap);
        clock.rate()
    }
}

/// Returns sends answered per second, with `each` in flight for each of `pairs`, spread
/// over these servers.
async fn hark_rate(servers: &[SocketAddr], pairs: usize, each: usize) -> f64 {
    let connections = pairs.min(CONNECTIONS_MAX);
    let mut links = Vec::new();
    for n in 0..connections {
        links.push(Link::connect(servers[n % servers.len()], Some(&format!("s{n}"))).await);
    }
    let clock = Clock::start();
    let senders = (0..).zip(links).map(|(n, link)| {
        let users = (0..pairs)
            .filter(|pair| pair % connections == n)
            .map(user)
            .collect();
        tokio::spawn(keep_sending(link, users, each, clock.clone()))
    });
    join_all(senders).await.into_iter().for_each(Result::unwrap);
    clock.rate()
}

/// Keeps `each` sends in flight to each of these users.
async fn keep_sending(mut link: Link, users: Vec<String>, each: usize, clock: Clock) {
    let text = "x".repeat(TEXT_BYTES);
    let requests: Vec<Request> = users.iter().map(|user| send(user, &text)).collect();
    let window = users.len() * each;
    // The recipient of each id modulo the table's size, which exceeds the ids in flight.
    let mut whom = vec![0; IDS_UNDER_WAY_MAX];
    let mut id = 0;
    let mut send_to = |link: &mut Link, whom: &mut [usize], user: usize| {
        id += 1;
        whom[id as usize % IDS_UNDER_WAY_MAX] = user;
        link.write(id, &requests[user]);
    };
    for n in 0..window {
        send_to(&mut link, &mut whom, n % users.len());
    }
    let mut under_way = window;
    while under_way > 0 {
        link.flush().await;
        link.read().await;
        while let Some((answered, reply)) = link.next() {
            assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
            clock.count();
            under_way -= 1;
            if clock.goes_on() {
                let user = whom[answered as usize % IDS_UNDER_WAY_MAX];
                send_to(&mut link, &mut whom, user);
                under_way += 1;
            }
        }
    }
}

/// Runs `work` for `count` users, a bounded number of them concurrently.
async fn each<F: Future>(count: usize, work: impl Fn(String) -> F) {
    futures::stream::iter(0..count)
        .map(|n| work(user(n)))
        .buffer_unordered(READERS_AT_ONCE)
        .for_each(|_| async {})
        .await;
}

fn user(n: usize) -> String {
    format!("user{n}")
}

/// The period of one measurement, and the answers counted in it.
#[derive(Clone)]
struct Clock {
    began: Instant,
    answered: Arc<AtomicU64>,
}

impl Clock {
    fn start() -> Self {
        Self {
            began: Instant::now(),
            answered: Arc::default(),
        }
    }

    fn goes_on(&self) -> bool {
        self.began.elapsed() < WARM_UP + MEASURED
    }

    fn count(&self) {
        if self.began.elapsed() >= WARM_UP && self.goes_on() {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rate(&self) -> f64 {
        self.answered.load(Ordering::Relaxed) as f64 / MEASURED.as_secs_f64()
    }
}

/// A connection with little overhead.
struct Link {
    stream: TcpStream,
    codec: ClientCodec,
    input: BytesMut,
    output: BytesMut,
}

impl Link {
    /// Connects, and opens a session that no other connection uses at the time.
    async fn connect(address: SocketAddr, session: Option<&str>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let codec = ClientCodec::new(FRAME_BYTES_MAX);
        let mut link = Self {
            stream,
            codec,
            input: BytesMut::new(),
            output: BytesMut::new(),
        };
        if let Some(session) = session {
            let session = format!("{session}-{}", IDS.fetch_add(1, Ordering::Relaxed));
            link.write(
                u32::MAX,
                &Request::Hello {
                    version: 1,
                    session: session.parse().unwrap(),
                },
            );
            link.flush().await;
            link.ok().await;
        }
        link
    }

    fn write(&mut self, id: u32, request: &Request) {
        native::encode(RequestId::new(id), request, &mut self.output).unwrap();
    }

    async fn flush(&mut self) {
        self.stream.write_all(&self.output).await.unwrap();
        self.output.clear();
    }

    async fn read(&mut self) {
        self.input.reserve(16 * 1024);
        let read = timeout(ANSWER, self.stream.read_buf(&mut self.input)).await;
        let count = read
            .unwrap_or_else(|_| panic!("no answer of the server in {ANSWER:?}"))
            .unwrap();
        assert!(count > 0, "the server has closed the connection");
    }

    fn next(&mut self) -> Option<(u32, Reply)> {
        let frame = self.codec.decode(&mut self.input).unwrap()?;
        Some((frame.id.map_or(0, RequestId::value), frame.message.unwrap()))
    }

    async fn reply(&mut self) -> (u32, Reply) {
        loop {
            if let Some(reply) = self.next() {
                return reply;
            }
            self.read().await;
        }
    }

    async fn ok(&mut self) {
        let (_, reply) = self.reply().await;
        assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
    }

    async fn message(&mut self) -> Sequence {
        match self.reply().await {
            (0, Reply::String(delivery)) => delivery.sequence,
            other => panic!("{other:?}"),
        }
    }

    async fn ack(&mut self, sequence: Sequence) {
        self.write(0, &Request::Ack { sequence });
        self.flush().await;
    }

    /// Receives for this user until all queued messages are read. Returns their number.
    async fn drain(&mut self, user: &str) -> u64 {
        self.write(
            1,
            &Request::Connect {
                user: name(user),
                password: None,
            },
        );
        self.flush().await;
        let (_, reply) = self.reply().await;
        let Reply::Ok(fields) = reply else {
            panic!("{reply:?}")
        };
        let queued = fields.as_queued().expect("a number of messages");
        for n in 0..queued {
            let sequence = self.message().await;
            // One acknowledgement for half a window suffices.
            if n % 128 == 127 || n + 1 == queued {
                self.ack(sequence).await;
            }
        }
        queued
    }
}

fn compare(base: (&str, Vec<f64>), other: (&str, Vec<f64>)) {
    let [base, other] = [base, other].map(|(what, mut rates)| {
        rates.sort_unstable_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        let (least, most) = (rates[0], rates[rates.len() - 1]);
        println!("{what:>12}: {median:>8.0} a second ({least:.0} to {most:.0})");
        median
    });
    println!("{:>12}: {:.2}", "ratio", other / base);
}
