//! What administration costs the users of a running server, compared with the same load
//! alone in the same run: `cargo bench -p hark-bench --bench administration [--
//! backup|users|reload]`. The return of many users after a restart is a round of
//! `hark-bench idle`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

mod link;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hark_admin::{Connection, Console};
use hark_protocol::Request;
use hark_tests::{Harkd, HarkdBuilder, harkd, name, send};
use link::Link;

/// Bytes of a measured text.
const TEXT_BYTES: usize = 100;

/// Sends in flight of the full load.
const IN_FLIGHT: usize = 64;

/// The time of a measurement without administration.
const ALONE: Duration = Duration::from_secs(5);

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if is_wanted("backup") {
        backup();
    }
    if is_wanted("users") {
        users();
    }
    if is_wanted("reload") {
        reload();
    }
}

fn builder() -> HarkdBuilder {
    Harkd::builder().args([
        "--segment-size=64",
        "--max-queued-messages=100000000",
        "--max-queued-bytes=100000000000",
        "--max-accounts=2000000",
    ])
}

fn create(link: &mut Link, count: usize) {
    let mut created = 0..count;
    link.keep_in_flight(1024, |_| {
        created.next().map(|user| Request::Create {
            user: user_name(user),
            password: None,
        })
    });
}

fn user_name(user: usize) -> hark_protocol::UserName {
    name(&format!("user{user:07}"))
}

/// The sends of a load: how many were answered, and the longest times between two answers
/// and to one.
#[derive(Debug, Clone, Copy, Default)]
struct Sends {
    answered: u64,
    seconds: f64,
    longest_pause: Duration,
}

impl Sends {
    fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    fn pause_ms(&self) -> f64 {
        self.longest_pause.as_secs_f64() * 1000.0
    }
}

/// Keeps sends in flight on a thread until it is told to stop.
fn load(address: SocketAddr, in_flight: usize, stop: &Arc<AtomicBool>) -> JoinHandle<Sends> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut link = Link::connect(address);
        let text = "x".repeat(TEXT_BYTES);
        let sends: Vec<Request> = (0..8)
            .map(|user| send(user_name(user).as_str(), &text))
            .collect();
        let mut next = sends.iter().cycle();
        let (start, mut last) = (Instant::now(), Instant::now());
        let mut result = Sends::default();
        link.keep_in_flight(in_flight, |answered| {
            if answered > result.answered {
                let now = Instant::now();
                result.longest_pause = result.longest_pause.max(now - last);
                (result.answered, last) = (answered, now);
            }
            (!stop.load(Ordering::Acquire)).then(|| next.next().unwrap().clone())
        });
        result.seconds = start.elapsed().as_secs_f64();
        result
    })
}

/// Runs the load beside an action, and returns its result.
fn beside<T>(address: SocketAddr, in_flight: usize, action: impl FnOnce() -> T) -> (Sends, T) {
    let stop = Arc::<AtomicBool>::default();
    let sends = load(address, in_flight, &stop);
    let result = action();
    stop.store(true, Ordering::Release);
    (sends.join().unwrap(), result)
}

