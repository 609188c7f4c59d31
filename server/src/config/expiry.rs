//! The flags of the limits on space and time. [`crate::ledger`] has their rules.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::shard::{Expiry, SpaceLimits};

/// The segments that a limit on the size of the store admits at least: fewer could not be
/// reclaimed while sends are refused.
const SEGMENTS_MIN: u64 = 4;

/// The longest time, in seconds.
const SECONDS_MAX: u64 = 100 * 366 * 24 * 3600;

/// The limits on space and time.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub struct ExpiryArgs {
    /// Refuse sends while the store's files with messages take more bytes; reading,
    /// acknowledging and deleting go on. At least four segments. Files of up to four segments
    /// come on top [default: no limit]
    #[arg(long, env = "HARKD_MAX_STORE_BYTES", value_name = "BYTES")]
    pub max_store_bytes: Option<u64>,
    /// Refuse sends while the file system of the store has fewer bytes free [default: the space
    /// of three segments]
    #[arg(long, env = "HARKD_MIN_FREE_BYTES", value_name = "BYTES")]
    pub min_free_bytes: Option<u64>,
    /// Remove unread messages that are older, such as 90d, 12h or 3600s. Attached devices are
    /// told by a gap; receivers by `connect` are not. Also bounds --room-keep-max [default:
    /// messages wait until they are acknowledged]
    #[arg(long, env = "HARKD_MAX_AGE", value_name = "TIME")]
    pub max_age: Option<Age>,
    /// Delete accounts, with their messages, that were not in use for this time, such as 400d.
    /// A login, a send, an acknowledgement and an open connection are uses. Suspended accounts
    /// stay [default: accounts stay]
    #[arg(long, env = "HARKD_MAX_IDLE", value_name = "TIME")]
    pub max_idle: Option<Age>,
}

/// A time with a unit: `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected a time such as 90d, 12h or 3600s, not {text:?}");
        let hark_admin::BanTime(time) = text.parse().map_err(|_| expected())?;
        if time > Duration::from_secs(SECONDS_MAX) {
            return Err("the longest time is 100 years".to_owned());
        }
        Ok(Self(time))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

impl ExpiryArgs {
    /// Checks the limits against the store.
    ///
    /// # Errors
    /// If the store is on a cluster, or the limit on its size is too low.
    pub fn check(&self, is_local: bool, segment_bytes: u64) -> anyhow::Result<()> {
        let set = [
            ("--max-store-bytes", self.max_store_bytes.is_some()),
            ("--min-free-bytes", self.min_free_bytes.is_some()),
            ("--max-age", self.max_age.is_some()),
            ("--max-idle", self.max_idle.is_some()),
        ];
        let set = set.into_iter().find(|(_, is_set)| *is_set);
        if let Some((flag, _)) = set.filter(|_| !is_local) {
            anyhow::bail!("{flag} applies only to a store on this machine; remove it");
        }
        let least = SEGMENTS_MIN * segment_bytes;
        if let Some(max) = self.max_store_bytes.filter(|max| *max < least) {
            anyhow::bail!(
                "--max-store-bytes {max} is less than four segments; set at least {least}, or a smaller --segment-size"
            );
        }
        Ok(())
    }

    /// Returns the limits on space.
    #[must_use]
    pub const fn space(&self) -> SpaceLimits {
        SpaceLimits {
            store_bytes_max: self.max_store_bytes,
            free_bytes_min: self.min_free_bytes,
        }
    }

    /// Returns the limits on time.
    #[must_use]
    pub const fn expiry(&self) -> Expiry {
        Expiry {
            messages_after: self.max_age(),
            accounts_after: match self.max_idle {
                Some(Age(time)) => Some(time),
                None => None,
            },
        }
    }

    /// Returns the longest time for which messages are kept.
    #[must_use]
    pub const fn max_age(&self) -> Option<Duration> {
        match self.max_age {
            Some(Age(time)) => Some(time),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_on_size_admits_four_segments() {
        let arguments = ExpiryArgs {
            max_store_bytes: Some(400),
            min_free_bytes: None,
            max_age: "90d".parse().ok(),
            max_idle: None,
        };
        assert!(arguments.check(true, 100).is_ok());
        let refused = arguments.check(true, 101).unwrap_err().to_string();
        assert!(refused.contains("set at least 404"), "{refused}");
        assert!(arguments.check(false, 100).is_err());
        let days = Duration::from_secs(90 * 24 * 3600);
        assert_eq!(arguments.max_age(), Some(days));
    }

    #[test]
    fn age_has_a_unit_and_a_bound() {
        assert_eq!("2h".parse::<Age>().unwrap().to_string(), "7200s");
        for text in ["", "0d", "7", "36601d", "18446744073709551615d"] {
            assert!(text.parse::<Age>().is_err(), "{text}");
        }
    }
}
