//! `BiDiChat`: a whole session on one call. Everything happens where the stream
//! of the replies is polled: requests are taken when nothing is left to say,
//! and as many as there are, so that a burst of them costs one turn.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use hark_grpc::reply::Replies;
use hark_grpc::request;
use hark_grpc::v1::{ChatReply, ChatRequest};
use hark_protocol::{ByeReason, Frame, Reply, Request};
use tonic::{Status, Streaming};

use super::call::{Call, ended};
use crate::chat::Output;
use crate::front::delivery;
use crate::front::drain::DRAIN_TIMEOUT;

/// Requests that are taken in one turn: they may be acknowledgements, of which
/// nothing comes.
const REQUESTS_A_TURN_MAX: usize = 1024;

/// FairSemaphore that a call has before others get theirs.
const TURNS_MAX: usize = 4;

/// How a stream ends.
type End = Result<(), Status>;

/// The replies of one `BiDiChat`, and what drives it.
#[derive(Debug)]
pub(super) struct Bidi {
    call: Call,
    requests: Streaming<ChatRequest>,
    replies: Replies,
    /// Nothing more is asked: the client has said so, or its bytes were no
    /// requests.
    all_asked: bool,
    said_bye: bool,
    /// How it will end.
    end: End,
    ended: bool,
}

impl Bidi {
    /// A session with these requests.
    pub(super) fn new(call: Call, requests: Streaming<ChatRequest>) -> Self {
        Self {
            call,
            requests,
            replies: Replies::default(),
            all_asked: false,
            said_bye: false,
            end: Ok(()),
            ended: false,
        }
    }

    /// Takes what is asked. Whether anything was.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        for _ in 0..REQUESTS_A_TURN_MAX {
            let takes = self.call.is_draining() || self.call.connection.is_ready();
            if !takes || self.all_asked {
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
        // Whoever lingers takes nothing else.
        if !self.call.is_draining() || matches!(message, Ok(Request::Ack { .. })) {
            self.call.connection.handle(id, message);
        }
    }

    fn end_requests(&mut self, why: End) {
        self.all_asked = true;
        if !self.call.is_draining() {
            self.end = why;
            self.call.connection.end();
        }
    }

    fn outgoing(&mut self, output: Output) -> Option<ChatReply> {
        match output {
            Output::Reply(id, reply) => self.replies.outgoing(id, reply),
            Output::Push(message) => self.replies.outgoing(None, Reply::String(delivery(&message))),
            Output::Bye(reason) => {
                self.said_bye |= reason == ByeReason::Shutdown;
                self.replies.outgoing(None, Reply::Bye(reason))
            }
            Output::Close => {
                if !self.all_asked && !self.said_bye {
                    self.end = Err(ended());
                }
                self.call.linger(DRAIN_TIMEOUT);
                None
            }
        }
    }

    /// What goes out next, or how it ends.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, End>> {
        if !self.call.is_draining() {
            return self.call.poll(cx).map_err(Err);
        }
        if !self.all_asked && self.call.poll_drained(cx).is_pending() {
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
        for _ in 0..TURNS_MAX {
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
