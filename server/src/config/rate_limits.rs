//! The flags of the rate limits. [`crate::limit`] has the token buckets; the
//! modules that charge them handle an empty one.

use clap::Args;

use crate::chat::Rates;
use crate::limit::Rate;

/// The rate limits. Each is a token bucket that holds five seconds' worth.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rate limits (bursts of five seconds' worth; 0: no limit)")]
pub struct RateLimitArgs {
    /// New connections per second from one address; further connections are refused. An IPv6
    /// network (/64) counts as one address
    #[arg(
        long,
        env = "HARKD_MAX_CONNECTS_PER_SECOND",
        value_name = "COUNT",
        default_value_t = 100
    )]
    pub max_connects_per_second: u64,
    /// Commands per second on one connection; further commands are read later
    #[arg(
        long,
        env = "HARKD_MAX_COMMANDS_PER_SECOND",
        value_name = "COUNT",
        default_value_t = 1000
    )]
    pub max_commands_per_second: u64,
    /// Bytes per second from one connection; further bytes are read later
    #[arg(long, env = "HARKD_MAX_BYTES_PER_SECOND", value_name = "BYTES", default_value_t = 4 * MIB)]
    pub max_bytes_per_second: u64,
    /// Commands per second of one user, over all its connections; further commands are read
    /// later
    #[arg(
        long,
        env = "HARKD_MAX_USER_COMMANDS_PER_SECOND",
        value_name = "COUNT",
        default_value_t = 2000
    )]
    pub max_user_commands_per_second: u64,
    /// Bytes of texts per second from one user, over all its connections; further bytes are
    /// read later
    #[arg(long, env = "HARKD_MAX_USER_BYTES_PER_SECOND", value_name = "BYTES", default_value_t = 8 * MIB)]
    pub max_user_bytes_per_second: u64,
    /// Deliveries per second of one user's messages to rooms, which count once for each
    /// attached device of a member; further messages to rooms wait
    #[arg(
        long,
        env = "HARKD_MAX_USER_DELIVERIES_PER_SECOND",
        value_name = "COUNT",
        default_value_t = 100_000
    )]
    pub max_user_deliveries_per_second: u64,
    /// Also apply the limits to connections from this machine, such as those of a proxy or a
    /// tunnel, which are otherwise exempt
    #[arg(long, env = "HARKD_LIMIT_LOOPBACK", value_parser = super::parse_bool)]
    pub limit_loopback: bool,
}

const MIB: u64 = 1024 * 1024;

impl RateLimitArgs {
    /// Returns the rate of new connections from one address.
    #[must_use]
    pub const fn connects(&self) -> Option<Rate> {
        Rate::per_second(self.max_connects_per_second)
    }

    /// Returns the rates of connections and users.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        Rates {
            commands: Rate::per_second(self.max_commands_per_second),
            bytes: Rate::per_second(self.max_bytes_per_second),
            user_commands: Rate::per_second(self.max_user_commands_per_second),
            user_bytes: Rate::per_second(self.max_user_bytes_per_second),
            user_deliveries: Rate::per_second(self.max_user_deliveries_per_second),
            on_loopback: self.limit_loopback,
        }
    }
}
