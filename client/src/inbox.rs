//! Received messages, and their acknowledgement.
//!
//! The engine adds pushes ([`Inbox::push`]), the application takes messages
//! ([`Inbox::mark_seen`]), and the engine fetches the next acknowledgement
//! ([`Inbox::next_ack`]). Each log, which is a room or the inbox of the user, is
//! acknowledged by itself. An ack covers every number up to its own, so it stops
//! before the first message that the application still holds or has released.
//! Independent of frames and of the engine's task.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use hark_protocol::message::Gap;
use hark_protocol::{Delivery, RoomName, Sequence, UserName};
use tokio::sync::Notify;

use crate::event::{Message, MissingMessages};
use crate::seen::{MessageId, SeenStore, Window};
use crate::sync::lock;

/// Number of messages of a log after which an ack is sent while more are held.
const ACK_EVERY: usize = 64;

/// A log of a user: a room, or the inbox.
type Log = Option<RoomName>;

/// A push: its user, its log, and its number.
type Key = (UserName, Log, MessageId);

/// The messages of one client on their way to the application.
#[derive(Debug)]
pub(crate) struct Inbox {
    store: Arc<dyn SeenStore>,
    // A lock because a message that is recorded while the record is read would be missing
    // in the window, and be delivered again. Held for one access to the store and the
    // change of the window; taken before `state`.
    access: Mutex<()>,
    // A lock because messages are taken on any task. Held for one operation on
    // the tables, never during access to the store.
    state: Mutex<InboxState>,
    /// Signals that a message was settled, so that an ack may be due.
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct InboxState {
    /// The user that pushes belong to.
    user: Option<UserName>,
    /// The messages of each log that the user has seen. A room is added by its
    /// first push.
    windows: HashMap<Log, Window>,
    /// Number of successful `connect`s and `attach`es. An ack covers only pushes
    /// since the last one, on the same link.
    epoch: u64,
    is_linked: bool,
    /// Unacknowledged pushes: of this user, and of former users if the
    /// application still holds them.
    pushed: BTreeMap<Key, Pushed>,
    /// Number of pushes still to come of those queued in the inbox at the last
    /// `connect` or `attach`.
    queued: u64,
    /// The logs with an acknowledgement to send.
    acks: BTreeMap<Log, Ack>,
}

/// An acknowledgement to send.
#[derive(Debug, Default, Clone, Copy)]
struct Ack {
    sequence: Sequence,
    /// Number of messages seen since the last ack.
    seen: usize,
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

/// A push that the application holds. It is released when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    inbox: Arc<Inbox>,
    user: UserName,
    log: Log,
    id: MessageId,
    is_settled: bool,
}

impl Held {
    /// Records the message as seen, and settles it.
    pub(crate) fn mark_seen(mut self) -> io::Result<()> {
        self.inbox.mark_seen(&self.user, &self.log, self.id)?;
        self.is_settled = true;
        Ok(())
    }

