//! `txn-list-append`: transactions over lists are strict serializable.
//!
//! The checker works as Elle does: the longest read of a list shows the order
//! of its appends, and so which transaction comes before which.

use std::collections::BTreeMap;
use std::ops::Range;

use hark_node::sim;
use serde_json::json;

use super::graph::Graph;
use super::txn::{self, Txn, txn};
use super::txn_list_append;

impl Txn {
    fn appends(&self) -> impl Iterator<Item = (i64, i64)> {
        let appends = self.ops.iter().filter(|op| op.0 == "append");
        appends.map(|op| (op.1, op.2.as_i64().unwrap()))
    }

    /// The lists that were read before the transaction's own appends to them.
    fn reads(&self) -> Vec<(i64, Vec<i64>)> {
        let mut reads = Vec::new();
        for (place, op) in self.ops.iter().enumerate().filter(|(_, op)| op.0 == "r") {
            let own: Vec<i64> = self.ops[..place]
                .iter()
                .filter(|earlier| earlier.0 == "append" && earlier.1 == op.1)
                .map(|earlier| earlier.2.as_i64().unwrap())
                .collect();
            let mut list: Vec<i64> = serde_json::from_value::<Option<_>>(op.2.clone())
                .unwrap()
                .unwrap_or_default();
            assert!(
                list.ends_with(&own),
                "a read lacks the transaction's own appends: {self:?}"
            );
            list.truncate(list.len() - own.len());
            reads.push((op.1, list));
        }
        reads
    }
}

pub(super) fn lists_are_strict_serializable(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        check(&txn::run(txn_list_append::program, "append", seed).txns)
    });
}

/// Panics unless a history is strict serializable. Its last transaction reads
/// all lists.
#[track_caller]
fn check(history: &[Txn]) {
    let lists: BTreeMap<i64, Vec<i64>> = history.last().unwrap().reads().into_iter().collect();
    let owners: BTreeMap<(i64, i64), usize> = (0..)
        .zip(history)
        .flat_map(|(place, txn)| txn.appends().map(move |append| (append, place)))
        .collect();
    let mut graph = Graph::new(history.len());
    for (key, list) in &lists {
        let owner = |value: &i64| {
            *owners
                .get(&(*key, *value))
                .expect("a value that was refused or never sent")
        };
        list.windows(2)
            .for_each(|pair| graph.add(owner(&pair[0]), owner(&pair[1])));
        let mut unique = list.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(
            unique.len(),
            list.len(),
            "a value is in list {key} twice: {list:?}"
        );
    }
    for (place, txn) in history.iter().enumerate() {
        let Some(ended) = txn.ended else { continue };
        let is_there =
            |(key, value): &(i64, i64)| lists.get(key).is_some_and(|list| list.contains(value));
        assert!(
            txn.appends().all(|append| is_there(&append)),
            "an append is lost: {txn:?}"
        );
        for (key, read) in txn.reads() {
            let list = lists.get(&key).map_or(&[][..], Vec::as_slice);
            assert!(
                list.starts_with(&read),
                "{read:?} is not the beginning of {list:?}"
            );
            if let Some(last) = read.last() {
                graph.add(owners[&(key, *last)], place);
            }
            if let Some(next) = list.get(read.len()) {
                let owner = owners[&(key, *next)];
                graph.add(place, owner);
                let is_torn = read
                    .last()
                    .is_some_and(|last| owners[&(key, *last)] == owner);
                assert!(
                    !is_torn || owner == place,
                    "a read sees a part of a transaction: {txn:?}"
                );
            }
        }
        for (later, other) in history.iter().enumerate() {
            if ended < other.began {
                graph.add(place, later);
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
fn serial_lists_pass() {
    check(&[
        txn(0, 1, &json!([["append", 1, 1], ["r", 1, [1]]])),
        txn(
            0,
            3,
            &json!([["r", 1, [1]], ["append", 1, 2], ["r", 2, null]]),
        ),
        txn(4, 5, &json!([["r", 1, [1, 2]], ["r", 2, null]])),
    ]);
}

#[test]
#[should_panic(expected = "no order")]
fn stale_reads_of_lists_are_found() {
    check(&[
        txn(0, 1, &json!([["append", 1, 1]])),
        txn(2, 3, &json!([["r", 1, null]])),
        txn(4, 5, &json!([["r", 1, [1]]])),
    ]);
}

#[test]
#[should_panic(expected = "no order")]
fn write_skew_is_found() {
    check(&[
        txn(0, 9, &json!([["r", 1, null], ["append", 2, 1]])),
        txn(0, 9, &json!([["r", 2, null], ["append", 1, 2]])),
        txn(10, 11, &json!([["r", 1, [2]], ["r", 2, [1]]])),
    ]);
}

#[test]
#[should_panic(expected = "a part of a transaction")]
fn half_of_a_transaction_is_found() {
    check(&[
        txn(0, 9, &json!([["append", 1, 1], ["append", 1, 2]])),
        txn(0, 9, &json!([["r", 1, [1]]])),
        txn(10, 11, &json!([["r", 1, [1, 2]]])),
    ]);
}

#[test]
#[should_panic(expected = "an append is lost")]
fn lost_appends_are_found() {
    check(&[
        txn(0, 1, &json!([["append", 1, 1]])),
        txn(2, 3, &json!([["r", 1, null]])),
    ]);
}

#[test]
#[should_panic(expected = "twice")]
fn doubled_appends_are_found() {
    check(&[
        txn(0, 1, &json!([["append", 1, 1]])),
        txn(2, 3, &json!([["r", 1, [1, 1]]])),
    ]);
}
