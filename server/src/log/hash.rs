//! The hash of inboxes in the tables of the logs.

use std::hash::{BuildHasherDefault, Hasher};

/// Hashes an [`InboxId`](super::InboxId) with one multiplication. The
/// server assigns these numbers, so that no client can choose colliding
/// ones.
pub(super) type IdHasher = BuildHasherDefault<Multiply>;

/// See [`IdHasher`].
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, id: u64) {
        // The table takes its bits from both ends of the hash, and the low
        // bits of a product depend only on the low bits of the id.
        let product = u128::from(self.0 ^ id) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
