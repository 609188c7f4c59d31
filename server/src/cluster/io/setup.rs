//! The setup of a cluster: connects, creates missing streams, and checks existing ones.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
};
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerInfo};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use super::nodes::Nodes;
use crate::log::jetstream as log;
use crate::log::jetstream::JetStream;

/// The oldest tested version of the engine. Older versions lose acknowledged messages, or
/// cannot report a duplicate in a batch.
const VERSION_MIN: [u64; 3] = [2, 15, 1];

/// A filter for the log of the engine's client: the store reports the relevant events.
pub const CLIENT_LOG: &str = "async_nats=off";

/// The timeout of a connection to one node. An unreachable node never answers, and
/// another one may.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest pause between attempts to connect.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The interval of keepalive probes. After three without an answer, the connection is
/// closed.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Maximum queued messages of one subscription. The client drops further ones, and the
/// flows detect that.
const SUBSCRIPTION_MAX: usize = 16_384;

/// The longest time that new streams may take to elect their first leaders.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);

/// The timeout of one request, and the pause before the next one.
const SETUP_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Maximum size of a message beside its text, including headers.
const MESSAGE_OVERHEAD: usize = 8 * 1024;

/// Maximum streams that are checked or created concurrently.
const STREAMS_AT_ONCE: usize = 8;

const SHARDS: &str = "hark-shards";
const LAYOUT: &str = "hark-layout";
const LAYOUT_VERSION: &str = "3";

/// Maximum number of shards.
const SHARDS_MAX: u32 = 1024;

/// Error code: too few nodes are online for the replicas, or clustering is disabled.
const PEER_OFFLINE: ErrorCode = ErrorCode(10005);
const PEERS_MISSING: [ErrorCode; 2] = [PEER_OFFLINE, ErrorCode(10074)];

/// The address of a cluster, credentials and limits.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Addresses of some nodes, and the name of the chat.
    pub nodes: Nodes,
    /// Credentials for the engine.
    pub credentials: Credentials,
    /// A PEM file with certificate authorities in addition to the system's.
    pub ca: Option<PathBuf>,
    /// Monitoring addresses of the nodes, as `HOST:PORT`. They report whether a node
    /// syncs before it acknowledges.
    pub monitors: Vec<String>,
    /// Replicas of each new stream; `None` for three if the cluster has at least three
    /// nodes.
    pub replicas: Option<usize>,
    /// The number of shards of a new chat.
    pub shards: u32,
    /// Maximum bytes of recent messages in memory for each owned shard.
    pub shard_cache_bytes: u64,
    /// Maximum bytes of a text.
    pub text_bytes_max: usize,
    /// The store serves no clients: it owns no shard while there is a server.
    pub is_tool: bool,
    /// Missing streams are created.
    pub may_create: bool,
    /// Maximum number of accounts.
    pub accounts_max: usize,
    /// Maximum number of sessions that are open or remembered at this server.
    pub sessions_max: usize,
    /// Maximum number of unacknowledged messages in an inbox.
    pub queued_messages_max: u64,
    /// Maximum bytes of their texts.
    pub queued_bytes_max: u64,
}

