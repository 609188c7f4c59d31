//! The command line: flags, their environment variables, and sub-commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hark_protocol::message::RoomMode;
use hark_protocol::{DeviceName, RoomName, UserName};

const AFTER_HELP: &str = "\
Without a command, hark is a chat in the terminal. If stdin or stdout is not a terminal, \
hark reads one command per line and prints one line for each, in order:
  ok [...]             done; `ok 3` after connect: messages waiting; `ok 2 amy,bob` after list
  notok CODE TEXT      refused; nothing was changed
  unknown TEXT         the outcome is unknown
  notsent TEXT         not done; the request was not sent
Before the `ok COUNT` of rooms, history and devices it prints a line for each: \
`room NAME MODE MEMBERS UNREAD NUMBER`, `past NUMBER SENDER TIME TEXT` or `device NAME TIME WAITING`; \
`-` stands for no unread count and no name.
Between them it prints `message NUMBER SENDER TIME TEXT` for each received message, \
`said ROOM NUMBER SENDER TIME TEXT` for each message of a room, and `gap LOG FROM TO COUNT` for \
messages that the server has removed. SENDER is a comma if the sender was anonymous, LOG if it is \
the inbox. In TEXT, \\n, \\t, \\\\ and \\u{...} are escape sequences. Empty lines and lines that begin with # are skipped.

Passwords are read from a prompt without echo, from --password-file, or from HARK_PASSWORD.

Exit codes:
  0  success
  1  a request was refused, or another connection took over
  2  invalid command line
  3  the server was unreachable or did not answer in time, or an outcome is unknown
  4  local failure: a file, the terminal, or the output";

/// Largest number of servers. Each gets its share of the time for which a
/// command waits.
const SERVERS_MAX: usize = 16;

/// A chat that keeps messages until they are read.
#[derive(Debug, Parser)]
#[command(name = "hark", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
}

