//! The HTTP front: requests over HTTP/1.1 and HTTP/2. It translates each request to commands
//! of the chat and their replies to responses; it has no rules of the chat, only those that
//! protect a server from web pages and proxies.
//!
//! | module | owns |
//! | --- | --- |
//! | `connection` | an HTTP/1.1 connection |
//! | `stream`, `head`, `in_flight` | its bytes, request by request |
//! | `guard` | the rules on hosts, origins and proxies |
//! | `forwarded` | the limits of clients behind a proxy |
//! | `route` | resources and parameters |
//! | `credentials` | the identity and the idempotency of a request |
//! | `messages` | the requests that receive and acknowledge |
//! | `receive`, `receivers` | the responses that carry messages, and their acknowledgements |
//! | `page` | the web page |
//! | `websocket` | the handshake of a WebSocket |
//! | `error`, `response` | refusals; headers and bodies |

mod connection;
mod credentials;
mod error;
mod forwarded;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod guard;
mod head;
mod in_flight;
mod messages;
mod page;
mod receive;
mod receivers;
mod response;
mod route;
mod stream;
mod websocket;

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use hark_protocol::{Code, OkFields, Password, Refusal, Reply, Request, RequestId, UserName};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use zeroize::Zeroize as _;

use self::credentials::{Credentials, credentials, idempotency_key};
use self::error::HttpError;
use self::forwarded::Forwarded;
pub(super) use self::forwarded::ForwardedRequest;
use self::guard::Guard;
use self::head::HEAD_BYTES_MAX;
use self::receivers::Receivers;
pub(super) use self::response::ResponseBody;
use self::response::json;
use self::route::{Operation, Parameters, Resource};
use super::Settings;
use super::call::{Call, CallError, answer};
use super::caller::Caller;
use crate::bans::Bans;
use crate::chat::{Chat, Output, now_ms};

pub use guard::{HttpSettings, Origin};

/// The lowest rate of a body, in bytes per second, besides [`Settings::ack_timeout`].
const BODY_BYTES_PER_SECOND_MIN: usize = 1024;

/// The largest body that is a password, in bytes.
const PASSWORD_BODY_BYTES_MAX: usize = 1024;

/// The login of a request.
struct Login {
    user: UserName,
    password: Option<Password>,
    /// Whether the password is a token of the user, so that a refusal of the login is about
    /// the scope.
    is_token: bool,
}

/// Has nginx pass on a response line by line.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The HTTP front of a server. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Http(Arc<HttpState>);

#[derive(Debug)]
struct HttpState {
    chat: Arc<Chat>,
    guard: Guard,
    forwarded: Arc<Forwarded>,
    receivers: Arc<Receivers>,
    bans: Arc<Bans>,
    ack_timeout: Duration,
}

/// The answer to a request to send.
#[derive(Serialize)]
struct Sent {
    number: Option<u64>,
}

/// The answer to a request without a result.
#[derive(Serialize)]
struct Done {}

/// The answer to a deletion.
#[derive(Serialize)]
struct Deleted {
    deleted: bool,
}

/// The answer to a list.
#[derive(Serialize)]
struct Users {
    users: Vec<String>,
    truncated: bool,
}

/// The answer to a health check.
#[derive(Serialize)]
struct HealthStatus {
    status: &'static str,
}

type Answer = Result<Response<ResponseBody>, HttpError>;

impl Http {
    /// Returns the front of `chat`. Clients behind proxies from banned networks are refused.
    pub(super) fn new(chat: &Arc<Chat>, settings: &Settings, bans: Arc<Bans>) -> Self {
        Self(Arc::new(HttpState {
            chat: Arc::clone(chat),
            guard: Guard::new(settings.http.clone(), settings.tls.clone()),
            forwarded: Arc::new(Forwarded::new(Arc::clone(chat))),
            receivers: Arc::default(),
            bans,
            ack_timeout: settings.ack_timeout,
        }))
    }

    /// Sets the maximum number of open requests of an address behind a proxy.
    pub(super) fn set_requests_max(&self, requests_max: usize) {
        self.0.forwarded.set_requests_max(requests_max);
    }

