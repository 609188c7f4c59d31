//! Support for the fuzz target `session`: a store with failing appends.

#![expect(clippy::expect_used, reason = "a target fails by panicking")]

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};

use super::kept::{Failure, KeptOpener};
use super::{ShardConfig, ShardStore};
use crate::store::PasswordHash;

/// A log that outlives the stores over it.
#[derive(Default)]
pub(crate) struct Home {
    opener: Arc<KeptOpener>,
}

impl Home {
    /// Opens a store. The previous one must have been dropped.
    pub(crate) fn open(&self, config: ShardConfig) -> ShardStore {
        let config = ShardConfig {
            numbers_after: Some(0),
            ..config
        };
        ShardStore::open(Arc::clone(&self.opener) as _, config).expect("it is memory")
    }

    /// Makes the next append fail, with all of the frame written or none of it.
    pub(crate) fn fail_next(&self, is_written: bool) {
        self.opener.kept.fail_next(if is_written {
            Failure::After
        } else {
            Failure::Before
        });
    }
}

/// Returns a password hash that takes almost no time.
pub(crate) fn weak_hash(password: &str) -> PasswordHash {
    let params = Params::new(Params::MIN_M_COST, 1, 1, None).expect("these are allowed");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    PasswordHash::new(
        &argon2
            .hash_password(password.as_bytes())
            .expect("there is randomness")
            .to_string(),
    )
}

/// Returns whether a hash takes almost no time to verify.
pub(crate) fn is_weak(hash: &PasswordHash) -> bool {
    hash.as_str()
        .contains(&format!("m={},", Params::MIN_M_COST))
}
