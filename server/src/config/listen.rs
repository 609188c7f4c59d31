//! The addresses of `--listen`: a TCP address, or the path of a Unix socket. `listener.rs`
//! opens them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;

/// The prefix of a Unix socket.
const UNIX: &str = "unix:";

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Returns whether only this machine can reach the address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    /// Parses an address. Without a host, and for `localhost`, it is the loopback; another
    /// host name is resolved.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX) {
            Some("") => Err("expected unix:PATH, such as unix:/run/hark/harkd.sock".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => parse_tcp(text).map(Self::Tcp),
        }
    }
}

/// Parses an address of TCP.
pub(super) fn parse_tcp(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("expected ADDRESS:PORT, such as 127.0.0.1:3000, or unix:PATH")?;
    let port: u16 = port
        .parse()
        .map_err(|_| "the port must be a number from 0 to 65535")?;
    match host {
        "" | "localhost" => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        _ => (host, port)
            .to_socket_addrs()
            .map_err(|error| format!("cannot resolve {host}: {error}"))?
            .next()
            .ok_or_else(|| format!("{host} has no address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_without_a_host_is_the_loopback() {
        for (text, expected) in [
            (":4101", "127.0.0.1:4101"),
            ("localhost:4101", "127.0.0.1:4101"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:0", "[::1]:0"),
        ] {
            let expected = ListenAddress::Tcp(expected.parse().unwrap());
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "4101", "localhost", ":", ":65536", "localhost:http"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn unix_socket_is_local_and_needs_a_path() {
        let address: ListenAddress = "unix:/run/hark/harkd.sock".parse().unwrap();
        assert_eq!(address, ListenAddress::Unix("/run/hark/harkd.sock".into()));
        assert_eq!(address.to_string(), "unix:/run/hark/harkd.sock");
        assert!(address.is_local());
        assert!("unix:".parse::<ListenAddress>().is_err());
        let everywhere: ListenAddress = "[::]:3000".parse().unwrap();
        assert!(!everywhere.is_local());
    }
}
