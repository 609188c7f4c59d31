//! [`Link`]: a connection with little overhead; and [`rate`]: senders that keep sends in
//! flight, and their rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::StreamExt as _;
use futures::future::join_all;
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Code, Reply, Request, RequestId, Sequence};
use hark_tests::{name, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Decoder;

use super::{TEXT_BYTES, user};

/// Duration of a measurement, after a warm-up.
const MEASURED: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);

/// Maximum connections of the senders. Further pairs share connections, so that the
/// sockets are not the bottleneck.
const CONNECTIONS_MAX: usize = 32;

/// An upper bound of the id range in flight on a connection.
const IDS_UNDER_WAY_MAX: usize = 1 << 16;

/// The longest time to an answer, including `unavailable`.
const ANSWER: Duration = Duration::from_secs(60);

/// Users for whom messages are queued concurrently.
pub(super) const AT_ONCE: usize = 64;

/// Sends that are kept in flight.
#[derive(Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) servers: &'a [SocketAddr],
    /// Pairs of sender and recipient.
    pub(super) pairs: usize,
    /// Connections, spread over the servers.
    pub(super) connections: usize,
    /// Sends in flight for each pair.
    pub(super) each: usize,
    /// Each recipient gets messages over two servers.
    pub(super) is_shared: bool,
    /// The recipients' names, before their numbers. Those that do not exist refuse.
    pub(super) recipients: &'a str,
}

impl<'a> Load<'a> {
    /// Returns one send in flight for each pair, to users that exist.
    pub(super) fn of(servers: &'a [SocketAddr], pairs: usize) -> Self {
        Self {
            servers,
            pairs,
            connections: pairs.min(CONNECTIONS_MAX),
            each: 1,
            is_shared: false,
            recipients: "user",
        }
    }

    /// Returns the recipients of a connection.
    fn recipients_of(&self, connection: usize) -> Vec<String> {
        let (connections, pairs) = match self.is_shared {
            // Neighbors are at different servers, and have the same recipients.
            true => (self.connections / 2, self.pairs / 2),
            false => (self.connections, self.pairs),
        };
        let own = match self.is_shared {
            true => connection / 2,
            false => connection,
        };
        let all = (0..pairs).filter(|pair| pair % connections == own);
        all.map(|pair| format!("{}{pair}", self.recipients))
            .collect()
    }

    /// Returns whether an answer is the expected one. It is not if the outcome is unknown.
    fn is_expected(&self, reply: &Reply) -> bool {
        match reply {
            Reply::Ok(_) => self.recipients == "user",
            Reply::NotOk(refusal) => self.recipients != "user" && refusal.code == Code::NoSuchUser,
            Reply::Error { .. } => false,
            other => panic!("{other:?}"),
        }
    }

    async fn connect(&self, connection: usize) -> Link {
        let server = self.servers[connection % self.servers.len()];
        Link::connect(server, Some(&format!("s{connection}"))).await
    }
}

/// Returns the sends answered per second, and the number of all of them. Says how many
/// connections were closed because the outcome of a send was unknown.
pub(super) async fn rate(load: &Load<'_>) -> (f64, u64) {
    let mut links = Vec::new();
    for n in 0..load.connections {
        links.push(load.connect(n).await);
    }
    let clock = Clock::start();
    let senders = (0..).zip(links);
    let senders = senders.map(|(n, link)| keep_sending(link, n, *load, clock.clone()));
    let (mut sent, mut lost) = (0, 0);
    for (of_link, lost_links) in join_all(senders).await {
        (sent, lost) = (sent + of_link, lost + lost_links);
    }
    if lost > 0 {
        println!("{:>12}: {lost} connections with an unknown outcome", "lost");
    }
    (clock.rate(), sent)
}

/// Keeps sends in flight over a connection, and over others if it is closed. Returns the
/// number of answered sends and of closed connections.
async fn keep_sending(mut link: Link, n: usize, load: Load<'_>, clock: Clock) -> (u64, u64) {
    let (mut sent, mut lost) = (0, 0);
    loop {
        let (answers, is_lost) = keep_sending_over(&mut link, n, load, &clock).await;
        sent += answers;
        if !is_lost {
            return (sent, lost);
        }
        lost += 1;
        link = load.connect(n).await;
    }
}

