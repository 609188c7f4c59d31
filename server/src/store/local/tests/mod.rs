//! Tests of the local store: the contract on both engines, faults, damage, and
//! a model.

mod damage;
mod faults;
mod model;

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::engine::{Live, MemoryOpener, Opener};
use super::{LocalConfig, LocalStore};
use crate::store::Store;
use crate::store::contract::{Home, Limits};

fn config(limits: Limits) -> LocalConfig {
    LocalConfig {
        accounts_max: limits.accounts,
        sessions_max: limits.sessions,
        queued_messages_max: limits.messages,
        queued_bytes_max: limits.bytes,
        ..LocalConfig::default()
    }
}

/// Memory that outlives its stores.
struct Memory {
    live: Arc<Live>,
    opener: Arc<dyn Opener>,
}

impl Memory {
    fn new() -> Self {
        let live = Arc::<Live>::default();
        let opener = Arc::new(MemoryOpener::new(Arc::clone(&live)));
        Self { live, opener }
    }
}

impl Home for Memory {
    fn open(&self, limits: Limits) -> Arc<dyn Store> {
        let (opener, live) = (Arc::clone(&self.opener), Arc::clone(&self.live));
        Arc::new(LocalStore::start(opener, live, config(limits)).unwrap())
    }
}

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
        Arc::new(LocalStore::open(self.path(), config(limits)).unwrap())
    }
}

mod memory {
    crate::store::contract::contract_suite!(super::Memory::new());
}

mod embedded {
    crate::store::contract::contract_suite!(super::Folder::new());
}
