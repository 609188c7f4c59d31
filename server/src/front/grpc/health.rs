//! The standard health service (`grpc.health.v1`): a service serves while the
//! store works and the server does not stop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use hark_grpc::helloworld::chat_server as old_chat;
use hark_grpc::v1::{chat_server, log_watcher_server};
use tokio::time::Interval;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::Caller;
use crate::chat::Chat;

/// How often those who watch have the store looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The health of the services.
#[derive(Debug)]
pub(super) struct HealthService {
    chat: Arc<Chat>,
    shows_log: bool,
}

/// The part of the server that somebody asks about.
#[derive(Debug, Clone)]
struct Part {
    chat: Arc<Chat>,
    /// `None` where there is no such service; else whether it is on.
    is_on: Option<bool>,
}

impl HealthService {
    /// The health of a server with this chat, which shows its log or does not.
    pub(super) const fn new(chat: Arc<Chat>, shows_log: bool) -> Self {
        Self { chat, shows_log }
    }

    fn part(&self, service: &str) -> Part {
        let is_on = match service {
            "" | chat_server::SERVICE_NAME => Some(true),
            log_watcher_server::SERVICE_NAME => Some(self.shows_log),
            old_chat::SERVICE_NAME => Some(!self.chat.rules().require_password),
            _ => None,
        };
        Part { chat: Arc::clone(&self.chat), is_on }
    }
}

impl Part {
    fn status(&self, stopping: bool) -> ServingStatus {
        match self.is_on {
            None => ServingStatus::ServiceUnknown,
            Some(is_on) if is_on && !stopping && self.chat.is_available() => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Watch;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let stopping = Caller::of(request.extensions())?.stopping.is_cancelled();
        match self.part(&request.get_ref().service).status(stopping) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("there is no such service")),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        let stopping = Caller::of(request.extensions())?.stopping.clone();
        Ok(Response::new(Watch {
            part: self.part(&request.get_ref().service),
            last: None,
            look: tokio::time::interval(LOOK_INTERVAL),
            stopping: Some(Box::pin(stopping.cancelled_owned())),
        }))
    }
}

/// The health of one service whenever it changes. It ends with the server, which
/// is the last that it says.
#[derive(Debug)]
pub(super) struct Watch {
    part: Part,
    last: Option<ServingStatus>,
    look: Interval,
    /// `None` once the server stops.
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Watch {
    /// The status, where it is another than the last.
    fn news(&mut self) -> Option<HealthCheckResponse> {
        let status = self.part.status(self.stopping.is_none());
        let is_new = self.last.replace(status) != Some(status);
        is_new.then(|| HealthCheckResponse { status: status.into() })
    }
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(stopping) = &mut self.stopping else { return Poll::Ready(None) };
            if stopping.as_mut().poll(cx).is_ready() {
                self.stopping = None;
            } else {
                ready!(self.look.poll_tick(cx));
            }
            if let Some(news) = self.news() {
                return Poll::Ready(Some(Ok(news)));
            }
        }
    }
}
