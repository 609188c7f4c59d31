//! The flags of `harkd`, each with its default and its unit, and each also as
//! an environment variable `HARKD_…`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hark_protocol::UserName;
use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX};

use crate::chat::{MayList, Rules};
use crate::exposure::ExposureArgs;
use crate::front::{MayWatch, Settings, Tls, WatchLogs};
use crate::logging::Watchers;
use crate::place::StoreArgs;
use crate::server::Limits;
use crate::shard::{COUNTER_MAX, ShardConfig, Sync};
use crate::throttle::ThrottleArgs;

/// A chat server that loses nothing: what it has answered `ok` is on disk.
#[derive(Debug, Parser)]
#[command(name = "harkd", version, max_term_width = 100)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The server's settings.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What `harkd` does beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look after the accounts: of a cluster at any time, of a store on disk while its server is stopped
    User(UserArgs),
    /// Read everything in a store, without serving it
    Check {
        /// The folder of the store
        folder: PathBuf,
        /// Put gaps in the place of damaged messages, so that their readers get the others. A
        /// store that does not open is salvaged: what can be read of it is written anew,
        /// and the damaged files are kept beside it
        #[arg(long)]
        drop_damaged: bool,
    },
    /// Print the accounts and the unread messages of a store as JSON lines
    Export {
        /// The folder of the store
        folder: PathBuf,
        /// Print what can be read of a damaged store, with gaps in the place of the rest
        #[arg(long)]
        salvage: bool,
    },
    /// Take accounts and messages from JSON lines on standard input. Numbers are kept; what
    /// the store has already is left as it is
    Import {
        /// The folder of the store, which is made if there is none
        folder: PathBuf,
    },
}

/// The settings of a server.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(long, env = "HARKD_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,
    /// How connections are protected.
    #[command(flatten)]
    pub exposure: ExposureArgs,
    /// Where messages are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// When a message counts as stored: `always` after a sync to the disk; `os` once the
    /// operating system has it, which survives a killed server but not a machine that
    /// loses power
    #[arg(long, env = "HARKD_SYNC", value_enum, default_value_t = SyncArg::Always)]
    pub sync: SyncArg,
    /// Number messages after this number instead of by the clock, on a machine without a
    /// right clock. It has to be above every number that was ever used at this address
    #[arg(long, env = "HARKD_NUMBERS_AFTER", value_name = "NUMBER",
          value_parser = clap::value_parser!(u64).range(..=COUNTER_MAX))]
    pub numbers_after: Option<u64>,
    /// Size of a file of the store, in MiB; at least half as much again as --max-frame.
    /// Files are made ahead of use; sends are refused when there is no space for three
    #[arg(long, env = "HARKD_SEGMENT_SIZE", value_name = "MIB", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub segment_size: u64,
    /// Every account needs a password, and only who has entered one may send, list and
    /// delete
    #[arg(long, env = "HARKD_REQUIRE_PASSWORD")]
    pub require_password: bool,
    /// Whether everybody may create accounts, or only the operator (`harkd user add`)
    #[arg(long, env = "HARKD_REGISTRATION", value_enum, default_value_t = Registration::Open)]
    pub registration: Registration,
    /// A user who may create and delete anybody and set anybody's password, once it has
    /// entered its own. Repeat it for more; HARKD_ADMIN takes several, with commas. Make the
    /// account first (`harkd user add`): nobody else can [default: nobody]
    #[arg(long = "admin", env = "HARKD_ADMIN", value_name = "USER", value_delimiter = ',')]
    pub admins: Vec<UserName>,
    /// Who may list the users: `all`; `users`, who have entered an account; `admin`, only
    /// admins
    #[arg(long, env = "HARKD_LIST", value_enum, default_value_t = ListArg::All)]
    pub list: ListArg,
    /// Largest frame, in bytes; a text has at most 256 bytes less
    #[arg(long, env = "HARKD_MAX_FRAME", value_name = "BYTES", default_value_t = FRAME_BYTES_DEFAULT,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(FRAME_MIN..=FRAME_MAX))]
    pub max_frame: usize,
    /// Connections in all
    #[arg(long, env = "HARKD_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 120_000)]
    pub max_connections: usize,
    /// Connections from one address. An IPv6 network (/64) is one address. Not for this
    /// machine, unless --limit-loopback
    #[arg(long, env = "HARKD_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT", default_value_t = 1000)]
    pub max_connections_per_address: usize,
    /// How much may come how fast.
    #[command(flatten)]
    pub throttle: ThrottleArgs,
    /// Unread messages of one user; a sender then gets `queue-full`
    #[arg(long, env = "HARKD_MAX_QUEUED_MESSAGES", value_name = "COUNT",
          default_value_t = ShardConfig::DEFAULT.queued_messages_max)]
    pub max_queued_messages: u64,
    /// Unread messages of one user, in bytes; a sender then gets `queue-full`
    #[arg(long, env = "HARKD_MAX_QUEUED_BYTES", value_name = "BYTES",
          default_value_t = ShardConfig::DEFAULT.queued_bytes_max)]
    pub max_queued_bytes: u64,
    /// Accounts
    #[arg(long, env = "HARKD_MAX_ACCOUNTS", value_name = "COUNT",
          default_value_t = ShardConfig::DEFAULT.accounts_max)]
    pub max_accounts: usize,
    /// Send sessions that are remembered. Those of one address are a quarter of them at most;
    /// of this machine only with --limit-loopback
    #[arg(long, env = "HARKD_MAX_SESSIONS", value_name = "COUNT",
          default_value_t = ShardConfig::DEFAULT.sessions_max)]
    pub max_sessions: usize,
    /// Names in one answer to `list`; it then says that there are more
    #[arg(long, env = "HARKD_MAX_LIST", value_name = "COUNT", default_value_t = 10_000)]
    pub max_list: usize,
    /// Drop a connection that owes acknowledgements, does not read, or says nothing at
    /// first, after so many seconds without a byte from it; and one whose frame is not
    /// whole so many seconds after it began
    #[arg(long, env = "HARKD_ACK_TIMEOUT", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub ack_timeout: u64,
    /// How long the end may take when the server is told to stop, in seconds
    #[arg(long, env = "HARKD_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub drain_timeout: u64,
    /// What to log, to standard error: error, warn, info, debug, trace, or a filter such
    /// as `info,hark_server::store=debug`. Never texts or passwords. From info up, the same
    /// line comes a hundred times, then once a second
    #[arg(long, env = "HARKD_LOG", value_name = "LEVEL", default_value = "info")]
    pub log: String,
    /// How to log
    #[arg(long, env = "HARKD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Who may watch the log over gRPC: a user, by its password; or `loopback`, which is
    /// everybody who calls from this machine. Make the account first (`harkd user add`): nobody
    /// but an admin else can [default: nobody]
    #[arg(long, env = "HARKD_WATCH_LOGS", value_name = "USER|loopback")]
    pub watch_logs: Option<MayWatch>,
}

