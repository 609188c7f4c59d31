//! A test that goes wrong comes to an end.

use std::time::Duration;

use hark_node::sim::{Builder, Cluster, Event, Latency, Network};
use hark_node::{Node, Request};

use super::programs::numbers;

/// Two nodes that never stop talking.
fn livelock(node: &Node<()>) {
    node.receive("ping", async |node: Node<()>, _: Request<()>| {
        node.send(node.random_peer().unwrap(), "ping", &()).unwrap();
    });
}

fn talkers() -> Builder {
    Cluster::builder(livelock)
        .nodes(2)
        .stagger(Duration::ZERO)
        .latency(Latency::Constant(Duration::ZERO))
}

fn talk(builder: Builder) {
    let mut cluster = builder.build();
    let client = cluster.client();
    cluster.send(client, "n1", "ping", &());
    cluster.run_for(Duration::from_secs(1));
}

#[test]
#[should_panic(expected = "1000 events have happened at 0ns, which is all that may happen")]
fn a_livelock_at_one_time_ends_at_the_bound_of_events() {
    talk(talkers().events_max(1000));
}

#[test]
#[should_panic(expected = "the journal has 500 entries at 0ns, which is all it may have")]
fn a_livelock_ends_at_the_bound_of_the_journal() {
    talk(talkers().journal_max(500));
}

#[test]
#[should_panic(expected = "the virtual time comes to 61s, and may come to 60s")]
fn time_ends_at_its_bound() {
    let builder = Cluster::builder(numbers).stagger(Duration::ZERO);
    builder
        .time_max(Duration::from_secs(60))
        .build()
        .run_for(Duration::from_secs(61));
}

#[test]
#[should_panic(expected = "a cluster has 1 to 1000 nodes")]
fn a_cluster_without_a_node_is_refused() {
    drop(Cluster::builder(numbers).nodes(0).build());
}

#[test]
#[should_panic(expected = "loss is a part of all messages, from 0 to 1, not 1.5")]
fn a_loss_of_more_than_everything_is_refused() {
    drop(Cluster::builder(numbers).loss(1.5).build());
}

#[test]
#[should_panic(expected = "a latency from 2ms to 1ms is none")]
fn a_latency_that_ends_before_it_begins_is_refused() {
    let latency = Latency::Uniform(Duration::from_millis(2), Duration::from_millis(1));
    drop(Cluster::builder(numbers).latency(latency).build());
}

#[test]
#[should_panic(expected = "duplication is a part of all messages")]
fn an_event_is_checked_as_the_builder_is() {
    let network = Network {
        duplication: f64::NAN,
        ..Network::default()
    };
    Cluster::builder(numbers)
        .build()
        .apply(Event::Network(network));
}

#[test]
#[should_panic(expected = "there is no n4 in this cluster")]
fn an_event_names_who_is_there() {
    Cluster::builder(numbers)
        .nodes(3)
        .build()
        .apply(Event::isolate("n4"));
}

#[test]
#[should_panic(expected = "lin-kv is no node")]
fn a_service_does_not_crash() {
    Cluster::builder(numbers)
        .build()
        .apply(Event::crash("lin-kv"));
}
