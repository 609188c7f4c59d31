//! One peer of the chat, as long as a call lasts.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hark_grpc::status;
use hark_protocol::{OkFields, Refusal, Reply, Request, RequestId};
use tokio::time::{Instant, Sleep};
use tonic::{Extensions, Status};

use super::Caller;
use crate::chat::{Chat, Control, Output, Peer};

/// A peer, and what wakes its call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) peer: Peer,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Call {
    /// A peer for the call with these extensions, which is nobody.
    ///
    /// # Errors
    /// None that a client could cause.
    pub(super) fn new(chat: &Arc<Chat>, extensions: &Extensions) -> Result<Self, Status> {
        let caller: &Caller =
            extensions.get().ok_or_else(|| Status::internal("the call has come over no connection"))?;
        let peer = Peer::new(Arc::clone(chat), caller.address, Arc::<Control>::default());
        Ok(Self { peer, timer: None })
    }

    /// The answer to a request that has one.
    ///
    /// # Errors
    /// The refusal or failure as a status.
    pub(super) async fn ask(&mut self, request: Result<Request, Refusal>) -> Result<OkFields, Status> {
        let request = request.map_err(|refusal| status::refused(&refusal))?;
        self.peer.handle(RequestId::new(1), Ok(request));
        match poll_fn(|cx| self.poll(cx)).await {
            Output::Reply(_, Reply::Ok(fields)) => Ok(fields),
            Output::Reply(_, Reply::NotOk(refusal)) => Err(status::refused(&refusal)),
            Output::Reply(_, Reply::Error { explanation, .. }) => Err(status::unavailable(&explanation)),
            other => Err(Status::internal(format!("no answer, but {other:?}"))),
        }
    }

    /// What goes out next.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Output> {
        loop {
            if let Poll::Ready(output) = self.peer.poll(cx, Instant::now()) {
                return Poll::Ready(output);
            }
            let Some(at) = self.peer.wake_at() else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            std::task::ready!(timer.as_mut().poll(cx));
        }
    }
}
