//! The refusal of a request: a status, and a JSON object with a code of the protocol and an
//! explanation.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use hark_protocol::{Code, Failure, Refusal};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::response::{self, ResponseBody};
use crate::front::call::CallError;

/// The wait that a refusal without a wait of its own asks for, in seconds.
const RETRY_AFTER_SECONDS: u64 = 10;

/// The wait before a request of unknown outcome is repeated, in seconds.
const REPEAT_AFTER_SECONDS: u64 = 1;

/// The refusal or failure of a request.
#[derive(Debug)]
pub(super) struct HttpError {
    status: StatusCode,
    code: &'static str,
    explanation: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The body of a refusal.
#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'a str,
    explanation: &'a str,
}

impl HttpError {
    /// Returns a refusal with a code of the protocol.
    pub(super) fn new(
        status: StatusCode,
        code: Code,
        explanation: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code: code.as_str(),
            explanation: explanation.into(),
            headers: Vec::new(),
        }
    }

    /// Returns the refusal of a malformed request.
    pub(super) fn bad_request(explanation: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadRequest, explanation)
    }

    /// Returns the refusal of a request that is not allowed.
    pub(super) fn forbidden(explanation: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Code::Denied, explanation)
    }

    /// Returns the refusal of missing or wrong credentials. It names `Bearer` and never
    /// `Basic`, so that browsers keep no password.
    pub(super) fn unauthorized(explanation: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Code::Denied, explanation)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// Returns the refusal of a method, with those that the resource has.
    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Code::UnknownCommand,
            format!("this resource allows {allowed}"),
        )
        .with(ALLOW, HeaderValue::from_static(allowed))
    }

    /// Returns the failure of a request whose outcome is unknown.
    pub(super) fn unavailable(explanation: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: Failure::Unavailable.as_str(),
            explanation: explanation.into(),
            headers: Vec::new(),
        }
        .retry_after(REPEAT_AFTER_SECONDS)
    }

    /// Returns the refusal of a connection that the server does not serve. A lack of room is
    /// no fault of this client.
    pub(super) fn of_connection(refusal: &Refusal) -> Self {
        let error = Self::from(refusal.clone());
        match refusal.code {
            Code::TooMany | Code::RateLimited => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..error
            },
            Code::Denied => Self {
                status: StatusCode::FORBIDDEN,
                headers: Vec::new(),
                ..error
            },
            _ => error,
        }
    }

    /// Returns the error of a command. `denied` is a lack of rights if the caller has
    /// authenticated, and otherwise a lack of credentials.
    pub(super) fn of_command(error: CallError, is_authenticated: bool) -> Self {
        match error {
            CallError::Refused(Refusal {
                code: Code::Denied,
                explanation,
            }) if is_authenticated => Self::forbidden(explanation),
            other => other.into(),
        }
    }

    /// Adds a header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Closes the connection after the response.
    pub(super) fn closing(self) -> Self {
        self.with(CONNECTION, HeaderValue::from_static("close"))
    }

    fn retry_after(self, seconds: u64) -> Self {
        self.with(RETRY_AFTER, seconds.into())
    }

    fn body(&self) -> Bytes {
        let body = ErrorBody {
            code: self.code,
            explanation: &self.explanation,
        };
        response::json_bytes(&body)
    }

    /// Returns the response.
    pub(super) fn into_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(response::full(self.body()));
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        let json = HeaderValue::from_static(response::JSON);
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }

    /// Returns the response as the last bytes of an HTTP/1.1 connection.
    pub(super) fn into_bytes(self) -> BytesMut {
        let body = self.body();
        let mut response = self.closing().into_response();
        response::add_standard_headers(response.headers_mut(), true);
        let mut bytes = format!(
            "HTTP/1.1 {}\r\ncontent-length: {}\r\n",
            response.status(),
            body.len()
        )
        .into_bytes();
        for (name, value) in response.headers() {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
        BytesMut::from(&*bytes)
    }
}

