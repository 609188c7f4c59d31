//! The engine of a throw-away server: sorted maps in memory. What it was told
//! outlives the engine, but not the store that opens it.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Batch, Durability, Engine, EngineError, Live, Opener, Reader, Table, Visit};
use crate::store::local::OpenError;
use crate::store::local::record::parse_message_key;

/// Bytes of dead messages that are kept at least. Few, since going through all
/// messages costs little, and memory that was in use lately is the fastest.
const DEAD_BYTES_MIN: u64 = 1024 * 1024;

/// Opens the same memory again and again.
#[derive(Debug)]
pub(in crate::store::local) struct MemoryOpener {
    tables: Arc<Tables>,
    live: Arc<Live>,
}

/// In the order of [`Table::ALL`].
type Maps = [Map; Table::ALL.len()];

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Default)]
struct Tables {
    // A lock, since readers have threads of their own. It is held for one
    // batch or one page.
    maps: RwLock<Maps>,
}

#[derive(Debug)]
struct MemoryEngine {
    tables: Arc<Tables>,
    live: Arc<Live>,
}

#[derive(Debug)]
struct MemoryReader {
    tables: Arc<Tables>,
}

impl MemoryOpener {
    /// Empty memory.
    pub(in crate::store::local) fn new(live: Arc<Live>) -> Self {
        Self { tables: Arc::default(), live }
    }
}

impl Opener for MemoryOpener {
    fn open(&self) -> Result<Box<dyn Engine>, OpenError> {
        Ok(Box::new(MemoryEngine { tables: Arc::clone(&self.tables), live: Arc::clone(&self.live) }))
    }

    fn path(&self) -> &Path {
        Path::new("memory:")
    }

    fn accepts_data_loss(&self) -> bool {
        false
    }
}

impl Engine for MemoryEngine {
    fn commit(&mut self, batch: &mut Batch, _durability: Durability) -> Result<(), EngineError> {
        let mut maps = self.tables.write();
        for change in batch.changes.drain(..) {
            let map = table_mut(&mut maps, change.table);
            match change.value {
                Some(value) => map.insert(change.key, value),
                None => map.remove(&change.key),
            };
        }
        Ok(())
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(MemoryReader { tables: Arc::clone(&self.tables) })
    }

    fn message_bytes(&self) -> u64 {
        let maps = self.tables.read();
        table(&maps, Table::Messages).iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    fn dead_bytes_min(&self) -> u64 {
        DEAD_BYTES_MIN
    }

    fn compact(&mut self) {
        let live = &self.live;
        let mut maps = self.tables.write();
        table_mut(&mut maps, Table::Messages).retain(|key, _| {
            parse_message_key(key)
                .is_ok_and(|(incarnation, sequence)| !live.fate(incarnation).is_dead(sequence))
        });
    }

    fn close(self: Box<Self>) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Reader for MemoryReader {
    fn ascend(&self, of: Table, from: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let maps = self.tables.read();
        let range = (Bound::Included(from), Bound::Unbounded);
        each(table(&maps, of).range::<[u8], _>(range), visit);
        Ok(())
    }

    fn descend(&self, of: Table, below: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let maps = self.tables.read();
        let range = (Bound::Unbounded, Bound::Excluded(below));
        each(table(&maps, of).range::<[u8], _>(range).rev(), visit);
        Ok(())
    }
}

impl Tables {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        // Nothing panics while the lock is held.
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::indexing_slicing, reason = "there is a map for each table")]
fn table(maps: &Maps, table: Table) -> &Map {
    &maps[table as usize]
}

#[expect(clippy::indexing_slicing, reason = "there is a map for each table")]
fn table_mut(maps: &mut Maps, table: Table) -> &mut Map {
    &mut maps[table as usize]
}

fn each<'m>(entries: impl Iterator<Item = (&'m Vec<u8>, &'m Vec<u8>)>, visit: &mut Visit<'_>) {
    for (key, value) in entries {
        if visit(key, value) == ControlFlow::Break(()) {
            break;
        }
    }
}
