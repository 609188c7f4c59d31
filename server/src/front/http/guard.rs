//! The rules that protect a server from web pages and proxies: a request names a host of
//! this server, a foreign page cannot change anything, and a forwarded request is never
//! taken for a local one.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hark_protocol::{Code, Refusal};
use http::header::{EXPECT, FORWARDED, HOST, ORIGIN, VIA};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use super::error::HttpError;
use crate::front::Tls;
use crate::network::Network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The settings of HTTP.
#[derive(Debug, Clone, Default)]
pub struct HttpSettings {
    /// The names of this server, besides those of its certificate.
    pub hosts: Vec<String>,
    /// The foreign origins that may open a WebSocket.
    pub origins: Vec<Origin>,
    /// The proxies whose forwarded addresses are trusted.
    pub proxies: Vec<Network>,
}

impl HttpSettings {
    /// Returns whether the address is that of a proxy.
    pub(crate) fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(address))
    }
}

/// The origin of a web page: its scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: &'static str,
    host: String,
    port: u16,
}

/// The error of a text that is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an origin such as https://chat.example or http://localhost:8080")]
pub struct BadOrigin;

impl FromStr for Origin {
    type Err = BadOrigin;

    fn from_str(text: &str) -> Result<Self, BadOrigin> {
        let uri: Uri = text.parse().map_err(|_| BadOrigin)?;
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(BadOrigin),
        };
        let authority = uri.authority().ok_or(BadOrigin)?;
        let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
        if !is_bare || text.ends_with('/') || authority.as_str().contains('@') {
            return Err(BadOrigin);
        }
        Ok(Self {
            scheme,
            host: authority.host().to_ascii_lowercase(),
            port: port(authority, scheme),
        })
    }
}

impl Origin {
    /// Returns whether the page is of this host.
    fn is_of(&self, host: &Authority) -> bool {
        self.host.eq_ignore_ascii_case(host.host()) && self.port == port(host, self.scheme)
    }
}

fn port(authority: &Authority, scheme: &str) -> u16 {
    let default = if scheme == "https" { 443 } else { 80 };
    authority.port_u16().unwrap_or(default)
}

/// The rules of one server.
#[derive(Debug)]
pub(super) struct Guard {
    settings: HttpSettings,
    tls: Option<Tls>,
}

impl Guard {
    /// Returns the rules for these settings and this certificate.
    pub(super) const fn new(settings: HttpSettings, tls: Option<Tls>) -> Self {
        Self { settings, tls }
    }

    /// Checks a request of `peer`, and returns the address that its limits count.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn check(&self, request: &Parts, peer: IpAddr) -> Result<IpAddr, HttpError> {
        let host = host(request)?;
        if !self.is_own(&host) {
            return Err(misdirected(&host));
        }
        let address = self.address(&request.headers, peer);
        let address = address.map_err(|refusal| HttpError::of_connection(&refusal))?;
        check_expectation(&request.headers)?;
        if !matches!(request.method, Method::GET | Method::HEAD) {
            check_site(&request.headers)?;
            if let Some(origin) = foreign_origin(&request.headers, &host)? {
                return Err(foreign(&origin));
            }
        }
        Ok(address)
    }

    /// Checks the origin of a request to open a WebSocket. Requests without an origin are
    /// not from web pages.
    ///
    /// # Errors
    /// The refusal of a foreign origin that is not listed.
    pub(super) fn check_websocket(&self, request: &Parts) -> Result<(), HttpError> {
        match foreign_origin(&request.headers, &host(request)?)? {
            Some(origin) if !self.is_listed(&origin) => Err(foreign(&origin)),
            _ => Ok(()),
        }
    }

    fn is_listed(&self, origin: &str) -> bool {
        origin
            .parse()
            .is_ok_and(|origin: Origin| self.settings.origins.contains(&origin))
    }

    fn is_own(&self, host: &Authority) -> bool {
        let name = host.host();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let is_listed = |own: &String| own.eq_ignore_ascii_case(name);
        bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.settings.hosts.iter().any(is_listed)
            || self.tls.as_ref().is_some_and(|tls| tls.has_name(name))
    }

    /// Returns the address of the client: that of the peer or, behind a proxy, the one that
    /// the proxy has added.
    ///
    /// # Errors
    /// The refusal of an unknown proxy, or of one that adds no valid address.
    pub(super) fn address(&self, headers: &HeaderMap, peer: IpAddr) -> Result<IpAddr, Refusal> {
        let is_forwarded = [FORWARDED, X_FORWARDED_FOR, VIA]
            .iter()
            .any(|name| headers.contains_key(name));
        if !is_forwarded {
            return Ok(peer);
        }
        if !self.settings.is_proxy(peer) {
            return Err(Refusal::new(
                Code::Denied,
                format!(
                    "the request came through a proxy at {peer}, which is not named by --proxy-from"
                ),
            ));
        }
        let last = last(headers, &X_FORWARDED_FOR)?.map(parse_address);
        let standard = self::last(headers, &FORWARDED)?.map(forwarded_for);
        match (last, standard) {
            (None, None) => Err(malformed(format!(
                "the proxy at {peer} adds no address; have it set X-Forwarded-For or Forwarded"
            ))),
            (Some(address), None) | (None, Some(address)) => address,
            // A proxy that adds one of them passes on the other as the client sent it.
            (Some(one), Some(other)) => match (one?, other?) {
                (one, other) if one == other => Ok(one),
                _ => Err(malformed(
                    "Forwarded and X-Forwarded-For name different addresses",
                )),
            },
        }
    }
}

