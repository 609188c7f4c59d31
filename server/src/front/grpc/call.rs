//! One connection of the chat, as long as a call lasts: what wakes it, and how it
//! ends. It knows nothing of the messages of gRPC.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hark_grpc::status;
use hark_protocol::{OkFields, Refusal, Reply, Request, RequestId, SessionToken};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Extensions, Status};

use super::{CALL_PATIENCE, Caller, too_fast};
use crate::chat::{Chat, ClientConnection, ShutdownSignal, Output, Shutdown};

/// A connection, and what wakes its call. Dropping it gives back what it holds.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) connection: ClientConnection,
    shutdown: Arc<ShutdownSignal>,
    /// `None` once the connection has been told.
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Nothing goes out any more; acknowledgements are waited for until then.
    drains_until: Option<Instant>,
}

impl Call {
    /// Returns an anonymous connection for the call with these extensions. It
    /// ends with the connection of HTTP/2.
    ///
    /// # Errors
    /// None that a client could cause.
    pub(super) fn new(chat: &Arc<Chat>, extensions: &Extensions) -> Result<Self, Status> {
        let caller = Caller::of(extensions)?;
        let shutdown = Arc::<ShutdownSignal>::default();
        Ok(Self {
            connection: ClientConnection::new(Arc::clone(chat), caller.address, Arc::clone(&shutdown)),
            shutdown,
            stopping: Some(Box::pin(caller.stopping.clone().cancelled_owned())),
            timer: None,
            drains_until: None,
        })
    }

    /// Each of its commands counts as one of `caller`: it is a stream of them.
    pub(super) fn of_many(self, caller: &Caller) -> Self {
        Self { connection: self.connection.limited_by(caller.limiter.clone()), ..self }
    }

    /// Its sends are of this session: see [`ClientConnection::in_session`].
    pub(super) fn in_session(self, session: SessionToken) -> Self {
        Self { connection: self.connection.in_session(session), ..self }
    }

    /// Returns what tells its connection to end.
    pub(super) fn shutdown(&self) -> Arc<ShutdownSignal> {
        Arc::clone(&self.shutdown)
    }

    /// The answer to a request that has one alone.
    ///
    /// # Errors
    /// The refusal or failure as a status.
    pub(super) async fn ask(&mut self, request: Result<Request, Refusal>) -> Result<OkFields, Status> {
        self.ask_as(RequestId::new(1), request).await
    }

    /// As [`Self::ask`], by this id.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn ask_as(
        &mut self,
        id: Option<RequestId>,
        request: Result<Request, Refusal>,
    ) -> Result<OkFields, Status> {
        let request = request.map_err(|refusal| status::refused(&refusal))?;
        self.wait_for_turn().await?;
        self.connection.handle(id, Ok(request));
        match poll_fn(|cx| self.poll(cx)).await? {
            Output::Reply(_, reply) => answer(reply),
            // The server stops, and this came too late.
            Output::Push(_) | Output::Bye(_) | Output::Close => Err(ended()),
        }
    }

    /// Waits until the connection takes a request: its user may have gone too fast.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] where that is too late; the status
    /// of a call that has to end at once.
    pub(super) async fn wait_for_turn(&mut self) -> Result<(), Status> {
        if self.connection.is_ready() {
            return Ok(());
        }
        if let Some(until) = self.connection.paused_until() {
            let wait = until.saturating_duration_since(Instant::now());
            if wait > CALL_PATIENCE {
                return Err(status::refused(&too_fast(wait)));
            }
        }
        poll_fn(|cx| match self.poll(cx)? {
            Poll::Ready(_) => Poll::Ready(Err(ended())),
            Poll::Pending if self.connection.is_ready() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// What goes out next.
    ///
    /// # Errors
    /// The status of a call that has to end at once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, Status>> {
        loop {
            if self.connection.poll_abort(cx).is_ready() {
                return Poll::Ready(Err(cut()));
            }
            if let Poll::Ready(output) = self.connection.poll(cx, Instant::now()) {
                return Poll::Ready(Ok(output));
            }
            if !self.poll_stopping(cx) {
                ready!(self.poll_timer(self.connection.wake_at(), cx));
            }
        }
    }

    /// Begins to wait for acknowledgements of what went out, for so long at
    /// most.
    pub(super) fn linger(&mut self, timeout: Duration) {
        self.drains_until = Some(Instant::now() + timeout);
    }

    /// Whether it waits for acknowledgements alone.
    pub(super) const fn is_draining(&self) -> bool {
        self.drains_until.is_some()
    }

    /// Ready when nothing that went out is unacknowledged, or it has waited
    /// long enough, or the connection is to end.
    pub(super) fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.connection.awaits_ack() || self.connection.poll_abort(cx).is_ready() || self.poll_stopping(cx)
        {
            return Poll::Ready(());
        }
        self.poll_timer(self.drains_until, cx)
    }

    /// Tells the connection once that the connection is to end. Whether it was now.
    fn poll_stopping(&mut self, cx: &mut Context<'_>) -> bool {
        let told = self.stopping.as_mut().is_some_and(|stopping| stopping.as_mut().poll(cx).is_ready());
        if told {
            self.stopping = None;
            self.shutdown.request(Shutdown::Drain);
        }
        told
    }

    /// Ready at this time, if there is one.
    fn poll_timer(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else {
            self.timer = None;
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

/// What a reply means to a call that it ends.
///
/// # Errors
/// The refusal or failure as a status.
pub(super) fn answer(reply: Reply) -> Result<OkFields, Status> {
    match reply {
        Reply::Ok(fields) => Ok(fields),
        Reply::NotOk(refusal) => Err(status::refused(&refusal)),
        Reply::Error { explanation, .. } => Err(status::unavailable(&explanation)),
        other => Err(Status::internal(format!("no answer, but {other:?}"))),
    }
}

/// The status of a call whose session another connection has opened.
pub(super) fn cut() -> Status {
    Status::aborted("another connection has opened this session")
}

/// The status of a call whose connection has ended before it was over.
pub(super) fn ended() -> Status {
    status::unavailable("the session has ended; begin another, and repeat what was not answered")
}
