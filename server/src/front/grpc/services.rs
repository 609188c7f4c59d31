//! The services of the gRPC front: dispatches each call to the service named by
//! its path. It does not know the services themselves.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

/// The answer to one call. A failed call is a response, too.
type ResponseFuture = BoxFuture<'static, Result<Response<Body>, Infallible>>;

type Handler = Box<dyn Fn(Request<Body>) -> ResponseFuture + Send + Sync>;

/// A set of services. Clones share it.
#[derive(Clone)]
pub(super) struct Services(Arc<[(&'static str, Handler)]>);

/// A builder of [`Services`].
#[derive(Default)]
pub(super) struct Builder(Vec<(&'static str, Handler)>);

impl Builder {
    /// Adds a service, which is always ready for a call.
    #[must_use]
    pub(super) fn add<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.0.push((
            S::NAME,
            Box::new(move |request| service.clone().call(request).boxed()),
        ));
        self
    }

    /// Returns the names of the services.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    pub(super) fn build(self) -> Services {
        Services(self.0.into())
    }
}

impl Services {
    /// Answers one call. A service that does not exist is `UNIMPLEMENTED`.
    pub(super) fn call(&self, request: Request<Body>) -> ResponseFuture {
        let name = service_of(request.uri().path());
        match self.0.iter().find(|(service, _)| name == Some(*service)) {
            Some((_, handler)) => handler(request),
            None => std::future::ready(Ok(Status::unimplemented("").into_http())).boxed(),
        }
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|(service, _)| service))
            .finish()
    }
}

/// Returns the service that a path of the form `/SERVICE/METHOD` names.
fn service_of(path: &str) -> Option<&str> {
    let (service, _method) = path.strip_prefix('/')?.split_once('/')?;
    Some(service)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;

    /// Answers each call with its own name.
    #[derive(Clone)]
    struct Named<const LETTER: char>;

    impl<const LETTER: char> Service<Request<Body>> for Named<LETTER> {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let response = Response::builder()
                .header("name", LETTER.to_string())
                .body(Body::empty());
            std::future::ready(Ok(response.unwrap()))
        }
    }

    impl NamedService for Named<'a'> {
        const NAME: &'static str = "test.A";
    }

    impl NamedService for Named<'b'> {
        const NAME: &'static str = "test.A.B";
    }

    async fn header(path: &str, name: &str) -> Option<String> {
        let services = Builder::default()
            .add(Named::<'a'>)
            .add(Named::<'b'>)
            .build();
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = services.call(request).await.unwrap();
        response
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn call_goes_to_the_service_of_its_path() {
        assert_eq!(header("/test.A/Do", "name").await.as_deref(), Some("a"));
        assert_eq!(header("/test.A.B/Do", "name").await.as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn call_of_unknown_service_is_unimplemented() {
        for path in ["/", "/test.A", "/test.C/Do", "//Do"] {
            let (status, name) = (
                header(path, "grpc-status").await,
                header(path, "name").await,
            );
            assert_eq!((status.as_deref(), name), (Some("12"), None), "{path}");
        }
    }
}
