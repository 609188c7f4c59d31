//! The sockets that the server listens on: TCP and Unix. A peer of a Unix socket counts as
//! one of the loopback. It does not know limits or protocols.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::config::ListenAddress;

/// The listen backlog; the system caps it at `net.core.somaxconn`. It is large
/// because all clients reconnect at once after a restart, and the kernel of a
/// client that finds it full retries its SYN only after 1 s, 3 s, 7 s and so on.
const BACKLOG_MAX: u32 = 65_535;

/// The address of the peers of a Unix socket.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A socket that is bound and does not listen yet: connections are refused.
#[derive(Debug)]
pub struct BoundSocket {
    socket: Socket,
    address: ListenAddress,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpSocket),
    Unix(UnixSocket, SocketFile),
}

/// The file of a Unix socket, removed on drop.
#[derive(Debug)]
struct SocketFile(PathBuf);

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    refuses_plaintext: bool,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// Its byte stream.
    pub stream: Stream,
    /// The address of the peer.
    pub address: IpAddr,
    /// Whether it must use TLS.
    pub refuses_plaintext: bool,
}

/// The byte stream of a connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// The sockets of a server. They take turns, so that a flood on one does not starve the
/// others.
#[derive(Debug)]
pub struct Listeners {
    listeners: Vec<Listener>,
    next: usize,
}

impl BoundSocket {
    /// Binds a socket to an address. Replaces the file of a Unix socket on which no process
    /// listens.
    ///
    /// # Errors
    /// If the address is in use or cannot be bound.
    pub fn bind(address: &ListenAddress) -> io::Result<Self> {
        let socket = match address {
            ListenAddress::Tcp(address) => Socket::Tcp(bind_tcp(*address)?),
            ListenAddress::Unix(path) => Socket::Unix(bind_unix(path)?, SocketFile(path.clone())),
        };
        Ok(Self {
            socket,
            address: address.clone(),
        })
    }

    /// Returns the address.
    #[must_use]
    pub const fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Starts to listen.
    ///
    /// # Errors
    /// If the address is in use.
    pub fn listen(self, refuses_plaintext: bool) -> io::Result<Listener> {
        let socket = match self.socket {
            Socket::Tcp(socket) => ListeningSocket::Tcp(socket.listen(BACKLOG_MAX)?),
            Socket::Unix(socket, file) => ListeningSocket::Unix(socket.listen(BACKLOG_MAX)?, file),
        };
        Ok(Listener {
            socket,
            refuses_plaintext,
        })
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // Connections of a former server on this address may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<UnixSocket> {
    let bind = || {
        let socket = UnixSocket::new_stream()?;
        socket.bind(path).map(|()| socket)
    };
    match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            fs::remove_file(path)?;
            bind()
        }
        bound => bound,
    }
}

/// Returns whether the file is a socket on which no process listens: its server was killed.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && BlockingUnixStream::connect(path).is_err_and(refused)
}

impl Listener {
    /// Returns whether connections must use TLS.
    #[must_use]
    pub const fn refuses_plaintext(&self) -> bool {
        self.refuses_plaintext
    }

    /// Returns the address, with the port that the system chose if none was given.
    ///
    /// # Errors
    /// An error of the socket.
    pub fn local_address(&self) -> io::Result<ListenAddress> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            ListeningSocket::Unix(_, SocketFile(path)) => Ok(ListenAddress::Unix(path.clone())),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let accepted = |stream, address| Accepted {
            stream,
            address,
            refuses_plaintext: self.refuses_plaintext,
        };
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener
                .poll_accept(cx)
                .map_ok(|(stream, peer)| accepted(Stream::Tcp(stream), peer.ip().to_canonical())),
            ListeningSocket::Unix(listener, _) => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| accepted(Stream::Unix(stream), LOCAL)),
        }
    }

    /// Closes the connections that are established but not accepted yet, up to the longest
    /// backlog. Returns their number.
    fn close_backlog(&self) -> usize {
        // A direct call: the runtime may not know of them yet.
        let listener = match &self.socket {
            ListeningSocket::Tcp(listener) => SockRef::from(listener),
            ListeningSocket::Unix(listener, _) => SockRef::from(listener),
        };
        (0..BACKLOG_MAX)
            .take_while(|_| listener.accept().is_ok())
            .count()
    }
}

impl From<TcpListener> for Listener {
    /// Returns a listener that accepts plaintext.
    fn from(listener: TcpListener) -> Self {
        Self {
            socket: ListeningSocket::Tcp(listener),
            refuses_plaintext: false,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the socket");
        }
    }
}

impl Listeners {
    /// Returns the sockets of a server.
    #[must_use]
    pub const fn new(listeners: Vec<Listener>) -> Self {
        Self { listeners, next: 0 }
    }

    /// Polls for the next connection.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let (later, first) = self.listeners.split_at(self.next.min(self.listeners.len()));
        for (offset, listener) in first.iter().chain(later).enumerate() {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                self.next = (self.next + offset + 1) % self.listeners.len();
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }

    /// Closes all connections that are established but not accepted yet.
    pub(crate) fn close_backlogs(&self) {
        let closed: usize = self.listeners.iter().map(Listener::close_backlog).sum();
        tracing::debug!(connections = closed, "unaccepted connections closed");
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    fn listener(address: &ListenAddress) -> Listener {
        BoundSocket::bind(address).unwrap().listen(false).unwrap()
    }

    #[tokio::test]
    async fn abandoned_socket_is_replaced_and_a_live_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("harkd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let address = ListenAddress::Unix(path.clone());
        let open = listener(&address);
        let refused = BoundSocket::bind(&address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(open);
        assert!(!path.exists());
        std::fs::write(&path, "a file").unwrap();
        assert!(BoundSocket::bind(&address).is_err(), "not a socket");
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }

    #[tokio::test]
    async fn sockets_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("harkd.sock");
        let tcp = listener(&ListenAddress::Tcp("127.0.0.1:0".parse().unwrap()));
        let Ok(ListenAddress::Tcp(port)) = tcp.local_address() else {
            panic!("no TCP socket")
        };
        let unix = listener(&ListenAddress::Unix(path.clone()));
        let mut listeners = Listeners::new(vec![tcp, unix]);
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(port).await.unwrap());
        }
        let local = UnixStream::connect(&path).await.unwrap();
        let mut accepted = Vec::new();
        for _ in 0..4 {
            let next = tokio::time::timeout(
                Duration::from_secs(10),
                poll_fn(|cx| listeners.poll_accept(cx)),
            );
            let next = next.await.unwrap().unwrap();
            assert!(next.address.is_loopback());
            accepted.push(matches!(next.stream, Stream::Unix(_)));
        }
        assert_eq!(accepted.iter().filter(|is_unix| **is_unix).count(), 1);
        assert!(
            accepted.iter().take(2).any(|is_unix| *is_unix),
            "{accepted:?}"
        );
        drop((clients, local));
    }
}