/// Keeps sends in flight over a connection. Returns the number of answered sends, and
/// whether the outcome of one is unknown.
async fn keep_sending_over(
    link: &mut Link,
    n: usize,
    load: Load<'_>,
    clock: &Clock,
) -> (u64, bool) {
    let users = load.recipients_of(n);
    let text = "x".repeat(TEXT_BYTES);
    let requests: Vec<Request> = users.iter().map(|user| send(user, &text)).collect();
    let window = users.len() * load.each;
    // The recipient of each id modulo the table's size, which exceeds the ids in flight.
    let mut whom = vec![0; IDS_UNDER_WAY_MAX];
    let mut id = 0;
    let mut send_to = |link: &mut Link, whom: &mut [usize], user: usize| {
        id += 1;
        whom[id as usize % IDS_UNDER_WAY_MAX] = user;
        link.write(id, &requests[user]);
    };
    for n in 0..window {
        send_to(link, &mut whom, n % users.len());
    }
    let (mut under_way, mut answers) = (window, 0);
    while under_way > 0 {
        link.flush().await;
        link.read().await;
        while let Some((answered, reply)) = link.next() {
            if !load.is_expected(&reply) {
                return (answers, true);
            }
            clock.count();
            answers += 1;
            under_way -= 1;
            if clock.goes_on() {
                let user = whom[answered as usize % IDS_UNDER_WAY_MAX];
                send_to(link, &mut whom, user);
                under_way += 1;
            }
        }
    }
    (answers, false)
}

/// Runs `work` for `count` users, `at_once` of them concurrently.
pub(super) async fn each<F: Future>(count: usize, at_once: usize, work: impl Fn(String) -> F) {
    futures::stream::iter(0..count)
        .map(|n| work(user(n)))
        .buffer_unordered(at_once)
        .for_each(|_| async {})
        .await;
}

/// Sends `count` messages to a user, each once: those without an answer are repeated in the
/// same session.
pub(super) async fn send_all(address: SocketAddr, to: &str, text: &str, count: u32) {
    let session = unique("fill");
    let request = send(to, text);
    let mut answered = 0;
    while answered < count {
        let mut link = Link::open(address).await;
        link.hello(&session).await;
        (answered + 1..=count).for_each(|id| link.write(id, &request));
        link.flush().await;
        while answered < count {
            match link.reply().await.1 {
                Reply::Ok(_) => answered += 1,
                Reply::Error { .. } => {
                    println!("{:>12}: sends to {to} are repeated", "unavailable");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Returns a name of a session that no other connection uses.
fn unique(session: &str) -> String {
    static IDS: AtomicU64 = AtomicU64::new(1);
    format!("{session}-{}", IDS.fetch_add(1, Ordering::Relaxed))
}

/// The period of one measurement, and the answers counted in it.
#[derive(Clone)]
pub(super) struct Clock {
    began: Instant,
    answered: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            began: Instant::now(),
            answered: Arc::default(),
        }
    }

    pub(super) fn goes_on(&self) -> bool {
        self.began.elapsed() < WARM_UP + MEASURED
    }

    pub(super) fn count(&self) {
        if self.began.elapsed() >= WARM_UP && self.goes_on() {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn rate(&self) -> f64 {
        self.answered.load(Ordering::Relaxed) as f64 / MEASURED.as_secs_f64()
    }
}

/// A connection with little overhead.
pub(super) struct Link {
    stream: TcpStream,
    codec: ClientCodec,
    input: BytesMut,
    output: BytesMut,
}

impl Link {
    /// Connects, and opens a session that no other connection uses at the time.
    pub(super) async fn connect(address: SocketAddr, session: Option<&str>) -> Self {
        let mut link = Self::open(address).await;
        if let Some(session) = session {
            link.hello(&unique(session)).await;
        }
        link
    }

    /// Connects without a session.
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let codec = ClientCodec::new(FRAME_BYTES_MAX);
        Self {
            stream,
            codec,
            input: BytesMut::new(),
            output: BytesMut::new(),
        }
    }

    async fn hello(&mut self, session: &str) {
        let session = session.parse().unwrap();
        self.write(
            u32::MAX,
            &Request::Hello {
                version: 1,
                session,
            },
        );
        self.flush().await;
        self.ok().await;
    }

    pub(super) fn write(&mut self, id: u32, request: &Request) {
        native::encode(RequestId::new(id), request, &mut self.output).unwrap();
    }

    pub(super) async fn flush(&mut self) {
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

    pub(super) fn next(&mut self) -> Option<(u32, Reply)> {
        let frame = self.codec.decode(&mut self.input).unwrap()?;
        Some((frame.id.map_or(0, RequestId::value), frame.message.unwrap()))
    }

    pub(super) async fn reply(&mut self) -> (u32, Reply) {
        loop {
            if let Some(reply) = self.next() {
                return reply;
            }
            self.read().await;
        }
    }

    pub(super) async fn ok(&mut self) {
        let (_, reply) = self.reply().await;
        assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
    }

    pub(super) async fn message(&mut self) -> Sequence {
        match self.reply().await {
            (0, Reply::String(delivery)) => delivery.sequence,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn ack(&mut self, sequence: Sequence) {
        self.write(
            0,
            &Request::Ack {
                log: None,
                sequence,
            },
        );
        self.flush().await;
    }

    /// Receives for this user until all queued messages are read. Returns their number.
    pub(super) async fn drain(&mut self, user: &str) -> u64 {
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
