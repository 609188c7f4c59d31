//! The address of a cluster and of a chat on it: `nats://HOST:PORT,HOST:PORT/NAME`.

use std::fmt;
use std::str::FromStr;

use async_nats::ServerAddr;

/// The chat if the address names none.
const CHAT_DEFAULT: &str = "hark";

/// Maximum length of a chat's name.
const CHAT_LETTERS_MAX: usize = 32;

/// Maximum number of addresses.
const NODES_MAX: usize = 64;

/// Addresses of some nodes of a cluster, and the name of a chat on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    urls: Vec<String>,
    chat: String,
}

/// The reason why the address of a cluster is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNodes {
    /// A part of it is not an address.
    #[error("{0:?} is not the address of a NATS server; write nats://HOST:PORT,HOST:PORT")]
    Address(String),
    /// It contains a secret, which every user of the machine could read.
    #[error(
        "the address must not contain a user or a secret; use --nats-user, --nats-token-file or --nats-creds"
    )]
    Secret,
    /// The name of the chat is too long or has invalid characters.
    #[error("{0:?} is not a valid name of a chat; use 1 to 32 of A-Z a-z 0-9 _ -")]
    Chat(String),
    /// It has too many addresses.
    #[error("too many NATS servers; list at most 64, a few are enough to find the others")]
    TooMany,
}

impl Nodes {
    /// Returns the addresses, each with its scheme.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Returns the name of the chat.
    #[must_use]
    pub fn chat(&self) -> &str {
        &self.chat
    }
}

impl FromStr for Nodes {
    type Err = BadNodes;

    fn from_str(text: &str) -> Result<Self, BadNodes> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| BadNodes::Address(text.to_owned()))?;
        // The scheme may also precede each address.
        let rest = rest.replace(&format!("{scheme}://"), "");
        if rest.contains('@') {
            return Err(BadNodes::Secret);
        }
        let (addresses, chat) = rest.split_once('/').unwrap_or((&rest, CHAT_DEFAULT));
        let is_name = (1..=CHAT_LETTERS_MAX).contains(&chat.len())
            && chat
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !is_name {
            return Err(BadNodes::Chat(chat.to_owned()));
        }
        let urls = addresses
            .split(',')
            .map(|address| url(scheme, address))
            .collect::<Result<Vec<_>, _>>()?;
        if urls.len() > NODES_MAX {
            return Err(BadNodes::TooMany);
        }
        Ok(Self {
            urls,
            chat: chat.to_owned(),
        })
    }
}

fn url(scheme: &str, address: &str) -> Result<String, BadNodes> {
    let url = format!("{scheme}://{address}");
    let is_address = matches!(scheme, "nats" | "tls")
        && !address.is_empty()
        && url
            .parse::<ServerAddr>()
            .is_ok_and(|parsed| !parsed.host().is_empty());
    if is_address {
        Ok(url)
    } else {
        Err(BadNodes::Address(address.to_owned()))
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.urls.join(","), self.chat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, urls: &[&str], chat: &str) {
        let nodes: Nodes = text.parse().unwrap();
        assert_eq!(
            (nodes.urls(), nodes.chat()),
            (
                &*urls.iter().map(ToString::to_string).collect::<Vec<_>>(),
                chat
            )
        );
    }

    #[test]
    fn an_address_names_nodes_and_a_chat() {
        check("nats://a", &["nats://a"], "hark");
        check("nats://a:1,b:2", &["nats://a:1", "nats://b:2"], "hark");
        check(
            "tls://a:1,tls://[::1]:2/team-7",
            &["tls://a:1", "tls://[::1]:2"],
            "team-7",
        );
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_part_that_is_wrong() {
        let parse = |text: &str| text.parse::<Nodes>().unwrap_err();
        assert_eq!(parse("nats://a,,b"), BadNodes::Address(String::new()));
        assert_eq!(
            parse("nats://a:port"),
            BadNodes::Address("a:port".to_owned())
        );
        assert_eq!(parse("nats://me:secret@a"), BadNodes::Secret);
        assert_eq!(parse("nats://a/"), BadNodes::Chat(String::new()));
        assert_eq!(parse("nats://a/a.b"), BadNodes::Chat("a.b".to_owned()));
        assert_eq!(
            parse(&format!("nats://a{}", ",a".repeat(64))),
            BadNodes::TooMany
        );
    }
}
