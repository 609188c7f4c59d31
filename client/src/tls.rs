//! Connections over TLS: the trusted authorities, and readable explanations of
//! failed handshakes.

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

/// Name of webpki's error for a CA certificate that is used as a server's.
const AUTHORITY_AS_SERVER: &str = "CaUsedAsEndEntity";

/// The trusted authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of this machine: the system's, or those named by the variables
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    #[default]
    System,
    /// Only those in this PEM file.
    File(PathBuf),
}

/// An invalid TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// The file contains no certificate.
    #[error("no PEM certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    /// This machine trusts no authority.
    #[error(
        "this machine has no trusted authorities ({0}); install its ca-certificates, or name a file with --ca"
    )]
    NoAuthorities(String),
    /// The host cannot appear in a certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    BadName(String),
    /// Rustls refuses the configuration.
    #[error("cannot set up TLS: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A TLS failure that persists until the configuration of the client or the
/// server changes. Wrapped in the [`io::Error`] of a dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub(crate) String);

impl TlsError {
    /// Returns whether an error is caused by this.
    pub(crate) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }

    /// Returns the error for a TLS alert received on a plain-text connection.
    pub(crate) fn unencrypted() -> io::Error {
        let why =
            "the server requires TLS, and this connection is not encrypted: use TLS (hark --tls)";
        io::Error::new(io::ErrorKind::InvalidData, Self(why.to_owned()))
    }
}

/// TLS configuration, shared by the dialers of many servers.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    trust: Trust,
}

/// TLS over TCP, without fallback to plain text: nothing is sent to a server
/// that does not prove its identity.
#[derive(Debug)]
pub struct TlsDial {
    tcp: TcpDial,
    name: ServerName<'static>,
    tls: Tls,
}

impl Tls {
    /// Offers `protocols` by ALPN. Reads files, which blocks.
    pub(crate) fn new(trust: &Trust, protocols: &[&str]) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(authorities(trust)?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| TrustError::NoAuthorities(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        Ok(Self {
            config: Arc::new(config),
            trust: trust.clone(),
        })
    }

    /// Returns a dialer for the server at `address`, whose certificate must
    /// be valid for its host.
    pub(crate) fn dial(&self, address: &str) -> Result<TlsDial, TrustError> {
        Ok(TlsDial {
            tcp: TcpDial::new(address),
            name: host(address)?,
            tls: self.clone(),
        })
    }
}

impl TlsDial {
    /// Returns a dialer for the server at `address`, `HOST:PORT`, whose
    /// certificate must be valid for that host. Offers `protocols` by ALPN.
    /// Reads files, which blocks.
    ///
    /// # Errors
    /// If no authority is trusted, or the address has no valid host name.
    pub fn new(address: &str, trust: &Trust, protocols: &[&str]) -> Result<Self, TrustError> {
        let name = host(address)?;
        Ok(Self {
            tcp: TcpDial::new(address),
            name,
            tls: Tls::new(trust, protocols)?,
        })
    }

    /// Replaces the error of a failed handshake with a readable explanation.
    fn explain(&self, error: io::Error) -> io::Error {
        let reason = match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(reason) => reason,
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                let why = "the server closed the connection during the TLS handshake; does it support TLS?";
                return io::Error::new(error.kind(), why);
            }
            None => return error,
        };
        let permanent = |why: String| io::Error::new(io::ErrorKind::InvalidData, TlsError(why));
        match reason {
            rustls::Error::InvalidCertificate(error) => permanent(self.explain_certificate(error)),
            rustls::Error::InvalidMessage(_) => permanent("the server does not support TLS".to_owned()),
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => permanent(
                "the server refused the handshake: it has no certificate, or no common cipher suite"
                    .to_owned(),
            ),
            rustls::Error::AlertReceived(AlertDescription::InternalError) => {
                let why = "the server refused the connection for now, before the TLS handshake";
                io::Error::new(io::ErrorKind::ConnectionRefused, why)
            }
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                permanent("the server does not support HTTP/2 over TLS, which gRPC needs".to_owned())
            }
            rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => {
                permanent(format!("the TLS versions or features are incompatible: {reason}"))
            }
            _ => error,
        }
    }

    fn explain_certificate(&self, error: &CertificateError) -> String {
        let host = self.name.to_str();
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => match &self.tls.trust {
                Trust::System => {
                    "the server's certificate is not trusted: its issuer is unknown to this machine; \
                     name the authority with --ca FILE"
                        .to_owned()
                }
                Trust::File(file) => {
                    format!(
                        "the server's certificate is not trusted: its issuer is not in {}",
                        file.display()
                    )
                }
            },
            CertificateError::NotValidForNameContext { presented, .. } => {
                format!("the server's certificate is not valid for {host}, only for {}", names(presented))
            }
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("the server's certificate expired on {}", date(*not_after))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                let date = date(*not_before);
                format!("the server's certificate is valid from {date}; is the clock of this machine right?")
            }
            CertificateError::Other(other) if other.to_string() == AUTHORITY_AS_SERVER => {
                "the server's certificate is a CA certificate (CA:TRUE); \
                 make one with basicConstraints CA:FALSE"
                    .to_owned()
            }
            other => format!("the server's certificate is invalid: {other}"),
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

/// Parses the host of an address as a name of a certificate.
fn host(address: &str) -> Result<ServerName<'static>, TrustError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| TrustError::BadName(host.to_owned()))
}

fn authorities(trust: &Trust) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    match trust {
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            // Systems keep some authorities that webpki cannot parse.
            let (taken, _) = roots.add_parsable_certificates(found.certs);
            if taken == 0 {
                let why = found
                    .errors
                    .first()
                    .map_or_else(|| "none found".to_owned(), ToString::to_string);
                return Err(TrustError::NoAuthorities(why));
            }
        }
        Trust::File(path) => {
            let unreadable = |source| TrustError::Unreadable {
                path: path.clone(),
                source,
            };
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

/// Formats the names of a certificate, which rustls passes as
/// `DnsName("hark.test")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| match name.split_once('(') {
        Some((_, rest)) => rest.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    match presented.iter().map(bare).collect::<Vec<_>>() {
        names if names.is_empty() => "no name".to_owned(),
        names => names.join(", "),
    }
}

fn date(time: UnixTime) -> String {
    let timestamp = i64::try_from(time.as_secs())
        .ok()
        .and_then(|second| Timestamp::from_second(second).ok());
    timestamp.map_or_else(
        || "a date out of range".to_owned(),
        |time| time.strftime("%Y-%m-%d").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_names_are_shown_bare() {
        let presented = ["DnsName(\"hark.test\")", "IpAddress(192.0.2.1)"].map(str::to_owned);
        assert_eq!(names(&presented), "hark.test, 192.0.2.1");
        assert_eq!(names(&[]), "no name");
    }

    #[test]
    fn invalid_host_name_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let dial = |address| {
            TlsDial::new(address, &Trust::File(folder.path().join("none")), &[]).unwrap_err()
        };
        assert!(matches!(dial("not a host:1"), TrustError::BadName(name) if name == "not a host"));
        for good in ["hark.test:1", "192.0.2.1:1", "[::1]:1"] {
            assert!(
                matches!(dial(good), TrustError::Unreadable { .. }),
                "{good}"
            );
        }
    }

    #[test]
    fn file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error =
            TlsDial::new("hark.test:1", &Trust::File(file.path().to_owned()), &[]).unwrap_err();
        assert!(matches!(error, TrustError::NoCertificate(_)), "{error}");
    }
}
