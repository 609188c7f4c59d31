//! States that merge. They know no nodes and no messages.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that merges with other versions of itself, with the same result in
/// any order and any number of times (a join-semilattice). Sets and maps merge;
/// two maps merge the values of each key. Keys of a map are strings in JSON.
///
/// ```
/// # use hark_node::gossip::Merge;
/// # use serde::{Deserialize, Serialize};
/// /// A count that only grows: of two versions the greater one is the later.
/// #[derive(Clone, Serialize, Deserialize, PartialEq, Debug)]
/// struct Count(u64);
///
/// impl Merge for Count {
///     fn merge_with(&mut self, other: Self) -> Option<Self> {
///         (other.0 > self.0).then(|| {
///             *self = other;
///             self.clone()
///         })
///     }
/// }
///
/// let mut count = Count(3);
/// assert_eq!((count.merge_with(Count(2)), count.merge_with(Count(5))), (None, Some(Count(5))));
/// ```
pub trait Merge: Clone + Serialize + DeserializeOwned + 'static {
    /// Merges another version into this one. Returns the part of the other that
    /// was new; `None` if none was.
    fn merge_with(&mut self, other: Self) -> Option<Self>;
}

impl<T: Ord + Clone + Serialize + DeserializeOwned + 'static> Merge for BTreeSet<T> {
    fn merge_with(&mut self, other: Self) -> Option<Self> {
        let new: Self = other
            .into_iter()
            .filter(|element| self.insert(element.clone()))
            .collect();
        Some(new).filter(|new| !new.is_empty())
    }
}

impl<K: Ord + Clone + Serialize + DeserializeOwned + 'static, V: Merge> Merge for BTreeMap<K, V> {
    fn merge_with(&mut self, other: Self) -> Option<Self> {
        let mut new = Self::new();
        for (key, value) in other {
            let merged = match self.entry(key.clone()) {
                Entry::Vacant(vacant) => Some(vacant.insert(value).clone()),
                Entry::Occupied(mut own) => own.get_mut().merge_with(value),
            };
            new.extend(merged.map(|merged| (key, merged)));
        }
        Some(new).filter(|new| !new.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(elements: impl IntoIterator<Item = u8>) -> BTreeSet<u8> {
        elements.into_iter().collect()
    }

    #[test]
    fn a_merge_returns_the_new_part_alone() {
        let mut own = set([1, 2]);
        assert_eq!(own.merge_with(set([2, 3])), Some(set([3])));
        assert_eq!((own.merge_with(set([1, 3])), &own), (None, &set([1, 2, 3])));
    }

    #[test]
    fn maps_merge_the_values_of_each_key() {
        let mut own = BTreeMap::from(
            [("a", set([1])), ("b", set([2]))].map(|(key, set)| (key.to_owned(), set)),
        );
        let other = [("a", set([1])), ("b", set([2, 3])), ("c", set([4]))];
        let new = own.merge_with(
            other
                .map(|(key, set)| (key.to_owned(), set))
                .into_iter()
                .collect(),
        );
        let expected = [("b", set([3])), ("c", set([4]))].map(|(key, set)| (key.to_owned(), set));
        assert_eq!(new, Some(BTreeMap::from(expected)));
        assert_eq!(own.values().map(BTreeSet::len).sum::<usize>(), 4);
    }
}
