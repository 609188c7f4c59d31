//! The same seed gives the same journal.

use std::time::Duration;

use hark_node::sim::{self, Cluster, Event, Latency, Operation, Reach};

use crate::programs::{Number, gossip};

/// Everything that can go wrong, at once.
fn journal(seed: u64) -> String {
    let latency = Latency::Exponential(Duration::from_millis(5));
    let builder = Cluster::builder(gossip).nodes(5).seed(seed).latency(latency);
    let mut cluster = builder.loss(0.1).duplication(0.1).reordering(0.1).reach(Reach::Everyone).build();
    let clients = [cluster.client(), cluster.client(), cluster.client()];
    cluster.at(Duration::from_millis(100), Event::Split);
    cluster.at(Duration::from_millis(150), Event::crash("n3"));
    cluster.at(Duration::from_millis(250), Event::restart("n3"));
    cluster.at(Duration::from_millis(300), Event::Calm);
    let mut operations: Vec<Operation> = Vec::new();
    for number in 0..20 {
        let node = format!("n{}", cluster.random() % 5 + 1);
        operations.push(cluster.send(clients[number as usize % 3], &node, "add", &Number { number }));
        let pause = Duration::from_micros(cluster.random() % 40_000);
        cluster.run_for(pause);
    }
    cluster.run_for(Duration::from_secs(10));
    assert!(operations.iter().all(|operation| cluster.span(*operation).unwrap().1.is_some()));
    let stats = cluster.journal().stats(..);
    assert!(stats.operations == 20 && stats.doubled > 0 && stats.with_services > 0, "{stats:?}");
    cluster.journal().to_string()
}

#[test]
fn the_same_seed_gives_the_same_journal_byte_for_byte() {
    sim::check(0..10, |seed| assert_eq!(journal(seed), journal(seed)));
}

#[test]
fn another_seed_gives_another_journal() {
    let journals: std::collections::BTreeSet<String> = (0..10).map(journal).collect();
    assert_eq!(journals.len(), 10);
}
