//! A node that crashes loses its state, and no message of its former life
//! confuses the next one.

use std::time::Duration;

use hark_node::sim::{Cluster, Event, Latency, Loss};
use hark_node::{Error, ErrorCode, Json, Node, Request};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::programs::{come, numbers, shower};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Serialize, Deserialize)]
struct Echo {
    echo: String,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Status {
    late: u64,
    ticks: u64,
    begun: u64,
    now_ms: u64,
}

/// `ask` calls `n2`, which takes 100 ms; `status` returns the state of a node.
fn slow(node: &Node<Status>) {
    node.on_init(async |node: Node<Status>| node.state().begun += 1);
    node.every(ms(10), async |node: Node<Status>| node.state().ticks += 1);
    node.handle("ask", async |node, request: Request<Echo>| {
        node.call::<Echo>("n2", "slow", &request.body).await
    });
    node.handle("slow", async |node, request: Request<Echo>| {
        node.sleep(ms(100)).await;
        Ok(request.body)
    });
    node.handle("status", async |node, _: Request<Json>| {
        let (late, now_ms) = (
            node.late_replies(),
            u64::try_from(node.now().as_millis()).unwrap_or_default(),
        );
        let state = node.state();
        Ok(Status {
            late,
            ticks: state.ticks,
            begun: state.begun,
            now_ms,
        })
    });
}

fn two_slow_nodes() -> Cluster {
    Cluster::builder(slow)
        .nodes(2)
        .stagger(Duration::ZERO)
        .latency(Latency::Constant(ms(1)))
        .build()
}

#[test]
fn a_late_reply_to_a_former_life_answers_no_call_of_the_next() {
    let mut cluster = two_slow_nodes();
    let client = cluster.client();
    let before = cluster.send(client, "n1", "ask", &json!({"echo": "before"}));
    cluster.run_for(ms(50));
    assert_eq!(cluster.pending("n1"), 1);
    cluster.apply(Event::crash("n1"));
    assert_eq!(cluster.pending("n1"), 0);
    cluster.run_for(ms(10));
    cluster.apply(Event::restart("n1"));
    // It has the same number in its life.
    let after: Echo = cluster
        .call(client, "n1", "ask", &json!({"echo": "after"}))
        .unwrap();
    assert_eq!(after.echo, "after", "{}", cluster.journal().chart());
    let status: Status = cluster.call(client, "n1", "status", &()).unwrap();
    assert_eq!((status.late, status.begun), (1, 1));
    let error = cluster.wait::<Json>(before).unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
}

#[test]
fn a_restarted_node_begins_anew() {
    let mut cluster = Cluster::builder(numbers).nodes(2).build();
    let client = cluster.client();
    shower(&mut cluster, client, "n2", 5, 1);
    cluster.apply(Event::crash("n2"));
    cluster.apply(Event::restart("n2"));
    assert!(come(&mut cluster, client, "n2").is_empty());
    shower(&mut cluster, client, "n2", 3, 1);
    assert_eq!(come(&mut cluster, client, "n2"), [0, 1, 2]);
}

#[test]
fn timers_and_time_begin_anew() {
    let mut cluster = two_slow_nodes();
    let client = cluster.client();
    cluster.run_for(ms(1005));
    cluster.apply(Event::crash("n2"));
    cluster.run_for(ms(1000));
    cluster.apply(Event::restart("n2"));
    cluster.run_for(ms(54));
    let status: Status = cluster.call(client, "n2", "status", &()).unwrap();
    assert_eq!(
        status,
        Status {
            late: 0,
            ticks: 5,
            begun: 1,
            now_ms: 55
        }
    );
}

#[test]
fn messages_to_a_node_that_is_down_are_lost() {
    let mut cluster = Cluster::builder(numbers)
        .nodes(2)
        .stagger(Duration::ZERO)
        .latency(Latency::Constant(ms(2)))
        .build();
    let client = cluster.client();
    cluster.at(ms(105), Event::crash("n2"));
    cluster.at(ms(205), Event::restart("n2"));
    // The first is sent at 2 ms, and the others 10 ms apart.
    shower(&mut cluster, client, "n2", 30, 10);
    assert_eq!(
        come(&mut cluster, client, "n2"),
        (21..30).collect::<Vec<_>>()
    );
    assert_eq!(cluster.journal().stats(..).lost(Loss::Down), 10);
}

#[test]
fn messages_sent_before_a_crash_arrive() {
    let mut cluster = Cluster::builder(numbers)
        .nodes(2)
        .stagger(Duration::ZERO)
        .latency(Latency::Constant(ms(10)))
        .build();
    let client = cluster.client();
    let shower = json!({"dest": "n2", "count": 3, "pause_ms": 0});
    let operation = cluster.send(client, "n1", "shower", &shower);
    cluster.at(ms(15), Event::crash("n1"));
    assert!(cluster.wait::<Json>(operation).is_ok());
    assert_eq!(come(&mut cluster, client, "n2"), [0, 1, 2]);
}

#[test]
fn a_client_of_a_node_that_is_down_gets_error_0_after_its_timeout() {
    let mut cluster = Cluster::builder(numbers)
        .stagger(ms(0))
        .client_timeout(ms(700))
        .build();
    let client = cluster.client();
    cluster.apply(Event::crash("n1"));
    let error: Error = cluster
        .call::<Json>(client, "n1", "numbers", &())
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
    assert_eq!(cluster.now(), ms(700));
}

#[test]
fn to_crash_or_restart_twice_is_the_same_as_once() {
    let mut cluster = two_slow_nodes();
    let client = cluster.client();
    for event in [
        Event::restart("n2"),
        Event::crash("n1"),
        Event::crash("n1"),
        Event::restart("n1"),
    ] {
        cluster.apply(event);
    }
    cluster.run_for(ms(95));
    cluster.apply(Event::restart("n1"));
    let status: Status = cluster.call(client, "n1", "status", &()).unwrap();
    assert_eq!((status.begun, status.now_ms), (1, 96));
}

#[test]
fn storage_outlives_a_crash_and_state_does_not() {
    fn counter(node: &Node<u64>) {
        node.handle("add", async |node: Node<u64>, _: Request<Json>| {
            *node.state() += 1;
            let stored = node.storage().get::<u64>("stored")?.unwrap_or_default() + 1;
            node.storage().put("stored", &stored)?;
            Ok(json!({"state": *node.state(), "stored": stored}))
        });
    }
    let mut cluster = Cluster::builder(counter).nodes(2).build();
    let client = cluster.client();
    let add = |cluster: &mut Cluster, node: &str| {
        let reply: Json = cluster.call(client, node, "add", &()).unwrap();
        reply
            .parse::<serde_json::Value>()
            .map(|reply| (reply["state"].clone(), reply["stored"].clone()))
            .unwrap()
    };
    assert_eq!(add(&mut cluster, "n1"), (json!(1), json!(1)));
    cluster.apply(Event::crash("n1"));
    cluster.apply(Event::restart("n1"));
    assert_eq!(add(&mut cluster, "n1"), (json!(1), json!(2)));
    assert_eq!(add(&mut cluster, "n2"), (json!(1), json!(1)));
    assert_eq!(cluster.storage("n1").get("stored"), Ok(Some(2)));
}
