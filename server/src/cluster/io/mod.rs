//! The store of a cluster, on NATS: the I/O around a [`Member`](super::member::Member).
//! A server keeps no state of its own, so any number of servers serve the same chat, and
//! a user can connect to any of them.
//!
//! | file | responsibility |
//! | --- | --- |
//! | `nodes` | the address of a cluster |
//! | `setup` | the connection and the streams |
//! | `monitor` | a check that the nodes sync before they acknowledge |
//! | `operation` | operations of the chat, and their answers |
//! | `import` | accounts and messages of `harkd import` |
//! | `driver`, `requests` | the task that owns the state machine and performs its actions, and its requests |
//! | `administer`, `questions` | operations of administrators, and questions to other servers |
//! | `network` | messages between servers, on core NATS |
//! | `senders` | accounts that send at this server, registered at their owners |
//! | `sessions` | open send sessions at this server |

mod administer;
mod driver;
mod import;
mod monitor;
mod network;
mod nodes;
mod operation;
mod questions;
mod requests;
mod senders;
mod sessions;
mod setup;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::driver::Driver;
use self::operation::Input;
use super::Config;
use crate::ledger::{Expiry, Limits, RoomLimits, SpaceLimits};
use crate::metrics::ClusterMetrics;
use crate::store::{Completer, Kick, Operation, Peer, PeerInfo, Pending, ShardInfo, Store};

pub use self::nodes::{BadNodes, Nodes};
pub use self::setup::{CLIENT_LOG, ClusterConfig, Credentials, OpenError};

/// A store on a cluster.
///
/// If it is dropped without [`Store::close`], pending operations end as
/// [`crate::store::Unavailable`], and other servers take over its shards after some
/// seconds.
#[derive(Debug)]
pub struct ClusterStore {
    // Unbounded, but bounded by its callers: each append holds a permit, and each
    // connection has few other operations and a bounded window of acknowledgements.
    operations: mpsc::UnboundedSender<Input>,
    shared: Arc<Shared>,
    /// The epoch of connections.
    epoch: watch::Receiver<u64>,
    shards: u32,
    /// Maximum bytes of a text that the nodes take.
    text_bytes_max: usize,
    _stop: DropGuard,
}

/// State that the driver shares with the store.
#[derive(Debug, Default)]
struct Shared {
    /// There is a flow to the owner of each shard.
    is_in_touch: AtomicBool,
    /// The store is closing or closed.
    is_closed: AtomicBool,
    metrics: ClusterMetrics,
    /// Answers questions of other servers, once the server has started.
    peer: OnceLock<Weak<dyn Peer>>,
}

impl ClusterStore {
    /// Connects to the cluster, creates missing streams, and waits until each shard has an
    /// owner. Must be called on the runtime that will run the store's tasks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: ClusterConfig) -> Result<Self, OpenError> {
        let (client, is_up) = setup::connect(&config).await?;
        let text_bytes_max = setup::text_bytes_max(&client);
        let streams = setup::streams(&client, &config).await?;
        monitor::check(&config.monitors).await;
        let network = network::Network::join(client, config.nodes.chat()).await?;
        let shared = Arc::<Shared>::default();
        let (operations, received) = mpsc::unbounded_channel();
        let (epochs, epoch) = watch::channel(0);
        let (storages, storage) = watch::channel(Vec::new());
        let shard_config = Config {
            cache_bytes_max: config.shard_cache_bytes,
            ..Config::new(config.limits(streams.len()))
        };
        let (is_ready, ready) = watch::channel(false);
        let channels = driver::Channels {
            operations: operations.downgrade(),
            received,
            shared: Arc::clone(&shared),
            epochs,
            is_ready,
            is_up,
            storage,
        };
        let shards = streams.len() as u32;
        let stop = CancellationToken::new();
        let polling = monitor::poll_storage(config.monitors.clone(), storages);
        // Ends with the store.
        tokio::spawn(stop.clone().run_until_cancelled_owned(polling));
        let driver = Driver::new(
            (shard_config, config.is_tool),
            config.sessions_max,
            streams,
            network,
            channels,
        );
        // Ends with the store.
        let driver = tokio::spawn(stop.clone().run_until_cancelled_owned(driver.run()));
        tokio::spawn(async move {
            // The state cannot be trusted. Other servers take over, and no answered
            // operation is lost.
            if driver.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("the driver of the cluster panicked: aborting");
                std::process::abort();
            }
        });
        let store = Self {
            operations,
            shared,
            epoch,
            shards,
            text_bytes_max,
            _stop: stop.drop_guard(),
        };
        setup::until_ready(ready).await?;
        Ok(store)
    }
}

impl ClusterConfig {
    /// Returns the limits of each shard.
    fn limits(&self, shards: usize) -> Limits {
        Limits {
            accounts_max: self.accounts_max.div_ceil(shards.max(1)),
            sessions_max: self.sessions_max,
            queued_messages_max: self.queued_messages_max,
            queued_bytes_max: self.queued_bytes_max,
            rooms: RoomLimits::DEFAULT,
            space: SpaceLimits::NONE,
            expiry: Expiry::NONE,
        }
    }
}

impl ClusterStore {
    /// Submits an operation for the administration of the cluster.
    fn ask<T>(&self, input: impl FnOnce(Completer<T>) -> Input) -> Pending<T> {
        let (completer, pending) = Pending::new();
        // A late input is dropped, which completes it.
        drop(self.operations.send(input(completer)));
        pending
    }
}

impl Store for ClusterStore {
    fn submit(&self, operation: Operation) {
        let is_closed = if matches!(operation, Operation::Close(_)) {
            self.shared.is_closed.swap(true, Ordering::AcqRel)
        } else {
            self.shared.is_closed.load(Ordering::Acquire)
        };
        if is_closed {
            return operation.refuse();
        }
        if let Err(SendError(Input::Operation(late))) =
            self.operations.send(Input::Operation(operation))
        {
            late.refuse();
        }
    }

    fn shards(&self) -> Pending<Vec<ShardInfo>> {
        self.ask(Input::Shards)
    }

    fn servers(&self) -> Pending<Vec<PeerInfo>> {
        self.ask(Input::Servers)
    }

    fn kick_elsewhere(&self, kick: Kick) -> Pending<usize> {
        self.ask(|completer| Input::KickElsewhere(kick, completer))
    }

    fn set_peer(&self, peer: Weak<dyn Peer>) {
        // A server starts once.
        let _ = self.shared.peer.set(peer);
    }

    fn epoch(&self) -> Option<watch::Receiver<u64>> {
        Some(self.epoch.clone())
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    fn is_available(&self) -> bool {
        self.shared.is_in_touch.load(Ordering::Acquire)
            && !self.shared.is_closed.load(Ordering::Acquire)
    }
}
