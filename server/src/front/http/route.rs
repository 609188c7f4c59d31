//! The resources and the parameters of the API, from the target of a request.

use std::collections::HashMap;

use hark_protocol::{Code, DeviceName, Refusal, RoomName, Sequence, UserName};
use http::{Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::error::HttpError;

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resource {
    /// `/v1/send/NAME`.
    Send(UserName),
    /// `/v1/receive/USER`.
    Receive(UserName),
    /// `/v1/ack/USER`.
    Ack(UserName),
    /// `/v1/users/NAME`.
    User(UserName),
    /// `/v1/users`.
    Users,
    /// `/v1/ws`.
    WebSocket,
    /// `/`.
    Page,
    /// `/healthz`.
    Health,
    /// `/readyz`.
    Ready,
}

/// An operation on a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    Send(UserName),
    Unread(UserName),
    Receive(UserName),
    Acknowledge(UserName),
    Create(UserName),
    Delete(UserName),
    List,
    WebSocket,
    Page,
    Health,
    Ready,
    /// The methods of the resource.
    Options(&'static str),
}

impl Resource {
    /// Returns the resource of a target.
    ///
    /// # Errors
    /// The refusal of an unknown path or a malformed name.
    pub(super) fn of(uri: &Uri) -> Result<Self, HttpError> {
        let mut segments = uri.path().split('/').skip(1);
        let parts = [(); 4].map(|()| segments.next());
        Ok(match parts {
            [Some("v1"), Some("send"), Some(to), None] => Self::Send(name(to)?),
            [Some("v1"), Some("receive"), Some(user), None] => Self::Receive(name(user)?),
            [Some("v1"), Some("ack"), Some(user), None] => Self::Ack(name(user)?),
            [Some("v1"), Some("users"), Some(user), None] => Self::User(name(user)?),
            [Some("v1"), Some("users"), None, None] => Self::Users,
            [Some("v1"), Some("ws"), None, None] => Self::WebSocket,
            [Some(""), None, None, None] => Self::Page,
            [Some("healthz"), None, None, None] => Self::Health,
            [Some("readyz"), None, None, None] => Self::Ready,
            _ => return Err(not_found()),
        })
    }

    /// Returns the operation of a method.
    ///
    /// # Errors
    /// The refusal of a method that the resource does not have.
    pub(super) fn operation(self, method: &Method) -> Result<Operation, HttpError> {
        let allowed = self.methods();
        if method == Method::OPTIONS {
            return Ok(Operation::Options(allowed));
        }
        let is_get = method == Method::GET || method == Method::HEAD;
        Ok(match self {
            Self::Send(to) if method == Method::POST => Operation::Send(to),
            Self::Receive(user) if is_get => Operation::Unread(user),
            Self::Receive(user) if method == Method::POST => Operation::Receive(user),
            Self::Ack(user) if method == Method::POST => Operation::Acknowledge(user),
            Self::User(user) if method == Method::PUT => Operation::Create(user),
            Self::User(user) if method == Method::DELETE => Operation::Delete(user),
            Self::Users if is_get => Operation::List,
            Self::WebSocket if method == Method::GET => Operation::WebSocket,
            Self::Page if is_get => Operation::Page,
            Self::Health if is_get => Operation::Health,
            Self::Ready if is_get => Operation::Ready,
            _ => return Err(HttpError::method_not_allowed(allowed)),
        })
    }

    const fn methods(&self) -> &'static str {
        match self {
            Self::Send(_) | Self::Ack(_) => "POST, OPTIONS",
            Self::Receive(_) => "GET, HEAD, POST, OPTIONS",
            Self::User(_) => "PUT, DELETE, OPTIONS",
            Self::Users | Self::Page | Self::Health | Self::Ready => "GET, HEAD, OPTIONS",
            Self::WebSocket => "GET, OPTIONS",
        }
    }
}

fn not_found() -> HttpError {
    HttpError::new(
        StatusCode::NOT_FOUND,
        Code::UnknownCommand,
        "there is no such resource; docs/HTTP.md lists them",
    )
}

/// Decodes a segment of a path once, into a user name.
fn name(segment: &str) -> Result<UserName, HttpError> {
    let decoded = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| Refusal::new(Code::BadName, "a user name must be UTF-8"))?;
    Ok(decoded.parse().map_err(Refusal::from)?)
}

/// The parameters of a request.
#[derive(Debug, Default)]
pub(super) struct Parameters(HashMap<String, String>);