/// Settings of all modes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// The server, or the servers of one cluster, joined by commas. They are
    /// tried in this order.
    #[arg(
        long,
        global = true,
        env = "HARK_SERVER",
        value_name = "HOST:PORT[,...]",
        default_value = "127.0.0.1:3000",
        value_parser = parse_servers
    )]
    pub(crate) server: String,
    /// Use gRPC instead of the wire protocol.
    #[cfg(feature = "grpc")]
    #[arg(long, global = true, env = "HARK_GRPC")]
    pub(crate) grpc: bool,
    /// Use TLS, and verify the server's certificate.
    #[arg(long, global = true, env = "HARK_TLS")]
    pub(crate) tls: bool,
    /// Trust only the authorities in this PEM file; implies --tls [default: the
    /// authorities that this machine trusts].
    #[arg(long, global = true, env = "HARK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Seconds after which a command gives up if it has no server or no answer
    /// (not in the chat). `delete` waits for up to 65 s if a cluster needs it.
    #[arg(
        long,
        global = true,
        env = "HARK_TIMEOUT",
        value_name = "SECONDS",
        default_value = "10",
        value_parser = parse_seconds
    )]
    pub(crate) timeout: Duration,
    /// File whose first line is the password [default: prompt, or the variable
    /// HARK_PASSWORD].
    #[arg(long, global = true, env = "HARK_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// File whose first line is the new password, for `password` [default:
    /// prompt, or the variable HARK_NEW_PASSWORD].
    #[arg(
        long,
        global = true,
        env = "HARK_NEW_PASSWORD_FILE",
        value_name = "FILE"
    )]
    pub(crate) new_password_file: Option<PathBuf>,
    /// The device that receives. Each device of a user gets every message [default:
    /// a name that was made up at the first start].
    #[arg(long, global = true, env = "HARK_DEVICE", value_name = "NAME")]
    pub(crate) device: Option<DeviceName>,
    /// Directory of the record of seen messages, of the device name and of the
    /// history [default: hark in $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, global = true, env = "HARK_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// A single task, instead of the chat.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Send a message to a user or a room.
    Send {
        /// Send as this user, without taking over its messages [default:
        /// anonymous].
        #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
        as_user: Option<UserName>,
        /// The recipient: a user, or a room such as #team.
        user: UserName,
        /// The text; several words are joined by spaces.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        text: Vec<String>,
    },
    /// Receive as a user, with its rooms: print the messages, one per line, and
    /// acknowledge each after printing it.
    Listen {
        /// Print each message as a line of JSON.
        #[arg(long, env = "HARK_JSON")]
        json: bool,
        /// Stop after this many messages [default: never].
        #[arg(long, env = "HARK_COUNT", value_name = "MESSAGES")]
        count: Option<u64>,
        /// The user to receive for.
        user: UserName,
    },
    /// Create an account, with a password if one is given.
    Create {
        /// The name of the account.
        user: UserName,
    },
    /// Delete an account and its messages, or a room.
    Delete {
        /// Delete as this user [default: anonymous].
        #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
        as_user: Option<UserName>,
        /// The account or the room.
        user: UserName,
    },
    /// List the users, one per line.
    List {
        /// List as this user [default: anonymous].
        #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
        as_user: Option<UserName>,
        /// A regular expression, unanchored [default: all users].
        pattern: Option<String>,
    },
    /// Set the password of an account.
    Password {
        /// The account.
        user: UserName,
    },
    #[command(flatten)]
    InRooms(RoomTask),
    /// Check that the server responds.
    Ping,
    /// Show the log of the server live, over gRPC. The server must run with
    /// --watch-logs.
    #[cfg(feature = "grpc")]
    Logs(LogsArguments),
    /// Administer a running server over the network, as a user that its setting
    /// `admin` names.
    #[cfg(feature = "admin")]
    Admin(AdminArguments),
    /// Manage the accounts of a stopped server, or of a cluster, with `harkd
    /// user`.
    #[command(disable_help_flag = true)]
    User {
        /// Arguments of `harkd user`: add, remove, list, set-password, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// A single task of rooms or devices.
#[derive(Debug, Subcommand)]
pub(crate) enum RoomTask {
    /// Create a room, or change one of yours.
    Room {
        #[command(flatten)]
        login: Login,
        /// The room, such as #team.
        room: RoomName,
        /// `open`: any user may join and read back; `news`: as open, but only
        /// owners send; `invite`: invited users may join.
        #[arg(default_value = "open", value_parser = parse_mode)]
        mode: RoomMode,
        /// How long messages are kept, such as 90d or 12h [default: as before, or
        /// the server's default].
        #[arg(value_parser = parse_keep)]
        keep: Option<u64>,
    },
    /// Become a member of a room.
    Join(InRoom),
    /// Leave a room.
    Leave(InRoom),
    /// List your rooms, then open ones: name, mode, members, unread messages and
    /// last number.
    Rooms {
        #[command(flatten)]
        login: Login,
        /// A regular expression, unanchored [default: all rooms].
        pattern: Option<String>,
    },
    /// Invite a user to your room.
    Invite(OfMember),
    /// Expel a user from your room.
    Expel(OfMember),
    /// Make a member an owner of your room.
    Own(OfMember),
    /// List the members of a room, one per line.
    Members(InRoom),
    /// Print the last messages of a room, the oldest first.
    History {
        #[command(flatten)]
        login: Login,
        /// The room.
        room: RoomName,
        /// Number of messages, at most 256.
        #[arg(default_value_t = 20)]
        count: u32,
        /// Only messages with lower numbers [default: all].
        #[arg(
            long,
            env = "HARK_BEFORE",
            value_name = "NUMBER",
            default_value_t = 0,
            hide_default_value = true
        )]
        before: u64,
    },
    /// Mark the messages of a room as read up to a number.
    Seen {
        #[command(flatten)]
        login: Login,
        /// The room.
        room: RoomName,
        /// The number.
        number: u64,
    },
    /// Begin or resume the conversation with a user; print its room.
    Talk(WithUser),
    /// Block a user: no conversation, and no messages.
    Block(WithUser),
    /// End the block of a user.
    Unblock(WithUser),
    /// List your devices: name, time of the last connection, waiting messages.
    Devices {
        #[command(flatten)]
        login: Login,
    },
    /// Forget a device of yours.
    Forget {
        #[command(flatten)]
        login: Login,
        /// The device [default: the one without a name].
        name: Option<DeviceName>,
    },
}

