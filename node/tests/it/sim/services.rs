//! The services keep their contracts, and use all that these allow.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use hark_node::sim::{self, Client, Cluster, Event, Latency, Operation, Reach};
use hark_node::{Error, ErrorCode, Json, Kv, Node, Request, Retry};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::programs::numbers;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Debug, Serialize, Deserialize)]
struct Value {
    value: u64,
}

/// A cluster whose nodes are idle: clients call the services themselves.
fn services(seed: u64) -> Cluster {
    Cluster::builder(numbers).seed(seed).build()
}

fn read(cluster: &mut Cluster, client: Client, service: &str, key: &str) -> Result<u64, ErrorCode> {
    let reply = cluster.call::<Value>(client, service, "read", &json!({ "key": key }));
    reply.map(|reply| reply.value).map_err(|error| error.code)
}

fn write(cluster: &mut Cluster, client: Client, service: &str, key: &str, value: u64) {
    let _: Json = cluster
        .call(
            client,
            service,
            "write",
            &json!({"key": key, "value": value}),
        )
        .unwrap();
}

fn cas(
    cluster: &mut Cluster,
    client: Client,
    service: &str,
    from: u64,
    to: u64,
) -> Result<(), ErrorCode> {
    let cas = json!({"key": "k", "from": from, "to": to});
    cluster
        .call::<Json>(client, service, "cas", &cas)
        .map(drop)
        .map_err(|error| error.code)
}

/// Checks that a property holds for at least one of a hundred seeds.
#[track_caller]
fn assert_some_seed(what: &str, is_so: impl Fn(u64) -> bool) {
    assert!((0..100).any(is_so), "no seed of a hundred shows {what}");
}

#[test]
fn each_store_reads_writes_and_compares() {
    for service in ["lin-kv", "seq-kv", "lww-kv"] {
        let mut cluster = services(1);
        let client = cluster.client();
        assert_eq!(
            read(&mut cluster, client, service, "k"),
            Err(ErrorCode::KeyDoesNotExist)
        );
        assert_eq!(
            cas(&mut cluster, client, service, 1, 2),
            Err(ErrorCode::KeyDoesNotExist)
        );
        write(&mut cluster, client, service, "k", 1);
        cluster.run_for(Duration::from_secs(2));
        assert_eq!(read(&mut cluster, client, service, "k"), Ok(1));
        assert_eq!(
            cas(&mut cluster, client, service, 5, 6),
            Err(ErrorCode::PreconditionFailed)
        );
        assert_eq!(cas(&mut cluster, client, service, 1, 2), Ok(()));
        cluster.run_for(Duration::from_secs(2));
        assert_eq!(read(&mut cluster, client, service, "k"), Ok(2));
        let create = json!({"key": ["any", {"key": 1}], "from": null, "to": 7, "create_if_not_exists": true});
        let created = cluster
            .call::<()>(client, service, "cas", &create)
            .map_err(|error| error.code);
        let expected = if service == "lww-kv" {
            Err(ErrorCode::KeyDoesNotExist)
        } else {
            Ok(())
        };
        assert_eq!(created, expected, "{service}");
    }
}

#[test]
fn a_malformed_request_is_refused_an_unknown_one_ignored() {
    let mut cluster = services(1);
    let client = cluster.client();
    let mut code = |service: &str, kind: &str| -> ErrorCode {
        cluster
            .call::<Json>(client, service, kind, &json!({"value": 1}))
            .unwrap_err()
            .code
    };
    assert_eq!(code("lin-kv", "delete"), ErrorCode::Timeout);
    assert_eq!(code("lin-tso", "read"), ErrorCode::Timeout);
    assert_eq!(code("seq-kv", "read"), ErrorCode::MalformedRequest);
}

/// An operation on a register, which begins with 0.
#[derive(Debug, Clone, Copy)]
enum Act {
    Read(u64),
    Write(u64),
    Cas { from: u64, to: u64, is_done: bool },
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    began: Duration,
    ended: Duration,
    act: Act,
}

