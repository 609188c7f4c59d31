//! Connections over TLS: whom a client believes who a server is, and in words
//! for people why it does not.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::dial::{Dial, Stream, TcpDial};

/// What a certificate is called that was made to sign others, and is used by
/// a server all the same.
const AUTHORITY_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Which authorities a client believes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those that this machine trusts: what the system keeps, or what the
    /// variables `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    #[default]
    System,
    /// Those in this file alone, in PEM.
    File(PathBuf),
}

/// Why TLS cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says, or what is wrong with it.
        source: pem::Error,
    },
    /// There are no certificates in a file.
    #[error("{} holds no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// This machine trusts nobody.
    #[error(
        "this machine knows no authorities to trust ({0}); install its ca-certificates, or name a file with --ca"
    )]
    NoAuthorities(String),
    /// No certificate can be for this.
    #[error("{0:?} is neither a host name nor an IP address, and no certificate can be for it")]
    BadName(String),
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What is wrong between this client and a server, and stays so until somebody
/// changes it. Within the [`io::Error`] that a dial ends with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Distrust(pub(crate) String);

impl Distrust {
    /// Whether this is the reason for an error.
    pub(crate) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }

    /// What was read is not what was expected, but an alert of TLS.
    pub(crate) fn unencrypted() -> io::Error {
        let why = "the server speaks TLS, and this connection is not encrypted: connect by TLS (hark --tls)";
        io::Error::new(io::ErrorKind::InvalidData, Self(why.to_owned()))
    }
}

/// How TLS is spoken, and whom it believes: the same for many servers.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    trust: Trust,
}

/// TLS over TCP. It is TLS or nothing: what does not prove who it is hears
/// nothing.
#[derive(Debug)]
pub struct TlsDial {
    tcp: TcpDial,
    name: ServerName<'static>,
    tls: Tls,
}

impl Tls {
    /// `protocols` are asked for by ALPN, the first that the server knows.
    /// Reads files, which blocks.
    pub(crate) fn new(trust: &Trust, protocols: &[&str]) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(authorities(trust)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| TrustError::NoAuthorities(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Self { config: Arc::new(config), trust: trust.clone() })
    }

    /// To the server at `address`, whose certificate has to be for its host.
    pub(crate) fn dial(&self, address: &str) -> Result<TlsDial, TrustError> {
        Ok(TlsDial { tcp: TcpDial::new(address), name: host(address)?, tls: self.clone() })
    }
}

impl TlsDial {
    /// To the server at `address`, `HOST:PORT`, whose certificate has to be for
    /// that host. `protocols` are asked for by ALPN, the first that the server
    /// knows. Reads files, which blocks.
    ///
    /// # Errors
    /// Where there is nobody to trust, or the host is no name.
    pub fn new(address: &str, trust: &Trust, protocols: &[&str]) -> Result<Self, TrustError> {
        let name = host(address)?;
        Ok(Self { tcp: TcpDial::new(address), name, tls: Tls::new(trust, protocols)? })
    }

