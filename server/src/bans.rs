//! Banned networks: a list in a file of the store's folder, and the check of each new
//! connection.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use hark_protocol::{Code, Refusal};
use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::sync::Mutex;

/// The name of the file.
pub(crate) const FILE: &str = "bans.json";

/// The maximum number of bans. Each new connection is compared with all of them.
pub(crate) const BANS_MAX: usize = 1000;

/// A banned network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ban {
    /// The network.
    pub(crate) network: Network,
    /// The end, in milliseconds since 1970; `None` if it has no end.
    pub(crate) until_ms: Option<u64>,
}

/// A ban in the file.
#[derive(Debug, Serialize, Deserialize)]
struct BanLine {
    network: String,
    until_ms: Option<u64>,
}

/// The banned networks of a server.
#[derive(Debug, Default)]
pub(crate) struct Bans {
    /// `None` for a store without a folder: bans end with the process.
    file: Option<PathBuf>,
    current: ArcSwap<Vec<Ban>>,
    // Held while the file is written, by one administrator at a time; readers use `current`.
    change: Mutex<()>,
}

impl Ban {
    fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until_ms| until_ms <= now_ms)
    }
}

impl Bans {
    /// Reads the bans of the store in `folder`, if it has one.
    ///
    /// # Errors
    /// If the file exists and cannot be read, or is malformed.
    pub(crate) fn of_store(folder: Option<&Path>) -> anyhow::Result<Self> {
        let Some(folder) = folder else {
            return Ok(Self::default());
        };
        let file = folder.join(FILE);
        let bans = match fs::read(&file) {
            Ok(bytes) => parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        };
        let bans = bans.with_context(|| {
            let file = file.display();
            format!("cannot read the bans in {file}; correct or remove the file")
        })?;
        Ok(Self {
            file: Some(file),
            current: ArcSwap::from_pointee(bans),
            ..Self::default()
        })
    }

    /// Returns whether connections from an address are refused. The loopback is never
    /// banned.
    pub(crate) fn is_banned(&self, address: IpAddr, now_ms: u64) -> bool {
        let bans = self.current.load();
        let is_its = |ban: &Ban| !ban.is_over(now_ms) && ban.network.contains(address);
        !address.is_loopback() && bans.iter().any(is_its)
    }

    /// Returns the refusal of a banned address.
    pub(crate) fn refusal() -> Refusal {
        Refusal::new(Code::Denied, "your address is banned")
    }

    /// Returns the bans that have not ended.
    pub(crate) fn list(&self, now_ms: u64) -> Vec<Ban> {
        let bans = self.current.load();
        let open = bans.iter().filter(|ban| !ban.is_over(now_ms));
        open.copied().collect()
    }

    /// Adds a ban, or changes the end of one. Blocks while it writes the file.
    ///
    /// # Errors
    /// If there are too many, or the file cannot be written; nothing changes then.
    pub(crate) fn add(&self, ban: Ban, now_ms: u64) -> anyhow::Result<()> {
        self.update(now_ms, |bans| {
            bans.retain(|other| other.network != ban.network);
            if bans.len() >= BANS_MAX {
                bail!("there are already {BANS_MAX} bans; end one first, or ban a larger network");
            }
            bans.push(ban);
            Ok(())
        })
    }

    /// Ends a ban. Returns whether there was one. Blocks while it writes the file.
    ///
    /// # Errors
    /// If the file cannot be written; nothing changes then.
    pub(crate) fn remove(&self, network: Network, now_ms: u64) -> anyhow::Result<bool> {
        let mut is_found = false;
        self.update(now_ms, |bans| {
            let before = bans.len();
            bans.retain(|ban| ban.network != network);
            is_found = bans.len() < before;
            Ok(())
        })?;
        Ok(is_found)
    }

    fn update(
        &self,
        now_ms: u64,
        change: impl FnOnce(&mut Vec<Ban>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _alone = self.change.lock();
        let mut bans = self.list(now_ms);
        change(&mut bans)?;
        if let Some(file) = &self.file {
            write(file, &bans).with_context(|| format!("cannot write {}", file.display()))?;
        }
        self.current.store(bans.into());
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<Vec<Ban>> {
    let lines: Vec<BanLine> = serde_json::from_slice(bytes)?;
    let ban = |BanLine { network, until_ms }| {
        let network = network.parse().map_err(anyhow::Error::msg)?;
        Ok(Ban { network, until_ms })
    };
    lines.into_iter().map(ban).collect()
}

/// Replaces the file durably.
fn write(file: &Path, bans: &[Ban]) -> io::Result<()> {
    let line = |ban: &Ban| BanLine {
        network: ban.network.to_string(),
        until_ms: ban.until_ms,
    };
    let lines: Vec<_> = bans.iter().map(line).collect();
    let unfinished = file.with_extension("json.new");
    let mut new = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    new.write_all(&serde_json::to_vec_pretty(&lines)?)?;
    new.sync_all()?;
    fs::rename(&unfinished, file)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn bans_survive_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let bans = Bans::of_store(Some(folder.path())).unwrap();
        let ban = |text, until_ms| Ban {
            network: network(text),
            until_ms,
        };
        bans.add(ban("192.0.2.0/24", Some(100)), 0).unwrap();
        bans.add(ban("2001:db8::/32", None), 0).unwrap();
        let bans = Bans::of_store(Some(folder.path())).unwrap();
        let (first, second) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert!(bans.is_banned(first, 99) && bans.is_banned(second, 99));
        assert!(!bans.is_banned(first, 100) && bans.is_banned(second, 100));
        assert_eq!(bans.list(100), [ban("2001:db8::/32", None)]);
        assert!(bans.remove(network("2001:db8::/32"), 100).unwrap());
        assert!(!bans.remove(network("2001:db8::/32"), 100).unwrap());
        let bans = Bans::of_store(Some(folder.path())).unwrap();
        assert_eq!(bans.list(0), [], "ended bans are dropped");
    }

    #[test]
    fn loopback_is_never_banned() {
        let bans = Bans::default();
        let everything = Ban {
            network: network("0.0.0.0/0"),
            until_ms: None,
        };
        bans.add(everything, 0).unwrap();
        assert!(!bans.is_banned("127.0.0.1".parse().unwrap(), 0));
        assert!(bans.is_banned("192.0.2.1".parse().unwrap(), 0));
    }

    #[test]
    fn bans_are_bounded() {
        let bans = Bans::default();
        let ban = |n: usize| Ban {
            network: network(&format!("10.0.{}.{}", n / 256, n % 256)),
            until_ms: None,
        };
        (0..BANS_MAX).for_each(|n| bans.add(ban(n), 0).unwrap());
        assert!(bans.add(ban(BANS_MAX), 0).is_err());
        bans.add(ban(0), 0).unwrap();
    }
}
