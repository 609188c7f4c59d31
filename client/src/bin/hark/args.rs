//! The command line: flags, their environment variables, and sub-commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hark_protocol::message::{RoomMode, Scope};
use hark_protocol::{DeviceName, RoomName, TokenName, UserName};

const AFTER_HELP: &str = "\
Without a command, hark is a chat in the terminal. If stdin or stdout is not a terminal, \
hark reads one command per line and prints one line for each, in order:
  ok [...]             done; `ok 3` after connect: messages waiting; `ok 2 amy,bob` after list
  notok CODE TEXT      refused; nothing was changed
  unknown TEXT         the outcome is unknown
  notsent TEXT         not done; the request was not sent
Before the `ok COUNT` of rooms, history, devices and tokens it prints a line for each: \
`room NAME MODE MEMBERS UNREAD NUMBER`, `past NUMBER SENDER TIME TEXT`, `device NAME TIME WAITING` or \
`token NAME SCOPE TIME`; `-` stands for no unread count, no name and no use.
Between them it prints `message NUMBER SENDER TIME TEXT` for each received message, \
`said ROOM NUMBER SENDER TIME TEXT` for each message of a room, and `gap LOG FROM TO COUNT` for \
messages that the server has removed. SENDER is a comma if the sender was anonymous, LOG if it is \
the inbox. In TEXT, \\n, \\t, \\\\ and \\u{...} are escape sequences. Empty lines and lines that begin with # are skipped.

Passwords are read from --password-file, from HARK_PASSWORD, from the token that `hark login` stored, \
from the command of the configuration, or from a prompt without echo. A token may stand for the password.

The configuration file is TOML. It has server, user, device, tls, ca, grpc, password_file, \
password_command (prints the password), history (false: as --no-history), screen (false: as --plain), state_dir, colors (auto, \
always or never), a table aliases of words that stand for the beginning of a command, and tables \
servers.NAME with a server and its settings, which `--server NAME` chooses.

Exit codes:
  0  success
  1  a request was refused, or another connection took over
  2  invalid command line or configuration file
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
    pub(crate) flags: Flags,
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
}

