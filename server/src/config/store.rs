//! The flags of the store, and opening it: a folder, memory, or a cluster.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(feature = "cluster")]
use anyhow::Context;
use clap::Args;
use etcetera::BaseStrategy;

use super::CommaList;
use crate::administration::SOCKET_FILE;
#[cfg(feature = "cluster")]
use crate::cluster::{ClusterConfig, ClusterStore, Credentials, Nodes};
use crate::shard::{ShardConfig, ShardStore};
use crate::store::Store;

/// The default number of shards of a cluster: enough for four servers to own some. More of
/// them share the disks of the nodes, so each append waits longer. `docs/CLUSTER.md` has the
/// figures.
#[cfg(feature = "cluster")]
const SHARDS: u32 = 4;
const SHARDS_MAX: i64 = 1024;

/// The cache of a shard: default and maximum.
#[cfg(feature = "cluster")]
const SHARD_CACHE_MIB: u64 = 64;
const SHARD_CACHE_MIB_MAX: u64 = 65_536;

/// The scheme of a store in memory.
const MEMORY: &str = "memory:";

/// The location of the store.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// A folder; or `memory:`, whose contents are lost when the server stops; or
    /// `nats://HOST:PORT,HOST:PORT,…[/NAME]` for a cluster shared by many servers, with a
    /// NAME if several chats share it (`tls://` if NATS requires TLS) [default: the folder
    /// `hark` in the user's data directory]
    #[arg(long, global = true, env = "HARKD_STORE", value_name = "PLACE")]
    pub store: Option<PathBuf>,
    /// The socket of `harkd admin`, which only the server's user and root can open [default:
    /// `admin.sock` in the folder of the store; without a folder there is none]
    #[arg(long, global = true, env = "HARKD_ADMIN_SOCKET", value_name = "FILE")]
    pub admin_socket: Option<PathBuf>,
    /// The connection to a cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The connection to a cluster, and the settings of its streams.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster (with --store nats://… only)")]
pub struct ClusterArgs {
    /// Replicas of each message. Takes effect when the first server creates the streams
    /// [default: 3 if there are at least three nodes, otherwise 1]
    #[arg(long, global = true, env = "HARKD_REPLICAS", value_name = "COUNT",
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: Option<u8>,
    /// Shards over which the users are spread, each with its own stream. Takes effect when
    /// the first server creates the streams. Fewer shards form larger appends; more shards
    /// spread over more servers, and each is taken over faster [default: 4]
    #[arg(long, global = true, env = "HARKD_SHARDS", value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=SHARDS_MAX))]
    pub shards: Option<u32>,
    /// Recent messages in memory for each shard that this server owns, in MiB. Older ones are
    /// read from the stream [default: 64]
    #[arg(long, global = true, env = "HARKD_SHARD_CACHE", value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=SHARD_CACHE_MIB_MAX))]
    pub shard_cache: Option<u64>,
    /// Credentials file, as created by `nsc`
    #[arg(long, global = true, env = "HARKD_NATS_CREDS", value_name = "FILE",
          conflicts_with_all = ["nats_user", "nats_token_file"])]
    pub nats_creds: Option<PathBuf>,
    /// User name; its password is in --nats-password-file
    #[arg(
        long,
        global = true,
        env = "HARKD_NATS_USER",
        value_name = "NAME",
        requires = "nats_password_file",
        conflicts_with = "nats_token_file"
    )]
    pub nats_user: Option<String>,
    /// File whose first line is the user's password
    #[arg(
        long,
        global = true,
        env = "HARKD_NATS_PASSWORD_FILE",
        value_name = "FILE",
        requires = "nats_user"
    )]
    pub nats_password_file: Option<PathBuf>,
    /// File whose first line is a token
    #[arg(
        long,
        global = true,
        env = "HARKD_NATS_TOKEN_FILE",
        value_name = "FILE"
    )]
    pub nats_token_file: Option<PathBuf>,
    /// Certificate authorities to trust for NATS, in PEM, in addition to those of the system
    #[arg(long, global = true, env = "HARKD_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// Monitoring addresses of the nodes, comma-separated. At startup, the server checks
    /// that each node syncs before it acknowledges, and warns about any that does not. While
    /// a node is nearly full, sends are refused
    #[arg(
        long,
        global = true,
        env = "HARKD_NATS_MONITOR",
        value_name = "HOST:PORT"
    )]
    pub nats_monitor: Vec<CommaList<String>>,
}