impl Act {
    /// Returns the value after the operation, if it is possible on this value.
    fn after(self, value: u64) -> Option<u64> {
        match self {
            Self::Read(read) => (read == value).then_some(value),
            Self::Write(value) => Some(value),
            Self::Cas {
                from,
                to,
                is_done: true,
            } => (from == value).then_some(to),
            Self::Cas {
                from,
                is_done: false,
                ..
            } => (from != value).then_some(value),
        }
    }
}

/// Returns whether an order of the operations agrees with their times and results,
/// by trying all orders (Wing and Gong, "Testing and verifying concurrent objects", 1993).
fn is_linearizable(value: u64, open: &[Ended]) -> bool {
    let Some(first_end) = open.iter().map(|operation| operation.ended).min() else {
        return true;
    };
    let is_next = |index: usize| {
        let operation = open[index];
        let after = operation
            .act
            .after(value)
            .filter(|_| operation.began <= first_end);
        after.is_some_and(|after| {
            let rest = [&open[..index], &open[index + 1..]].concat();
            is_linearizable(after, &rest)
        })
    };
    (0..open.len()).any(is_next)
}

/// Returns the operations of three clients on one key at the same time.
fn history(service: &str, seed: u64) -> Vec<Ended> {
    let mut cluster = services(seed);
    let clients = [cluster.client(), cluster.client(), cluster.client()];
    clients
        .iter()
        .for_each(|client| write(&mut cluster, *client, service, "k", 0));
    cluster.run_for(Duration::from_secs(1));
    let mut sent: Vec<(Operation, Act)> = Vec::new();
    for round in 0..4 {
        for client in clients {
            let (from, to) = (cluster.random() % 3, round + 1);
            let (kind, act, body) = match cluster.random() % 3 {
                0 => ("read", Act::Read(0), json!({"key": "k"})),
                1 => ("write", Act::Write(to), json!({"key": "k", "value": to})),
                _ => {
                    let act = Act::Cas {
                        from,
                        to,
                        is_done: false,
                    };
                    ("cas", act, json!({"key": "k", "from": from, "to": to}))
                }
            };
            sent.push((cluster.send(client, service, kind, &body), act));
            let pause = Duration::from_millis(cluster.random() % 8);
            cluster.run_for(pause);
        }
    }
    cluster.run_for(Duration::from_secs(1));
    sent.into_iter()
        .map(|(operation, act)| ended(&cluster, operation, act))
        .collect()
}

fn ended(cluster: &Cluster, operation: Operation, act: Act) -> Ended {
    let act = match act {
        Act::Read(_) => Act::Read(cluster.poll::<Value>(operation).unwrap().unwrap().value),
        Act::Write(value) => Act::Write(value),
        Act::Cas { from, to, .. } => Act::Cas {
            from,
            to,
            is_done: cluster.poll::<Json>(operation).unwrap().is_ok(),
        },
    };
    let (began, ended) = cluster.span(operation).unwrap();
    Ended {
        began,
        ended: ended.unwrap(),
        act,
    }
}

#[test]
fn lin_kv_is_linearizable() {
    sim::check(0..100, |seed| {
        let history = history("lin-kv", seed);
        assert!(is_linearizable(0, &history), "{history:#?}");
    });
}

#[test]
fn the_two_others_are_not() {
    for service in ["seq-kv", "lww-kv"] {
        assert_some_seed("what is not linearizable", |seed| {
            !is_linearizable(0, &history(service, seed))
        });
    }
}

/// Returns the reads of a client after the writes of another one have ended.
fn read_after_anothers_write(service: &str, seed: u64) -> Vec<u64> {
    let mut cluster = services(seed);
    let (writer, reader) = (cluster.client(), cluster.client());
    write(&mut cluster, reader, service, "k", 0);
    (1..=10).for_each(|value| write(&mut cluster, writer, service, "k", value));
    (0..20)
        .map(|_| read(&mut cluster, reader, service, "k").unwrap())
        .collect()
}

#[test]
fn seq_kv_gives_stale_reads_that_never_go_back() {
    sim::check(0..100, |seed| {
        let seen = read_after_anothers_write("seq-kv", seed);
        assert!(seen.is_sorted(), "{seen:?}");
    });
    assert_some_seed("a stale read", |seed| {
        read_after_anothers_write("seq-kv", seed)[0] < 10
    });
}

