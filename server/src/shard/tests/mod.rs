//! Tests of the shard: the store's contract on every log, faults, reads, and a model.

mod faults;
mod model;
mod old_store;
mod reading;
mod rooms;
mod tokens;

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::kept::{Kept, KeptOpener};
use super::{ShardConfig, ShardStore};
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

/// A folder on disk.
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
        // Small segments, so that there are several.
        let config = ShardConfig {
            segment_bytes: Some(1 << 20),
            ..config(limits)
        };
        Arc::new(ShardStore::on_disk(self.path(), config).unwrap())
    }
}

/// Returns a store over the log with faults.
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