/// The purpose of opening a store.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// To serve clients.
    Server {
        /// Maximum bytes of a text.
        text_bytes_max: usize,
    },
    /// To run an administrative command.
    Tool {
        /// It creates the chat in a cluster if there is none.
        may_create: bool,
    },
}

/// The location of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// A folder.
    Folder(PathBuf),
    /// The server's memory.
    Memory,
    /// A cluster.
    #[cfg(feature = "cluster")]
    Cluster(Nodes),
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Memory => f.write_str(MEMORY),
            #[cfg(feature = "cluster")]
            Self::Cluster(nodes) => nodes.fmt(f),
        }
    }
}

impl StoreArgs {
    /// Returns the location of the store.
    ///
    /// # Errors
    /// If no location is given and the user has no home directory; if the scheme is unknown
    /// or the address malformed; if flags of a cluster are combined with a local store.
    pub fn place(&self) -> anyhow::Result<StorePlace> {
        let place = parse_place(self.store.as_deref())?;
        if matches!(place, StorePlace::Folder(_) | StorePlace::Memory)
            && let Some(flag) = self.cluster.first_set()
        {
            anyhow::bail!(
                "{flag} applies only to a cluster, but --store is {place}; remove the flag, or name a cluster (nats://HOST:PORT)"
            );
        }
        Ok(place)
    }

    /// Returns the folder of the store; `None` if it is elsewhere.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn folder(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(match self.place()? {
            StorePlace::Folder(folder) => Some(folder),
            _ => None,
        })
    }

    /// Returns the path of the socket for `harkd admin`, if there is one.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn admin_socket(&self) -> anyhow::Result<Option<PathBuf>> {
        match &self.admin_socket {
            Some(socket) => Ok(Some(socket.clone())),
            None => Ok(self.folder()?.map(|folder| folder.join(SOCKET_FILE))),
        }
    }

    /// Checks what can be checked without opening the store.
    ///
    /// # Errors
    /// As [`Self::place`]; if a file with credentials cannot be read, or the place is no
    /// folder.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.place()? {
            StorePlace::Memory => Ok(()),
            StorePlace::Folder(folder) if folder.exists() && !folder.is_dir() => anyhow::bail!(
                "cannot open store {}: not a folder; choose another --store",
                folder.display()
            ),
            StorePlace::Folder(_) => Ok(()),
            #[cfg(feature = "cluster")]
            StorePlace::Cluster(_) => self.cluster.credentials().map(drop),
        }
    }

    /// Returns the location that an argument of a command names, or else that of the store.
    ///
    /// # Errors
    /// See [`Self::place`].
    pub fn place_or(&self, named: Option<&Path>) -> anyhow::Result<StorePlace> {
        named.map_or_else(|| self.place(), |named| parse_place(Some(named)))
    }

    /// Opens the store with the settings of `config`.
    ///
    /// # Errors
    /// One line with the cause and the remedy.
    #[cfg_attr(
        not(feature = "cluster"),
        expect(unused_variables, reason = "only clusters need it")
    )]
    pub async fn open(
        &self,
        config: ShardConfig,
        purpose: Purpose,
    ) -> anyhow::Result<Arc<dyn Store>> {
        match self.place()? {
            StorePlace::Memory => {
                tracing::warn!("store in memory: all messages are lost when the server stops");
                Ok(Arc::new(ShardStore::memory(config)?))
            }
            StorePlace::Folder(folder) => Ok(Arc::new(ShardStore::on_disk(&folder, config)?)),
            #[cfg(feature = "cluster")]
            StorePlace::Cluster(nodes) => {
                Ok(Arc::new(self.open_cluster(nodes, &config, purpose).await?))
            }
        }
    }
}

