//! Streams of another node, from the side of their client.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::marker::PhantomData;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::inbox::Inbox;
use super::wire::{self, Cancel, End, Open, Recv, Send, StreamId};
use crate::call::{CALL_TIMEOUT, Call, FromReply, RPC_TIMEOUT};
use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::message::{Body, MsgId};
use crate::node::Node;
use crate::timers::Sleep;

impl<S: 'static> Node<S> {
    /// Sends the request for a server stream with items of type `T`. A refusal
    /// comes instead of the first item.
    ///
    /// # Errors
    /// 11 before `init`, and if too many calls are open; 13 if the request cannot
    /// be written. After the end of the input it stays pending.
    pub async fn open_stream<T: DeserializeOwned>(
        &self,
        dest: &str,
        service: &str,
        method: &str,
        request: &impl Serialize,
    ) -> Result<ServerStream<T>, Error> {
        let open = Open {
            service: service.to_owned(),
            method: method.to_owned(),
            request: Some(request),
        };
        let body = Body::new(wire::SERVER_STREAM, &open)?;
        if self.core().has_ended() {
            // No reply can come any more.
            return std::future::pending().await;
        }
        let id = self.core().send_call(dest, &body)?;
        let inbox = Rc::new(Inbox::new());
        self.core()
            .inboxes
            .borrow_mut()
            .insert(id, Rc::clone(&inbox));
        let (core, dest, is_cancelled) =
            (Rc::clone(self.core()), dest.to_owned(), Cell::new(false));
        Ok(ServerStream {
            core,
            dest,
            id,
            inbox,
            timeout: CALL_TIMEOUT,
            is_cancelled,
            item: PhantomData,
        })
    }

    /// Opens a bidirectional stream, on which messages of type `I` are answered
    /// by messages of type `O`. If the opening times out or is dropped, the
    /// stream may stay open at the other node until it has been idle for too
    /// long.
    ///
    /// # Errors
    /// As for a [`Call`].
    pub async fn open_bidi<I: Serialize, O: DeserializeOwned>(
        &self,
        dest: &str,
        service: &str,
        method: &str,
    ) -> Result<BidiStream<I, O>, Error> {
        let open = Open::<()> {
            service: service.to_owned(),
            method: method.to_owned(),
            request: None,
        };
        let StreamId { stream_id } = self.call(dest, wire::BIDI_OPEN, &open).await?;
        let (core, dest) = (Rc::clone(self.core()), dest.to_owned());
        let (timeout, is_open) = (CALL_TIMEOUT, true);
        Ok(BidiStream {
            core,
            dest,
            stream_id,
            timeout,
            is_open,
            messages: PhantomData,
        })
    }
}

/// A server stream of another node. Dropping it cancels it and leaves nothing
/// behind: items that are still in flight count as late replies.
pub struct ServerStream<T> {
    core: Rc<Core>,
    dest: String,
    id: MsgId,
    inbox: Rc<Inbox>,
    timeout: Duration,
    is_cancelled: Cell<bool>,
    item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ServerStream<T> {
    /// Sets the time that each item may take, 1 s by default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the next item, and always `None` after the last one. Items arrive
    /// in order and once, even if the network reorders or duplicates them; a lost
    /// item is a timeout. Cancel-safe.
    ///
    /// # Errors
    /// 0 if no item came in time: the stream continues. 13 if an item is not a
    /// `T`: it is skipped, and the stream continues. After any other error the
    /// stream has ended, and repeats the error: that of the other node's reply;
    /// 14 if the stream ended with another status than `OK`; 11 if more than
    /// [`ITEMS_MAX`](super::ITEMS_MAX) items were waiting. After the end of the
    /// input it stays pending.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        let Some(item) = self.within_timeout(|cx| self.inbox.poll_next(cx)).await? else {
            return Ok(None);
        };
        let unknown = |error| Error::new(ErrorCode::Crash, format!("unexpected item: {error}"));
        item.parse().map(Some).map_err(unknown)
    }

    /// Cancels the stream and waits for its end, which may have crossed the
    /// cancellation. Waiting items are dropped.
    ///
    /// # Errors
    /// 0 if no end came in time; the error that the other node has sent instead
    /// of an end.
    pub async fn cancel(self) -> Result<End, Error> {
        self.send_cancel();
        self.within_timeout(|cx| self.inbox.poll_end(cx)).await
    }

    async fn within_timeout<R>(
        &self,
        mut poll: impl FnMut(&Context<'_>) -> Poll<Result<R, Error>>,
    ) -> Result<R, Error> {
        let mut timeout = pin!(Sleep::new(Rc::clone(&self.core), self.timeout, false));
        poll_fn(|cx| match poll(cx) {
            Poll::Pending => timeout.as_mut().poll(cx).map(|()| {
                Err(Error::new(
                    ErrorCode::Timeout,
                    "no item of the stream came in time",
                ))
            }),
            ready => ready,
        })
        .await
    }
}

