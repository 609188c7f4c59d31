//! The connection below the calls of gRPC and the requests of HTTP: its address, its
//! rate limiter, its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::Refusal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::ForwardedRequest;
use crate::chat::{RateLimiter, ShutdownSignal};

/// The longest delay of a call by the rate limit. A call that would wait longer is
/// refused, so that its client learns of the limit.
pub(super) const CALL_WAIT_MAX: Duration = Duration::from_secs(1);

/// The connection of a call.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The address of the client.
    pub(super) address: IpAddr,
    /// The signal of its connection.
    pub(super) connection: Arc<ShutdownSignal>,
    /// Counts the request for the address of a client behind a proxy.
    pub(super) client: Option<Arc<ForwardedRequest>>,
    /// The rate limiter of the connection; none if it is exempt.
    pub(super) limiter: Option<Arc<RateLimiter>>,
    /// Cancelled when the connection drains.
    pub(super) stopping: CancellationToken,
    /// The tasks of its calls, joined at its end.
    pub(super) calls: TaskTracker,
}

impl Caller {
    /// Charges a call, and waits until it may run.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] if it would wait longer than
    /// [`CALL_WAIT_MAX`].
    pub(super) async fn admit_call(&self) -> Result<(), Refusal> {
        let Some(limiter) = &self.limiter else {
            return Ok(());
        };
        let now = Instant::now();
        let wait = limiter
            .charge_call(CALL_WAIT_MAX, now)
            .map_err(too_many_commands)?;
        if !wait.is_zero() {
            tokio::time::sleep_until(now + wait).await;
        }
        Ok(())
    }
}

/// Returns the refusal of a call that would wait too long.
pub(super) fn too_many_commands(wait: Duration) -> Refusal {
    Refusal::rate_limited(wait, "too many commands")
}
