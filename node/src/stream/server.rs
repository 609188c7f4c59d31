//! An open server stream: the items of its handler, and the reasons for its
//! end.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc::Receiver;

use super::IDLE_MAX;
use super::table::Sent;
use super::wire::{self, CANCELLED, End, Item, OK};
use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::request::Responder;
use crate::timers::Sleep;

/// The work of a handler for one stream.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

/// The output of the handler of a server stream.
pub struct Sink<T> {
    output: Rc<Output>,
    item: PhantomData<fn(T)>,
}

impl<T: Serialize> Sink<T> {
    pub(super) fn new(output: Rc<Output>) -> Self {
        Self {
            output,
            item: PhantomData,
        }
    }

    /// Sends the next item. It does not wait: items between two waits of the
    /// handler are held in memory until they are written.
    ///
    /// # Errors
    /// 13 if the item cannot be written; 14 if the stream has ended, which a
    /// handler sees only if its sink outlives it.
    pub fn send(&self, item: &T) -> Result<(), Error> {
        self.output.send(item)
    }
}

/// The items of a stream so far.
pub(super) struct Output {
    core: Rc<Core>,
    responder: Responder,
    count: Cell<u64>,
    /// The time of the last item, or of the beginning.
    sent_at: Cell<Duration>,
}

impl Output {
    pub(super) fn new(core: Rc<Core>, responder: Responder) -> Self {
        let sent_at = Cell::new(core.now());
        Self {
            core,
            responder,
            count: Cell::default(),
            sent_at,
        }
    }

    fn send(&self, data: &impl Serialize) -> Result<(), Error> {
        if !self.responder.is_open() {
            return Err(Error::new(ErrorCode::Abort, "the stream has ended"));
        }
        let seq = self.count.get() + 1;
        self.responder
            .reply_in_part(wire::ITEM, &Item { seq, data })?;
        self.count.set(seq);
        self.sent_at.set(self.core.now());
        Ok(())
    }

    /// Waits until the stream has been idle for too long.
    async fn idle(&self) {
        while let Some(left) = (self.sent_at.get() + IDLE_MAX).checked_sub(self.core.now())
            && !left.is_zero()
        {
            Sleep::new(Rc::clone(&self.core), left, false).await;
        }
    }
}

/// Runs the work until it is done, the client cancels, or the stream is idle for
/// too long. The rest of the work is dropped before this returns.
pub(super) async fn run(
    mut work: Work,
    mut input: Receiver<Sent>,
    output: Rc<Output>,
) -> Result<End, Error> {
    let mut idle = pin!(output.idle());
    let status = poll_fn(|cx| {
        // A client sends no message on a server stream, so its input only ends.
        if input.poll_recv(cx).is_ready() {
            return Poll::Ready(Ok(CANCELLED));
        }
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready(result.map(|()| OK));
        }
        let idle = idle.as_mut().poll(cx);
        idle.map(|()| {
            Err(Error::new(
                ErrorCode::Abort,
                "nothing was sent for too long",
            ))
        })
    })
    .await?;
    Ok(End::new(status, output.count.get()))
}
