//! Password hashing with Argon2id, off the async threads and bounded, so that a
//! flood of logins does not stall the chat.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::{self, phc};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use hark_protocol::Password;

use super::Fault;
use super::fair_semaphore::{self, FairSemaphore};
use crate::store::{PasswordHash, Unavailable};

/// Hashes and verifies passwords by the library's default parameters
/// (Argon2id, 19 MiB, 2 passes, 1 lane).
#[derive(Debug)]
pub struct Hasher {
    turns: FairSemaphore,
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
        let turns = FairSemaphore::new((processors / 2).max(1), "too many passwords are being checked");
        Self { turns, memories: Arc::default() }
    }
}

impl Hasher {
    /// Waits until a password that came from `address` may be hashed. Cancel-safe.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] where too many wait.
    pub(super) async fn turn(&self, address: IpAddr) -> Result<Turn<'_>, Fault> {
        Ok(Turn { turn: self.turns.next(address).await?, memories: &self.memories })
    }
}

/// The turn to hash a password. The next comes when it is dropped, so that what
/// comes of one is known before another is tried.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turn: fair_semaphore::Permit<'a>,
    memories: &'a Arc<Mutex<Vec<Memory>>>,
}

impl Turn<'_> {
    /// Hashes a password, with a fresh salt.
    ///
    /// # Errors
    /// [`Unavailable`] where there is no memory or no randomness for it.
    pub(super) async fn hash(&mut self, password: Password) -> Result<PasswordHash, Fault> {
        self.run_blocking(move |memory| hash_in(&password, memory)).await?
    }

    /// Whether a password is the one that was hashed.
    ///
    /// # Errors
    /// As [`Self::hash`].
    pub(super) async fn verify(&mut self, password: Password, hash: PasswordHash) -> Result<bool, Fault> {
        self.run_blocking(move |memory| verify_in(&password, &hash, memory)).await?
    }

    async fn run_blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let memories = Arc::clone(self.memories);
        let work = move || {
            let lock = || memories.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = lock().pop().unwrap_or_default();
            let result = work(&mut memory);
            lock().push(memory);
            result
        };
        self.turn.run_blocking(work).await
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
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_password_verifies_against_its_own_hash_alone() {
        let hasher = Hasher::default();
        let password: Password = "correct horse".parse().unwrap();
        let mut turn = hasher.turn(HERE).await.unwrap();
        let hash = turn.hash(password.clone()).await.unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        assert!(turn.verify(password, hash.clone()).await.unwrap());
        assert!(!turn.verify("wrong".parse().unwrap(), hash).await.unwrap());
    }
}
