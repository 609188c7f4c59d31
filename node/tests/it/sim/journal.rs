//! The journal as text, as a chart and as numbers.

use std::time::Duration;

use hark_node::Json;
use hark_node::sim::{Cluster, Event, Latency, Network};

use super::programs::{Number, gossip, numbers, shower};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A number that is sent from `n1` to `n2`, one that is lost, and a crash.
fn small() -> Cluster {
    let mut cluster = Cluster::builder(numbers)
        .nodes(2)
        .stagger(ms(0))
        .latency(Latency::Constant(ms(1)))
        .build();
    let client = cluster.client();
    shower(&mut cluster, client, "n2", 1, 0);
    let latency = Latency::Constant(Duration::from_micros(1500));
    cluster.apply(Event::Network(Network {
        latency,
        loss: 1.0,
        ..Network::default()
    }));
    shower(&mut cluster, client, "n2", 1, 0);
    shower(&mut cluster, client, "n1", 1, 0);
    cluster.apply(Event::crash("n2"));
    cluster
}

#[test]
fn a_chart_shows_who_sends_what_to_whom() {
    let cluster = small();
    let chart = cluster.journal().chart().to_string();
    assert_eq!(chart, include_str!("chart.txt"), "{chart}");
}

#[test]
fn a_journal_is_a_line_for_each_thing_that_happened() {
    let cluster = small();
    let journal = cluster.journal().to_string();
    assert_eq!(journal, include_str!("journal.txt"), "{journal}");
}

fn large() -> Cluster {
    let mut cluster = Cluster::builder(gossip).nodes(5).build();
    let client = cluster.client();
    for number in 0..50 {
        let _: Json = cluster
            .call(client, "n1", "add", &Number { number })
            .unwrap();
    }
    cluster
}

#[test]
fn a_chart_of_a_large_journal_shows_its_end_and_says_so() {
    let cluster = large();
    let chart = cluster.journal().chart().to_string();
    assert_eq!(chart.lines().count(), 202);
    let left_out = chart.lines().nth(1).unwrap();
    assert!(
        left_out.ends_with("rows before these are left out"),
        "{left_out}"
    );
    let all = cluster.journal().chart().last(usize::MAX).to_string();
    assert!(all.lines().count() > 2000 && !all.contains("left out"));
    let last = |chart: &str| chart.rsplit('#').next().unwrap().to_owned();
    assert_eq!(last(&all), last(&chart));
}

#[test]
fn a_chart_shows_only_those_who_are_asked_for() {
    let cluster = large();
    let chart = cluster
        .journal()
        .chart()
        .only(&["n2", "n4"])
        .last(10)
        .to_string();
    assert_eq!(
        chart
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["time/ms", "n2", "n4"]
    );
    assert_eq!(chart.lines().count(), 12);
}

#[test]
fn stats_count_what_a_span_of_time_has() {
    let mut cluster = Cluster::builder(gossip).nodes(4).build();
    let client = cluster.client();
    let _: Json = cluster
        .call(client, "n1", "add", &Number { number: 1 })
        .unwrap();
    cluster.run_for(Duration::from_secs(1));
    let half = cluster.now();
    let stats = cluster.journal().stats(..);
    assert_eq!(
        (stats.operations, stats.between_nodes, stats.with_services),
        (1, 24, 4)
    );
    assert_eq!((stats.kinds["gossip"], stats.kinds["gossip_ok"]), (12, 12));
    for number in [1, 2] {
        let _: Json = cluster
            .call(client, "n2", "add", &Number { number })
            .unwrap();
    }
    cluster.run_for(Duration::from_secs(1));
    let later = cluster.journal().stats(half..);
    assert_eq!((later.operations, later.between_nodes), (2, 24));
    assert!((later.per_operation() - 12.0).abs() < f64::EPSILON);
    assert_eq!(cluster.journal().stats(..).operations, 3);
}

#[test]
fn time_passes_until_what_is_waited_for_is_so() {
    let mut cluster = Cluster::builder(numbers)
        .nodes(2)
        .stagger(ms(0))
        .latency(Latency::Constant(ms(3)))
        .build();
    let client = cluster.client();
    let operation = cluster.send(client, "n1", "numbers", &());
    assert!(cluster.poll::<Json>(operation).is_none());
    assert!(!cluster.run_until(ms(5), |cluster| cluster.poll::<Json>(operation).is_some()));
    assert_eq!(cluster.now(), ms(5));
    assert!(cluster.run_until(ms(5), |cluster| cluster.poll::<Json>(operation).is_some()));
    assert_eq!(cluster.now(), ms(6));
    assert_eq!(cluster.span(operation), Some((ms(0), Some(ms(6)))));
}
