//! The promise on a cluster: every send answered `ok` is read once and in each
//! sender's order, and no refused one, while servers and NATS nodes are killed
//! or frozen and the clients fail over.
//!
//! Each run prints its seed. `HARK_SEED` repeats it, and `HARK_TEST_SECONDS`
//! sets its duration.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Failure, Reply};
use hark_tests::{
    Authority, FarMachine, Front, Harkd, HarkdBuilder, LoadConfig, Nats, Promise, Report, Trial,
    own_addresses, send,
};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::task::block_in_place;
use tokio::time::sleep;

const FRONTS: [Front; 4] = [Front::Native, Front::Tls, Front::Bidi, Front::Calls];
const NODES: usize = 3;
/// Capacity of an inbox in messages, small enough to be exceeded soon.
const QUEUED_MAX: u64 = 100;
const SERVERS: usize = 2;
/// Shards of a chat by default.
const SHARDS: usize = 4;

/// Time limit for an answer of a server in any state of NATS: the server times
/// out after twenty seconds, and may have waited as long before.
const ANSWER: Duration = Duration::from_secs(45);

/// Time limit for an answer if the client is to fail over from a frozen server.
const FAILOVER_TIMEOUT: Duration = Duration::from_millis(1500);

/// Durations of a cut: below and above the timeout of a server.
const SHORT_MS: u64 = 5_000;
const LONG_MS: u64 = 25_000;

/// Log level of the servers, for failures.
const LOG: &str = "info,hark_server::cluster=debug";

const END: Duration = Duration::from_secs(120);

/// Servers on a cluster, some of which may be down.
struct Cluster {
    nats: Nats,
    servers: Vec<Option<Harkd>>,
}

/// A fault that is injected into a process for a while.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Freeze,
}

impl Cluster {
    /// Starts everything on one machine.
    fn start() -> Self {
        let nats = Nats::start();
        let servers = own_addresses(SERVERS)
            .iter()
            .map(|address| server(&nats, address).start())
            .collect();
        Self::of(nats, servers)
    }

    /// Starts some nodes on the far machine, and optionally the last of the
    /// servers, which stays linked to its clients.
    fn with_far(far: &FarMachine, nodes: &[usize], has_server: bool) -> Self {
        let nats = Nats::builder(NODES).on(far, nodes.iter().copied()).start();
        let mut servers: Vec<_> = own_addresses(SERVERS)
            .iter()
            .map(|address| server(&nats, address))
            .collect();
        if has_server {
            servers.pop();
            let address = SocketAddr::new(
                FarMachine::FAR_ADDRESS_UNCUT.parse().expect("an address"),
                0,
            );
            let allowed = ["--allow-plaintext", "--allow-open-accounts"];
            servers.push(server(&nats, &address).args(allowed).run_by(far.enter()));
        }
        let servers = servers.into_iter().map(HarkdBuilder::start).collect();
        Self::of(nats, servers)
    }

    fn of(nats: Nats, servers: Vec<Harkd>) -> Self {
        Self {
            nats,
            servers: servers.into_iter().map(Some).collect(),
        }
    }

    async fn promise(&self, answer_timeout: Duration, trial: &mut Trial) -> Promise {
        Promise::begin(self.load(answer_timeout), trial.random()).await
    }

    fn load(&self, answer_timeout: Duration) -> LoadConfig {
        LoadConfig {
            servers: self.servers.iter().flatten().map(Harkd::address).collect(),
            fronts: FRONTS.to_vec(),
            answer_timeout,
            end_within: END,
            pace: Duration::ZERO,
        }
    }

    fn server(&mut self, n: usize) -> &mut Option<Harkd> {
        self.servers.get_mut(n).expect("a server of this number")
    }

    fn down(&mut self, process: usize, fault: Fault) {
        match (process.checked_sub(NODES), fault) {
            (None, Fault::Kill) => self.nats.kill(process),
            (None, Fault::Freeze) => self.nats.freeze(process),
            (Some(n), Fault::Kill) => self.server(n).as_mut().expect("a server that runs").kill(),
            (Some(n), Fault::Freeze) => self
                .server(n)
                .as_ref()
                .expect("a server that runs")
                .signal("STOP"),
        }
    }

    fn up(&mut self, process: usize, fault: Fault) {
        match (process.checked_sub(NODES), fault) {
            (None, Fault::Kill) => self.nats.restart(process),
            (None, Fault::Freeze) => self.nats.thaw(process),
            (Some(n), Fault::Kill) => {
                let server = self.server(n);
                *server = server.take().map(Harkd::restart);
            }
            (Some(n), Fault::Freeze) => self
                .server(n)
                .as_ref()
                .expect("a server that runs")
                .signal("CONT"),
        }
    }
}

