//! Where the server is, and every time and bound of a client.

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::limits::REPEAT_SECONDS_MAX;
use rand::RngExt as _;

use crate::dial::{Dial, TcpDial};
use crate::taken::{MemoryTaken, TakenStore};
use crate::tls::{TlsDial, Trust, TrustError};

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// How a connection to the server is opened.
    pub dial: Arc<dyn Dial>,
    /// What is spoken over it.
    pub transport: Transport,
    /// Where the messages that were taken are remembered.
    pub taken: Arc<dyn TakenStore>,
    /// How long everything may take.
    pub timing: Timing,
    /// Names that an answer to `list` may have; the rest is dropped, and the
    /// answer marked as truncated.
    pub names_max: usize,
}

impl Config {
    /// A client of the server at `address` (`HOST:PORT`) over TCP, which
    /// remembers what was taken for as long as it lives.
    pub fn tcp(address: impl Into<String>) -> Self {
        Self {
            dial: Arc::new(TcpDial::new(address)),
            transport: Transport::Native,
            taken: Arc::new(MemoryTaken::default()),
            timing: Timing::default(),
            names_max: 1_000_000,
        }
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
    pub fn grpc(address: impl Into<String>) -> Self {
        let address = address.into();
        let origin = format!("http://{address}");
        Self { transport: Transport::Grpc { origin }, ..Self::tcp(address) }
    }

    /// As [`Self::tcp`], over TLS, and never without: the server has to prove
    /// by its certificate that it is the host of `address`. Reads what is
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
    /// Where there is nobody to trust, or the host is no name.
    pub fn tls(address: &str, trust: &Trust) -> Result<Self, TrustError> {
        let dial = Arc::new(TlsDial::new(address, trust, &[])?);
        Ok(Self { dial, ..Self::tcp(address) })
    }

    /// As [`Self::tls`], over gRPC.
    ///
    /// # Errors
    /// As [`Self::tls`].
    #[cfg(feature = "grpc")]
    pub fn grpc_tls(address: &str, trust: &Trust) -> Result<Self, TrustError> {
        let dial = Arc::new(TlsDial::new(address, trust, &["h2"])?);
        let transport = Transport::Grpc { origin: format!("https://{address}") };
        Ok(Self { dial, transport, ..Self::tcp(address) })
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

/// How long everything may take, by the steady clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From dialling to being who one was: 10 s.
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

/// The waits between attempts: each is twice the one before, less a random
/// part of up to a half, so that many clients do not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(timing: &Timing) -> Self {
        Self { min: timing.backoff_min, max: timing.backoff_max, next: timing.backoff_min }
    }

    /// The next wait, from half of what it would be up to all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let longest = self.next.min(self.max);
        self.next = longest.saturating_mul(2);
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// The server works: the next wait is a short one again.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_double_up_to_the_longest_and_start_again_after_a_reset() {
        let timing = Timing::default();
        let mut backoff = Backoff::new(&timing);
        let mut expected = timing.backoff_min;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait <= expected && wait >= expected / 2, "{wait:?} for {expected:?}");
            expected = (expected * 2).min(timing.backoff_max);
        }
        backoff.reset();
        assert!(backoff.next() <= timing.backoff_min);
    }
}
