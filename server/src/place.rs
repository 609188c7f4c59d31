//! Where messages are kept: the flags that say it, and opening the store there.

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "cluster")]
use anyhow::Context;
use clap::Args;
use etcetera::BaseStrategy;

use crate::shard::{ShardConfig, ShardStore};
use crate::store::Store;
#[cfg(feature = "cluster")]
use crate::store::cluster::{ClusterConfig, ClusterStore, Credentials, Nodes};

/// Over how many streams a chat is spread unless its maker says otherwise. Each
/// batch costs every node two syncs, so fewer streams take more sends; a purge
/// costs with what lies among the messages that it drops, which is less where
/// there are more streams. `docs/CLUSTER.md` has the figures.
const SHARDS: u64 = 12;
const SHARDS_MAX: u64 = 1024;

/// Which store.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Folder of the store; or `memory:` for one that is gone with the server; or
    /// `nats://HOST:PORT,HOST:PORT,…` for a cluster that many servers share, with `/NAME`
    /// behind it where several chats share one (`tls://` where NATS speaks TLS) [default:
    /// the folder `hark` in the user's data directory]
    #[arg(long, global = true, env = "HARKD_STORE", value_name = "PLACE")]
    pub store: Option<PathBuf>,
    /// How a cluster is entered.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// How a cluster is entered, and what its streams are made like.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// With a cluster: on how many nodes each message is kept. It holds when the first
    /// server makes the streams [default: 3 where there are three nodes, else 1]
    #[arg(long, global = true, env = "HARKD_REPLICAS", value_name = "COUNT",
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: Option<u8>,
    /// With a cluster: over how many streams the inboxes are spread. It holds when the
    /// first server makes the streams. Fewer take more sends a second; with more,
    /// giving space back holds each of them up for less
    #[arg(long, global = true, env = "HARKD_SHARDS", value_name = "COUNT",
          default_value_t = SHARDS, value_parser = clap::value_parser!(u64).range(1..=SHARDS_MAX))]
    pub shards: u64,
    /// With a cluster: a file of credentials, as `nsc` makes it
    #[arg(long, global = true, env = "HARKD_NATS_CREDS", value_name = "FILE",
          conflicts_with_all = ["nats_user", "nats_token_file"])]
    pub nats_creds: Option<PathBuf>,
    /// With a cluster: the user. Its password is in --nats-password-file
    #[arg(
        long,
        global = true,
        env = "HARKD_NATS_USER",
        value_name = "NAME",
        requires = "nats_password_file",
        conflicts_with = "nats_token_file"
    )]
    pub nats_user: Option<String>,
    /// With a cluster: the user's password, in the first line of this file
    #[arg(
        long,
        global = true,
        env = "HARKD_NATS_PASSWORD_FILE",
        value_name = "FILE",
        requires = "nats_user"
    )]
    pub nats_password_file: Option<PathBuf>,
    /// With a cluster: a token, in the first line of this file
    #[arg(long, global = true, env = "HARKD_NATS_TOKEN_FILE", value_name = "FILE")]
    pub nats_token_file: Option<PathBuf>,
    /// With a cluster: the authorities that NATS's certificate may come from, in PEM, beside
    /// those that the system trusts
    #[arg(long, global = true, env = "HARKD_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// With a cluster: the monitoring addresses of its nodes, as HOST:PORT, with commas
    /// between them. The server then sees at its start whether each node syncs before it
    /// acknowledges, and warns where one does not
    #[arg(long, global = true, env = "HARKD_NATS_MONITOR", value_name = "HOST:PORT", value_delimiter = ',')]
    pub nats_monitor: Vec<String>,
}

/// Where messages are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// In this folder.
    Folder(PathBuf),
    /// In memory, and gone with the server.
    Memory,
    /// On a cluster.
    #[cfg(feature = "cluster")]
    Cluster(Nodes),
}

