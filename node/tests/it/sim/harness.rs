//! The simulation is as harsh as the harness: nodes start one after the other,
//! clients give up, and a message to a destination that does not exist makes its
//! sender mute.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use hark_node::sim::{self, Builder, CLIENT_TIMEOUT, Cluster, Event, Loss, STAGGER};
use hark_node::{Error, ErrorCode, Json, Node, Request};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::programs::{numbers, shower};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Serialize, Deserialize)]
struct Pause {
    ms: u64,
}

/// `sleep` answers after a time.
fn late(node: &Node<()>) {
    node.handle("sleep", async |node: Node<()>, request: Request<Pause>| {
        node.sleep(Duration::from_millis(request.body.ms)).await;
        Ok(())
    });
}

/// The text of the panic of a test.
#[track_caller]
fn failure(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("the test passes");
    *panic.downcast::<String>().expect("a panic with a text")
}

fn lost(cluster: &Cluster, why: Loss) -> u64 {
    cluster.journal().stats(..).lost(why)
}

/// As [`late`], without a deadline.
fn without_deadline(node: &Node<()>) {
    late(node);
    node.answer_within(Duration::MAX);
}

#[test]
fn a_late_answer_is_not_sent_to_a_client_that_is_gone() {
    let mut cluster = Cluster::builder(late).nodes(3).build();
    let client = cluster.client();
    let error = cluster
        .call::<()>(client, "n2", "sleep", &Pause { ms: 6_000 })
        .unwrap_err();
    assert_eq!(
        error,
        Error::new(ErrorCode::Timeout, "no answer was ready in time")
    );
    cluster.run_for(Duration::from_secs(5));
    assert!(!cluster.is_node_mute("n2"));
}

