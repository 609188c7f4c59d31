//! The client connection of one gRPC call or HTTP request: its wake-ups and its end. It
//! does not know the messages of either.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hark_protocol::{OkFields, Refusal, Reply, Request, RequestId, SessionToken};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::caller::{CALL_WAIT_MAX, Caller, too_many_commands};
use crate::chat::{Chat, ClientConnection, Fault, Output, Shutdown, ShutdownSignal};

/// The failure of a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The request is refused; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The outcome is unknown.
    #[error("{0}")]
    Unavailable(Cow<'static, str>),
    /// Another connection has opened the session or revoked the token, or the connections of
    /// this epoch are closed.
    #[error("another connection has opened this session or revoked this token")]
    Aborted,
    /// The connection ended before its reply, because the server drains.
    #[error("the connection has ended; open another and retry unanswered requests")]
    Ended,
    /// The chat gave an answer of another request.
    #[error("unexpected reply {0}")]
    Unexpected(String),
}

/// The client connection of a call. Dropping it releases its session and subscription.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) connection: ClientConnection,
    shutdown: Arc<ShutdownSignal>,
    /// `None` once the drain is requested.
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The end of the wait for acknowledgements that follows the last output.
    drains_until: Option<Instant>,
}

impl Call {
    /// Returns an anonymous connection for a call of `caller`. It drains with the
    /// connection of the caller.
    pub(super) fn new(chat: &Arc<Chat>, caller: &Caller) -> Self {
        let shutdown = ShutdownSignal::of_call(&caller.connection);
        shutdown.set_address(caller.address);
        Self {
            connection: ClientConnection::new(
                Arc::clone(chat),
                caller.address,
                Arc::clone(&shutdown),
            ),
            shutdown,
            stopping: Some(Box::pin(caller.stopping.clone().cancelled_owned())),
            timer: None,
            drains_until: None,
        }
    }

    /// Charges each command to the limiter of `caller`, for a stream of commands.
    pub(super) fn limited(self, caller: &Caller) -> Self {
        Self {
            connection: self.connection.limited_by(caller.limiter.clone()),
            ..self
        }
    }

    /// Sends in `session`: see [`ClientConnection::in_session`].
    pub(super) fn in_session(self, session: SessionToken) -> Self {
        Self {
            connection: self.connection.in_session(session),
            ..self
        }
    }

    /// Returns the connection's shutdown signal.
    pub(super) fn shutdown(&self) -> Arc<ShutdownSignal> {
        Arc::clone(&self.shutdown)
    }

    /// Makes a request with a single reply, and returns its fields.
    ///
    /// # Errors
    /// The refusal or failure.
    pub(super) async fn request(
        &mut self,
        request: Result<Request, Refusal>,
    ) -> Result<OkFields, CallError> {
        self.request_as(RequestId::new(1), request).await
    }

    /// Makes a request as [`Self::request`] does, with this id.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(super) async fn request_as(
        &mut self,
        id: Option<RequestId>,
        request: Result<Request, Refusal>,
    ) -> Result<OkFields, CallError> {
        let request = request?;
        self.wait_until_ready().await?;
        if let Request::Send { user: to, .. } = &request {
            let wait = self.connection.wait_to_send(to);
            if wait > CALL_WAIT_MAX {
                return Err(Refusal::rate_limited(wait, "too many messages").into());
            }
        }
        self.connection.handle(id, Ok(request));
        match poll_fn(|cx| self.poll(cx)).await? {
            Output::Reply(_, reply) => answer(reply),
            // The server is draining.
            Output::Push(_)
            | Output::Said(_)
            | Output::Notice(_)
            | Output::Bye(_)
            | Output::Close => Err(CallError::Ended),
        }
    }

    /// Waits until the connection is ready for a request, which a rate limit may delay.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] if it would wait longer than
    /// [`CALL_WAIT_MAX`]; [`CallError::Aborted`].
    pub(super) async fn wait_until_ready(&mut self) -> Result<(), CallError> {
        if self.connection.is_ready() {
            return Ok(());
        }
        if let Some(until) = self.connection.paused_until() {
            let wait = until.saturating_duration_since(Instant::now());
            if wait > CALL_WAIT_MAX {
                return Err(too_many_commands(wait).into());
            }
        }
        poll_fn(|cx| match self.poll(cx)? {
            Poll::Ready(_) => Poll::Ready(Err(CallError::Ended)),
            Poll::Pending if self.connection.is_ready() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Polls for the next output.
    ///
    /// # Errors
    /// [`CallError::Aborted`].
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, CallError>> {
        loop {
            if self.connection.poll_abort(cx).is_ready() {
                return Poll::Ready(Err(CallError::Aborted));
            }
            if let Poll::Ready(output) = self.connection.poll(cx, Instant::now()) {
                return Poll::Ready(Ok(output));
            }
            if !self.poll_stopping(cx) {
                ready!(self.poll_timer(self.connection.wake_at(), cx));
            }
        }
    }

    /// Begins to wait for acknowledgements of messages in flight, until `timeout`.
    pub(super) fn drain(&mut self, timeout: Duration) {
        self.drains_until = Some(Instant::now() + timeout);
    }

    /// Returns whether it only waits for acknowledgements.
    pub(super) const fn is_draining(&self) -> bool {
        self.drains_until.is_some()
    }

    /// Ready when every message is acknowledged, the timeout has passed, or the connection is
    /// to end.
    pub(super) fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.connection.awaits_ack()
            || self.connection.poll_abort(cx).is_ready()
            || self.poll_stopping(cx)
        {
            return Poll::Ready(());
        }
        self.poll_timer(self.drains_until, cx)
    }

    /// Requests the drain of the connection once the server drains. Returns whether it did
    /// so now.
    fn poll_stopping(&mut self, cx: &mut Context<'_>) -> bool {
        let is_stopping = self
            .stopping
            .as_mut()
            .is_some_and(|stopping| stopping.as_mut().poll(cx).is_ready());
        if is_stopping {
            self.stopping = None;
            self.shutdown.request(Shutdown::Drain);
        }
        is_stopping
    }

    /// Ready at the time `at`; never without one.
    fn poll_timer(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else {
            self.timer = None;
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl From<Fault> for CallError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(refusal) => refusal.into(),
            Fault::Unavailable(unavailable) => Self::Unavailable(unavailable.to_string().into()),
        }
    }
}

/// Returns the fields of the reply that completes a call.
///
/// # Errors
/// The refusal or failure.
pub(super) fn answer(reply: Reply) -> Result<OkFields, CallError> {
    match reply {
        Reply::Ok(fields) => Ok(fields),
        Reply::NotOk(refusal) => Err(refusal.into()),
        Reply::Error { explanation, .. } => Err(CallError::Unavailable(explanation)),
        other => Err(CallError::Unexpected(format!("{other:?}"))),
    }
}