/// Flags of all modes. The configuration file stands in for those that are not given.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flags {
    /// The configuration file [default: hark/config.toml in $XDG_CONFIG_HOME or
    /// ~/.config].
    #[arg(long, global = true, env = "HARK_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The server, or the servers of one cluster, joined by commas, which are tried in
    /// this order; or the name of a section of the configuration file [default:
    /// 127.0.0.1:3000].
    #[arg(
        long,
        global = true,
        env = "HARK_SERVER",
        value_name = "HOST:PORT[,...]|NAME",
        value_parser = parse_servers
    )]
    pub(crate) server: Option<String>,
    /// Do it as this user, without taking over its messages. In the chat: connect as
    /// this user [default: the user of the configuration file; for `create`, `password`
    /// and `ping`, and without a configuration, anonymous].
    #[arg(long = "as", global = true, env = "HARK_AS", value_name = "USER")]
    pub(crate) as_user: Option<UserName>,
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
    /// File whose first line is the new password, for `password`, and for `create` as
    /// another user [default: prompt, or the variable HARK_NEW_PASSWORD].
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
    /// Use the chat line by line instead of on a full screen (not in commands). So does
    /// a terminal that is not capable of more, such as TERM=dumb.
    #[arg(long, global = true, env = "HARK_PLAIN")]
    pub(crate) plain: bool,
    /// Keep no local history of conversations: messages that were read, and lines
    /// that were not sent, end with hark.
    #[arg(long, global = true, env = "HARK_NO_HISTORY")]
    pub(crate) no_history: bool,
    /// Directory of the local history, of the record of seen messages, of the device
    /// name and of the typed lines [default: hark in $XDG_STATE_HOME or
    /// ~/.local/state].
    #[arg(long, global = true, env = "HARK_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// A single task, instead of the chat.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Send a message to a user or a room.
    Send {
        /// The recipient: a user, or a room such as #team.
        user: UserName,
        /// The text; several words are joined by spaces. `-` reads it from stdin. Flags
        /// of hark are none of it, unless they follow `--`.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        text: Vec<String>,
    },
    /// Receive as a user, with its rooms: print the messages, one per line, and
    /// acknowledge each after printing it. On a terminal, the lines are for people.
    Listen {
        /// Print each message as a line of JSON.
        #[arg(long, env = "HARK_JSON")]
        json: bool,
        /// Run a command for each message, with the text on its stdin, and HARK_SENDER,
        /// HARK_ROOM, HARK_NUMBER and HARK_TIME in its environment. The message is
        /// acknowledged if the command succeeds.
        #[arg(
            long,
            env = "HARK_EXEC",
            value_name = "COMMAND",
            conflicts_with = "json"
        )]
        exec: Option<String>,
        /// Stop after this many messages [default: never].
        #[arg(long, env = "HARK_COUNT", value_name = "MESSAGES")]
        count: Option<u64>,
        /// The user to receive for [default: as --as].
        user: Option<UserName>,
    },
    /// Receive as a user into the local history, and run a command for each new message,
    /// as `listen --exec` does. The messages stay unread.
    Watch {
        /// The command [default: none].
        #[arg(long, env = "HARK_EXEC", value_name = "COMMAND")]
        exec: Option<String>,
        /// The user to receive for [default: as --as].
        user: Option<UserName>,
    },
    /// Print the messages with a user or of a room, the oldest first. Those with a user
    /// come from the local history of this device, those of a room from the server, and
    /// from the local history as far as the server has removed them.
    History {
        /// The user or the room.
        name: UserName,
        /// Number of messages [default: 20; all with --since].
        count: Option<u32>,
        /// Only messages of a room with lower numbers [default: all].
        #[arg(long, env = "HARK_BEFORE", value_name = "NUMBER")]
        before: Option<u64>,
        /// Only messages since a time: `yesterday`, `today`, a date, a date and a time, or
        /// a duration such as 2h or 7d.
        #[arg(long, env = "HARK_SINCE", value_name = "TIME")]
        since: Option<String>,
        /// Do not ask the server.
        #[arg(long, env = "HARK_LOCAL")]
        local: bool,
    },
    /// Print the local history as lines of JSON.
    Export {
        /// Only the conversation with this user or room [default: all].
        name: Option<UserName>,
    },
    /// Print the conversations with unread messages in the local history: name, unread
    /// messages, and how many of them name you.
    Status {
        /// Print one line for a status bar, such as `3 (bob 2, #team 1)`, or none.
        #[arg(long, env = "HARK_SHORT")]
        short: bool,
    },
    /// Create an account, with a password if one is given.
    Create {
        /// The name of the account.
        user: UserName,
    },
    /// Delete an account and its messages, or a room. Asks first if stdin is a terminal.
    Delete {
        /// Do not ask.
        #[arg(long, env = "HARK_YES")]
        yes: bool,
        /// The account or the room.
        user: UserName,
    },
    /// List the users, one per line.
    List {
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
    /// Create a token with the password, and store it on this device: from now on, it
    /// stands for the password.
    Login {
        /// The user [default: as --as].
        user: Option<UserName>,
    },
    /// Remove the stored token from this device.
    Logout {
        /// The user [default: as --as].
        user: Option<UserName>,
    },
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

/// A single task of rooms, devices or tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum RoomTask {
    /// Create a room, or change one of yours.
    Room {
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
    /// Mark the messages of a room as read up to a number.
    Seen {
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
    Devices,
    /// Forget a device of yours.
    Forget {
        /// The device [default: the one without a name].
        name: Option<DeviceName>,
    },
    /// Manage your tokens, which stand for your password with fewer rights.
    #[command(subcommand)]
    Token(TokenTask),
}

/// A single task of tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenTask {
    /// Create a token, or replace the one of this name; print its secret, which is shown once.
    /// It ends with the password.
    Create {
        /// The name, such as backup.
        name: TokenName,
        /// `all`: everything but the administration of the account; `receive`;
        /// `send`; or `send:NAME`: send to this user or room.
        #[arg(default_value_t = Scope::All)]
        scope: Scope,
    },
    /// List your tokens: name, scope, time of the last use, up to an hour old.
    List,
    /// End a token, and close the connections that entered by it.
    Revoke {
        /// The name.
        name: TokenName,
    },
}

/// A command about a room.
#[derive(Debug, Clone, Args)]
pub(crate) struct InRoom {
    /// The room, such as #team.
    pub(crate) room: RoomName,
}

/// A command about a member of a room.
#[derive(Debug, Clone, Args)]
pub(crate) struct OfMember {
    /// The room, such as #team.
    pub(crate) room: RoomName,
    /// The user.
    pub(crate) user: UserName,
}

/// A command about another user.
#[derive(Debug, Clone, Args)]
pub(crate) struct WithUser {
    /// The other user.
    pub(crate) user: UserName,
}

/// Selection and format of log events.
#[cfg(feature = "grpc")]
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArguments {
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

/// Checks a list of servers, or the name of a section of the configuration file.
fn parse_servers(text: &str) -> Result<String, String> {
    let is_part_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !text.is_empty() && text.chars().all(is_part_of_a_name) {
        return Ok(text.to_owned());
    }
    check_servers(text)
}

/// Checks a list of servers.
pub(crate) fn check_servers(text: &str) -> Result<String, String> {
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
        assert!(parse_servers("work").is_ok());
        for bad in ["localhost", ":3000", "localhost:x", "localhost:70000"] {
            assert!(check_servers(bad).is_err(), "{bad}");
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