    /// Answers a request over HTTP/2.
    pub(super) async fn respond(
        &self,
        request: http::Request<Incoming>,
        caller: &Caller,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_api = is_api(&parts);
        let answered = async {
            check_head(&parts)?;
            let caller = self.admit(&parts, caller).await?;
            match Resource::of(&parts.uri)?.operation(&parts.method)? {
                Operation::WebSocket => Err(HttpError::bad_request(
                    "a WebSocket needs HTTP/1.1, without ALPN or with http/1.1",
                )),
                operation => self.run(operation, parts, body, &caller).await,
            }
        };
        finish(answered.await, is_api)
    }

    /// Checks a request, and waits until its rate allows it. Returns the caller whose limits
    /// it counts for.
    async fn admit(&self, parts: &Parts, caller: &Caller) -> Result<Caller, HttpError> {
        let address = self.0.guard.check(parts, caller.address)?;
        let caller = self.client(address, caller);
        let caller = caller.map_err(|refusal| HttpError::of_connection(&refusal))?;
        caller.admit_call().await?;
        Ok(caller)
    }

    /// Returns the caller of a gRPC call, which a proxy may have forwarded.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn caller_of_grpc(
        &self,
        headers: &HeaderMap,
        caller: Caller,
    ) -> Result<Caller, Refusal> {
        let address = self.0.guard.address(headers, caller.address)?;
        self.client(address, &caller)
    }

    /// Returns the caller at `address`, the peer of `caller` or a client behind it.
    fn client(&self, address: IpAddr, caller: &Caller) -> Result<Caller, Refusal> {
        if address == caller.address {
            return Ok(caller.clone());
        }
        if self.0.bans.is_banned(address, now_ms()) {
            return Err(Bans::refusal());
        }
        let client = self.0.forwarded.begin(address)?;
        Ok(Caller {
            address,
            limiter: client.as_ref().map(|client| client.limiter()),
            client,
            ..caller.clone()
        })
    }

    async fn run(
        &self,
        operation: Operation,
        parts: Parts,
        body: Incoming,
        caller: &Caller,
    ) -> Answer {
        match operation {
            Operation::Send(to) => self.send(to, parts, body, caller).await,
            Operation::Unread(user) => self.unread(user, &parts, caller).await,
            Operation::Receive(user) => self.receive(user, &parts, caller).await,
            Operation::Acknowledge(user) => self.acknowledge(user, &parts, caller).await,
            Operation::Create(user) => self.create(user, &parts, body, caller).await,
            Operation::Delete(user) => self.delete(user, &parts, caller).await,
            Operation::List => self.list(&parts, caller).await,
            Operation::Page => Ok(page::response()),
            Operation::Health => Ok(json(StatusCode::OK, &HealthStatus { status: "ok" })),
            Operation::Ready => Ok(self.readiness(caller)),
            Operation::Options(allowed) => Ok(options(allowed)),
            Operation::WebSocket => Err(HttpError::bad_request("a WebSocket needs HTTP/1.1")),
        }
    }

    async fn send(&self, to: UserName, parts: Parts, body: Incoming, caller: &Caller) -> Answer {
        Parameters::of(&parts.uri, &[])?;
        let is_multipart = parts.headers.get(CONTENT_TYPE).is_some_and(|media| {
            let media = media.as_bytes().first_chunk::<10>();
            media.is_some_and(|media| media.eq_ignore_ascii_case(b"multipart/"))
        });
        if is_multipart {
            let error = HttpError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::BadRequest,
                "the body is the text itself; use curl -d or --data-binary instead of -F",
            );
            return Err(error);
        }
        let idempotency = idempotency_key(&parts.headers)?;
        let login = self.login(&parts, caller).await?;
        let text_bytes_max = self.0.chat.rules().text_bytes_max();
        let text = ByteString::try_from(self.body(&parts, body, text_bytes_max).await?)
            .map_err(|_| HttpError::bad_request("a text must be UTF-8"))?;
        let (mut call, is_authenticated) = self.call_as(login, caller).await?;
        let id = match idempotency {
            Some((session, id)) => {
                call = call.in_session(session);
                Some(id)
            }
            None => RequestId::new(1),
        };
        let fields = call
            .request_as(id, Ok(Request::Send { user: to, text }))
            .await
            .map_err(|error| HttpError::of_command(error, is_authenticated))?;
        let number = fields.as_stored().map(|sequence| sequence.0);
        Ok(json(StatusCode::CREATED, &Sent { number }))
    }

    async fn create(
        &self,
        user: UserName,
        parts: &Parts,
        body: Incoming,
        caller: &Caller,
    ) -> Answer {
        Parameters::of(&parts.uri, &[])?;
        let login = self.login(parts, caller).await?;
        let body = self.body(parts, body, PASSWORD_BODY_BYTES_MAX).await?;
        let password = password(body)?;
        let (mut call, is_authenticated) = self.call_as(login, caller).await?;
        call.request(Ok(Request::Create { user, password }))
            .await
            .map_err(|error| HttpError::of_command(error, is_authenticated))?;
        Ok(json(StatusCode::CREATED, &Done {}))
    }

    async fn delete(&self, user: UserName, parts: &Parts, caller: &Caller) -> Answer {
        Parameters::of(&parts.uri, &[])?;
        let login = self.login(parts, caller).await?;
        let (mut call, is_authenticated) = self.call_as(login, caller).await?;
        let delete = Request::Delete {
            user,
            password: None,
        };
        let fields = call
            .request(Ok(delete))
            .await
            .map_err(|error| HttpError::of_command(error, is_authenticated))?;
        let deleted = fields.as_deleted().unwrap_or_default();
        Ok(json(StatusCode::OK, &Deleted { deleted }))
    }

    async fn list(&self, parts: &Parts, caller: &Caller) -> Answer {
        let parameters = Parameters::of(&parts.uri, &["pattern"])?;
        let pattern = parameters.text("pattern").filter(|text| !text.is_empty());
        let pattern = pattern.map(ByteString::from);
        let login = self.login(parts, caller).await?;
        let (mut call, is_authenticated) = self.call_as(login, caller).await?;
        let (users, fields) = list(&mut call, Request::List { pattern })
            .await
            .map_err(|error| HttpError::of_command(error, is_authenticated))?;
        let (_, truncated) = fields.as_listed().unwrap_or_default();
        Ok(json(StatusCode::OK, &Users { users, truncated }))
    }

    fn readiness(&self, caller: &Caller) -> Response<ResponseBody> {
        let (code, status) = if caller.stopping.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else if !self.0.chat.is_available() {
            (StatusCode::SERVICE_UNAVAILABLE, "store unavailable")
        } else if self.0.chat.is_low_on_space() {
            (
                StatusCode::OK,
                "ready, but sends are refused: low on disk space",
            )
        } else {
            (StatusCode::OK, "ready")
        };
        json(code, &HealthStatus { status })
    }

    /// Returns a call that is logged in, or anonymous without credentials, and whether it is
    /// logged in.
    async fn call_as(
        &self,
        login: Option<Login>,
        caller: &Caller,
    ) -> Result<(Call, bool), HttpError> {
        let mut call = Call::new(&self.0.chat, caller);
        let is_authenticated = login.is_some();
        if let Some(login) = login {
            let (user, password) = (login.user, login.password);
            let login_request = Request::Login { user, password };
            let logged_in = call.request(Ok(login_request)).await;
            logged_in.map_err(|error| of_login(error, login.is_token))?;
        }
        Ok((call, is_authenticated))
    }

    /// Returns the login of a request, if it has credentials. A token alone names its user.
    async fn login(&self, parts: &Parts, caller: &Caller) -> Result<Option<Login>, HttpError> {
        let chat = &self.0.chat;
        Ok(match credentials(&parts.headers)? {
            None => None,
            Some(Credentials::Basic(user, password)) => {
                let of_token = chat.token_user(password.as_ref()).await;
                let of_token = of_token.map_err(CallError::from)?;
                Some(Login {
                    is_token: of_token.is_some_and(|owner| owner == user),
                    user,
                    password,
                })
            }
            Some(Credentials::Bearer(token)) => {
                let user = chat.identify(caller.address, &token).await;
                Some(Login {
                    user: user.map_err(CallError::from)?,
                    password: Some(token),
                    is_token: true,
                })
            }
        })
    }

    /// Returns the login with which a request acts for a user.
    async fn login_of(
        &self,
        user: UserName,
        parts: &Parts,
        caller: &Caller,
    ) -> Result<Login, HttpError> {
        match self.login(parts, caller).await? {
            None => Ok(Login {
                user,
                password: None,
                is_token: false,
            }),
            Some(login) if login.user == user => Ok(login),
            Some(_) => Err(HttpError::forbidden("a user can receive only for itself")),
        }
    }

    /// Reads a body of at most `bytes_max` bytes.
    async fn body(
        &self,
        parts: &Parts,
        body: Incoming,
        bytes_max: usize,
    ) -> Result<Bytes, HttpError> {
        let too_large = || {
            let error = HttpError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::TooLarge,
                format!("the body may have at most {bytes_max} bytes"),
            );
            error.closing()
        };
        let length = parts.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large());
        }
        let for_its_bytes = Duration::from_secs((bytes_max / BODY_BYTES_PER_SECOND_MIN) as u64);
        let reading = Limited::new(body, bytes_max).collect();
        match tokio::time::timeout(self.0.ack_timeout + for_its_bytes, reading).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(HttpError::bad_request("the body is incomplete").closing()),
            Err(_) => {
                let error = HttpError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    Code::BadRequest,
                    "the body took too long",
                );
                Err(error.closing())
            }
        }
    }
}