impl StoreArgs {
    /// The place that is meant.
    ///
    /// # Errors
    /// Where none is named and the user has no home directory, or the place is
    /// no address.
    pub fn place(&self) -> anyhow::Result<StorePlace> {
        let Some(store) = &self.store else {
            return match etcetera::choose_base_strategy() {
                Ok(directories) => Ok(StorePlace::Folder(directories.data_dir().join("hark"))),
                Err(error) => anyhow::bail!(
                    "no home directory to keep the store in ({error}); name a folder with --store"
                ),
            };
        };
        match store.to_str() {
            Some("memory:") => Ok(StorePlace::Memory),
            Some(url) if url.starts_with("nats://") || url.starts_with("tls://") => on_cluster(url),
            _ => Ok(StorePlace::Folder(store.clone())),
        }
    }

    /// Opens the store, with the bounds of `config`; texts have at most
    /// `text_bytes_max`.
    ///
    /// # Errors
    /// What was wrong and what to do, as the store says it.
    #[cfg_attr(not(feature = "cluster"), expect(unused_variables, reason = "a matter of clusters"))]
    pub async fn open(&self, config: ShardConfig, text_bytes_max: usize) -> anyhow::Result<Arc<dyn Store>> {
        match self.place()? {
            StorePlace::Memory => {
                tracing::warn!("the store is in memory: everything is gone when the server stops");
                Ok(Arc::new(ShardStore::memory(config)?))
            }
            StorePlace::Folder(folder) => {
                tracing::info!(store = %folder.display(), "opening the store");
                Ok(Arc::new(ShardStore::on_disk(&folder, config)?))
            }
            #[cfg(feature = "cluster")]
            StorePlace::Cluster(nodes) => {
                tracing::info!(%nodes, "entering the cluster");
                let config = self.cluster.config(nodes, &config, text_bytes_max)?;
                Ok(Arc::new(ClusterStore::open(config).await?))
            }
        }
    }
}

#[cfg(feature = "cluster")]
fn on_cluster(url: &str) -> anyhow::Result<StorePlace> {
    Ok(StorePlace::Cluster(url.parse()?))
}

#[cfg(not(feature = "cluster"))]
fn on_cluster(_url: &str) -> anyhow::Result<StorePlace> {
    anyhow::bail!("this harkd was built without clusters; build it with `--features cluster`")
}

#[cfg(feature = "cluster")]
impl ClusterArgs {
    fn config(
        &self,
        nodes: Nodes,
        bounds: &ShardConfig,
        text_bytes_max: usize,
    ) -> anyhow::Result<ClusterConfig> {
        Ok(ClusterConfig {
            nodes,
            credentials: self.credentials()?,
            ca: self.nats_ca.clone(),
            monitors: self.nats_monitor.clone(),
            replicas: self.replicas.map(usize::from),
            shards: self.shards,
            text_bytes_max,
            accounts_max: bounds.accounts_max,
            sessions_max: bounds.sessions_max,
            queued_messages_max: bounds.queued_messages_max,
            queued_bytes_max: bounds.queued_bytes_max,
        })
    }

    fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(match (&self.nats_creds, &self.nats_user, &self.nats_password_file, &self.nats_token_file) {
            (Some(file), ..) => Credentials::File(file.clone()),
            (_, Some(user), Some(file), _) => Credentials::Password(user.clone(), first_line(file)?),
            (.., Some(file)) => Credentials::Token(first_line(file)?),
            _ => Credentials::None,
        })
    }
}

#[cfg(feature = "cluster")]
fn first_line(file: &std::path::Path) -> anyhow::Result<zeroize::Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = zeroize::Zeroizing::new(text);
    let line = text.lines().next().filter(|line| !line.is_empty());
    line.map(|line| line.to_owned().into()).with_context(|| format!("{} is empty", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn place(text: &str) -> anyhow::Result<StorePlace> {
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            store: StoreArgs,
        }
        Flags::parse_from(["harkd", "--store", text]).store.place()
    }

    #[test]
    fn the_store_is_a_folder_or_memory_or_a_cluster() {
        assert_eq!(place("memory:").unwrap(), StorePlace::Memory);
        assert_eq!(place("/srv/hark").unwrap(), StorePlace::Folder("/srv/hark".into()));
        #[cfg(not(feature = "cluster"))]
        for url in ["nats://a:4222", "tls://a:4222/team"] {
            let refused = place(url).unwrap_err().to_string();
            assert!(
                refused.contains("without clusters") && refused.contains("--features cluster"),
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
