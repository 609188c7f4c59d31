//! The accept loop and the table of open connections: admission limits and a graceful
//! shutdown. [`crate::front`] serves each connection, and [`crate::listener`] has the
//! sockets.

mod administration;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use hark_protocol::{Code, Refusal};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::administration::AdminSlot;
use crate::bans::Bans;
use crate::chat::{Chat, Shutdown, ShutdownSignal, now_ms};
use crate::front::wire::Wire;
use crate::front::{self, Fronts, Settings};
use crate::limit::{Buckets, Rate, network};
use crate::listener::{Accepted, Listeners, Stream};
use crate::sync::Mutex;

pub(crate) use administration::{ConnectionInfo, ConnectionUsage, KickTarget};

/// The maximum number of refusals that are sent at the same time. Further connections
/// beyond a limit are closed without a refusal.
const REFUSALS_AT_ONCE: usize = 128;

/// Open files for refused connections and for the process itself, approximately.
const OTHER_FILES: usize = REFUSALS_AT_ONCE + 64;

/// How long the accept loop pauses when the system is out of resources (`EMFILE`).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The interval between two reports of a drain.
const DRAIN_REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// How long connections may take to close after the drain timeout.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest idle time before the first keepalive probe; a shorter
/// [`Settings::ack_timeout`] replaces it. [`KEEPALIVE_PROBES`] probes follow over the
/// same time again, after which the link is dead.
const KEEPALIVE_MAX: Duration = Duration::from_secs(60);

/// See [`KEEPALIVE_MAX`].
const KEEPALIVE_PROBES: u32 = 4;

/// The shortest time between two probes: the system counts in whole seconds.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The maximum number of connections.
    pub connections_max: usize,
    /// The maximum number of connections from one address. An IPv6 network (/64) is
    /// one address.
    pub connections_per_address_max: usize,
    /// The rate of new connections from one address.
    pub connects: Option<Rate>,
    /// Whether the two per-address limits apply to the loopback, too.
    pub on_loopback: bool,
    /// How long a shutdown waits before it closes the remaining connections.
    pub drain_timeout: Duration,
}

impl ConnectionLimits {
    /// Lowers the limit of connections for a process that may have `files_max` files
    /// open, of which `store_files` are reserved for the store. If there are very few,
    /// connections get half of them.
    #[must_use]
    pub fn within_files(self, files_max: usize, store_files: usize) -> Self {
        let others = (OTHER_FILES + store_files).min(files_max / 2);
        Self {
            connections_max: self.connections_max.min(files_max - others),
            ..self
        }
    }
}

async fn accept(
    mut listeners: Listeners,
    server: &Arc<Server>,
    mut epoch: Option<watch::Receiver<u64>>,
) {
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            epoch = next_epoch(&mut epoch) => {
                server.begin_epoch(epoch, &listeners);
                continue;
            }
            accepted = poll_fn(|cx| listeners.poll_accept(cx)) => accepted,
        };
        match accepted {
            Ok(accepted) => {
                if std::mem::take(&mut is_failing) {
                    tracing::info!("accepting connections again");
                }
                server.handle_accepted(accepted);
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "connection closed before accept");
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(%error, "cannot accept connections; retrying");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Returns the next epoch of connections. Cancel-safe.
async fn next_epoch(epoch: &mut Option<watch::Receiver<u64>>) -> u64 {
    if let Some(epoch) = epoch
        && epoch.changed().await.is_ok()
    {
        return *epoch.borrow_and_update();
    }
    std::future::pending().await
}

/// Returns whether an error of `accept` concerns only the connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// A server: its open connections, and their limits.
#[derive(Debug)]
pub struct Server {
    chat: Arc<Chat>,
    fronts: Arc<Fronts>,
    // Locked because every connection's task removes its own entry. Held for one
    // operation on the maps.
    connections: Mutex<Connections>,
    refusals: Arc<Semaphore>,
    tasks: TaskTracker,
    is_draining: AtomicBool,
    bans: Arc<Bans>,
}

/// The state of a server at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerState {
    /// The number of open connections.
    pub connections: usize,
    /// Whether it is shutting down.
    pub is_draining: bool,
    /// Whether its store is healthy, as far as it knows.
    pub is_available: bool,
}

/// An open connection.
#[derive(Debug)]
struct OpenConnection {
    shutdown: Arc<ShutdownSignal>,
    address: IpAddr,
    since: Instant,
}

#[derive(Debug)]
struct Connections {
    limits: ConnectionLimits,
    last_id: u64,
    /// The epoch of new connections.
    epoch: u64,
    open: BTreeMap<u64, OpenConnection>,
    /// Open connections by network.
    per_address: HashMap<IpAddr, usize>,
    /// The rate of new connections by network.
    connects: Option<Buckets<IpAddr>>,
    /// The connections that ended during the measurement of an administrator.
    ended: Option<Vec<(u64, ConnectionUsage)>>,
}

