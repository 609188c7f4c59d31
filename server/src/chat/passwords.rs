//! Password hashing with Argon2id, off the async threads and bounded, so that a
//! flood of logins does not stall the chat.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::password_hash::{self, phc};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use hark_protocol::Password;
use tokio::sync::Semaphore;

use super::Fault;
use crate::limit::network;
use crate::store::{PasswordHash, Unavailable};

/// Passwords that wait to be hashed, at most. Half a minute's work or less.
const WAITING_MAX: usize = 256;

/// Passwords from one address among them. More wait until these are done, so
/// that whoever comes from elsewhere is soon served.
const FROM_ADDRESS_MAX: usize = 16;

/// Hashes and verifies passwords by the library's default parameters
/// (Argon2id, 19 MiB, 2 passes, 1 lane).
#[derive(Debug)]
pub struct Hasher {
    at_once: Arc<Semaphore>,
    waiting: AtomicUsize,
    // A lock, since places are given back where a caller is dropped. It is held
    // for one look-up. An address is there while somebody waits in it.
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    // A lock, since any thread may hash. It is held to take one or give it back.
    memories: Arc<Mutex<Vec<Memory>>>,
}

/// What a password is hashed in. There are as many as are hashed at once, and
/// they are kept: memory of this size and alignment that is freed again and again
/// on many threads makes the C library's heap grow to gigabytes.
type Memory = Vec<Block>;

impl Default for Hasher {
    /// As many at once as half of the processors, and at least one.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            at_once: Arc::new(Semaphore::new((processors / 2).max(1))),
            waiting: AtomicUsize::new(0),
            addresses: Mutex::default(),
            memories: Arc::default(),
        }
    }
}

impl Hasher {
    /// Hashes a password that came from `address`, with a fresh salt.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] where too many wait; [`Unavailable`] where
    /// there is no memory or no randomness for it.
    pub async fn hash(&self, address: IpAddr, password: Password) -> Result<PasswordHash, Fault> {
        self.off_thread(address, move |memory| hash_in(&password, memory)).await?
    }

    /// Whether a password that came from `address` is the one that was hashed.
    ///
    /// # Errors
    /// As [`Self::hash`].
    pub async fn verify(
        &self,
        address: IpAddr,
        password: Password,
        hash: PasswordHash,
    ) -> Result<bool, Fault> {
        self.off_thread(address, move |memory| verify_in(&password, &hash, memory)).await?
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        address: IpAddr,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let line = Line::join(self, network(address));
        let _turn = line.turns.acquire().await.map_err(|_| Unavailable)?;
        let _place = Place::take(&self.waiting)?;
        // The permit goes with the work: a caller that goes away while it runs
        // must not let another begin.
        let permit = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_| Unavailable)?;
        let memories = Arc::clone(&self.memories);
        let done = tokio::task::spawn_blocking(move || {
            let lock = || memories.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = lock().pop().unwrap_or_default();
            let result = work(&mut memory);
            lock().push(memory);
            drop(permit);
            result
        });
        done.await.map_err(|_| Fault::Unavailable(Unavailable))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The line of those who come from one address. The last to leave removes it.
struct Line<'a> {
    hasher: &'a Hasher,
    address: IpAddr,
    turns: Arc<Semaphore>,
}

impl<'a> Line<'a> {
    fn join(hasher: &'a Hasher, address: IpAddr) -> Self {
        let mut addresses = hasher.lock();
        let turns = addresses.entry(address).or_insert_with(|| Arc::new(Semaphore::new(FROM_ADDRESS_MAX)));
        Self { hasher, address, turns: Arc::clone(turns) }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let mut addresses = self.hasher.lock();
        // Two are this one and the one in the map.
        if Arc::strong_count(&self.turns) == 2 {
            addresses.remove(&self.address);
        }
    }
}

/// A place in the queue, given back when it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, Fault> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::AcqRel) >= WAITING_MAX {
            return Fault::rate_limited(Duration::from_secs(1), "too many passwords are being checked");
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
    hash_in(password, &mut Memory::new())
}