/// Returns the response to a connection that is not served.
pub(super) fn refusal(refusal: &Refusal) -> Response<ResponseBody> {
    finish(Err(HttpError::of_connection(refusal)), true)
}

/// Returns the response to a connection that is not served, as the last bytes of an
/// HTTP/1.1 connection.
pub(super) fn refusal_bytes(refusal: &Refusal) -> BytesMut {
    HttpError::of_connection(refusal).into_bytes()
}

/// Refuses a head of HTTP/2 that is too long for HTTP; that of a gRPC call may be longer.
fn check_head(parts: &Parts) -> Result<(), HttpError> {
    let fields = parts.headers.iter();
    let fields: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let target = parts.uri.path_and_query();
    let target = target.map_or(0, |target| target.as_str().len());
    if fields + target <= HEAD_BYTES_MAX {
        return Ok(());
    }
    Err(HttpError::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::TooLarge,
        format!("the head may have at most {HEAD_BYTES_MAX} bytes"),
    ))
}

/// Returns whether a request is for the API, whose responses are never stored.
fn is_api(parts: &Parts) -> bool {
    parts.uri.path().starts_with("/v1")
}

/// Adds the headers of every response.
fn finish(answer: Answer, is_api: bool) -> Response<ResponseBody> {
    let mut response = answer.unwrap_or_else(HttpError::into_response);
    response::add_standard_headers(response.headers_mut(), is_api);
    response
}

