//! Matching of replies to pending calls.
//!
//! [`Calls`] is plain data: it registers a call under an id, with an optional
//! deadline, and returns its waiter when the reply arrives, the deadline passes
//! or the link ends. [`Correlator`] shares one table between the tasks of a
//! thread, and adds callbacks and the future [`Call`].
//!
//! Invariant: an entry lives exactly as long as its call. It is removed when
//! the call completes, expires, fails or is cancelled, and when its [`Call`] is
//! dropped. No clock is read: times are arguments of any ordered type.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// The reason why a call ended without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The deadline passed.
    #[error("no reply came in time")]
    TimedOut,
    /// The link ended, or the call was cancelled.
    #[error("the connection closed before the reply")]
    Closed,
}

/// A pending call has this id already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a call with this id is already pending")]
pub struct DuplicateId;

/// Receives the outcome of a call.
type Callback<R> = Box<dyn FnOnce(Result<R, CallError>)>;

/// Tables with fewer entries keep their memory.
const SHRINK_ABOVE: usize = 1024;

/// The pending calls, by id and by deadline. `W` is the waiter of a call.
#[derive(Debug)]
pub struct Calls<I, T, W> {
    open: HashMap<I, (Option<T>, W)>,
    /// The calls with a deadline, in order of deadline.
    deadlines: BTreeSet<(T, I)>,
}

impl<I, T, W> Default for Calls<I, T, W> {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            deadlines: BTreeSet::new(),
        }
    }
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, W> Calls<I, T, W> {
    /// Returns the number of pending calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Returns whether no call is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns whether a call with this id is pending.
    #[must_use]
    pub fn contains(&self, id: &I) -> bool {
        self.open.contains_key(id)
    }

    /// Returns the earliest deadline of the pending calls.
    #[must_use]
    pub fn next_deadline(&self) -> Option<&T> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }

    /// Registers a call. Without a deadline it never expires.
    ///
    /// # Errors
    /// [`DuplicateId`] if a call with this id is pending; that call is kept.
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

    /// Removes a call and returns its waiter; `None` if it is not pending.
    pub fn remove(&mut self, id: &I) -> Option<W> {
        self.remove_if(id, |_| true)
    }

    /// As [`Self::remove`], but only if `is_wanted` accepts the waiter.
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

    /// Removes the call with the earliest deadline at or before `now`. Returns
    /// `None` if there is none; call it until then.
    pub fn expire_next(&mut self, now: &T) -> Option<(I, W)> {
        if self.next_deadline()? > now {
            return None;
        }
        let (_, id) = self.deadlines.pop_first()?;
        let (_, waiter) = self.open.remove(&id)?;
        self.shrink();
        Some((id, waiter))
    }

    /// Removes all calls, in arbitrary order.
    pub fn drain(&mut self) -> Vec<(I, W)> {
        self.deadlines.clear();
        std::mem::take(&mut self.open)
            .into_iter()
            .map(|(id, (_, waiter))| (id, waiter))
            .collect()
    }

    /// Releases memory after a burst. Amortized: the table halves each time.
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
            // Sending fails only if the receiver is dropped at this moment.
            Self::Future(sender) => drop(sender.send(outcome)),
            Self::Callback(callback) => callback(outcome),
        }
    }
}

/// The pending calls of one link, shared by the callers and the reader of
/// replies. Clones are handles to the same calls.
pub struct Correlator<I, T, R> {
    // Shared because dropping a `Call` removes its entry. Borrowed for one
    // operation on the tables, never while waiters run or are dropped.
    calls: Rc<RefCell<Calls<I, T, Waiter<R>>>>,
}

impl<I, T, R> Clone for Correlator<I, T, R> {
    fn clone(&self) -> Self {
        Self {
            calls: Rc::clone(&self.calls),
        }
    }
}

impl<I, T, R> Default for Correlator<I, T, R> {
    fn default() -> Self {
        Self {
            calls: Rc::default(),
        }
    }
}

impl<I, T, R> std::fmt::Debug for Correlator<I, T, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Correlator")
            .field("open", &self.borrow().open.len())
            .finish()
    }
}