fn server(nats: &Nats, address: &SocketAddr) -> HarkdBuilder {
    let certificate = Arc::new(Authority::trusted().sign(&[&address.ip().to_string()]));
    let builder = Harkd::builder()
        .listen(&address.to_string())
        .certificate(Some(&certificate));
    builder
        .store(nats.url())
        .args(["--log", LOG])
        .arg(format!("--max-queued-messages={QUEUED_MAX}"))
}

/// Injects faults of this kind until the time is over: into a random process,
/// for a duration in `down_ms`, and the next after another answer.
async fn inject_faults(
    mut trial: Trial,
    fault: Fault,
    down_ms: Range<u64>,
    answer_timeout: Duration,
) -> Report {
    let mut cluster = block_in_place(Cluster::start);
    let promise = cluster.promise(answer_timeout, &mut trial).await;
    let mut faults = [0; NODES + SERVERS];
    while !promise.may_end(trial.time) {
        let before = promise.answers();
        pause(&mut trial.random, 500..3000).await;
        promise.answer_after(before).await;
        let process = trial.random.random_range(0..faults.len());
        tell(&promise, format_args!("{fault:?} {process}"));
        block_in_place(|| cluster.down(process, fault));
        pause(&mut trial.random, down_ms.clone()).await;
        block_in_place(|| cluster.up(process, fault));
        if let Some(count) = faults.get_mut(process) {
            *count += 1;
        }
    }
    tell(
        &promise,
        format_args!("{fault:?} of nodes and servers, in all: {faults:?}"),
    );
    let report = promise.end().await;
    assert!(faults.iter().sum::<u32>() > 0, "no fault was injected");
    report.assert_all_tried();
    report
}

/// Cuts the link to the far machine repeatedly until the time is over; the
/// first cut takes `first_ms` milliseconds.
async fn cut(mut trial: Trial, far: &FarMachine, cluster: Cluster, first_ms: u64) -> Report {
    let promise = cluster.promise(ANSWER, &mut trial).await;
    let mut cuts = 0;
    while !promise.may_end(trial.time) {
        let before = promise.answers();
        pause(&mut trial.random, 500..3000).await;
        promise.answer_after(before).await;
        let ms = if cuts == 0 {
            first_ms
        } else {
            trial.random.random_range(500..10_000)
        };
        tell(&promise, format_args!("a cut of {ms} ms"));
        far.cut();
        sleep(Duration::from_millis(ms)).await;
        far.mend();
        cuts += 1;
    }
    tell(&promise, format_args!("{cuts} cuts in all"));
    let report = promise.end().await;
    assert!(cuts > 0, "nothing was cut");
    report.assert_all_tried();
    assert_eq!(report.timed_out, 0, "some answer did not come");
    report
}

/// Sends to this server until it reports an unknown outcome.
async fn until_unavailable(server: SocketAddr) {
    let mut link = Front::Native.link(server).await.expect("a server");
    for id in 1.. {
        link.write_all(vec![(id, send("reader0", "from nobody who counts"))])
            .await
            .expect("a server");
        match link.next().await.expect("an answer").message {
            Reply::Error {
                failure: Failure::Unavailable,
                ..
            } => return,
            Reply::Ok(_) | Reply::NotOk(_) => sleep(Duration::from_millis(100)).await,
            other => panic!("{other:?}"),
        }
    }
}

fn tell(promise: &Promise, what: std::fmt::Arguments<'_>) {
    println!(
        "{:6.1} s, {} answers: {what}",
        promise.elapsed().as_secs_f64(),
        promise.answers()
    );
}

