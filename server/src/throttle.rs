//! The flags that say how much may come how fast. What they mean is a matter of
//! [`crate::limit`], and what becomes of who goes faster one of who counts.

use clap::Args;

use crate::chat::Rates;
use crate::limit::Rate;

/// How much may come how fast. Each holds over five seconds.
#[derive(Debug, Args)]
pub struct ThrottleArgs {
    /// New connections a second from one address, over five seconds. An IPv6 network (/64)
    /// is one address. More are refused. 0: no limit
    #[arg(long, env = "HARKD_MAX_CONNECTS_PER_SECOND", value_name = "COUNT", default_value_t = 100)]
    pub max_connects_per_second: u64,
    /// Commands a second on one connection, over five seconds. More are read later. 0: no
    /// limit
    #[arg(long, env = "HARKD_MAX_COMMANDS_PER_SECOND", value_name = "COUNT", default_value_t = 1000)]
    pub max_commands_per_second: u64,
    /// Bytes a second from one connection, over five seconds. More are read later. 0: no
    /// limit
    #[arg(long, env = "HARKD_MAX_BYTES_PER_SECOND", value_name = "BYTES", default_value_t = 4 * MIB)]
    pub max_bytes_per_second: u64,
    /// Commands a second of one user on all of its connections, over five seconds. More are
    /// read later. 0: no limit
    #[arg(long, env = "HARKD_MAX_USER_COMMANDS_PER_SECOND", value_name = "COUNT", default_value_t = 2000)]
    pub max_user_commands_per_second: u64,
    /// Bytes of texts a second from one user on all of its connections, over five seconds.
    /// More are read later. 0: no limit
    #[arg(long, env = "HARKD_MAX_USER_BYTES_PER_SECOND", value_name = "BYTES", default_value_t = 8 * MIB)]
    pub max_user_bytes_per_second: u64,
    /// These hold for whoever comes from this machine as well, such as a proxy or a tunnel.
    /// Without this only for others
    #[arg(long, env = "HARKD_LIMIT_LOOPBACK")]
    pub limit_loopback: bool,
}

const MIB: u64 = 1024 * 1024;

impl ThrottleArgs {
    /// New connections from one address.
    #[must_use]
    pub const fn connects(&self) -> Option<Rate> {
        Rate::per_second(self.max_connects_per_second)
    }

    /// How fast connections and users may go.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        Rates {
            commands: Rate::per_second(self.max_commands_per_second),
            bytes: Rate::per_second(self.max_bytes_per_second),
            user_commands: Rate::per_second(self.max_user_commands_per_second),
            user_bytes: Rate::per_second(self.max_user_bytes_per_second),
            on_loopback: self.limit_loopback,
        }
    }
}
