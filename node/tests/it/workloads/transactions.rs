//! `txn-rw-register`: transactions over registers are read committed, and every
//! node that is up executes them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hark_node::sim;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::graph::{Graph, below};
use super::storm::Storm;
use super::txn_rw_register;

const KEYS: u64 = 4;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Op(String, i64, Value);

#[derive(Debug, Deserialize)]
struct TxnOk {
    txn: Vec<Op>,
}

/// The operations of a transaction that has happened, or may have; of the
/// latter the reads are unknown.
#[derive(Debug)]
struct Txn {
    is_known: bool,
    ops: Vec<Op>,
}

/// A transaction of one to four operations; each written value is unique.
fn request(number: i64) -> Vec<Op> {
    let count = u64::try_from(1 + below(4, number, 0)).unwrap();
    (1..=count)
        .map(|counter| {
            let key = below(KEYS, number, counter * 2);
            if below(2, number, counter * 2 + 1) == 0 {
                Op("r".into(), key, Value::Null)
            } else {
                Op("w".into(), key, json!(number * 10 + i64::try_from(counter).unwrap()))
            }
        })
        .collect()
}

pub(super) fn registers_are_read_committed(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(txn_rw_register::program, seed);
        let operations = storm.ask(|number| ("txn", json!({ "txn": request(number) })));
        let answered = storm.answered(&operations);
        // A node is down for 2 s of 30.
        assert!(answered.len() > operations.len() * 9 / 10, "{} were answered", answered.len());
        let mut history = Vec::new();
        for (number, operation) in (0..).zip(&operations) {
            match storm.cluster.poll::<TxnOk>(*operation) {
                Some(Ok(TxnOk { txn })) => history.push(Txn { is_known: true, ops: txn }),
                Some(Err(error)) if error.code.is_definite() => {}
                _ => history.push(Txn { is_known: false, ops: request(number) }),
            }
        }
        let all: Vec<_> = (0..i64::try_from(KEYS).unwrap()).map(|key| json!(["r", key, null])).collect();
        let mut last = BTreeSet::new();
        for node in storm.cluster.node_ids() {
            let client = storm.cluster.client();
            let read: TxnOk = storm.cluster.call(client, &node, "txn", &json!({ "txn": all })).unwrap();
            last.insert(json!(read.txn).to_string());
            history.push(Txn { is_known: true, ops: read.txn });
        }
        assert_eq!(last.len(), 1, "the nodes do not agree: {last:?}");
        check(&history);
    });
}

/// Panics unless a history is read committed: no read of a value that was not
/// written or is not the last one of its transaction, and no cycle of writes
/// and reads.
#[track_caller]
fn check(history: &[Txn]) {
    // The transaction of each value, and whether it is its last to the key.
    let mut writers = BTreeMap::new();
    for (place, txn) in history.iter().enumerate() {
        for (step, Op(_, key, value)) in txn.ops.iter().enumerate().filter(|(_, op)| op.0 == "w") {
            let is_last = !txn.ops[step + 1..].iter().any(|op| op.0 == "w" && op.1 == *key);
            writers.insert((*key, value.as_i64().unwrap()), (place, is_last));
        }
    }
    let mut graph = Graph::new(history.len());
    for (place, txn) in history.iter().enumerate().filter(|(_, txn)| txn.is_known) {
        // What the transaction itself has written, or read, last.
        let (mut written, mut seen) = (BTreeMap::new(), BTreeMap::new());
        for Op(function, key, value) in &txn.ops {
            if function == "w" {
                if let Some(before) = seen.get(key) {
                    graph.add(*before, place);
                }
                written.insert(*key, value.clone());
            } else if let Some(own) = written.get(key) {
                assert_eq!(own, value, "a transaction does not see its own write: {txn:?}");
            } else if let Some(value) = value.as_i64() {
                let (writer, is_last) = *writers.get(&(*key, value)).expect("a value that nobody wrote");
                assert!(is_last, "a read sees the middle of a transaction: {txn:?}");
                graph.add(writer, place);
                seen.insert(*key, writer);
            }
        }
    }
    let cycle = graph.without_order();
    assert!(
        cycle.is_empty(),
        "no order: {:#?}",
        cycle.iter().map(|place| &history[*place]).collect::<Vec<_>>()
    );
}

fn txn(ops: &Value) -> Txn {
    Txn { is_known: true, ops: serde_json::from_value(ops.clone()).unwrap() }
}

#[test]
fn read_committed_registers_pass() {
    check(&[
        txn(&json!([["w", 1, 1], ["w", 1, 2], ["r", 1, 2]])),
        txn(&json!([["r", 1, null], ["r", 2, 3]])),
        txn(&json!([["r", 1, 2], ["w", 1, 4], ["w", 2, 3]])),
    ]);
}

#[test]
#[should_panic(expected = "the middle of a transaction")]
fn intermediate_reads_are_found() {
    check(&[txn(&json!([["w", 1, 1], ["w", 1, 2]])), txn(&json!([["r", 1, 1]]))]);
}

#[test]
#[should_panic(expected = "no order")]
fn circular_information_is_found() {
    check(&[txn(&json!([["w", 1, 1], ["r", 2, 2]])), txn(&json!([["w", 2, 2], ["r", 1, 1]]))]);
}

#[test]
#[should_panic(expected = "a value that nobody wrote")]
fn invented_values_are_found() {
    check(&[txn(&json!([["r", 1, 1]]))]);
}
