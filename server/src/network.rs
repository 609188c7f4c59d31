//! [`Network`]: an address, or all addresses with the same prefix.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The bits of an IPv6 address that are the same for all addresses of one subscriber.
pub(crate) const SUBSCRIBER_BITS: u8 = 64;

/// The bits before an IPv4 address within IPv6, as in `::ffff:192.0.2.1`.
const MAPPED_BITS: u8 = 96;

/// An address, or all addresses with the same prefix. IPv4 within IPv6 is IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Returns whether an address belongs to the network.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Returns the network of the subscriber, who has all of it, if this is a part of it.
    pub(crate) fn of_subscriber(self) -> Self {
        match self.0 {
            IpNet::V6(part) if part.prefix_len() > SUBSCRIBER_BITS => {
                let whole = Ipv6Net::new(part.addr(), SUBSCRIBER_BITS);
                Self(whole.map_or(self.0, |whole| whole.trunc().into()))
            }
            _ => self,
        }
    }

    /// Returns whether this is every address of IPv4 or IPv6.
    pub(crate) fn is_everything(self) -> bool {
        self.0.prefix_len() == 0
    }
}

/// Returns the network without host bits, as IPv4 if it is IPv4 within IPv6.
fn canonical(network: IpNet) -> IpNet {
    let v4 = |network: Ipv6Net| {
        let bits = network.prefix_len().checked_sub(MAPPED_BITS)?;
        let address = Ipv6Addr::to_ipv4_mapped(&network.addr())?;
        Ipv4Net::new(address, bits).ok()
    };
    match network.trunc() {
        IpNet::V6(network) => v4(network).map_or(network.into(), IpNet::V4),
        network @ IpNet::V4(_) => network,
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl FromStr for Network {
    type Err = String;

    /// Parses `ADDRESS` or `ADDRESS/PREFIX`.
    fn from_str(text: &str) -> Result<Self, String> {
        let network = text
            .parse()
            .or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address)));
        let network: IpNet =
            network.map_err(|_| format!("expected ADDRESS or ADDRESS/PREFIX, not {text:?}"))?;
        Ok(Self(canonical(network)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[track_caller]
    fn check(text: &str, inside: &[&str], outside: &[&str]) {
        for address in inside {
            let address = address.parse().unwrap();
            assert!(network(text).contains(address), "{address}");
        }
        for address in outside {
            let address = address.parse().unwrap();
            assert!(!network(text).contains(address), "{address}");
        }
        assert_eq!(network(text).to_string(), text);
    }

    #[test]
    fn network_contains_the_addresses_of_its_prefix() {
        check(
            "192.0.2.7",
            &["192.0.2.7", "::ffff:192.0.2.7"],
            &["192.0.2.6"],
        );
        check(
            "192.0.2.0/24",
            &["192.0.2.255"],
            &["192.0.3.0", "2001:db8::"],
        );
        check("0.0.0.0/0", &["255.0.0.1"], &["::1"]);
        check("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::"]);
        assert_eq!(network("192.0.2.7/24"), network("192.0.2.0/24"));
        for malformed in ["", "x", "192.0.2.0/33", "192.0.2.0/", "::/129", "1.2.3"] {
            assert!(malformed.parse::<Network>().is_err(), "{malformed}");
        }
    }

    #[test]
    fn ipv4_within_ipv6_is_ipv4() {
        assert_eq!(network("::ffff:192.0.2.7"), network("192.0.2.7"));
        assert_eq!(network("::ffff:192.0.2.7/120"), network("192.0.2.0/24"));
        assert_eq!(network("::ffff:0:0/95").to_string(), "::fffe:0:0/95");
    }

    #[test]
    fn subscriber_has_a_whole_network() {
        let of = |text| network(text).of_subscriber().to_string();
        assert_eq!(of("2001:db8:0:1::7"), "2001:db8:0:1::/64");
        assert_eq!(of("2001:db8::/32"), "2001:db8::/32");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
