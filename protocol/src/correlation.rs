//! Which reply belongs to which waiting call.
//!
//! [`Calls`] is plain data: it registers a call under an id, with a deadline
//! or none, and hands out whoever waits for it when the reply comes, when the
//! deadline has passed or when the link has ended. [`Correlator`] shares one
//! between the tasks of a thread and adds callbacks and the future, [`Call`].
//!
//! Invariant: an entry lives exactly as long as its call. It is gone after it
//! was completed, cancelled, expired or failed, and at once when the [`Call`]
//! that waits for it is dropped. No clock is read here: times are arguments,
//! and may be of any ordered type.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// Why a call ended without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The deadline passed first.
    #[error("no reply came in time")]
    TimedOut,
    /// The link ended first, or everything that waits was told to stop.
    #[error("the link ended before a reply came")]
    Closed,
}

/// The id is already under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a call with this id is already under way")]
pub struct DuplicateId;

/// What is done with the end of a call.
type Callback<R> = Box<dyn FnOnce(Result<R, CallError>)>;

/// Below this many entries the tables keep their memory.
const SHRINK_ABOVE: usize = 1024;

/// The open calls, by id and by deadline. `W` is whoever waits for one.
#[derive(Debug)]
pub struct Calls<I, T, W> {
    open: HashMap<I, (Option<T>, W)>,
    /// The same calls, those that have a deadline: the earliest is first.
    deadlines: BTreeSet<(T, I)>,
}

impl<I, T, W> Default for Calls<I, T, W> {
    fn default() -> Self {
        Self { open: HashMap::new(), deadlines: BTreeSet::new() }
    }
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, W> Calls<I, T, W> {
    /// The number of open calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no call is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether a call with this id is open.
    #[must_use]
    pub fn contains(&self, id: &I) -> bool {
        self.open.contains_key(id)
    }

    /// The earliest deadline of all open calls.
    #[must_use]
    pub fn next_deadline(&self) -> Option<&T> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }

    /// Opens a call. Without a deadline it never expires.
    ///
    /// # Errors
    /// [`DuplicateId`] where a call with this id is open; that one is kept.
    pub fn register(&mut self, id: I, deadline: Option<T>, waiter: W) -> Result<(), DuplicateId> {
        if self.contains(&id) {
            return Err(DuplicateId);
        }
        if let Some(deadline) = &deadline {
            self.deadlines.insert((deadline.clone(), id.clone()));
        }
        self.open.insert(id, (deadline, waiter));
        Ok(())
    }

    /// Ends a call, and yields who waits for it; `None` where it is not open.
    pub fn remove(&mut self, id: &I) -> Option<W> {
        self.remove_if(id, |_| true)
    }

    /// As [`Self::remove`], but only if who waits is as asked.
    pub fn remove_if(&mut self, id: &I, is_wanted: impl FnOnce(&W) -> bool) -> Option<W> {
        if !is_wanted(&self.open.get(id)?.1) {
            return None;
        }
        let (deadline, waiter) = self.open.remove(id)?;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id.clone()));
        }
        self.shrink();
        Some(waiter)
    }

    /// Ends one call whose deadline is `now` or before, the earliest; `None`
    /// where there is none. Call until then.
    pub fn expire_next(&mut self, now: &T) -> Option<(I, W)> {
        if self.next_deadline()? > now {
            return None;
        }
        let (_, id) = self.deadlines.pop_first()?;
        let (_, waiter) = self.open.remove(&id)?;
        self.shrink();
        Some((id, waiter))
    }

    /// Ends all calls, in no particular order.
    pub fn drain(&mut self) -> Vec<(I, W)> {
        self.deadlines.clear();
        std::mem::take(&mut self.open).into_iter().map(|(id, (_, waiter))| (id, waiter)).collect()
    }

    /// Gives memory back after a burst. Amortised: the table halves each time.
    fn shrink(&mut self) {
        if self.open.capacity() > SHRINK_ABOVE && self.open.len() < self.open.capacity() / 4 {
            self.open.shrink_to(self.open.len() * 2);
        }
    }
}

