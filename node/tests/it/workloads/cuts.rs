//! The workloads as the harness runs them: no message is lost by chance, links
//! are cut for many seconds, and final reads come 10 s after the last operation.

use std::collections::BTreeSet;
use std::time::Duration;

use hark_node::sim::{self, Cluster, Event, Latency};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::storm::QUIET;
use super::{Elements, Messages, Sum, broadcast, g_set, pn_counter};

/// Nodes of the clusters that are large.
const NODES: usize = 40;

/// Reads from all nodes, 10 s after the last operation.
fn read_all<R: DeserializeOwned>(cluster: &mut Cluster) -> Vec<R> {
    cluster.run_for(QUIET);
    let client = cluster.client();
    let ids = cluster.node_ids();
    ids.iter()
        .map(|node| cluster.call(client, node, "read", &()).unwrap())
        .collect()
}

/// Sends operations to all nodes in turn, 20 a second.
fn ask(cluster: &mut Cluster, count: i64, kind: &str, field: &str) -> BTreeSet<i64> {
    let client = cluster.client();
    let ids = cluster.node_ids();
    let mut asked = Vec::new();
    for (number, node) in (0..count).zip(ids.iter().cycle()) {
        asked.push((
            number,
            cluster.send(client, node, kind, &json!({ field: number })),
        ));
        cluster.run_for(Duration::from_millis(50));
    }
    cluster.run_for(Duration::from_secs(5));
    let answered = asked
        .iter()
        .filter(|(_, operation)| matches!(cluster.poll::<()>(*operation), Some(Ok(()))));
    answered.map(|(number, _)| *number).collect()
}

#[test]
fn a_set_on_40_nodes_converges_within_10_s() {
    sim::check(0..1, |seed| {
        let mut cluster = Cluster::builder(g_set::program)
            .nodes(NODES)
            .seed(seed)
            .build();
        let client = cluster.client();
        for (number, node) in (0..80).zip(cluster.node_ids().iter().cycle()) {
            cluster.send(client, node, "add", &json!({ "element": number }));
        }
        for Elements { value } in read_all(&mut cluster) {
            assert_eq!(value, (0..80).collect(), "seed {seed}");
        }
    });
}

#[test]
fn a_counter_on_40_nodes_converges_within_10_s() {
    sim::check(0..1, |seed| {
        let mut cluster = Cluster::builder(pn_counter::program)
            .nodes(NODES)
            .seed(seed)
            .build();
        let client = cluster.client();
        for (number, node) in (0..80).zip(cluster.node_ids().iter().cycle()) {
            cluster.send(client, node, "add", &json!({ "delta": number }));
        }
        for Sum { value } in read_all(&mut cluster) {
            assert_eq!(value, (0..80).sum::<i64>(), "seed {seed}");
        }
    });
}

#[test]
fn a_broadcast_answers_no_client_that_is_gone() {
    sim::check(0..3, |seed| {
        let mut cluster = Cluster::builder(broadcast::program)
            .nodes(5)
            .seed(seed)
            .build();
        for (from, node) in [(2, "n1"), (20, "n3")] {
            cluster.at(Duration::from_secs(from), Event::isolate(node));
            cluster.at(Duration::from_secs(from + 12), Event::Heal);
        }
        let answered = ask(&mut cluster, 700, "broadcast", "message");
        for Messages { messages } in read_all(&mut cluster) {
            assert!(answered.is_subset(&messages), "seed {seed}");
        }
    });
}

#[test]
fn a_broadcast_finds_a_way_round_a_cut() {
    sim::check(0..3, |seed| {
        let latency = Latency::Constant(Duration::from_millis(100));
        let mut cluster = Cluster::builder(broadcast::program)
            .nodes(25)
            .seed(seed)
            .latency(latency)
            .build();
        // Any two nodes may be neighbours.
        for _ in 0..20 {
            let (one, other) = (cluster.random_range(1..=25), cluster.random_range(1..=25));
            let (one, other) = (format!("n{one}"), format!("n{other}"));
            if one != other {
                cluster.apply(Event::partition(&[&[&*one], &[&*other]]));
            }
        }
        cluster.apply(Event::partition(&[&["n1"], &["n2", "n3", "n4", "n5"]]));
        ask(&mut cluster, 100, "broadcast", "message");
        for Messages { messages } in read_all(&mut cluster) {
            assert_eq!(messages, (0..100).collect(), "seed {seed}");
        }
    });
}