fn hash_in(password: &Password, memory: &mut Memory) -> Result<PasswordHash, Fault> {
    match try_hash(password, memory) {
        Ok(hash) => Ok(PasswordHash::new(&hash.to_string())),
        Err(error) => {
            tracing::error!(%error, "a password could not be hashed");
            Err(Unavailable.into())
        }
    }
}

fn verify_in(password: &Password, hash: &PasswordHash, memory: &mut Memory) -> Result<bool, Fault> {
    match try_verify(password, hash, memory) {
        Ok(is_right) => Ok(is_right),
        Err(error) => {
            tracing::error!(%error, "the hash of a password cannot be read; set the password anew");
            Err(Unavailable.into())
        }
    }
}

fn try_hash(password: &Password, memory: &mut Memory) -> password_hash::Result<phc::PasswordHash> {
    let salt = phc::Salt::new(&password_hash::try_generate_salt()?)?;
    let params = Params::default();
    Ok(phc::PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: phc::ParamsString::try_from(&params)?,
        hash: Some(derive(Algorithm::Argon2id, Version::V0x13, params, password, &salt, memory)?),
        salt: Some(salt),
    })
}

fn try_verify(password: &Password, hash: &PasswordHash, memory: &mut Memory) -> password_hash::Result<bool> {
    let hash = phc::PasswordHash::new(hash.as_str())?;
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else {
        return Err(password_hash::Error::EncodingInvalid);
    };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
    let version = hash.version.map(Version::try_from).transpose()?.unwrap_or_default();
    let output = derive(algorithm, version, Params::try_from(&hash)?, password, salt, memory)?;
    // In constant time.
    Ok(output == *expected)
}

/// The hash of a password by these parameters.
fn derive(
    algorithm: Algorithm,
    version: Version,
    params: Params,
    password: &Password,
    salt: &phc::Salt,
    memory: &mut Memory,
) -> password_hash::Result<phc::Output> {
    let (length, blocks) = (params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN), params.block_count());
    memory.resize(blocks.max(memory.len()), Block::default());
    let mut output = [0; phc::Output::MAX_LENGTH];
    let output = output.get_mut(..length).ok_or(password_hash::Error::OutputSize)?;
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into_with_memory(password.expose().as_bytes(), salt, output, memory)?;
    Ok(phc::Output::new(output)?)
}

#[cfg(test)]
mod tests {
    use hark_protocol::Code;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_password_verifies_against_its_own_hash_alone() {
        let hasher = Hasher::default();
        let password: Password = "correct horse".parse().unwrap();
        let hash = hasher.hash(HERE, password.clone()).await.unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        assert!(hasher.verify(HERE, password, hash.clone()).await.unwrap());
        assert!(!hasher.verify(HERE, "wrong".parse().unwrap(), hash).await.unwrap());
    }

    #[tokio::test]
    async fn more_than_256_that_wait_are_refused() {
        let hasher = Hasher::default();
        hasher.waiting.store(WAITING_MAX, Ordering::Release);
        let Err(Fault::Refused(refusal)) = hasher.hash(HERE, "x".parse().unwrap()).await else {
            panic!("not refused");
        };
        assert_eq!(refusal.code, Code::RateLimited);
        assert_eq!(hasher.waiting.load(Ordering::Acquire), WAITING_MAX, "the place is given back");
        assert!(hasher.lock().is_empty(), "and so is the line");
    }

    #[tokio::test]
    async fn one_address_takes_16_places_and_leaves_the_others() {
        let hasher = Hasher::default();
        let nothing_runs =
            hasher.at_once.acquire_many(hasher.at_once.available_permits() as u32).await.unwrap();
        let mut flood: Vec<_> = (0..100).map(|_| Box::pin(hasher.hash(HERE, "x".parse().unwrap()))).collect();
        for hash in &mut flood {
            assert!(futures::poll!(hash).is_pending());
        }
        assert_eq!(hasher.waiting.load(Ordering::Acquire), FROM_ADDRESS_MAX);
        drop(flood);
        drop(nothing_runs);
        assert_eq!(hasher.waiting.load(Ordering::Acquire), 0);
        assert!(hasher.lock().is_empty());
    }
}
