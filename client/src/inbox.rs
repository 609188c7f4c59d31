//! Received messages, and their acknowledgement.
//!
//! The engine adds pushes ([`Inbox::push`]), the application takes messages
//! ([`Inbox::mark_seen`]), and the engine fetches the next acknowledgement
//! ([`Inbox::next_ack`]). An ack covers every number up to its own, so it stops
//! before the first message that the application still holds or has released.
//! Independent of frames and of the engine's task.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use hark_protocol::{Delivery, Sequence, UserName};
use tokio::sync::Notify;

use crate::event::Message;
use crate::seen::{MessageId, SeenStore, Window};
use crate::sync::lock;

/// Number of messages after which an ack is sent while more are held.
const ACK_EVERY: usize = 64;

/// The messages of one client on their way to the application.
#[derive(Debug)]
pub(crate) struct Inbox {
    store: Arc<dyn SeenStore>,
    // A lock because messages are taken on any task. Held for one operation on
    // the tables, never during writes to the store.
    state: Mutex<InboxState>,
    /// Signals that a message was settled, so that an ack may be due.
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct InboxState {
    /// The user that pushes belong to.
    user: Option<UserName>,
    window: Window,
    /// Number of successful `connect`s. An ack covers only pushes since the
    /// last one, on the same link.
    epoch: u64,
    is_linked: bool,
    /// Unacknowledged pushes: of this user, and of former users if the
    /// application still holds them.
    pushed: BTreeMap<(UserName, MessageId), Pushed>,
    /// Number of pushes still to come of those queued at the last `connect`.
    queued: u64,
    ackable: Option<Sequence>,
    /// Number of messages seen since the last ack.
    seen_since: usize,
}

#[derive(Debug)]
struct Pushed {
    epoch: u64,
    state: MessageState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MessageState {
    /// Held by the application.
    Held,
    /// Seen, but after a message that is not.
    Seen,
    /// Dropped by the application without an ack.
    Released,
}

/// Result of a push.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// The message, unless the application holds it or has seen it.
    pub(crate) message: Option<Message>,
    /// The user whose queued messages have now all been pushed.
    pub(crate) caught_up: Option<UserName>,
}

impl Inbox {
    pub(crate) fn new(store: Arc<dyn SeenStore>) -> Self {
        Self {
            store,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, InboxState> {
        lock(&self.state)
    }

    /// Records a successful `connect` as `user` with `queued` messages to come.
    /// Returns whether there are none.
    ///
    /// # Errors
    /// Any error of reading the record of seen messages. Nothing may be
    /// received in that case.
    pub(crate) fn begin(&self, user: &UserName, queued: u64) -> io::Result<bool> {
        let window = self.store.load(user)?.into_iter().collect();
        let mut state = self.state();
        state.epoch += 1;
        state.window = window;
        state.user = Some(user.clone());
        state.queued = queued;
        state.reset(true);
        Ok(queued == 0)
    }

    /// Ends the link: nothing can be acknowledged before the next
    /// [`Self::begin`].
    pub(crate) fn link_lost(&self) {
        let mut state = self.state();
        state.user = None;
        state.reset(false);
    }

    /// Processes a push. A repeated push is delivered again only if the
    /// application has released the message.
    pub(crate) fn push(self: &Arc<Self>, delivery: Delivery) -> Arrival {
        let mut state = self.state();
        let Some(user) = state.user.clone() else {
            // A conforming server pushes only after a `connect`.
            return Arrival {
                message: None,
                caught_up: None,
            };
        };
        let is_new = state.arrive(&user, MessageId::from(&delivery));
        let caught_up = state.count_down().then(|| user.clone());
        drop(state);
        let message = is_new.then(|| Message {
            user,
            delivery,
            inbox: Arc::clone(self),
            is_settled: false,
        });
        Arrival { message, caught_up }
    }

    /// Marks a message as seen by the application.
    pub(crate) fn mark_seen(&self, user: &UserName, delivery: &Delivery) -> io::Result<()> {
        let message = MessageId::from(delivery);
        self.store.record(user, message)?;
        let mut state = self.state();
        if state.user.as_ref() == Some(user) {
            state.window.insert(message);
        }
        state.settle(user, message, MessageState::Seen);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Releases a message that the application dropped without an ack.
    pub(crate) fn release(&self, user: &UserName, delivery: &Delivery) {
        self.state()
            .settle(user, MessageId::from(delivery), MessageState::Released);
    }

    /// Returns the next acknowledgement, if one is due: for many messages at
    /// once while the application holds more, otherwise or if `is_all` for all
    /// seen.
    pub(crate) fn next_ack(&self, is_all: bool) -> Option<Sequence> {
        let mut state = self.state();
        if !is_all && state.seen_since < ACK_EVERY && state.is_held() {
            return None;
        }
        state.seen_since = 0;
        state.ackable.take()
    }
}

impl InboxState {
    /// Clears the state of the former link. Messages held by the application
    /// are kept, so that they are not delivered twice.
    fn reset(&mut self, is_linked: bool) {
        self.pushed
            .retain(|_, pushed| pushed.state == MessageState::Held);
        self.is_linked = is_linked;
        self.ackable = None;
        self.seen_since = 0;
    }

    /// Records a push, and returns whether to deliver it to the application.
    fn arrive(&mut self, user: &UserName, message: MessageId) -> bool {
        let epoch = self.epoch;
        if let Some(pushed) = self.pushed.get_mut(&(user.clone(), message)) {
            pushed.epoch = epoch;
            return false;
        }
        let is_new = !self.window.contains(message);
        let state = if is_new {
            MessageState::Held
        } else {
            MessageState::Seen
        };
        self.pushed
            .insert((user.clone(), message), Pushed { epoch, state });
        if !is_new {
            self.advance(user);
        }
        is_new
    }

    /// Counts a push, and returns whether it was the last of those queued.
    fn count_down(&mut self) -> bool {
        let was_last = self.queued == 1;
        self.queued = self.queued.saturating_sub(1);
        was_last
    }

    fn settle(&mut self, user: &UserName, message: MessageId, state: MessageState) {
        let key = (user.clone(), message);
        let is_present = self.user.as_ref() == Some(user);
        match self.pushed.get_mut(&key) {
            Some(pushed) if is_present => pushed.state = state,
            _ => drop(self.pushed.remove(&key)),
        }
        if is_present {
            self.advance(user);
        }
    }

    /// Advances the acknowledgement over all seen messages, up to the first
    /// other one.
    fn advance(&mut self, user: &UserName) {
        let start = (
            user.clone(),
            MessageId {
                sequence: Sequence(0),
                time_ms: 0,
            },
        );
        while let Some((key, pushed)) = self.pushed.range(start.clone()..).next() {
            if key.0 != *user || pushed.state != MessageState::Seen {
                return;
            }
            let (key, is_current) = (key.clone(), pushed.epoch == self.epoch && self.is_linked);
            self.pushed.remove(&key);
            if is_current {
                self.ackable = self.ackable.max(Some(key.1.sequence));
                self.seen_since += 1;
            }
        }
    }

    /// Returns whether the application holds a message of the current user.
    fn is_held(&self) -> bool {
        let is_held = |(key, pushed): (&(UserName, MessageId), &Pushed)| {
            pushed.state == MessageState::Held && Some(&key.0) == self.user.as_ref()
        };
        self.pushed.iter().any(is_held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::MemorySeenStore;

    fn inbox() -> Arc<Inbox> {
        Arc::new(Inbox::new(Arc::new(MemorySeenStore::default())))
    }

    fn bob() -> UserName {
        "bob".parse().unwrap()
    }

    fn delivery(n: u64) -> Delivery {
        Delivery {
            sequence: Sequence(n),
            sender: None,
            time_ms: 1000 + n,
            text: "hi".into(),
        }
    }

    fn push(inbox: &Arc<Inbox>, n: u64) -> Option<Message> {
        inbox.push(delivery(n)).message
    }

    #[test]
    fn ack_waits_for_held_messages() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let first = push(&inbox, 5).unwrap();
        let second = push(&inbox, 9).unwrap();
        first.ack().unwrap();
        assert_eq!(inbox.next_ack(false), None);
        second.ack().unwrap();
        assert_eq!(inbox.next_ack(false), Some(Sequence(9)));
        assert_eq!(inbox.next_ack(true), None);
    }

    #[test]
    fn ack_is_due_after_64_messages() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let mut held: Vec<_> = (1..=100).map(|n| push(&inbox, n).unwrap()).collect();
        held.drain(..64).for_each(|message| message.ack().unwrap());
        assert_eq!(inbox.next_ack(false), Some(Sequence(64)));
    }

    #[test]
    fn ack_stops_before_held_or_released_message() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let [first, second, third] = [1, 2, 3].map(|n| push(&inbox, n).unwrap());
        first.ack().unwrap();
        third.ack().unwrap();
        assert_eq!(inbox.next_ack(true), Some(Sequence(1)));
        drop(second);
        assert_eq!(inbox.next_ack(true), None);
        inbox.link_lost();
        inbox.begin(&bob(), 2).unwrap();
        let again = push(&inbox, 2).expect("it was given back");
        assert!(push(&inbox, 3).is_none(), "it was taken");
        again.ack().unwrap();
        assert_eq!(inbox.next_ack(false), Some(Sequence(3)));
    }

    #[test]
    fn message_held_across_links_is_delivered_once() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let message = push(&inbox, 1).unwrap();
        inbox.link_lost();
        message.ack().unwrap();
        assert_eq!(inbox.next_ack(true), None, "the link is down");
        inbox.begin(&bob(), 1).unwrap();
        assert_eq!(inbox.next_ack(true), None, "not pushed on this link yet");
        assert!(push(&inbox, 1).is_none());
        assert_eq!(inbox.next_ack(false), Some(Sequence(1)));
    }

    #[test]
    fn message_of_former_user_is_seen_but_not_acknowledged() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let message = push(&inbox, 7).unwrap();
        inbox.begin(&"amy".parse().unwrap(), 0).unwrap();
        message.ack().unwrap();
        assert_eq!(inbox.next_ack(true), None);
        inbox.begin(&bob(), 1).unwrap();
        assert!(push(&inbox, 7).is_none());
        assert_eq!(inbox.next_ack(false), Some(Sequence(7)));
    }

    #[test]
    fn end_of_queued_messages_is_reported() {
        let inbox = inbox();
        assert!(!inbox.begin(&bob(), 2).unwrap());
        assert!(inbox.push(delivery(1)).caught_up.is_none());
        assert!(inbox.push(delivery(2)).caught_up.is_some());
        assert!(inbox.push(delivery(3)).caught_up.is_none());
        assert!(inbox.begin(&bob(), 0).unwrap());
    }

    #[test]
    fn acknowledged_messages_are_dropped() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        (1..=1000).for_each(|n| push(&inbox, n).unwrap().ack().unwrap());
        assert!(inbox.state().pushed.is_empty());
    }
}
