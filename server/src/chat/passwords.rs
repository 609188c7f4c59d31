//! Password hashing with Argon2id, off the async threads and bounded, so that a
//! flood of logins does not stall the chat.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc};
use hark_protocol::{Code, Password};
use tokio::sync::Semaphore;

use super::Fault;
use crate::store::{PasswordHash, Unavailable};

/// Passwords that wait to be hashed, at most. Half a minute's work or less.
const WAITING_MAX: usize = 256;

/// Hashes and verifies passwords by the library's default parameters
/// (Argon2id, 19 MiB, 2 passes, 1 lane).
#[derive(Debug)]
pub struct Hasher {
    at_once: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Hasher {
    /// As many at once as half of the processors, and at least one.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { at_once: Arc::new(Semaphore::new((processors / 2).max(1))), waiting: AtomicUsize::new(0) }
    }
}

impl Hasher {
    /// Hashes a password with a fresh salt.
    ///
    /// # Errors
    /// [`Code::RateLimited`] where too many wait; [`Unavailable`] where
    /// there is no memory or no randomness for it.
    pub async fn hash(&self, password: Password) -> Result<PasswordHash, Fault> {
        self.off_thread(move || hash(&password)).await?
    }

    /// Whether the password is the one that was hashed.
    ///
    /// # Errors
    /// As [`Self::hash`].
    pub async fn verify(&self, password: Password, hash: PasswordHash) -> Result<bool, Fault> {
        self.off_thread(move || verify(&password, &hash)).await?
    }

    /// Takes as long as verifying, for an account that is not there.
    ///
    /// # Errors
    /// As [`Self::hash`].
    pub async fn pretend(&self, password: Password) -> Result<(), Fault> {
        self.hash(password).await.map(drop)
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let _place = Place::take(&self.waiting)?;
        // The permit goes with the work: a caller that goes away while it runs
        // must not let another begin.
        let permit = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_| Unavailable)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        done.await.map_err(|_| Fault::Unavailable(Unavailable))
    }
}

/// A place in the queue, given back when it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, Fault> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::AcqRel) >= WAITING_MAX {
            return Fault::refused(Code::RateLimited, "1 second: too many passwords are being checked");
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Hashes a password on this thread.
///
/// # Errors
/// [`Unavailable`] where there is no memory or no randomness for it.
pub fn hash(password: &Password) -> Result<PasswordHash, Fault> {
    match Argon2::default().hash_password(password.expose().as_bytes()) {
        Ok(hash) => Ok(PasswordHash::new(&hash.to_string())),
        Err(error) => {
            tracing::error!(%error, "a password could not be hashed");
            Err(Unavailable.into())
        }
    }
}

fn verify(password: &Password, hash: &PasswordHash) -> Result<bool, Fault> {
    match phc::PasswordHash::new(hash.as_str()) {
        Ok(hash) => Ok(Argon2::default().verify_password(password.expose().as_bytes(), &hash).is_ok()),
        Err(error) => {
            tracing::error!(%error, "the hash of a password cannot be read; set the password anew");
            Err(Unavailable.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_verifies_against_its_own_hash_alone() {
        let hasher = Hasher::default();
        let password: Password = "correct horse".parse().unwrap();
        let hash = hasher.hash(password.clone()).await.unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        assert!(hasher.verify(password, hash.clone()).await.unwrap());
        assert!(!hasher.verify("wrong".parse().unwrap(), hash).await.unwrap());
    }

    #[tokio::test]
    async fn more_than_256_that_wait_are_refused() {
        let hasher = Hasher::default();
        hasher.waiting.store(WAITING_MAX, Ordering::Release);
        let Err(Fault::Refused(refusal)) = hasher.hash("x".parse().unwrap()).await else {
            panic!("not refused");
        };
        assert_eq!(refusal.code, Code::RateLimited);
        assert_eq!(hasher.waiting.load(Ordering::Acquire), WAITING_MAX, "the place is given back");
    }
}
