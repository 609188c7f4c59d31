//! Certificates made for a test: a trusted authority, untrusted ones, and the
//! certificates signed by them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// The authority that the clients of the tests trust.
static TRUSTED: LazyLock<Authority> = LazyLock::new(Authority::new);

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate and key of a server, as files: by default for `127.0.0.1` and
/// `localhost`, signed by an [`Authority`] whose certificate is in the same
/// folder.
#[derive(Debug)]
pub struct Certificate {
    folder: TempDir,
}

impl Authority {
    /// Creates an untrusted authority.
    ///
    /// # Panics
    /// If no randomness is available.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of a test");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self {
            issuer: Issuer::new(params, key),
            pem,
            der,
        }
    }

    /// Returns the authority that the clients of the tests trust.
    #[must_use]
    pub fn trusted() -> &'static Self {
        &TRUSTED
    }

    /// Returns the authority's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate for these names and addresses.
    ///
    /// # Panics
    /// If a name is invalid.
    #[must_use]
    pub fn sign(&self, names: &[&str]) -> Certificate {
        let certificate = Certificate {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        certificate.replace(self, names);
        certificate
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificate {
    /// Creates a trusted certificate.
    #[must_use]
    pub fn trusted() -> Self {
        TRUSTED.sign(&["127.0.0.1", "localhost"])
    }

    /// Returns the file of the certificate.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// Returns the file of the key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Returns the file of the authority's certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Replaces certificate and key.
    ///
    /// # Panics
    /// If a name is invalid.
    pub fn replace(&self, authority: &Authority, names: &[&str]) {
        self.replace_by(authority, params(names));
    }

    /// Replaces the certificate by an expired one.
    ///
    /// # Panics
    /// If a name is invalid.
    pub fn replace_by_expired(&self, authority: &Authority, names: &[&str]) {
        let mut params = params(names);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 3);
        self.replace_by(authority, params);
    }

    fn replace_by(&self, authority: &Authority, params: CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        self.write(&certificate.pem(), &key.serialize_pem(), authority.pem());
    }

    /// Replaces the certificate by a self-signed one.
    ///
    /// # Panics
    /// If a name is invalid.
    pub fn replace_by_self_signed(&self, names: &[&str], is_authority: bool) {
        let (mut params, key) = (params(names), KeyPair::generate().unwrap());
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = params.self_signed(&key).unwrap().pem();
        self.write(&certificate, &key.serialize_pem(), &certificate);
    }

    fn write(&self, certificate: &str, key: &str, authority: &str) {
        fs::write(self.path(), certificate).unwrap();
        fs::write(self.authority(), authority).unwrap();
        fs::write(self.key(), key).unwrap();
        set_mode(&self.key(), 0o600);
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.is_ca = IsCa::ExplicitNoCa;
    params
}

/// Sets the permissions of a file.
///
/// # Panics
/// If the file does not exist.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Returns a TLS configuration that trusts [`Authority::trusted`] and offers
/// these protocols.
///
/// # Panics
/// Never.
#[must_use]
pub fn client_config(protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(TRUSTED.der.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|protocol| protocol.as_bytes().to_vec())
        .collect();
    Arc::new(config)
}