impl Parameters {
    /// Parses the query of a target. Only these parameters are allowed, once each.
    ///
    /// # Errors
    /// The refusal of another parameter.
    pub(super) fn of(uri: &Uri, allowed: &[&str]) -> Result<Self, HttpError> {
        let mut parameters = HashMap::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            if !allowed.contains(&&*name) {
                return Err(HttpError::bad_request(format!(
                    "unknown parameter {}",
                    name.escape_debug()
                )));
            }
            if parameters
                .insert(name.to_string(), value.into_owned())
                .is_some()
            {
                return Err(HttpError::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(Self(parameters))
    }

    /// Returns a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns the device; `None` for the one without a name.
    ///
    /// # Errors
    /// The refusal of a malformed name.
    pub(super) fn device(&self) -> Result<Option<DeviceName>, HttpError> {
        let name = self.text("device").filter(|name| !name.is_empty());
        let name = name.map(str::parse).transpose();
        Ok(name.map_err(Refusal::from)?)
    }

    /// Returns the room whose log it is; `None` for the inbox.
    ///
    /// # Errors
    /// The refusal of a malformed name.
    pub(super) fn log(&self) -> Result<Option<RoomName>, HttpError> {
        let name = self.text("log").filter(|name| !name.is_empty());
        let name = name.map(str::parse).transpose();
        Ok(name.map_err(Refusal::from)?)
    }

    /// Returns a number.
    ///
    /// # Errors
    /// The refusal of another value.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, HttpError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        match text.parse().ok().filter(|_| is_number) {
            Some(number) => Ok(Some(number)),
            None => Err(HttpError::bad_request(format!("{name} must be a number"))),
        }
    }

    /// Returns the number of a message.
    ///
    /// # Errors
    /// The refusal of another value.
    pub(super) fn sequence(&self, name: &str) -> Result<Option<Sequence>, HttpError> {
        Ok(self.number(name)?.map(Sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, target: &str, expected: Result<Operation, u16>) {
        let uri: Uri = target.parse().unwrap();
        let found = Resource::of(&uri).and_then(|resource| resource.operation(&method));
        let found = found.map_err(|error| error.into_response().status().as_u16());
        assert_eq!(found, expected, "{method} {target}");
    }

    fn user(name: &str) -> UserName {
        name.parse().unwrap()
    }

    #[test]
    fn target_and_method_select_the_operation() {
        check(
            Method::POST,
            "/v1/send/bob",
            Ok(Operation::Send(user("bob"))),
        );
        check(
            Method::GET,
            "/v1/receive/bob?device=",
            Ok(Operation::Unread(user("bob"))),
        );
        check(
            Method::HEAD,
            "/v1/receive/bob",
            Ok(Operation::Unread(user("bob"))),
        );
        check(
            Method::POST,
            "/v1/receive/bob",
            Ok(Operation::Receive(user("bob"))),
        );
        check(
            Method::POST,
            "/v1/ack/bob",
            Ok(Operation::Acknowledge(user("bob"))),
        );
        check(
            Method::PUT,
            "/v1/users/bob",
            Ok(Operation::Create(user("bob"))),
        );
        check(
            Method::DELETE,
            "/v1/users/bob",
            Ok(Operation::Delete(user("bob"))),
        );
        check(Method::GET, "/v1/users", Ok(Operation::List));
        check(Method::GET, "/healthz", Ok(Operation::Health));
        check(Method::HEAD, "/readyz", Ok(Operation::Ready));
        check(
            Method::OPTIONS,
            "/v1/ack/bob",
            Ok(Operation::Options("POST, OPTIONS")),
        );
    }

    #[test]
    fn segment_is_decoded_once_after_the_split() {
        check(
            Method::POST,
            "/v1/send/a%2Fb",
            Ok(Operation::Send(user("a/b"))),
        );
        check(
            Method::POST,
            "/v1/send/%252F",
            Ok(Operation::Send(user("%2F"))),
        );
        check(
            Method::POST,
            "/v1/send/Zo%C3%AB",
            Ok(Operation::Send(user("Zoë"))),
        );
        check(
            Method::POST,
            "/v1/send/a+b",
            Ok(Operation::Send(user("a+b"))),
        );
        for bad in [
            "/v1/send/%ff",
            "/v1/send/",
            "/v1/send/a%20b",
            "/v1/send/a%2Cb",
            "/v1/send/%00",
        ] {
            check(Method::POST, bad, Err(400));
        }
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        for path in [
            "/index.html",
            "/v1",
            "/v1/send",
            "/v1/send/a/b",
            "/v1//send/a",
            "/V1/users",
            "/v1/users/",
        ] {
            check(
                Method::PATCH,
                path,
                Err(if path == "/v1/users/" { 400 } else { 404 }),
            );
        }
        check(Method::POST, "/", Err(405));
        check(Method::GET, "/v1/send/bob", Err(405));
        check(Method::POST, "/v1/users", Err(405));
        check(Method::HEAD, "/v1/ws", Err(405));
    }

    #[test]
    fn parameters_are_known_and_given_once() {
        let parse = |query: &str| {
            let uri: Uri = format!("/x?{query}").parse().unwrap();
            Parameters::of(&uri, &["device", "number", "pattern"])
        };
        let parsed = parse("device=&number=12&pattern=a%2Bb+c").unwrap();
        assert_eq!(parsed.number("number").unwrap(), Some(12));
        assert_eq!(parsed.text("pattern"), Some("a+b c"));
        for bad in ["number=1&number=1", "nummer=1", "log="] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let device = |query| parse(query).unwrap().device().map_err(drop);
        assert_eq!(device("number=1"), Ok(None));
        assert_eq!(device("device="), Ok(None));
        assert_eq!(device("device=phone"), Ok(Some("phone".parse().unwrap())));
        assert_eq!(device("device=my+phone"), Err(()));
        for bad in ["number=", "number=-1", "number=+1", "number=1x"] {
            assert!(parse(bad).unwrap().number("number").is_err(), "{bad}");
        }
    }
}
