//! Registers under faults: clients read, write and compare, while the nodes of
//! a cluster are split, crash and lose messages; then the history of each key
//! is checked for linearizability.

use std::collections::BTreeMap;
use std::time::Duration;

use hark_node::raft::Settings;
use hark_node::sim::{Client, Cluster, Event, Invocation, Latency, Operation, is_linearizable};
use hark_node::{Error, ErrorCode, Json, Node};
use serde::Deserialize;
use serde_json::json;

/// Requests, and the pause between two.
const REQUESTS: u64 = 150;
const PAUSE: Duration = Duration::from_millis(50);

/// The quiet time before the last requests.
const SETTLE: Duration = Duration::from_millis(1500);

/// The mean pause between two faults.
const FAULT_PAUSE_MS: u64 = 1000;

const KEYS: u64 = 3;

/// Values are from 0 up to this one, so that compare-and-sets succeed.
const VALUES: u64 = 4;

/// Short times and small batches, so that a short run sees much: elections,
/// snapshots, and followers that are many messages behind.
pub(crate) const SETTINGS: Settings = Settings {
    heartbeat: Duration::from_millis(100),
    election_timeout: Duration::from_millis(400),
    request_timeout: Duration::from_secs(1),
    snapshot_after: 20,
    batch_max: 3,
};

/// A request with its result.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    Read(Option<u64>),
    Write(u64),
    Cas { from: u64, to: u64, is_done: bool },
}

/// A request.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Read,
    Write(u64),
    Cas(u64, u64),
}

#[derive(Deserialize)]
struct Value {
    value: u64,
}

/// A run of a cluster.
pub(crate) struct Run {
    pub(crate) cluster: Cluster,
    client: Client,
    asked: Vec<(u64, Asked, Operation)>,
}

