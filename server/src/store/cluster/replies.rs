//! Correlation of the engine's replies with requests. It knows subjects and ids, and no
//! contents.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Message;
use tokio::sync::{mpsc, oneshot};

/// The pending requests. Each has an owner that removes its entry when it is dropped,
/// with or without a reply.
#[derive(Debug)]
pub(super) struct Replies {
    /// Reply subjects are this prefix and an id.
    prefix: String,
    next: AtomicU64,
    // A lock, because one task receives replies and many await them. It is held for one
    // operation on the map.
    waiting: Mutex<HashMap<u64, Waiter>>,
}

#[derive(Debug)]
enum Waiter {
    /// Takes the first reply.
    First(oneshot::Sender<Message>),
    /// Takes every reply.
    // Unbounded, but a page has at most one reply for each requested message, and a last
    // one.
    Each(mpsc::UnboundedSender<Message>),
}

/// A pending request: its id, and the channel of its replies.
pub(super) struct Waiting<'a, R> {
    replies: &'a Replies,
    number: u64,
    pub(super) reply: R,
}

impl Replies {
    /// Creates an empty table for reply subjects with this prefix.
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// Returns a subject pattern for all replies.
    pub(super) fn subjects(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// Registers a request that takes the first reply.
    pub(super) fn wait_for_first(&self) -> Waiting<'_, oneshot::Receiver<Message>> {
        let (sender, reply) = oneshot::channel();
        self.wait(Waiter::First(sender), reply)
    }

    /// Registers a request that takes every reply.
    pub(super) fn wait_for_each(&self) -> Waiting<'_, mpsc::UnboundedReceiver<Message>> {
        let (sender, reply) = mpsc::unbounded_channel();
        self.wait(Waiter::Each(sender), reply)
    }

    fn wait<R>(&self, waiter: Waiter, reply: R) -> Waiting<'_, R> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, waiter);
        Waiting { replies: self, number, reply }
    }

    /// Passes a reply to its request.
    pub(super) fn pass(&self, message: Message) {
        let number = message.subject.strip_prefix(&self.prefix).and_then(|number| number.parse().ok());
        let Some(number) = number else { return };
        // A reply without an entry is too late.
        let mut waiting = self.lock();
        if let Some(Waiter::Each(sender)) = waiting.get(&number) {
            drop(sender.send(message));
        } else if let Some(Waiter::First(sender)) = waiting.remove(&number) {
            drop(sender.send(message));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        // No code panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Waiting<'_, R> {
    /// Returns the subject for the replies.
    pub(super) fn subject(&self) -> String {
        format!("{}{}", self.replies.prefix, self.number)
    }
}

impl<R> Drop for Waiting<'_, R> {
    fn drop(&mut self) {
        self.replies.lock().remove(&self.number);
    }
}
