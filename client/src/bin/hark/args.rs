//! The command line: flags, their environment variables, and sub-commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hark_protocol::UserName;

const AFTER_HELP: &str = "\
Without a command, hark is a chat in the terminal; where stdin or stdout is no \
terminal, it reads one command a line and prints exactly one line for each, in order:
  ok [...]             done; `ok 3` after connect: messages waiting; `ok 2 amy,bob` after list
  notok CODE TEXT      refused, nothing was changed
  unknown TEXT         it may or may not have been done
  notsent TEXT         not done, the server was not asked
and, between them, `message NUMBER SENDER TIME TEXT` for each message received. SENDER is a \
comma where nobody was logged in. In TEXT, \\n, \\t, \\\\ and \\u{...} stand for what they escape. \
Lines that are empty or begin with # are skipped.

A password is asked for without echo, or read from --password-file or HARK_PASSWORD.

Exit codes:
  0  done
  1  something was refused, or the reception was taken over
  2  the command line is wrong
  3  the server could not be reached, or not in time, or an outcome is unknown
  4  something failed on this side: a file, the terminal, the output";

/// Servers that can be named: each gets its share of the time that a command
/// waits for one.
const SERVERS_MAX: usize = 16;

/// Chat over Hark: messages are kept until they are read.
#[derive(Debug, Parser)]
#[command(name = "hark", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
}

/// What every way of using hark needs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// The server, or several of one cluster, joined by commas: the next is
    /// tried when one cannot be reached or is lost, beginning with the first.
    #[arg(
        long,
        global = true,
        env = "HARK_SERVER",
        value_name = "HOST:PORT[,...]",
        default_value = "127.0.0.1:3000",
        value_parser = parse_servers
    )]
    pub(crate) server: String,
    /// Speak gRPC instead of the wire protocol; what is promised is the same.
    #[cfg(feature = "grpc")]
    #[arg(long, global = true, env = "HARK_GRPC")]
    pub(crate) grpc: bool,
    /// Speak TLS, and only with a server that proves who it is.
    #[arg(long, global = true, env = "HARK_TLS")]
    pub(crate) tls: bool,
    /// Trust the authorities in this file, in PEM, and no others; TLS is then
    /// spoken [default: those that this machine trusts].
    #[arg(long, global = true, env = "HARK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Seconds without a server, or without its answer, after which a command
    /// gives up (not in the chat).
    #[arg(
        long,
        global = true,
        env = "HARK_TIMEOUT",
        value_name = "SECONDS",
        default_value = "10",
        value_parser = parse_seconds
    )]
    pub(crate) timeout: Duration,
    /// A file whose first line is the password [default: ask, or the variable
    /// HARK_PASSWORD].
    #[arg(long, global = true, env = "HARK_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// A file whose first line is the new password, for `password` [default:
    /// ask, or the variable HARK_NEW_PASSWORD].
    #[arg(long, global = true, env = "HARK_NEW_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) new_password_file: Option<PathBuf>,
    /// Where hark remembers which messages were taken, and the lines typed
    /// [default: hark in $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, global = true, env = "HARK_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// One thing to do, instead of the chat.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Leave a message for a user.
    Send {
        /// Send as this user, without taking over its terminal [default: nobody].
        #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
        as_user: Option<UserName>,
        /// The recipient.
        user: UserName,
        /// The text; words are joined by spaces.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        text: Vec<String>,
    },
    /// Receive as a user: print its messages, one a line, and acknowledge each
    /// once it is printed.
    Listen {
        /// Print each message as a line of JSON.
        #[arg(long, env = "HARK_JSON")]
        json: bool,
        /// Stop after so many messages [default: never].
        #[arg(long, env = "HARK_COUNT", value_name = "MESSAGES")]
        count: Option<u64>,
        /// Who to receive for.
        user: UserName,
    },
    /// Make an account, with a password if one is given.
    Create {
        /// The name of the account.
        user: UserName,
    },
    /// End an account, and drop its messages.
    Delete {
        /// Delete as this user [default: nobody].
        #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
        as_user: Option<UserName>,
        /// The account.
        user: UserName,
    },
    /// List the users, one a line.
    List {
        /// List as this user [default: nobody].
        #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
        as_user: Option<UserName>,
        /// A regular expression that matches anywhere in the name [default:
        /// everybody].
        pattern: Option<String>,
    },
    /// Set the password of an account.
    Password {
        /// The account.
        user: UserName,
    },
    /// Ask whether the server is there.
    Ping,
    /// Show the log of the server as it happens, over gRPC. The server has to
    /// be started with --watch-logs.
    #[cfg(feature = "grpc")]
    Logs(LogsArguments),
    /// Manage the accounts of a stopped server: passed on to `harkd user`.
    #[command(disable_help_flag = true)]
    User {
        /// What to do: add, remove, list, set-password, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// What of the log is shown, and how.
#[cfg(feature = "grpc")]
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArguments {
    /// Ask as this user [default: nobody].
    #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
    pub(crate) as_user: Option<UserName>,
    /// This level and worse.
    #[arg(long, env = "HARK_LEVEL", default_value = "info")]
    pub(crate) level: Level,
    /// Only events of parts of the server whose name begins with this, such as
    /// hark_server::store [default: all].
    #[arg(long, env = "HARK_TARGET", value_name = "PREFIX")]
    pub(crate) target: Option<String>,
    /// Stop after so many events [default: never].
    #[arg(long, env = "HARK_LIMIT", value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Print each event as a line of JSON.
    #[arg(long, env = "HARK_JSON")]
    pub(crate) json: bool,
}

/// How bad an event of the log is.
#[cfg(feature = "grpc")]
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

fn parse_servers(text: &str) -> Result<String, String> {
    let servers: Vec<&str> = text.split(',').collect();
    if servers.len() > SERVERS_MAX {
        return Err(format!("these are {} servers, and at most {SERVERS_MAX} can be tried", servers.len()));
    }
    for (place, server) in servers.iter().enumerate() {
        let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if !matches!(port.map(str::parse::<u16>), Some(Ok(_))) {
            return Err(
                "it must be HOST:PORT, such as 127.0.0.1:3000, or several joined by commas".to_owned()
            );
        }
        if servers.iter().take(place).any(|other| other == server) {
            return Err(format!("{server} is named twice"));
        }
    }
    Ok(text.to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("it must be a number of seconds from 1 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        assert!(parse_servers("localhost:3000").is_ok());
        assert!(parse_servers("[::1]:3000").is_ok());
        for bad in ["localhost", ":3000", "localhost:x", "localhost:70000"] {
            assert!(parse_servers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_are_joined_by_commas_each_once_and_not_without_end() {
        assert_eq!(parse_servers("b:1,a:1,a:2").as_deref(), Ok("b:1,a:1,a:2"));
        for bad in ["a:1,", ",a:1", "a:1,,b:1", "a:1, b", "a:1,b:1,a:1"] {
            assert!(parse_servers(bad).is_err(), "{bad}");
        }
        let list = |count: usize| (1..=count).map(|n| format!("a:{n}")).collect::<Vec<_>>().join(",");
        assert!(parse_servers(&list(SERVERS_MAX)).is_ok());
        assert!(parse_servers(&list(SERVERS_MAX + 1)).is_err());
    }
}
