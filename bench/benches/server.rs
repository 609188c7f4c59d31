//! Throughput and cost of a real server over the loopback, compared with the limit of
//! this machine in the same run: `cargo bench -p hark-bench --bench server [--
//! sends|grpc|list]`. `hark-bench` measures the rest.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

mod link;

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hark_grpc::request;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::chat_reply;
use hark_protocol::{Request, RequestId};
use hark_tests::{Harkd, name, send};
use tonic::transport::Endpoint;

use self::link::Link;

/// Rounds of each comparison; the median is printed.
const ROUNDS: usize = 5;

/// Duration of a measurement.
const MEASURED: Duration = Duration::from_secs(2);

/// Bytes of a measured text.
const TEXT_BYTES: usize = 100;

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
    if is_wanted("sends") {
        sends();
    }
    if is_wanted("grpc") {
        grpc();
    }
    if is_wanted("list") {
        list();
    }
}

/// Measures durable sends per second, compared with a plain file that is synced once per group.
fn sends() {
    println!(
        "\ndurable sends a second, beside a plain file with one fdatasync per group of the same size"
    );
    println!(
        "{:>9} {:>12} {:>12} {:>7} {:>12}   (medians of {ROUNDS} rounds in turn)",
        "in flight", "harkd", "plain file", "ratio", "pings"
    );
    for in_flight in [1, 64, 1024] {
        let server = Harkd::builder()
            .arg("--max-queued-messages=100000000")
            .arg("--max-queued-bytes=100000000000")
            .start();
        let mut link = Link::connect(server.address());
        for user in 0..8 {
            link.ok(Request::Create {
                user: name(&format!("user{user}")),
                password: None,
            });
        }
        let text = "x".repeat(TEXT_BYTES);
        let sends: Vec<Request> = (0..8)
            .map(|user| send(&format!("user{user}"), &text))
            .collect();
        let (mut ours, mut plain, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(rate(&mut link, &sends, in_flight));
            plain.push(plain_rate(server.store(), in_flight));
            pings.push(rate(&mut link, &[Request::Ping], in_flight));
        }
        let (ours, plain, pings) = (median(ours), median(plain), median(pings));
        println!(
            "{in_flight:>9} {ours:>12.0} {plain:>12.0} {:>7.2} {pings:>12.0}",
            ours / plain
        );
    }
}

/// Measures sends per second over one `BiDiChat`, compared with the wire protocol: with the cost
/// of a disk, and without.
fn grpc() {
    println!("\nsends a second over one stream of gRPC, beside those in the native framing");
    println!(
        "{:>9} {:>9} {:>12} {:>12} {:>7}   (medians of {ROUNDS} rounds in turn)",
        "stored", "in flight", "gRPC", "native", "ratio"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let text = "x".repeat(TEXT_BYTES);
    let sends: Vec<Request> = (0..8)
        .map(|user| send(&format!("user{user}"), &text))
        .collect();
    for stored in ["durably", "by the OS", "in memory"] {
        for in_flight in [1, 64, 1024] {
            let builder = Harkd::builder()
                .arg("--max-queued-messages=100000000")
                .arg("--max-queued-bytes=100000000000");
            let server = match stored {
                "by the OS" => builder.arg("--sync=os").start(),
                "in memory" => builder.store("memory:").start(),
                _ => builder.start(),
            };
            let mut link = Link::connect(server.address());
            for user in 0..8 {
                link.ok(Request::Create {
                    user: name(&format!("user{user}")),
                    password: None,
                });
            }
            let (mut ours, mut native) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(runtime.block_on(grpc_rate(server.address(), &sends, in_flight)));
                native.push(rate(&mut link, &sends, in_flight));
            }
            let (ours, native) = (median(ours), median(native));
            println!(
                "{stored:>9} {in_flight:>9} {ours:>12.0} {native:>12.0} {:>7.2}",
                ours / native
            );
        }
    }
}

