//! Maelstrom's targets for `broadcast`: 25 nodes, 100 ms of latency, 100
//! requests a second, of which every second one reads.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use hark_node::sim::{Cluster, Latency};
use hark_node::{Json, Node};
use serde_json::json;

use super::broadcast::{self, State};

const NODES: usize = 25;
const LATENCY: Duration = Duration::from_millis(100);
const REQUESTS: i64 = 1000;
const PAUSE: Duration = Duration::from_millis(10);

/// The times at which the nodes have seen each message.
type Seen = Rc<RefCell<BTreeMap<i64, Vec<Duration>>>>;

/// The program, with a look at each node's messages every 10 ms.
fn observed(program: fn(&Node<State>), seen: &Seen) -> impl Fn(&Node<State>) + use<> {
    let seen = Rc::clone(seen);
    move |node| {
        program(node);
        let (seen, before) = (Rc::clone(&seen), RefCell::new(BTreeSet::new()));
        node.every(PAUSE, async move |node: Node<State>| {
            let mut before = before.borrow_mut();
            if before.len() < node.state().seen.len() {
                let now = node.state().seen.clone();
                for message in now.difference(&before) {
                    seen.borrow_mut()
                        .entry(*message)
                        .or_default()
                        .push(node.now());
                }
                *before = now;
            }
        });
    }
}

/// Messages for each operation, and the median and maximum of the time from the
/// first to the last node that sees a message.
fn measure(program: fn(&Node<State>)) -> (f64, Duration, Duration) {
    let seen = Seen::default();
    let mut cluster = Cluster::builder(observed(program, &seen))
        .nodes(NODES)
        .stagger(Duration::ZERO)
        .latency(Latency::Constant(LATENCY))
        .build();
    let client = cluster.client();
    let ids = cluster.node_ids();
    let began = cluster.now();
    for number in 0..REQUESTS {
        let node = &ids[cluster.random_range(0..NODES)];
        if number % 2 == 0 {
            cluster.send(client, node, "broadcast", &json!({ "message": number }));
        } else {
            cluster.send(client, node, "read", &json!({}));
        }
        cluster.run_for(PAUSE);
    }
    let ended = cluster.now();
    cluster.run_for(Duration::from_secs(3));
    for node in &ids {
        let read: Json = cluster.call(client, node, "read", &json!({})).unwrap();
        assert!(
            read.text().contains(&(REQUESTS - 2).to_string()),
            "{node} lacks the last message"
        );
    }
    let seen = seen.borrow();
    assert_eq!(seen.len(), usize::try_from(REQUESTS / 2).unwrap());
    let mut spreads: Vec<Duration> = seen
        .values()
        .map(|times| {
            assert_eq!(times.len(), NODES, "a message is not on all nodes");
            *times.iter().max().unwrap() - *times.iter().min().unwrap()
        })
        .collect();
    spreads.sort_unstable();
    let per_operation = cluster.journal().stats(began..ended).per_operation();
    let (median, longest) = (spreads[spreads.len() / 2], spreads[spreads.len() - 1]);
    println!("{per_operation:.2} messages per operation, median {median:?}, maximum {longest:?}");
    (per_operation, median, longest)
}

#[test]
fn a_broadcast_is_fast() {
    let (per_operation, median, longest) = measure(broadcast::program);
    assert!(per_operation < 20.0, "{per_operation}");
    assert!(median < Duration::from_millis(400), "{median:?}");
    assert!(longest < Duration::from_millis(600), "{longest:?}");
}

#[test]
fn a_thrifty_broadcast_takes_few_messages() {
    let (per_operation, median, longest) = measure(broadcast::thrifty);
    assert!(per_operation < 5.0, "{per_operation}");
    assert!(median < Duration::from_secs(1), "{median:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}
