//! One connection of a load: moves the bytes of a [`PeerCodec`] in batches.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};

use crate::peers::{PeerCodec, Received};

/// The size of a read, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// The source ports on each loopback address. They are chosen here, since the system's search
/// for a free port takes longer than a connect.
const PORTS: std::ops::Range<u32> = 10_000..60_000;

/// The source addresses, as the last byte of `127.0.1.0`.
const ADDRESSES: std::ops::Range<u32> = 1..251;

/// The most ports that are tried for a connection; some are in use or in TIME_WAIT.
const TRIES: usize = 1_000;

/// The longest time to open a connection.
const OPENED_WITHIN: Duration = Duration::from_secs(120);

thread_local! {
    /// The input of the connection that is read. Shared, so that ten thousand members of a room
    /// take no memory for it.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An open connection.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) codec: Box<dyn PeerCodec>,
    /// The bytes of an incomplete message.
    input: Vec<u8>,
    pub(crate) output: Vec<u8>,
    pub(crate) received: Received,
}

impl Connection {
    /// Connects, and waits until the server is ready.
    ///
    /// # Errors
    /// If the server refuses it, or takes too long.
    pub(crate) async fn open(
        address: SocketAddr,
        codec: Box<dyn PeerCodec>,
    ) -> anyhow::Result<Self> {
        let opened = async {
            let mut connection = Self::connect(address, codec).await?;
            while !connection.received.is_ready {
                connection.turn().await?;
            }
            anyhow::Ok(connection)
        };
        tokio::time::timeout(OPENED_WITHIN, opened)
            .await
            .context("the server does not answer")?
    }

    async fn connect(address: SocketAddr, mut codec: Box<dyn PeerCodec>) -> anyhow::Result<Self> {
        let stream = socket()?.connect(address).await?;
        stream.set_nodelay(true)?;
        let mut output = Vec::new();
        codec.open(&mut output);
        Ok(Self {
            stream,
            codec,
            input: Vec::new(),
            output,
            received: Received::default(),
        })
    }

    /// Waits until the connection is readable, or writable with pending output, and does both.
    /// Cancel-safe.
    ///
    /// # Errors
    /// If the connection ends, or the server breaks the protocol.
    pub(crate) async fn turn(&mut self) -> anyhow::Result<()> {
        self.write()?;
        let interest = if self.output.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = self.stream.ready(interest).await?;
        if ready.is_readable() {
            self.read()?;
        }
        self.write()
    }

    /// Reads and decodes the available input.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub(crate) fn read(&mut self) -> anyhow::Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.extend_from_slice(&self.input);
            scratch.reserve(READ_BYTES);
            match self.stream.try_read_buf(scratch) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(_) => {
                    let done = self
                        .codec
                        .take(scratch, &mut self.output, &mut self.received)?;
                    self.input.clear();
                    self.input
                        .extend_from_slice(scratch.get(done..).unwrap_or_default());
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Writes as much output as the socket takes.
    ///
    /// # Errors
    /// If the connection has ended.
    pub(crate) fn write(&mut self) -> anyhow::Result<()> {
        let mut done = 0;
        while let Some(rest) = self.output.get(done..).filter(|rest| !rest.is_empty()) {
            match self.stream.try_write(rest) {
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.output.drain(..done);
        Ok(())
    }

    /// Writes all output, without reading.
    ///
    /// # Errors
    /// If the connection has ended.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        self.write()?;
        while !self.output.is_empty() {
            self.stream.writable().await?;
            self.write()?;
        }
        Ok(())
    }

    /// Lets the codec end a batch of sends.
    pub(crate) fn ask_again(&mut self) {
        self.codec.sent(&mut self.output);
    }
}

/// Returns a socket bound to the next source port.
fn socket() -> anyhow::Result<TcpSocket> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (ports, addresses) = (PORTS.end - PORTS.start, ADDRESSES.end - ADDRESSES.start);
    for _ in 0..TRIES {
        // Each process starts at another port, since the last run's may be in TIME_WAIT.
        let next = NEXT
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(std::process::id().wrapping_mul(7_919));
        let port = u16::try_from(PORTS.start + next % ports)?;
        let last = u8::try_from(ADDRESSES.start + next / ports % addresses)?;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        match socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), port))) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no free port on the loopback")
}
