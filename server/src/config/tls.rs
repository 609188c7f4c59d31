//! The flags of TLS, and the rule that a server that other machines can reach is insecure only
//! on purpose. [`crate::front`] has the handshake.

use std::path::PathBuf;

use clap::Args;

use super::ListenAddress;
use crate::front::{Tls, TlsError};

/// The flags of TLS, and the confirmations for an insecure server.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS and exposure")]
pub struct TlsArgs {
    /// The server's certificate chain, in PEM. The same port then accepts TLS. SIGHUP reloads
    /// it and its key
    #[arg(
        long,
        env = "HARKD_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM. It must not be world-readable
    #[arg(
        long,
        env = "HARKD_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// Refuse connections without TLS [default: if there is a certificate and the address is not
    /// the loopback]
    #[arg(long, env = "HARKD_TLS_ONLY", value_parser = super::parse_bool)]
    pub tls_only: bool,
    /// Accept connections without TLS from other machines. Anyone on the path can then read and
    /// alter messages and passwords
    #[arg(long, env = "HARKD_ALLOW_PLAINTEXT", value_parser = super::parse_bool)]
    pub allow_plaintext: bool,
    /// Let anyone on other machines use accounts without a password, and send anonymously
    #[arg(long, env = "HARKD_ALLOW_OPEN_ACCOUNTS", value_parser = super::parse_bool)]
    pub allow_open_accounts: bool,
}

/// A combination of flags that is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsArgsError {
    /// Other machines could reach an insecure server.
    #[error("other machines can reach {listen}: add {}", .missing.join(", and "))]
    Exposed {
        /// The address.
        listen: ListenAddress,
        /// The flags that are missing.
        missing: Vec<&'static str>,
    },
    /// The server would accept no connection.
    #[error("--tls-only needs a certificate: add --tls-cert FILE and --tls-key FILE")]
    NoCertificate,
    /// A proxy would forward anyone to open accounts.
    #[error(
        "other machines can reach the server by its proxy (--proxy-from): add --require-password (or --allow-open-accounts)"
    )]
    OpenProxy,
    /// Plaintext is both refused and allowed.
    #[error("--tls-only and --allow-plaintext are mutually exclusive; remove one")]
    Contradiction,
}

impl TlsArgs {
    /// Checks that a server with these settings may listen on `listen`. On the
    /// loopback it always may, unless a proxy forwards to it.
    ///
    /// # Errors
    /// [`TlsArgsError`], with all flags that are missing.
    pub fn check(
        &self,
        listen: &ListenAddress,
        has_proxy: bool,
        require_password: bool,
    ) -> Result<(), TlsArgsError> {
        // Not left to clap, which treats a variable set to false as present.
        if self.tls_only && self.tls_cert.is_none() {
            return Err(TlsArgsError::NoCertificate);
        }
        if self.tls_only && self.allow_plaintext {
            return Err(TlsArgsError::Contradiction);
        }
        let mut missing = Vec::new();
        if self.tls_cert.is_none() && !self.allow_plaintext {
            missing.push("--tls-cert FILE and --tls-key FILE (or --allow-plaintext)");
        }
        if !require_password && !self.allow_open_accounts {
            missing.push("--require-password (or --allow-open-accounts)");
        }
        if !listen.is_local() && !missing.is_empty() {
            let listen = listen.clone();
            Err(TlsArgsError::Exposed { listen, missing })
        } else if has_proxy && !require_password && !self.allow_open_accounts {
            Err(TlsArgsError::OpenProxy)
        } else {
            Ok(())
        }
    }

    /// Reads the certificate and its key, if they are set.
    ///
    /// # Errors
    /// As [`Tls::read`].
    pub fn read(&self) -> Result<Option<Tls>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        Tls::read(certificate, key).map(Some)
    }

    /// Returns whether a server that listens on `listen` refuses plain text.
    #[must_use]
    pub fn is_tls_only(&self, listen: &ListenAddress) -> bool {
        let is_plaintext_allowed = self.allow_plaintext || listen.is_local();
        self.tls_only || (self.tls_cert.is_some() && !is_plaintext_allowed)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::config::{Cli, ServeArgs, TlsArgsError};

    fn flags(words: &[&str]) -> ServeArgs {
        Cli::try_parse_from([&["harkd"], words].concat())
            .unwrap()
            .serve
    }

    #[track_caller]
    fn check(listen: &str, words: &[&str], expected: Option<&str>) {
        let (listen, flags) = (listen.parse().unwrap(), flags(words));
        let refusal = flags
            .tls
            .check(&listen, flags.http.has_proxy(), flags.require_password)
            .err();
        assert_eq!(
            refusal.map(|refusal| refusal.to_string()).as_deref(),
            expected,
            "{listen} {words:?}"
        );
    }

    const TLS: &[&str] = &["--tls-cert=c", "--tls-key=k"];

    #[test]
    fn loopback_needs_no_confirmation() {
        for listen in [
            "127.0.0.1:3000",
            "127.9.9.9:0",
            "[::1]:3000",
            "unix:/run/hark/harkd.sock",
            "[::ffff:127.0.0.1]:1",
        ] {
            check(listen, &[], None);
        }
    }

    #[test]
    fn refusal_names_all_missing_flags() {
        for listen in [
            "0.0.0.0:3000",
            "[::]:3000",
            "192.168.1.2:3000",
            "[::ffff:10.0.0.1]:3000",
        ] {
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
            check(
                listen,
                &["--allow-plaintext", "--allow-open-accounts"],
                None,
            );
            check(listen, &[TLS, &["--require-password"]].concat(), None);
        }
    }

    #[test]
    fn proxy_needs_passwords_or_a_confirmation() {
        const PROXY: &str = "--proxy-from=127.0.0.1";
        let refusal = "other machines can reach the server by its proxy (--proxy-from): add \
                       --require-password (or --allow-open-accounts)";
        check("127.0.0.1:3000", &[PROXY], Some(refusal));
        check("127.0.0.1:3000", &[PROXY, "--require-password"], None);
        check("127.0.0.1:3000", &[PROXY, "--allow-open-accounts"], None);
    }

    #[test]
    fn certificate_refuses_plaintext_from_other_machines() {
        let is_tls_only = |listen: &str, words: &[&str]| {
            flags(&[TLS, words].concat())
                .tls
                .is_tls_only(&listen.parse().unwrap())
        };
        assert!(is_tls_only("0.0.0.0:1", &[]));
        assert!(!is_tls_only("0.0.0.0:1", &["--allow-plaintext"]));
        assert!(!is_tls_only("127.0.0.1:1", &[]));
        assert!(is_tls_only("127.0.0.1:1", &["--tls-only"]));
        assert!(
            !flags(&["--allow-plaintext"])
                .tls
                .is_tls_only(&"0.0.0.0:1".parse().unwrap())
        );
    }

    #[test]
    fn certificate_needs_a_key_and_opposites_conflict() {
        for words in [&["--tls-cert=c"][..], &["--tls-key=k"]] {
            assert!(
                Cli::try_parse_from([&["harkd"], words].concat()).is_err(),
                "{words:?}"
            );
        }
        let refusal = |words: &[&str]| {
            flags(words)
                .tls
                .check(&"127.0.0.1:1".parse().unwrap(), false, false)
        };
        assert_eq!(refusal(&["--tls-only"]), Err(TlsArgsError::NoCertificate));
        let both = [TLS, &["--tls-only", "--allow-plaintext"]].concat();
        assert_eq!(refusal(&both), Err(TlsArgsError::Contradiction));
    }
}
