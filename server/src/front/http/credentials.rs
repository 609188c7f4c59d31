//! The identity and the idempotency of a request, from its headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hark_protocol::{Password, Refusal, RequestId, SessionToken, UserName};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use zeroize::Zeroizing;

use super::error::HttpError;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest `Authorization`, in bytes: a name and a password in Base64, with room.
const AUTHORIZATION_BYTES_MAX: usize = 1024;

/// The credentials of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A user, and its password or a token.
    Basic(UserName, Option<Password>),
    /// A token alone.
    Bearer(Password),
}

/// Returns the credentials of a request, if it has any.
///
/// # Errors
/// The refusal of malformed or unknown credentials.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, HttpError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let malformed = || HttpError::unauthorized("malformed Authorization; expected Basic or Bearer");
    if values.next().is_some() || value.len() > AUTHORIZATION_BYTES_MAX {
        return Err(malformed());
    }
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, rest) = text.split_once(' ').ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        let token = rest.trim().parse().map_err(|_| malformed())?;
        return Ok(Some(Credentials::Bearer(token)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(malformed());
    }
    let decoded = STANDARD.decode(rest.trim()).map_err(|_| malformed())?;
    let decoded = Zeroizing::new(decoded);
    let pair = std::str::from_utf8(&decoded).map_err(|_| malformed())?;
    let (user, password) = pair.split_once(':').ok_or_else(malformed)?;
    let password = match password {
        "" => None,
        password => Some(password.parse().map_err(Refusal::from)?),
    };
    let user = user.parse().map_err(Refusal::from)?;
    Ok(Some(Credentials::Basic(user, password)))
}

/// Returns the session and the id that make a send safe to repeat, if there are any:
/// `SESSION/ID`, or `SESSION` for its id 1, quoted or bare.
///
/// # Errors
/// The refusal of a malformed key.
pub(super) fn idempotency_key(
    headers: &HeaderMap,
) -> Result<Option<(SessionToken, RequestId)>, HttpError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let malformed = || {
        HttpError::bad_request(
            "the Idempotency-Key is SESSION/ID: 1 to 64 characters of A-Z, a-z, 0-9, _ and -, and a number from 1",
        )
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let text = match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').ok_or_else(malformed)?,
        None => text,
    };
    let (session, id) = text.split_once('/').unwrap_or((text, "1"));
    let is_number = !id.is_empty() && id.bytes().all(|digit| digit.is_ascii_digit());
    let id = id.parse().ok().filter(|_| is_number);
    let id = id.and_then(RequestId::new).ok_or_else(malformed)?;
    let session = session.parse().map_err(|_| malformed())?;
    if values.next().is_some() {
        return Err(malformed());
    }
    Ok(Some((session, id)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    fn basic(pair: &str) -> Result<Option<Credentials>, HttpError> {
        let value = format!("Basic {}", STANDARD.encode(pair));
        credentials(&headers(AUTHORIZATION, &value))
    }

    #[test]
    fn basic_names_a_user_and_a_password() {
        let login = |password: Option<&str>| {
            let password = password.map(|password| password.parse().unwrap());
            Some(Credentials::Basic("ann".parse().unwrap(), password))
        };
        assert_eq!(basic("ann:se:cret").unwrap(), login(Some("se:cret")));
        assert_eq!(basic("ann:").unwrap(), login(None));
        assert_eq!(credentials(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn bearer_is_a_token_alone() {
        let parsed = credentials(&headers(AUTHORIZATION, "bearer hk_x"));
        let token = "hk_x".parse().unwrap();
        assert_eq!(parsed.unwrap(), Some(Credentials::Bearer(token)));
    }

    #[test]
    fn other_authorization_is_refused() {
        let status = |value: &str| {
            let error = credentials(&headers(AUTHORIZATION, value)).unwrap_err();
            error.into_response().status()
        };
        for value in [
            "Basic",
            "Basic !",
            "Basic YW5u",
            "Bearer ",
            "Bearer a,b",
            "Digest x",
        ] {
            assert_eq!(status(value), StatusCode::UNAUTHORIZED, "{value}");
        }
        let bad_name = basic("a b:x").unwrap_err().into_response();
        assert_eq!(bad_name.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn idempotency_key_is_a_session_and_an_id() {
        let key = |text: &str| {
            let parsed = idempotency_key(&headers(IDEMPOTENCY_KEY, text));
            parsed.map(|key| key.map(|(session, id)| (session.as_str().to_owned(), id.value())))
        };
        assert_eq!(key("job/7").unwrap(), Some(("job".to_owned(), 7)));
        assert_eq!(key("\"job/7\"").unwrap(), Some(("job".to_owned(), 7)));
        assert_eq!(key("b4e1-x").unwrap(), Some(("b4e1-x".to_owned(), 1)));
        for bad in [
            "",
            "/1",
            "job/",
            "job/0",
            "job/+1",
            "job/1/2",
            "\"job",
            "a b",
            "job/4294967296",
        ] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
    }
}
