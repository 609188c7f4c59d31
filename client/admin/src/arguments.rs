//! The command line of the commands, with the help that users read.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// A command for a running server.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    /// Print the rooms, in no particular order
    Rooms {
        /// Begin at this place, which the page before named
        #[arg(long, value_name = "PLACE", default_value_t = 0)]
        after: u64,
        /// Print at most this many, up to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: u32,
    },
    /// Print one account with its devices and limits, or one room
    Show {
        /// The name of the account, or of the room (#team)
        name: String,
    },
    /// Print the users and addresses that use the server most
    Top {
        /// What counts
        #[arg(long, value_enum, default_value_t = Ranking::Requests)]
        by: Ranking,
        /// Print at most this many, up to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: u32,
        /// Measure for this long
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
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
    /// Set limits of one user, which replace those of the server; without options, print them
    Throttle {
        /// The name of the account
        name: String,
        /// The limits.
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Remove the oldest messages of a user or a room. Attached devices are told by a gap;
    /// receivers by `connect` are not
    Purge {
        /// The name of the account, or of the room (#team)
        name: String,
        /// The number of the last message to remove, or `all`
        #[arg(value_name = "UP-TO", value_parser = parse_up_to)]
        up_to: u64,
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
    /// Copy the store into a folder beside traffic, and print the progress. Only on the server's
    /// machine
    Backup {
        /// A folder that is empty or does not exist
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// Copy the live parts of the store's files together, beside traffic, to free the rest
    Compact,
    /// Read every message of the store, beside traffic, and print what is damaged
    Check,
}

/// What counts for a place among the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ranking {
    /// Requests per second
    Requests,
    /// Bytes of sent texts per second
    Bytes,
    /// Delivered messages per second
    Deliveries,
    /// Unread messages: the fullest inboxes
    Waiting,
}

/// Limits of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct LimitArgs {
    /// Commands per second, over all its connections (0: no limit)
    #[arg(long, value_name = "COUNT")]
    pub commands: Option<u64>,
    /// Bytes of texts per second, over all its connections (0: no limit)
    #[arg(long, value_name = "BYTES")]
    pub bytes: Option<u64>,
    /// Deliveries to rooms per second (0: no limit)
    #[arg(long, value_name = "COUNT")]
    pub deliveries: Option<u64>,
    /// Unread messages that it has at most
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub queued_messages: Option<u64>,
    /// Bytes of unread messages that it has at most
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub queued_bytes: Option<u64>,
    /// End all limits of the user first
    #[arg(long)]
    pub reset: bool,
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

/// Parses the number of the last message to remove; 0 is all of them.
fn parse_up_to(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ if text == "all" => Ok(0),
        _ => Err("expected the number of a message, or all".to_owned()),
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

    #[test]
    fn purge_takes_a_number_or_all() {
        assert_eq!(parse_up_to("7"), Ok(7));
        assert_eq!(parse_up_to("all"), Ok(0));
        for text in ["0", "", "-1", "ALL"] {
            assert!(parse_up_to(text).is_err(), "{text}");
        }
    }
}
