//! The flags of HTTP and WebSocket. [`crate::front`] has the rules behind them.

use clap::Args;

use super::CommaList;
use crate::front::{HttpSettings, Origin};
use crate::network::Network;

/// The flags of HTTP and WebSocket.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "HTTP and WebSocket")]
pub struct HttpArgs {
    /// A name of this server that browsers and HTTP clients may use, besides `localhost`, IP
    /// addresses and the names in the certificate. May be repeated; HARKD_HOST takes a
    /// comma-separated list [default: none]
    #[arg(long = "host", env = "HARKD_HOST", value_name = "NAME")]
    pub hosts: Vec<CommaList<String>>,
    /// A foreign web page, such as https://app.example, that may open a WebSocket. May be
    /// repeated; HARKD_ALLOW_ORIGIN takes a comma-separated list [default: none]
    #[arg(
        long = "allow-origin",
        env = "HARKD_ALLOW_ORIGIN",
        value_name = "ORIGIN"
    )]
    pub allowed_origins: Vec<CommaList<Origin>>,
    /// The address or network of a proxy. The last address that it adds to X-Forwarded-For or
    /// Forwarded counts for every limit; forwarded requests of others are refused. May be
    /// repeated; HARKD_PROXY_FROM takes a comma-separated list [default: none]
    #[arg(long = "proxy-from", env = "HARKD_PROXY_FROM", value_name = "ADDRESS")]
    pub proxies: Vec<CommaList<Network>>,
}

/// Returns the elements of several lists.
fn elements<T: Clone>(lists: &[CommaList<T>]) -> impl Iterator<Item = T> {
    lists.iter().flat_map(|CommaList(list)| list).cloned()
}

impl HttpArgs {
    /// Returns whether a proxy may forward requests of other machines.
    #[must_use]
    pub fn has_proxy(&self) -> bool {
        elements(&self.proxies).next().is_some()
    }

    /// Returns the settings of HTTP.
    #[must_use]
    pub fn settings(&self) -> HttpSettings {
        HttpSettings {
            hosts: elements(&self.hosts).collect(),
            origins: elements(&self.allowed_origins).collect(),
            proxies: elements(&self.proxies).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::config::Cli;

    #[test]
    fn lists_are_repeated_or_comma_separated() {
        let cli = Cli::parse_from([
            "harkd",
            "--host=a.example,b.example",
            "--host=c.example",
            "--allow-origin=https://app.example",
            "--proxy-from=127.0.0.1,10.0.0.0/8",
        ]);
        let settings = cli.serve.http.settings();
        assert_eq!(settings.hosts, ["a.example", "b.example", "c.example"]);
        assert_eq!(settings.origins, ["https://app.example".parse().unwrap()]);
        let proxies = ["127.0.0.1/32", "10.0.0.0/8"].map(|proxy| proxy.parse().unwrap());
        assert_eq!(settings.proxies, proxies);
        for bad in ["--allow-origin=app.example", "--proxy-from=proxy.example"] {
            assert!(Cli::try_parse_from(["harkd", bad]).is_err(), "{bad}");
        }
    }
}
