//! Who is to be woken when. It reads no clock.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::core::Core;

/// The times at which a waker is due; those of one time in the order in which
/// they were set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<Key, Timer>,
    set: u64,
}

/// When, and the how many-th timer it is.
type Key = (Duration, u64);

#[derive(Debug)]
struct Timer {
    waker: Waker,
    /// It is waited for after the end of the input.
    keeps_alive: bool,
}

impl Timers {
    fn set(&mut self, at: Duration, timer: Timer) -> Key {
        self.set += 1;
        let key = (at, self.set);
        self.due.insert(key, timer);
        key
    }

    /// Takes the wakers of what is due, the earliest first.
    pub(crate) fn take_due(&mut self, now: Duration) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove().waker);
        }
        due
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.due.first_key_value().map(|(key, _)| key.0)
    }

    /// Forgets what nobody waits for after the end of the input.
    pub(crate) fn end(&mut self) {
        self.due.retain(|_, timer| timer.keeps_alive);
    }
}

/// Waits for a time, at least until all else that can run now has run. Dropping
/// it leaves nothing behind.
#[must_use = "a future does nothing unless it is awaited"]
pub(crate) struct Sleep {
    core: Rc<Core>,
    until: Duration,
    keeps_alive: bool,
    key: Option<Key>,
}

impl Sleep {
    /// A wait that begins now.
    pub(crate) fn new(core: Rc<Core>, wait: Duration, keeps_alive: bool) -> Self {
        let until = core.now().saturating_add(wait);
        Self { core, until, keeps_alive, key: None }
    }

    /// Whether it was set.
    fn unset(&mut self) -> bool {
        let Some(key) = self.key.take() else { return false };
        // The waker is dropped outside of the borrow.
        let timer = self.core.timers.borrow_mut().due.remove(&key);
        drop(timer);
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
        // A loop of waits of no time would hold up the node.
        if was_set && self.core.now() >= self.until {
            return Poll::Ready(());
        }
        let timer = Timer { waker: cx.waker().clone(), keeps_alive: self.keeps_alive };
        let key = self.core.timers.borrow_mut().set(self.until, timer);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unset();
    }
}
