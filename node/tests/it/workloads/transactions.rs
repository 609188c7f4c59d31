//! `txn-rw-register`: transactions over registers are read committed, and every
//! node that is up executes them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hark_node::sim;
use serde_json::json;

use super::graph::Graph;
use super::txn::{self, Op, Txn, txn};
use super::txn_rw_register;

pub(super) fn registers_are_read_committed(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let run = txn::run(txn_rw_register::program, "w", seed);
        // A node is down for 2 s of 30.
        assert!(
            run.answered > run.asked * 9 / 10,
            "{} of {} were answered",
            run.answered,
            run.asked
        );
        let last = run.txns.iter().rev().take(run.cluster.node_ids().len());
        let last: BTreeSet<_> = last.map(|txn| json!(txn.ops).to_string()).collect();
        assert_eq!(last.len(), 1, "the nodes do not agree: {last:?}");
        check(&run.txns);
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
            let is_last = !txn.ops[step + 1..]
                .iter()
                .any(|op| op.0 == "w" && op.1 == *key);
            writers.insert((*key, value.as_i64().unwrap()), (place, is_last));
        }
    }
    let mut graph = Graph::new(history.len());
    for (place, txn) in history
        .iter()
        .enumerate()
        .filter(|(_, txn)| txn.ended.is_some())
    {
        // What the transaction itself has written, or read, last.
        let (mut written, mut seen) = (BTreeMap::new(), BTreeMap::new());
        for Op(function, key, value) in &txn.ops {
            if function == "w" {
                if let Some(before) = seen.get(key) {
                    graph.add(*before, place);
                }
                written.insert(*key, value.clone());
            } else if let Some(own) = written.get(key) {
                assert_eq!(
                    own, value,
                    "a transaction does not see its own write: {txn:?}"
                );
            } else if let Some(value) = value.as_i64() {
                let (writer, is_last) = *writers
                    .get(&(*key, value))
                    .expect("a value that was never written");
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
        cycle
            .iter()
            .map(|place| &history[*place])
            .collect::<Vec<_>>()
    );
}

#[test]
fn read_committed_registers_pass() {
    check(&[
        txn(0, 1, &json!([["w", 1, 1], ["w", 1, 2], ["r", 1, 2]])),
        txn(0, 1, &json!([["r", 1, null], ["r", 2, 3]])),
        txn(0, 1, &json!([["r", 1, 2], ["w", 1, 4], ["w", 2, 3]])),
    ]);
}

#[test]
#[should_panic(expected = "the middle of a transaction")]
fn intermediate_reads_are_found() {
    check(&[
        txn(0, 1, &json!([["w", 1, 1], ["w", 1, 2]])),
        txn(0, 1, &json!([["r", 1, 1]])),
    ]);
}

#[test]
#[should_panic(expected = "no order")]
fn circular_information_is_found() {
    check(&[
        txn(0, 1, &json!([["w", 1, 1], ["r", 2, 2]])),
        txn(0, 1, &json!([["w", 2, 2], ["r", 1, 1]])),
    ]);
}

#[test]
#[should_panic(expected = "a value that was never written")]
fn invented_values_are_found() {
    check(&[txn(0, 1, &json!([["r", 1, 1]]))]);
}
