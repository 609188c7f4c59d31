//! Configuration of a client: its servers, timeouts and bounds.

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::limits::REPEAT_SECONDS_MAX;

use crate::dial::{Dial, TcpDial};
use crate::journal::{NoJournal, SendJournal};
use crate::seen::{MemorySeenStore, SeenStore};
use crate::tls::{Tls, Trust, TrustError};

/// Configuration of a client.
#[derive(Debug, Clone)]
pub struct Config {
    /// The servers, at least one. Several must belong to one cluster: the
    /// client fails over from each to the next in this order, and backs off
    /// after all have failed.
    pub servers: Vec<Server>,
    /// The record of seen messages, shared by all the servers.
    pub seen: Arc<dyn SeenStore>,
    /// The record of tagged sends: none, unless the application has one.
    pub journal: Arc<dyn SendJournal>,
    /// Timeouts.
    pub timing: Timing,
    /// Largest number of names in an answer to `list`; more are dropped, and
    /// the answer is marked as truncated.
    pub names_max: usize,
}

impl Config {
    /// Returns the configuration for the server at `address` (`HOST:PORT`) over
    /// TCP. Seen messages are remembered in memory. Several servers of one
    /// cluster are joined by commas, as in the other functions.
    pub fn tcp(address: impl AsRef<str>) -> Self {
        Self::of(addresses(address.as_ref()).map(Server::tcp).collect())
    }

    /// As [`Self::tcp`], over gRPC.
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
        let grpc = |address| Server {
            transport: Transport::grpc("http", address),
            ..Server::tcp(address)
        };
        Self::of(addresses(address.as_ref()).map(grpc).collect())
    }

    /// As [`Self::tcp`], over TLS without fallback: the certificate of each
    /// server must be valid for the host of its address. Reads the trusted
    /// authorities from files, which blocks.
    ///
    /// ```no_run
    /// use hark_client::{Client, Config, Trust};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let (hark, _events) = Client::connect(Config::tls("chat.example:3000", &Trust::System)?);
    /// hark.send("bob".parse()?, "encrypted on the way".into()).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If no authority is trusted, or an address has no valid host name.
    pub fn tls(address: &str, trust: &Trust) -> Result<Self, TrustError> {
        let tls = Tls::new(trust, &[])?;
        let server = |address| {
            Ok(Server {
                dial: Arc::new(tls.dial(address)?),
                ..Server::tcp(address)
            })
        };
        addresses(address)
            .map(server)
            .collect::<Result<_, _>>()
            .map(Self::of)
    }

    /// As [`Self::tls`], over gRPC.
    ///
    /// # Errors
    /// As [`Self::tls`].
    #[cfg(feature = "grpc")]
    pub fn grpc_tls(address: &str, trust: &Trust) -> Result<Self, TrustError> {
        let tls = Tls::new(trust, &["h2"])?;
        let server = |address| {
            let (dial, transport) = (
                Arc::new(tls.dial(address)?),
                Transport::grpc("https", address),
            );
            Ok(Server {
                dial,
                transport,
                ..Server::tcp(address)
            })
        };
        addresses(address)
            .map(server)
            .collect::<Result<_, _>>()
            .map(Self::of)
    }

    fn of(servers: Vec<Server>) -> Self {
        Self {
            servers,
            seen: Arc::new(MemorySeenStore::default()),
            journal: Arc::new(NoJournal),
            timing: Timing::default(),
            names_max: 1_000_000,
        }
    }
}

fn addresses(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
}

/// One server, and the transport to it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Address in [`LinkState`](crate::LinkState): `HOST:PORT`.
    pub address: Arc<str>,
    /// Opener of connections.
    pub dial: Arc<dyn Dial>,
    /// Protocol spoken over a connection.
    pub transport: Transport,
}

impl Server {
    /// Returns the server at `address` (`HOST:PORT`), over TCP.
    #[must_use]
    pub fn tcp(address: &str) -> Self {
        Self {
            address: address.into(),
            dial: Arc::new(TcpDial::new(address)),
            transport: Transport::Native,
        }
    }
}

/// Protocol between a client and its server. All give the same guarantees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// The wire protocol in its native framing.
    #[default]
    Native,
    /// gRPC: one `BiDiChat` of `hark.v1.Chat` for each link. Requires the
    /// feature `grpc`, which is on by default.
    #[cfg(feature = "grpc")]
    Grpc {
        /// Origin of the calls: `http://HOST:PORT`, or `https://HOST:PORT` over
        /// TLS. `harkd` accepts any; a proxy may route by it.
        origin: String,
    },
}

#[cfg(feature = "grpc")]
impl Transport {
    fn grpc(scheme: &str, address: &str) -> Self {
        Self::Grpc {
            origin: format!("{scheme}://{address}"),
        }
    }
}

/// Timeouts, by the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Limit for dialing and authentication: 10 s. Several servers share this
    /// time until all have failed, so that an unresponsive one leaves time for
    /// the others.
    pub connect: Duration,
    /// Silence after which a `ping` is sent: 20 s.
    pub ping_after: Duration,
    /// Time limit for the answer, after which the link is closed: 10 s.
    pub dead_after: Duration,
    /// First delay before a reconnect: 100 ms. It doubles each time.
    pub backoff_min: Duration,
    /// Longest delay before a reconnect: 10 s.
    pub backoff_max: Duration,
    /// Time after its first write during which a request may be answered or
    /// repeated; then its outcome is unknown. Must not exceed the default of 9
    /// minutes: the server forgets outcomes after 10.
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
