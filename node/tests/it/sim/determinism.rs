//! The same seed gives the same journal.

use std::ops::Range;
use std::time::Duration;

use hark_node::Json;
use hark_node::sim::{self, Cluster, Event, Latency, Operation, Reach, STAGGER};

use serde_json::{Value, json};

use super::programs::{Number, gossip};

/// Everything that can go wrong, at once.
fn journal(seed: u64) -> String {
    let latency = Latency::Exponential(Duration::from_millis(5));
    let builder = Cluster::builder(gossip)
        .nodes(5)
        .seed(seed)
        .latency(latency);
    let mut cluster = builder
        .loss(0.1)
        .duplication(0.1)
        .reordering(0.1)
        .reach(Reach::Everyone)
        .build();
    let clients = [cluster.client(), cluster.client(), cluster.client()];
    let after = |ms| STAGGER + Duration::from_millis(ms);
    cluster.at(after(100), Event::Split);
    cluster.at(after(150), Event::crash("n3"));
    cluster.at(after(250), Event::restart("n3"));
    cluster.at(after(300), Event::Calm);
    let mut operations: Vec<Operation> = Vec::new();
    for number in 0..20 {
        let node = format!("n{}", cluster.random() % 5 + 1);
        operations.push(cluster.send(
            clients[number as usize % 3],
            &node,
            "add",
            &Number { number },
        ));
        let pause = Duration::from_micros(cluster.random() % 40_000);
        cluster.run_for(pause);
    }
    cluster.run_for(Duration::from_secs(10));
    assert!(
        operations
            .iter()
            .all(|operation| cluster.span(*operation).unwrap().1.is_some())
    );
    let stats = cluster.journal().stats(..);
    assert!(
        stats.operations == 20 && stats.doubled > 0 && stats.with_services > 0,
        "{stats:?}"
    );
    cluster.journal().to_string()
}

#[test]
fn the_same_seed_gives_the_same_journal_byte_for_byte() {
    sim::check(0..4, |seed| assert_eq!(journal(seed), journal(seed)));
}

/// A cluster of five in which each number takes some forty messages.
fn a_busy_cluster_comes_to_the_same_end(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut cluster = Cluster::builder(gossip)
            .nodes(5)
            .seed(seed)
            .loss(0.05)
            .reordering(0.2)
            .build();
        let client = cluster.client();
        cluster.at(STAGGER + Duration::from_millis(200), Event::Split);
        cluster.at(STAGGER + Duration::from_millis(600), Event::Heal);
        for number in 0..25 {
            let node = format!("n{}", cluster.random() % 5 + 1);
            let _: Json = cluster
                .call(client, &node, "add", &Number { number })
                .unwrap();
        }
        cluster.run_for(Duration::from_secs(5));
        let count: Value = cluster
            .call(client, "lin-kv", "read", &json!({"key": "count"}))
            .unwrap();
        assert_eq!(count["value"], 25);
        assert!(cluster.journal().stats(..).between_nodes > 800);
        let nodes = cluster.node_ids();
        assert!(nodes.iter().all(|node| cluster.pending(node) == 0));
    });
}

#[test]
fn ten_seeds_of_a_busy_cluster_come_to_the_same_end() {
    a_busy_cluster_comes_to_the_same_end(0..10);
}

mod long {
    #[test]
    fn a_hundred_seeds_of_a_busy_cluster_come_to_the_same_end() {
        super::a_busy_cluster_comes_to_the_same_end(0..100);
    }
}

#[test]
fn another_seed_gives_another_journal() {
    let journals: std::collections::BTreeSet<String> = (0..10).map(journal).collect();
    assert_eq!(journals.len(), 10);
}