/// Credentials for the engine.
#[derive(Clone, Default)]
pub enum Credentials {
    /// No credentials.
    #[default]
    None,
    /// A user and a password.
    Password(String, Zeroizing<String>),
    /// A token.
    Token(Zeroizing<String>),
    /// A file with a JWT and its seed, as created by `nsc`.
    File(PathBuf),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// The reason why a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No node is reachable, or it refuses the client.
    #[error("cannot connect to the cluster at {nodes}: {error}; {}", remedy(error))]
    Connect {
        /// The addresses.
        nodes: String,
        /// The cause.
        error: async_nats::ConnectError,
    },
    /// A file of credentials cannot be read.
    #[error("cannot read the credentials in {}: {error}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A node has a version that loses messages or is untested.
    #[error(
        "the NATS server {node} has version {found}; upgrade it to {} or later",
        VERSION_MIN.map(|part| part.to_string()).join(".")
    )]
    Version {
        /// Its name.
        node: String,
        /// Its version.
        found: String,
    },
    /// JetStream is disabled.
    #[error(
        "the NATS server {node} has no JetStream; add `jetstream {{ store_dir: … }}` to its configuration"
    )]
    NoJetStream {
        /// Its name.
        node: String,
    },
    /// A node's limit of messages is too small for the chat's texts.
    #[error(
        "the NATS server {node} takes at most {payload} bytes, and a text may have {texts}; \
             raise its max_payload or lower --max-frame"
    )]
    Payload {
        /// Its name.
        node: String,
        /// Maximum bytes of a text.
        texts: usize,
        /// Maximum bytes of a NATS message.
        payload: usize,
    },
    /// A stream cannot be created or read.
    #[error("the stream {stream} is unavailable: {reason}")]
    Stream {
        /// Its name.
        stream: String,
        /// The cause and the remedy.
        reason: String,
    },
    /// The chat has no streams.
    #[error(
        "there is no chat {chat:?} in the cluster; name an existing one with --store nats://…/NAME"
    )]
    NoChat {
        /// Its name.
        chat: String,
    },
    /// The chat was stored by an early version of Hark.
    #[error(
        "the stream {stream} has the layout of an early version of Hark, which this one cannot read; choose \
             another chat with --store nats://…/NAME, or remove its streams"
    )]
    FormerLayout {
        /// The stream.
        stream: String,
    },
    /// The connection failed after it was set up.
    #[error("the connection to the cluster failed: {error}")]
    Network {
        /// The cause.
        error: String,
    },
    /// No server serves the chat, not even this one.
    #[error("the shards of the chat have no owner after {0:?}; is a majority of the nodes up?")]
    NoOwner(Duration),
    /// A stream exists with a configuration that this version cannot use.
    #[error(
        "the stream {stream} is not Hark's, or was changed: {field}; choose another chat with --store nats://…/NAME, or restore the setting"
    )]
    Foreign {
        /// Its name.
        stream: String,
        /// The field that differs.
        field: String,
    },
}

/// Connects. The returned receiver has the state of the connection: whether it is up.
pub(super) async fn connect(
    config: &ClusterConfig,
) -> Result<(Client, watch::Receiver<bool>), OpenError> {
    let (is_up, seen) = watch::channel(true);
    let options = authenticated(&config.credentials)?
        .name("harkd")
        .connection_timeout(CONNECT_TIMEOUT)
        .reconnect_delay_callback(connect_pause)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_MAX)
        .event_callback(move |event| {
            note(&is_up, &event);
            std::future::ready(())
        });
    let options = match &config.ca {
        Some(ca) => options.add_root_certificates(ca.clone()),
        None => options,
    };
    let client = options
        .connect(config.nodes.urls())
        .await
        .map_err(|error| OpenError::Connect {
            nodes: config.nodes.to_string(),
            error,
        })?;
    let info = client.server_info();
    check_node(&info)?;
    if config.text_bytes_max > text_bytes_max(&client) {
        let (node, texts, payload) = (info.server_name, config.text_bytes_max, info.max_payload);
        return Err(OpenError::Payload {
            node,
            texts,
            payload,
        });
    }
    Ok((client, seen))
}

/// Returns the maximum bytes of a text that the node takes.
pub(super) fn text_bytes_max(client: &Client) -> usize {
    client
        .server_info()
        .max_payload
        .saturating_sub(MESSAGE_OVERHEAD)
}

/// Returns zero before the first attempt, and then doubles the pause.
fn connect_pause(tries: usize) -> Duration {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = Duration::from_millis(2_u64.saturating_pow(doublings));
    if doublings == 0 {
        Duration::ZERO
    } else {
        pause.min(CONNECT_PAUSE_MAX)
    }
}

/// Returns the remedy for a failed connection.
fn remedy(error: &async_nats::ConnectError) -> &'static str {
    // The client reports TLS failures as I/O errors.
    let io = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    let is_tls = io
        .and_then(io::Error::get_ref)
        .is_some_and(|inner| inner.is::<rustls::Error>());
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            "pass the credentials that the nodes expect with --nats-user, --nats-token-file or --nats-creds"
        }
        kind if is_tls || kind == ConnectErrorKind::Tls => {
            "is its certificate issued by an authority that the system trusts, or that --nats-ca names?"
        }
        _ => "is it running, and reachable from here at these addresses?",
    }
}

fn authenticated(credentials: &Credentials) -> Result<ConnectOptions, OpenError> {
    let options = ConnectOptions::new();
    Ok(match credentials {
        Credentials::None => options,
        Credentials::Password(user, password) => {
            options.user_and_password(user.clone(), password.to_string())
        }
        Credentials::Token(token) => options.token(token.to_string()),
        Credentials::File(path) => std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .and_then(|text| options.credentials(&text))
            .map_err(|error| OpenError::Credentials {
                path: path.clone(),
                error,
            })?,
    })
}

