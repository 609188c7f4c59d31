//! The standard health service (`grpc.health.v1`): a service is serving while the store
//! is healthy and the server is not draining.

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

use super::caller;
use crate::chat::Chat;

/// How often a watch polls the health of the store.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The health of the services.
#[derive(Debug)]
pub(super) struct HealthService {
    chat: Arc<Chat>,
    shows_log: bool,
}

/// The service that a request asks about.
#[derive(Debug, Clone)]
struct ServiceStatus {
    chat: Arc<Chat>,
    /// Whether the service is enabled; `None` for an unknown service.
    is_enabled: Option<bool>,
}

impl HealthService {
    /// Returns the health of a server with this chat, whose log may be watched or not.
    pub(super) const fn new(chat: Arc<Chat>, shows_log: bool) -> Self {
        Self { chat, shows_log }
    }

    fn service_status(&self, service: &str) -> ServiceStatus {
        let is_enabled = match service {
            "" | chat_server::SERVICE_NAME => Some(true),
            log_watcher_server::SERVICE_NAME => Some(self.shows_log),
            old_chat::SERVICE_NAME => Some(!self.chat.rules().require_password),
            _ => None,
        };
        ServiceStatus {
            chat: Arc::clone(&self.chat),
            is_enabled,
        }
    }
}

impl ServiceStatus {
    fn status(&self, stopping: bool) -> ServingStatus {
        match self.is_enabled {
            None => ServingStatus::ServiceUnknown,
            Some(is_enabled) if is_enabled && !stopping && self.chat.is_available() => {
                ServingStatus::Serving
            }
            Some(_) => ServingStatus::NotServing,
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = HealthWatch;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let stopping = caller(request.extensions())?.stopping.is_cancelled();
        match self
            .service_status(&request.get_ref().service)
            .status(stopping)
        {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(HealthCheckResponse {
                status: status.into(),
            })),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthWatch>, Status> {
        let stopping = caller(request.extensions())?.stopping.clone();
        Ok(Response::new(HealthWatch {
            service: self.service_status(&request.get_ref().service),
            last: None,
            look: tokio::time::interval(POLL_INTERVAL),
            stopping: Some(Box::pin(stopping.cancelled_owned())),
        }))
    }
}

/// The health of one service, at every change. Its last item is the shutdown of the
/// server.
#[derive(Debug)]
pub(super) struct HealthWatch {
    service: ServiceStatus,
    last: Option<ServingStatus>,
    look: Interval,
    /// `None` once the server stops.
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl HealthWatch {
    /// Returns the status if it has changed.
    fn change(&mut self) -> Option<HealthCheckResponse> {
        let status = self.service.status(self.stopping.is_none());
        let is_new = self.last.replace(status) != Some(status);
        is_new.then(|| HealthCheckResponse {
            status: status.into(),
        })
    }
}

impl Stream for HealthWatch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(stopping) = &mut self.stopping else {
                return Poll::Ready(None);
            };
            if stopping.as_mut().poll(cx).is_ready() {
                self.stopping = None;
            } else {
                ready!(self.look.poll_tick(cx));
            }
            if let Some(change) = self.change() {
                return Poll::Ready(Some(Ok(change)));
            }
        }
    }
}