/// Returns the host that a request names.
fn host(request: &Parts) -> Result<Authority, HttpError> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    let named = first.map(|host| Authority::try_from(host.as_bytes()));
    let host = match (request.uri.authority(), named) {
        _ if second.is_some() => return Err(HttpError::bad_request("more than one Host")),
        (Some(target), None) if request.version == Version::HTTP_2 => target.clone(),
        (target, Some(Ok(host))) if target.is_none_or(|target| *target == host) => host,
        (_, None) => return Err(HttpError::bad_request("the Host is missing")),
        _ => return Err(HttpError::bad_request("malformed or contradictory Host")),
    };
    if host.host().is_empty() || host.as_str().contains('@') {
        return Err(HttpError::bad_request("malformed Host"));
    }
    Ok(host)
}

fn misdirected(host: &Authority) -> HttpError {
    HttpError::new(
        StatusCode::MISDIRECTED_REQUEST,
        Code::BadRequest,
        format!(
            "this server does not know the host {}; its operator adds the name with --host",
            host.host()
        ),
    )
}

/// Refuses an expectation that the server cannot meet.
fn check_expectation(headers: &HeaderMap) -> Result<(), HttpError> {
    let is_known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(EXPECT).iter().all(is_known) {
        return Ok(());
    }
    let error = HttpError::new(
        StatusCode::EXPECTATION_FAILED,
        Code::BadRequest,
        "the only expectation is 100-continue",
    );
    Err(error.closing())
}

/// Refuses a request that a browser sends on behalf of another site.
fn check_site(headers: &HeaderMap) -> Result<(), HttpError> {
    let is_own = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
    if headers.get_all(SEC_FETCH_SITE).iter().all(is_own) {
        Ok(())
    } else {
        Err(HttpError::forbidden("the request comes from another site"))
    }
}

/// Returns the origin of a request, if it is foreign.
fn foreign_origin(headers: &HeaderMap, host: &Authority) -> Result<Option<String>, HttpError> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return Ok(None);
    };
    if origins.next().is_some() {
        return Err(HttpError::forbidden("more than one Origin"));
    }
    let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
    let is_own = origin
        .parse()
        .is_ok_and(|origin: Origin| origin.is_of(host));
    Ok((!is_own).then_some(origin))
}

fn foreign(origin: &str) -> HttpError {
    HttpError::forbidden(format!(
        "requests from pages of {} are refused; its operator can admit their WebSockets with --allow-origin",
        origin.escape_debug()
    ))
}

fn malformed(explanation: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::BadRequest, explanation)
}

/// Returns the last element of a list, which the proxy next to this server has added.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let Some(value) = headers.get_all(name).iter().next_back() else {
        return Ok(None);
    };
    let value = value
        .to_str()
        .map_err(|_| malformed(format!("malformed {name}")))?;
    Ok(value.rsplit(',').next().map(str::trim))
}

/// Returns the address in the `for` of an element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Result<IpAddr, Refusal> {
    let node = element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| value.trim())
    });
    parse_address(node.unwrap_or_default())
}

/// Parses an address, possibly with quotes, brackets and a port.
fn parse_address(text: &str) -> Result<IpAddr, Refusal> {
    let text = text.trim_matches('"');
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse()
        .or_else(|_| text.parse().map(|address: SocketAddr| address.ip()))
        .map(|address: IpAddr| address.to_canonical())
        .map_err(|_| malformed("the proxy names no address of the client"))
}

#[cfg(test)]
mod tests;
