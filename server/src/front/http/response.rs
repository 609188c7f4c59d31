//! The parts that all responses share: their headers, and bodies of JSON.

use std::io;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;

/// The body of a response.
pub(in crate::front) type ResponseBody = UnsyncBoxBody<Bytes, io::Error>;

/// The media type of JSON.
pub(super) const JSON: &str = "application/json";

/// Returns a body of these bytes.
pub(super) fn full(bytes: Bytes) -> ResponseBody {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Encodes a value as a line of JSON.
pub(super) fn json_bytes(value: &impl Serialize) -> Bytes {
    let mut bytes = Vec::new();
    write_line(value, &mut bytes);
    bytes.into()
}

/// Appends a value as a line of JSON.
pub(super) fn write_line(value: &impl Serialize, to: &mut Vec<u8>) {
    // Fails only for maps whose keys are not texts.
    if let Err(error) = serde_json::to_writer(&mut *to, value) {
        tracing::error!(%error, "value cannot be encoded");
    }
    to.push(b'\n');
}

/// Returns a response with a line of JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<ResponseBody> {
    let mut response = Response::new(full(json_bytes(value)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// Adds the headers of every response; those of the API are never stored.
pub(super) fn add_standard_headers(headers: &mut HeaderMap, is_api: bool) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if is_api {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
