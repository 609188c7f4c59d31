//! The figures of a running server for Prometheus, and the listener that serves them. No
//! label names a user or an address, so their number is fixed.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Code, Reply};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::chat::Chat;
use crate::log::Usage;

/// The maximum number of connections to the listener of the metrics. Further ones wait.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection to the listener may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the accept loop pauses when the system is out of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The format of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, &'static str); 1];

/// A front that has connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontKind {
    /// The native framing.
    Native,
    /// The classic framing.
    Classic,
    /// The WebSocket framing.
    WebSocket,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: gRPC and HTTP.
    Http2,
}

impl FrontKind {
    const ALL: [Self; 5] = [
        Self::Native,
        Self::Classic,
        Self::WebSocket,
        Self::Http1,
        Self::Http2,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Classic => "classic",
            Self::WebSocket => "websocket",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// The figures of one server.
pub struct Metrics {
    registry: Registry,
    connections: [Gauge; FrontKind::ALL.len()],
    opened: [Counter; FrontKind::ALL.len()],
    stored: Counter,
    refused: Counter,
    unknown: Counter,
    refusals: [Counter; Code::ALL.len()],
    deliveries: Counter,
    redeliveries: Counter,
    acknowledgements: Counter,
    gaps: Counter,
    lagging: Gauge,
    throttled: Counter<f64, std::sync::atomic::AtomicU64>,
    accounts: Gauge,
    is_available: Gauge,
    is_low_on_space: Gauge,
    hashes_waiting: Gauge,
}

/// The figures of a store.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    commits: Histogram,
    commit_messages: Histogram,
    queued_messages: Gauge,
    queued_bytes: Gauge,
    oldest_unread: Gauge,
    rooms: Gauge,
    members: Gauge,
    devices: Gauge,
    live_bytes: Gauge,
    file_bytes: Gauge,
    used_bytes: Gauge,
    free_bytes: Gauge,
}

/// The running totals of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreTotals {
    /// The unacknowledged messages of all inboxes.
    pub(crate) queued_messages: u64,
    /// The bytes of their texts.
    pub(crate) queued_bytes: u64,
    /// The age of the oldest of them.
    pub(crate) oldest_unread: Duration,
    /// The number of rooms.
    pub(crate) rooms: u64,
    /// The memberships of all rooms.
    pub(crate) members: u64,
    /// The devices of all users.
    pub(crate) devices: u64,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        let gauge = Gauge::default;
        Self {
            queued_messages: gauge(),
            queued_bytes: gauge(),
            oldest_unread: gauge(),
            rooms: gauge(),
            members: gauge(),
            devices: gauge(),
            live_bytes: gauge(),
            file_bytes: gauge(),
            used_bytes: gauge(),
            free_bytes: gauge(),
            // 50 µs to 3.3 s.
            commits: Histogram::new(exponential_buckets(5e-5, 4.0, 9)),
            // 1 to 16,384.
            commit_messages: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
        }
    }
}

impl StoreMetrics {
    /// Records a commit with this many messages.
    pub(crate) fn record_commit(&self, took: Duration, messages: usize) {
        self.commits.observe(took.as_secs_f64());
        self.commit_messages.observe(messages as f64);
    }

    /// Sets the running totals.
    pub(crate) fn set_totals(&self, totals: &StoreTotals) {
        set(&self.queued_messages, totals.queued_messages);
        set(&self.queued_bytes, totals.queued_bytes);
        set(&self.oldest_unread, totals.oldest_unread.as_secs());
        set(&self.rooms, totals.rooms);
        set(&self.members, totals.members);
        set(&self.devices, totals.devices);
    }

