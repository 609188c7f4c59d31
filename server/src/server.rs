//! The accept loop and the connections that there are: limits, and an orderly
//! end. What is said on a connection is a matter of [`crate::front`].

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::chat::{Chat, Control, Wish};
use crate::front::{self, Fronts, Settings};

/// Connections over the limit that are told so at the same time. The others are
/// closed without a word.
const REFUSALS_AT_ONCE: usize = 128;

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
    /// Connections from one address.
    pub connections_per_address_max: usize,
    /// How long the end may take before connections are cut.
    pub drain_timeout: Duration,
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
        connections: Mutex::default(),
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
    loop {
        match listener.accept().await {
            Ok((stream, address)) => server.take(stream, address),
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept connections; trying again");
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

#[derive(Debug, Default)]
struct Connections {
    last_id: u64,
    open: HashMap<u64, Arc<Control>>,
    per_address: HashMap<IpAddr, usize>,
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
            Err(explanation) => self.refuse(stream, address, explanation),
        }
    }

    fn serve(&self, stream: TcpStream, admission: Admission) {
        let fronts = Arc::clone(&self.fronts);
        self.tasks.spawn(async move {
            let (address, control) = (admission.address, Arc::clone(&admission.control));
            let connection = admission.id;
            tracing::debug!(%address, connection, "a connection begins");
            if let Err(error) = fronts.serve(stream, address, control).await {
                tracing::debug!(%address, connection, %error, "a connection failed");
            }
            tracing::debug!(%address, connection, "a connection has ended");
            drop(admission);
        });
    }

    fn refuse(&self, stream: TcpStream, address: IpAddr, explanation: &'static str) {
        tracing::warn!(%address, "refusing a connection: {explanation}");
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        self.tasks.spawn(async move {
            if let Err(error) = front::refuse(stream, address, explanation).await {
                tracing::debug!(%address, %error, "a connection failed");
            }
            drop(permit);
        });
    }

    fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admission, &'static str> {
        let mut connections = self.lock();
        if connections.open.len() >= self.limits.connections_max {
            return Err("the server has as many connections as it may have; try again later");
        }
        let from_here = connections.per_address.entry(address).or_default();
        if *from_here >= self.limits.connections_per_address_max {
            return Err("there are too many connections from your address; close some");
        }
        *from_here += 1;
        connections.last_id += 1;
        let (id, control) = (connections.last_id, Arc::<Control>::default());
        connections.open.insert(id, Arc::clone(&control));
        Ok(Admission { id, address, control, server: Arc::clone(self) })
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
    control: Arc<Control>,
    server: Arc<Server>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut connections = self.server.lock();
        connections.open.remove(&self.id);
        if let Some(count) = connections.per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.per_address.remove(&self.address);
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
