//! HTTP and WebSocket of a real server over the loopback: `cargo bench -p hark-bench --bench
//! http [-- websocket|post|idle|fanout|metrics|page]`. `HARK_BENCH_DIVISOR=100` divides
//! counts and times, for a trial.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

mod link;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use hark_protocol::message::RoomMode;
use hark_protocol::{Request, RoomRequest};
use hark_tests::{Browser, Harkd, HarkdBuilder, name, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::LocalSet;

use self::link::{Link, websocket_frame, write_websocket};

/// Rounds of each comparison; the median is printed.
const ROUNDS: usize = 5;

/// Bytes of a measured text.
const TEXT_BYTES: usize = 100;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    println!(
        "{} processors; texts of {TEXT_BYTES} bytes",
        std::thread::available_parallelism().unwrap()
    );
    let parts: [(&str, fn()); 6] = [
        ("websocket", websocket),
        ("post", post),
        ("idle", idle),
        ("fanout", fan_out),
        ("metrics", metrics),
        ("page", page),
    ];
    for (part, measure) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == part) {
            measure();
        }
    }
}

fn divisor() -> u32 {
    let divisor = std::env::var("HARK_BENCH_DIVISOR");
    divisor.map_or(1, |divisor| divisor.parse().expect("a number"))
}

/// Returns the count of a trial, at least 1.
fn scaled(count: usize) -> usize {
    (count / divisor() as usize).max(1)
}

/// Returns the duration of a measurement.
fn measured() -> Duration {
    (Duration::from_secs(4) / divisor()).max(Duration::from_millis(200))
}

fn roomy() -> HarkdBuilder {
    Harkd::builder()
        .arg("--max-queued-messages=100000000")
        .arg("--max-queued-bytes=100000000000")
}

fn create(user: &str) -> Request {
    Request::Create {
        user: name(user),
        password: None,
    }
}

/// Measures pipelined sends over a WebSocket, beside those in the native framing.
fn websocket() {
    println!("\nsends a second over a WebSocket, beside the native framing (goal: 0.7)");
    println!(
        "{:>9} {:>9} {:>12} {:>12} {:>7}   (medians of {ROUNDS} rounds in turn)",
        "stored", "in flight", "WebSocket", "native", "ratio"
    );
    let text = "x".repeat(TEXT_BYTES);
    let users: Vec<String> = (0..8).map(|user| format!("user{user}")).collect();
    let sends: Vec<Request> = users.iter().map(|user| send(user, &text)).collect();
    for stored in ["durably", "by the OS", "in memory"] {
        for in_flight in [64, 1024] {
            let server = match stored {
                "by the OS" => roomy().arg("--sync=os").start(),
                "in memory" => roomy().store("memory:").start(),
                _ => roomy().start(),
            };
            let mut native = Link::connect(server.address());
            let mut socket = Link::websocket(server.address());
            users.iter().for_each(|user| drop(native.ok(create(user))));
            let (mut ours, mut beside) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(rate(&mut socket, &sends, in_flight));
                beside.push(rate(&mut native, &sends, in_flight));
            }
            let (ours, beside) = (median(ours), median(beside));
            let ratio = ours / beside;
            println!("{stored:>9} {in_flight:>9} {ours:>12.0} {beside:>12.0} {ratio:>7.2}");
        }
    }
}

/// Returns requests answered per second, with `in_flight` of them in flight.
fn rate(link: &mut Link, requests: &[Request], in_flight: usize) -> f64 {
    let (start, mut answered) = (Instant::now(), 0);
    let mut next = requests.iter().cycle();
    link.keep_in_flight(in_flight, |done| {
        answered = done;
        (start.elapsed() < measured()).then(|| next.next().unwrap().clone())
    });
    answered as f64 / start.elapsed().as_secs_f64()
}

/// Measures `POST /v1/send` on connections that are kept alive, one request at a time each.
fn post() {
    const CONNECTIONS: usize = 64;
    println!("\nPOST /v1/send with keep-alive on {CONNECTIONS} connections (goal: 50,000 durable)");
    for stored in ["durably", "by the OS"] {
        let server = match stored {
            "durably" => roomy().start(),
            _ => roomy().arg("--sync=os").start(),
        };
        let mut link = Link::connect(server.address());
        for user in 0..CONNECTIONS {
            link.ok(create(&format!("user{user}")));
        }
        let rates = (0..ROUNDS).map(|_| on_one_thread(posts(server.address(), CONNECTIONS)));
        println!("{stored:>9} {:>12.0}/s", median(rates.collect()));
    }
}

