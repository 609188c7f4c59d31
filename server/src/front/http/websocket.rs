//! The handshake of a WebSocket (RFC 6455). The connection that follows it is one of the
//! wire front.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hark_protocol::Code;
use http::header::{
    AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use tungstenite::handshake::derive_accept_key;

use super::error::HttpError;
use super::response::{self, ResponseBody};

/// The subprotocol: each binary message is a frame without its length.
const SUBPROTOCOL: &str = "hark.v1";

/// The version of RFC 6455.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// The length of a key, in bytes.
const KEY_BYTES: usize = 16;

/// Checks a request to open a WebSocket, and returns the response that opens it.
///
/// # Errors
/// The refusal.
pub(super) fn accept(request: &Parts) -> Result<Response<ResponseBody>, HttpError> {
    let headers = &request.headers;
    if request.version != Version::HTTP_11
        || !has_word(headers, &CONNECTION, "upgrade")
        || !has_word(headers, &UPGRADE, "websocket")
    {
        return Err(not_a_handshake().with(UPGRADE, HeaderValue::from_static("websocket")));
    }
    if headers.get(SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        return Err(not_a_handshake().with(SEC_WEBSOCKET_VERSION, VERSION));
    }
    if headers.contains_key(AUTHORIZATION) {
        return Err(HttpError::bad_request(
            "a WebSocket has no Authorization: log in by a command",
        ));
    }
    if !has_word(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(HttpError::bad_request(format!(
            "the subprotocol {SUBPROTOCOL} is missing"
        )));
    }
    let key = key(headers).ok_or_else(|| HttpError::bad_request("malformed Sec-WebSocket-Key"))?;
    let accepted = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let accepted = accepted.map_err(|_| HttpError::bad_request("malformed Sec-WebSocket-Key"))?;
    let mut response = Response::new(response::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(SUBPROTOCOL),
    );
    Ok(response)
}

fn not_a_handshake() -> HttpError {
    HttpError::new(
        StatusCode::UPGRADE_REQUIRED,
        Code::BadRequest,
        "this resource is a WebSocket of RFC 6455",
    )
}

/// Returns whether a list in these headers has a word.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// Returns the key, if it is valid.
fn key(headers: &HeaderMap) -> Option<&str> {
    let key = headers.get(SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    let decoded = STANDARD.decode(key).ok()?;
    (decoded.len() == KEY_BYTES).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: [(&str, &str); 5] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "other, hark.v1"),
    ];

    fn accept_with(headers: &[(&str, &str)]) -> Result<Response<ResponseBody>, HttpError> {
        let mut request = http::Request::new(());
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        accept(&request.into_parts().0)
    }

    #[test]
    fn handshake_is_answered_by_the_rfc() {
        let response = accept_with(&HANDSHAKE).unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            header("sec-websocket-accept"),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(header("sec-websocket-protocol"), "hark.v1");
    }

    #[track_caller]
    fn check_refused(name: &str, value: Option<&str>, expected: u16) {
        let mut headers = HANDSHAKE.to_vec();
        headers.retain(|(header, _)| *header != name);
        headers.extend(value.map(|value| (name, value)));
        let status = accept_with(&headers).unwrap_err().into_response().status();
        assert_eq!(status, expected, "{name}: {value:?}");
    }

    #[test]
    fn other_handshakes_are_refused() {
        check_refused("connection", Some("keep-alive"), 426);
        check_refused("upgrade", Some("h2c"), 426);
        check_refused("sec-websocket-version", Some("8"), 426);
        check_refused("sec-websocket-version", None, 426);
        check_refused("sec-websocket-key", Some("dGhlIHNhbXBsZQ=="), 400);
        check_refused("sec-websocket-key", None, 400);
        check_refused("sec-websocket-protocol", Some("hark.v2"), 400);
        check_refused("sec-websocket-protocol", None, 400);
        check_refused("authorization", Some("Basic YTpi"), 400);
    }
}
