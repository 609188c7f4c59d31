//! Which reply of the engine belongs to which request. It knows subjects and
//! numbers, and nothing of what is asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Message;
use tokio::sync::{mpsc, oneshot};

/// Who waits for which reply. Every wait has an owner, which takes its entry
/// away when it ends, whether or not a reply has come.
#[derive(Debug)]
pub(super) struct Replies {
    /// The subject of replies is this and a number.
    prefix: String,
    next: AtomicU64,
    // A lock, since replies come on one task and are awaited on many. It is held
    // for one operation on the map.
    waiting: Mutex<HashMap<u64, Waiter>>,
}

#[derive(Debug)]
enum Waiter {
    /// For the first reply.
    First(oneshot::Sender<Message>),
    /// For all of them.
    // Unbounded: a page has as many replies as messages were asked for, and one.
    Each(mpsc::UnboundedSender<Message>),
}

/// The wait of one, and where replies come.
pub(super) struct Waiting<'a, R> {
    replies: &'a Replies,
    number: u64,
    pub(super) reply: R,
}

impl Replies {
    /// Of replies whose subjects begin with this.
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// All the subjects of replies.
    pub(super) fn subjects(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// A wait for the first reply.
    pub(super) fn wait_for_first(&self) -> Waiting<'_, oneshot::Receiver<Message>> {
        let (sender, reply) = oneshot::channel();
        self.wait(Waiter::First(sender), reply)
    }

    /// A wait for all replies.
    pub(super) fn wait_for_each(&self) -> Waiting<'_, mpsc::UnboundedReceiver<Message>> {
        let (sender, reply) = mpsc::unbounded_channel();
        self.wait(Waiter::Each(sender), reply)
    }

    fn wait<R>(&self, waiter: Waiter, reply: R) -> Waiting<'_, R> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, waiter);
        Waiting { replies: self, number, reply }
    }

    /// Gives a message to whoever waits for it.
    pub(super) fn pass(&self, message: Message) {
        let number = message.subject.strip_prefix(&self.prefix).and_then(|number| number.parse().ok());
        let Some(number) = number else { return };
        // Where nobody waits any more it has come too late.
        let mut waiting = self.lock();
        if let Some(Waiter::Each(sender)) = waiting.get(&number) {
            drop(sender.send(message));
        } else if let Some(Waiter::First(sender)) = waiting.remove(&number) {
            drop(sender.send(message));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        // Nothing panics while the lock is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Waiting<'_, R> {
    /// Where its replies are to go.
    pub(super) fn subject(&self) -> String {
        format!("{}{}", self.replies.prefix, self.number)
    }
}

impl<R> Drop for Waiting<'_, R> {
    fn drop(&mut self) {
        self.replies.lock().remove(&self.number);
    }
}
