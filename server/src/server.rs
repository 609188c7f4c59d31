//! The accept loop and the connections that there are: limits, and an orderly
//! end. What is said on a connection is a matter of [`crate::front`].

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use hark_protocol::{Code, Refusal};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::chat::{Chat, Control, Wish};
use crate::front::wire::Wire;
use crate::front::{self, Fronts, Settings};
use crate::limit::{Buckets, Rate, network};

/// Connections over a limit that are told so at the same time. The others are
/// closed without a word.
const REFUSALS_AT_ONCE: usize = 128;

/// Open files of connections that are refused, and of the process itself, about.
const OTHER_FILES: usize = REFUSALS_AT_ONCE + 64;

/// How long accepting pauses when the system has no more to give (`EMFILE`).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections that did not end in time have to notice.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A link that is idle is asked for life after [`Settings::ack_timeout`], or
/// after this if that is longer, and then [`KEEPALIVE_PROBES`] times in as long
/// again. One that does not answer is given up by then.
const KEEPALIVE_MAX: Duration = Duration::from_secs(60);

/// See [`KEEPALIVE_MAX`].
const KEEPALIVE_PROBES: u32 = 4;

/// The shortest time between two probes: the system counts in seconds.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all.
    pub connections_max: usize,
    /// Connections from one address. An IPv6 network (/64) is one address.
    pub connections_per_address_max: usize,
    /// New connections from one address.
    pub connects: Option<Rate>,
    /// Whether these two hold for the machine of the server as well.
    pub on_loopback: bool,
    /// How long the end may take before connections are cut.
    pub drain_timeout: Duration,
}

impl Limits {
    /// The same for a process that may have `files_max` files open, of which the
    /// store needs `store_files`: it must find one when it wants it. Where there
    /// are very few, connections get half of them.
    #[must_use]
    pub fn within_files(self, files_max: usize, store_files: usize) -> Self {
        let others = (OTHER_FILES + store_files).min(files_max / 2);
        Self { connections_max: self.connections_max.min(files_max - others), ..self }
    }
}

/// Serves until `shutdown` resolves; then stops accepting, answers what is in
/// flight, says `bye`, and returns when all connections have ended, in
/// [`Limits::drain_timeout`] and a little more at most. The store is left open.
pub async fn run(
    listener: TcpListener,
    chat: Arc<Chat>,
    settings: Settings,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let server = Arc::new(Server {
        fronts: Arc::new(Fronts::new(chat, settings)),
        limits,
        connections: Mutex::new(Connections::new(limits.connects)),
        refusals: Arc::new(Semaphore::new(REFUSALS_AT_ONCE)),
        tasks: TaskTracker::new(),
    });
    tokio::select! {
        () = accept(&listener, &server) => {}
        () = shutdown => {}
    }
    drop(listener);
    server.drain().await;
}

async fn accept(listener: &TcpListener, server: &Arc<Server>) {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("accepting connections again");
                }
                server.take(stream, address);
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "cannot accept connections; trying until it can");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an error of `accept` says something about the connection alone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[derive(Debug)]
struct Server {
    fronts: Arc<Fronts>,
    limits: Limits,
    // A lock, since every connection's task takes itself out. It is held for
    // one operation on the maps.
    connections: Mutex<Connections>,
    refusals: Arc<Semaphore>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Connections {
    last_id: u64,
    open: HashMap<u64, Arc<Control>>,
    /// By network.
    per_address: HashMap<IpAddr, usize>,
    /// The new ones of late, by network.
    connects: Option<Buckets<IpAddr>>,
}

impl Connections {
    fn new(connects: Option<Rate>) -> Self {
        let (open, per_address) = Default::default();
        Self { last_id: 0, open, per_address, connects: connects.map(Buckets::new) }
    }

