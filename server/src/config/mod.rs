//! The settings of `harkd`: flags with their defaults and units, each also read from an
//! environment variable `HARKD_…` and from the configuration file.

mod configuration;
mod expiry;
mod file;
mod http;
mod listen;
mod rate_limits;
mod rooms;
mod store;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hark_protocol::UserName;
use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX};

use crate::chat::{MayList, Rules};
use crate::front::{MayWatch, Settings, Tls, WatchLogs};
use crate::logging::{self, Watchers};
use crate::server::ConnectionLimits;
use crate::shard::{COUNTER_MAX, ShardConfig, Sync};

pub use configuration::{Configuration, ConfigurationError};
pub use expiry::{Age, ExpiryArgs};
pub use http::HttpArgs;
pub use listen::ListenAddress;
pub use rate_limits::RateLimitArgs;
pub use rooms::RoomArgs;
pub use store::{ClusterArgs, Purpose, StoreArgs, StorePlace};
pub use tls::{TlsArgs, TlsArgsError};

/// A self-hosted chat server: every acknowledged message is on disk and will be delivered
#[derive(Debug, Parser)]
#[command(
    name = "harkd",
    version,
    max_term_width = 100,
    // The usage line that clap generates lists flags set by a variable as if they were
    // required.
    override_usage = "harkd [OPTIONS]\n       harkd [OPTIONS] <COMMAND>"
)]
pub struct Cli {
    /// The command to run instead of the server.
    #[command(subcommand)]
    pub command: Option<AdminCommand>,
    /// The server's settings.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// An administrative command.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Manage accounts: in a cluster at any time, in a folder while its server is stopped
    #[command(override_usage = "harkd user [OPTIONS] <COMMAND>")]
    User(UserArgs),
    /// Administer the running server, through a socket in the folder of its store
    #[command(override_usage = "harkd admin [OPTIONS] <COMMAND>")]
    Admin(AdminArgs),
    /// Restore a store from a backup of `harkd admin backup`, and verify it
    #[command(override_usage = "harkd restore [OPTIONS] <BACKUP> <FOLDER>")]
    Restore {
        /// The folder of the backup
        backup: PathBuf,
        /// The store's folder, which is empty or does not exist
        folder: PathBuf,
    },
    /// Verify every record and message of a store
    #[command(override_usage = "harkd check [OPTIONS] <FOLDER>")]
    Check {
        /// The store's folder
        folder: PathBuf,
        /// Replace damaged messages with gaps, so that the rest of an inbox can be read. A
        /// store that cannot be opened is salvaged: its intact parts are written to a new log,
        /// and the damaged log is kept beside it
        #[arg(long)]
        drop_damaged: bool,
    },
    /// Print the accounts and unread messages of a store as JSON lines: of a cluster at any
    /// time, of a folder while its server is stopped
    #[command(override_usage = "harkd export [OPTIONS] [STORE]")]
    Export {
        /// The store: a folder, or a cluster as in --store [default: that of --store]
        #[arg(value_name = "STORE")]
        place: Option<PathBuf>,
        /// Export the intact parts of a damaged store, with gaps for the rest
        #[arg(long)]
        salvage: bool,
    },
    /// Import accounts and messages from JSON lines on standard input. Message numbers are
    /// kept; existing accounts and messages are skipped
    #[command(override_usage = "harkd import [OPTIONS] [STORE]")]
    Import {
        /// The store, created if it does not exist: a folder, or a cluster as in --store
        /// [default: that of --store]
        #[arg(value_name = "STORE")]
        place: Option<PathBuf>,
    },
}

/// The arguments of `harkd admin`.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Print JSON: one object per line
    #[arg(long, global = true)]
    pub json: bool,
    /// For set-password: read the password from the first line of this file [default:
    /// HARKD_PASSWORD, or a prompt]
    #[arg(long, global = true, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: hark_admin::Command,
}