fn parse_place(store: Option<&Path>) -> anyhow::Result<StorePlace> {
    let Some(store) = store else {
        return match etcetera::choose_base_strategy() {
            Ok(directories) => Ok(StorePlace::Folder(directories.data_dir().join("hark"))),
            Err(error) => anyhow::bail!(
                "no home directory to keep the store in ({error}); name a folder with --store"
            ),
        };
    };
    match store.to_str() {
        Some(MEMORY) => Ok(StorePlace::Memory),
        Some(url) if url.starts_with("nats://") || url.starts_with("tls://") => on_cluster(url),
        Some(text) if is_misspelt(text) => anyhow::bail!(
            "unknown --store {text:?}; expected a folder, memory:, or nats://HOST:PORT (write ./{text} for a folder of that name)"
        ),
        _ => Ok(StorePlace::Folder(store.to_owned())),
    }
}

#[cfg(feature = "cluster")]
impl StoreArgs {
    /// Opens the store on a cluster with the settings of `config`.
    ///
    /// # Errors
    /// One line with the cause and the remedy.
    pub async fn open_cluster(
        &self,
        nodes: Nodes,
        config: &ShardConfig,
        purpose: Purpose,
    ) -> anyhow::Result<ClusterStore> {
        let config = self.cluster.config(nodes, config, purpose)?;
        Ok(ClusterStore::open(config).await?)
    }
}

/// Returns whether `text` looks like the URL of a store rather than a path:
/// `redis://x`, `sqlite:x`, or `memory` without its colon.
fn is_misspelt(text: &str) -> bool {
    let has_scheme = text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    has_scheme || text.eq_ignore_ascii_case("memory")
}

#[cfg(feature = "cluster")]
fn on_cluster(url: &str) -> anyhow::Result<StorePlace> {
    Ok(StorePlace::Cluster(url.parse()?))
}

#[cfg(not(feature = "cluster"))]
fn on_cluster(_url: &str) -> anyhow::Result<StorePlace> {
    anyhow::bail!(
        "this harkd was built without cluster support; build it with `--features cluster`"
    )
}

impl ClusterArgs {
    /// Returns a flag that is set, if there is one.
    fn first_set(&self) -> Option<&'static str> {
        [
            ("--replicas", self.replicas.is_some()),
            ("--shards", self.shards.is_some()),
            ("--shard-cache", self.shard_cache.is_some()),
            ("--nats-creds", self.nats_creds.is_some()),
            ("--nats-user", self.nats_user.is_some()),
            ("--nats-token-file", self.nats_token_file.is_some()),
            ("--nats-ca", self.nats_ca.is_some()),
            (
                "--nats-monitor",
                self.nats_monitor
                    .iter()
                    .any(|CommaList(nodes)| !nodes.is_empty()),
            ),
        ]
        .into_iter()
        .find_map(|(flag, is_set)| is_set.then_some(flag))
    }
}

#[cfg(feature = "cluster")]
impl ClusterArgs {
    fn config(
        &self,
        nodes: Nodes,
        bounds: &ShardConfig,
        purpose: Purpose,
    ) -> anyhow::Result<ClusterConfig> {
        let (text_bytes_max, may_create) = match purpose {
            Purpose::Server { text_bytes_max } => (text_bytes_max, true),
            Purpose::Tool { may_create } => (0, may_create),
        };
        Ok(ClusterConfig {
            nodes,
            credentials: self.credentials()?,
            ca: self.nats_ca.clone(),
            monitors: self
                .nats_monitor
                .iter()
                .flat_map(|CommaList(nodes)| nodes)
                .cloned()
                .collect(),
            replicas: self.replicas.map(usize::from),
            shards: self.shards.unwrap_or(SHARDS),
            shard_cache_bytes: self.shard_cache.unwrap_or(SHARD_CACHE_MIB) << 20,
            text_bytes_max,
            is_tool: matches!(purpose, Purpose::Tool { .. }),
            may_create,
            accounts_max: bounds.accounts_max,
            sessions_max: bounds.sessions_max,
            queued_messages_max: bounds.queued_messages_max,
            queued_bytes_max: bounds.queued_bytes_max,
        })
    }

    fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(
            match (
                &self.nats_creds,
                &self.nats_user,
                &self.nats_password_file,
                &self.nats_token_file,
            ) {
                (Some(file), ..) => Credentials::File(file.clone()),
                (_, Some(user), Some(file), _) => {
                    Credentials::Password(user.clone(), first_line(file)?)
                }
                (.., Some(file)) => Credentials::Token(first_line(file)?),
                _ => Credentials::None,
            },
        )
    }
}

#[cfg(feature = "cluster")]
fn first_line(file: &std::path::Path) -> anyhow::Result<zeroize::Zeroizing<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = zeroize::Zeroizing::new(text);
    let line = text.lines().next().filter(|line| !line.is_empty());
    line.map(|line| line.to_owned().into())
        .with_context(|| format!("{} is empty", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(words: &[&str]) -> anyhow::Result<StorePlace> {
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            store: StoreArgs,
        }
        Flags::parse_from([&["harkd"], words].concat())
            .store
            .place()
    }

    fn place(text: &str) -> anyhow::Result<StorePlace> {
        parse(&["--store", text])
    }

    #[test]
    fn unknown_scheme_is_refused() {
        for text in [
            "nat://a",
            "redis://x",
            "NATS://a:4222",
            "sqlite:x",
            "memory",
            "Memory",
            "Memory:",
        ] {
            let refused = place(text).unwrap_err().to_string();
            assert!(
                refused.contains(&format!("unknown --store {text:?}")),
                "{refused}"
            );
        }
        for folder in ["./memory", "./redis:x", "a/b:c", "1:2", "..", "memory.d"] {
            assert_eq!(place(folder).unwrap(), StorePlace::Folder(folder.into()));
        }
    }

    #[test]
    fn cluster_flags_with_a_local_store_are_refused() {
        for flag in [
            "--replicas=3",
            "--shards=12",
            "--shard-cache=8",
            "--nats-ca=x",
            "--nats-monitor=a:1",
        ] {
            for store in ["memory:", "/srv/hark"] {
                let refused = parse(&["--store", store, flag]).unwrap_err().to_string();
                let name = flag.split('=').next().unwrap();
                assert!(
                    refused.contains(name) && refused.contains(store),
                    "{refused}"
                );
            }
            #[cfg(feature = "cluster")]
            assert!(parse(&["--store=nats://a:4222", flag]).is_ok(), "{flag}");
        }
        assert!(parse(&["--store=memory:", "--nats-monitor="]).is_ok());
    }

    #[test]
    fn store_is_a_folder_or_memory_or_a_cluster() {
        for text in ["memory:", "/srv/hark"] {
            assert_eq!(place(text).unwrap().to_string(), text);
        }
        assert_eq!(place("memory:").unwrap(), StorePlace::Memory);
        assert_eq!(
            place("/srv/hark").unwrap(),
            StorePlace::Folder("/srv/hark".into())
        );
        #[cfg(not(feature = "cluster"))]
        for url in ["nats://a:4222", "tls://a:4222/team"] {
            let refused = place(url).unwrap_err().to_string();
            assert!(
                refused.contains("without cluster support")
                    && refused.contains("--features cluster"),
                "{refused}"
            );
        }
        #[cfg(feature = "cluster")]
        assert_eq!(
            place("nats://a:4222,b:4222/team").unwrap(),
            StorePlace::Cluster("nats://a:4222,b:4222/team".parse().unwrap())
        );
    }
}
