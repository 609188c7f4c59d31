//! Tests of the rules on hosts, origins and proxies, on heads of requests.

use std::net::{IpAddr, Ipv4Addr};

use super::*;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const CLIENT: &str = "203.0.113.7";

fn guard() -> Guard {
    let settings = HttpSettings {
        hosts: vec!["chat.example".to_owned()],
        origins: vec!["https://app.example".parse().unwrap()],
        proxies: vec!["10.0.0.0/8".parse().unwrap()],
    };
    Guard::new(settings, None)
}

fn request(method: Method, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::new(());
    *request.method_mut() = method;
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request.into_parts().0
}

fn status<T>(checked: Result<T, HttpError>) -> u16 {
    checked.map_or_else(|error| error.into_response().status().as_u16(), |_| 200)
}

#[track_caller]
fn check(method: Method, headers: &[(&str, &str)], expected: u16) {
    let parts = request(method, headers);
    assert_eq!(status(guard().check(&parts, PEER)), expected, "{headers:?}");
}

#[test]
fn only_own_hosts_are_served() {
    for (host, expected) in [
        ("127.0.0.1:3000", 200),
        ("[::1]:3000", 200),
        ("192.0.2.1", 200),
        ("localhost", 200),
        ("LOCALHOST:3000", 200),
        ("chat.example", 200),
        ("Chat.Example:443", 200),
        ("evil.example", 421),
        ("chat.example.evil.example:3000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("user@localhost", 400),
        ("", 400),
    ] {
        check(Method::GET, &[("host", host)], expected);
        check(Method::POST, &[("host", host)], expected);
    }
}

#[test]
fn host_is_given_once_and_agrees_with_the_target() {
    check(Method::GET, &[], 400);
    check(
        Method::GET,
        &[("host", "localhost"), ("host", "localhost")],
        400,
    );
    let mut parts = request(Method::GET, &[("host", "localhost")]);
    parts.uri = "http://evil.example/".parse().unwrap();
    assert_eq!(status(guard().check(&parts, PEER)), 400);
    parts.uri = "http://localhost/".parse().unwrap();
    assert_eq!(status(guard().check(&parts, PEER)), 200);
}

#[test]
fn change_for_a_foreign_page_is_refused() {
    for (origin, expected) in [
        ("http://localhost:3000", 200),
        ("https://localhost:3000", 200),
        ("http://localhost:3001", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        // Listed, but for WebSockets alone.
        ("https://app.example", 403),
        ("null", 403),
        ("http://localhost:3000/", 403),
        ("ftp://localhost:3000", 403),
    ] {
        let headers = [("host", "localhost:3000"), ("origin", origin)];
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            check(method, &headers, expected);
        }
        check(Method::GET, &headers, 200);
        check(Method::HEAD, &headers, 200);
    }
}

#[test]
fn default_ports_of_an_origin_count() {
    check(
        Method::POST,
        &[("host", "chat.example"), ("origin", "https://chat.example")],
        200,
    );
    check(
        Method::POST,
        &[
            ("host", "chat.example:443"),
            ("origin", "https://chat.example"),
        ],
        200,
    );
    check(
        Method::POST,
        &[
            ("host", "chat.example:443"),
            ("origin", "http://chat.example"),
        ],
        403,
    );
}

#[test]
fn change_for_another_site_is_refused() {
    for (site, expected) in [
        ("same-origin", 200),
        ("none", 200),
        ("same-site", 403),
        ("cross-site", 403),
        ("", 403),
    ] {
        let headers = [("host", "localhost"), ("sec-fetch-site", site)];
        check(Method::POST, &headers, expected);
        check(Method::GET, &headers, 200);
    }
}

#[test]
fn websocket_is_for_own_and_listed_pages() {
    for (origin, expected) in [
        (Some("http://localhost:3000"), 200),
        (Some("https://app.example"), 200),
        (Some("http://app.example"), 403),
        (Some("https://app.example:444"), 403),
        (Some("https://evil.example"), 403),
        (Some("null"), 403),
        (None, 200),
    ] {
        let mut headers = vec![("host", "localhost:3000")];
        headers.extend(origin.map(|origin| ("origin", origin)));
        let parts = request(Method::GET, &headers);
        assert_eq!(
            status(guard().check_websocket(&parts)),
            expected,
            "{origin:?}"
        );
    }
}

#[test]
fn forwarded_request_needs_a_named_proxy() {
    for name in ["forwarded", "x-forwarded-for", "via"] {
        check(
            Method::GET,
            &[("host", "localhost"), (name, "for=203.0.113.7")],
            403,
        );
    }
}

#[track_caller]
fn check_address(headers: &[(&str, &str)], expected: Option<&str>) {
    let headers = [&[("host", "localhost")], headers].concat();
    let peer = "10.1.2.3".parse().unwrap();
    let address = guard().check(&request(Method::GET, &headers), peer).ok();
    let expected = expected.map(|address| address.parse().unwrap());
    assert_eq!(address, expected, "{headers:?}");
}

#[test]
fn last_forwarded_address_counts() {
    check_address(&[], Some("10.1.2.3"));
    check_address(&[("via", "1.1 proxy")], None);
    check_address(&[("x-forwarded-for", CLIENT)], Some(CLIENT));
    check_address(
        &[("x-forwarded-for", "127.0.0.1, 203.0.113.7")],
        Some(CLIENT),
    );
    check_address(
        &[
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-for", CLIENT),
        ],
        Some(CLIENT),
    );
    check_address(
        &[(
            "forwarded",
            "for=127.0.0.1, For=\"203.0.113.7:4711\";proto=https",
        )],
        Some(CLIENT),
    );
    check_address(
        &[("forwarded", "proto=https;for=\"[2001:db8::1]:80\"")],
        Some("2001:db8::1"),
    );
    check_address(&[("x-forwarded-for", "::ffff:203.0.113.7")], Some(CLIENT));
}

#[test]
fn unclear_forwarded_address_is_refused() {
    check_address(&[("x-forwarded-for", "unknown")], None);
    check_address(&[("x-forwarded-for", "")], None);
    check_address(&[("forwarded", "proto=https")], None);
    check_address(&[("forwarded", "for=_hidden")], None);
    check_address(
        &[("forwarded", "for=127.0.0.1"), ("x-forwarded-for", CLIENT)],
        None,
    );
}

#[test]
fn only_the_usual_expectation_is_met() {
    check(
        Method::POST,
        &[("host", "localhost"), ("expect", "100-Continue")],
        200,
    );
    check(
        Method::POST,
        &[("host", "localhost"), ("expect", "more")],
        417,
    );
}

#[test]
fn origin_is_a_scheme_a_host_and_a_port() {
    for bad in [
        "",
        "null",
        "chat.example",
        "https://",
        "https://a/",
        "https://a/b",
        "ws://a",
        "https://u@a",
        "https://a?b",
    ] {
        assert_eq!(bad.parse::<Origin>(), Err(BadOrigin), "{bad}");
    }
    let parse = |text: &str| text.parse::<Origin>().unwrap();
    assert_eq!(parse("https://A.example:443"), parse("https://a.example"));
    assert_ne!(parse("http://a.example"), parse("https://a.example"));
}
