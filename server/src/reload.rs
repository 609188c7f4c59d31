//! The reload of the configuration while clients are connected: it reads flags, environment
//! and file again, applies what can change, and names what needs a restart.

use std::ffi::OsString;
use std::sync::Arc;

use crate::chat::Chat;
use crate::config::{Configuration, ServeArgs};
use crate::front::Tls;
use crate::logging::LogLevel;
use crate::process;
use crate::server::Server;

/// The settings that can change at run time. A reload applies all of them together.
const RELOADABLE: [&str; 18] = [
    "admin",
    "drain-timeout",
    "limit-loopback",
    "list",
    "log",
    "max-bytes-per-second",
    "max-commands-per-second",
    "max-connections",
    "max-connections-per-address",
    "max-connects-per-second",
    "max-list",
    "max-user-bytes-per-second",
    "max-user-commands-per-second",
    "max-user-deliveries-per-second",
    "registration",
    "rooms",
    "tls-cert",
    "tls-key",
];

/// The parts of a running server whose settings can change.
#[derive(Debug)]
pub(crate) struct Reloader {
    /// The command line of the process.
    pub(crate) arguments: Vec<OsString>,
    /// The settings in effect.
    pub(crate) configuration: Configuration,
    /// The maximum number of open files.
    pub(crate) files_max: u64,
    pub(crate) chat: Arc<Chat>,
    pub(crate) server: Arc<Server>,
    pub(crate) tls: Option<Tls>,
    pub(crate) log: LogLevel,
}

/// The result of a reload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// The names of the settings that changed.
    pub(crate) changed: Vec<String>,
    /// The names of the settings that will change at the next start.
    pub(crate) needs_restart: Vec<String>,
}

impl Reloader {
    /// Reloads the configuration and the certificate, and logs the result. Blocks while it
    /// reads small files.
    ///
    /// # Errors
    /// If the configuration is invalid; the former one stays in use.
    pub(crate) fn reload(&mut self) -> anyhow::Result<Reloaded> {
        let reloaded = self.reload_settings();
        match &reloaded {
            Ok(Reloaded {
                changed,
                needs_restart,
            }) => {
                let (changed, restart) = (changed.join(" "), needs_restart.join(" "));
                if !restart.is_empty() {
                    tracing::warn!(settings = restart, "settings changed that need a restart");
                }
                tracing::info!(changed, "configuration reloaded");
            }
            Err(error) => {
                let error = format_args!("{error:#}");
                tracing::error!(%error, "cannot reload the configuration; the previous one stays in use");
            }
        }
        reloaded
    }

    fn reload_settings(&mut self) -> anyhow::Result<Reloaded> {
        let mut new = Configuration::load(&self.arguments)?;
        new.serve.check()?;
        let all = new.changed_since(&self.configuration);
        let is_reloadable = |name: &String| {
            RELOADABLE.contains(&&**name) && (self.tls.is_some() || !name.starts_with("tls-"))
        };
        let (mut changed, needs_restart): (Vec<_>, Vec<_>) =
            all.into_iter().partition(is_reloadable);
        let mut kept = needs_restart.clone();
        self.log.set(&new.serve.log)?;
        if !self.reload_certificate(&new.serve) {
            // The next reload tries again.
            kept.extend(changed.extract_if(.., |name| name.starts_with("tls-")));
        }
        self.chat.update_rules(new.serve.rules());
        let limits = process::within_files(new.serve.limits(), self.files_max);
        self.server.set_limits(limits);
        new.keep(&self.configuration, &kept);
        self.configuration = new;
        Ok(Reloaded {
            changed,
            needs_restart,
        })
    }

    /// Reads the certificate again. Returns whether it is in use now.
    fn reload_certificate(&self, new: &ServeArgs) -> bool {
        let Some(current) = &self.tls else {
            return true;
        };
        match new.tls.read() {
            Ok(Some(tls)) => {
                current.replace(&tls);
                tracing::info!("certificate reloaded");
                true
            }
            // Without a certificate, TLS ends with the process.
            Ok(None) => false,
            Err(error) => {
                let error = anyhow::Error::from(error);
                let error = format_args!("{error:#}");
                tracing::error!(%error, "cannot reload the certificate; the previous one stays in use");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::Cli;

    #[test]
    fn reloadable_settings_exist() {
        let command = Cli::command();
        let flags: Vec<_> = command
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .collect();
        for name in RELOADABLE {
            assert!(flags.contains(&name), "{name}");
        }
    }
}