#[test]
fn an_answer_to_a_client_that_is_gone_fails_the_test() {
    let text = failure(|| {
        let mut cluster = Cluster::builder(without_deadline).nodes(3).build();
        let client = cluster.client();
        let asked = cluster.send(client, "n2", "sleep", &Pause { ms: 6_000 });
        assert_eq!(
            cluster.wait::<()>(asked).unwrap_err().code,
            ErrorCode::Timeout
        );
        cluster.run_for(Duration::from_secs(2));
    });
    let expected =
        "n2 is mute: it has sent sleep_ok to c1, which has given up its request and is gone";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_message_to_a_name_of_no_party_fails_the_test() {
    for dest in ["n9", "lin_kv", "c7", "N1"] {
        let text = failure(|| {
            let mut cluster = Cluster::builder(numbers).build();
            let client = cluster.client();
            shower(&mut cluster, client, dest, 1, 0);
        });
        let expected = format!("n1 is mute: it has sent number to {dest}, which does not exist");
        assert!(text.starts_with(&expected), "{text}");
    }
}

#[test]
fn a_mute_node_is_mute_until_it_restarts() {
    let mut cluster = Cluster::builder(numbers).nodes(2).allow_mute().build();
    let client = cluster.client();
    let asked = cluster.send(
        client,
        "n1",
        "shower",
        &json!({"dest": "n9", "count": 1, "pause_ms": 0}),
    );
    assert_eq!(
        cluster.wait::<()>(asked).unwrap_err().code,
        ErrorCode::Timeout
    );
    assert!(cluster.is_node_mute("n1") && !cluster.is_node_mute("n2"));
    assert_eq!(
        (
            lost(&cluster, Loss::UnknownDestination),
            lost(&cluster, Loss::Mute)
        ),
        (1, 1)
    );
    let error: Error = cluster
        .call::<Json>(client, "n1", "numbers", &())
        .unwrap_err();
    assert_eq!(
        (error.code, lost(&cluster, Loss::Mute)),
        (ErrorCode::Timeout, 2)
    );
    cluster.apply(Event::crash("n1"));
    cluster.apply(Event::restart("n1"));
    let _: Json = cluster.call(client, "n1", "numbers", &()).unwrap();
    assert!(!cluster.is_node_mute("n1"));
}

#[test]
fn nodes_start_in_turn_and_the_first_last() {
    let starts = |seed| {
        let mut cluster = Cluster::builder(late).nodes(5).seed(seed).build();
        assert_eq!(cluster.now(), STAGGER);
        let client = cluster.client();
        let _: () = cluster
            .call(client, "n1", "sleep", &Pause { ms: 0 })
            .unwrap();
        let journal = cluster.journal().to_string();
        let inits: Vec<String> = journal
            .lines()
            .filter(|line| line.contains("c0 -> "))
            .map(|line| {
                line.split(" -> ")
                    .nth(1)
                    .unwrap()
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!((inits.len(), &*inits[4]), (5, "n1"), "{journal}");
        inits
    };
    let orders: BTreeSet<Vec<String>> = (0..20).map(starts).collect();
    assert!(orders.len() > 5, "{orders:?}");
}

/// Asks all others and a service as soon as the node has a name.
fn eager(node: &Node<u32>) {
    node.on_init(async |node: Node<u32>| {
        for peer in node.peers() {
            node.send(peer, "hello", &()).unwrap();
            node.rpc(peer, "hello", &(), |node, reply| {
                *node.state() += u32::from(reply.is_ok())
            })
            .unwrap();
        }
        node.lin_kv().write(node.id(), 1).await.unwrap();
        *node.state() += 100;
    });
    node.handle("hello", async |_, _: Request<()>| Ok(()));
    node.handle("count", async |node: Node<u32>, _: Request<()>| {
        Ok(json!({"count": *node.state()}))
    });
}

#[derive(Deserialize)]
struct Count {
    count: u32,
}

#[test]
fn a_program_that_sends_at_once_is_not_mute() {
    sim::check(0..100, |seed| {
        // Longer than a call waits for its reply.
        let mut cluster = Cluster::builder(eager)
            .nodes(4)
            .seed(seed)
            .stagger(ms(1500))
            .build();
        let client = cluster.client();
        for node in cluster.node_ids() {
            let _: Count = cluster.call(client, &node, "count", &()).unwrap();
        }
        cluster.run_for(Duration::from_secs(2));
        for node in cluster.node_ids() {
            let Count { count } = cluster.call(client, &node, "count", &()).unwrap();
            assert_eq!(count, 103, "{node}: {}", cluster.journal().chart());
        }
    });
}

#[test]
fn a_client_has_one_request_open_on_each_connection() {
    let builder: Builder = Cluster::builder(late);
    let mut cluster = builder.build();
    let client = cluster.client();
    let asked = [100, 50, 6_000].map(|ms| cluster.send(client, "n1", "sleep", &Pause { ms }));
    cluster.run_for(ms(1000));
    assert!(cluster.poll::<()>(asked[0]).is_some() && cluster.poll::<()>(asked[2]).is_none());
    // The first two are free again.
    let _: () = cluster
        .call(client, "n1", "sleep", &Pause { ms: 0 })
        .unwrap();
    let mut srcs: Vec<&str> = Vec::new();
    let journal = cluster.journal().to_string();
    srcs.extend(
        journal
            .lines()
            .filter(|line| line.contains("\"sleep\""))
            .map(|line| {
                let (src, _) = line.split_once(" -> ").unwrap();
                src.rsplit(' ').next().unwrap()
            }),
    );
    assert_eq!(srcs, ["c1", "c2", "c3", "c1"], "{journal}");
}

#[test]
fn a_client_that_gave_up_asks_again_under_another_name() {
    let mut cluster = Cluster::builder(late).nodes(1).build();
    let client = cluster.client();
    cluster.apply(Event::crash("n1"));
    let began = cluster.now();
    assert!(
        cluster
            .call::<()>(client, "n1", "sleep", &Pause { ms: 0 })
            .is_err()
    );
    assert_eq!(cluster.now() - began, CLIENT_TIMEOUT);
    cluster.apply(Event::restart("n1"));
    let _: () = cluster
        .call(client, "n1", "sleep", &Pause { ms: 0 })
        .unwrap();
    assert!(cluster.journal().to_string().contains("c2 -> n1"));
}
