//! The answers of many parts, as streams: `List`, `Rooms`, `Members`, `Devices`, `Tokens`
//! and `History`.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use hark_grpc::reply;
use hark_grpc::v1::chat_reply::Reply as V1Reply;
use hark_grpc::v1::{
    DevicesReply, HistoryReply, ListReply, MembersReply, RoomsReply, TokensReply, history_reply,
};
use hark_protocol::{OkFields, Refusal, Reply, Request, RequestId};
use tonic::Status;

use crate::chat::Output;
use crate::front::call::{Call, CallError, answer};

/// An item of a stream.
pub(super) trait Part: Sized {
    /// Returns the item for a part of the answer.
    fn part(reply: V1Reply) -> Option<Self>;

    /// Returns the item for the end of the answer, if it has one.
    fn end(fields: &OkFields) -> Option<Self>;
}

/// The parts of one answer.
#[derive(Debug)]
pub(super) struct Parts<T> {
    /// `None` after the last part.
    call: Option<Call>,
    part: PhantomData<fn() -> T>,
}

impl<T: Part> Parts<T> {
    /// Makes this request.
    ///
    /// # Errors
    /// The refusal or failure before the first part, as a status.
    pub(super) async fn new(
        mut call: Call,
        request: Result<Request, Refusal>,
    ) -> Result<Self, Status> {
        let request = request.map_err(|refusal| hark_grpc::status::refused(&refusal))?;
        call.wait_until_ready().await?;
        call.connection.handle(RequestId::new(1), Ok(request));
        Ok(Self {
            call: Some(call),
            part: PhantomData,
        })
    }
}

impl<T: Part> Stream for Parts<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Some(call) = &mut self.call {
            match ready!(call.poll(cx)) {
                Ok(Output::Reply(_, part @ (Reply::List(_) | Reply::Room(_)))) => {
                    // An empty part is left out.
                    let part = reply::outgoing(None, part).and_then(|part| part.reply);
                    if let Some(part) = part.and_then(T::part) {
                        return Poll::Ready(Some(Ok(part)));
                    }
                }
                last => {
                    self.call = None;
                    return Poll::Ready(last_part(last).transpose());
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Returns the end of the answer.
fn last_part<T: Part>(last: Result<Output, CallError>) -> Result<Option<T>, Status> {
    let Output::Reply(_, reply) = last? else {
        return Err(CallError::Ended.into());
    };
    Ok(T::end(&answer(reply)?))
}

/// Returns whether the end of a list says that it is truncated.
fn is_truncated(fields: &OkFields) -> bool {
    fields.as_listed().is_some_and(|(_, truncated)| truncated)
}

impl Part for ListReply {
    fn part(reply: V1Reply) -> Option<Self> {
        match reply {
            V1Reply::Names(names) => Some(Self {
                names: names.names,
                truncated: false,
            }),
            _ => None,
        }
    }

    fn end(fields: &OkFields) -> Option<Self> {
        is_truncated(fields).then(|| Self {
            names: Vec::new(),
            truncated: true,
        })
    }
}

impl Part for MembersReply {
    fn part(reply: V1Reply) -> Option<Self> {
        match reply {
            V1Reply::Names(names) => Some(Self {
                names: names.names,
                truncated: false,
            }),
            _ => None,
        }
    }

    fn end(fields: &OkFields) -> Option<Self> {
        is_truncated(fields).then(|| Self {
            names: Vec::new(),
            truncated: true,
        })
    }
}

impl Part for RoomsReply {
    fn part(reply: V1Reply) -> Option<Self> {
        match reply {
            V1Reply::Room(room) => Some(Self { room: Some(room) }),
            _ => None,
        }
    }

    fn end(_: &OkFields) -> Option<Self> {
        None
    }
}

impl Part for DevicesReply {
    fn part(reply: V1Reply) -> Option<Self> {
        match reply {
            V1Reply::Device(device) => Some(Self {
                device: Some(device),
            }),
            _ => None,
        }
    }

    fn end(_: &OkFields) -> Option<Self> {
        None
    }
}

impl Part for TokensReply {
    fn part(reply: V1Reply) -> Option<Self> {
        match reply {
            V1Reply::Token(token) => Some(Self { token: Some(token) }),
            _ => None,
        }
    }

    fn end(_: &OkFields) -> Option<Self> {
        None
    }
}

impl Part for HistoryReply {
    fn part(reply: V1Reply) -> Option<Self> {
        match reply {
            V1Reply::Past(message) => Some(Self {
                event: Some(history_reply::Event::Past(message)),
            }),
            _ => None,
        }
    }

    fn end(fields: &OkFields) -> Option<Self> {
        let (_, oldest) = fields.as_past()?;
        Some(Self {
            event: Some(history_reply::Event::Oldest(oldest.0)),
        })
    }
}
