//! The workloads on a simulated cluster with loss, duplication, reordering, partitions and
//! crashes: for a few seeds, and in the long run for a hundred.

mod kafka;
mod queue;
mod stream;

use std::time::Duration;

use hark_node::Node;
use hark_node::sim::{self, Cluster, Event, Network};

use super::CONFIG;
use super::server::Server;
use crate::cluster::bugs::{Bug, fails_with};

const NODES: usize = 3;

/// Maximum seeds within which a planted bug must be found.
const SEEDS_OF_A_BUG: u64 = 100;

/// The number of faults. Each follows the end of the one before.
const FAULTS: u32 = 4;

/// The time of the first fault.
const FIRST_FAULT_AT: Duration = Duration::from_secs(4);

/// The time at which everything must have come to an end.
const END_AT: Duration = Duration::from_secs(180);

/// Messages between nodes are lost, doubled or reordered with this probability.
const FAULTY: f64 = 0.005;

/// Returns a cluster with planned faults, and the time at which they end.
fn cluster(program: fn(&Node<Server>), seed: u64) -> (Cluster, Duration) {
    let mut cluster = Cluster::builder_with(|| Server::new(CONFIG), program)
        .nodes(NODES)
        .seed(seed)
        .loss(FAULTY)
        .duplication(FAULTY)
        .reordering(FAULTY)
        .build();
    let mut at = FIRST_FAULT_AT;
    for _ in 0..FAULTS {
        // Some are long enough for another server to claim the shards of one that goes on.
        let lasts_ms = match cluster.random_range(0..4) {
            0 => cluster.random_range(3_500..14_000),
            _ => cluster.random_range(300..3_500),
        };
        let ends = at + Duration::from_millis(lasts_ms);
        plan_fault(&mut cluster, at, ends);
        at = ends + Duration::from_millis(cluster.random_range(300..2_000));
    }
    cluster.at(at, Event::Calm);
    (cluster, at)
}

/// Plans a random fault and its end.
fn plan_fault(cluster: &mut Cluster, begins: Duration, ends: Duration) {
    let node = random_node(cluster);
    let lossy = |loss| {
        Event::Network(Network {
            loss,
            duplication: FAULTY,
            reordering: FAULTY,
            ..Network::default()
        })
    };
    let (fault, end) = match cluster.random_range(0..7) {
        0 => (Event::Split, Event::Heal),
        1 => (Event::isolate(&*node), Event::Heal),
        // Its requests to the streams are lost, or their answers.
        2 => (Event::block(&[&node], &["lin-kv"]), Event::Heal),
        3 => (Event::block(&["lin-kv"], &[&node]), Event::Heal),
        4 => (lossy(0.2), lossy(FAULTY)),
        _ => (Event::crash(&*node), Event::restart(&*node)),
    };
    cluster.at(begins, fault);
    cluster.at(ends, end);
}

fn random_node(cluster: &mut Cluster) -> String {
    format!("n{}", cluster.random_range(1..=NODES))
}

/// Checks that a workload finds a planted bug, by a seed that passes without it. The search
/// begins at a seed that has found it.
fn check_finds(bug: Bug, first: u64, run: fn(u64)) {
    let mut seeds = first..first + SEEDS_OF_A_BUG;
    let found = seeds.find(|seed| fails_with(bug, || run(*seed)));
    println!("{bug:?}: found by seed {found:?}");
    run(found.expect("a seed that finds it"));
}

mod short {
    use super::*;

    #[test]
    fn logs_keep_their_messages() {
        sim::check(0..3, kafka::run);
    }

    #[test]
    fn queue_loses_and_doubles_nothing() {
        sim::check(0..3, queue::run);
    }
}

mod long {
    use super::*;

    #[test]
    fn logs_keep_their_messages() {
        sim::check(3..100, kafka::run);
    }

    #[test]
    fn queue_loses_and_doubles_nothing() {
        sim::check(3..100, queue::run);
    }

    #[test]
    fn cursor_freed_before_its_block_is_found() {
        check_finds(Bug::CursorBeforeBlock, 1, queue::run);
    }
}

#[test]
fn live_messages_that_are_purged_are_found() {
    check_finds(Bug::LiveBlocksPurged, 9, kafka::run);
}

#[test]
fn snapshot_without_uncopied_blocks_is_found() {
    check_finds(Bug::YoungNotIndexed, 7, kafka::run);
}

#[test]
fn lost_last_delivery_is_found() {
    check_finds(Bug::LostLastDelivery, 12, kafka::run);
}

#[test]
fn snapshot_outside_the_fence_is_found() {
    check_finds(Bug::SnapshotOutsideFence, 5, queue::run);
}
