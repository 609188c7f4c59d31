//! An open bidirectional stream: one task owns the state of the service, takes
//! its messages one after the other, and answers each.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Receiver;

use super::IDLE_MAX;
use super::table::{Entry, Sent};
use super::wire::{self, End, OK, Recv};
use crate::error::{Error, ErrorCode};
use crate::node::Node;
use crate::tasks::LocalFuture;
use crate::timers::Sleep;

/// The state of one bidirectional stream, with the handlers of its service. It
/// is dropped when the stream ends for any reason.
pub trait Bidi<S>: 'static {
    /// The messages of the client.
    type In: DeserializeOwned;
    /// The answers to them.
    type Out: Serialize;

    /// Answers a message. An error is sent to the client, and the stream
    /// continues. The next message of this stream waits until this one is
    /// answered; other streams do not.
    fn receive(
        &mut self,
        node: &Node<S>,
        message: Self::In,
    ) -> impl Future<Output = Result<Self::Out, Error>>;

    /// Runs when the client has closed the stream and all its messages are
    /// answered. An error is sent instead of the end. A stream that was idle for
    /// too long is dropped without this.
    fn close(&mut self, _: &Node<S>) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }
}

/// A stream that is ready for its first message.
pub(super) type Conversation = Box<dyn FnOnce(Entry, Receiver<Sent>) -> LocalFuture>;

/// Runs a stream from its opening to its end.
pub(super) async fn run<S: 'static, B: Bidi<S>>(
    node: Node<S>,
    mut service: B,
    entry: Entry,
    mut input: Receiver<Sent>,
) {
    let (tasks, mut count) = (&node.core().tasks, 0);
    while let Some(Sent { data, responder }) = next(&node, &mut input).await {
        let answer = async {
            let message = data.parse().map_err(|error| Error::malformed(&error))?;
            count += 1;
            let data = service.receive(&node, message).await?;
            responder.reply_as(wire::BIDI_RECV, &Recv { data });
            Ok(())
        };
        match tasks.alone(Some(&responder), answer).await {
            Some(Ok(())) => {}
            Some(Err(error)) => responder.fail(&error),
            None => return abort(&entry, input),
        }
    }
    // Without a closer the stream was idle for too long.
    if let Some(closer) = entry.take_closer() {
        match tasks.alone(Some(&closer), service.close(&node)).await {
            Some(Ok(())) => closer.reply_as(wire::END, &End::new(OK, count)),
            Some(Err(error)) => closer.fail(&error),
            // It was answered when it panicked.
            None => {}
        }
    }
}

/// Returns the next message; `None` if no more can come.
async fn next<S: 'static>(node: &Node<S>, input: &mut Receiver<Sent>) -> Option<Sent> {
    let mut idle = pin!(Sleep::new(Rc::clone(node.core()), IDLE_MAX, false));
    poll_fn(|cx| match input.poll_recv(cx) {
        Poll::Pending => idle.as_mut().poll(cx).map(|()| None),
        received => received,
    })
    .await
}

/// Answers the messages that waited for a service that has panicked.
fn abort(entry: &Entry, mut input: Receiver<Sent>) {
    let error = Error::new(
        ErrorCode::Abort,
        "the stream has ended: its service has panicked",
    );
    while let Ok(sent) = input.try_recv() {
        sent.responder.fail(&error);
    }
    if let Some(closer) = entry.take_closer() {
        closer.fail(&error);
    }
}