impl Run {
    /// Three or five nodes.
    pub(crate) fn new(program: impl Fn(&Node<()>) + 'static, seed: u64) -> Self {
        let mut cluster = Cluster::builder(program)
            .nodes(if seed.is_multiple_of(2) { 3 } else { 5 })
            .seed(seed)
            .latency(Latency::Exponential(Duration::from_millis(5)))
            .loss(0.05)
            .duplication(0.05)
            .reordering(0.2)
            .build();
        let client = cluster.client();
        Self {
            cluster,
            client,
            asked: Vec::new(),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.cluster.random() % bound
    }

    fn any_node(&mut self) -> String {
        let nodes = self.cluster.node_ids();
        let place = usize::try_from(self.below(u64::try_from(nodes.len()).unwrap())).unwrap();
        nodes[place].clone()
    }

    /// Asks any node for anything.
    fn ask(&mut self) {
        let (node, key) = (self.any_node(), self.below(KEYS));
        let (value, other) = (self.below(VALUES), self.below(VALUES));
        let (asked, kind, fields) = match self.below(3) {
            0 => (Asked::Read, "read", json!({ "key": key })),
            1 => (
                Asked::Write(value),
                "write",
                json!({ "key": key, "value": value }),
            ),
            _ => (
                Asked::Cas(value, other),
                "cas",
                json!({ "key": key, "from": value, "to": other }),
            ),
        };
        let operation = self.cluster.send(self.client, &node, kind, &fields);
        self.asked.push((key, asked, operation));
    }

    /// Plans a fault now and then, each of which ends; up to half of the nodes
    /// may be down at once, and a split may last while they are.
    fn plan_faults(&mut self, until: Duration) {
        let mut at = Duration::from_millis(500 + self.below(1000));
        while at < until {
            let end = at + Duration::from_millis(100 + self.below(1500));
            let node = self.any_node();
            let (begin, end_event) = match self.below(4) {
                0 => (Event::Split, Event::Heal),
                1 => (Event::isolate(node), Event::Heal),
                _ => (Event::crash(node.clone()), Event::restart(node)),
            };
            self.cluster.at(at, begin);
            self.cluster.at(end, end_event);
            at += Duration::from_millis(self.below(2 * FAULT_PAUSE_MS));
        }
    }

    /// Lets everything happen, and waits until the last request has ended.
    pub(crate) fn storm(&mut self) {
        let requests = u32::try_from(REQUESTS).unwrap();
        self.plan_faults(PAUSE * requests);
        for _ in 0..REQUESTS {
            self.ask();
            self.cluster.run_for(PAUSE);
        }
        self.cluster.apply(Event::Calm);
        self.cluster.run_for(SETTLE);
        for _ in 0..KEYS * 3 {
            self.ask();
            self.cluster.run_for(PAUSE);
        }
        self.cluster.run_for(SETTINGS.request_timeout);
    }

    /// The histories of all keys, without requests that certainly had no effect.
    fn histories(&self) -> BTreeMap<u64, Vec<Invocation<Act>>> {
        let mut histories = BTreeMap::<u64, Vec<_>>::new();
        for (key, asked, operation) in &self.asked {
            let (began, ended) = self.cluster.span(*operation).unwrap();
            let is_open = || Err(Error::new(ErrorCode::Timeout, "no reply yet"));
            let end = self
                .cluster
                .poll::<Json>(*operation)
                .unwrap_or_else(is_open);
            if let Some((operation, is_known)) = act(*asked, end) {
                let ended = ended.filter(|_| is_known);
                histories.entry(*key).or_default().push(Invocation {
                    began,
                    ended,
                    operation,
                });
            }
        }
        histories
    }

    /// Returns the numbers of decided and of all requests.
    pub(crate) fn decided(&self) -> (usize, usize) {
        let is_decided = |operation: &Operation| match self.cluster.poll::<Json>(*operation) {
            Some(Ok(_)) => true,
            Some(Err(error)) => {
                matches!(
                    error.code,
                    ErrorCode::KeyDoesNotExist | ErrorCode::PreconditionFailed
                )
            }
            None => false,
        };
        (
            self.asked
                .iter()
                .filter(|(_, _, operation)| is_decided(operation))
                .count(),
            self.asked.len(),
        )
    }

    #[track_caller]
    pub(crate) fn assert_linearizable(&self) {
        for (key, history) in self.histories() {
            assert!(
                is_linearizable(None, &history, step),
                "key {key} is not linearizable: {history:#?}"
            );
        }
    }
}

/// Returns the effect of a request, and whether it is certain; `None` if the
/// request certainly had no effect.
fn act(asked: Asked, end: Result<Json, Error>) -> Option<(Act, bool)> {
    match (asked, end) {
        (Asked::Read, Ok(body)) => {
            Some((Act::Read(Some(body.parse::<Value>().unwrap().value)), true))
        }
        (Asked::Read, Err(error)) if error.code == ErrorCode::KeyDoesNotExist => {
            Some((Act::Read(None), true))
        }
        (Asked::Read, Err(_)) => None,
        (Asked::Write(value), end) => {
            let is_possible = end
                .as_ref()
                .err()
                .is_none_or(|error| !error.code.is_definite());
            is_possible.then_some((Act::Write(value), end.is_ok()))
        }
        (Asked::Cas(from, to), Ok(_)) => Some((
            Act::Cas {
                from,
                to,
                is_done: true,
            },
            true,
        )),
        (Asked::Cas(from, to), Err(error)) => match error.code {
            ErrorCode::KeyDoesNotExist | ErrorCode::PreconditionFailed => Some((
                Act::Cas {
                    from,
                    to,
                    is_done: false,
                },
                true,
            )),
            code => (!code.is_definite()).then_some((
                Act::Cas {
                    from,
                    to,
                    is_done: true,
                },
                false,
            )),
        },
    }
}

fn step(value: &Option<u64>, act: &Act) -> Option<Option<u64>> {
    match *act {
        Act::Read(read) => (read == *value).then_some(*value),
        Act::Write(value) => Some(Some(value)),
        Act::Cas {
            from,
            to,
            is_done: true,
        } => (*value == Some(from)).then_some(Some(to)),
        Act::Cas {
            from,
            is_done: false,
            ..
        } => (*value != Some(from)).then_some(*value),
    }
}

/// One run, which is linearizable, and in which at least a quarter was decided.
pub(crate) fn check(program: impl Fn(&Node<()>) + 'static, seed: u64) {
    let mut run = Run::new(program, seed);
    run.storm();
    run.assert_linearizable();
    let (decided, asked) = run.decided();
    assert!(
        decided > asked / 4,
        "only {decided} of {asked} were decided"
    );
}