    /// Counts one more from this address.
    fn admit(&mut self, address: IpAddr, limits: &Limits, now: Instant) -> Result<(), Refusal> {
        if self.open.len() >= limits.connections_max {
            return too_many("the server has as many connections as it may have; try again later");
        }
        let network = network(address);
        let from_here = self.per_address.get(&network).copied().unwrap_or_default();
        let spared = address.is_loopback() && !limits.on_loopback;
        if from_here >= limits.connections_per_address_max && !spared {
            return too_many("there are too many connections from your address; close some");
        }
        if let Some(connects) = self.connects.as_mut().filter(|_| !spared) {
            let wait = connects.wait(&network, now);
            if !wait.is_zero() {
                return Err(Refusal::rate_limited(wait, "too many new connections from your address"));
            }
            connects.charge(network, 1, now);
        }
        self.per_address.insert(network, from_here + 1);
        Ok(())
    }
}

fn too_many<T>(explanation: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(Code::TooMany, explanation))
}

impl Server {
    fn take(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let address = address.ip().to_canonical();
        if let Err(error) = prepare(&stream, self.fronts.settings().ack_timeout) {
            tracing::debug!(%address, %error, "a connection ended before it was served");
            return;
        }
        match self.admit(address) {
            Ok(admission) => self.serve(stream, admission),
            Err(refusal) => self.refuse(stream, address, refusal),
        }
    }

    fn serve(&self, stream: TcpStream, admission: (Admission, Arc<Control>)) {
        let (fronts, tasks) = (Arc::clone(&self.fronts), self.tasks.clone());
        self.tasks.spawn(async move {
            let (admission, control) = admission;
            let Admission { address, id: connection, .. } = admission;
            tracing::debug!(%address, connection, "a connection begins");
            match fronts.serve(stream, address, control).await {
                Ok(Some(wire)) => drop(tasks.spawn(serve_wire(wire, admission))),
                Ok(None) => admission.note_end(Ok(())),
                Err(error) => admission.note_end(Err(error)),
            }
        });
    }

    fn refuse(&self, stream: TcpStream, address: IpAddr, refusal: Refusal) {
        tracing::warn!(%address, "refusing a connection: {}", refusal.explanation);
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        self.tasks.spawn(async move {
            if let Err(error) = front::refuse(stream, address, refusal).await {
                tracing::debug!(%address, %error, "a connection failed");
            }
            drop(permit);
        });
    }

    fn admit(self: &Arc<Self>, address: IpAddr) -> Result<(Admission, Arc<Control>), Refusal> {
        let mut connections = self.lock();
        connections.admit(address, &self.limits, Instant::now())?;
        connections.last_id += 1;
        let (id, control) = (connections.last_id, Arc::<Control>::default());
        connections.open.insert(id, Arc::clone(&control));
        Ok((Admission { id, address, server: Arc::clone(self) }, control))
    }

    async fn drain(&self) {
        let open = self.tell_all(Wish::Drain);
        tracing::info!(connections = open, "stopping: no new connections; answering what is in flight");
        self.tasks.close();
        if tokio::time::timeout(self.limits.drain_timeout, self.tasks.wait()).await.is_ok() {
            return;
        }
        let left = self.tell_all(Wish::Close);
        tracing::warn!(connections = left, "closing connections that did not end in time");
        if tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections have not ended");
        }
    }

    fn tell_all(&self, wish: Wish) -> usize {
        let controls: Vec<_> = self.lock().open.values().cloned().collect();
        controls.iter().for_each(|control| control.tell(wish));
        controls.len()
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the connections, given back when it is dropped.
#[derive(Debug)]
struct Admission {
    id: u64,
    address: IpAddr,
    server: Arc<Server>,
}

/// Serves a connection of the wire front to its end. An idle one consists of little
/// else than this future, so that it holds nothing twice.
fn serve_wire(mut wire: Wire<TcpStream>, admission: Admission) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        let served = ready!(wire.poll(cx));
        admission.note_end(served);
        Poll::Ready(())
    })
}

