//! TLS: the certificate of the server, and the handshake that comes before
//! anything is said. What is said inside is not known here.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, InconsistentKeys, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::linger;

/// A handshake begins with this byte (RFC 8446, section 5.1).
pub(super) const HANDSHAKE: u8 = 0x16;

/// How long a client has for its handshake, once its first byte has come.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is encrypted and not taken by the socket yet, in bytes at most: one
/// record. It counts as progress of a slow link when such a piece is taken.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

/// What is spoken inside where a client asks for it by ALPN. Who does not ask
/// may speak whatever the server speaks.
const ALPN_HTTP_2: &[u8] = b"h2";

/// Everybody on the machine may read a file with one of these in its mode.
const MODE_OTHERS: u32 = 0o007;

/// What goes on inside. In a box, since it is large, and moved often.
pub(super) type Stream = Box<TlsStream<TcpStream>>;

/// The certificate of a server and its private key, as files that can be read
/// again. A clone is the same.
#[derive(Debug, Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    certificate: PathBuf,
    key: PathBuf,
    // A lock, since the files may be read again while connections come. It is
    // held for one copy of the pointer.
    current: Mutex<Arc<ServerConfig>>,
}

/// Why a certificate cannot be used. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("{} is not in PEM", path.display())]
    NoPem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// There is no certificate in the file for it.
    #[error("{} holds no certificate; --tls-cert takes the server's own and those that lead to its authority, in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// There is no key in the file for it.
    #[error("{} holds no private key that can be read without a passphrase; --tls-key takes one in PEM", .0.display())]
    NoKey(PathBuf),
    /// The key is no secret.
    #[error("everybody on this machine may read the private key {path} (mode {mode:03o}); make it yours alone by: chmod 600 {path}", path = path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// They were not made together.
    #[error("the private key {} does not belong to the certificate {}; name two that were made together", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// TLS cannot be spoken with them.
    #[error("the certificate {} with the private key {} cannot be used", certificate.display(), key.display())]
    Unusable {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads a certificate and its key, both in PEM.
    ///
    /// # Errors
    /// Where they cannot be read, or do not fit each other, or where everybody
    /// may read the key.
    pub fn read(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let current = Mutex::new(Arc::new(read(&certificate, &key)?));
        Ok(Self { shared: Arc::new(Shared { certificate, key, current }) })
    }

    /// Reads them again, for the handshakes that come. The connections that
    /// there are go on. Blocks for as long as reading two small files takes.
    ///
    /// # Errors
    /// As [`Self::read`]; nothing has changed then.
    pub fn read_again(&self) -> Result<(), TlsError> {
        let config = Arc::new(read(&self.shared.certificate, &self.shared.key)?);
        *self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Waits for the end of the handshake, for 10 seconds at most. `None` where
    /// it comes to nothing; the log says why.
    pub(super) async fn accept(&self, stream: TcpStream, address: IpAddr) -> Option<Stream> {
        let current = Arc::clone(&self.shared.current.lock().unwrap_or_else(PoisonError::into_inner));
        let accepting = TlsAcceptor::from(current)
            .accept_with(stream, |session| session.set_buffer_limit(Some(UNSENT_BYTES_MAX)));
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::info!(%address, %error, "closing a connection whose TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::info!(%address, "closing a connection that has not finished its TLS handshake in time");
                None
            }
        }
    }
}

/// Says no to a handshake that has begun, without taking part in it.
///
/// # Errors
/// What the socket says.
pub(super) async fn refuse(stream: TcpStream, alert: AlertDescription) -> io::Result<()> {
    const FATAL: u8 = 2;
    // A record of an alert (RFC 8446, sections 5.1 and 6).
    let record = [0x15, 0x03, 0x03, 0, 2, FATAL, alert.into()];
    drain::close(stream, &mut BytesMut::from(&record[..])).await
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let (chain, private) = (read_chain(certificate)?, read_key(key)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|source| match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        source => TlsError::Unusable { certificate: certificate.to_owned(), key: key.to_owned(), source },
    })?;
    config.alpn_protocols = vec![ALPN_HTTP_2.to_vec()];
    Ok(config)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(TlsError::NoCertificate(path.to_owned())),
        Ok(chain) => Ok(chain),
        Err(source) => Err(TlsError::NoPem { path: path.to_owned(), source }),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        return Err(TlsError::OpenKey { path: path.to_owned(), mode });
    }
    let text = Zeroizing::new(fs::read(path).map_err(unreadable)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned()),
        source => TlsError::NoPem { path: path.to_owned(), source },
    })
}