/// Returns the status of a code.
fn status(code: Code) -> StatusCode {
    match code {
        Code::Exists => StatusCode::CONFLICT,
        Code::NoSuchUser => StatusCode::NOT_FOUND,
        Code::Denied => StatusCode::UNAUTHORIZED,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::QueueFull | Code::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        Code::RateLimited | Code::TooMany => StatusCode::TOO_MANY_REQUESTS,
        Code::UnknownCommand
        | Code::BadRequest
        | Code::BadName
        | Code::BadPassword
        | Code::BadPattern
        | Code::Unknown => StatusCode::BAD_REQUEST,
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        let retry_after = match refusal.code {
            Code::RateLimited | Code::TooMany => Some(
                refusal
                    .retry_after()
                    .map_or(RETRY_AFTER_SECONDS, |wait| wait.as_secs()),
            ),
            _ => None,
        };
        if refusal.code == Code::Denied {
            return Self::unauthorized(refusal.explanation);
        }
        let error = Self::new(status(refusal.code), refusal.code, refusal.explanation);
        match retry_after {
            Some(seconds) => error.retry_after(seconds),
            None => error,
        }
    }
}

impl From<CallError> for HttpError {
    fn from(error: CallError) -> Self {
        let explanation = error.to_string();
        match error {
            CallError::Refused(refusal) => refusal.into(),
            CallError::Unavailable(_) | CallError::Ended | CallError::Aborted => {
                Self::unavailable(explanation)
            }
            CallError::Unexpected(_) => {
                tracing::error!(%explanation, "unexpected reply");
                Self {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    ..Self::unavailable("the server failed; its log has the reason")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn check(code: Code, expected: u16) {
        let error = HttpError::from(Refusal::new(code, "why"));
        assert_eq!(error.status.as_u16(), expected, "{code}");
    }

    #[test]
    fn each_code_has_its_status() {
        for (code, status) in [
            (Code::UnknownCommand, 400),
            (Code::BadRequest, 400),
            (Code::BadName, 400),
            (Code::BadPassword, 400),
            (Code::BadPattern, 400),
            (Code::Exists, 409),
            (Code::NoSuchUser, 404),
            (Code::Denied, 401),
            (Code::TooLarge, 413),
            (Code::QueueFull, 507),
            (Code::NoSpace, 507),
            (Code::RateLimited, 429),
            (Code::TooMany, 429),
        ] {
            check(code, status);
        }
    }

    #[test]
    fn wait_of_a_refusal_is_its_retry_after() {
        let header =
            |error: HttpError, name: HeaderName| error.into_response().headers_mut().remove(name);
        let wait = |refusal: Refusal| header(refusal.into(), RETRY_AFTER);
        let limited = Refusal::rate_limited(Duration::from_secs(7), "too fast");
        assert_eq!(wait(limited).unwrap(), "7");
        assert_eq!(wait(Refusal::new(Code::TooMany, "accounts")).unwrap(), "10");
        assert_eq!(wait(Refusal::new(Code::QueueFull, "full")), None);
    }

    #[test]
    fn denied_names_bearer_unless_it_is_a_lack_of_rights() {
        let denied = || CallError::Refused(Refusal::new(Code::Denied, "no"));
        let missing = HttpError::of_command(denied(), false);
        assert_eq!(missing.status, StatusCode::UNAUTHORIZED);
        let bearer = (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        assert_eq!(missing.headers, [bearer]);
        let lacking = HttpError::of_command(denied(), true);
        assert_eq!(lacking.status, StatusCode::FORBIDDEN);
        assert!(lacking.headers.is_empty());
    }

    #[test]
    fn refused_connection_gets_a_whole_response() {
        let refusal = Refusal::new(Code::TooMany, "full");
        let bytes = HttpError::of_connection(&refusal).into_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{text}"
        );
        for line in [
            "retry-after: 10\r\n",
            "connection: close\r\n",
            "x-content-type-options: nosniff\r\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(
            text.ends_with("\r\n\r\n{\"code\":\"too-many\",\"explanation\":\"full\"}\n"),
            "{text}"
        );
    }
}
