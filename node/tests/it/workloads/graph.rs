//! Dependencies between transactions, which must not form a cycle.

use std::collections::BTreeSet;

/// A graph of transactions, by their places in the history.
pub(crate) struct Graph(Vec<BTreeSet<usize>>);

impl Graph {
    pub(crate) fn new(transactions: usize) -> Self {
        Self(vec![BTreeSet::new(); transactions])
    }

    /// The first transaction comes before the second.
    pub(crate) fn add(&mut self, before: usize, after: usize) {
        if before != after {
            self.0[before].insert(after);
        }
    }

    /// Returns the transactions that are on a cycle or after one; none, if
    /// there is an order that all dependencies agree with.
    pub(crate) fn without_order(&self) -> Vec<usize> {
        let mut before = vec![0; self.0.len()];
        self.0
            .iter()
            .flatten()
            .for_each(|after| before[*after] += 1);
        let mut free: Vec<_> = (0..before.len())
            .filter(|place| before[*place] == 0)
            .collect();
        while let Some(place) = free.pop() {
            for after in &self.0[place] {
                before[*after] -= 1;
                if before[*after] == 0 {
                    free.push(*after);
                }
            }
        }
        (0..before.len())
            .filter(|place| before[*place] > 0)
            .collect()
    }
}

/// A random number that depends on a request's number and a counter alone.
pub(crate) fn mix(number: i64, counter: u64) -> u64 {
    let mut mixed = u64::try_from(number)
        .unwrap()
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(counter);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// As [`mix`], below a bound.
pub(crate) fn below(bound: u64, number: i64, counter: u64) -> i64 {
    i64::try_from(mix(number, counter) % bound).unwrap()
}