async fn posts(address: SocketAddr, connections: usize) -> f64 {
    let (start, mut tasks) = (Instant::now(), Vec::new());
    for user in 0..connections {
        tasks.push(tokio::task::spawn_local(post_until(address, user, start)));
    }
    let mut answered = 0;
    for task in tasks {
        answered += task.await.unwrap();
    }
    answered as f64 / start.elapsed().as_secs_f64()
}

/// Posts messages to a user, and returns their number.
async fn post_until(address: SocketAddr, user: usize, start: Instant) -> u64 {
    let text = "x".repeat(TEXT_BYTES);
    let request = format!(
        "POST /v1/send/user{user} HTTP/1.1\r\nHost: localhost\r\n\
         Content-Length: {TEXT_BYTES}\r\n\r\n{text}"
    );
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut input, mut answered) = (BytesMut::new(), 0);
    while start.elapsed() < measured() {
        stream.write_all(request.as_bytes()).await.unwrap();
        // The body is a line of JSON.
        while !input.ends_with(b"}\n") {
            assert!(stream.read_buf(&mut input).await.unwrap() > 0);
        }
        assert!(input.starts_with(b"HTTP/1.1 201 "), "{input:?}");
        input.clear();
        answered += 1;
    }
    answered
}

/// Measures the memory of idle users, with their accounts and connections.
fn idle() {
    let users = scaled(10_000);
    println!("\nmemory of {users} idle users, with their accounts (goal: 6 KiB over WebSocket)");
    for is_websocket in [false, true] {
        let server = Harkd::start();
        let before = server.resident_bytes();
        let mut link = Link::connect(server.address());
        let mut created = 0;
        link.keep_in_flight(256, |_| {
            created += 1;
            (created <= users).then(|| create(&format!("user{created}")))
        });
        let with_accounts = server.resident_bytes();
        let mut sockets = Vec::new();
        for user in 1..=users {
            let mut link = match is_websocket {
                true => Link::websocket(server.address()),
                false => Link::connect(server.address()),
            };
            let user = name(&format!("user{user}"));
            let password = None;
            link.ok(Request::Connect { user, password });
            sockets.push(link.into_stream());
        }
        std::thread::sleep(Duration::from_secs(2));
        let after = server.resident_bytes();
        let kibibytes = |from: u64| after.saturating_sub(from) as f64 / users as f64 / 1024.0;
        println!(
            "{:>9} {:>8.2} KiB a user, of which the connection {:.2} KiB",
            if is_websocket { "WebSocket" } else { "native" },
            kibibytes(before),
            kibibytes(with_accounts)
        );
    }
}

/// Measures the deliveries of a room to WebSockets, which acknowledge.
fn fan_out() {
    let members = scaled(1000);
    println!("\nfan-out of a room to {members} WebSockets (goal: 500,000 deliveries a second)");
    let server = Harkd::start();
    let mut owner = Link::connect(server.address());
    owner.ok(create("owner"));
    let (user, password) = (name("owner"), None);
    owner.ok(Request::Login { user, password });
    let room = "#team".parse().unwrap();
    let (mode, keep_s) = (RoomMode::Open, None);
    owner.ok(Request::Room(RoomRequest::Set { room, mode, keep_s }));
    let mut streams = Vec::new();
    for member in 0..members {
        let user = name(&format!("member{member}"));
        owner.ok(create(user.as_str()));
        let mut link = Link::websocket(server.address());
        let device = "phone".parse().unwrap();
        let password = None;
        let attach = RoomRequest::Attach {
            user,
            device,
            password,
        };
        link.ok(Request::Room(attach));
        link.ok(Request::Room(RoomRequest::Join("#team".parse().unwrap())));
        streams.push(link.into_stream());
    }
    let before = server.processor_time();
    let (deliveries, elapsed) = std::thread::scope(|scope| {
        let start = Instant::now();
        scope.spawn(move || {
            let text = "x".repeat(TEXT_BYTES);
            owner.keep_in_flight(64, |_| {
                (start.elapsed() < measured()).then(|| send("#team", &text))
            });
        });
        let deliveries = on_one_thread(receive(streams, start));
        (deliveries, start.elapsed())
    });
    let processor = server.processor_time() - before;
    println!(
        "{:>12.0} deliveries/s; {deliveries} in all; {processor} clock ticks of the server",
        deliveries as f64 / elapsed.as_secs_f64()
    );
}