/// The user of a command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Login {
    /// Do it as this user.
    #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
    pub(crate) as_user: Option<UserName>,
}

/// A command about a room.
#[derive(Debug, Clone, Args)]
pub(crate) struct InRoom {
    #[command(flatten)]
    pub(crate) login: Login,
    /// The room, such as #team.
    pub(crate) room: RoomName,
}

/// A command about a member of a room.
#[derive(Debug, Clone, Args)]
pub(crate) struct OfMember {
    #[command(flatten)]
    pub(crate) login: Login,
    /// The room, such as #team.
    pub(crate) room: RoomName,
    /// The user.
    pub(crate) user: UserName,
}

/// A command about another user.
#[derive(Debug, Clone, Args)]
pub(crate) struct WithUser {
    #[command(flatten)]
    pub(crate) login: Login,
    /// The other user.
    pub(crate) user: UserName,
}

/// Selection and format of log events.
#[cfg(feature = "grpc")]
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArguments {
    /// Watch as this user [default: anonymous].
    #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
    pub(crate) as_user: Option<UserName>,
    /// Least severe level to show.
    #[arg(long, env = "HARK_LEVEL", default_value = "info")]
    pub(crate) level: Level,
    /// Only events whose target has this prefix, such as hark_server::log
    /// [default: all].
    #[arg(long, env = "HARK_TARGET", value_name = "PREFIX")]
    pub(crate) target: Option<String>,
    /// Stop after this many events [default: never].
    #[arg(long, env = "HARK_LIMIT", value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Print each event as a line of JSON.
    #[arg(long, env = "HARK_JSON")]
    pub(crate) json: bool,
}

/// A command for an administrator.
#[cfg(feature = "admin")]
#[derive(Debug, Args)]
pub(crate) struct AdminArguments {
    /// The admin.
    #[arg(long = "as", env = "HARK_AS", value_name = "USER")]
    pub(crate) as_user: UserName,
    /// Print JSON: one object per line.
    #[arg(long, global = true, env = "HARK_JSON")]
    pub(crate) json: bool,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: hark_admin::Command,
}

/// Level of a log event.
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
        return Err(format!(
            "at most {SERVERS_MAX} servers are allowed, but there are {}",
            servers.len()
        ));
    }
    for (place, server) in servers.iter().enumerate() {
        let port = server
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port);
        if !matches!(port.map(str::parse::<u16>), Some(Ok(_))) {
            return Err(
                "expected HOST:PORT, such as 127.0.0.1:3000, or several joined by commas"
                    .to_owned(),
            );
        }
        if servers.iter().take(place).any(|other| other == server) {
            return Err(format!("duplicate server {server}"));
        }
    }
    Ok(text.to_owned())
}

fn parse_mode(text: &str) -> Result<RoomMode, String> {
    RoomMode::parse(text).ok_or_else(|| "expected open, news or invite".to_owned())
}

fn parse_keep(text: &str) -> Result<u64, String> {
    hark_client::command::seconds(text)
        .ok_or_else(|| "expected seconds, or a time such as 90d, 12h or 30m".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a number of seconds from 1 to 86400".to_owned()),
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
    fn server_is_a_host_and_a_port() {
        assert!(parse_servers("localhost:3000").is_ok());
        assert!(parse_servers("[::1]:3000").is_ok());
        for bad in ["localhost", ":3000", "localhost:x", "localhost:70000"] {
            assert!(parse_servers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn server_list_is_checked() {
        assert_eq!(parse_servers("b:1,a:1,a:2").as_deref(), Ok("b:1,a:1,a:2"));
        for bad in ["a:1,", ",a:1", "a:1,,b:1", "a:1, b", "a:1,b:1,a:1"] {
            assert!(parse_servers(bad).is_err(), "{bad}");
        }
        let list = |count: usize| {
            (1..=count)
                .map(|n| format!("a:{n}"))
                .collect::<Vec<_>>()
                .join(",")
        };
        assert!(parse_servers(&list(SERVERS_MAX)).is_ok());
        assert!(parse_servers(&list(SERVERS_MAX + 1)).is_err());
    }
}
