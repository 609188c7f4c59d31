//! `BiDiChat`: a whole session on one call. All work happens when the response stream is
//! polled: once there is no output, it handles every available request, so that a burst
//! costs one poll.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use hark_grpc::reply;
use hark_grpc::request;
use hark_grpc::v1::{ChatReply, ChatRequest};
use hark_protocol::{ByeReason, Frame, Reply, Request};
use tonic::{Status, Streaming};

use crate::chat::Output;
use crate::front::call::{Call, CallError};
use crate::front::delivery;
use crate::front::drain::DRAIN_TIMEOUT;

/// The maximum number of requests handled in one poll. Acknowledgements have no reply
/// that would end it.
const REQUESTS_PER_POLL_MAX: usize = 1024;

/// The maximum number of iterations before other tasks run.
const ITERATIONS_MAX: usize = 4;

/// The end of a stream.
type End = Result<(), Status>;

/// The response stream of a `BiDiChat`.
#[derive(Debug)]
pub(super) struct Bidi {
    call: Call,
    requests: Streaming<ChatRequest>,
    /// Whether the requests have ended, normally or with an error.
    requests_ended: bool,
    /// Whether `bye shutdown` was sent.
    said_bye: bool,
    /// The end of the stream, once it drains.
    end: End,
    ended: bool,
}

impl Bidi {
    /// Returns a session with these requests.
    pub(super) fn new(call: Call, requests: Streaming<ChatRequest>) -> Self {
        Self {
            call,
            requests,
            requests_ended: false,
            said_bye: false,
            end: Ok(()),
            ended: false,
        }
    }

    /// Handles requests. Returns whether there were any.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        for _ in 0..REQUESTS_PER_POLL_MAX {
            let takes = self.call.is_draining() || self.call.connection.is_ready();
            if !takes || self.requests_ended {
                return any;
            }
            match Pin::new(&mut self.requests).poll_next(cx) {
                Poll::Ready(Some(Ok(request))) => self.take(request),
                Poll::Ready(Some(Err(status))) => self.end_requests(Err(status)),
                Poll::Ready(None) => self.end_requests(Ok(())),
                Poll::Pending => return any,
            }
            any = true;
        }
        any
    }

    fn take(&mut self, request: ChatRequest) {
        let Frame { id, message } = request::incoming(request);
        // While it drains, only acknowledgements count.
        if !self.call.is_draining() || matches!(message, Ok(Request::Ack { .. })) {
            self.call.connection.handle(id, message);
        }
    }

    fn end_requests(&mut self, why: End) {
        self.requests_ended = true;
        if !self.call.is_draining() {
            self.end = why;
            self.call.connection.end();
        }
    }

    fn outgoing(&mut self, output: Output) -> Option<ChatReply> {
        match output {
            Output::Reply(id, reply) => reply::outgoing(id, reply),
            Output::Push(message) => reply::outgoing(None, Reply::String(delivery(&message))),
            Output::Bye(reason) => {
                self.said_bye |= reason == ByeReason::Shutdown;
                reply::outgoing(None, Reply::Bye(reason))
            }
            Output::Close => {
                if !self.requests_ended && !self.said_bye {
                    self.end = Err(CallError::Ended.into());
                }
                self.call.drain(DRAIN_TIMEOUT);
                None
            }
        }
    }

    /// Polls for the next output, or the end.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, End>> {
        if !self.call.is_draining() {
            return self.call.poll(cx).map_err(|error| Err(error.into()));
        }
        if !self.requests_ended && self.call.poll_drained(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Err(std::mem::replace(&mut self.end, Ok(()))))
    }
}

impl Stream for Bidi {
    type Item = Result<ChatReply, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        for _ in 0..ITERATIONS_MAX {
            match this.poll_output(cx) {
                Poll::Ready(Ok(output)) => {
                    if let Some(reply) = this.outgoing(output) {
                        return Poll::Ready(Some(Ok(reply)));
                    }
                }
                Poll::Ready(Err(end)) => {
                    this.ended = true;
                    return Poll::Ready(end.err().map(Err));
                }
                Poll::Pending if !this.poll_requests(cx) => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
