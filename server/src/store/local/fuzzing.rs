//! What the fuzz targets need of this store: one in memory whose commits fail,
//! and its records.

#![expect(clippy::expect_used, reason = "a target fails by panicking")]

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};

use super::engine::faulty::{Failure, Faults, FaultyOpener};
use super::engine::{Live, MemoryOpener, Opener, check_inventory, check_journal};
use super::{LocalConfig, LocalStore, record};
use crate::store::PasswordHash;

/// Memory that outlives the stores over it.
pub(crate) struct Home {
    live: Arc<Live>,
    opener: Arc<dyn Opener>,
    faults: Arc<Faults>,
}

impl Default for Home {
    fn default() -> Self {
        let (live, faults) = (Arc::<Live>::default(), Arc::<Faults>::default());
        let memory = Arc::new(MemoryOpener::new(Arc::clone(&live)));
        let opener = Arc::new(FaultyOpener::new(memory, Arc::clone(&faults)));
        Self { live, opener, faults }
    }
}

impl Home {
    /// Opens the store; the one before has been dropped.
    pub(crate) fn open(&self, config: LocalConfig) -> LocalStore {
        LocalStore::start(Arc::clone(&self.opener), Arc::clone(&self.live), config).expect("it is memory")
    }

    /// The next commit fails, with all of it written or nothing.
    pub(crate) fn fail_next(&self, is_written: bool) {
        self.faults.fail_next(if is_written { Failure::After } else { Failure::Before });
    }
}

/// The hash of a password that takes next to no time.
pub(crate) fn weak_hash(password: &str) -> PasswordHash {
    let params = Params::new(Params::MIN_M_COST, 1, 1, None).expect("these are allowed");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    PasswordHash::new(&argon2.hash_password(password.as_bytes()).expect("there is randomness").to_string())
}

/// Whether a hash is verified in next to no time.
pub(crate) fn is_weak(hash: &PasswordHash) -> bool {
    hash.as_str().contains(&format!("m={},", Params::MIN_M_COST))
}

/// Reads the bytes as what may stand in a store: a record, whose key is as long as
/// the second byte says, a journal, or one of the engine's other files.
///
/// # Panics
/// Where they are read as something that is not written as it is read.
pub fn records(data: &[u8]) {
    let [what, length, bytes @ ..] = data else { return };
    let (key, value) = bytes.split_at(usize::from(*length).min(bytes.len()));
    match what % 4 {
        0 => record::check_any_sealed(key, value),
        1 => record::check_any(key, value),
        2 => check_journal(bytes),
        _ => check_inventory(bytes),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_record_is_refused_or_written_as_it_is_read() {
        hark_seeds::check("records", super::records);
    }
}
