//! Where the servers are, and every time and bound of a client.

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::limits::REPEAT_SECONDS_MAX;

use crate::dial::{Dial, TcpDial};
use crate::taken::{MemoryTaken, TakenStore};
use crate::tls::{Tls, Trust, TrustError};

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The servers, at least one. Several have to share what they store: the
    /// client goes from one to the next in this order, beginning with the
    /// first, when one cannot be reached or is lost, and rests only when it
    /// has tried them all.
    pub servers: Vec<Server>,
    /// Where the messages that were taken are remembered, for all the servers
    /// together.
    pub taken: Arc<dyn TakenStore>,
    /// How long everything may take.
    pub timing: Timing,
    /// Names that an answer to `list` may have; the rest is dropped, and the
    /// answer marked as truncated.
    pub names_max: usize,
}

impl Config {
    /// A client of the server at `address` (`HOST:PORT`) over TCP, which
    /// remembers what was taken for as long as it lives. Several servers of
    /// one cluster are joined by commas, here as in the other functions.
    pub fn tcp(address: impl AsRef<str>) -> Self {
        Self::of(addresses(address.as_ref()).map(Server::tcp).collect())
    }

    /// The same over gRPC.
    ///
    /// ```no_run
    /// use hark_client::{Client, Config};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let (hark, _events) = Client::connect(Config::grpc("127.0.0.1:3000"));
    /// hark.send("bob".parse()?, "over HTTP/2".into()).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "grpc")]
    pub fn grpc(address: impl AsRef<str>) -> Self {
        let grpc = |address| Server { transport: Transport::grpc("http", address), ..Server::tcp(address) };
        Self::of(addresses(address.as_ref()).map(grpc).collect())
    }

    /// As [`Self::tcp`], over TLS, and never without: each server has to prove
    /// by its certificate that it is the host of its address. Reads what is
    /// trusted from files, which blocks.
    ///
    /// ```no_run
    /// use hark_client::{Client, Config, Trust};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let (hark, _events) = Client::connect(Config::tls("chat.example:3000", &Trust::System)?);
    /// hark.send("bob".parse()?, "nobody else can read this".into()).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where there is nobody to trust, or a host is no name.
    pub fn tls(address: &str, trust: &Trust) -> Result<Self, TrustError> {
        let tls = Tls::new(trust, &[])?;
        let server = |address| Ok(Server { dial: Arc::new(tls.dial(address)?), ..Server::tcp(address) });
        addresses(address).map(server).collect::<Result<_, _>>().map(Self::of)
    }

    /// As [`Self::tls`], over gRPC.
    ///
    /// # Errors
    /// As [`Self::tls`].
    #[cfg(feature = "grpc")]
    pub fn grpc_tls(address: &str, trust: &Trust) -> Result<Self, TrustError> {
        let tls = Tls::new(trust, &["h2"])?;
        let server = |address| {
            let (dial, transport) = (Arc::new(tls.dial(address)?), Transport::grpc("https", address));
            Ok(Server { dial, transport, ..Server::tcp(address) })
        };
        addresses(address).map(server).collect::<Result<_, _>>().map(Self::of)
    }

    fn of(servers: Vec<Server>) -> Self {
        Self {
            servers,
            taken: Arc::new(MemoryTaken::default()),
            timing: Timing::default(),
            names_max: 1_000_000,
        }
    }
}

fn addresses(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
}

/// One server, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Server {
    /// What it is called in [`LinkState`](crate::LinkState): `HOST:PORT`.
    pub address: Arc<str>,
    /// How a connection to it is opened.
    pub dial: Arc<dyn Dial>,
    /// What is spoken over it.
    pub transport: Transport,
}

impl Server {
    /// The one at `address` (`HOST:PORT`), over TCP.
    #[must_use]
    pub fn tcp(address: &str) -> Self {
        Self { address: address.into(), dial: Arc::new(TcpDial::new(address)), transport: Transport::Native }
    }
}

/// What a client and its server speak over a connection. The promises are the
/// same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// The wire protocol, in its native framing.
    #[default]
    Native,
    /// gRPC: one `BiDiChat` of `hark.v1.Chat` for each link. With the feature
    /// `grpc`, which is on by default.
    #[cfg(feature = "grpc")]
    Grpc {
        /// How the calls name the server: `http://HOST:PORT`, or `https://`
        /// over TLS. `harkd` takes any; a proxy on the way may go by it.
        origin: String,
    },
}

#[cfg(feature = "grpc")]
impl Transport {
    fn grpc(scheme: &str, address: &str) -> Self {
        Self::Grpc { origin: format!("{scheme}://{address}") }
    }
}

/// How long everything may take, by the steady clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From dialling to being who one was: 10 s. Of several servers, each gets
    /// its share of that until all have failed, so that one which does not
    /// answer leaves time for the others.
    pub connect: Duration,
    /// How long nothing is heard before a `ping` asks for a word: 20 s.
    pub ping_after: Duration,
    /// How long after that the link is taken for dead: 10 s.
    pub dead_after: Duration,
    /// The first wait before connecting again: 100 ms. It doubles each time.
    pub backoff_min: Duration,
    /// The longest such wait: 10 s.
    pub backoff_max: Duration,
    /// How long after it was first sent a request may still be answered or
    /// repeated; then its outcome is unknown. 9 minutes, and never more: the
    /// server forgets outcomes after 10.
    pub repeat_for: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            ping_after: Duration::from_secs(20),
            dead_after: Duration::from_secs(10),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            repeat_for: Duration::from_secs(REPEAT_SECONDS_MAX),
        }
    }
}
