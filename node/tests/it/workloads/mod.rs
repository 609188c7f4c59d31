//! The standard workloads, each on a simulated cluster with loss, doubles,
//! another order, partitions and crashes: for ten seeds, and in the long run for
//! a hundred.

mod cuts;
mod registers;
mod storm;

#[path = "../../../examples/broadcast.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod broadcast;
#[path = "../../../examples/g_set.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod g_set;
#[path = "../../../examples/lin_kv.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod lin_kv;
#[path = "../../../examples/pn_counter.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod pn_counter;
#[path = "../../../examples/unique_ids.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod unique_ids;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use hark_node::Json;
use hark_node::sim::{self, Cluster, Latency, Operation};
use serde::Deserialize;
use serde_json::json;

use storm::Storm;

/// The tests below, for the seeds of each run.
macro_rules! for_seeds {
    ($($test:ident),+ $(,)?) => {
        mod short {
            $(#[test] fn $test() { super::$test(0..10); })+
        }
        mod long {
            $(#[test] fn $test() { super::$test(10..100); })+
        }
    };
}

for_seeds!(
    ids_are_unique_whatever_fails,
    what_is_broadcast_comes_to_all,
    a_set_grows_alike_on_all_nodes,
    a_counter_counts_all_that_was_answered_and_nothing_twice,
    registers_are_linearizable,
);

#[derive(Deserialize)]
struct Generated {
    id: String,
}

#[derive(Deserialize)]
struct Messages {
    messages: BTreeSet<i64>,
}

#[derive(Deserialize)]
struct Elements {
    value: BTreeSet<i64>,
}

#[derive(Deserialize)]
struct Sum {
    value: i64,
}

fn registers_are_linearizable(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        registers::check(|node| lin_kv::serve(node, registers::SETTINGS), seed);
    });
}

fn ids_are_unique_whatever_fails(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(unique_ids::program, seed);
        let operations = storm.ask(|_| ("generate", json!({})));
        let ids: Vec<_> =
            operations.iter().filter_map(|operation| storm.end::<Generated>(*operation)).collect();
        assert!(ids.len() > operations.len() / 2, "only {} of {} were answered", ids.len(), operations.len());
        let unique: BTreeSet<_> = ids.iter().map(|generated| &generated.id).collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}", ids = ids.iter().map(|id| &id.id).collect::<Vec<_>>());
    });
}

fn what_is_broadcast_comes_to_all(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(broadcast::program, seed);
        let operations = storm.ask(|number| ("broadcast", json!({ "message": number })));
        let answered = storm.answered(&operations);
        for node in storm.cluster.node_ids() {
            let Messages { messages } = storm.read(&node);
            check_set(&node, &messages, &answered, operations.len());
        }
    });
}

#[test]
fn a_broadcast_takes_few_messages() {
    let mut cluster = Cluster::builder(broadcast::program)
        .nodes(25)
        .latency(Latency::Constant(Duration::from_millis(100)))
        .build();
    let client = cluster.client();
    let ids = cluster.node_ids();
    let began = cluster.now();
    // A hundred a second, for 20 s.
    for message in 0..2000 {
        let node = &ids[usize::try_from(cluster.random() % 25).unwrap()];
        cluster.send(client, node, "broadcast", &json!({ "message": message }));
        cluster.run_for(Duration::from_millis(10));
    }
    cluster.run_for(Duration::from_secs(5));
    for node in &ids {
        let Messages { messages } = cluster.call(client, node, "read", &json!({})).unwrap();
        assert_eq!(messages.len(), 2000, "{node}");
    }
    let stats = cluster.journal().stats(began..);
    let per_operation = stats.per_operation();
    println!("{per_operation:.2} messages between nodes for each operation");
    assert!(per_operation < 5.0, "{per_operation}");
}

fn a_set_grows_alike_on_all_nodes(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(g_set::program, seed);
        let operations = storm.ask(|number| ("add", json!({ "element": number })));
        let answered = storm.answered(&operations);
        for node in storm.cluster.node_ids() {
            let Elements { value } = storm.read(&node);
            check_set(&node, &value, &answered, operations.len());
        }
    });
}

/// All that was answered is there, and nothing that was not asked.
#[track_caller]
fn check_set(node: &str, found: &BTreeSet<i64>, answered: &BTreeSet<i64>, asked: usize) {
    let lost: Vec<_> = answered.difference(found).collect();
    assert!(lost.is_empty(), "{node} has lost {lost:?}");
    let asked = i64::try_from(asked).unwrap();
    assert!(
        found.iter().all(|number| (0..asked).contains(number)),
        "{node} has made something up: {found:?}"
    );
}

/// The n-th thing that is added: 0, -1, 2, -3, 4 …
fn delta(number: i64) -> i64 {
    if number % 2 == 0 { number } else { -number }
}

fn a_counter_counts_all_that_was_answered_and_nothing_twice(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(pn_counter::program, seed);
        let operations = storm.ask(|number| ("add", json!({ "delta": delta(number) })));
        let answered = storm.answered(&operations);
        let sums: BTreeSet<i64> =
            storm.cluster.node_ids().iter().map(|node| storm.read::<Sum>(node).value).collect();
        assert_eq!(sums.len(), 1, "the nodes do not agree: {sums:?}");
        // What was not answered may have been counted, or not.
        let unknown =
            (0..i64::try_from(operations.len()).unwrap()).filter(|number| !answered.contains(number));
        let (up, down): (Vec<_>, Vec<_>) = unknown.map(delta).partition(|delta| *delta > 0);
        let certain: i64 = answered.iter().copied().map(delta).sum();
        let (least, most) = (certain + down.iter().sum::<i64>(), certain + up.iter().sum::<i64>());
        let sum = sums.first().copied().unwrap();
        assert!((least..=most).contains(&sum), "{sum} is not from {least} to {most}");
    });
}

#[test]
fn a_counter_that_all_can_reach_is_exact() {
    sim::check(0..10, |seed| {
        let mut cluster = Cluster::builder(pn_counter::program).nodes(5).seed(seed).duplication(0.5).build();
        let client = cluster.client();
        let ids = cluster.node_ids();
        let operations: Vec<Operation> = (0..100_usize)
            .map(|number| {
                let delta = delta(i64::try_from(number).unwrap());
                cluster.send(client, &ids[number % 5], "add", &json!({ "delta": delta }))
            })
            .collect();
        for operation in operations {
            cluster.wait::<Json>(operation).unwrap();
        }
        cluster.run_for(Duration::from_secs(10));
        for node in &ids {
            let Sum { value } = cluster.call(client, node, "read", &json!({})).unwrap();
            assert_eq!(value, (0..100).map(delta).sum::<i64>(), "{node}");
        }
    });
}