impl Connections {
    fn new(limits: ConnectionLimits) -> Self {
        let (open, per_address) = Default::default();
        Self {
            limits,
            last_id: 0,
            epoch: 0,
            open,
            per_address,
            connects: limits.connects.map(Buckets::new),
            ended: None,
        }
    }

    /// Changes the limits of later connections.
    fn set_limits(&mut self, limits: ConnectionLimits) {
        match (&mut self.connects, limits.connects) {
            (Some(buckets), Some(rate)) => buckets.set_rate(rate),
            (connects, rate) => *connects = rate.map(Buckets::new),
        }
        self.limits = limits;
    }

    /// Counts a new connection from `address`, or refuses it. That of a proxy is of many
    /// clients, whose requests are counted.
    fn admit(&mut self, address: IpAddr, is_proxy: bool, now: Instant) -> Result<(), Refusal> {
        let limits = self.limits;
        if self.open.len() >= limits.connections_max {
            return too_many("the server has reached its connection limit; try again later");
        }
        let network = network(address);
        let from_network = self.per_address.get(&network).copied().unwrap_or_default();
        let is_exempt = is_proxy || (address.is_loopback() && !limits.on_loopback);
        if from_network >= limits.connections_per_address_max && !is_exempt {
            return too_many("too many connections from your address; close one and try again");
        }
        if let Some(connects) = self.connects.as_mut().filter(|_| !is_exempt) {
            let wait = connects.wait(&network, now);
            if !wait.is_zero() {
                return Err(Refusal::rate_limited(
                    wait,
                    "too many new connections from your address",
                ));
            }
            connects.charge(network, 1, now);
        }
        self.per_address.insert(network, from_network + 1);
        Ok(())
    }
}

fn too_many<T>(explanation: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(Code::TooMany, explanation))
}

impl Server {
    /// Returns a server of `chat` without connections.
    #[must_use]
    pub fn new(chat: Arc<Chat>, settings: Settings, limits: ConnectionLimits) -> Arc<Self> {
        Self::with_administration(chat, settings, limits, Arc::default(), AdminSlot::default())
    }

    /// Returns a server as [`Self::new`] does, which refuses connections from banned
    /// networks and has administrators.
    pub(crate) fn with_administration(
        chat: Arc<Chat>,
        settings: Settings,
        limits: ConnectionLimits,
        bans: Arc<Bans>,
        admin: AdminSlot,
    ) -> Arc<Self> {
        let fronts = Fronts::new(Arc::clone(&chat), settings, Arc::clone(&bans), admin);
        fronts.set_requests_max(limits.connections_per_address_max);
        Arc::new(Self {
            fronts: Arc::new(fronts),
            chat,
            connections: Mutex::new(Connections::new(limits)),
            refusals: Arc::new(Semaphore::new(REFUSALS_AT_ONCE)),
            tasks: TaskTracker::new(),
            is_draining: AtomicBool::new(false),
            bans,
        })
    }

    /// Serves until `shutdown` resolves. Then it stops accepting, has each connection
    /// answer the requests in flight and send `bye`, and returns when all have closed, at
    /// most two seconds after [`ConnectionLimits::drain_timeout`]. The store stays
    /// open.
    pub async fn run(self: Arc<Self>, listeners: Listeners, shutdown: impl Future<Output = ()>) {
        let epoch = self.chat.epoch();
        tokio::select! {
            () = accept(listeners, &self, epoch) => {}
            () = shutdown => {}
        }
        self.drain().await;
    }

    /// Changes the limits of later connections, and of the next shutdown.
    pub fn set_limits(&self, limits: ConnectionLimits) {
        let requests_max = limits.connections_per_address_max;
        self.fronts.set_requests_max(requests_max);
        self.connections.lock().set_limits(limits);
    }

    /// Returns its state.
    #[must_use]
    pub fn state(&self) -> ServerState {
        ServerState {
            connections: self.connections.lock().open.len(),
            is_draining: self.is_draining.load(Ordering::Acquire),
            is_available: self.chat.is_available(),
        }
    }

    fn handle_accepted(self: &Arc<Self>, accepted: Accepted) {
        let address = accepted.address;
        if let Stream::Tcp(stream) = &accepted.stream
            && let Err(error) = set_options(stream, self.fronts.settings().ack_timeout)
        {
            tracing::debug!(%address, %error, "connection closed before it was served");
            return;
        }
        match self.admit(address) {
            Ok(admission) => self.serve(accepted, admission),
            Err(refusal) => self.refuse(accepted.stream, address, refusal),
        }
    }

