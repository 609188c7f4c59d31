//! Transactions as both transaction workloads send them, and their history under
//! faults. The checkers of the two have the rules.

use std::time::Duration;

use hark_node::Node;
use hark_node::sim::Cluster;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::graph::below;
use super::storm::Storm;

const KEYS: u64 = 4;

/// A function, a key and a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Op(pub(super) String, pub(super) i64, pub(super) Value);

#[derive(Debug, Deserialize)]
struct TxnOk {
    txn: Vec<Op>,
}

/// A transaction that has happened, or may have.
#[derive(Debug)]
pub(super) struct Txn {
    pub(super) began: Duration,
    /// `None` if it is unknown whether it has happened; its reads are unknown.
    pub(super) ended: Option<Duration>,
    pub(super) ops: Vec<Op>,
}

/// A transaction of one to four reads and writes, of which the latter have this
/// name; each written value is unique.
fn request(write: &str, number: i64) -> Vec<Op> {
    let count = u64::try_from(1 + below(4, number, 0)).unwrap();
    (1..=count)
        .map(|counter| {
            let key = below(KEYS, number, counter * 2);
            if below(2, number, counter * 2 + 1) == 0 {
                Op("r".into(), key, Value::Null)
            } else {
                Op(
                    write.into(),
                    key,
                    json!(number * 10 + i64::try_from(counter).unwrap()),
                )
            }
        })
        .collect()
}

/// The transactions of a run, and how many were answered and asked.
pub(super) struct History {
    /// Those that certainly have not happened are left out. The last ones read
    /// all keys, one on each node.
    pub(super) txns: Vec<Txn>,
    /// Prints its chart if a checker fails.
    pub(super) cluster: Cluster,
    pub(super) answered: usize,
    pub(super) asked: usize,
}

/// Runs transactions under faults.
pub(super) fn run<S: Default + 'static>(
    program: fn(&Node<S>),
    write: &'static str,
    seed: u64,
) -> History {
    let mut storm = Storm::new(program, seed);
    let operations = storm.ask(|number| ("txn", json!({ "txn": request(write, number) })));
    let answered = storm.answered(&operations).len();
    let mut txns = Vec::new();
    for (number, operation) in (0..).zip(&operations) {
        let (began, ended) = storm.cluster.span(*operation).unwrap();
        match storm.cluster.poll::<TxnOk>(*operation) {
            Some(Ok(TxnOk { txn })) => txns.push(Txn {
                began,
                ended,
                ops: txn,
            }),
            Some(Err(error)) if error.code.is_definite() => {}
            _ => txns.push(Txn {
                began,
                ended: None,
                ops: request(write, number),
            }),
        }
    }
    let all: Vec<_> = (0..i64::try_from(KEYS).unwrap())
        .map(|key| json!(["r", key, null]))
        .collect();
    for node in storm.cluster.node_ids() {
        let client = storm.cluster.client();
        let began = storm.cluster.now();
        let read: TxnOk = storm
            .cluster
            .call(client, &node, "txn", &json!({ "txn": all }))
            .unwrap();
        txns.push(Txn {
            began,
            ended: Some(storm.cluster.now()),
            ops: read.txn,
        });
    }
    History {
        txns,
        cluster: storm.cluster,
        answered,
        asked: operations.len(),
    }
}

/// A transaction from one second to another.
pub(super) fn txn(began: u64, ended: u64, ops: &Value) -> Txn {
    let seconds = Duration::from_secs;
    let ops = serde_json::from_value(ops.clone()).unwrap();
    Txn {
        began: seconds(began),
        ended: Some(seconds(ended)),
        ops,
    }
}
