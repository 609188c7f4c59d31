//! [`Pending`]: an operation that a store has accepted and not decided yet.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::Unavailable;

/// The outcome of an operation that the store has accepted, in the order of the calls.
/// Dropping it does not cancel the operation. Cancel-safe. It resolves without a runtime.
#[derive(Debug)]
pub struct Pending<T>(PendingState<T>);

#[derive(Debug)]
enum PendingState<T> {
    Ready(Option<Result<T, Unavailable>>),
    Waiting(oneshot::Receiver<Result<T, Unavailable>>),
}

/// Completes a [`Pending`]. Dropping it completes it with [`Unavailable`].
#[derive(Debug)]
pub struct Completer<T>(oneshot::Sender<Result<T, Unavailable>>);

impl<T> Pending<T> {
    /// Returns an outcome that is already decided.
    pub const fn ready(outcome: Result<T, Unavailable>) -> Self {
        Self(PendingState::Ready(Some(outcome)))
    }

    /// Returns an undecided outcome and its completer.
    #[must_use]
    pub fn new() -> (Completer<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        (Completer(sender), Self(PendingState::Waiting(receiver)))
    }
}

impl<T> Completer<T> {
    /// Decides the outcome.
    pub fn complete(self, outcome: Result<T, Unavailable>) {
        // The caller may have dropped its `Pending`; the operation stands.
        drop(self.0.send(outcome));
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = Result<T, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PendingState::Ready(outcome) => Poll::Ready(outcome.take().unwrap_or(Err(Unavailable))),
            // `try_recv` first: once a task has exhausted its budget, `poll` returns `Pending`
            // even if the outcome is there, and an effect of the outcome that arrives by
            // another channel must not overtake it.
            PendingState::Waiting(receiver) => match receiver.try_recv() {
                Ok(decided) => Poll::Ready(decided),
                Err(TryRecvError::Closed) => Poll::Ready(Err(Unavailable)),
                Err(TryRecvError::Empty) => Pin::new(receiver)
                    .poll(cx)
                    .map(|decided| decided.unwrap_or(Err(Unavailable))),
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
    async fn outcome_is_ready_for_a_task_without_budget() {
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
