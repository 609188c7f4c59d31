//! `List`: the names in pages, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use hark_grpc::reply;
use hark_grpc::v1::ListReply;
use hark_protocol::{OkFields, Reply, Request, RequestId};
use tonic::Status;

use crate::chat::Output;
use crate::front::call::{Call, CallError, answer};

/// The pages of one list.
#[derive(Debug)]
pub(super) struct Pages {
    /// `None` after the last page.
    call: Option<Call>,
}

impl Pages {
    /// Starts a list by this request.
    pub(super) fn new(mut call: Call, request: Request) -> Self {
        call.connection.handle(RequestId::new(1), Ok(request));
        Self { call: Some(call) }
    }
}

impl Stream for Pages {
    type Item = Result<ListReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Some(call) = &mut self.call {
            match ready!(call.poll(cx)) {
                Ok(Output::Reply(_, Reply::List(names))) if names.is_empty() => {}
                Ok(Output::Reply(_, Reply::List(names))) => {
                    let names = reply::texts(&names);
                    return Poll::Ready(Some(Ok(ListReply {
                        names,
                        truncated: false,
                    })));
                }
                last => {
                    self.call = None;
                    return Poll::Ready(last_page(last).transpose());
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Returns the last page, which marks a truncated list.
fn last_page(last: Result<Output, CallError>) -> Result<Option<ListReply>, Status> {
    let Output::Reply(_, reply) = last? else {
        return Err(CallError::Ended.into());
    };
    let (_, truncated) =
        answer(reply).map(|fields: OkFields| fields.as_listed().unwrap_or_default())?;
    Ok(truncated.then(|| ListReply {
        names: Vec::new(),
        truncated,
    }))
}