#[test]
fn seq_kv_shows_each_client_its_own_writes() {
    sim::check(0..100, |seed| {
        let mut cluster = services(seed);
        let clients = [cluster.client(), cluster.client()];
        for value in 0..10 {
            for client in clients {
                let key = client.to_string();
                write(&mut cluster, client, "seq-kv", &key, value);
                assert_eq!(read(&mut cluster, client, "seq-kv", &key), Ok(value));
            }
        }
    });
}

#[test]
fn seq_kv_shows_changes_of_all_keys_in_one_order() {
    let is_behind = |seed| {
        let mut cluster = services(seed);
        let (writer, reader) = (cluster.client(), cluster.client());
        let mut is_behind = false;
        for value in 1..=10 {
            write(&mut cluster, writer, "seq-kv", "first", value);
            write(&mut cluster, writer, "seq-kv", "second", value);
            // The key may not exist in the state that it sees.
            let second = read(&mut cluster, reader, "seq-kv", "second").unwrap_or_default();
            let first = read(&mut cluster, reader, "seq-kv", "first").unwrap_or_default();
            assert!(first >= second, "the first is {first}, the second {second}");
            is_behind |= second < value;
        }
        is_behind
    };
    let count = RefCell::new(0);
    sim::check(0..100, |seed| {
        *count.borrow_mut() += u32::from(is_behind(seed))
    });
    assert!(
        count.into_inner() > 0,
        "no seed of a hundred shows a stale read"
    );
}

#[test]
fn seq_kv_never_loses_a_cas_although_some_fail_on_what_is_stale() {
    let failures = |seed| -> u64 {
        let mut cluster = services(seed);
        let clients = [cluster.client(), cluster.client(), cluster.client()];
        clients
            .iter()
            .for_each(|client| write(&mut cluster, *client, "seq-kv", "k", 0));
        let (mut done, mut failures) = (0, 0);
        for client in clients.into_iter().cycle().take(10_000) {
            let value = read(&mut cluster, client, "seq-kv", "k").unwrap();
            match cas(&mut cluster, client, "seq-kv", value, value + 1) {
                Ok(()) => done += 1,
                Err(code) => {
                    assert_eq!(code, ErrorCode::PreconditionFailed);
                    failures += 1;
                }
            }
            if done == 30 {
                break;
            }
        }
        assert_eq!(done, 30, "a client is never shown what is new");
        // A writer has seen all earlier changes.
        write(&mut cluster, clients[0], "seq-kv", "other", 0);
        assert_eq!(read(&mut cluster, clients[0], "seq-kv", "k"), Ok(30));
        failures
    };
    let count = RefCell::new(0);
    sim::check(0..100, |seed| *count.borrow_mut() += failures(seed));
    assert!(
        count.into_inner() > 0,
        "no cas of a hundred seeds fails on what is stale"
    );
}

#[test]
fn seq_kv_lets_a_write_of_the_same_value_take_effect_in_the_past() {
    let is_stale = |seed| {
        let mut cluster = services(seed);
        let (writer, reader) = (cluster.client(), cluster.client());
        write(&mut cluster, writer, "seq-kv", "barrier", 0);
        (1..=10).for_each(|value| write(&mut cluster, writer, "seq-kv", "k", value));
        // The reader hopes to see all changes before its own write.
        write(&mut cluster, reader, "seq-kv", "barrier", 0);
        read(&mut cluster, reader, "seq-kv", "k") != Ok(10)
    };
    assert_some_seed("a stale read after a write", is_stale);
    assert!(!(0..100).all(is_stale));
}

#[test]
fn lww_kv_comes_to_one_value_everywhere() {
    sim::check(0..100, |seed| {
        let mut cluster = services(seed);
        let client = cluster.client();
        (0..5).for_each(|value| write(&mut cluster, client, "lww-kv", "k", value));
        cluster.run_for(Duration::from_secs(1));
        let seen: Vec<_> = (0..20)
            .map(|_| read(&mut cluster, client, "lww-kv", "k"))
            .collect();
        assert!(
            seen[0].is_ok() && seen.iter().all(|value| *value == seen[0]),
            "{seen:?}"
        );
    });
}

