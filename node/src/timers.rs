//! Timers: the tasks to wake, by time. It reads no clock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::core::Core;

/// The timers that are set, by their time; those with equal times are in the
/// order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<Key, Entry>,
    set: u64,
}

/// The time of a timer, and its number.
type Key = (Duration, u64);

#[derive(Debug)]
struct Entry {
    waker: Waker,
    /// The node waits for it after the end of the input.
    keeps_alive: bool,
}

impl Timers {
    fn set(&mut self, at: Duration, entry: Entry) -> Key {
        self.set += 1;
        let key = (at, self.set);
        self.due.insert(key, entry);
        key
    }

    /// Takes the wakers that are due, the earliest first.
    pub(crate) fn take_due(&mut self, now: Duration) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove().waker);
        }
        due
    }

    /// Returns the time of the earliest timer.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.due.first_key_value().map(|(key, _)| key.0)
    }

    /// Drops the timers that do not keep the node alive.
    pub(crate) fn end(&mut self) {
        self.due.retain(|_, entry| entry.keeps_alive);
    }
}

/// A wait until a time, and at least until all other tasks that can run have
/// run. Dropping it leaves nothing behind.
#[must_use = "a future does nothing unless it is awaited"]
pub(crate) struct Sleep {
    core: Rc<Core>,
    until: Duration,
    keeps_alive: bool,
    key: Option<Key>,
}

impl Sleep {
    /// Returns a wait that begins now.
    pub(crate) fn new(core: Rc<Core>, wait: Duration, keeps_alive: bool) -> Self {
        let until = core.now().saturating_add(wait);
        Self {
            core,
            until,
            keeps_alive,
            key: None,
        }
    }

    /// Removes its timer. Returns whether there was one.
    fn unset(&mut self) -> bool {
        let Some(key) = self.key.take() else {
            return false;
        };
        // The waker is dropped outside of the borrow.
        let entry = self.core.timers.borrow_mut().due.remove(&key);
        drop(entry);
        true
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let was_set = self.unset();
        if self.core.has_ended() && !self.keeps_alive {
            return Poll::Pending;
        }
        // A loop of waits of zero length would block the node.
        if was_set && self.core.now() >= self.until {
            return Poll::Ready(());
        }
        let entry = Entry {
            waker: cx.waker().clone(),
            keeps_alive: self.keeps_alive,
        };
        let key = self.core.timers.borrow_mut().set(self.until, entry);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unset();
    }
}

/// A timer that can be reset while a task waits for it, such as an election
/// timeout. Clones are handles to the same timer. After the end of the input it
/// never fires.
///
/// ```
/// # use std::time::Duration;
/// # use hark_node::{Node, Request, Timer};
/// const TIMEOUT: Duration = Duration::from_millis(500);
///
/// fn program(node: &Node<()>) {
///     let timer = node.timer(TIMEOUT);
///     let heartbeats = timer.clone();
///     node.receive("heartbeat", async move |_, _: Request<()>| heartbeats.reset(TIMEOUT));
///     node.on_init(async move |_| {
///         timer.reset(TIMEOUT);
///         loop {
///             timer.fired().await;
///             // No heartbeat came for 500 ms.
///             timer.reset(TIMEOUT);
///         }
///     });
/// }
/// ```
#[derive(Clone)]
pub struct Timer {
    core: Rc<Core>,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    /// `None` if the timer has fired or was stopped.
    due: Cell<Option<Duration>>,
    /// The waiting tasks, which are woken if the timer will fire earlier.
    waiting: RefCell<BTreeMap<u64, Option<Waker>>>,
    waits: Cell<u64>,
}

impl Timer {
    pub(crate) fn new(core: Rc<Core>, after: Duration) -> Self {
        let timer = Self {
            core,
            state: Rc::default(),
        };
        timer.reset(after);
        timer
    }

    /// Makes the timer fire after this time from now, instead of when it was
    /// due.
    pub fn reset(&self, after: Duration) {
        let due = self.core.now().saturating_add(after);
        let before = self.state.due.replace(Some(due));
        // A task that waits for an earlier time sees the new one when it wakes.
        if before.is_none_or(|before| due < before) {
            self.wake();
        }
    }

    /// Stops the timer until it is reset.
    pub fn stop(&self) {
        self.state.due.set(None);
    }

    /// Returns whether the timer will fire.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.state.due.get().is_some()
    }

    /// Waits until the timer fires, which stops it. If several tasks wait, one
    /// sees it. Cancel-safe.
    pub async fn fired(&self) {
        loop {
            let now = self.core.now();
            match self.state.due.get() {
                Some(due) if due <= now => {
                    self.state.due.set(None);
                    return;
                }
                due => self.wait(due.map(|due| due.saturating_sub(now))).await,
            }
        }
    }

    /// Waits for this time or until the timer is reset to an earlier one.
    async fn wait(&self, time: Option<Duration>) {
        let mut sleep = time.map(|time| Box::pin(Sleep::new(Rc::clone(&self.core), time, false)));
        let waiting = Waiting::new(&self.state);
        poll_fn(|cx| {
            let is_due = sleep
                .as_mut()
                .is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
            if is_due || waiting.is_over(cx.waker()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn wake(&self) {
        let waiting = self.state.waiting.take();
        waiting.into_values().flatten().for_each(Waker::wake);
    }
}

/// A task that waits for a timer. Dropping it leaves nothing behind.
struct Waiting<'a> {
    state: &'a State,
    id: u64,
}

impl<'a> Waiting<'a> {
    fn new(state: &'a State) -> Self {
        let id = state.waits.get();
        state.waits.set(id + 1);
        state.waiting.borrow_mut().insert(id, None);
        Self { state, id }
    }

    /// Returns whether the timer was reset to an earlier time; if not, such a
    /// reset wakes the waker.
    fn is_over(&self, waker: &Waker) -> bool {
        let mut waiting = self.state.waiting.borrow_mut();
        let Some(slot) = waiting.get_mut(&self.id) else {
            return true;
        };
        *slot = Some(waker.clone());
        false
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.state.waiting.borrow_mut().remove(&self.id);
    }
}
