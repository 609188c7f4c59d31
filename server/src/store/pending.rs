//! [`Pending`]: what a store has taken on and has not decided yet.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

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

/// Decides a [`Pending`]. Dropping it decides [`Unavailable`].
#[derive(Debug)]
pub struct Decide<T>(oneshot::Sender<Result<T, Unavailable>>);

impl<T> Pending<T> {
    /// An outcome that is there already.
    pub const fn ready(outcome: Result<T, Unavailable>) -> Self {
        Self(State::Ready(Some(outcome)))
    }

    /// An outcome to be decided, and what decides it.
    #[must_use]
    pub fn new() -> (Decide<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        (Decide(sender), Self(State::Waiting(receiver)))
    }
}

impl<T> Decide<T> {
    /// Decides the outcome, once and for all.
    pub fn decide(self, outcome: Result<T, Unavailable>) {
        // Whoever asked may have gone; the operation stands all the same.
        drop(self.0.send(outcome));
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = Result<T, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(outcome) => Poll::Ready(outcome.take().unwrap_or(Err(Unavailable))),
            State::Waiting(receiver) => {
                Pin::new(receiver).poll(cx).map(|decided| decided.unwrap_or(Err(Unavailable)))
            }
        }
    }
}
