//! The tasks of a node, on one thread. They run in the order in which they were
//! woken, so the same input always gives the same order.
//!
//! If a task panics, only that task ends; its request is answered with error
//! 13.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};

use crate::core::Core;
use crate::request::Responder;

pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The maximum number of waiting tasks before requests are refused, which bounds
/// the memory that a peer can cost.
const TASKS_MAX: usize = 1 << 20;

/// The size of a table below which it keeps its memory.
const SHRINK_ABOVE: usize = 1024;

/// All tasks that wait, and the queue of those that can run.
#[derive(Default)]
pub(crate) struct Tasks {
    waiting: RefCell<HashMap<u64, Task>>,
    ready: Arc<Ready>,
    begun: Cell<u64>,
    /// The request for which code runs now.
    current: RefCell<Option<Responder>>,
    /// The task that runs now; `None` if it was aborted.
    running: Cell<Option<u64>>,
}

/// A handle to a task that [`Node::spawn`](crate::Node::spawn) has begun.
/// Dropping it does not end the task.
#[derive(Clone)]
pub struct AbortHandle {
    core: Rc<Core>,
    id: u64,
}

impl AbortHandle {
    pub(crate) const fn new(core: Rc<Core>, id: u64) -> Self {
        Self { core, id }
    }

    /// Ends the task at its current wait, and drops its future. Does nothing if
    /// the task has ended.
    pub fn abort(&self) {
        self.core.tasks.abort(self.id);
    }

    /// Returns whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.core.tasks.is_finished(self.id)
    }
}

struct Task {
    future: LocalFuture,
    responder: Option<Responder>,
    waker: Waker,
}

impl Tasks {
    /// Returns whether further requests must be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.borrow().len() >= TASKS_MAX
    }

    /// Begins a task when its turn comes, and returns its number.
    pub(crate) fn spawn(&self, future: LocalFuture, responder: Option<Responder>) -> u64 {
        let (id, task) = self.make(future, responder);
        self.waiting.borrow_mut().insert(id, task);
        self.ready.push(id);
        id
    }

    /// Drops a task; one that runs now is dropped at its next wait.
    fn abort(&self, id: u64) {
        if self.running.get() == Some(id) {
            self.running.set(None);
        }
        let task = self.waiting.borrow_mut().remove(&id);
        drop(task);
    }

    fn is_finished(&self, id: u64) -> bool {
        self.running.get() != Some(id) && !self.waiting.borrow().contains_key(&id)
    }

    /// Runs a task up to its first wait, now.
    pub(crate) fn begin(&self, future: LocalFuture, responder: Option<Responder>) {
        let (id, task) = self.make(future, responder);
        self.poll(id, task);
    }

    fn make(&self, future: LocalFuture, responder: Option<Responder>) -> (u64, Task) {
        let id = self.begun.get();
        self.begun.set(id + 1);
        let waker = Waker::from(Arc::new(TaskWaker {
            id,
            ready: Arc::clone(&self.ready),
        }));
        (
            id,
            Task {
                future,
                responder,
                waker,
            },
        )
    }

    /// Runs tasks in the order in which they were woken, until all wait.
    pub(crate) fn run(&self) {
        while let Some(id) = self.ready.pop() {
            // A task may be woken again after its end.
            let task = self.waiting.borrow_mut().remove(&id);
            if let Some(task) = task {
                self.poll(id, task);
            }
        }
        self.shrink();
    }

    fn poll(&self, id: u64, mut task: Task) {
        let mut cx = Context::from_waker(&task.waker);
        let outer = self.running.replace(Some(id));
        let polled = self.within(task.responder.clone(), || {
            task.future.as_mut().poll(&mut cx)
        });
        let is_aborted = self.running.replace(outer).is_none();
        if polled == Some(Poll::Pending) && !is_aborted {
            self.waiting.borrow_mut().insert(id, task);
        }
    }

    /// Returns the request for which code runs now.
    pub(crate) fn current(&self) -> Option<Responder> {
        self.current.borrow().clone()
    }

    /// Runs code of the program for a request. Returns `None` if it panicked;
    /// the request is answered with error 13 then.
    pub(crate) fn within<T>(
        &self,
        responder: Option<Responder>,
        code: impl FnOnce() -> T,
    ) -> Option<T> {
        let outer = self.current.replace(responder);
        // A panic leaves only the program's own state half done: its borrows
        // are released, and the other requests continue.
        let result = catch_unwind(AssertUnwindSafe(code));
        let responder = self.current.replace(outer);
        if result.is_err()
            && let Some(responder) = responder
        {
            responder.crashed();
        }
        result.ok()
    }

    /// As [`Self::within`], for a part of a task: a panic ends only that part.
    pub(crate) async fn alone<T>(
        &self,
        responder: Option<&Responder>,
        part: impl Future<Output = T>,
    ) -> Option<T> {
        let mut part = pin!(part);
        poll_fn(
            |cx| match self.within(responder.cloned(), || part.as_mut().poll(cx)) {
                Some(polled) => polled.map(Some),
                None => Poll::Ready(None),
            },
        )
        .await
    }

    /// Sets the signal for tasks that are woken by other threads. The first
    /// signal stays.
    pub(crate) fn on_wake(&self, signal: Box<dyn FnMut() + Send>) {
        let own = thread::current().id();
        self.ready.signal.get_or_init(|| Signal {
            own,
            run: Mutex::new(signal),
        });
    }

    fn shrink(&self) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.capacity() > SHRINK_ABOVE && waiting.len() < waiting.capacity() / 4 {
            let len = waiting.len();
            waiting.shrink_to(len * 2);
        }
    }

    /// Drops all tasks.
    pub(crate) fn clear(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        drop(waiting);
    }
}