/// Returns the refusal of a login that was to receive. That of a token is about its scope.
fn of_login(error: impl Into<CallError>, is_token: bool) -> HttpError {
    HttpError::of_command(error.into(), is_token)
}

/// Parses the body of a creation. An empty one is no password.
fn password(body: Bytes) -> Result<Option<Password>, HttpError> {
    let mut bytes = Vec::from(body);
    let password = match std::str::from_utf8(&bytes) {
        Ok("") => Ok(None),
        Ok(text) => text
            .parse()
            .map(Some)
            .map_err(|bad| Refusal::from(bad).into()),
        Err(_) => Err(Refusal::new(Code::BadPassword, "a password must be UTF-8").into()),
    };
    bytes.zeroize();
    password
}

/// Runs a list, and returns the names and the fields of its end.
async fn list(call: &mut Call, request: Request) -> Result<(Vec<String>, OkFields), CallError> {
    call.wait_until_ready().await?;
    call.connection.handle(RequestId::new(1), Ok(request));
    let mut users = Vec::new();
    loop {
        match poll_fn(|cx| call.poll(cx)).await? {
            Output::Reply(_, Reply::List(names)) => {
                users.extend(names.iter().map(ToString::to_string));
            }
            Output::Reply(_, reply) => return Ok((users, answer(reply)?)),
            // The server is draining.
            Output::Push(_)
            | Output::Said(_)
            | Output::Notice(_)
            | Output::Bye(_)
            | Output::Close => return Err(CallError::Ended),
        }
    }
}

/// Returns the response with a body of lines, which no proxy is to hold back.
fn lines(body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    headers.insert(CONTENT_TYPE, ndjson);
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// Returns the response to `OPTIONS`. It has no headers of CORS, so a browser sends no
/// request of a foreign page that needs them.
fn options(allowed: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(response::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
