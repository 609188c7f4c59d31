//! TLS: the server's certificate, and the handshake. It does not know the protocol
//! inside.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, InconsistentKeys, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;
use zeroize::Zeroizing;

use super::drain;
use super::first_bytes::Protocol;
use crate::sync::Mutex;

/// How long a handshake may take, from its first byte on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of encrypted bytes that the socket has not taken: one record. A
/// slow link makes progress whenever it takes such a piece.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

/// The ALPN protocols offered. A client without ALPN may speak any protocol of the
/// server.
const ALPN: [(&[u8], Protocol); 2] = [(b"h2", Protocol::Http2), (b"http/1.1", Protocol::Http1)];

/// The mode bits that make a file accessible to every user of the machine.
const MODE_OTHERS: u32 = 0o007;

/// The stream inside TLS. Boxed, since it is large and often moved.
pub(super) type Stream = Box<TlsStream<TcpStream>>;

/// The certificate and private key of a server, reloadable from their files. Clones share
/// them.
#[derive(Debug, Clone)]
pub struct Tls {
    shared: Arc<TlsState>,
}

#[derive(Debug)]
struct TlsState {
    // Locked because a reload may coincide with handshakes. Held for one copy of the
    // pointer.
    current: Mutex<Arc<Current>>,
}

/// The certificate in use.
#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// The server's own certificate, for its names.
    leaf: CertificateDer<'static>,
}

/// The reason that a certificate cannot be used, with its remedy, in one line.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file is malformed PEM.
    #[error("{} is not valid PEM", path.display())]
    NoPem {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: pem::Error,
    },
    /// The certificate file contains no certificate.
    #[error("{} holds no certificate; --tls-cert expects the server's certificate chain in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// The key file contains no private key.
    #[error("{} holds no unencrypted private key; --tls-key expects one in PEM, without a passphrase", .0.display())]
    NoKey(PathBuf),
    /// The key is world-accessible.
    #[error("the private key {path} is accessible to every user of this machine (mode {mode:03o}); run: chmod 600 {path}", path = path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The key belongs to another certificate.
    #[error("the private key {} does not match the certificate {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The TLS library rejects them.
    #[error("cannot use the certificate {} with the private key {}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The error of the library.
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads a certificate and its key, both in PEM.
    ///
    /// # Errors
    /// If a file cannot be read, the two do not match, or the key is world-accessible.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = Mutex::new(Arc::new(read(certificate, key)?));
        Ok(Self {
            shared: Arc::new(TlsState { current }),
        })
    }

    /// Uses another certificate for later handshakes. Open connections continue.
    pub fn replace(&self, new: &Self) {
        let config = Arc::clone(&new.shared.current.lock());
        *self.shared.current.lock() = config;
    }

    /// Returns whether the certificate has this name.
    pub(super) fn has_name(&self, name: &str) -> bool {
        let current = Arc::clone(&self.shared.current.lock());
        let Ok(name) = ServerName::try_from(name) else {
            return false;
        };
        EndEntityCert::try_from(&current.leaf)
            .and_then(|certificate| certificate.verify_is_valid_for_subject_name(&name))
            .is_ok()
    }

    /// Completes the handshake within [`HANDSHAKE_TIMEOUT`]. Returns `None` if it fails,
    /// and logs the reason.
    pub(super) async fn accept(&self, stream: TcpStream, address: IpAddr) -> Option<Stream> {
        let config = Arc::clone(&self.shared.current.lock().config);
        let accepting = TlsAcceptor::from(config).accept_with(stream, |session| {
            session.set_buffer_limit(Some(UNSENT_BYTES_MAX))
        });
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::info!(%address, %error, "TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::info!(%address, timeout = ?HANDSHAKE_TIMEOUT, "TLS handshake timed out");
                None
            }
        }
    }
}

/// Returns the protocol that the client has chosen by ALPN, if it offered any.
pub(super) fn chosen(stream: &Stream) -> Option<Protocol> {
    let (_, session) = stream.get_ref();
    let name = session.alpn_protocol()?;
    ALPN.into_iter()
        .find_map(|(known, protocol)| (known == name).then_some(protocol))
}

/// Refuses a handshake with an alert, without reading it.
///
/// # Errors
/// An error of the socket.
pub(super) async fn refuse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    alert: AlertDescription,
) -> io::Result<()> {
    const FATAL: u8 = 2;
    // An alert record (RFC 8446, sections 5.1 and 6).
    let record = [0x15, 0x03, 0x03, 0, 2, FATAL, alert.into()];
    drain::close(stream, &mut BytesMut::from(&record[..])).await
}

fn read(certificate: &Path, key: &Path) -> Result<Current, TlsError> {
    let (chain, private) = (read_chain(certificate)?, read_key(key)?);
    let no_certificate = || TlsError::NoCertificate(certificate.to_owned());
    let leaf = chain.first().ok_or_else(no_certificate)?.clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, private)
        });
    let mut config = config.map_err(|source| match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        source => TlsError::Unusable {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        },
    })?;
    config.alpn_protocols = ALPN.map(|(name, _)| name.to_vec()).into();
    Ok(Current {
        config: Arc::new(config),
        leaf,
    })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(TlsError::NoCertificate(path.to_owned())),
        Ok(chain) => Ok(chain),
        Err(source) => Err(TlsError::NoPem {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        return Err(TlsError::OpenKey {
            path: path.to_owned(),
            mode,
        });
    }
    let text = Zeroizing::new(fs::read(path).map_err(unreadable)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned()),
        source => TlsError::NoPem {
            path: path.to_owned(),
            source,
        },
    })
}