/// The smallest `--max-frame`: a classic message fits.
const FRAME_MIN: u64 = CLASSIC_BLOCK_BYTES as u64;
const FRAME_MAX: u64 = FRAME_BYTES_MAX as u64;

/// When a message counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyncArg {
    /// After a sync to the disk.
    Always,
    /// Once the operating system has it.
    Os,
}

/// Who may create accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Registration {
    /// Everybody.
    Open,
    /// The operator.
    Closed,
}

/// Who may list the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListArg {
    /// Everybody; with `--require-password`, every user.
    All,
    /// Who has entered an account.
    Users,
    /// Admins.
    Admin,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: a JSON object a line.
    Json,
}

/// Looks after accounts.
#[derive(Debug, Args)]
pub struct UserArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: UserAction,
}

/// What is done with an account.
#[derive(Debug, Subcommand)]
pub enum UserAction {
    /// Make an account
    Add {
        /// The account
        name: String,
        /// Without a password: it is then open to anybody
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
        /// Read the password from the first line of this file; else HARKD_PASSWORD, else
        /// it is asked for
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// End an account and drop its unread messages
    Remove {
        /// The account
        name: String,
    },
    /// Print the accounts, one a line
    List,
    /// Give an account a new password
    SetPassword {
        /// The account
        name: String,
        /// Read the password from the first line of this file; else HARKD_PASSWORD, else
        /// it is asked for
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

impl ServeArgs {
    /// The rules of the chat.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            frame_bytes_max: self.max_frame,
            list_names_max: self.max_list,
            require_password: self.require_password,
            open_registration: self.registration == Registration::Open,
            admins: self.admins.clone(),
            log_watcher: match &self.watch_logs {
                Some(MayWatch::User(user)) => Some(user.clone()),
                Some(MayWatch::Loopback) | None => None,
            },
            may_list: match self.list {
                ListArg::All => MayList::All,
                ListArg::Users => MayList::Users,
                ListArg::Admin => MayList::Admins,
            },
            rates: self.throttle.rates(),
        }
    }

    /// What the fronts need to know; `watchers` are those of the log.
    #[must_use]
    pub fn settings(&self, watchers: &Watchers, tls: Option<Tls>) -> Settings {
        let watch = |may_watch| WatchLogs { may_watch, watchers: watchers.clone() };
        Settings {
            ack_timeout: Duration::from_secs(self.ack_timeout),
            watch_logs: self.watch_logs.clone().map(watch),
            tls,
            tls_only: self.exposure.is_tls_only(self.listen),
        }
    }

    /// The bounds of the server.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            connections_max: self.max_connections,
            connections_per_address_max: self.max_connections_per_address,
            connects: self.throttle.connects(),
            on_loopback: self.throttle.limit_loopback,
            drain_timeout: Duration::from_secs(self.drain_timeout),
        }
    }

    /// The size of a segment, in which the longest text fits with room to spare.
    const fn segment_bytes(&self) -> u64 {
        let needed = (3 * self.max_frame as u64 / 2).next_multiple_of(1 << 20);
        let asked = self.segment_size << 20;
        if asked < needed { needed } else { asked }
    }

    /// The bounds of the store.
    #[must_use]
    pub const fn shard(&self) -> ShardConfig {
        ShardConfig {
            accounts_max: self.max_accounts,
            sessions_max: self.max_sessions,
            queued_messages_max: self.max_queued_messages,
            queued_bytes_max: self.max_queued_bytes,
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
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_an_environment_variable_of_its_name() {
        let command = Cli::command();
        for argument in command
            .get_arguments()
            .filter(|a| a.get_long() != Some("help") && a.get_long() != Some("version"))
        {
            let long = argument.get_long().unwrap();
            let expected = format!("HARKD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(&*expected), "--{long}");
        }
    }

    #[test]
    fn admins_are_repeated_or_divided_by_commas() {
        let cli = Cli::parse_from(["harkd", "--admin=ann", "--admin=bob,eve"]);
        assert_eq!(cli.serve.rules().admins, ["ann", "bob", "eve"].map(|name| name.parse().unwrap()));
    }
}