fn admin(store: &Path, arguments: &[&str]) -> Command {
    let mut command = harkd();
    command
        .arg("admin")
        .arg("--store")
        .arg(store)
        .args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Measures the effect of a backup of 1 GB on durable sends.
fn backup() {
    const BACKUPS: usize = 3;
    println!(
        "\nsends beside a backup of 1 GB: {IN_FLIGHT} in flight, goal: 0.8 of the rate, pauses of 10 ms"
    );
    let server = builder().start();
    let mut link = Link::connect(server.address());
    create(&mut link, 8);
    let text = "x".repeat(60_000);
    let mut large = (0..1_000_000_000 / text.len()).map(|n| send(user_name(n % 8).as_str(), &text));
    link.keep_in_flight(64, |_| large.next());
    for number in 0..BACKUPS {
        let wait = || std::thread::sleep(ALONE);
        let (alone, ()) = beside(server.address(), IN_FLIGHT, wait);
        let folder = server.store().with_extension(format!("backup{number}"));
        let to = folder.to_str().unwrap().to_owned();
        let back_up = || {
            let began = Instant::now();
            let status = admin(server.store(), &["backup", "--to", &to]).status();
            assert!(status.unwrap().success());
            began.elapsed().as_secs_f64()
        };
        let (during, took) = beside(server.address(), IN_FLIGHT, back_up);
        std::fs::remove_dir_all(&folder).unwrap();
        println!(
            "alone {:>8.0}/s, longest pause {:>6.1} ms; with a backup of {took:.1} s {:>8.0}/s ({:.2}), longest pause {:>6.1} ms",
            alone.rate(),
            alone.pause_ms(),
            during.rate(),
            during.rate() / alone.rate(),
            during.pause_ms(),
        );
    }
}

/// Measures the first page of a million accounts, and its effect on sends.
fn users() {
    const ACCOUNTS: usize = 1_000_000;
    const PAGES: usize = 200;
    println!(
        "\nfirst page of the users among {ACCOUNTS} accounts, beside single sends; goal: 10 ms, no send later by 5 ms"
    );
    // Without syncs: variations of a slow disk would hide the effect.
    let server = builder().arg("--sync=os").start();
    let mut link = Link::connect(server.address());
    create(&mut link, ACCOUNTS);
    let socket = server.store().join("admin.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut connection = runtime.block_on(connect(&socket));
    for limit in [100, 1000] {
        let wait = || std::thread::sleep(ALONE);
        let (alone, ()) = beside(server.address(), 1, wait);
        let ask = || {
            let mut times = Vec::new();
            for _ in 0..PAGES {
                let began = Instant::now();
                let page = runtime.block_on(first_page(&mut connection, limit));
                times.push(began.elapsed());
                assert_eq!(page.lines().count(), limit as usize);
                std::thread::sleep(Duration::from_millis(20));
            }
            times.sort_unstable();
            times
        };
        let (during, times) = beside(server.address(), 1, ask);
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!(
            "page of {limit:>4}: median {:.2} ms, longest {:.2} ms; longest pause of sends {:.2} ms alone, {:.2} ms with pages",
            ms(times[times.len() / 2]),
            ms(times[times.len() - 1]),
            alone.pause_ms(),
            during.pause_ms(),
        );
    }
}

async fn connect(socket: &Path) -> Connection {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    Connection::open(stream, None, None).await.unwrap()
}

/// Returns the first page of the users, as `harkd admin` prints it.
async fn first_page(connection: &mut Connection, limit: u32) -> String {
    let mut output = Vec::new();
    let mut console = Console {
        output: &mut output,
        is_json: true,
        is_terminal: false,
        new_password: &mut || Err("no password is asked for".to_owned()),
    };
    let users = hark_admin::Command::Users {
        after: String::new(),
        limit,
    };
    let printed = hark_admin::execute(connection, users, &mut console).await;
    printed.unwrap();
    String::from_utf8(output).unwrap()
}

/// Measures a reload with open connections.
fn reload() {
    const CONNECTIONS: usize = 5_000;
    const RELOADS: usize = 50;
    println!(
        "\n{RELOADS} reloads with {CONNECTIONS} open connections and full load; goal: none is dropped"
    );
    let server = builder().start();
    let mut link = Link::connect(server.address());
    create(&mut link, 8);
    let open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(server.address()).unwrap())
        .collect();
    let reload = || {
        for _ in 0..RELOADS {
            server.signal("HUP");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let (sends, ()) = beside(server.address(), IN_FLIGHT, reload);
    let dropped = open.iter().filter(|stream| is_closed(stream)).count();
    println!(
        "{dropped} of {CONNECTIONS} dropped; {:.0} sends/s, longest pause {:.1} ms",
        sends.rate(),
        sends.pause_ms()
    );
}

/// Returns whether the server has closed a connection on which it has nothing to say.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut byte = [0];
    !matches!(stream.peek(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}
