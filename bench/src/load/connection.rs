//! One connection of a load: moves the bytes of a [`Speaker`], as many as there
//! are at a time.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};

use crate::peers::{Speaker, Taken};

/// Room for each read.
const READ_BYTES: usize = 64 * 1024;

/// The ports of each address of the loopback that connections come from. The
/// system would look for a free one each time, which takes longer than to
/// connect.
const PORTS: std::ops::Range<u32> = 10_000..60_000;

/// The addresses that they come from, as the last part of `127.0.1.0`.
const ADDRESSES: std::ops::Range<u32> = 1..251;

/// Ports that are tried for a connection; some are taken, or were lately.
const TRIES: usize = 1_000;

/// How long one connection may take to be opened.
const OPENED_WITHIN: Duration = Duration::from_secs(120);

/// A connection that has been opened.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) speaker: Box<dyn Speaker>,
    input: Vec<u8>,
    pub(crate) output: Vec<u8>,
    pub(crate) taken: Taken,
}

impl Connection {
    /// Connects, and waits until the server is ready.
    ///
    /// # Errors
    /// Where the server refuses it, or takes too long.
    pub(crate) async fn open(address: SocketAddr, speaker: Box<dyn Speaker>) -> anyhow::Result<Self> {
        let opened = async {
            let mut connection = Self::connect(address, speaker).await?;
            while !connection.taken.is_ready {
                connection.turn().await?;
            }
            anyhow::Ok(connection)
        };
        tokio::time::timeout(OPENED_WITHIN, opened).await.context("the server does not answer")?
    }

    async fn connect(address: SocketAddr, mut speaker: Box<dyn Speaker>) -> anyhow::Result<Self> {
        let stream = socket()?.connect(address).await?;
        stream.set_nodelay(true)?;
        let mut output = Vec::new();
        speaker.open(&mut output);
        Ok(Self { stream, speaker, input: Vec::new(), output, taken: Taken::default() })
    }

    /// Waits until the connection can be read, or written where there is
    /// something to write, and does both. Cancel-safe: nothing is lost where it
    /// waits.
    ///
    /// # Errors
    /// Where the connection ends, or the server says what it should not.
    pub(crate) async fn turn(&mut self) -> anyhow::Result<()> {
        self.write()?;
        let interest =
            if self.output.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = self.stream.ready(interest).await?;
        if ready.is_readable() {
            self.read()?;
        }
        self.write()
    }

    /// Reads what there is, and takes it.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub(crate) fn read(&mut self) -> anyhow::Result<()> {
        self.input.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => bail!("the server has closed a connection"),
            Ok(_) => {
                let done = self.speaker.take(&self.input, &mut self.output, &mut self.taken)?;
                self.input.drain(..done);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the system takes.
    ///
    /// # Errors
    /// Where the connection has ended.
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

    /// Writes all that is to be written, and takes nothing.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        self.write()?;
        while !self.output.is_empty() {
            self.stream.writable().await?;
            self.write()?;
        }
        Ok(())
    }

    /// Has the speaker say what it says at the end of what it sends.
    pub(crate) fn ask_again(&mut self) {
        self.speaker.sent(&mut self.output);
    }
}

/// A socket that comes from a port of its own.
fn socket() -> anyhow::Result<TcpSocket> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (ports, addresses) = (PORTS.end - PORTS.start, ADDRESSES.end - ADDRESSES.start);
    for _ in 0..TRIES {
        // Another run begins elsewhere, so that it does not meet the ports of this.
        let next = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(7_919));
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
    bail!("no port is free on the loopback")
}
