//! The effect of each fault.

use std::time::Duration;

use hark_node::sim::{self, Cluster, Event, Latency, Loss, Network, Reach};
use hark_node::{Error, ErrorCode, Json};
use serde_json::json;

use super::programs::{come, numbers, shower};

const COUNT: u64 = 2000;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Checks that a count is within four standard deviations of the expectation.
#[track_caller]
fn assert_part(count: u64, of: u64, part: f64) {
    let (count, of) = (count as f64, of as f64);
    let deviation = (of * part * (1.0 - part)).sqrt();
    assert!(
        (count - of * part).abs() <= 4.0 * deviation,
        "{count} of {of}, and not a part of {part}"
    );
}

fn is_in_order(numbers: &[u64]) -> bool {
    numbers.is_sorted()
}

/// Returns the numbers that reach `n2` if `n1` sends one each millisecond.
fn shower_over(network: Network, seed: u64) -> (Cluster, Vec<u64>) {
    let mut cluster = Cluster::builder(numbers)
        .nodes(2)
        .seed(seed)
        .network(network)
        .build();
    let client = cluster.client();
    // It takes 2 s.
    let shower = json!({"dest": "n2", "count": COUNT, "pause_ms": 1});
    let operation = cluster.send(client, "n1", "shower", &shower);
    cluster.run_for(Duration::from_secs(4));
    let _: Json = cluster.wait(operation).unwrap();
    let come = come(&mut cluster, client, "n2");
    (cluster, come)
}

#[test]
fn a_kind_network_delivers_everything_once_and_in_order() {
    for latency in [
        Latency::Uniform(ms(0), ms(100)),
        Latency::Exponential(ms(20)),
        Latency::Constant(ms(7)),
    ] {
        let (_, come) = shower_over(
            Network {
                latency,
                ..Network::default()
            },
            1,
        );
        assert_eq!(come, (0..COUNT).collect::<Vec<_>>());
    }
}

#[test]
fn loss_takes_its_part_of_the_messages_between_nodes() {
    for part in [0.05, 0.5] {
        let (cluster, come) = shower_over(
            Network {
                loss: part,
                ..Network::default()
            },
            2,
        );
        let lost = cluster.journal().stats(..).lost(Loss::Chance);
        assert_part(lost, COUNT, part);
        assert_eq!(come.len() as u64, COUNT - lost);
        assert!(is_in_order(&come));
    }
    assert!(
        shower_over(
            Network {
                loss: 1.0,
                ..Network::default()
            },
            2
        )
        .1
        .is_empty()
    );
}

#[test]
fn duplication_doubles_its_part_of_the_messages() {
    let (cluster, come) = shower_over(
        Network {
            duplication: 0.3,
            ..Network::default()
        },
        3,
    );
    let doubled = cluster.journal().stats(..).doubled;
    assert_part(doubled, COUNT, 0.3);
    assert_eq!(come.len() as u64, COUNT + doubled);
    let twice =
        (0..COUNT).filter(|number| come.iter().filter(|other| *other == number).count() == 2);
    assert_eq!(twice.count() as u64, doubled);
}

