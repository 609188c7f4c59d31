//! The cluster that other tests rely on: nodes fail, recover, and keep their
//! data.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use hark_tests::{FarMachine, Nats, wait_until};
use serde_json::{Value, json};

/// Time limit for an answer: longer than a request takes with a leader, and
/// shorter than the wait for a leader.
const ANSWER: Duration = Duration::from_secs(5);

const STREAM: &str = "kept";

/// Sends a request to a node over a connection of its own, in the NATS text
/// protocol; `None` on a timeout.
fn request(nats: &Nats, node: usize, subject: &str, body: &str) -> Option<Value> {
    let url = nats.url_of(node);
    let mut stream = TcpStream::connect(url.strip_prefix("nats://").unwrap()).ok()?;
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    let length = body.len();
    let asked = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {length}\r\n{body}\r\n"
    );
    stream.write_all(asked.as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        match words.next()? {
            "PING" => reader.get_mut().write_all(b"PONG\r\n").ok()?,
            "MSG" => {
                let mut answer = vec![0; words.next_back()?.parse().unwrap()];
                reader.read_exact(&mut answer).ok()?;
                return Some(serde_json::from_slice(&answer).unwrap());
            }
            "INFO" => {}
            _ => panic!("{line}"),
        }
    }
}

fn create(nats: &Nats) {
    let replicas = nats.len().min(3);
    let config = json!({ "name": STREAM, "subjects": ["kept.>"], "storage": "file", "num_replicas": replicas });
    let made = request(
        nats,
        0,
        &format!("$JS.API.STREAM.CREATE.{STREAM}"),
        &config.to_string(),
    )
    .unwrap();
    assert_eq!(made["config"]["num_replicas"], replicas, "{made}");
}

/// Publishes a message at a node, once it is accepted, and returns its number.
fn publish(nats: &Nats, node: usize) -> u64 {
    let mut number = None;
    wait_until("a message to be stored", || {
        number = request(nats, node, "kept.one", "hello").and_then(|answer| answer["seq"].as_u64());
        number.is_some()
    });
    number.unwrap()
}

/// Returns the number of messages on a node, by its own account.
fn count(nats: &Nats, node: usize) -> u64 {
    let all = nats.ask(node, "/jsz?accounts=1&streams=1").unwrap();
    all["account_details"][0]["stream_detail"][0]["state"]["messages"]
        .as_u64()
        .unwrap()
}

/// Returns a node other than these.
fn other_than(nats: &Nats, nodes: &[usize]) -> usize {
    (0..nats.len()).find(|node| !nodes.contains(node)).unwrap()
}

#[test]
fn killed_leader_is_replaced_and_catches_up() {
    let mut nats = Nats::start();
    create(&nats);
    let leader = nats.leader_of(STREAM);
    let other = other_than(&nats, &[leader]);
    assert_eq!(publish(&nats, other), 1);
    nats.kill(leader);
    assert!(!nats.is_running(leader));
    assert_ne!(nats.leader_of(STREAM), leader);
    assert!(publish(&nats, other) > 1);
    let before = count(&nats, nats.leader_of(STREAM));
    nats.restart(leader);
    nats.wait_until_current();
    nats.wait_until_current_in(STREAM, leader);
    wait_until("the node to have all", || count(&nats, leader) == before);
    assert!(
        nats.log(leader).matches("Server is ready").count() == 2,
        "{}",
        nats.log(leader)
    );
}

#[test]
fn killed_cluster_recovers_its_data() {
    let mut nats = Nats::start();
    create(&nats);
    let last = (0..3).map(|node| publish(&nats, node)).max().unwrap();
    (0..3).for_each(|node| nats.kill(node));
    (0..3).for_each(|node| nats.restart(node));
    nats.wait_until_current();
    let leader = nats.leader_of(STREAM);
    assert_eq!(count(&nats, leader), last);
    assert!(publish(&nats, leader) > last);
}

#[test]
fn frozen_leader_is_replaced_and_catches_up() {
    let mut nats = Nats::start();
    create(&nats);
    let leader = nats.leader_of(STREAM);
    let other = other_than(&nats, &[leader]);
    nats.freeze(leader);
    assert_ne!(nats.leader_of(STREAM), leader);
    publish(&nats, other);
    nats.thaw(leader);
    nats.wait_until_current();
    nats.wait_until_current_in(STREAM, leader);
    wait_until("the node to have all", || {
        count(&nats, leader) == count(&nats, other)
    });
}

#[test]
fn cut_off_node_catches_up() {
    let test = "cut_off_node_catches_up";
    let Some(far) = FarMachine::of_test(module_path!(), test) else {
        return;
    };
    let nats = Nats::builder(3).on(&far, [2]).start();
    create(&nats);
    let before = publish(&nats, 2);
    far.cut();
    assert!(nats.ask(2, "/healthz").is_err());
    assert_ne!(nats.leader_of(STREAM), 2);
    assert!(publish(&nats, 0) > before);
    far.mend();
    nats.wait_until_current();
    nats.wait_until_current_in(STREAM, 2);
    wait_until("the node to have all", || {
        count(&nats, 2) == count(&nats, 0)
    });
}

#[test]
fn single_node_works_and_sync_is_configurable() {
    let syncs =
        |nats: &Nats| nats.ask(0, "/jsz?config=1").unwrap()["config"]["sync_always"].clone();
    let nats = Nats::builder(1).start();
    create(&nats);
    assert_eq!(
        (publish(&nats, 0), nats.leader_of(STREAM), nats.leader()),
        (1, 0, 0)
    );
    assert_eq!(syncs(&nats), true);
    let forgetful = Nats::builder(1)
        .without_sync()
        .config("max_payload: 2KB")
        .start();
    assert_eq!(syncs(&forgetful), Value::Null);
    assert_eq!(forgetful.ask(0, "/varz").unwrap()["max_payload"], 2048);
}