/// Receives on all sockets until the time is over. Returns the number of messages.
async fn receive(streams: Vec<TcpStream>, start: Instant) -> u64 {
    let received = Rc::new(Cell::new(0));
    let mut tasks = Vec::new();
    for stream in streams {
        let received = Rc::clone(&received);
        tasks.push(tokio::task::spawn_local(receive_one(stream, received)));
    }
    tokio::time::sleep_until((start + measured()).into()).await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    received.get()
}

async fn receive_one(stream: TcpStream, received: Rc<Cell<u64>>) {
    /// Messages for each acknowledgement, a quarter of the window.
    const ACK_EVERY: u32 = 64;
    stream.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let (mut input, mut output, mut owed) = (BytesMut::new(), BytesMut::new(), 0);
    loop {
        assert!(stream.read_buf(&mut input).await.unwrap() > 0);
        while let Some((head, payload)) = websocket_frame(&input) {
            let message = &input[head..head + payload];
            if message[4..].starts_with(b"said\0") {
                received.set(received.get() + 1);
                owed += 1;
                if owed >= ACK_EVERY {
                    owed = 0;
                    let fields = std::str::from_utf8(&message[19..]).unwrap();
                    let number = fields.split(',').nth(1).unwrap();
                    let ack = Request::Ack {
                        log: Some("#team".parse().unwrap()),
                        sequence: hark_protocol::Sequence(number.parse().unwrap()),
                    };
                    write_websocket(0, &ack, &mut output);
                }
            }
            input.advance(head + payload);
        }
        if !output.is_empty() {
            stream.write_all_buf(&mut output).await.unwrap();
        }
    }
}

/// Measures a scrape of the metrics of a server with many accounts.
fn metrics() {
    let accounts = scaled(1_000_000);
    println!("\n/metrics with {accounts} accounts, of which one in ten has a message (goal: 5 ms)");
    let server = Harkd::builder()
        .args(["--sync=os", "--metrics=127.0.0.1:0"])
        .start();
    server.wait_for_log("serving metrics");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("serving metrics"));
    let (_, address) = line.unwrap().rsplit_once("address=").unwrap();
    let mut link = Link::connect(server.address());
    let mut created = 0;
    link.keep_in_flight(1024, |_| {
        created += 1;
        (created <= accounts).then(|| create(&format!("user{created:07}")))
    });
    let mut sent = 0;
    link.keep_in_flight(1024, |_| {
        sent += 1;
        (sent <= accounts / 10).then(|| send(&format!("user{sent:07}"), "hello"))
    });
    let mut taken = Vec::new();
    let mut bytes = 0;
    for _ in 0..200 {
        let start = Instant::now();
        let mut stream = TcpStream::connect(address.trim()).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        taken.push(start.elapsed().as_secs_f64() * 1000.0);
        assert!(
            text.contains(&format!("hark_accounts {accounts}\n")),
            "{text}"
        );
        bytes = text.len();
    }
    taken.sort_unstable_by(f64::total_cmp);
    println!(
        "{:>9.2} ms at the median, {:.2} ms at most of {}; {bytes} bytes",
        taken[taken.len() / 2],
        taken[taken.len() - 1],
        taken.len()
    );
}

/// Measures the time from the first byte of the page until it can be used.
fn page() {
    println!("\nthe page, from its first byte until its script has run (goal: 200 ms)");
    let server = Harkd::builder().certificate(None).start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let times = runtime.block_on(async {
        let browser = Browser::open(1000, 700).await;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            browser.load(&format!("http://{}/", server.address())).await;
            let script = "const [load] = performance.getEntriesByType('navigation'); \
                 return load.domContentLoadedEventEnd - load.responseStart";
            times.push(browser.run(script).await.as_f64().unwrap());
        }
        times
    });
    println!("{:>9.0} ms", median(times));
}

fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, work)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
