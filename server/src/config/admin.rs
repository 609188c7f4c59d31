//! The command line of `harkd admin`, which administers a running server.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

/// The arguments of `harkd admin`.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Print JSON: one object per line
    #[arg(long, global = true)]
    pub json: bool,
    /// The command.
    #[command(subcommand)]
    pub command: ServerCommand,
}

/// A command for a running server.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Print figures of the server and its store
    Stats {
        /// Print them again every two seconds
        #[arg(long)]
        watch: bool,
    },
    /// Print the open connections, in order of their ids
    Connections {
        /// Begin after this id
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: u64,
        /// Print at most this many, up to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: u32,
    },
    /// Print the accounts and their unread messages, in order of their names
    Users {
        /// Begin after this name
        #[arg(
            long,
            value_name = "NAME",
            default_value = "",
            hide_default_value = true
        )]
        after: String,
        /// Print at most this many, up to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: u32,
    },
    /// Print one account
    Show {
        /// The name of the account
        name: String,
    },
    /// Close connections: by id, by user, or by address or network. The clients may connect
    /// again
    Kick {
        /// An id (7), an address (192.0.2.1), a network (192.0.2.0/24), or a user
        target: String,
        /// Take the target for a user, whatever it looks like
        #[arg(long)]
        user: bool,
    },
    /// Keep a user from logging in and sending, until it is resumed. Messages for it still wait
    Suspend {
        /// The name of the account
        name: String,
    },
    /// Let a suspended user log in and send again
    Resume {
        /// The name of the account
        name: String,
    },
    /// Refuse connections from a network, and close those that are open
    Ban {
        /// An address (192.0.2.1) or a network (192.0.2.0/24)
        network: String,
        /// End the ban after this time, such as 30m, 24h or 7d [default: it has no end]
        #[arg(long = "for", value_name = "TIME")]
        time: Option<BanTime>,
    },
    /// End a ban
    Unban {
        /// The network, as it was banned
        network: String,
    },
    /// Print the bans
    Bans,
    /// Set the password of an account
    SetPassword {
        /// The name of the account
        name: String,
        /// Read the password from the first line of this file [default: HARKD_PASSWORD, or a
        /// prompt]
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Set the level of the log until the next reload or start
    Log {
        /// A level or a filter, as for harkd --log
        #[arg(long, value_name = "LEVEL")]
        level: String,
    },
    /// Reload the configuration, as SIGHUP does
    Reload,
    /// Shut the server down gracefully, as SIGTERM does
    Drain,
    /// Copy the store into a folder beside traffic, and print the progress
    Backup {
        /// A folder that is empty or does not exist, on the server's machine
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
}

/// The duration of a ban: a number with `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BanTime(pub Duration);

impl FromStr for BanTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected a time such as 30m, 24h or 7d, not {text:?}");
        let unit = text.chars().last().ok_or_else(expected)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(expected()),
        };
        let number: u64 = text
            .strip_suffix(unit)
            .and_then(|number| number.parse().ok())
            .filter(|number| *number > 0)
            .ok_or_else(expected)?;
        Ok(Self(Duration::from_secs(number.saturating_mul(seconds))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_ban_has_a_unit() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(BanTime(Duration::from_secs(seconds))));
        }
        for text in ["", "m", "5", "0s", "-1h", "5 m", "5w"] {
            assert!(text.parse::<BanTime>().is_err(), "{text}");
        }
    }
}
