//! The promise, on a cluster: what has been answered `ok` is read once, in each
//! sender's order, and what was refused is not read at all, while servers and
//! nodes of NATS are killed, or stand still for a while, and the clients go on
//! at the other server.
//!
//! Each run prints its seed; `HARK_SEED` and `HARK_CLUSTER_SECONDS` run it
//! again, or for longer.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hark_tests::{Authority, Front, Harkd, Kept, Nats, Promise, QUEUED_MAX, Roles, Trial, own_addresses};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::task::block_in_place;
use tokio::time::sleep;

const FRONTS: [Front; 4] = [Front::Native, Front::Tls, Front::Bidi, Front::Calls];
const NODES: usize = 3;
const SERVERS: usize = 2;

/// A server answers within this, whatever happens to NATS: it gives up after
/// twenty seconds, and what it waits for first may have taken as long.
const ANSWER: Duration = Duration::from_secs(45);

/// How long somebody waits who does not wait for a server that stands still.
const HASTE: Duration = Duration::from_secs(3);

const END: Duration = Duration::from_secs(120);

/// Servers on a cluster, any of which may be down.
struct Cluster {
    nats: Nats,
    servers: Vec<Option<Harkd>>,
}

/// What is done to a process for a while.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    Freeze,
}

impl Cluster {
    fn start() -> Self {
        let nats = Nats::start();
        let addresses = own_addresses(SERVERS);
        let server = |address: SocketAddr| {
            let certificate = Arc::new(Authority::trusted().sign(&[&address.ip().to_string()]));
            let builder = Harkd::builder().listen(&address.to_string()).certificate(Some(&certificate));
            let builder = builder.arg(format!("--max-queued-messages={QUEUED_MAX}"));
            let builder = builder.args(["--log", "info,hark_server::store=debug"]);
            Some(builder.store(nats.url()).start())
        };
        let servers = addresses.into_iter().map(server).collect();
        Self { nats, servers }
    }

    fn server(&mut self, n: usize) -> &mut Option<Harkd> {
        self.servers.get_mut(n).expect("a server of this number")
    }

    fn down(&mut self, process: usize, blow: Blow) {
        match (process.checked_sub(NODES), blow) {
            (None, Blow::Kill) => self.nats.kill(process),
            (None, Blow::Freeze) => self.nats.freeze(process),
            (Some(n), Blow::Kill) => self.server(n).as_mut().expect("a server that runs").kill(),
            (Some(n), Blow::Freeze) => self.server(n).as_ref().expect("a server that runs").signal("STOP"),
        }
    }

    fn up(&mut self, process: usize, blow: Blow) {
        match (process.checked_sub(NODES), blow) {
            (None, Blow::Kill) => self.nats.restart(process),
            (None, Blow::Freeze) => self.nats.thaw(process),
            (Some(n), Blow::Kill) => {
                let server = self.server(n);
                *server = server.take().map(Harkd::restart);
            }
            (Some(n), Blow::Freeze) => self.server(n).as_ref().expect("a server that runs").signal("CONT"),
        }
    }
}

/// Deals such blows until the time is over: each to any of the processes, for
/// so many milliseconds, and the next once something was answered since.
async fn trial(mut trial: Trial, blow: Blow, down_ms: std::ops::Range<u64>, patience: Duration) -> Kept {
    let mut cluster = block_in_place(Cluster::start);
    let roles = Roles {
        servers: cluster.servers.iter().flatten().map(Harkd::address).collect(),
        fronts: FRONTS.to_vec(),
        patience,
        end_within: END,
    };
    let promise = Promise::begin(roles, trial.random()).await;
    let mut blows = [0; NODES + SERVERS];
    let start = Instant::now();
    while start.elapsed() < trial.time {
        let before = promise.answers();
        pause(&mut trial.random, 500..3000).await;
        promise.answer_after(before).await;
        let process = trial.random.random_range(0..blows.len());
        println!("{:6.1} s: {blow:?} {process}, {} answers", start.elapsed().as_secs_f64(), promise.answers());
        block_in_place(|| cluster.down(process, blow));
        pause(&mut trial.random, down_ms.clone()).await;
        block_in_place(|| cluster.up(process, blow));
        if let Some(count) = blows.get_mut(process) {
            *count += 1;
        }
    }
    println!("{:6.1} s: {blow:?} of the nodes and the servers: {blows:?}", start.elapsed().as_secs_f64());
    let kept = promise.end().await;
    assert!(blows.iter().sum::<u32>() > 0, "nothing was done to anybody");
    kept.assert_all_tried();
    kept
}

async fn pause(random: &mut StdRng, ms: std::ops::Range<u64>) {
    sleep(Duration::from_millis(random.random_range(ms))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_read_once_and_in_order_whoever_of_a_cluster_is_killed() {
    let kept = trial(Trial::of("HARK_CLUSTER_SECONDS", 45), Blow::Kill, 100..2000, ANSWER).await;
    assert_eq!(kept.given_up, 0, "some answer did not come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_read_once_and_in_order_whoever_of_a_cluster_stands_still() {
    trial(Trial::of("HARK_CLUSTER_SECONDS", 45), Blow::Freeze, 500..8000, HASTE).await;
}