impl<I, T, R> Correlator<I, T, R> {
    fn borrow(&self) -> RefMut<'_, Calls<I, T, Waiter<R>>> {
        self.calls.borrow_mut()
    }
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, R> Correlator<I, T, R> {
    /// Returns the number of pending calls.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.borrow().len()
    }

    /// Returns the earliest deadline of the pending calls, at which
    /// [`Self::expire`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<T> {
        self.borrow().next_deadline().cloned()
    }

    /// Registers a call and returns its future. Dropping the [`Call`] cancels
    /// it.
    ///
    /// # Errors
    /// [`DuplicateId`] if a call with this id is pending; that call is kept.
    pub fn call(&self, id: I, deadline: Option<T>) -> Result<Call<I, T, R>, DuplicateId> {
        let (sender, receiver) = oneshot::channel();
        self.register(id.clone(), deadline, Waiter::Future(sender))?;
        Ok(Call {
            id,
            calls: self.clone(),
            receiver,
        })
    }

    /// Registers a call whose outcome is passed to `callback` exactly once, by
    /// [`Self::complete`], [`Self::expire`] or [`Self::fail_all`]. The callback
    /// runs inside the call that ends it, and may register other calls.
    /// [`Self::cancel`] drops it without a call.
    ///
    /// # Errors
    /// [`DuplicateId`] if a call with this id is pending; that call is kept.
    pub fn call_back(
        &self,
        id: I,
        deadline: Option<T>,
        callback: impl FnOnce(Result<R, CallError>) + 'static,
    ) -> Result<(), DuplicateId> {
        self.register(id, deadline, Waiter::Callback(Box::new(callback)))
    }

    fn register(&self, id: I, deadline: Option<T>, waiter: Waiter<R>) -> Result<(), DuplicateId> {
        // A refused waiter may hold a `Call` of this same table, so it must not
        // be dropped during the borrow. Arguments are dropped after locals.
        let mut calls = self.borrow();
        if calls.contains(&id) {
            return Err(DuplicateId);
        }
        calls.register(id, deadline, waiter)
    }

    /// Ends a call with its reply.
    ///
    /// # Errors
    /// Returns the reply if no such call is pending: it is late, duplicate or
    /// unsolicited.
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

    /// Removes a call and returns whether it was pending. A [`Call`] that is
    /// still awaited resolves to [`CallError::Closed`].
    pub fn cancel(&self, id: &I) -> bool {
        let waiter = self.borrow().remove(id);
        waiter.is_some()
    }

    /// Ends every call with a deadline at or before `now` with
    /// [`CallError::TimedOut`], the earliest first, and returns their number.
    /// Calls that a callback registers meanwhile stay pending until the next
    /// call, even if they are due.
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

    /// Ends every call with [`CallError::Closed`] and returns their number.
    pub fn fail_all(&self) -> usize {
        let open = self.borrow().drain();
        let count = open.len();
        for (_, waiter) in open {
            waiter.end(Err(CallError::Closed));
        }
        count
    }

    /// Removes every call and drops the callbacks without calling them. A
    /// [`Call`] that is still awaited resolves to [`CallError::Closed`].
    pub fn clear(&self) {
        let open = self.borrow().drain();
        drop(open);
    }
}

/// The future of a pending call. Cancel-safe: it may be polled again after
/// `Pending`, and dropping it removes its entry.
#[derive(Debug)]
pub struct Call<I: Hash + Ord + Clone, T: Ord + Clone, R> {
    id: I,
    calls: Correlator<I, T, R>,
    receiver: oneshot::Receiver<Result<R, CallError>>,
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, R> Call<I, T, R> {
    /// Returns the id of the call.
    pub const fn id(&self) -> &I {
        &self.id
    }
}

impl<I: Hash + Ord + Clone + Unpin, T: Ord + Clone, R> Future for Call<I, T, R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(cx)
            .map(|ended| ended.unwrap_or(Err(CallError::Closed)))
    }
}

impl<I: Hash + Ord + Clone, T: Ord + Clone, R> Drop for Call<I, T, R> {
    fn drop(&mut self) {
        if self.receiver.is_terminated() {
            // The outcome was received, so the entry is already gone.
            return;
        }
        // Closing first marks this call's own entry: the id may by now belong
        // to another call.
        self.receiver.close();
        let abandoned =
            |waiter: &Waiter<R>| matches!(waiter, Waiter::Future(sender) if sender.is_closed());
        let waiter = self.calls.borrow().remove_if(&self.id, abandoned);
        drop(waiter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 100_000;

    /// Registers many calls, ends them by `end`, and checks that memory is
    /// released.
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
        assert!(
            calls.open.capacity() <= 2 * SHRINK_ABOVE,
            "{}",
            calls.open.capacity()
        );
    }

    #[test]
    fn burst_memory_is_released() {
        check_memory(|calls| (0..BURST).for_each(|id| assert_eq!(calls.remove(&id), Some(()))));
        check_memory(|calls| while calls.expire_next(&BURST).is_some() {});
        check_memory(|calls| assert_eq!(calls.drain().len(), BURST as usize));
    }

    #[test]
    fn burst_memory_is_released_in_few_steps() {
        let mut calls: Calls<u32, u32, ()> = Calls::default();
        for id in 0..BURST {
            assert_eq!(calls.register(id, None, ()), Ok(()));
        }
        let mut moved = 0;
        for id in 0..BURST {
            let before = calls.open.capacity();
            calls.remove(&id);
            // Removing an entry may leave a tombstone, which costs 1 of the
            // capacity. A larger change means that the table was moved.
            if calls.open.capacity().abs_diff(before) > 1 {
                moved += calls.len();
            }
        }
        assert!(moved <= BURST as usize, "{moved} entries were moved");
    }
}