async fn pause(random: &mut StdRng, ms: Range<u64>) {
    sleep(Duration::from_millis(random.random_range(ms))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_holds_under_kills() {
    let report = inject_faults(Trial::from_env(), Fault::Kill, 100..2000, ANSWER).await;
    assert_eq!(report.timed_out, 0, "some answer did not come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_holds_under_freezes() {
    inject_faults(
        Trial::from_env(),
        Fault::Freeze,
        500..9000,
        FAILOVER_TIMEOUT,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_holds_while_a_node_is_cut_off() {
    let test = "promise_holds_while_a_node_is_cut_off";
    let Some(far) = FarMachine::of_test(module_path!(), test) else {
        return;
    };
    let cluster = block_in_place(|| Cluster::with_far(&far, &[NODES - 1], false));
    cut(Trial::from_env(), &far, cluster, SHORT_MS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_holds_when_all_nodes_are_killed_at_once() {
    let mut trial = Trial::from_env();
    let mut cluster = block_in_place(Cluster::start);
    let promise = cluster.promise(ANSWER, &mut trial).await;
    let mut kills = 0;
    while kills == 0 || !promise.may_end(trial.time) {
        let before = promise.answers();
        pause(&mut trial.random, 500..3000).await;
        promise.answer_after(before).await;
        tell(&promise, format_args!("all nodes are killed"));
        block_in_place(|| (0..NODES).for_each(|node| cluster.nats.kill(node)));
        pause(&mut trial.random, 100..5000).await;
        block_in_place(|| (0..NODES).for_each(|node| cluster.nats.restart(node)));
        kills += 1;
    }
    let report = promise.end().await;
    report.assert_all_tried();
    assert_eq!(report.timed_out, 0, "some answer did not come");
}

/// Each cut takes longer than the server's timeout of twenty seconds, and the freeze longer than
/// the others remember outcomes.
mod long {
    use super::*;

    const OUTCOMES_FORGOTTEN: Duration = Duration::from_secs(612);

    /// Sends enough for the other server to forget outcomes, and leaves most of the processor.
    const PACE: Duration = Duration::from_millis(50);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn promise_holds_after_a_freeze_of_ten_minutes() {
        let mut trial = Trial::from_env();
        let mut cluster = block_in_place(Cluster::start);
        let load = LoadConfig {
            pace: PACE,
            ..cluster.load(FAILOVER_TIMEOUT)
        };
        let promise = Promise::begin(load, trial.random()).await;
        promise.answer_after(500).await;
        let frozen = NODES + trial.random.random_range(0..SERVERS);
        tell(&promise, format_args!("{:?} {frozen}", Fault::Freeze));
        block_in_place(|| cluster.down(frozen, Fault::Freeze));
        sleep(OUTCOMES_FORGOTTEN).await;
        let before = promise.answers();
        block_in_place(|| cluster.up(frozen, Fault::Freeze));
        tell(&promise, format_args!("{frozen} continues"));
        promise.answer_after(before + 500).await;
        promise.end().await.assert_all_tried();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn promise_holds_while_a_server_is_cut_off() {
        let test = "promise_holds_while_a_server_is_cut_off";
        let Some(far) = FarMachine::of_test(module_path!(), test) else {
            return;
        };
        let cluster = block_in_place(|| Cluster::with_far(&far, &[], true));
        let server = cluster
            .servers
            .iter()
            .flatten()
            .next_back()
            .expect("a server")
            .address();
        let told = tokio::spawn(until_unavailable(server));
        cut(Trial::from_env(), &far, cluster, LONG_MS).await;
        assert!(told.is_finished(), "no answer about the unknown outcome");
        told.await.expect("no other answer");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn promise_holds_when_a_node_loses_its_store() {
        let mut trial = Trial::from_env();
        let mut cluster = block_in_place(Cluster::start);
        let promise = cluster.promise(ANSWER, &mut trial).await;
        let mut wipes = 0;
        while wipes < NODES || !promise.may_end(trial.time) {
            let before = promise.answers();
            pause(&mut trial.random, 500..3000).await;
            promise.answer_after(before).await;
            let node = wipes % NODES;
            tell(&promise, format_args!("{node} loses its store"));
            block_in_place(|| {
                cluster.nats.kill(node);
                cluster.nats.wipe(node);
                cluster.nats.restart(node);
                // Two intact replicas are a majority; a second loss must wait for the third.
                cluster.nats.wait_until_current();
                for shard in 0..SHARDS {
                    let stream = format!("hark-shard-{shard}");
                    cluster.nats.wait_until_current_in(&stream, node);
                }
            });
            wipes += 1;
        }
        let report = promise.end().await;
        report.assert_all_tried();
        assert_eq!(report.timed_out, 0, "some answer did not come");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn promise_holds_while_server_and_node_are_cut_off() {
        let test = "promise_holds_while_server_and_node_are_cut_off";
        let Some(far) = FarMachine::of_test(module_path!(), test) else {
            return;
        };
        let cluster = block_in_place(|| Cluster::with_far(&far, &[NODES - 1], true));
        cut(Trial::from_env(), &far, cluster, SHORT_MS).await;
    }
}