fn note(is_up: &watch::Sender<bool>, event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to the cluster"),
        Event::Disconnected => tracing::warn!("connection to the cluster lost; reconnecting"),
        Event::SlowConsumer(_) => tracing::warn!("slow consumer of the cluster"),
        other => tracing::debug!(%other, "the cluster"),
    }
    match event {
        Event::Connected => drop(is_up.send_replace(true)),
        Event::Disconnected | Event::Closed => drop(is_up.send_replace(false)),
        _ => {}
    }
}

fn check_node(info: &ServerInfo) -> Result<(), OpenError> {
    let node = info.server_name.clone();
    if version(&info.version) < VERSION_MIN {
        return Err(OpenError::Version {
            node,
            found: info.version.clone(),
        });
    }
    if !info.jetstream {
        return Err(OpenError::NoJetStream { node });
    }
    Ok(())
}

/// Parses the numbers of a version, without a suffix after a hyphen.
fn version(text: &str) -> [u64; 3] {
    let mut numbers = text
        .split('-')
        .next()
        .unwrap_or("")
        .split('.')
        .map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// Creates missing streams and checks existing ones. The number of shards is fixed when a
/// chat is created; it is stored in the metadata of each stream.
pub(super) async fn streams(
    client: &Client,
    config: &ClusterConfig,
) -> Result<Vec<JetStream>, OpenError> {
    let mut context = jetstream::new(client.clone());
    context.set_timeout(SETUP_TIMEOUT);
    let chat = config.nodes.chat();
    refuse_former_layout(&context, chat).await?;
    let replicas = config
        .replicas
        .unwrap_or_else(|| default_replicas(&client.server_info()));
    let wanted = |shard, shards: u32, replicas| {
        let mut wanted = log::config(chat, shard, replicas);
        wanted.metadata = HashMap::from([
            (LAYOUT.to_owned(), LAYOUT_VERSION.to_owned()),
            (SHARDS.to_owned(), shards.to_string()),
        ]);
        wanted
    };
    let first = wanted(0, config.shards, replicas);
    let stream = first.name.clone();
    if !config.may_create && metadata(&context, &stream).await?.is_none() {
        let chat = chat.to_owned();
        return Err(OpenError::NoChat { chat });
    }
    let found = ensure(&context, first).await?;
    let shards = found
        .metadata
        .get(SHARDS)
        .and_then(|shards| shards.parse().ok());
    let shards = shards
        .filter(|shards| (1..=SHARDS_MAX).contains(shards))
        .ok_or_else(|| OpenError::Foreign {
            stream,
            field: format!("no valid {SHARDS} in its metadata"),
        })?;
    let others =
        (1..shards).map(|shard| ensure(&context, wanted(shard, shards, found.num_replicas)));
    stream::iter(others)
        .buffer_unordered(STREAMS_AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    tracing::info!(chat, replicas = found.num_replicas, shards, "streams ready");
    if found.num_replicas == 1 {
        tracing::warn!("streams have a single replica (--replicas 1): a lost disk loses messages");
    }
    Ok((0..shards)
        .map(|shard| JetStream::new(client.clone(), chat, shard))
        .collect())
}

/// Refuses a chat with the streams of an early version of Hark, which was never released.
async fn refuse_former_layout(context: &Context, chat: &str) -> Result<(), OpenError> {
    let stream = format!("{chat}-accounts");
    match metadata(context, &stream).await? {
        Some(metadata) if metadata.contains_key(LAYOUT) => Err(OpenError::FormerLayout { stream }),
        _ => Ok(()),
    }
}

/// Returns the metadata of a stream; `None` if there is no stream of this name.
async fn metadata(
    context: &Context,
    stream: &str,
) -> Result<Option<HashMap<String, String>>, OpenError> {
    let found = once_ready(stream, async || match context.get_stream(stream).await {
        Ok(found) => Ok(Some(found.cached_info().config.metadata.clone())),
        Err(error) => absent(&error).map(|()| None),
    });
    found.await
}

/// Each node knows the other nodes of its cluster.
fn default_replicas(info: &ServerInfo) -> usize {
    let nodes: HashSet<_> = info.connect_urls.iter().collect();
    if info.cluster.is_some() && nodes.len() >= 3 {
        3
    } else {
        1
    }
}

/// Creates a stream if it is missing, and returns its configuration.
async fn ensure(context: &Context, wanted: Config) -> Result<Config, OpenError> {
    let stream = wanted.name.clone();
    let found = once_ready(&stream, async || find_or_make(context, &wanted).await).await?;
    let field = log::difference(&found, &wanted)
        .map(str::to_owned)
        .or_else(|| {
            (found.metadata.get(LAYOUT) != wanted.metadata.get(LAYOUT))
                .then(|| "its layout, which may be of a newer version of Hark".to_owned())
        });
    match field {
        Some(field) => Err(OpenError::Foreign { stream, field }),
        None => Ok(found),
    }
}

/// Retries for as long as a cluster may take to elect leaders: a request without a leader
/// is never answered.
async fn once_ready<T>(
    stream: &str,
    attempt: impl AsyncFn() -> Result<T, NotHad>,
) -> Result<T, OpenError> {
    let deadline = Instant::now() + STREAMS_TIMEOUT;
    loop {
        match attempt().await {
            Ok(had) => return Ok(had),
            Err(NotHad::Lost(reason)) if Instant::now() < deadline => {
                tracing::debug!(stream, reason, "stream not ready");
                sleep(RETRY_PAUSE).await;
            }
            Err(NotHad::Lost(reason) | NotHad::Refused(reason)) => {
                return Err(OpenError::Stream {
                    stream: stream.to_owned(),
                    reason,
                });
            }
        }
    }
}

/// A failed attempt to get a stream, and whether a retry may help.
enum NotHad {
    Lost(String),
    Refused(String),
}

async fn find_or_make(context: &Context, wanted: &Config) -> Result<Config, NotHad> {
    match context.get_stream(&wanted.name).await {
        Ok(found) => return Ok(found.cached_info().config.clone()),
        Err(error) => absent(&error)?,
    }
    tracing::debug!(
        stream = wanted.name,
        replicas = wanted.num_replicas,
        "creating stream"
    );
    // Another server may create it concurrently. The second request returns the existing
    // stream.
    match context.get_or_create_stream(wanted.clone()).await {
        Ok(made) => Ok(made.cached_info().config.clone()),
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::Response => {
                NotHad::Lost(format!("{error}; is a majority of the nodes up?"))
            }
            // A slow node counts as offline for a while.
            CreateStreamErrorKind::JetStream(said)
                if is_passing(&said) || said.error_code() == PEER_OFFLINE =>
            {
                NotHad::Lost(advise(&error, wanted.num_replicas))
            }
            _ => NotHad::Refused(advise(&error, wanted.num_replicas)),
        }),
    }
}

