//! The socket of the administrators, by default in the folder of the store. Its mode admits
//! only the user of the server and root.

use std::fs::{self, Permissions};
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hark_grpc::v1::admin_server::AdminServer;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower_service::Service as _;

use super::service::{AdminService, AdminSlot, LocalCaller};
use crate::config::ListenAddress;
use crate::listener::{BoundSocket, Listeners, Stream};

/// The name of the socket in the folder of the store.
pub(crate) const FILE: &str = "admin.sock";

/// The maximum number of connections. Further ones wait.
const CONNECTIONS_MAX: usize = 16;

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long calls may take to end when the server has ended.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The socket of the administrators.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    listeners: Listeners,
}

impl AdminSocket {
    /// Opens the socket. It replaces that of a server that was killed.
    ///
    /// # Errors
    /// An error of the operating system, above all a path that is too long.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let socket = BoundSocket::bind(&ListenAddress::Unix(path.to_owned()))?;
        // Before it listens: nobody else connects in between.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self {
            listeners: Listeners::new(vec![socket.listen(false)?]),
        })
    }

    /// Serves until `stop` is cancelled and the calls in progress have ended.
    pub(crate) async fn serve(mut self, admin: AdminSlot, stop: CancellationToken) {
        let (tasks, permits) = (
            TaskTracker::new(),
            Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        );
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept(&permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let (admin, stop) = (admin.clone(), stop.clone());
                    tasks.spawn(async move {
                        serve_connection(stream, admin, stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an administrator");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        if tokio::time::timeout(END_TIMEOUT, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("calls of administrators still running");
        }
    }

    async fn accept(
        &mut self,
        permits: &Arc<Semaphore>,
    ) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(permits).acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        match poll_fn(|cx| self.listeners.poll_accept(cx)).await?.stream {
            Stream::Unix(stream) => Ok((stream, permit)),
            Stream::Tcp(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

async fn serve_connection(stream: UnixStream, admin: AdminSlot, stop: CancellationToken) {
    let caller = match stream.peer_cred() {
        Ok(credentials) => LocalCaller {
            uid: credentials.uid(),
            pid: credentials.pid(),
        },
        Err(error) => {
            tracing::warn!(%error, "administrator without credentials");
            return;
        }
    };
    let service = AdminServer::new(AdminService::new(admin));
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller);
        service.clone().call(request.map(Body::new))
    });
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection of an administrator failed");
    }
}