/// Returns the rate like [`rate`], over one `BiDiChat`.
async fn grpc_rate(address: SocketAddr, requests: &[Request], in_flight: usize) -> f64 {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let (ask, mut asked) = tokio::sync::mpsc::channel(in_flight);
    let asked = futures::stream::poll_fn(move |cx| asked.poll_recv(cx));
    let mut replies = ChatClient::new(channel)
        .bi_di_chat(asked)
        .await
        .unwrap()
        .into_inner();
    let mut next = (1..).zip(requests.iter().cycle());
    let mut ask_next = || {
        let (id, request) = next.next().unwrap();
        ask.try_send(request::outgoing(RequestId::new(id), request.clone()))
            .unwrap();
    };
    (0..in_flight).for_each(|_| ask_next());
    let (start, mut answered) = (Instant::now(), 0);
    while start.elapsed() < MEASURED {
        let reply = replies.message().await.unwrap().unwrap();
        assert!(
            matches!(reply.reply, Some(chat_reply::Reply::Ok(_))),
            "{reply:?}"
        );
        answered += 1;
        ask_next();
    }
    f64::from(answered) / start.elapsed().as_secs_f64()
}

/// Returns requests answered per second, with `in_flight` of them in flight.
fn rate(link: &mut Link, requests: &[Request], in_flight: usize) -> f64 {
    let (start, mut answered) = (Instant::now(), 0);
    let mut next = requests.iter().cycle();
    link.keep_in_flight(in_flight, |done| {
        answered = done;
        (start.elapsed() < MEASURED).then(|| next.next().unwrap().clone())
    });
    answered as f64 / start.elapsed().as_secs_f64()
}

fn plain_rate(folder: &std::path::Path, group: usize) -> f64 {
    let mut file = File::create(folder.with_extension("plain")).unwrap();
    let records = vec![b'x'; group * TEXT_BYTES];
    let (start, mut written) = (Instant::now(), 0);
    while start.elapsed() < MEASURED {
        file.write_all(&records).unwrap();
        file.sync_data().unwrap();
        written += group;
    }
    written as f64 / start.elapsed().as_secs_f64()
}

/// Measures the effect of a pattern over a million accounts on the sends of other users.
fn list() {
    const ACCOUNTS: u64 = 1_000_000;
    println!("\nsends, one at a time, while others list {ACCOUNTS} accounts by a pattern");
    // Without syncs: variations of a slow disk would hide the effect of the lists.
    let server = Harkd::builder()
        .arg("--sync=os")
        .arg("--max-queued-messages=100000000")
        .start();
    let mut link = Link::connect(server.address());
    let start = Instant::now();
    let mut created = 0;
    link.keep_in_flight(1024, |_| {
        created += 1;
        (created <= ACCOUNTS).then(|| Request::Create {
            user: name(&format!("user{created:07}")),
            password: None,
        })
    });
    println!(
        "{:>9.1} s to create them; memory {:.1} MiB",
        start.elapsed().as_secs_f64(),
        mebibytes(server.resident_bytes())
    );
    for _ in 0..3 {
        latencies("alone", &mut link);
        let stop = Arc::new(AtomicBool::new(false));
        let lister = std::thread::spawn({
            let (stop, address) = (Arc::clone(&stop), server.address());
            move || list_until(&stop, address)
        });
        latencies("with lists", &mut link);
        stop.store(true, Ordering::Release);
        let times = lister.join().unwrap();
        println!(
            "{:>12}: {} of them, {:.0} ms each",
            "lists",
            times.len(),
            times.iter().sum::<f64>() / times.len() as f64
        );
    }
}

fn list_until(stop: &AtomicBool, address: SocketAddr) -> Vec<f64> {
    let mut link = Link::connect(address);
    let mut times = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let start = Instant::now();
        let listed = link.ok(Request::List {
            pattern: Some("9.*8.*7$".into()),
        });
        assert!(listed.as_listed().unwrap().0 > 0);
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times
}

fn latencies(what: &str, link: &mut Link) {
    let text = "x".repeat(TEXT_BYTES);
    let start = Instant::now();
    let mut taken = Vec::new();
    while start.elapsed() < 2 * MEASURED {
        let sent = Instant::now();
        link.ok(send("user0000001", &text));
        taken.push(sent.elapsed());
    }
    taken.sort_unstable();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!(
        "{what:>12}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, longest {:.2} ms of {}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        taken.len()
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
