//! Certificates that are made for a test: an authority that the clients of the
//! tests trust, others that nobody does, and what they have signed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// The one whom the clients of the tests trust.
static TRUSTED: LazyLock<Authority> = LazyLock::new(Authority::new);

/// Who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate of a server and its key, as files: by default for
/// `127.0.0.1` and `localhost`, signed by an [`Authority`] whose own
/// certificate lies beside.
#[derive(Debug)]
pub struct Certificate {
    folder: TempDir,
}

impl Authority {
    /// One whom nobody trusts yet.
    ///
    /// # Panics
    /// Where there is no randomness.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), pem, der }
    }

    /// The one whom the clients of the tests trust.
    #[must_use]
    pub fn trusted() -> &'static Self {
        &TRUSTED
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate for these names and addresses.
    ///
    /// # Panics
    /// Where a name is none.
    #[must_use]
    pub fn sign(&self, names: &[&str]) -> Certificate {
        let certificate = Certificate { folder: tempfile::tempdir().expect("a temporary folder") };
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
    /// One that the clients of the tests trust.
    #[must_use]
    pub fn trusted() -> Self {
        TRUSTED.sign(&["127.0.0.1", "localhost"])
    }

    /// The file of the certificate.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// The file of its key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// The file of the authority that has signed it.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Puts another certificate and key in the place of these.
    ///
    /// # Panics
    /// Where a name is none.
    pub fn replace(&self, authority: &Authority, names: &[&str]) {
        self.replace_by(authority, params(names));
    }

    /// Puts one in its place that ended long ago.
    ///
    /// # Panics
    /// Where a name is none.
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

    /// Puts one in its place that nobody but itself has signed.
    ///
    /// # Panics
    /// Where a name is none.
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
/// Where there is no such file.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What a client needs to know that trusts [`Authority::trusted`], and asks for
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
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}