#[test]
fn lww_kv_loses_a_later_write_for_some_seed_and_none_after_a_pause() {
    let last = |seed, pause| {
        let mut cluster = services(seed);
        let client = cluster.client();
        write(&mut cluster, client, "lww-kv", "k", 1);
        cluster.run_for(pause);
        write(&mut cluster, client, "lww-kv", "k", 2);
        cluster.run_for(Duration::from_secs(1));
        read(&mut cluster, client, "lww-kv", "k").unwrap()
    };
    assert_some_seed("a lost write", |seed| last(seed, Duration::ZERO) == 1);
    sim::check(0..100, |seed| assert_eq!(last(seed, ms(100)), 2));
}

#[test]
fn lww_kv_gives_stale_reads_that_may_go_back() {
    assert_some_seed("a read that goes back", |seed| {
        let mut cluster = services(seed);
        let client = cluster.client();
        write(&mut cluster, client, "lww-kv", "k", 1);
        cluster.run_for(Duration::from_secs(1));
        write(&mut cluster, client, "lww-kv", "k", 2);
        let seen: Vec<_> = (0..10)
            .map(|_| read(&mut cluster, client, "lww-kv", "k").unwrap())
            .collect();
        !seen.is_sorted()
    });
}

#[derive(Deserialize)]
struct Ts {
    ts: u64,
}

#[test]
fn lin_tso_gives_each_timestamp_once_and_greater_ones_later() {
    sim::check(0..100, |seed| {
        let latency = Latency::Exponential(ms(10));
        let mut cluster = Cluster::builder(numbers)
            .seed(seed)
            .latency(latency)
            .build();
        let clients = [cluster.client(), cluster.client(), cluster.client()];
        let mut asked = Vec::new();
        for index in 0..30 {
            asked.push(cluster.send(clients[index % 3], "lin-tso", "ts", &()));
            let pause = Duration::from_millis(cluster.random() % 5);
            cluster.run_for(pause);
        }
        cluster.run_for(Duration::from_secs(1));
        let given: BTreeMap<u64, (Duration, Duration)> = asked
            .into_iter()
            .map(|operation| {
                let (began, ended) = cluster.span(operation).unwrap();
                (
                    cluster.poll::<Ts>(operation).unwrap().unwrap().ts,
                    (began, ended.unwrap()),
                )
            })
            .collect();
        assert_eq!(given.len(), 30);
        for (index, (began, _)) in given.values().enumerate() {
            // No call with a greater one had ended before.
            assert!(
                given
                    .values()
                    .skip(index + 1)
                    .all(|(_, ended)| ended > began)
            );
        }
    });
}

#[derive(Serialize, Deserialize)]
struct Answers {
    answers: Vec<String>,
}

fn text(outcome: Result<impl std::fmt::Debug, Error>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("error {}", i64::from(error.code)),
    }
}

/// Runs every operation of a store.
async fn use_store(kv: Kv, pause: impl AsyncFn()) -> Vec<String> {
    let mut answers = vec![
        text(kv.read::<u64>("k").await),
        text(kv.find::<u64>("k").await),
    ];
    answers.push(text(kv.cas("k", 0, 1).await));
    answers.push(text(kv.write("k", 1).await));
    pause().await;
    answers.push(text(kv.read::<u64>("k").await));
    answers.push(text(kv.find::<u64>("k").await));
    answers.push(text(kv.cas("k", 5, 6).await));
    answers.push(text(kv.cas("k", 1, json!(["any", "value"])).await));
    pause().await;
    answers.push(text(kv.read::<u64>("k").await));
    answers.push(text(kv.read::<(String, String)>("k").await));
    answers.push(text(kv.cas_or_create(("a", 1), 0, 3).await));
    pause().await;
    answers.push(text(kv.cas_or_create(("a", 1), 0, 3).await));
    answers
}

