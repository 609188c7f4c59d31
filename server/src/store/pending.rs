//! [`Pending`]: what a store has taken on and has not decided yet.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::Unavailable;

/// The outcome of an operation that the store has already taken on, in the
/// order of the calls. Dropping it changes nothing: the operation goes on.
/// Cancel-safe. It needs no runtime to resolve, only to be awaited.
#[derive(Debug)]
pub struct Pending<T>(State<T>);

#[derive(Debug)]
enum State<T> {
    Ready(Option<Result<T, Unavailable>>),
    Waiting(oneshot::Receiver<Result<T, Unavailable>>),
}

/// Completes a [`Pending`]. Dropping it completes it with [`Unavailable`].
#[derive(Debug)]
pub struct Completer<T>(oneshot::Sender<Result<T, Unavailable>>);

impl<T> Pending<T> {
    /// An outcome that is there already.
    pub const fn ready(outcome: Result<T, Unavailable>) -> Self {
        Self(State::Ready(Some(outcome)))
    }

    /// An outcome to be decided, and what decides it.
    #[must_use]
    pub fn new() -> (Completer<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        (Completer(sender), Self(State::Waiting(receiver)))
    }
}

impl<T> Completer<T> {
    /// Decides the outcome, once and for all.
    pub fn complete(self, outcome: Result<T, Unavailable>) {
        // Whoever asked may have gone; the operation stands all the same.
        drop(self.0.send(outcome));
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = Result<T, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(outcome) => Poll::Ready(outcome.take().unwrap_or(Err(Unavailable))),
            // Looked at first, since the runtime lets a task that has had its share
            // wait for what is there already: what follows from the outcome, and
            // comes another way, must not come before it.
            State::Waiting(receiver) => match receiver.try_recv() {
                Ok(decided) => Poll::Ready(decided),
                Err(TryRecvError::Closed) => Poll::Ready(Err(Unavailable)),
                Err(TryRecvError::Empty) => {
                    Pin::new(receiver).poll(cx).map(|decided| decided.unwrap_or(Err(Unavailable)))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::ready;

    use tokio::task::coop;

    use super::*;

    #[tokio::test]
    async fn what_is_decided_is_there_for_a_task_that_has_had_its_share_of_time() {
        let (completer, mut pending) = Pending::new();
        completer.complete(Ok(7));
        let polled = poll_fn(|cx| {
            while coop::has_budget_remaining() {
                ready!(coop::poll_proceed(cx)).made_progress();
            }
            Poll::Ready(Pin::new(&mut pending).poll(cx))
        });
        assert_eq!(polled.await, Poll::Ready(Ok(7)));
    }
}