    /// Settles a push that is not recorded.
    pub(crate) fn settle(mut self) {
        self.is_settled = true;
        self.inbox
            .state()
            .settle(&self.user, &self.log, self.id, MessageState::Seen);
        self.inbox.changed.notify_one();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_settled {
            self.inbox
                .state()
                .settle(&self.user, &self.log, self.id, MessageState::Released);
        }
    }
}

impl Inbox {
    pub(crate) fn new(store: Arc<dyn SeenStore>) -> Self {
        Self {
            store,
            access: Mutex::default(),
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, InboxState> {
        lock(&self.state)
    }

    /// Records a successful `connect` or `attach` as `user` with `queued`
    /// messages to come in the inbox. Returns whether there are none.
    ///
    /// # Errors
    /// Any error of reading the record of seen messages. Nothing may be
    /// received in that case.
    pub(crate) fn begin(&self, user: &UserName, queued: u64) -> io::Result<bool> {
        let _access = lock(&self.access);
        let window = self.store.load(user, None)?.into_iter().collect();
        let mut state = self.state();
        state.epoch += 1;
        state.windows = HashMap::from([(None, window)]);
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

    /// Processes the push of a message. A repeated push is delivered again only
    /// if the application has released the message.
    ///
    /// # Errors
    /// Any error of reading the record of seen messages.
    pub(crate) fn push(self: &Arc<Self>, log: Log, delivery: Delivery) -> io::Result<Arrival> {
        self.load_window(&log)?;
        let mut state = self.state();
        let Some(user) = state.user.clone() else {
            // A conforming server pushes only after a `connect` or `attach`.
            return Ok(Arrival {
                message: None,
                caught_up: None,
            });
        };
        let id = MessageId::from(&delivery);
        let is_seen = state
            .windows
            .get(&log)
            .is_some_and(|window| window.contains(id));
        let is_new = state.arrive(&user, &log, id, is_seen);
        let caught_up = (log.is_none() && state.count_down()).then(|| user.clone());
        drop(state);
        let message = is_new.then(|| Message {
            held: self.held(&user, &log, id),
            user,
            room: log,
            delivery,
        });
        Ok(Arrival { message, caught_up })
    }

    /// Processes the push of a gap, which is not recorded: it comes again until it
    /// is acknowledged.
    pub(crate) fn push_gap(self: &Arc<Self>, gap: Gap) -> Option<MissingMessages> {
        let id = MessageId {
            sequence: gap.to,
            time_ms: 0,
        };
        let mut state = self.state();
        let user = state.user.clone()?;
        let is_new = state.arrive(&user, &gap.log, id, false);
        drop(state);
        is_new.then(|| MissingMessages {
            held: self.held(&user, &gap.log, id),
            user,
            gap,
        })
    }

    fn held(self: &Arc<Self>, user: &UserName, log: &Log, id: MessageId) -> Held {
        Held {
            inbox: Arc::clone(self),
            user: user.clone(),
            log: log.clone(),
            id,
            is_settled: false,
        }
    }

    /// Reads the record of a log before its first push.
    fn load_window(&self, log: &Log) -> io::Result<()> {
        let state = self.state();
        let user = match &state.user {
            Some(user) if !state.windows.contains_key(log) => user.clone(),
            _ => return Ok(()),
        };
        drop(state);
        let _access = lock(&self.access);
        let window = self.store.load(&user, log.as_ref())?.into_iter().collect();
        let mut state = self.state();
        if state.user.as_ref() == Some(&user) {
            state.windows.entry(log.clone()).or_insert(window);
        }
        Ok(())
    }

    /// Marks a message as seen by the application.
    fn mark_seen(&self, user: &UserName, log: &Log, id: MessageId) -> io::Result<()> {
        let _access = lock(&self.access);
        self.store.record(user, log.as_ref(), id)?;
        let mut state = self.state();
        if state.user.as_ref() == Some(user)
            && let Some(window) = state.windows.get_mut(log)
        {
            window.insert(id);
        }
        state.settle(user, log, id, MessageState::Seen);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Returns the next acknowledgement and its log, if one is due: for many
    /// messages at once while the application holds more of the log, otherwise or
    /// if `is_all` for all seen.
    pub(crate) fn next_ack(&self, is_all: bool) -> Option<(Log, Sequence)> {
        let mut state = self.state();
        let is_due =
            |(log, ack): &(&Log, &Ack)| is_all || ack.seen >= ACK_EVERY || !state.is_held(log);
        let (log, ack) = state.acks.iter().find(is_due)?;
        let (log, sequence) = (log.clone(), ack.sequence);
        state.acks.remove(&log);
        Some((log, sequence))
    }
}

impl InboxState {
    /// Clears the state of the former link. Messages held by the application
    /// are kept, so that they are not delivered twice.
    fn reset(&mut self, is_linked: bool) {
        self.pushed
            .retain(|_, pushed| pushed.state == MessageState::Held);
        self.is_linked = is_linked;
        self.acks.clear();
    }

    /// Records a push, and returns whether to deliver it to the application.
    fn arrive(&mut self, user: &UserName, log: &Log, id: MessageId, is_seen: bool) -> bool {
        let epoch = self.epoch;
        let key = (user.clone(), log.clone(), id);
        if let Some(pushed) = self.pushed.get_mut(&key) {
            pushed.epoch = epoch;
            return false;
        }
        let state = if is_seen {
            MessageState::Seen
        } else {
            MessageState::Held
        };
        self.pushed.insert(key, Pushed { epoch, state });
        if is_seen {
            self.advance(user, log);
        }
        !is_seen
    }

    /// Counts a push, and returns whether it was the last of those queued.
    fn count_down(&mut self) -> bool {
        let was_last = self.queued == 1;
        self.queued = self.queued.saturating_sub(1);
        was_last
    }

    fn settle(&mut self, user: &UserName, log: &Log, id: MessageId, state: MessageState) {
        let key = (user.clone(), log.clone(), id);
        let is_present = self.user.as_ref() == Some(user);
        match self.pushed.get_mut(&key) {
            Some(pushed) if is_present => pushed.state = state,
            _ => drop(self.pushed.remove(&key)),
        }
        if is_present {
            self.advance(user, log);
        }
    }

    /// Advances the acknowledgement of a log over all seen messages, up to the
    /// first other one.
    fn advance(&mut self, user: &UserName, log: &Log) {
        while let Some((key, is_current)) = self.first_seen(user, log) {
            self.pushed.remove(&key);
            if is_current {
                let ack = self.acks.entry(log.clone()).or_default();
                ack.sequence = ack.sequence.max(key.2.sequence);
                ack.seen += 1;
            }
        }
    }

    /// Returns the first unacknowledged push of a log if it is seen, and whether
    /// it came on the present link.
    fn first_seen(&self, user: &UserName, log: &Log) -> Option<(Key, bool)> {
        let (key, pushed) = self.pushed_of(user, log).next()?;
        let is_current = pushed.epoch == self.epoch && self.is_linked;
        (pushed.state == MessageState::Seen).then(|| (key.clone(), is_current))
    }

    /// Returns whether the application holds a message of this log of the
    /// current user.
    fn is_held(&self, log: &Log) -> bool {
        let Some(user) = &self.user else { return false };
        self.pushed_of(user, log)
            .any(|(_, pushed)| pushed.state == MessageState::Held)
    }

    /// Returns the unacknowledged pushes of a log, in order.
    fn pushed_of(&self, user: &UserName, log: &Log) -> impl Iterator<Item = (&Key, &Pushed)> {
        let first = MessageId {
            sequence: Sequence(0),
            time_ms: 0,
        };
        let start = (user.clone(), log.clone(), first);
        let (user, log) = (user.clone(), log.clone());
        self.pushed
            .range(start..)
            .take_while(move |(key, _)| key.0 == user && key.1 == log)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::seen::MemorySeenStore;

    /// A record that is slow to read: when it is armed, `load` waits for a message to be
    /// recorded meanwhile, for a short time.
    #[derive(Debug)]
    struct SlowStore {
        memory: MemorySeenStore,
        loading: Sender<()>,
        recorded: (Sender<()>, Mutex<Receiver<()>>),
        is_armed: Mutex<bool>,
    }

    impl SlowStore {
        /// Returns the record, and a signal of each armed `load`.
        fn new() -> (Arc<Self>, Receiver<()>) {
            let (loading, is_loading) = mpsc::channel();
            let (recorded, is_recorded) = mpsc::channel();
            let store = Self {
                memory: MemorySeenStore::default(),
                loading,
                recorded: (recorded, Mutex::new(is_recorded)),
                is_armed: Mutex::new(false),
            };
            (Arc::new(store), is_loading)
        }
    }

    impl SeenStore for SlowStore {
        fn load(&self, user: &UserName, room: Option<&RoomName>) -> io::Result<Vec<MessageId>> {
            let loaded = self.memory.load(user, room)?;
            if *lock(&self.is_armed) {
                self.loading.send(()).unwrap();
                let recorded = lock(&self.recorded.1);
                if recorded.recv_timeout(Duration::from_millis(300)).is_ok() {
                    // The window of the former link is changed, too.
                    thread::sleep(Duration::from_millis(100));
                }
            }
            Ok(loaded)
        }

        fn record(
            &self,
            user: &UserName,
            room: Option<&RoomName>,
            message: MessageId,
        ) -> io::Result<()> {
            self.memory.record(user, room, message)?;
            self.recorded.0.send(()).unwrap();
            Ok(())
        }
    }

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
        inbox.push(None, delivery(n)).unwrap().message
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
        assert_eq!(inbox.next_ack(false), Some((None, Sequence(9))));
        assert_eq!(inbox.next_ack(true), None);
    }

    #[test]
    fn ack_is_due_after_64_messages() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let mut held: Vec<_> = (1..=100).map(|n| push(&inbox, n).unwrap()).collect();
        held.drain(..64).for_each(|message| message.ack().unwrap());
        assert_eq!(inbox.next_ack(false), Some((None, Sequence(64))));
    }

    #[test]
    fn ack_stops_before_held_or_released_message() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let [first, second, third] = [1, 2, 3].map(|n| push(&inbox, n).unwrap());
        first.ack().unwrap();
        third.ack().unwrap();
        assert_eq!(inbox.next_ack(true), Some((None, Sequence(1))));
        drop(second);
        assert_eq!(inbox.next_ack(true), None);
        inbox.link_lost();
        inbox.begin(&bob(), 2).unwrap();
        let again = push(&inbox, 2).expect("it was given back");
        assert!(push(&inbox, 3).is_none(), "it was taken");
        again.ack().unwrap();
        assert_eq!(inbox.next_ack(false), Some((None, Sequence(3))));
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
        assert_eq!(inbox.next_ack(false), Some((None, Sequence(1))));
    }

    #[test]
    fn message_taken_during_a_reconnect_comes_once() {
        for log in [None, Some("#team".parse::<RoomName>().unwrap())] {
            let (store, is_loading) = SlowStore::new();
            let inbox = Arc::new(Inbox::new(Arc::clone(&store) as Arc<dyn SeenStore>));
            let push = |inbox: &Arc<Inbox>, n| inbox.push(log.clone(), delivery(n)).unwrap();
            inbox.begin(&bob(), 0).unwrap();
            let held = push(&inbox, 1).message.unwrap();
            inbox.link_lost();
            if log.is_some() {
                inbox.begin(&bob(), 0).unwrap();
            }
            *lock(&store.is_armed) = true;
            thread::scope(|scope| {
                let reconnected = scope.spawn(|| match &log {
                    None => drop(inbox.begin(&bob(), 1).unwrap()),
                    Some(_) => drop(push(&inbox, 2)),
                });
                is_loading.recv().unwrap();
                held.ack().unwrap();
                reconnected.join().unwrap();
            });
            *lock(&store.is_armed) = false;
            assert!(push(&inbox, 1).message.is_none(), "{log:?}");
        }
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
        assert_eq!(inbox.next_ack(false), Some((None, Sequence(7))));
    }

    #[test]
    fn end_of_queued_messages_is_reported() {
        let inbox = inbox();
        assert!(!inbox.begin(&bob(), 2).unwrap());
        assert!(inbox.push(None, delivery(1)).unwrap().caught_up.is_none());
        assert!(inbox.push(None, delivery(2)).unwrap().caught_up.is_some());
        assert!(inbox.push(None, delivery(3)).unwrap().caught_up.is_none());
        assert!(inbox.begin(&bob(), 0).unwrap());
    }

    #[test]
    fn acknowledged_messages_are_dropped() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        (1..=1000).for_each(|n| push(&inbox, n).unwrap().ack().unwrap());
        assert!(inbox.state().pushed.is_empty());
    }

    #[test]
    fn each_log_is_acknowledged_by_itself() {
        let inbox = inbox();
        inbox.begin(&bob(), 1).unwrap();
        let team: RoomName = "#team".parse().unwrap();
        let of_room = |n| {
            let arrival = inbox.push(Some(team.clone()), delivery(n)).unwrap();
            assert!(
                arrival.caught_up.is_none(),
                "the inbox has a message to come"
            );
            arrival.message
        };
        let direct = push(&inbox, 5).unwrap();
        let (first, second) = (of_room(5).unwrap(), of_room(6).unwrap());
        second.ack().unwrap();
        assert_eq!(inbox.next_ack(true), None, "the first is held");
        first.ack().unwrap();
        assert_eq!(
            inbox.next_ack(false),
            Some((Some(team.clone()), Sequence(6)))
        );
        inbox.link_lost();
        inbox.begin(&bob(), 1).unwrap();
        assert!(of_room(6).is_none(), "it was seen");
        assert_eq!(
            inbox.next_ack(false),
            Some((Some(team.clone()), Sequence(6)))
        );
        direct.ack().unwrap();
        assert!(push(&inbox, 5).is_none());
        assert_eq!(inbox.next_ack(false), Some((None, Sequence(5))));
    }

    #[test]
    fn gap_comes_again_until_it_is_acknowledged() {
        let inbox = inbox();
        inbox.begin(&bob(), 0).unwrap();
        let gap = Gap {
            log: Some("#team".parse().unwrap()),
            from: Sequence(1),
            to: Sequence(7),
            count: 3,
        };
        drop(inbox.push_gap(gap.clone()).unwrap());
        assert_eq!(inbox.next_ack(true), None);
        inbox.link_lost();
        inbox.begin(&bob(), 0).unwrap();
        inbox.push_gap(gap.clone()).unwrap().ack();
        assert_eq!(inbox.next_ack(false), Some((gap.log, Sequence(7))));
    }
}