/// Checks that a stream was not found because it does not exist.
fn absent(error: &GetStreamError) -> Result<(), NotHad> {
    match error.kind() {
        GetStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            Ok(())
        }
        GetStreamErrorKind::JetStream(said) if !is_passing(&said) => {
            Err(NotHad::Refused(error.to_string()))
        }
        _ => Err(NotHad::Lost(format!(
            "{error}; is a majority of the nodes up?"
        ))),
    }
}

/// Returns whether the cluster lacks a leader only temporarily.
fn is_passing(error: &jetstream::Error) -> bool {
    [
        ErrorCode::CLUSTER_NOT_AVAILABLE,
        ErrorCode::CLUSTER_NOT_LEADER,
    ]
    .contains(&error.error_code())
}

fn advise(error: &CreateStreamError, replicas: usize) -> String {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) if PEERS_MISSING.contains(&error.error_code()) => {
            format!("{error}; are {replicas} nodes up? start them, or choose fewer with --replicas")
        }
        _ => error.to_string(),
    }
}

/// Waits until each shard has an owner.
pub(super) async fn until_ready(mut ready: watch::Receiver<bool>) -> Result<(), OpenError> {
    let is_ready = timeout(STREAMS_TIMEOUT, ready.wait_for(|is_ready| *is_ready)).await;
    if matches!(is_ready, Ok(Ok(_))) {
        Ok(())
    } else {
        Err(OpenError::NoOwner(STREAMS_TIMEOUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(version("2.15.1") >= VERSION_MIN);
        assert!(version("2.15.1-RC.3") >= VERSION_MIN);
        assert!(version("2.16.0") >= VERSION_MIN && version("3.0") >= VERSION_MIN);
        assert!(
            version("2.15.0") < VERSION_MIN
                && version("2.9.10") < VERSION_MIN
                && version("") < VERSION_MIN
        );
    }

    #[test]
    fn credentials_are_not_shown() {
        let secret = Credentials::Token("secret".to_owned().into());
        assert_eq!(format!("{secret:?}"), "Credentials(..)");
    }
}
