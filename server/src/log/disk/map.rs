//! A map from inboxes to short byte strings in two allocations, regardless of their
//! number. It does not know the meaning of the strings.

use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::HashTable;

use super::varint;
use crate::log::InboxId;
use crate::log::hash::IdHasher;

/// Unused bytes that a map always keeps.
const SPARE_BYTES: usize = 4 << 10;
/// The fraction of the arena that may be unused, and by which it grows.
const SPARE_DIVISOR: usize = 8;

/// A map from inboxes to byte strings. It holds less than 4 GiB.
#[derive(Debug, Default)]
pub(super) struct ByteMap {
    /// The offset of each inbox's entry in the arena.
    offsets: HashTable<u32>,
    /// Entries, and unused bytes between them: the inbox, the length of the string,
    /// and the string.
    arena: Vec<u8>,
    unused: usize,
}

impl ByteMap {
    /// Returns the string of an inbox.
    pub(super) fn get(&self, inbox: InboxId) -> Option<&[u8]> {
        let offset = self.offsets.find(hash(inbox), |&offset| {
            inbox_at(&self.arena, offset) == inbox
        })?;
        self.arena.get(string_at(&self.arena, *offset))
    }

    /// Sets the string of an inbox.
    pub(super) fn set(&mut self, inbox: InboxId, string: &[u8]) {
        let Self {
            offsets,
            arena,
            unused,
        } = self;
        let end = arena.len();
        append(arena, inbox, string);
        let found = offsets.find_mut(hash(inbox), |&offset| inbox_at(arena, offset) == inbox);
        let Some(offset) = found else {
            offsets.insert_unique(hash(inbox), to_offset(end), |&offset| {
                hash(inbox_at(arena, offset))
            });
            return;
        };
        let (begin, before) = (
            *offset as usize,
            string_at(arena, *offset).end - *offset as usize,
        );
        let length = arena.len() - end;
        if length <= before {
            arena.copy_within(end.., begin);
            arena.truncate(end);
            *unused += before - length;
        } else {
            *offset = to_offset(end);
            *unused += before;
        }
        self.reclaim();
    }

    /// Removes an inbox.
    pub(super) fn remove(&mut self, inbox: InboxId) {
        let Self {
            offsets,
            arena,
            unused,
        } = self;
        let found = offsets.find_entry(hash(inbox), |&offset| inbox_at(arena, offset) == inbox);
        let Ok(found) = found else { return };
        let (offset, _) = found.remove();
        *unused += string_at(arena, offset).end - offset as usize;
        self.reclaim();
    }

    /// Returns every inbox, in any order.
    pub(super) fn inboxes(&self) -> impl Iterator<Item = InboxId> {
        self.offsets
            .iter()
            .map(|&offset| inbox_at(&self.arena, offset))
    }

    /// Returns the memory of the map.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        self.arena.capacity() + self.offsets.allocation_size()
    }

    /// Gives back unused memory if there is much of it.
    fn reclaim(&mut self) {
        if self.unused <= SPARE_BYTES.max(self.arena.len() / SPARE_DIVISOR) {
            return;
        }
        let mut arena = Vec::with_capacity(self.arena.len() - self.unused);
        for offset in self.offsets.iter_mut() {
            let entry = *offset as usize..string_at(&self.arena, *offset).end;
            *offset = to_offset(arena.len());
            arena.extend_from_slice(self.arena.get(entry).unwrap_or_default());
        }
        (self.arena, self.unused) = (arena, 0);
        if self.offsets.len() < self.offsets.capacity() / 4 {
            let arena = &self.arena;
            self.offsets.shrink_to(2 * self.offsets.len(), |&offset| {
                hash(inbox_at(arena, offset))
            });
        }
    }
}

fn hash(inbox: InboxId) -> u64 {
    IdHasher::default().hash_one(inbox)
}

fn to_offset(length: usize) -> u32 {
    debug_assert!(u32::try_from(length).is_ok(), "an arena of {length} bytes");
    length as u32
}

/// Appends an entry.
fn append(arena: &mut Vec<u8>, inbox: InboxId, string: &[u8]) {
    let length = size_of::<InboxId>() + varint::MAX_BYTES + string.len();
    if arena.capacity() - arena.len() < length {
        arena.reserve_exact(length.max(arena.len() / SPARE_DIVISOR));
    }
    arena.extend_from_slice(&inbox.to_le_bytes());
    varint::put(arena, string.len() as u64);
    arena.extend_from_slice(string);
}

/// Returns the inbox of the entry at a place of the arena.
fn inbox_at(arena: &[u8], offset: u32) -> InboxId {
    let entry = arena.get(offset as usize..).unwrap_or_default();
    entry
        .first_chunk()
        .map_or(0, |inbox| InboxId::from_le_bytes(*inbox))
}

/// Returns the place of the string of an entry, which is the end of it.
fn string_at(arena: &[u8], offset: u32) -> Range<usize> {
    let mut rest = arena
        .get(offset as usize + size_of::<InboxId>()..)
        .unwrap_or_default();
    let length = varint::take(&mut rest).unwrap_or(0) as usize;
    let begin = arena.len() - rest.len();
    begin..begin + length
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn map_holds_what_was_set_last(
            changes in prop::collection::vec((0u64..40, prop::option::of(0usize..700)), 0..600),
        ) {
            let mut map = ByteMap::default();
            let mut model: BTreeMap<InboxId, Vec<u8>> = BTreeMap::new();
            for (number, (inbox, length)) in changes.into_iter().enumerate() {
                if let Some(length) = length {
                    let string = vec![number as u8; length];
                    map.set(inbox << 50, &string);
                    model.insert(inbox << 50, string);
                } else {
                    map.remove(inbox << 50);
                    model.remove(&(inbox << 50));
                }
                let mut inboxes: Vec<_> = map.inboxes().collect();
                inboxes.sort_unstable();
                prop_assert!(inboxes.iter().eq(model.keys()));
                for inbox in 0..40 {
                    prop_assert_eq!(map.get(inbox << 50), model.get(&(inbox << 50)).map(Vec::as_slice));
                }
                let live: usize = model.values().map(|string| string.len() + 8 + 2).sum();
                let bound = (live + SPARE_BYTES) * SPARE_DIVISOR / (SPARE_DIVISOR - 1);
                prop_assert!(map.arena.len() <= bound, "{} bytes for {live}", map.arena.len());
            }
        }
    }

    #[test]
    fn emptied_map_gives_memory_back() {
        let mut map = ByteMap::default();
        (0..10_000).for_each(|inbox| map.set(inbox, &[1; 50]));
        (0..10_000).for_each(|inbox| map.remove(inbox));
        assert!(
            map.arena.capacity() <= 2 * SPARE_BYTES,
            "{} bytes",
            map.arena.capacity()
        );
        assert!(
            map.offsets.capacity() < 1000,
            "{} offsets",
            map.offsets.capacity()
        );
    }
}