fn user(node: &Node<()>) {
    node.answer_within(Duration::from_secs(60));
    node.handle("try", async |node, _: Request<Json>| {
        let retry = Retry {
            attempts: 40,
            ..Retry::default()
        };
        node.lin_kv().retry(retry).write("k", 1).await?;
        let answers = vec![text(node.lin_kv().retry(retry).read::<u64>("k").await)];
        node.lin_tso().retry(retry).timestamp().await?;
        Ok(Answers { answers })
    });
    node.handle(
        "use",
        async |node, request: Request<BTreeMap<String, Json>>| {
            let service: String = request.body["service"].parse().unwrap();
            let kv = match &*service {
                "lin-kv" => node.lin_kv(),
                "seq-kv" => node.seq_kv(),
                _ => node.lww_kv(),
            };
            let answers =
                use_store(kv, async || node.sleep(Duration::from_millis(1100)).await).await;
            Ok(Answers { answers })
        },
    );
    node.handle("create", async |node, _: Request<()>| {
        let kv = node.lin_kv();
        let mut answers = vec![text(kv.create("k", 1).await), text(kv.create("k", 2).await)];
        let double = |value: Option<u64>| Ok(value.unwrap_or(7) * 2);
        answers.push(text(kv.update("k", double).await));
        answers.push(text(kv.update("other", double).await));
        Ok(Answers { answers })
    });
    node.handle("wait", async |node, _: Request<()>| {
        let begun = node.now();
        let read = node.lin_kv().timeout(ms(50)).read::<u64>("k").await;
        let waited = node.now() - begun;
        let answers = vec![text(read), format!("{waited:?}")];
        Ok(Answers { answers })
    });
    node.handle("timestamps", async |node, _: Request<Json>| {
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(text(node.lin_tso().timestamp().await));
        }
        Ok(Answers { answers })
    });
}

#[test]
fn a_node_uses_the_stores_through_their_clients() {
    for service in ["lin-kv", "seq-kv", "lww-kv"] {
        let mut cluster = Cluster::builder(user)
            .client_timeout(Duration::from_secs(10))
            .build();
        let client = cluster.client();
        let Answers { answers } = cluster
            .call(client, "n1", "use", &json!({ "service": service }))
            .unwrap();
        let expected = [
            "error 20",
            "None",
            "error 20",
            "()",
            "1",
            "Some(1)",
            "error 22",
            "()",
            "error 13",
            "(\"any\", \"value\")",
        ];
        assert_eq!(answers[..10], expected, "{service}");
        let created = if service == "lww-kv" {
            ["error 20", "error 20"]
        } else {
            ["()", "error 22"]
        };
        assert_eq!(answers[10..], created, "{service}");
    }
}

#[test]
fn a_client_of_a_service_retries_if_configured() {
    sim::check(0..20, |seed| {
        let builder = Cluster::builder(user)
            .seed(seed)
            .loss(0.4)
            .reach(Reach::Services);
        let mut cluster = builder.client_timeout(Duration::from_secs(60)).build();
        let client = cluster.client();
        let Answers { answers } = cluster.call(client, "n1", "try", &()).unwrap();
        assert_eq!(answers, ["1"]);
        assert_eq!(cluster.pending("n1"), 0);
    });
}

#[test]
fn a_key_is_created_once_and_updated_from_its_value() {
    let mut cluster = Cluster::builder(user).build();
    let client = cluster.client();
    let Answers { answers } = cluster.call(client, "n1", "create", &()).unwrap();
    assert_eq!(answers, ["()", "error 21", "2", "14"]);
}

#[test]
fn a_client_of_a_service_waits_for_its_timeout() {
    let mut cluster = Cluster::builder(user).build();
    let client = cluster.client();
    cluster.apply(Event::block(&["lin-kv"], &["n1"]));
    let Answers { answers } = cluster.call(client, "n1", "wait", &()).unwrap();
    assert_eq!(answers, ["error 0", "50ms"]);
}

#[test]
fn a_node_gets_timestamps_that_rise() {
    let mut cluster = Cluster::builder(user).build();
    let client = cluster.client();
    let Answers { answers } = cluster.call(client, "n1", "timestamps", &()).unwrap();
    assert_eq!(answers, ["0", "1", "2"]);
}
