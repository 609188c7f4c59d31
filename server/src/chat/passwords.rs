//! Password hashing with Argon2id, off the async threads and bounded, so that a
//! flood of logins does not stall the chat.

use std::net::IpAddr;
use std::sync::Arc;

use argon2::password_hash::{self, phc};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use hark_protocol::Password;

use super::Fault;
use super::fair_semaphore::{FairSemaphore, Permit};
use crate::store::{PasswordHash, Unavailable};
use crate::sync::Mutex;

/// Hashes and verifies passwords with the library's default parameters (Argon2id, 19
/// MiB, 2 passes, 1 lane).
#[derive(Debug)]
pub struct Hasher {
    permits: FairSemaphore,
    // Locked because any thread may hash. Held to pop or push one buffer.
    buffers: Arc<Mutex<Vec<Memory>>>,
}

/// The working memory of one hash. The hasher keeps one for each concurrent hash:
/// allocations of this size and alignment, freed again and again on many threads, make
/// the C library's heap grow to gigabytes.
type Memory = Vec<Block>;

impl Default for Hasher {
    /// Returns a hasher for half as many concurrent hashes as there are processors,
    /// but at least one.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let permits = FairSemaphore::new(
            (processors / 2).max(1),
            "too many passwords are being checked",
        );
        Self {
            permits,
            buffers: Arc::default(),
        }
    }
}

impl Hasher {
    /// Returns the number of passwords that are hashed or wait for it.
    pub(super) fn waiting(&self) -> usize {
        self.permits.queued()
    }

    /// Waits until a password from `address` may be hashed. Cancel-safe.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] if the queue is full.
    pub(super) async fn acquire(&self, address: IpAddr) -> Result<HashPermit<'_>, Fault> {
        Ok(HashPermit {
            permit: self.permits.acquire(address).await?,
            buffers: &self.buffers,
        })
    }
}

/// The permit to hash a password. It is held until the outcome of an attempt is
/// recorded, so that the next one sees it.
#[derive(Debug)]
pub(super) struct HashPermit<'a> {
    permit: Permit<'a>,
    buffers: &'a Arc<Mutex<Vec<Memory>>>,
}

impl HashPermit<'_> {
    /// Hashes a password with a fresh salt.
    ///
    /// # Errors
    /// [`Unavailable`] if memory or randomness is lacking.
    pub(super) async fn hash(&mut self, password: Password) -> Result<PasswordHash, Fault> {
        self.run_blocking(move |memory| hash_in(&password, memory))
            .await?
    }

    /// Returns whether the password matches the hash.
    ///
    /// # Errors
    /// As [`Self::hash`].
    pub(super) async fn verify(
        &mut self,
        password: Password,
        hash: PasswordHash,
    ) -> Result<bool, Fault> {
        self.run_blocking(move |memory| verify_in(&password, &hash, memory))
            .await?
    }

    async fn run_blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let buffers = Arc::clone(self.buffers);
        let work = move || {
            let lock = || buffers.lock();
            let mut memory = lock().pop().unwrap_or_default();
            let result = work(&mut memory);
            lock().push(memory);
            result
        };
        self.permit.run_blocking(work).await
    }
}

/// Hashes a password on this thread.
///
/// # Errors
/// [`Unavailable`] if memory or randomness is lacking.
pub fn hash(password: &Password) -> Result<PasswordHash, Fault> {
    hash_in(password, &mut Memory::new())
}

fn hash_in(password: &Password, memory: &mut Memory) -> Result<PasswordHash, Fault> {
    match try_hash(password, memory) {
        Ok(hash) => Ok(PasswordHash::new(&hash.to_string())),
        Err(error) => {
            tracing::error!(%error, "cannot hash a password");
            Err(Unavailable.into())
        }
    }
}

fn verify_in(password: &Password, hash: &PasswordHash, memory: &mut Memory) -> Result<bool, Fault> {
    match try_verify(password, hash, memory) {
        Ok(is_right) => Ok(is_right),
        Err(error) => {
            tracing::error!(%error, "malformed password hash; set the password again");
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
        hash: Some(derive(
            Algorithm::Argon2id,
            Version::V0x13,
            params,
            password,
            &salt,
            memory,
        )?),
        salt: Some(salt),
    })
}

fn try_verify(
    password: &Password,
    hash: &PasswordHash,
    memory: &mut Memory,
) -> password_hash::Result<bool> {
    let hash = phc::PasswordHash::new(hash.as_str())?;
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else {
        return Err(password_hash::Error::EncodingInvalid);
    };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
    let version = hash
        .version
        .map(Version::try_from)
        .transpose()?
        .unwrap_or_default();
    let output = derive(
        algorithm,
        version,
        Params::try_from(&hash)?,
        password,
        salt,
        memory,
    )?;
    // `phc::Output` compares in constant time.
    Ok(output == *expected)
}

/// Computes the hash of a password with these parameters.
fn derive(
    algorithm: Algorithm,
    version: Version,
    params: Params,
    password: &Password,
    salt: &phc::Salt,
    memory: &mut Memory,
) -> password_hash::Result<phc::Output> {
    let (length, blocks) = (
        params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN),
        params.block_count(),
    );
    memory.resize(blocks.max(memory.len()), Block::default());
    let mut output = [0; phc::Output::MAX_LENGTH];
    let output = output
        .get_mut(..length)
        .ok_or(password_hash::Error::OutputSize)?;
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into_with_memory(password.expose().as_bytes(), salt, output, memory)?;
    Ok(phc::Output::new(output)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn password_verifies_against_its_own_hash_only() {
        let hasher = Hasher::default();
        let password: Password = "correct horse".parse().unwrap();
        let mut permit = hasher.acquire(HERE).await.unwrap();
        let hash = permit.hash(password.clone()).await.unwrap();
        assert!(
            hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{}",
            hash.as_str()
        );
        assert!(permit.verify(password, hash.clone()).await.unwrap());
        assert!(!permit.verify("wrong".parse().unwrap(), hash).await.unwrap());
    }
}
