//! The tokens of users: secrets that stand for the password, with fewer rights.

use std::fmt;

use hark_protocol::TokenName;
use hark_protocol::message::Scope;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Account, PasswordHash};

/// The SHA-256 of the secret of a token. The secret has 256 random bits, so its digest
/// needs no salt and no slow hash. Compared in constant time; `Debug` does not show it.
#[derive(Clone, Copy, Eq)]
pub struct TokenDigest([u8; Self::BYTES]);

impl TokenDigest {
    /// Length of a digest, in bytes.
    pub const BYTES: usize = 32;

    /// Returns the digest of a secret.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Returns the digest with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

/// A token of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The name, unique for the user.
    pub name: TokenName,
    /// The scope.
    pub scope: Scope,
    /// The digest of the secret.
    pub digest: TokenDigest,
    /// The time of its creation, in Unix seconds.
    pub created_s: u32,
    /// The time of its last use in Unix seconds, up to an hour old; 0 if it was never used.
    pub used_s: u32,
}

/// The time after which another use of a token is recorded, in seconds.
const USE_INTERVAL_S: u32 = 3600;

impl Token {
    /// Returns whether a use at this time, in Unix seconds, need not be recorded.
    #[must_use]
    pub const fn was_used_lately(&self, now_s: u32) -> bool {
        now_s < self.used_s.saturating_add(USE_INTERVAL_S)
    }
}

/// A token and its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountToken {
    /// The account.
    pub account: Account,
    /// The token.
    pub token: Token,
}

/// A token to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// The name.
    pub name: TokenName,
    /// The scope.
    pub scope: Scope,
    /// The digest of the secret.
    pub digest: TokenDigest,
    /// The password by which the caller logged in. If the account has another one by now,
    /// the token is refused.
    pub password: PasswordHash,
}
