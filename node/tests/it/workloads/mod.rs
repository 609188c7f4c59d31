//! The standard workloads, each on a simulated cluster with loss, duplication,
//! reordering, partitions and crashes: for one seed, and in the long run for a hundred.

mod cuts;
mod graph;
mod lists;
mod logs;
mod registers;
mod storm;
mod targets;
mod transactions;
mod txn;

#[path = "../../../examples/broadcast.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod broadcast;
#[path = "../../../examples/g_counter.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod g_counter;
#[path = "../../../examples/g_set.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod g_set;
#[path = "../../../examples/kafka.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod kafka;
#[path = "../../../examples/lin_kv.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod lin_kv;
#[path = "../../../examples/pn_counter.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod pn_counter;
#[path = "../../../examples/txn_list_append.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod txn_list_append;
#[path = "../../../examples/txn_rw_register.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod txn_rw_register;
#[path = "../../../examples/unique_ids.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod unique_ids;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use hark_node::sim::{self, Cluster, Operation};
use hark_node::{Json, Node};
use serde::Deserialize;
use serde_json::json;

use lists::lists_are_strict_serializable;
use logs::logs_keep_their_messages;
use storm::Storm;
use transactions::registers_are_read_committed;

/// The tests below, for the seeds of each run.
macro_rules! for_seeds {
    ($($test:ident),+ $(,)?) => {
        mod short {
            $(#[test] fn $test() { super::$test(0..1); })+
        }
        mod long {
            $(#[test] fn $test() { super::$test(1..100); })+
        }
    };
}

for_seeds!(
    ids_are_unique_whatever_fails,
    a_broadcast_reaches_all_nodes,
    a_set_grows_alike_on_all_nodes,
    a_broadcast_with_few_messages_loses_nothing,
    a_counter_counts_all_that_was_answered_and_nothing_twice,
    a_growing_counter_counts_all_and_nothing_twice,
    logs_keep_their_messages,
    lists_are_strict_serializable,
    registers_are_read_committed,
);

/// Raft has 1,000 seeds, on both cores.
mod raft {
    mod short {
        #[test]
        fn registers_are_linearizable() {
            super::super::registers_are_linearizable(0..4);
        }
    }
    mod long {
        #[test]
        fn registers_are_linearizable() {
            super::super::registers_are_linearizable(4..510);
        }
        #[test]
        fn registers_stay_linearizable() {
            super::super::registers_are_linearizable(510..1000);
        }
    }
}

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
        let ids: Vec<_> = operations
            .iter()
            .filter_map(|operation| storm.end::<Generated>(*operation))
            .collect();
        assert!(
            ids.len() > operations.len() / 2,
            "only {} of {} were answered",
            ids.len(),
            operations.len()
        );
        let unique: BTreeSet<_> = ids.iter().map(|generated| &generated.id).collect();
        assert_eq!(
            unique.len(),
            ids.len(),
            "{ids:?}",
            ids = ids.iter().map(|id| &id.id).collect::<Vec<_>>()
        );
    });
}

fn a_broadcast_reaches_all_nodes(seeds: Range<u64>) {
    check_broadcast(broadcast::program, seeds);
}

fn a_broadcast_with_few_messages_loses_nothing(seeds: Range<u64>) {
    check_broadcast(broadcast::thrifty, seeds);
}

fn check_broadcast(program: fn(&Node<broadcast::State>), seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(program, seed);
        let operations = storm.ask(|number| ("broadcast", json!({ "message": number })));
        let answered = storm.answered(&operations);
        for node in storm.cluster.node_ids() {
            let Messages { messages } = storm.read(&node);
            check_set(&node, &messages, &answered, operations.len());
        }
    });
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

/// Checks that all answered elements are there, and no others than were sent.
#[track_caller]
fn check_set(node: &str, found: &BTreeSet<i64>, answered: &BTreeSet<i64>, asked: usize) {
    let lost: Vec<_> = answered.difference(found).collect();
    assert!(lost.is_empty(), "{node} has lost {lost:?}");
    let asked = i64::try_from(asked).unwrap();
    assert!(
        found.iter().all(|number| (0..asked).contains(number)),
        "{node} has elements that were never sent: {found:?}"
    );
}

/// The n-th increment: 0, -1, 2, -3, 4 …
fn delta(number: i64) -> i64 {
    if number % 2 == 0 { number } else { -number }
}

fn a_counter_counts_all_that_was_answered_and_nothing_twice(seeds: Range<u64>) {
    check_counter(pn_counter::program, delta, seeds);
}

fn a_growing_counter_counts_all_and_nothing_twice(seeds: Range<u64>) {
    check_counter(g_counter::program, |number| number, seeds);
}

/// All nodes agree on a sum of the answered operations, and perhaps of others.
fn check_counter<S: Default + 'static>(
    program: fn(&Node<S>),
    delta: fn(i64) -> i64,
    seeds: Range<u64>,
) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(program, seed);
        let operations = storm.ask(|number| ("add", json!({ "delta": delta(number) })));
        let answered = storm.answered(&operations);
        let sums: BTreeSet<i64> = storm
            .cluster
            .node_ids()
            .iter()
            .map(|node| storm.read::<Sum>(node).value)
            .collect();
        assert_eq!(sums.len(), 1, "the nodes do not agree: {sums:?}");
        // An unanswered operation may have been counted, or not.
        let unknown = (0..i64::try_from(operations.len()).unwrap())
            .filter(|number| !answered.contains(number));
        let (up, down): (Vec<_>, Vec<_>) = unknown.map(delta).partition(|delta| *delta > 0);
        let certain: i64 = answered.iter().copied().map(delta).sum();
        let (least, most) = (
            certain + down.iter().sum::<i64>(),
            certain + up.iter().sum::<i64>(),
        );
        let sum = sums.first().copied().unwrap();
        assert!(
            (least..=most).contains(&sum),
            "{sum} is not from {least} to {most}"
        );
    });
}

#[test]
fn a_counter_that_all_can_reach_is_exact() {
    sim::check(0..3, |seed| {
        let mut cluster = Cluster::builder(pn_counter::program)
            .nodes(5)
            .seed(seed)
            .duplication(0.5)
            .build();
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
