//! Servers on a cluster, compared with a bare publisher on the same cluster in the same
//! run: `cargo bench -p hark-bench --bench cluster [-- sends|shards|order|two|refusals|latency|
//! idle|drain|returning|pause|takeover]`.
//!
//! Three nodes, the servers and the clients share one machine, so the ratios are
//! meaningful and the absolute rates are not.
//!
//! | file | content |
//! | --- | --- |
//! | `main` | rates of sends, and the time to a delivery |
//! | `users` | many users: idle ones, returning ones, and those with queued messages |
//! | `owners` | the pause of a shard whose owner is killed |
//! | `load` | connections, and senders that keep sends in flight |
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

mod load;
mod owners;
mod users;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};
use bytes::Bytes;
use futures::future::join_all;
use hark_protocol::{Reply, Request};
use hark_tests::{Harkd, HarkdBuilder, Nats, name, send};

use self::load::{Clock, Link, Load, rate};

/// Rounds of each comparison, interleaved. The median counts.
const ROUNDS: usize = 3;

/// Bytes of a measured text, and of the rest of Hark's record.
const TEXT_BYTES: usize = 100;
const BESIDE_BYTES: usize = 26;

/// Streams that the messages are spread over, on both sides.
const STREAMS: usize = 12;

/// How long two servers take until their shards are spread.
const SPREAD: Duration = Duration::from_secs(25);

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
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = Bench::start().await;
        let parts: [(&str, AsyncPart<'_>); 9] = [
            ("sends", Box::pin(bench.sends())),
            ("shards", Box::pin(bench.shards())),
            ("order", Box::pin(bench.order())),
            ("two", Box::pin(bench.two())),
            ("refusals", Box::pin(bench.refusals())),
            ("latency", Box::pin(bench.latency())),
            ("idle", Box::pin(bench.idle())),
            ("drain", Box::pin(bench.drain())),
            ("returning", Box::pin(bench.returning())),
        ];
        for (name, part) in parts {
            if is_wanted(name) {
                part.await;
            }
        }
        let Bench {
            mut nats, servers, ..
        } = bench;
        drop(servers);
        if is_wanted("pause") {
            owners::pauses(&mut nats).await;
        }
        if is_wanted("takeover") {
            owners::takeover_of_a_million(&nats).await;
        }
    });
}

type AsyncPart<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

struct Bench {
    bare: jetstream::Context,
    nats: Nats,
    servers: [Harkd; 2],
}

/// Returns a server of a chat.
fn server(nats: &Nats, chat: &str, shards: usize) -> HarkdBuilder {
    let bounds = [
        "--max-queued-messages=100000000",
        "--max-queued-bytes=100000000000",
    ];
    Harkd::builder()
        .store(format!("{}/{chat}", nats.url()))
        .args(bounds)
        .arg(format!("--shards={shards}"))
}

impl Bench {
    /// Starts nodes and servers, and waits until the shards are spread.
    async fn start() -> Self {
        let nats = Nats::start();
        let servers = [(); 2].map(|()| server(&nats, "bench", STREAMS).start());
        tokio::time::sleep(SPREAD).await;
        let owned = servers.each_ref().map(owners::owned_shards);
        println!(
            "shards of the servers: {:?}",
            owned.map(|owned| owned.len())
        );
        Self {
            bare: bare(&nats.url()).await,
            nats,
            servers,
        }
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        self.servers.each_ref().map(Harkd::address)
    }

    /// Measures sends with one in flight for each pair of sender and recipient.
    async fn sends(&self) {
        let [one, _] = self.addresses();
        let one = &[one];
        for pairs in [1, 256, 2_000] {
            println!("\n{pairs} pairs, one send of each under way");
            self.users(pairs).await;
            let [mut bare, mut hark] = [Vec::new(), Vec::new()];
            let (mut time, mut sent) = (0, 0);
            for _ in 0..ROUNDS {
                bare.push(self.bare_rate(pairs, 1).await);
                let before = self.nats.processor_time();
                let (measured, all) = rate(&Load::of(one, pairs)).await;
                time += self.nats.processor_time() - before;
                sent += all;
                hark.push(measured);
            }
            compare(("bare", bare), ("hark", hark));
            let micros = time as f64 * 10_000.0 / sent as f64;
            println!(
                "{:>12}: {micros:.1} µs of processor time a message",
                "nodes"
            );
        }
    }