#[test]
fn reordering_lets_its_part_of_the_messages_be_overtaken_and_loses_none() {
    let latency = Latency::Constant(ms(10));
    let network = Network {
        latency,
        reordering: 0.1,
        ..Network::default()
    };
    let (_, mut come) = shower_over(network, 4);
    let overtaken = come.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
    // Some are delayed by less than the pause between two messages.
    assert!((COUNT / 20..COUNT / 8).contains(&overtaken), "{overtaken}");
    come.sort_unstable();
    assert_eq!(come, (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn latencies_have_their_distribution() {
    let latencies = |latency| -> Vec<f64> {
        // Each over a link of its own, or one would wait for another.
        let mut cluster = Cluster::builder(numbers).nodes(1).latency(latency).build();
        let mut latency = || {
            let client = cluster.client();
            let sent_at = cluster.now();
            let operation = cluster.send(client, "n1", "numbers", &());
            let _: Json = cluster.wait(operation).unwrap();
            let (began, ended) = cluster.span(operation).unwrap();
            assert_eq!(began, sent_at);
            (ended.unwrap() - began).as_secs_f64() * 1000.0
        };
        (0..1000).map(|_| latency()).collect()
    };
    // There and back.
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    assert!(
        latencies(Latency::Constant(ms(7)))
            .iter()
            .all(|latency| *latency == 14.0)
    );
    let uniform = latencies(Latency::Uniform(ms(10), ms(30)));
    assert!(
        uniform
            .iter()
            .all(|latency| (20.0..=60.0).contains(latency))
    );
    assert!((mean(&uniform) - 40.0).abs() < 1.5, "{}", mean(&uniform));
    let exponential = latencies(Latency::Exponential(ms(10)));
    assert!(
        (mean(&exponential) - 20.0).abs() < 2.0,
        "{}",
        mean(&exponential)
    );
    assert!(exponential.iter().any(|latency| *latency > 60.0));
}

#[test]
fn a_partition_cuts_messages_at_both_ends() {
    let builder = Cluster::builder(numbers)
        .nodes(3)
        .stagger(ms(0))
        .latency(Latency::Constant(ms(2)));
    let mut cluster = builder.build();
    let client = cluster.client();
    cluster.at(ms(105), Event::partition(&[&["n1", "n3"], &["n2"]]));
    cluster.at(ms(205), Event::Heal);
    // The first is sent at 2 ms, and the others 10 ms apart.
    shower(&mut cluster, client, "n2", 30, 10);
    let expected: Vec<u64> = (0..30)
        .filter(|number| !(105..=205).contains(&(2 + number * 10)))
        .collect();
    assert_eq!(come(&mut cluster, client, "n2"), expected);
    assert_eq!(cluster.journal().stats(..).lost(Loss::Cut), 10);
}

#[test]
fn a_message_in_flight_over_a_cut_link_is_lost() {
    let mut cluster = Cluster::builder(numbers)
        .nodes(2)
        .stagger(ms(0))
        .latency(Latency::Constant(ms(10)))
        .build();
    let client = cluster.client();
    cluster.at(ms(15), Event::isolate("n2"));
    shower(&mut cluster, client, "n2", 1, 0);
    assert_eq!(cluster.journal().stats(ms(20)..=ms(20)).lost(Loss::Cut), 1);
}

#[test]
fn a_partition_spares_parties_that_it_omits() {
    let mut cluster = Cluster::builder(numbers).nodes(3).build();
    let client = cluster.client();
    cluster.apply(Event::partition(&[&["n1"], &["n3"]]));
    shower(&mut cluster, client, "n2", 5, 1);
    shower(&mut cluster, client, "n3", 5, 1);
    assert_eq!(
        (
            come(&mut cluster, client, "n2").len(),
            come(&mut cluster, client, "n3").len()
        ),
        (5, 0)
    );
}

#[test]
fn a_block_cuts_one_direction_alone() {
    let mut cluster = Cluster::builder(numbers).nodes(2).build();
    let client = cluster.client();
    cluster.apply(Event::block(&["n2"], &["n1"]));
    shower(&mut cluster, client, "n2", 5, 1);
    assert_eq!(come(&mut cluster, client, "n2").len(), 5);
    cluster.apply(Event::Heal);
    cluster.apply(Event::block(&["n1"], &["n2"]));
    shower(&mut cluster, client, "n2", 5, 1);
    assert_eq!(come(&mut cluster, client, "n2").len(), 5);
}

#[test]
fn a_split_leaves_two_parts_that_depend_on_the_seed() {
    let cut = |seed| -> u64 {
        let mut cluster = Cluster::builder(numbers).nodes(5).seed(seed).build();
        let client = cluster.client();
        cluster.apply(Event::Split);
        for node in ["n2", "n3", "n4", "n5"] {
            shower(&mut cluster, client, node, 1, 0);
        }
        cluster.journal().stats(..).lost(Loss::Cut)
    };
    let cuts: std::collections::BTreeSet<u64> = (0..50).map(cut).collect();
    assert_eq!(cuts.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn a_node_reaches_itself_despite_all_faults() {
    let network = Network {
        loss: 1.0,
        reach: Reach::Everyone,
        ..Network::default()
    };
    let mut cluster = Cluster::builder(numbers).nodes(2).build();
    let client = cluster.client();
    let shower = json!({"dest": "n1", "count": 5, "pause_ms": 10});
    let operation = cluster.send(client, "n1", "shower", &shower);
    cluster.run_for(ms(20));
    cluster.apply(Event::Network(network));
    cluster.run_for(ms(100));
    cluster.apply(Event::Calm);
    assert!(cluster.wait::<Json>(operation).is_err());
    assert_eq!(come(&mut cluster, client, "n1").len(), 5);
}

#[test]
fn reach_selects_the_links_that_faults_apply_to() {
    let answered = |reach, dest: &str, kind: &str| -> usize {
        let builder = Cluster::builder(numbers).nodes(1).loss(0.5).reach(reach);
        let mut cluster = builder.client_timeout(ms(100)).build();
        let client = cluster.client();
        let asked = (0..100)
            .map(|_| cluster.send(client, dest, kind, &()))
            .collect::<Vec<_>>();
        cluster.run_for(ms(200));
        asked
            .iter()
            .filter(|operation| cluster.poll::<Json>(**operation).unwrap().is_ok())
            .count()
    };
    assert_eq!(answered(Reach::Nodes, "n1", "numbers"), 100);
    assert_eq!(answered(Reach::Services, "n1", "numbers"), 100);
    assert!((10..40).contains(&answered(Reach::Everyone, "n1", "numbers")));
    assert!((10..40).contains(&answered(Reach::Everyone, "lin-tso", "ts")));
}

#[test]
fn reach_includes_loss_between_nodes_and_services() {
    let lost = |reach| {
        let mut cluster = Cluster::builder(numbers).loss(1.0).reach(reach).build();
        let client = cluster.client();
        // For a service its type is unknown.
        shower(&mut cluster, client, "lin-kv", 10, 1);
        cluster.journal().stats(..).lost(Loss::Chance)
    };
    assert_eq!((lost(Reach::Nodes), lost(Reach::Services)), (0, 10));
}

#[test]
fn all_faults_end_with_calm() {
    let network = Network {
        loss: 0.9,
        duplication: 0.5,
        reordering: 0.5,
        ..Network::default()
    };
    sim::check(0..5, |seed| {
        let mut cluster = Cluster::builder(numbers)
            .nodes(2)
            .seed(seed)
            .network(network)
            .build();
        let client = cluster.client();
        cluster.apply(Event::isolate("n1"));
        cluster.apply(Event::crash("n2"));
        cluster.apply(Event::Calm);
        shower(&mut cluster, client, "n2", 100, 1);
        assert_eq!(
            come(&mut cluster, client, "n2"),
            (0..100).collect::<Vec<_>>()
        );
    });
}

#[test]
fn a_client_of_an_unknown_party_gets_error_1() {
    let mut cluster = Cluster::builder(numbers).build();
    let client = cluster.client();
    let error: Error = cluster
        .call::<Json>(client, "n2", "numbers", &())
        .unwrap_err();
    assert_eq!(error, Error::new(ErrorCode::NodeNotFound, "there is no n2"));
    for nobody in ["n01", "n0", "n+1", "c2", "lin-kv2", ""] {
        assert_eq!(
            cluster
                .call::<Json>(client, nobody, "x", &())
                .unwrap_err()
                .code,
            ErrorCode::NodeNotFound
        );
    }
    assert_eq!(
        cluster.journal().stats(..).lost(Loss::UnknownDestination),
        7
    );
}
