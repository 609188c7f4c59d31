//! Server reflection (`grpc.reflection`), in both versions that clients use. Its streams
//! never end by themselves, so their request bodies end when the server drains.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hark_grpc::DESCRIPTORS;
use http::Request;
use http_body::Frame;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_reflection::server::Builder;
use tower_service::Service;

use super::{caller, services};

/// The names of the services of this module.
const OWN_NAMES: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Adds the services to `services`, with requests of at most `request_bytes_max`.
pub(super) fn add(services: services::Builder, request_bytes_max: usize) -> services::Builder {
    // The definitions have services that this front does not serve.
    let names: Vec<_> = services.names().into_iter().chain(OWN_NAMES).collect();
    let builder = || {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        names
            .iter()
            .copied()
            .fold(builder, Builder::with_service_name)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => services
            .add(UntilStop(v1.max_decoding_message_size(request_bytes_max)))
            .add(UntilStop(
                v1alpha.max_decoding_message_size(request_bytes_max),
            )),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "cannot build the reflection service");
            services
        }
    }
}

/// A service whose requests end when the server drains.
#[derive(Debug, Clone)]
struct UntilStop<S>(S);

impl<S: Service<Request<Body>>> Service<Request<Body>> for UntilStop<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let stopping = caller(request.extensions()).map(|caller| caller.stopping.clone());
        self.0.call(match stopping {
            Ok(stopping) => request.map(|body| {
                Body::new(DrainableBody {
                    body,
                    stopping: Box::pin(stopping.cancelled_owned()),
                })
            }),
            Err(_) => request,
        })
    }
}

impl<S: NamedService> NamedService for UntilStop<S> {
    const NAME: &'static str = S::NAME;
}

/// A request body that ends when the server drains.
struct DrainableBody {
    body: Body,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for DrainableBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.stopping.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut self.body).poll_frame(cx),
        }
    }
}