/// The settings of a server.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration file in TOML, with the names of the flags (`max-frame = 65536`). Flags
    /// override variables, and variables override the file [default: /etc/hark/harkd.toml, if
    /// it exists]
    #[arg(
        long,
        global = true,
        env = "HARKD_CONFIG",
        value_name = "FILE",
        help_heading = "Configuration"
    )]
    pub config: Option<PathBuf>,
    /// Check the settings and the files that they name, print every setting with its source,
    /// and exit
    #[arg(long, help_heading = "Configuration")]
    pub check: bool,
    /// Address and port to listen on. `:PORT` and `localhost:PORT` listen on the loopback;
    /// `0.0.0.0:PORT` or `[::]:PORT` on every interface; `unix:PATH` on a Unix socket, whose
    /// clients count as local. May be repeated; HARKD_LISTEN takes a comma-separated list
    #[arg(
        long,
        env = "HARKD_LISTEN",
        value_name = "ADDRESS:PORT|unix:PATH",
        default_value = "127.0.0.1:3000",
        help_heading = "Network"
    )]
    pub listen: Vec<CommaList<ListenAddress>>,
    /// Address and port on which to serve metrics for Prometheus at `/metrics`; no login is
    /// required [default: none]
    #[arg(long, env = "HARKD_METRICS", value_name = "ADDRESS:PORT",
          value_parser = listen::parse_tcp, help_heading = "Network")]
    pub metrics: Option<SocketAddr>,
    /// TLS, and confirmations for a server that other machines can reach.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// HTTP and WebSocket.
    #[command(flatten)]
    pub http: HttpArgs,
    /// The store.
    #[command(flatten)]
    pub store: StoreArgs,
    /// When a message counts as stored: `always`: after a sync to the disk; `os`: once the
    /// operating system has it, which survives a crash of the server but not a power failure
    #[arg(long, env = "HARKD_SYNC", value_enum, default_value_t = SyncArg::Always, help_heading = "Store")]
    pub sync: SyncArg,
    /// Number messages starting after this number instead of from the clock, if the machine's
    /// clock cannot be trusted. It must be at least as high as every number ever used at this
    /// address
    #[arg(long, env = "HARKD_NUMBERS_AFTER", value_name = "NUMBER", help_heading = "Store",
          value_parser = clap::value_parser!(u64).range(..=COUNTER_MAX))]
    pub numbers_after: Option<u64>,
    /// Size of a log segment, in MiB; at least 1.5 times --max-frame. Segments are allocated
    /// ahead of use; sends are refused if there is no space for three
    #[arg(long, env = "HARKD_SEGMENT_SIZE", value_name = "MIB", default_value_t = 64, help_heading = "Store",
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub segment_size: u64,
    /// The limits on space and time.
    #[command(flatten)]
    pub expiry: ExpiryArgs,
    /// Require a password for every account, and a login to send, list and delete
    #[arg(long, env = "HARKD_REQUIRE_PASSWORD", value_parser = parse_bool, help_heading = "Accounts")]
    pub require_password: bool,
    /// Who may create accounts: `open`: anyone; `closed`: only the operator (`harkd user add`)
    /// and admins
    #[arg(long, env = "HARKD_REGISTRATION", value_enum, default_value_t = Registration::Open,
          help_heading = "Accounts")]
    pub registration: Registration,
    /// A user that may create and delete any account and set any password, after logging in
    /// with a password. May be repeated; HARKD_ADMIN takes a comma-separated list. Create the
    /// account first: harkd user add USER [default: none]
    #[arg(
        long = "admin",
        env = "HARKD_ADMIN",
        value_name = "USER",
        help_heading = "Accounts"
    )]
    pub admins: Vec<CommaList<UserName>>,
    /// Who may list the users: `all`: anyone; `users`: users that are logged in; `admin`:
    /// admins only
    #[arg(long, env = "HARKD_LIST", value_enum, default_value_t = ListArg::All, help_heading = "Accounts")]
    pub list: ListArg,
    /// Rooms.
    #[command(flatten)]
    pub rooms: RoomArgs,
    /// Largest frame, in bytes; the largest text is 256 bytes smaller
    #[arg(long, env = "HARKD_MAX_FRAME", value_name = "BYTES", default_value_t = FRAME_BYTES_DEFAULT,
          help_heading = "Limits",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(FRAME_MIN..=FRAME_MAX))]
    pub max_frame: usize,
    /// Maximum number of connections
    #[arg(
        long,
        env = "HARKD_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value_t = 120_000,
        help_heading = "Limits"
    )]
    pub max_connections: usize,
    /// Maximum number of connections from one address. An IPv6 network (/64) counts as one
    /// address. The loopback is exempt without --limit-loopback
    #[arg(
        long,
        env = "HARKD_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "COUNT",
        default_value_t = 1000,
        help_heading = "Limits"
    )]
    pub max_connections_per_address: usize,
    /// Rate limits.
    #[command(flatten)]
    pub rate_limits: RateLimitArgs,
    /// Maximum number of unread messages of one user; further sends are refused with
    /// `queue-full`
    #[arg(long, env = "HARKD_MAX_QUEUED_MESSAGES", value_name = "COUNT", help_heading = "Limits",
          default_value_t = ShardConfig::DEFAULT.queued_messages_max)]
    pub max_queued_messages: u64,
    /// Maximum number of bytes of unread messages of one user; further sends are refused with
    /// `queue-full`
    #[arg(long, env = "HARKD_MAX_QUEUED_BYTES", value_name = "BYTES", help_heading = "Limits",
          default_value_t = ShardConfig::DEFAULT.queued_bytes_max)]
    pub max_queued_bytes: u64,
    /// Maximum number of accounts
    #[arg(long, env = "HARKD_MAX_ACCOUNTS", value_name = "COUNT", help_heading = "Limits",
          default_value_t = ShardConfig::DEFAULT.accounts_max)]
    pub max_accounts: usize,
    /// Maximum number of send sessions that are remembered. One address may have a quarter of
    /// them; the loopback is exempt without --limit-loopback
    #[arg(long, env = "HARKD_MAX_SESSIONS", value_name = "COUNT", help_heading = "Limits",
          default_value_t = ShardConfig::DEFAULT.sessions_max)]
    pub max_sessions: usize,
    /// Maximum number of names in one answer to `list`; a longer answer is truncated and
    /// marked as such
    #[arg(
        long,
        env = "HARKD_MAX_LIST",
        value_name = "COUNT",
        default_value_t = 10_000,
        help_heading = "Limits"
    )]
    pub max_list: usize,
    /// Idle timeout, in seconds, of a connection that owes acknowledgements, does not read or
    /// has not sent a byte yet; also the time within which a frame must be complete
    #[arg(long, env = "HARKD_ACK_TIMEOUT", value_name = "SECONDS", default_value_t = 60,
          help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub ack_timeout: u64,
    /// How long a graceful shutdown may take, in seconds
    #[arg(long, env = "HARKD_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 10,
          help_heading = "Limits", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub drain_timeout: u64,
    /// Level of the log on standard error: error, warn, info, debug, trace or off; or a filter
    /// such as `info,hark_server::log=debug`. Texts and passwords are never logged. At info
    /// and above, lines of one kind are limited to a burst of 100, then one per second
    #[arg(
        long,
        env = "HARKD_LOG",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Logging"
    )]
    pub log: String,
    /// Format of the log
    #[arg(long, env = "HARKD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text,
          help_heading = "Logging")]
    pub log_format: LogFormat,
    /// Who may watch the log over gRPC: a USER, with its password; or `loopback`, any caller
    /// on this machine. Create the account first: harkd user add USER [default: no one]
    #[arg(
        long,
        env = "HARKD_WATCH_LOGS",
        value_name = "USER|loopback",
        help_heading = "Logging"
    )]
    pub watch_logs: Option<MayWatch>,
}

