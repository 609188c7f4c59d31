//! Tests of the shard: the store's contract on every log, faults, reading, and a
//! model.

mod faults;
mod model;
mod reading;

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::kept::{Kept, KeptOpener};
use super::{ShardConfig, ShardStore};
use crate::log::disk::{DiskConfig, DiskOpener};
use crate::store::Store;
use crate::store::contract::{Home, Limits};

fn config(limits: Limits) -> ShardConfig {
    ShardConfig {
        accounts_max: limits.accounts,
        sessions_max: limits.sessions,
        queued_messages_max: limits.messages,
        queued_bytes_max: limits.bytes,
        numbers_after: Some(0),
        ..ShardConfig::default()
    }
}

/// Memory that outlives its stores.
#[derive(Default)]
struct Memory {
    opener: Arc<KeptOpener>,
}

impl Home for Memory {
    fn open(&self, limits: Limits) -> Arc<dyn Store> {
        Arc::new(ShardStore::open(Arc::clone(&self.opener) as _, config(limits)).unwrap())
    }
}

/// Small segments, so that there are some.
const SEGMENT_BYTES: u64 = 1 << 20;

/// A folder.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Home for Folder {
    fn open(&self, limits: Limits) -> Arc<dyn Store> {
        let layout = DiskConfig { segment_bytes: SEGMENT_BYTES, ..DiskConfig::default() };
        let opener = DiskOpener::with_config(self.path(), layout);
        Arc::new(ShardStore::open(Arc::new(opener), config(limits)).unwrap())
    }
}

/// A store over memory with its faults.
fn faulty(config: ShardConfig) -> (ShardStore, Arc<Kept>) {
    let opener = KeptOpener::default();
    let kept = Arc::clone(&opener.kept);
    (ShardStore::open(Arc::new(opener), config).unwrap(), kept)
}

mod disk {
    crate::store::contract::contract_suite!(super::Folder::new());
}

mod memory {
    crate::store::contract::contract_suite!(super::Memory::default());
}