enum Waiter<R> {
    Future(oneshot::Sender<Result<R, CallError>>),
    Callback(Callback<R>),
}

impl<R> Waiter<R> {
    fn end(self, outcome: Result<R, CallError>) {
        match self {
            // A receiver that is gone has been dropped in this very moment,
            // and nobody is left to be told.
            Self::Future(sender) => drop(sender.send(outcome)),
            Self::Callback(callback) => callback(outcome),
        }
    }
}

/// The open calls of one link, shared by who calls and who reads the replies.
/// Clones are handles to the same calls.
pub struct Correlator<I, T, R> {
    // Shared, since `Drop` of a call must remove it at once. Borrowed for one
    // operation on the tables, and never while waiters run or are dropped.
    calls: Rc<RefCell<Calls<I, T, Waiter<R>>>>,
}

impl<I, T, R> Clone for Correlator<I, T, R> {
    fn clone(&self) -> Self {
        Self { calls: Rc::clone(&self.calls) }
    }
}

impl<I, T, R> Default for Correlator<I, T, R> {
    fn default() -> Self {
        Self { calls: Rc::default() }
    }
}

impl<I, T, R> std::fmt::Debug for Correlator<I, T, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Correlator").field("open", &self.borrow().open.len()).finish()
    }
}

impl<I, T, R> Correlator<I, T, R> {
    fn borrow(&self) -> RefMut<'_, Calls<I, T, Waiter<R>>> {
        self.calls.borrow_mut()
    }
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, R> Correlator<I, T, R> {
    /// The number of open calls.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.borrow().len()
    }

    /// The earliest deadline of all open calls: when [`Self::expire`] has
    /// something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<T> {
        self.borrow().next_deadline().cloned()
    }

    /// Opens a call that is awaited. Dropping the [`Call`] cancels it.
    ///
    /// # Errors
    /// [`DuplicateId`] where a call with this id is open; that one is kept.
    pub fn call(&self, id: I, deadline: Option<T>) -> Result<Call<I, T, R>, DuplicateId> {
        let (sender, receiver) = oneshot::channel();
        self.register(id.clone(), deadline, Waiter::Future(sender))?;
        Ok(Call { id, calls: self.clone(), receiver })
    }

    /// Opens a call whose end is passed to `callback`, exactly once: by
    /// [`Self::complete`], [`Self::expire`] or [`Self::fail_all`]. It runs at
    /// once, within what ends the call, and may open others. [`Self::cancel`]
    /// drops it without calling it.
    ///
    /// # Errors
    /// [`DuplicateId`] where a call with this id is open; that one is kept.
    pub fn call_back(
        &self,
        id: I,
        deadline: Option<T>,
        callback: impl FnOnce(Result<R, CallError>) + 'static,
    ) -> Result<(), DuplicateId> {
        self.register(id, deadline, Waiter::Callback(Box::new(callback)))
    }

    fn register(&self, id: I, deadline: Option<T>, waiter: Waiter<R>) -> Result<(), DuplicateId> {
        // A refused waiter must not be dropped under the borrow, since it may
        // hold a `Call` of these same calls. An argument outlives a local.
        let mut calls = self.borrow();
        if calls.contains(&id) {
            return Err(DuplicateId);
        }
        calls.register(id, deadline, waiter)
    }

    /// Ends a call with its reply. Gives the reply back where no such call is
    /// open: it is late, a double, or nobody asked.
    ///
    /// # Errors
    /// The reply itself.
    pub fn complete(&self, id: &I, reply: R) -> Result<(), R> {
        let waiter = self.borrow().remove(id);
        match waiter {
            Some(waiter) => {
                waiter.end(Ok(reply));
                Ok(())
            }
            None => Err(reply),
        }
    }

    /// Ends a call without a reply; whether it was open. A [`Call`] that is
    /// still awaited yields [`CallError::Closed`].
    pub fn cancel(&self, id: &I) -> bool {
        let waiter = self.borrow().remove(id);
        waiter.is_some()
    }

    /// Ends every call whose deadline is `now` or before, the earliest first,
    /// with [`CallError::TimedOut`]. Returns how many. What a callback opens
    /// meanwhile is left for the next time, even if it is due already.
    pub fn expire(&self, now: &T) -> usize {
        let due: Vec<_> = {
            let mut calls = self.borrow();
            std::iter::from_fn(|| calls.expire_next(now)).collect()
        };
        let count = due.len();
        for (_, waiter) in due {
            waiter.end(Err(CallError::TimedOut));
        }
        count
    }

    /// Ends every call with [`CallError::Closed`]. Returns how many.
    pub fn fail_all(&self) -> usize {
        let open = self.borrow().drain();
        let count = open.len();
        for (_, waiter) in open {
            waiter.end(Err(CallError::Closed));
        }
        count
    }

    /// Ends every call and tells nobody: callbacks are dropped. A [`Call`] that
    /// is still awaited yields [`CallError::Closed`].
    pub fn clear(&self) {
        let open = self.borrow().drain();
        drop(open);
    }
}