    /// What a failed handshake means, in words.
    fn explain(&self, error: io::Error) -> io::Error {
        let reason = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(reason) => reason,
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                let why = "the server closed the connection in the TLS handshake; does it speak TLS?";
                return io::Error::new(error.kind(), why);
            }
            None => return error,
        };
        let lasting = |why: String| io::Error::new(io::ErrorKind::InvalidData, Distrust(why));
        match reason {
            rustls::Error::InvalidCertificate(error) => lasting(self.explain_certificate(error)),
            rustls::Error::InvalidMessage(_) => lasting("the server does not speak TLS".to_owned()),
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
                lasting("the server refuses TLS: it has no certificate, or no cipher in common".to_owned())
            }
            rustls::Error::AlertReceived(AlertDescription::InternalError) => {
                let why = "the server refuses the connection for now (it says so before the TLS handshake)";
                io::Error::new(io::ErrorKind::ConnectionRefused, why)
            }
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                lasting("the server does not speak HTTP/2 inside TLS, and so no gRPC".to_owned())
            }
            rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => {
                lasting(format!("the server speaks another TLS: {reason}"))
            }
            _ => error,
        }
    }

    fn explain_certificate(&self, error: &CertificateError) -> String {
        let host = self.name.to_str();
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => match &self.tls.trust {
                Trust::System => {
                    "the server's certificate is not trusted: no authority that this machine knows \
                     has signed it; name the one that has with --ca FILE"
                        .to_owned()
                }
                Trust::File(file) => {
                    format!(
                        "the server's certificate is not trusted: nobody in {} has signed it",
                        file.display()
                    )
                }
            },
            CertificateError::NotValidForNameContext { presented, .. } => {
                format!("the server's certificate is not for {host} but for {}", names(presented))
            }
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("the server's certificate has expired on {}", date(*not_after))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                let date = date(*not_before);
                format!(
                    "the server's certificate is valid from {date} on; is the clock of this machine right?"
                )
            }
            CertificateError::Other(other) if other.to_string() == AUTHORITY_AS_SERVER => {
                "the server's certificate is one of an authority (CA:TRUE), which is no server's: \
                 it has to be made with basicConstraints CA:FALSE"
                    .to_owned()
            }
            other => format!("the server's certificate is not accepted: {other}"),
        }
    }
}

impl Dial for TlsDial {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let stream = self.tcp.connect().await?;
            let connector = TlsConnector::from(Arc::clone(&self.tls.config));
            let stream = connector.connect(self.name.clone(), stream).await;
            Ok(Box::new(stream.map_err(|error| self.explain(error))?) as Box<dyn Stream>)
        })
    }
}

/// The host of an address, as a certificate names it.
fn host(address: &str) -> Result<ServerName<'static>, TrustError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| TrustError::BadName(host.to_owned()))
}

fn authorities(trust: &Trust) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    match trust {
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            // Some of those that a system keeps are older than the rules.
            let (taken, _) = roots.add_parsable_certificates(found.certs);
            if taken == 0 {
                let why =
                    found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
                return Err(TrustError::NoAuthorities(why));
            }
        }
        Trust::File(path) => {
            let unreadable = |source| TrustError::Unreadable { path: path.clone(), source };
            let text = fs::read(path).map_err(|error| unreadable(pem::Error::Io(error)))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                roots.add(certificate.map_err(unreadable)?)?;
            }
            if roots.is_empty() {
                return Err(TrustError::NoCertificate(path.clone()));
            }
        }
    }
    Ok(roots)
}

/// The names of a certificate, which come as `DnsName("hark.test")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| match name.split_once('(') {
        Some((_, rest)) => rest.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    match presented.iter().map(bare).collect::<Vec<_>>() {
        names if names.is_empty() => "no name at all".to_owned(),
        names => names.join(", "),
    }
}

fn date(time: UnixTime) -> String {
    let timestamp = i64::try_from(time.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok());
    timestamp.map_or_else(|| "a day out of reach".to_owned(), |time| time.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_shown_bare() {
        let presented = ["DnsName(\"hark.test\")", "IpAddress(192.0.2.1)"].map(str::to_owned);
        assert_eq!(names(&presented), "hark.test, 192.0.2.1");
        assert_eq!(names(&[]), "no name at all");
    }

    #[test]
    fn what_no_certificate_can_be_for_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let dial =
            |address| TlsDial::new(address, &Trust::File(folder.path().join("none")), &[]).unwrap_err();
        assert!(matches!(dial("not a host:1"), TrustError::BadName(name) if name == "not a host"));
        for good in ["hark.test:1", "192.0.2.1:1", "[::1]:1"] {
            assert!(matches!(dial(good), TrustError::Unreadable { .. }), "{good}");
        }
    }

    #[test]
    fn a_file_without_certificates_trusts_nobody() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = TlsDial::new("hark.test:1", &Trust::File(file.path().to_owned()), &[]).unwrap_err();
        assert!(matches!(error, TrustError::NoCertificate(_)), "{error}");
    }
}