    /// Measures chats with different numbers of shards, one after another: only the streams of
    /// one of them exist at a time.
    async fn shards(&self) {
        println!(
            "\none server, sends under way to 256 users and to 2000, and queued messages fetched"
        );
        for shards in [1, 4, 6, 12] {
            let chat = format!("shards{shards}");
            let server = server(&self.nats, &chat, shards).start();
            create_users(server.address(), 2_000).await;
            let one = &[server.address()];
            let [mut few, mut many, mut drained] = [(); 3].map(|()| Vec::new());
            for _ in 0..ROUNDS {
                few.push(rate(&Load::of(one, 256)).await.0);
                many.push(rate(&Load::of(one, 2_000)).await.0);
                drained.push(users::drained(server.address(), users::READERS).await);
            }
            println!("{shards:>5} shards");
            for (what, rates) in [("to 256", few), ("to 2000", many), ("fetched", drained)] {
                median(what, rates);
            }
            drop(server);
            for shard in 0..shards {
                let stream = format!("{chat}-shard-{shard}");
                self.bare.delete_stream(stream).await.unwrap();
            }
        }
    }

    /// Measures many sends in flight of one session: to one recipient, where their order
    /// counts, and to many.
    async fn order(&self) {
        let [one, _] = self.addresses();
        let one = &[one];
        println!("\none pair, 256 sends under way; the bare publisher keeps no order");
        self.users(256).await;
        let [mut bare, mut hark, mut many] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            bare.push(self.bare_rate(1, 256).await);
            let each = 256;
            let to_one = Load {
                each,
                ..Load::of(one, 1)
            };
            hark.push(rate(&to_one).await.0);
            let to_many = Load {
                connections: 1,
                ..Load::of(one, 256)
            };
            many.push(rate(&to_many).await.0);
        }
        compare(("bare", bare), ("hark", hark.clone()));
        println!("one session, 256 sends under way, to one recipient and to 256");
        compare(("to one", hark), ("to 256", many));
    }

    /// Measures two servers, compared with one, and those with shared recipients beside
    /// those whose recipients differ.
    async fn two(&self) {
        let both = self.addresses();
        let one = &both[..1];
        for pairs in [256, 2_000] {
            println!("\n{pairs} sends under way over one server, and over two");
            self.users(pairs).await;
            let [mut of_one, mut of_two, mut shared] = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                of_one.push(rate(&Load::of(one, pairs)).await.0);
                let load = Load::of(&both, pairs);
                of_two.push(rate(&load).await.0);
                let is_shared = true;
                shared.push(rate(&Load { is_shared, ..load }).await.0);
            }
            compare(("one", of_one), ("two", of_two.clone()));
            println!("two servers with disjoint recipients, and with shared ones");
            compare(("disjoint", of_two), ("shared", shared));
        }
    }

    /// Measures sends to users that do not exist.
    async fn refusals(&self) {
        let [one, _] = self.addresses();
        let one = &[one];
        println!("\n256 pairs, one send of each under way, stored and refused");
        self.users(256).await;
        let [mut stored, mut refused] = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let load = Load::of(one, 256);
            stored.push(rate(&load).await.0);
            let recipients = "absent";
            refused.push(rate(&Load { recipients, ..load }).await.0);
        }
        compare(("stored", stored), ("refused", refused));
    }

    /// Measures the time from a send to its delivery, one message at a time.
    async fn latency(&self) {
        const MESSAGES: u32 = 300;
        println!("\nfrom send to reader, one at a time, {ROUNDS} rounds of {MESSAGES}");
        self.users(2).await;
        let [here, there] = self.addresses();
        let [mut same, mut other] = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (reader, taken) in [(here, &mut same), (there, &mut other)] {
                let mut sender = Link::connect(here, Some("latency")).await;
                let mut reader = Link::connect(reader, None).await;
                reader.drain(&user(1)).await;
                for id in 1..=MESSAGES {
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

    /// Creates missing users.
    async fn users(&self, count: usize) {
        create_users(self.servers[0].address(), count).await;
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
}

/// Connects a publisher, and creates streams like those of Hark.
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

/// Creates missing users.
async fn create_users(address: SocketAddr, count: usize) {
    let mut link = Link::connect(address, None).await;
    for first in (0..count).step_by(256) {
        let some = first..count.min(first + 256);
        for (id, n) in (1..).zip(some.clone()) {
            let user = name(&user(n));
            let password = None;
            link.write(id, &Request::Create { user, password });
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

fn user(n: usize) -> String {
    format!("user{n}")
}

fn compare((what, base): (&str, Vec<f64>), (other_what, other): (&str, Vec<f64>)) {
    let (base, other) = (median(what, base), median(other_what, other));
    println!("{:>12}: {:.2}", "ratio", other / base);
}

/// Prints and returns the median of rates.
fn median(what: &str, mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    println!("{what:>12}: {median:>8.0} a second ({least:.0} to {most:.0})");
    median
}