impl<T> ServerStream<T> {
    fn send_cancel(&self) {
        if self.inbox.has_ended() || self.core.has_ended() || self.is_cancelled.replace(true) {
            return;
        }
        if let Err(error) = self.core.send(
            &self.dest,
            wire::CANCEL,
            &Cancel {
                request_id: self.id,
            },
        ) {
            tracing::error!(%error, "cancel cannot be written");
        }
    }
}

impl<T> Drop for ServerStream<T> {
    fn drop(&mut self) {
        self.core.inboxes.borrow_mut().remove(&self.id);
        self.send_cancel();
    }
}

/// A bidirectional stream of another node. Dropping it sends the close, and does
/// not wait for its answer.
pub struct BidiStream<I, O> {
    core: Rc<Core>,
    dest: String,
    stream_id: String,
    timeout: Duration,
    is_open: bool,
    messages: PhantomData<fn(I) -> O>,
}

impl<I: Serialize, O: DeserializeOwned + 'static> BidiStream<I, O> {
    /// Sets the time that each answer may take, 1 s by default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the name that the other node gave the stream.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.stream_id
    }

    /// Sends a message and waits for its answer. Messages are sent one at a time,
    /// so they arrive in order.
    ///
    /// # Errors
    /// As for a [`Call`]. After error 0 or 13 it is unknown whether the message
    /// has arrived.
    pub async fn send(&mut self, message: &I) -> Result<O, Error> {
        let send = Send {
            stream_id: self.stream_id.clone(),
            data: message,
        };
        let Recv { data } = self.call(Body::new(wire::BIDI_SEND, &send)).await?;
        Ok(data)
    }

    /// Closes the stream and waits for its end.
    ///
    /// # Errors
    /// As for a [`Call`].
    pub async fn close(mut self) -> Result<End, Error> {
        self.is_open = false;
        self.call(self.closing()).await
    }

    fn call<R: FromReply>(&self, body: Result<Body, Error>) -> Call<R> {
        Call::new(Rc::clone(&self.core), &self.dest, body).timeout(self.timeout)
    }
}

impl<I, O> BidiStream<I, O> {
    fn closing(&self) -> Result<Body, Error> {
        Body::new(
            wire::BIDI_CLOSE,
            &StreamId {
                stream_id: self.stream_id.clone(),
            },
        )
    }
}

impl<I, O> Drop for BidiStream<I, O> {
    fn drop(&mut self) {
        if !self.is_open || self.core.has_ended() {
            return;
        }
        let deadline = self.core.call_deadline(RPC_TIMEOUT);
        let sent = self
            .closing()
            .and_then(|body| self.core.send_call(&self.dest, &body));
        let closed = sent.map(|id| self.core.calls.call_back(id, Some(deadline), |_| ()));
        match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "stream close not awaited"),
            Err(error) => tracing::warn!(%error, "stream cannot be closed"),
        }
    }
}