/// A call that waits for its reply. Cancel-safe: polling it again after it was
/// not ready loses nothing, and dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Call<I: Hash + Ord + Clone, T: Ord + Clone, R> {
    id: I,
    calls: Correlator<I, T, R>,
    receiver: oneshot::Receiver<Result<R, CallError>>,
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, R> Call<I, T, R> {
    /// The id under which the call is open.
    pub const fn id(&self) -> &I {
        &self.id
    }
}

impl<I: Hash + Ord + Clone + Unpin, T: Ord + Clone, R> Future for Call<I, T, R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx).map(|ended| ended.unwrap_or(Err(CallError::Closed)))
    }
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, R> Drop for Call<I, T, R> {
    fn drop(&mut self) {
        if self.receiver.is_terminated() {
            // It has yielded its end, and its entry went before that.
            return;
        }
        // Closing first marks this call's own entry: the id may have ended in
        // this very moment and belong to another call by now.
        self.receiver.close();
        let abandoned = |waiter: &Waiter<R>| matches!(waiter, Waiter::Future(sender) if sender.is_closed());
        let waiter = self.calls.borrow().remove_if(&self.id, abandoned);
        drop(waiter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 100_000;

    /// Opens many calls, ends them by `end`, and finds the memory given back.
    #[track_caller]
    fn check_memory(end: impl FnOnce(&mut Calls<u32, u32, ()>)) {
        let mut calls = Calls::default();
        for id in 0..BURST {
            assert_eq!(calls.register(id, Some(id), ()), Ok(()));
        }
        assert!(calls.open.capacity() >= BURST as usize);
        end(&mut calls);
        assert!(calls.is_empty());
        assert_eq!(calls.next_deadline(), None);
        assert!(calls.open.capacity() <= 2 * SHRINK_ABOVE, "{}", calls.open.capacity());
    }

    #[test]
    fn the_memory_of_a_burst_is_given_back_however_it_ends() {
        check_memory(|calls| (0..BURST).for_each(|id| assert_eq!(calls.remove(&id), Some(()))));
        check_memory(|calls| while calls.expire_next(&BURST).is_some() {});
        check_memory(|calls| assert_eq!(calls.drain().len(), BURST as usize));
    }

    #[test]
    fn a_burst_is_given_back_in_few_steps() {
        let mut calls: Calls<u32, u32, ()> = Calls::default();
        for id in 0..BURST {
            assert_eq!(calls.register(id, None, ()), Ok(()));
        }
        let mut moved = 0;
        for id in 0..BURST {
            let before = calls.open.capacity();
            calls.remove(&id);
            // An entry that leaves a mark behind takes one off the capacity;
            // more than that is a table that was moved.
            if calls.open.capacity().abs_diff(before) > 1 {
                moved += calls.len();
            }
        }
        assert!(moved <= BURST as usize, "{moved} entries were moved");
    }
}
