//! The gRPC front: calls on an HTTP/2 connection ([`super::http2`]). It translates; each
//! call is a separate client connection to the chat. It has no rules.
//!
//! | module | owns |
//! | --- | --- |
//! | `chat` | `hark.v1.Chat` |
//! | `list` | its `List` |
//! | `connect` | its `Connect` and `Ack`, and the receipts that link them |
//! | `bidi` | its `BiDiChat` |
//! | `legacy` | `helloworld.Chat` |
//! | `logs` | `hark.v1.LogWatcher`; `hark.v1.Admin` is in [`crate::administration`] |
//! | `health` | the standard health service |
//! | `reflection` | the standard reflection services |
//! | `abortable` | a response stream that can be dropped while it is not polled |
//! | `deadline` | the client's deadline of a call |

mod abortable;
mod bidi;
mod chat;
mod connect;
mod deadline;
mod health;
mod legacy;
mod list;
mod logs;
mod reflection;
mod services;

use std::net::IpAddr;
use std::sync::Arc;

use hark_grpc::helloworld::chat_server::ChatServer as OldChatServer;
use hark_grpc::status;
use hark_grpc::v1::admin_server::AdminServer;
use hark_grpc::v1::chat_server::ChatServer;
use hark_grpc::v1::log_watcher_server::LogWatcherServer;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Extensions, Status};
use tonic_health::pb::health_server::HealthServer;

use super::Settings;
use super::call::CallError;
use super::caller::Caller;
use crate::administration::{AdminService, AdminSlot};
use crate::chat::Chat;
use chat::ChatService;
use health::HealthService;
use legacy::LegacyService;
use logs::LogService;
use services::Services;

pub use logs::{MayWatch, WatchLogs};

/// The maximum number of bytes of a request besides its frame: names, passwords and
/// sessions.
const METADATA_BYTES_MAX: usize = 1024;

/// The gRPC front of a server.
#[derive(Debug, Clone)]
pub(super) struct Grpc {
    services: Services,
}

impl Grpc {
    /// Returns the services over `chat`.
    pub(super) fn new(chat: &Arc<Chat>, settings: &Settings, admin: AdminSlot) -> Self {
        let request_bytes_max = chat.rules().frame_bytes_max + METADATA_BYTES_MAX;
        let new_chat = ChatServer::new(ChatService::new(Arc::clone(chat), settings.ack_timeout));
        let old_chat = OldChatServer::new(LegacyService::new(Arc::clone(chat)));
        let log = LogWatcherServer::new(LogService::new(
            Arc::clone(chat),
            settings.watch_logs.clone(),
        ));
        let admin = AdminServer::new(AdminService::new(admin));
        let health = HealthServer::new(HealthService::new(
            Arc::clone(chat),
            settings.watch_logs.is_some(),
        ));
        let services = services::Builder::default()
            .add(new_chat.max_decoding_message_size(request_bytes_max))
            .add(old_chat.max_decoding_message_size(request_bytes_max))
            .add(log.max_decoding_message_size(request_bytes_max))
            .add(health.max_decoding_message_size(request_bytes_max))
            .add(admin.max_decoding_message_size(request_bytes_max));
        Self {
            services: reflection::add(services, request_bytes_max).build(),
        }
    }

    /// Answers one call of `caller`.
    pub(super) async fn call(
        &self,
        mut request: http::Request<Incoming>,
        caller: Caller,
    ) -> http::Response<Body> {
        let timeout = deadline::timeout(request.headers());
        let client = caller.client.clone();
        request.extensions_mut().insert(caller.clone());
        let answered = deadline::limit(timeout, async {
            match caller.admit_call().await {
                Ok(()) => self.services.call(request.map(Body::new)).await,
                Err(refusal) => Ok(status::refused(&refusal).into_http()),
            }
        });
        let Ok(response) = answered.await;
        let Some(client) = client else {
            return response;
        };
        // Counts the call for the address of its client until the response has ended.
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &client;
                frame
            }))
        })
    }
}

/// Returns the connection of the call with these extensions.
///
/// # Errors
/// An internal status, if the extension is missing.
fn caller(extensions: &Extensions) -> Result<&Caller, Status> {
    extensions
        .get()
        .ok_or_else(|| Status::internal("the call has no connection"))
}

/// Returns the address of the caller, from the extensions of a call.
///
/// # Errors
/// As [`caller`].
pub(crate) fn caller_address(extensions: &Extensions) -> Result<IpAddr, Status> {
    caller(extensions).map(|caller| caller.address)
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let explanation = error.to_string();
        match error {
            CallError::Refused(refusal) => status::refused(&refusal),
            CallError::Unavailable(_) | CallError::Ended => status::unavailable(&explanation),
            CallError::Aborted => Self::aborted(explanation),
            CallError::Unexpected(_) => Self::internal(explanation),
        }
    }
}

/// Returns whether a request is a gRPC call. The content type keeps out requests that a
/// web page can make a browser send without a CORS preflight.
pub(super) fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    let rest = content_type.and_then(|content_type| content_type.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