    /// Sets the sizes of the log.
    pub(crate) fn set_usage(&self, usage: &Usage) {
        set(&self.live_bytes, usage.live_bytes);
        set(&self.file_bytes, usage.file_bytes);
        set(&self.used_bytes, usage.used_bytes());
        set(&self.free_bytes, usage.free_bytes.unwrap_or_default());
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Returns a counter for each value of a label.
fn counters<const N: usize>(
    registry: &mut Registry,
    (name, help): (&str, &str),
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<Label, Counter>::default();
    registry.register(name, help, family.clone());
    values.map(|value| family.get_or_create_owned(&[(label, value)]))
}

/// Registers a figure.
fn figure<M: prometheus_client::registry::Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let figure = M::default();
    registry.register(name, help, figure.clone());
    figure
}

impl Metrics {
    /// Returns the figures of a server. `register_store` adds those of its store.
    #[must_use]
    pub fn new(register_store: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::with_prefix("hark");
        let registry_ref = &mut registry;
        let fronts = FrontKind::ALL.map(FrontKind::name);
        let gauges = Family::<Label, Gauge>::default();
        registry_ref.register("connections", "Open connections", gauges.clone());
        let build = Family::<Label, Gauge>::default();
        registry_ref.register("build_info", "The version of the server", build.clone());
        build
            .get_or_create(&[("version", env!("CARGO_PKG_VERSION"))])
            .set(1);
        let opened = ("connections_opened", "Connections by front");
        let sends = (
            "sends",
            "Sends by outcome; the outcome of unknown ones is repeated",
        );
        let refusals = ("refusals", "Refused requests by code");
        let outcomes = ["stored", "refused", "unknown"];
        let [stored, refused, unknown] = counters(registry_ref, sends, "outcome", outcomes);
        let codes = Code::ALL.map(Code::as_str);
        register_store(registry_ref);
        Self {
            connections: fronts.map(|front| gauges.get_or_create_owned(&[("front", front)])),
            opened: counters(registry_ref, opened, "front", fronts),
            stored,
            refused,
            unknown,
            refusals: counters(registry_ref, refusals, "code", codes),
            deliveries: figure(registry_ref, "deliveries", "Messages pushed to connections"),
            redeliveries: figure(
                registry_ref,
                "redeliveries",
                "Messages in flight at the end of a delivery, which are pushed again",
            ),
            acknowledgements: figure(
                registry_ref,
                "acknowledgements",
                "Acknowledgements of connections",
            ),
            gaps: figure(
                registry_ref,
                "gaps",
                "Gaps pushed to connections, for messages that were removed",
            ),
            lagging: figure(
                registry_ref,
                "lagging_subscriptions",
                "Deliveries that read the log, because they are behind",
            ),
            throttled: figure(
                registry_ref,
                "throttled_seconds",
                "Pauses of connections by rate limits",
            ),
            accounts: figure(registry_ref, "accounts", "Accounts; -1 if unknown"),
            is_available: figure(registry_ref, "store_available", "1 if the store works"),
            is_low_on_space: figure(
                registry_ref,
                "store_low_on_space",
                "1 if sends are refused for lack of space",
            ),
            hashes_waiting: figure(
                registry_ref,
                "password_hashes_waiting",
                "Passwords that are hashed or wait for it",
            ),
            registry,
        }
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn open(&self, front: FrontKind) -> ConnectionGuard {
        let place = front as usize;
        if let Some(opened) = self.opened.get(place) {
            opened.inc();
        }
        let gauge = self.connections.get(place).cloned().unwrap_or_default();
        gauge.inc();
        ConnectionGuard(gauge)
    }

    /// Adds the counts of a connection since the latest call.
    pub(crate) fn add(&self, counts: &mut Counts) {
        let Counts {
            stored,
            deliveries,
            acknowledgements,
            ..
        } = std::mem::take(counts);
        for (counter, count) in [
            (&self.stored, stored),
            (&self.deliveries, deliveries),
            (&self.acknowledgements, acknowledgements),
        ] {
            if count > 0 {
                counter.inc_by(count.into());
            }
        }
    }

    /// Counts a delivery that begins to read the log, or ends to do so.
    pub(crate) fn record_lag(&self, is_behind: bool) {
        if is_behind {
            self.lagging.inc();
        } else {
            self.lagging.dec();
        }
    }

    /// Counts messages in flight at the end of a delivery.
    pub(crate) fn record_redeliveries(&self, in_flight: usize) {
        if in_flight > 0 {
            self.redeliveries.inc_by(in_flight as u64);
        }
    }

    /// Counts the push of a gap.
    pub(crate) fn record_gap(&self) {
        self.gaps.inc();
    }

    /// Counts the reply to a send that was not stored.
    pub(crate) fn record_unstored(&self, reply: &Reply) {
        match reply {
            Reply::NotOk(_) => drop(self.refused.inc()),
            Reply::Error { .. } => drop(self.unknown.inc()),
            _ => {}
        }
    }

    /// Counts a refusal.
    pub(crate) fn record_refusal(&self, code: Code) {
        if let Some(refusals) = self.refusals.get(usize::from(code.index())) {
            refusals.inc();
        }
    }

    /// Counts a pause of a connection by a rate limit.
    pub(crate) fn record_pause(&self, pause: Duration) {
        self.throttled.inc_by(pause.as_secs_f64());
    }

    /// Returns the figures in the format of OpenMetrics.
    ///
    /// # Errors
    /// None that is known: a text grows without bounds.
    pub fn encode(&self, chat: &Chat) -> Result<String, fmt::Error> {
        let accounts = chat
            .accounts()
            .and_then(|accounts| i64::try_from(accounts).ok());
        self.accounts.set(accounts.unwrap_or(-1));
        self.is_available.set(chat.is_available().into());
        self.is_low_on_space.set(chat.is_low_on_space().into());
        self.hashes_waiting
            .set(i64::try_from(chat.hashes_waiting()).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl StoreMetrics {
    /// Adds the figures to a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "commit_seconds",
            "Duration of commits, with their syncs",
            self.commits.clone(),
        );
        registry.register(
            "commit_messages",
            "Messages of one commit",
            self.commit_messages.clone(),
        );
        let oldest = "Age of the oldest unacknowledged message of all inboxes, at most";
        for (name, help, gauge) in [
            (
                "queued_messages",
                "Unacknowledged messages of all inboxes",
                &self.queued_messages,
            ),
            ("queued_bytes", "Bytes of their texts", &self.queued_bytes),
            ("oldest_unread_seconds", oldest, &self.oldest_unread),
            ("rooms", "Rooms", &self.rooms),
            ("members", "Memberships of all rooms", &self.members),
            ("devices", "Devices of all users", &self.devices),
            (
                "store_live_bytes",
                "Messages that the store holds, in bytes",
                &self.live_bytes,
            ),
            ("store_bytes", "Size of the store's files", &self.file_bytes),
            (
                "store_used_bytes",
                "Size of the files that are not kept for later use",
                &self.used_bytes,
            ),
            (
                "store_free_bytes",
                "Free space beside the store; 0 in memory",
                &self.free_bytes,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
    }
}

/// The figures of a server of a cluster.
#[cfg(feature = "cluster")]
#[derive(Debug, Clone)]
pub(crate) struct ClusterMetrics {
    shards_owned: Gauge,
    takeovers: Counter,
    forwarded: Counter,
    appends: Histogram,
}

#[cfg(feature = "cluster")]
impl Default for ClusterMetrics {
    fn default() -> Self {
        Self {
            shards_owned: Gauge::default(),
            takeovers: Counter::default(),
            forwarded: Counter::default(),
            // 0.5 ms to 8 s.
            appends: Histogram::new(exponential_buckets(5e-4, 4.0, 8)),
        }
    }
}

#[cfg(feature = "cluster")]
impl ClusterMetrics {
    /// Adds the figures to a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let owned = "Shards that this server owns";
        registry.register("shards_owned", owned, self.shards_owned.clone());
        let takeovers = "Shards that this server has come to own";
        registry.register("takeovers", takeovers, self.takeovers.clone());
        let forwarded = "Commands sent to other servers, which own their shards";
        registry.register("forwarded_commands", forwarded, self.forwarded.clone());
        let appends = "Duration of appends to the streams of shards";
        registry.register("append_seconds", appends, self.appends.clone());
    }

    /// Sets the number of shards that the server owns.
    pub(crate) fn set_shards_owned(&self, owned: usize) {
        let owned = i64::try_from(owned).unwrap_or(i64::MAX);
        let former = self.shards_owned.set(owned);
        let taken = u64::try_from(owned - former).unwrap_or_default();
        self.takeovers.inc_by(taken);
    }

    /// Counts commands to another server.
    pub(crate) fn record_forwarded(&self, commands: usize) {
        self.forwarded.inc_by(commands as u64);
    }

    /// Records an append that was answered.
    pub(crate) fn record_append(&self, took: Duration) {
        self.appends.observe(took.as_secs_f64());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The counts of one connection that are not yet in [`Metrics`], so that connections do not
/// share a cache line for each message.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) stored: u32,
    pub(crate) deliveries: u32,
    pub(crate) acknowledgements: u32,
    pub(crate) requests: u32,
    /// The bytes of texts in requests to send.
    pub(crate) sent_bytes: u64,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Serves the figures of `chat` at `/metrics` until the future is dropped.
pub async fn serve(listener: TcpListener, chat: Arc<Chat>) -> Infallible {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this future, which aborts nothing: a connection ends within its timeout.
    let tasks = TaskTracker::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let chat = Arc::clone(&chat);
                tasks.spawn(async move {
                    let served = serve_connection(TokioIo::new(stream), &chat);
                    drop(tokio::time::timeout(CONNECTION_TIMEOUT, served).await);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections to the metrics; retrying");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    io: TokioIo<tokio::net::TcpStream>,
    chat: &Arc<Chat>,
) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(respond(&request, chat)))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(io, service)
        .await
}

fn respond(request: &Request<Incoming>, chat: &Chat) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    match chat.metrics().encode(chat) {
        Ok(text) => {
            *response.body_mut() = Full::new(text.into());
            let media = HeaderValue::from_static(OPEN_METRICS);
            response.headers_mut().insert(CONTENT_TYPE, media);
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_and_name_nobody() {
        let store = StoreMetrics::default();
        store.record_commit(Duration::from_millis(1), 3);
        store.set_totals(&StoreTotals {
            queued_messages: 5,
            queued_bytes: 500,
            oldest_unread: Duration::from_secs(60),
            rooms: 1,
            members: 2,
            devices: 3,
        });
        let metrics = Metrics::new(|registry| store.register(registry));
        let guard = metrics.open(FrontKind::WebSocket);
        metrics.record_lag(true);
        metrics.record_refusal(Code::QueueFull);
        let mut counts = Counts {
            stored: 2,
            ..Counts::default()
        };
        metrics.add(&mut counts);
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        for line in [
            "hark_connections{front=\"websocket\"} 1",
            "hark_refusals_total{code=\"queue-full\"} 1",
            "hark_sends_total{outcome=\"stored\"} 2",
            "hark_commit_messages_sum 3.0",
            "hark_queued_messages 5",
            "hark_oldest_unread_seconds 60",
            "hark_lagging_subscriptions 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series < 200, "{series} series");
        drop(guard);
        metrics.record_lag(false);
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        assert!(
            text.contains("hark_connections{front=\"websocket\"} 0"),
            "{text}"
        );
        assert!(text.contains("hark_lagging_subscriptions 0"), "{text}");
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn takeovers_count_shards_that_are_gained() {
        let cluster = ClusterMetrics::default();
        let metrics = Metrics::new(|registry| cluster.register(registry));
        for owned in [0, 4, 4, 1, 3] {
            cluster.set_shards_owned(owned);
        }
        cluster.record_append(Duration::from_millis(2));
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        for line in [
            "hark_shards_owned 3",
            "hark_takeovers_total 6",
            "hark_append_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series < 200, "{series} series");
    }
}