/// The queue of tasks that can run. Wakers on other threads share it.
#[derive(Default)]
struct Ready {
    // A lock, since a future may be woken by another thread. Held for one
    // operation on the queue.
    queue: Mutex<VecDeque<u64>>,
    signal: OnceLock<Signal>,
}

/// The signal of other threads to the thread of the node.
struct Signal {
    own: ThreadId,
    // A lock, since several threads may wake tasks. Held for one signal.
    run: Mutex<Box<dyn FnMut() + Send>>,
}

impl Ready {
    fn push(&self, id: u64) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(id);
    }

    fn pop(&self) -> Option<u64> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let id = queue.pop_front();
        if queue.is_empty() && queue.capacity() > SHRINK_ABOVE {
            queue.shrink_to_fit();
        }
        id
    }
}

struct TaskWaker {
    id: u64,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.id);
        if let Some(signal) = self
            .ready
            .signal
            .get()
            .filter(|signal| signal.own != thread::current().id())
        {
            (signal.run.lock().unwrap_or_else(PoisonError::into_inner))();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_burst_is_given_back() {
        const BURST: usize = 100_000;
        let tasks = Tasks::default();
        let is_over = Rc::new(Cell::new(false));
        for _ in 0..BURST {
            let is_over = Rc::clone(&is_over);
            tasks.spawn(
                Box::pin(poll_fn(move |_| {
                    if is_over.get() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })),
                None,
            );
        }
        tasks.run();
        assert_eq!(tasks.waiting.borrow().len(), BURST);
        is_over.set(true);
        tasks
            .waiting
            .borrow()
            .values()
            .for_each(|task| task.waker.wake_by_ref());
        tasks.run();
        assert!(tasks.waiting.borrow().is_empty());
        let capacities = (
            tasks.waiting.borrow().capacity(),
            tasks.ready.queue.lock().unwrap().capacity(),
        );
        assert!(
            capacities.0 <= SHRINK_ABOVE && capacities.1 <= SHRINK_ABOVE,
            "{capacities:?}"
        );
    }
}
