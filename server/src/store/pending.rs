//! [`Pending`]: an operation that a store has accepted and not decided yet.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::Unavailable;
use crate::sync::Mutex;

/// The outcomes of a burst that share one allocation.
const GROUP_OUTCOMES: usize = 8;

/// The outcome of an operation that the store has accepted, in the order of the calls.
/// Dropping it does not cancel the operation. Cancel-safe. It resolves without a runtime.
#[derive(Debug)]
pub struct Pending<T>(PendingState<T>);

#[derive(Debug)]
enum PendingState<T> {
    Ready(Option<Result<T, Unavailable>>),
    Waiting(oneshot::Receiver<Result<T, Unavailable>>),
    /// In a group, at this index.
    Grouped(Arc<OutcomeGroup<T>>, usize),
}

/// Completes a [`Pending`]. Dropping it completes it with [`Unavailable`].
#[derive(Debug)]
pub struct Completer<T>(CompleterKind<T>);

#[derive(Debug)]
enum CompleterKind<T> {
    Single(oneshot::Sender<Result<T, Unavailable>>),
    Grouped(GroupCompleter<T>),
}

/// Creates the outcomes of a burst of operations, several in one allocation: threads of
/// the caller and of the store exchange few cache lines.
#[derive(Debug)]
pub struct PendingBurst<T> {
    /// The latest group, and the number of its outcomes that are in use.
    group: Option<(Arc<OutcomeGroup<T>>, usize)>,
}

/// Some outcomes of a burst.
#[derive(Debug)]
struct OutcomeGroup<T> {
    // A lock, because the store completes the outcomes that the caller polls. Held for one
    // outcome.
    outcomes: Mutex<[GroupedOutcome<T>; GROUP_OUTCOMES]>,
}

#[derive(Debug)]
enum GroupedOutcome<T> {
    Undecided(Option<Waker>),
    Decided(Result<T, Unavailable>),
}

/// Completes one outcome of a group.
#[derive(Debug)]
struct GroupCompleter<T> {
    /// `None` once it is completed.
    group: Option<Arc<OutcomeGroup<T>>>,
    index: usize,
}

impl<T> Pending<T> {
    /// Returns an outcome that is already decided.
    pub const fn ready(outcome: Result<T, Unavailable>) -> Self {
        Self(PendingState::Ready(Some(outcome)))
    }

    /// Returns an undecided outcome and its completer.
    #[must_use]
    pub fn new() -> (Completer<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        let completer = Completer(CompleterKind::Single(sender));
        (completer, Self(PendingState::Waiting(receiver)))
    }
}

impl<T> Default for PendingBurst<T> {
    fn default() -> Self {
        Self { group: None }
    }
}

impl<T> PendingBurst<T> {
    /// Returns the next undecided outcome and its completer.
    pub fn next_outcome(&mut self) -> (Completer<T>, Pending<T>) {
        let (group, used) = self
            .group
            .take_if(|(_, used)| *used < GROUP_OUTCOMES)
            .unwrap_or_default();
        let completer = GroupCompleter {
            group: Some(Arc::clone(&group)),
            index: used,
        };
        self.group = Some((Arc::clone(&group), used + 1));
        (
            Completer(CompleterKind::Grouped(completer)),
            Pending(PendingState::Grouped(group, used)),
        )
    }
}

impl<T> Default for OutcomeGroup<T> {
    fn default() -> Self {
        Self {
            outcomes: Mutex::new([const { GroupedOutcome::Undecided(None) }; GROUP_OUTCOMES]),
        }
    }
}

impl<T> OutcomeGroup<T> {
    /// Takes an outcome, or registers the waker for it.
    fn poll(&self, index: usize, cx: &Context<'_>) -> Poll<Result<T, Unavailable>> {
        let mut outcomes = self.outcomes.lock();
        let Some(outcome) = outcomes.get_mut(index) else {
            return Poll::Ready(Err(Unavailable));
        };
        match outcome {
            GroupedOutcome::Undecided(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            GroupedOutcome::Decided(_) => {
                match std::mem::replace(outcome, GroupedOutcome::Undecided(None)) {
                    GroupedOutcome::Decided(decided) => Poll::Ready(decided),
                    GroupedOutcome::Undecided(_) => Poll::Pending,
                }
            }
        }
    }

    fn complete(&self, index: usize, decided: Result<T, Unavailable>) {
        let mut outcomes = self.outcomes.lock();
        let outcome = outcomes.get_mut(index);
        let before =
            outcome.map(|outcome| std::mem::replace(outcome, GroupedOutcome::Decided(decided)));
        drop(outcomes);
        if let Some(GroupedOutcome::Undecided(Some(waker))) = before {
            waker.wake();
        }
    }
}

impl<T> GroupCompleter<T> {
    fn complete(&mut self, outcome: Result<T, Unavailable>) {
        if let Some(group) = self.group.take() {
            group.complete(self.index, outcome);
        }
    }
}

impl<T> Drop for GroupCompleter<T> {
    fn drop(&mut self) {
        self.complete(Err(Unavailable));
    }
}

impl<T> Completer<T> {
    /// Decides the outcome.
    pub fn complete(self, outcome: Result<T, Unavailable>) {
        // The caller may have dropped its `Pending`; the operation stands.
        match self.0 {
            CompleterKind::Single(sender) => drop(sender.send(outcome)),
            CompleterKind::Grouped(mut completer) => completer.complete(outcome),
        }
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
            PendingState::Grouped(group, index) => {
                let polled = group.poll(*index, cx);
                if polled.is_ready() {
                    self.0 = PendingState::Ready(None);
                }
                polled
            }
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
    async fn outcomes_of_a_burst_are_decided_one_by_one() {
        let mut burst = PendingBurst::default();
        let (mut completers, pending): (Vec<_>, Vec<_>) = (0..2 * GROUP_OUTCOMES + 1)
            .map(|_| burst.next_outcome())
            .unzip();
        drop(completers.remove(3));
        let all = tokio::spawn(futures::future::join_all(pending));
        tokio::task::yield_now().await;
        for (number, completer) in completers.into_iter().enumerate().rev() {
            completer.complete(Ok(number));
        }
        let mut expected: Vec<_> = (0..2 * GROUP_OUTCOMES).map(Ok).collect();
        expected.insert(3, Err(Unavailable));
        assert_eq!(all.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn outcome_is_ready_for_a_task_without_budget() {
        check_without_budget(Pending::new()).await;
        check_without_budget(PendingBurst::default().next_outcome()).await;
    }

    async fn check_without_budget((completer, mut pending): (Completer<u32>, Pending<u32>)) {
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