impl Admission {
    fn note_end(&self, served: io::Result<()>) {
        let Self { id: connection, address, .. } = self;
        if let Err(error) = served {
            tracing::debug!(%address, connection, %error, "a connection failed");
        }
        tracing::debug!(%address, connection, "a connection has ended");
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let network = network(self.address);
        let mut connections = self.server.lock();
        connections.open.remove(&self.id);
        if let Some(count) = connections.per_address.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                connections.per_address.remove(&network);
            }
        }
    }
}

/// Has the system find out that a peer has vanished: one that is idle, by
/// [`KEEPALIVE_MAX`]; and one that does not confirm what was written to it, in
/// the same time, or in `ack_timeout` if that is longer (Linux:
/// `TCP_USER_TIMEOUT`).
fn prepare(stream: &TcpStream, ack_timeout: Duration) -> io::Result<()> {
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

    const LIMITS: Limits = Limits {
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
        limits: &Limits,
        now: Instant,
        refused: Option<Code>,
    ) {
        let admitted = connections.admit(address(from), limits, now);
        assert_eq!(admitted.err().map(|refusal| refusal.code), refused, "{from}");
    }

    #[test]
    fn a_network_of_ipv6_has_as_many_connections_as_one_address() {
        let (mut connections, now) = (Connections::new(None), Instant::now());
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
        let none = Limits { connections_per_address_max: 0, ..LIMITS };
        check(&mut connections, "192.0.2.3", &none, now, Some(Code::TooMany));
        assert_eq!(connections.per_address.len(), 4, "who is refused leaves nothing behind");
    }

    #[test]
    fn this_machine_has_as_many_connections_as_there_may_be_unless_it_is_limited_too() {
        let (mut connections, now) = (Connections::new(None), Instant::now());
        for from in ["::1", "127.0.0.1"] {
            for _ in 0..100 {
                check(&mut connections, from, &LIMITS, now, None);
            }
            let limited = Limits { on_loopback: true, ..LIMITS };
            check(&mut connections, from, &limited, now, Some(Code::TooMany));
        }
    }

    #[test]
    fn new_connections_have_a_rate_by_network_but_not_those_of_this_machine() {
        let limits = Limits { connections_per_address_max: 1000, connects: Rate::per_second(1), ..LIMITS };
        let (mut connections, now) = (Connections::new(limits.connects), Instant::now());
        for host in 0..5 {
            check(&mut connections, &format!("2001:db8::{host}"), &limits, now, None);
        }
        check(&mut connections, "2001:db8::5", &limits, now, Some(Code::RateLimited));
        let refused = connections.admit(address("2001:db8::6"), &limits, now).unwrap_err();
        assert_eq!(refused.retry_after(), Some(Duration::from_secs(1)));
        check(&mut connections, "2001:db8:0:1::1", &limits, now, None);
        check(&mut connections, "2001:db8::5", &limits, now + Duration::from_secs(1), None);
        for from in ["::1", "127.0.0.1", "::ffff:127.0.0.2"] {
            // As it is when it is accepted.
            let from = address(from).to_canonical().to_string();
            for _ in 0..100 {
                check(&mut connections, &from, &limits, now, None);
            }
        }
        let limits = Limits { on_loopback: true, ..limits };
        for _ in 0..5 {
            check(&mut connections, "::1", &limits, now, None);
        }
        check(&mut connections, "::1", &limits, now, Some(Code::RateLimited));
    }

    fn output_bytes<F>(_: impl FnOnce(Wire<TcpStream>, Admission) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn idle_connection_takes_few_bytes() {
        let bytes = output_bytes(serve_wire);
        // With what the runtime adds, a task of 768 bytes.
        assert!(bytes <= 656, "{bytes} bytes, {} of them of the wire", size_of::<Wire<TcpStream>>());
    }

    #[test]
    fn connections_leave_files_for_the_store() {
        let limits = Limits { connections_max: 100_000, ..LIMITS };
        let within = |files| limits.within_files(files, 256).connections_max;
        assert_eq!(within(1_000_000), 100_000);
        assert_eq!(within(20_000), 20_000 - 256 - OTHER_FILES);
        assert_eq!(within(100), 50);
    }
}