    fn serve(&self, accepted: Accepted, admission: (Admission, Arc<ShutdownSignal>)) {
        let (fronts, tasks) = (Arc::clone(&self.fronts), self.tasks.clone());
        self.tasks.spawn(async move {
            let (admission, shutdown) = admission;
            let Admission {
                id: connection,
                address,
                ..
            } = admission;
            tracing::debug!(%address, connection, "connection opened");
            match fronts.serve(accepted, shutdown).await {
                Ok(Some(wire)) => drop(tasks.spawn(serve_wire(wire, admission))),
                Ok(None) => admission.log_end(Ok(())),
                Err(error) => admission.log_end(Err(error)),
            }
        });
    }

    fn refuse(&self, stream: Stream, address: IpAddr, refusal: Refusal) {
        tracing::warn!(%address, code = %refusal.code, reason = %refusal.explanation, "connection refused");
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        self.tasks.spawn(async move {
            if let Err(error) = front::refuse(stream, address, refusal).await {
                tracing::debug!(%address, %error, "connection failed");
            }
            drop(permit);
        });
    }

    fn admit(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> Result<(Admission, Arc<ShutdownSignal>), Refusal> {
        if self.bans.is_banned(address, now_ms()) {
            return Err(Bans::refusal());
        }
        let (mut connections, now) = (self.connections.lock(), Instant::now());
        let is_proxy = self.fronts.settings().http.is_proxy(address);
        connections.admit(address, is_proxy, now)?;
        connections.last_id += 1;
        let (id, shutdown) = (
            connections.last_id,
            Arc::new(ShutdownSignal::of_epoch(connections.epoch)),
        );
        shutdown.set_address(address);
        let open = OpenConnection {
            shutdown: Arc::clone(&shutdown),
            address,
            since: now,
        };
        connections.open.insert(id, open);
        Ok((
            Admission {
                id,
                address,
                server: Arc::clone(self),
            },
            shutdown,
        ))
    }

    /// Closes all connections of earlier epochs without reading more from them.
    fn begin_epoch(&self, epoch: u64, listeners: &Listeners) {
        let connections = self.request_all(Shutdown::Close);
        tracing::warn!(
            connections,
            "all connections closed: the store was out of touch with its cluster"
        );
        listeners.close_backlogs();
        self.connections.lock().epoch = epoch;
    }

    async fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        let connections = self.request_all(Shutdown::Drain);
        tracing::info!(
            connections,
            "draining: no new connections, finishing requests in flight"
        );
        self.tasks.close();
        let timeout = self.connections.lock().limits.drain_timeout;
        let ended = tokio::select! {
            ended = tokio::time::timeout(timeout, self.tasks.wait()) => ended,
            never = self.report_drain() => match never {},
        };
        if ended.is_ok() {
            return;
        }
        let connections = self.request_all(Shutdown::Close);
        tracing::warn!(
            connections,
            "drain timeout: closing the remaining connections"
        );
        if tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = self.state().connections,
                "connections still open"
            );
        }
    }

    /// Logs the progress of a drain.
    async fn report_drain(&self) -> Infallible {
        loop {
            tokio::time::sleep(DRAIN_REPORT_INTERVAL).await;
            let connections = self.state().connections;
            tracing::info!(connections, "draining");
        }
    }

    /// Requests the shutdown of every connection, and returns their number.
    fn request_all(&self, shutdown: Shutdown) -> usize {
        let signals: Vec<_> = {
            let connections = self.connections.lock();
            let open = connections.open.values();
            open.map(|open| Arc::clone(&open.shutdown)).collect()
        };
        signals.iter().for_each(|signal| signal.request(shutdown));
        signals.len()
    }
}

/// The entry of an open connection in the table; dropping it removes the entry.
#[derive(Debug)]
struct Admission {
    id: u64,
    address: IpAddr,
    server: Arc<Server>,
}

/// Serves a connection of the wire front to its end. This future is most of the memory
/// of an idle connection.
fn serve_wire(mut wire: Wire<TcpStream>, admission: Admission) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        let served = ready!(wire.poll(cx));
        admission.log_end(served);
        Poll::Ready(())
    })
}

impl Admission {
    /// Logs the end of the connection.
    fn log_end(&self, served: io::Result<()>) {
        let Self {
            id: connection,
            address,
            ..
        } = self;
        if let Err(error) = served {
            tracing::debug!(%address, connection, %error, "connection failed");
        }
        tracing::debug!(%address, connection, "connection closed");
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let network = network(self.address);
        let mut connections = self.server.connections.lock();
        if let Some(connection) = connections.open.remove(&self.id) {
            connections.note_end(self.id, &connection);
        }
        if let Some(count) = connections.per_address.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                connections.per_address.remove(&network);
            }
        }
    }
}