/// The smallest `--max-frame`: a classic message fits.
const FRAME_MIN: u64 = CLASSIC_BLOCK_BYTES as u64;
const FRAME_MAX: u64 = FRAME_BYTES_MAX as u64;

/// The durability of a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyncArg {
    /// After a sync to the disk.
    Always,
    /// Once the operating system has it.
    Os,
}

/// The permission to create accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Registration {
    /// Anyone.
    Open,
    /// Only the operator.
    Closed,
}

/// The permission to list the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListArg {
    /// Anyone; with `--require-password`, users that are logged in.
    All,
    /// Users that are logged in.
    Users,
    /// Admins.
    Admin,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For human readers.
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// The arguments of `harkd user`.
#[derive(Debug, Args)]
pub struct UserArgs {
    /// The action.
    #[command(subcommand)]
    pub action: UserAction,
}

/// An action on accounts.
#[derive(Debug, Subcommand)]
pub enum UserAction {
    /// Create an account
    #[command(override_usage = "harkd user add [OPTIONS] <NAME>")]
    Add {
        /// The account's name
        name: String,
        /// Create an account without a password, open to anyone
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
        /// Read the password from the first line of this file [default: HARKD_PASSWORD, or a
        /// prompt]
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Delete an account and its unread messages
    #[command(override_usage = "harkd user remove [OPTIONS] <NAME>")]
    Remove {
        /// The account's name
        name: String,
    },
    /// Print the accounts, one per line
    #[command(override_usage = "harkd user list [OPTIONS]")]
    List,
    /// Set the password of an account
    #[command(override_usage = "harkd user set-password [OPTIONS] <NAME>")]
    SetPassword {
        /// The account's name
        name: String,
        /// Read the password from the first line of this file [default: HARKD_PASSWORD, or a
        /// prompt]
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// A comma-separated list. Empty elements are skipped, so that an empty
/// variable is an empty list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommaList<T>(pub Vec<T>);

impl<T: FromStr> FromStr for CommaList<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.split(',')
            .filter(|element| !element.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Parses a boolean variable. An empty one is false.
fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match &*text.to_ascii_lowercase() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("expected true, yes, on or 1, or else false, no, off or 0"),
    }
}

impl ServeArgs {
    /// Returns the addresses to listen on.
    pub fn addresses(&self) -> impl Iterator<Item = &ListenAddress> {
        self.listen
            .iter()
            .flat_map(|CommaList(addresses)| addresses)
    }

    /// Checks what can be checked without serving, except the certificate, which
    /// [`TlsArgs::read`] checks.
    ///
    /// # Errors
    /// One line with the cause and the remedy.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.addresses().next().is_none() {
            anyhow::bail!("no address to listen on; name one with --listen");
        }
        for address in self.addresses() {
            self.tls
                .check(address, self.http.has_proxy(), self.require_password)?;
        }
        logging::filter(&self.log)?;
        let is_local = matches!(
            self.store.place()?,
            StorePlace::Folder(_) | StorePlace::Memory
        );
        self.expiry.check(is_local, self.segment_bytes())?;
        self.store.check()
    }

