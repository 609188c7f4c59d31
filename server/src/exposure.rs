//! Who can reach the server, and what it takes to be reached from elsewhere:
//! the flags for TLS, and the rule that nothing is open by oversight. What is
//! spoken is a matter of [`crate::front`].

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::front::{Tls, TlsError};

/// How connections are protected.
#[derive(Debug, Clone, Default, Args)]
pub struct ExposureArgs {
    /// The server's certificate, and those that lead to its authority, in PEM: TLS is then
    /// spoken on the same port. SIGHUP reads it and its key again
    #[arg(long, env = "HARKD_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM. Not everybody on the machine may be able
    /// to read it
    #[arg(long, env = "HARKD_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Refuse what is not encrypted [default: with a certificate, everywhere but on the
    /// loopback]
    #[arg(long, env = "HARKD_TLS_ONLY", requires = "tls_cert", conflicts_with = "allow_plaintext")]
    pub tls_only: bool,
    /// Take connections that are not encrypted where other machines can reach the server:
    /// everybody on the way can read and change what is said
    #[arg(long, env = "HARKD_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
    /// Let everybody who can reach the server from other machines enter accounts without a
    /// password, and send as nobody
    #[arg(long, env = "HARKD_ALLOW_OPEN_ACCOUNTS")]
    pub allow_open_accounts: bool,
}

/// The server would be open to other machines, and nobody has said that it
/// should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("other machines can reach {listen}: add {}", .missing.join(", and "))]
pub struct Exposed {
    listen: SocketAddr,
    missing: Vec<&'static str>,
}

impl ExposureArgs {
    /// Whether a server with these settings may listen there. On the loopback
    /// it may.
    ///
    /// # Errors
    /// What has to be said first, all of it at once.
    pub fn check(&self, listen: SocketAddr, require_password: bool) -> Result<(), Exposed> {
        let mut missing = Vec::new();
        if self.tls_cert.is_none() && !self.allow_plaintext {
            missing.push("--tls-cert FILE and --tls-key FILE (or --allow-plaintext)");
        }
        if !require_password && !self.allow_open_accounts {
            missing.push("--require-password (or --allow-open-accounts)");
        }
        if is_loopback(listen) || missing.is_empty() { Ok(()) } else { Err(Exposed { listen, missing }) }
    }

    /// Reads the certificate and its key, where there are some.
    ///
    /// # Errors
    /// As [`Tls::read`].
    pub fn tls(&self) -> Result<Option<Tls>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        Tls::read(certificate.clone(), key.clone()).map(Some)
    }

    /// Whether what is not TLS is refused by a server that listens there.
    #[must_use]
    pub fn is_tls_only(&self, listen: SocketAddr) -> bool {
        let is_plain_fine = self.allow_plaintext || is_loopback(listen);
        self.tls_only || (self.tls_cert.is_some() && !is_plain_fine)
    }
}

fn is_loopback(listen: SocketAddr) -> bool {
    listen.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::config::{Cli, ServeArgs};

    fn flags(words: &[&str]) -> ServeArgs {
        Cli::try_parse_from([&["harkd"], words].concat()).unwrap().serve
    }

    #[track_caller]
    fn check(listen: &str, words: &[&str], expected: Option<&str>) {
        let (listen, flags) = (listen.parse().unwrap(), flags(words));
        let refusal = flags.exposure.check(listen, flags.require_password).err();
        assert_eq!(refusal.map(|refusal| refusal.to_string()).as_deref(), expected, "{listen} {words:?}");
    }

    const TLS: &[&str] = &["--tls-cert=c", "--tls-key=k"];

    #[test]
    fn on_the_loopback_nothing_has_to_be_said() {
        for listen in ["127.0.0.1:3000", "127.9.9.9:0", "[::1]:3000", "[::ffff:127.0.0.1]:1"] {
            check(listen, &[], None);
        }
    }

    #[test]
    fn elsewhere_all_that_is_missing_is_said_at_once() {
        for listen in ["0.0.0.0:3000", "[::]:3000", "192.168.1.2:3000", "[::ffff:10.0.0.1]:3000"] {
            let both = format!(
                "other machines can reach {listen}: add --tls-cert FILE and --tls-key FILE (or \
                 --allow-plaintext), and --require-password (or --allow-open-accounts)"
            );
            check(listen, &[], Some(&both));
            let tls = format!(
                "other machines can reach {listen}: add --tls-cert FILE and --tls-key FILE (or --allow-plaintext)"
            );
            check(listen, &["--require-password"], Some(&tls));
            check(listen, &["--allow-open-accounts"], Some(&tls));
            let accounts = format!(
                "other machines can reach {listen}: add --require-password (or --allow-open-accounts)"
            );
            check(listen, &["--allow-plaintext"], Some(&accounts));
            check(listen, TLS, Some(&accounts));
            check(listen, &["--allow-plaintext", "--allow-open-accounts"], None);
            check(listen, &[TLS, &["--require-password"]].concat(), None);
        }
    }

    #[test]
    fn with_a_certificate_plain_text_is_refused_unless_on_the_loopback_or_allowed() {
        let is_tls_only = |listen: &str, words: &[&str]| {
            flags(&[TLS, words].concat()).exposure.is_tls_only(listen.parse().unwrap())
        };
        assert!(is_tls_only("0.0.0.0:1", &[]));
        assert!(!is_tls_only("0.0.0.0:1", &["--allow-plaintext"]));
        assert!(!is_tls_only("127.0.0.1:1", &[]));
        assert!(is_tls_only("127.0.0.1:1", &["--tls-only"]));
        assert!(!flags(&["--allow-plaintext"]).exposure.is_tls_only("0.0.0.0:1".parse().unwrap()));
    }

    #[test]
    fn certificate_and_key_come_together_and_opposites_do_not() {
        for words in [
            &["--tls-cert=c"][..],
            &["--tls-key=k"],
            &["--tls-only"],
            &[TLS, &["--tls-only", "--allow-plaintext"]].concat(),
        ] {
            assert!(Cli::try_parse_from([&["harkd"], words].concat()).is_err(), "{words:?}");
        }
    }
}