/// Disables Nagle's algorithm, and has the system detect a peer that has vanished:
/// an idle one by keepalive probes ([`KEEPALIVE_MAX`]), one with unacknowledged data
/// after the same time or `ack_timeout`, whichever is longer (Linux:
/// `TCP_USER_TIMEOUT`).
fn set_options(stream: &TcpStream, ack_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let idle = ack_timeout.min(KEEPALIVE_MAX);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(ack_timeout.max(2 * idle)))?;
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval((idle / KEEPALIVE_PROBES).max(KEEPALIVE_INTERVAL_MIN))
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        connections_max: 1000,
        connections_per_address_max: 2,
        connects: None,
        on_loopback: false,
        drain_timeout: Duration::ZERO,
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[track_caller]
    fn check(
        connections: &mut Connections,
        from: &str,
        limits: &ConnectionLimits,
        now: Instant,
        refused: Option<Code>,
    ) {
        connections.set_limits(*limits);
        let admitted = connections.admit(address(from), false, now);
        assert_eq!(
            admitted.err().map(|refusal| refusal.code),
            refused,
            "{from}"
        );
    }

    #[test]
    fn ipv6_network_counts_as_one_address() {
        let (mut connections, now) = (Connections::new(LIMITS), Instant::now());
        for (from, refused) in [
            ("2001:db8:0:1::1", None),
            ("2001:db8:0:1:ffff::2", None),
            ("2001:db8:0:1::3", Some(Code::TooMany)),
            ("2001:db8:0:2::1", None),
            ("192.0.2.1", None),
            ("::ffff:192.0.2.1", None),
            ("192.0.2.1", Some(Code::TooMany)),
            ("192.0.2.2", None),
        ] {
            check(&mut connections, from, &LIMITS, now, refused);
        }
        assert_eq!(connections.per_address.len(), 4);
        let none = ConnectionLimits {
            connections_per_address_max: 0,
            ..LIMITS
        };
        check(
            &mut connections,
            "192.0.2.3",
            &none,
            now,
            Some(Code::TooMany),
        );
        assert_eq!(connections.per_address.len(), 4, "a refusal adds no entry");
    }

    #[test]
    fn loopback_is_exempt_unless_it_is_limited() {
        let (mut connections, now) = (Connections::new(LIMITS), Instant::now());
        for from in ["::1", "127.0.0.1"] {
            for _ in 0..100 {
                check(&mut connections, from, &LIMITS, now, None);
            }
            let limited = ConnectionLimits {
                on_loopback: true,
                ..LIMITS
            };
            check(&mut connections, from, &limited, now, Some(Code::TooMany));
        }
    }

    #[test]
    fn new_connections_are_rate_limited_by_network() {
        let limits = ConnectionLimits {
            connections_per_address_max: 1000,
            connects: Rate::per_second(1),
            ..LIMITS
        };
        let (mut connections, now) = (Connections::new(limits), Instant::now());
        for host in 0..5 {
            check(
                &mut connections,
                &format!("2001:db8::{host}"),
                &limits,
                now,
                None,
            );
        }
        check(
            &mut connections,
            "2001:db8::5",
            &limits,
            now,
            Some(Code::RateLimited),
        );
        let refused = connections
            .admit(address("2001:db8::6"), false, now)
            .unwrap_err();
        assert_eq!(refused.retry_after(), Some(Duration::from_secs(1)));
        check(&mut connections, "2001:db8:0:1::1", &limits, now, None);
        check(
            &mut connections,
            "2001:db8::5",
            &limits,
            now + Duration::from_secs(1),
            None,
        );
        for from in ["::1", "127.0.0.1", "::ffff:127.0.0.2"] {
            // As `handle_accepted` does.
            let from = address(from).to_canonical().to_string();
            for _ in 0..100 {
                check(&mut connections, &from, &limits, now, None);
            }
        }
        let limits = ConnectionLimits {
            on_loopback: true,
            ..limits
        };
        for _ in 0..5 {
            check(&mut connections, "::1", &limits, now, None);
        }
        check(
            &mut connections,
            "::1",
            &limits,
            now,
            Some(Code::RateLimited),
        );
    }

    fn output_bytes<F>(_: impl FnOnce(Wire<TcpStream>, Admission) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn idle_connection_takes_few_bytes() {
        let bytes = output_bytes(serve_wire);
        // Together with the runtime's part, a task of 1024 bytes.
        assert!(
            bytes <= 752,
            "{bytes} bytes, {} of them of the wire",
            size_of::<Wire<TcpStream>>()
        );
    }

    #[test]
    fn open_files_are_reserved_for_the_store() {
        let limits = ConnectionLimits {
            connections_max: 100_000,
            ..LIMITS
        };
        let within = |files| limits.within_files(files, 256).connections_max;
        assert_eq!(within(1_000_000), 100_000);
        assert_eq!(within(20_000), 20_000 - 256 - OTHER_FILES);
        assert_eq!(within(100), 50);
    }
}