    /// Returns the names of the admins.
    pub fn admins(&self) -> impl Iterator<Item = &UserName> {
        self.admins.iter().flat_map(|CommaList(names)| names)
    }

    /// Returns the rules of the chat.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            frame_bytes_max: self.max_frame,
            list_names_max: self.max_list,
            require_password: self.require_password,
            open_registration: self.registration == Registration::Open,
            admins: self.admins().cloned().collect(),
            log_watcher: match &self.watch_logs {
                Some(MayWatch::User(user)) => Some(user.clone()),
                Some(MayWatch::Loopback) | None => None,
            },
            may_list: match self.list {
                ListArg::All => MayList::All,
                ListArg::Users => MayList::Users,
                ListArg::Admin => MayList::Admins,
            },
            rooms: self.rooms.may_create(),
            rates: self.rate_limits.rates(),
        }
    }

    /// Returns the settings of the fronts, with the watchers of the log.
    #[must_use]
    pub fn settings(&self, watchers: &Watchers, tls: Option<Tls>) -> Settings {
        let watch = |may_watch| WatchLogs {
            may_watch,
            watchers: watchers.clone(),
        };
        Settings {
            ack_timeout: Duration::from_secs(self.ack_timeout),
            watch_logs: self.watch_logs.clone().map(watch),
            tls,
            http: self.http.settings(),
        }
    }

    /// Returns the limits of the server.
    #[must_use]
    pub const fn limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            connections_max: self.max_connections,
            connections_per_address_max: self.max_connections_per_address,
            connects: self.rate_limits.connects(),
            on_loopback: self.rate_limits.limit_loopback,
            drain_timeout: Duration::from_secs(self.drain_timeout),
        }
    }

    /// Returns the size of a segment: the longest text fits with room to spare.
    const fn segment_bytes(&self) -> u64 {
        let needed = (3 * self.max_frame as u64 / 2).next_multiple_of(1 << 20);
        let asked = self.segment_size << 20;
        if asked < needed { needed } else { asked }
    }

    /// Returns the settings of the store's shard.
    #[must_use]
    pub const fn shard(&self) -> ShardConfig {
        ShardConfig {
            accounts_max: self.max_accounts,
            sessions_max: self.max_sessions,
            queued_messages_max: self.max_queued_messages,
            queued_bytes_max: self.max_queued_bytes,
            rooms: self.rooms.limits(self.expiry.max_age()),
            space: self.expiry.space(),
            expiry: self.expiry.expiry(),
            sync: match self.sync {
                SyncArg::Always => Sync::Always,
                SyncArg::Os => Sync::Os,
            },
            numbers_after: self.numbers_after,
            segment_bytes: Some(self.segment_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_an_environment_variable_of_its_name() {
        let command = Cli::command();
        for argument in command
            .get_arguments()
            .filter(|a| !matches!(a.get_long(), Some("check" | "help" | "version")))
        {
            let long = argument.get_long().unwrap();
            let expected = format!("HARKD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(
                argument.get_env().and_then(|env| env.to_str()),
                Some(&*expected),
                "--{long}"
            );
        }
    }

    #[test]
    fn admins_are_repeated_or_comma_separated() {
        let cli = Cli::parse_from(["harkd", "--admin=ann", "--admin=bob,eve"]);
        assert_eq!(
            cli.serve.rules().admins,
            ["ann", "bob", "eve"].map(|name| name.parse().unwrap())
        );
        let cli = Cli::parse_from(["harkd", "--admin="]);
        assert_eq!(cli.serve.rules().admins, []);
        assert!(Cli::try_parse_from(["harkd", "--admin=a b"]).is_err());
    }

    #[test]
    fn boolean_variable_takes_the_usual_words() {
        for (text, expected) in [
            ("1", true),
            ("Yes", true),
            ("on", true),
            ("true", true),
            ("0", false),
            ("no", false),
            ("OFF", false),
            ("false", false),
            ("", false),
        ] {
            assert_eq!(parse_bool(text), Ok(expected), "{text:?}");
        }
        assert!(parse_bool("maybe").is_err() && parse_bool("2").is_err());
        assert!(
            Cli::parse_from(["harkd", "--require-password"])
                .serve
                .require_password
        );
    }

    #[test]
    fn every_flag_is_under_a_known_heading() {
        let mut headings: Vec<_> = Cli::command()
            .get_arguments()
            .map(|argument| argument.get_help_heading().unwrap_or("none").to_owned())
            .collect();
        headings.sort();
        headings.dedup();
        let first_words = headings
            .iter()
            .map(|heading| heading.split(' ').next().unwrap());
        let expected = [
            "Accounts",
            "Cluster",
            "Configuration",
            "HTTP",
            "Limits",
            "Logging",
            "Network",
            "Rate",
            "Rooms",
            "Store",
            "TLS",
        ];
        assert_eq!(first_words.collect::<Vec<_>>(), expected);
    }
}
