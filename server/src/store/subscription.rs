//! A subscription to an inbox: a bounded buffer of newly stored messages.
//!
//! A subscriber that keeps up takes every message from the buffer, without a read. If the
//! buffer overflows, it is cleared, and the subscriber gets [`Event::Lagged`]: it calls
//! [`Events::follow`] and then reads the store up to the end. A message can arrive
//! both ways; the subscriber drops duplicates by number.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

use super::{Account, Message, Notice, Position};
use crate::sync::Mutex;

/// The maximum number of messages that are buffered for one subscription.
pub const BUFFERED_MESSAGES_MAX: usize = 256;

/// The maximum number of bytes of text that are buffered for one subscription.
pub const BUFFERED_BYTES_MAX: usize = 256 * 1024;

/// The maximum number of notices that are buffered for one subscription. If a device
/// leaves more of them unread, the subscription ends with [`End::Interrupted`]: nothing is lost
/// silently, and the device attaches again.
pub const NOTICES_MAX: usize = 256;

/// From this number of notices on, hints are dropped.
const NOTICES_WITH_HINTS_MAX: usize = NOTICES_MAX / 2;

/// The bits of [`Ready`] that are not places.
const INBOX: u64 = 1;
const NOTICES: u64 = 2;
const OTHER_BITS: u32 = 2;

/// The maximum number of messages in one event.
pub(super) const TAKEN_MESSAGES_MAX: usize = 32;

/// The maximum number of bytes of text in one event; a longer first message comes alone.
pub(super) const TAKEN_BYTES_MAX: usize = 16 * 1024;

/// An event of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// New messages, in order of their numbers; a bounded number at a time.
    Appended(Vec<Arc<Message>>),
    /// Messages that will not come as [`Event::Appended`] may have been stored.
    Lagged,
    /// The subscription has ended.
    Ended(End),
}

/// The reason for the end of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Another subscription took over.
    TakenOver,
    /// The account was deleted.
    Deleted,
    /// The device has to attach again: it left too many notices unread, or some were lost
    /// with a failed commit.
    Interrupted,
}

/// The subscriber's side. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    account: Account,
    queued: u64,
    cursor: Position,
    events: Events,
}

/// The events of a subscription. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Events {
    buffer: Arc<SubscriptionBuffer>,
    /// Notifies the store of the drop, if it needs to know.
    _released: Option<Box<OnDrop>>,
}

/// Calls a function when it is dropped.
struct OnDrop(Box<dyn Fn() + Send + Sync>);

/// Wakes the subscriber, and marks what is ready for it. Clones wake the same one.
#[derive(Debug, Clone)]
pub struct Waker(Arc<SubscriptionBuffer>);

/// The right of an attachment to acknowledge, until another attachment of the device
/// supersedes it. So the former one removes nothing from the log that the other reads.
#[derive(Debug)]
pub struct Attachment(Arc<SubscriptionBuffer>);

/// The parts of a subscription that may have something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready(u64);

/// The store's side. Clones publish to the same subscription.
#[derive(Debug, Clone)]
pub struct Publisher {
    buffer: Arc<SubscriptionBuffer>,
}

#[derive(Debug, Default)]
struct SubscriptionBuffer {
    /// Whether the state has an end.
    ended: AtomicBool,
    // Locked because a thread of the store publishes and a task of the connection reads. Held
    // for one operation on the queue.
    state: Mutex<BufferState>,
    changed: AtomicWaker,
    /// See [`Ready`].
    ready: AtomicU64,
    /// Spreads subscriptions over the shares of rings.
    share: usize,
}

#[derive(Debug, Default)]
struct BufferState {
    messages: VecDeque<Arc<Message>>,
    bytes: usize,
    following: bool,
    /// Whether the subscriber has taken `Lagged`.
    lag_taken: bool,
    /// Boxed, because most subscriptions never have any.
    #[expect(
        clippy::box_collection,
        reason = "most subscriptions have no notices; a pointer is a quarter of a queue"
    )]
    notices: Option<Box<VecDeque<Notice>>>,
    end: Option<End>,
    /// See [`Attachment`].
    is_superseded: bool,
}

impl Subscription {
    /// Returns a subscription for `account` that begins after `cursor`, with
    /// `queued` messages waiting, and its publisher. It begins lagging.
    #[must_use]
    pub fn new(account: Account, queued: u64, cursor: Position) -> (Publisher, Self) {
        static SUBSCRIPTIONS: AtomicUsize = AtomicUsize::new(0);
        let buffer = Arc::new(SubscriptionBuffer {
            share: SUBSCRIPTIONS.fetch_add(1, Ordering::Relaxed),
            ..SubscriptionBuffer::default()
        });
        let events = Events {
            buffer: Arc::clone(&buffer),
            _released: None,
        };
        (
            Publisher { buffer },
            Self {
                account,
                queued,
                cursor,
                events,
            },
        )
    }

    /// Calls a function when it is dropped.
    #[must_use]
    pub fn on_drop(self, released: impl Fn() + Send + Sync + 'static) -> Self {
        let mut subscription = self;
        subscription.events._released = Some(Box::new(OnDrop(Box::new(released))));
        subscription
    }

    /// Returns the account of the inbox.
    #[must_use]
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// Returns the number of messages that were queued when it began.
    #[must_use]
    pub const fn queued(&self) -> u64 {
        self.queued
    }

    /// Returns the last message that was acknowledged when it began.
    #[must_use]
    pub const fn cursor(&self) -> Position {
        self.cursor
    }

    /// Returns the right to acknowledge.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment(Arc::clone(&self.events.buffer))
    }

    /// Returns the account and the events.
    #[must_use]
    pub fn into_events(self) -> (Account, Events) {
        (self.account, self.events)
    }

    /// See [`Events::next_event`].
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.next_event()
    }

    /// See [`Events::follow`].
    #[cfg(any(test, feature = "maelstrom"))]
    pub(crate) fn follow(&mut self) {
        self.events.follow();
    }

    /// See [`Events::end`].
    #[cfg(any(test, feature = "maelstrom"))]
    pub(crate) fn end(&self) -> Option<End> {
        self.events.end()
    }

    /// See [`Events::waker`].
    #[cfg(test)]
    pub(crate) fn waker(&self) -> Waker {
        self.events.waker()
    }

    /// Returns whether new messages are buffered.
    #[cfg(test)]
    pub(crate) fn is_following(&self) -> bool {
        self.events.buffer.state.lock().following
    }

    /// Polls for the next event.
    #[cfg(test)]
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.events.buffer.changed.register(cx.waker());
        self.next_event().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Events {
    /// Takes the next event, if there is one. An end precedes all other events, and stays.
    pub fn next_event(&mut self) -> Option<Event> {
        let mut state = self.buffer.state.lock();
        if let Some(end) = state.end {
            return Some(Event::Ended(end));
        }
        if !state.messages.is_empty() {
            return Some(Event::Appended(state.take()));
        }
        if state.following || state.lag_taken {
            return None;
        }
        state.lag_taken = true;
        Some(Event::Lagged)
    }

    /// Starts to buffer new messages, until the buffer overflows. Called before the store is
    /// read, so that no message is missed in between.
    pub fn follow(&mut self) {
        let mut state = self.buffer.state.lock();
        state.following = true;
        state.lag_taken = false;
    }

    /// Takes the next notice, if there is one.
    pub fn next_notice(&mut self) -> Option<Notice> {
        let mut state = self.buffer.state.lock();
        let Some(notices) = state.notices.as_mut() else {
            self.buffer.ready.fetch_and(!NOTICES, Ordering::AcqRel);
            return None;
        };
        let notice = notices.pop_front();
        if notices.is_empty() {
            state.notices = None;
        }
        notice
    }

    /// Returns the waker of the subscriber.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.buffer))
    }

    /// Takes the parts that may have something new since the last call. Register the waker
    /// of the task before, by [`Self::poll_end`].
    pub fn take_ready(&mut self) -> Ready {
        self.buffer.take_ready()
    }

    /// Returns whether there may be notices that neither [`Self::take_ready`] has reported nor
    /// [`Self::next_notice`] has returned.
    #[must_use]
    pub fn has_new_notices(&self) -> bool {
        self.buffer.ready.load(Ordering::Acquire) & NOTICES != 0
    }

    /// Polls for the end, without taking messages. The next event wakes the task, too.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.buffer.changed.register(cx.waker());
        self.end().map_or(Poll::Pending, Poll::Ready)
    }

    /// Returns the end, if there is one. Takes no lock if there is none.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        if self.buffer.is_ended() {
            self.buffer.state.lock().end
        } else {
            None
        }
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl fmt::Debug for OnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDrop(..)")
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.buffer.end(End::TakenOver);
    }
}

impl Attachment {
    /// Acknowledges by a call of a function, unless another attachment supersedes this one.
    /// The function must not use the subscription.
    pub fn if_current(&self, acknowledge: impl FnOnce()) {
        // The lock is held over the call: [`Publisher::supersede`] waits for it.
        let state = self.0.state.lock();
        if !state.is_superseded {
            acknowledge();
        }
    }
}

impl Publisher {
    /// Ends the right of the subscriber to acknowledge.
    pub(crate) fn supersede(&self) {
        self.buffer.state.lock().is_superseded = true;
    }

    /// Publishes new messages, in order of their numbers.
    pub fn appended(&self, messages: impl IntoIterator<Item = Arc<Message>>) {
        let mut state = self.buffer.state.lock();
        if state.end.is_some() || !state.following {
            return;
        }
        for message in messages {
            let full = state.messages.len() >= BUFFERED_MESSAGES_MAX
                || (!state.messages.is_empty()
                    && state.bytes + message.text.len() > BUFFERED_BYTES_MAX);
            if full {
                state.clear();
                break;
            }
            state.bytes += message.text.len();
            state.messages.push_back(message);
        }
        drop(state);
        self.buffer.wake(INBOX);
    }

    /// Publishes a notice. If there are too many, the subscription ends.
    pub(crate) fn notify(&self, notice: Notice) {
        let mut state = self.buffer.state.lock();
        if state.end.is_some() {
            return;
        }
        let notices = state.notices.get_or_insert_default();
        let is_hint = match &notice {
            Notice::Seen { room, number } => {
                let mut marks = notices.iter_mut().filter_map(|other| match other {
                    Notice::Seen { room: of, number } if of == room => Some(number),
                    _ => None,
                });
                if let Some(mark) = marks.next() {
                    *mark = *number;
                    return;
                }
                true
            }
            _ => false,
        };
        let max = if is_hint {
            NOTICES_WITH_HINTS_MAX
        } else {
            NOTICES_MAX
        };
        if notices.len() < max {
            notices.push_back(notice);
        } else if !is_hint {
            drop(state);
            return self.end(End::Interrupted);
        }
        drop(state);
        self.buffer.wake(NOTICES);
    }

    /// Marks the subscription as lagging: messages may have been stored that were not
    /// published.
    pub fn lagged(&self) {
        let mut state = self.buffer.state.lock();
        state.clear();
        state.lag_taken = false;
        drop(state);
        self.buffer.wake(INBOX);
    }

    /// Ends the subscription. The first end counts.
    pub fn end(&self, end: End) {
        self.buffer.end(end);
        self.buffer.changed.wake();
    }

    /// Publishes an event.
    pub fn publish(&self, event: Event) {
        match event {
            Event::Appended(messages) => self.appended(messages),
            Event::Lagged => self.lagged(),
            Event::Ended(end) => self.end(end),
        }
    }

    /// Returns whether the subscription has ended or was dropped.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.buffer.is_ended()
    }

    /// Returns whether `other` publishes to the same subscription.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer)
    }

    /// Returns whether this publishes to `subscription`.
    #[must_use]
    pub fn feeds(&self, subscription: &Subscription) -> bool {
        Arc::ptr_eq(&self.buffer, &subscription.events.buffer)
    }
}

impl Waker {
    /// Marks a place of the subscriber as ready, and wakes it unless it is marked already.
    pub(crate) fn wake_place(&self, place: u32) {
        let bit = place_bit(place);
        if self.0.ready.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.0.changed.wake();
        }
    }

    /// Returns a number that spreads subscribers over the shares of rings.
    pub(super) fn share(&self) -> usize {
        self.0.share
    }

    /// See [`Events::take_ready`].
    #[cfg(test)]
    pub(super) fn take_ready(&self) -> Ready {
        self.0.take_ready()
    }
}

impl Ready {
    /// Everything.
    pub const ALL: Self = Self(u64::MAX);

    /// Returns whether nothing is new.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether the inbox may have new messages.
    #[must_use]
    pub const fn has_messages(self) -> bool {
        self.0 & INBOX != 0
    }

    /// Returns whether there may be notices.
    #[must_use]
    pub const fn has_notices(self) -> bool {
        self.0 & NOTICES != 0
    }

    /// Returns whether any place may have new messages.
    #[must_use]
    pub const fn has_places(self) -> bool {
        self.0 >> OTHER_BITS != 0
    }

    /// Returns whether the ring at a place may have new messages. Few places share a bit.
    #[must_use]
    pub const fn has_place(self, place: u32) -> bool {
        self.0 & place_bit(place) != 0
    }
}

const fn place_bit(place: u32) -> u64 {
    1 << (OTHER_BITS + place % (u64::BITS - OTHER_BITS))
}

impl SubscriptionBuffer {
    /// Marks a part as ready, and wakes the subscriber.
    fn wake(&self, part: u64) {
        self.ready.fetch_or(part, Ordering::AcqRel);
        self.changed.wake();
    }

    fn take_ready(&self) -> Ready {
        // A load is cheaper, and there is often nothing.
        if self.ready.load(Ordering::Acquire) == 0 {
            return Ready(0);
        }
        Ready(self.ready.swap(0, Ordering::AcqRel))
    }

    /// The first end counts.
    fn end(&self, end: End) {
        let mut state = self.state.lock();
        state.end.get_or_insert(end);
        state.clear();
        state.notices = None;
        self.ended.store(true, Ordering::Release);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl BufferState {
    /// Takes a bounded number of messages.
    fn take(&mut self) -> Vec<Arc<Message>> {
        let (mut count, mut bytes) = (0, 0);
        for message in self.messages.iter().take(TAKEN_MESSAGES_MAX) {
            if count > 0 && bytes + message.text.len() > TAKEN_BYTES_MAX {
                break;
            }
            count += 1;
            bytes += message.text.len();
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.messages.drain(..count).collect()
    }

    /// Clears the buffer, releases its memory, and stops following.
    fn clear(&mut self) {
        self.messages = VecDeque::new();
        self.bytes = 0;
        self.following = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe() -> (Publisher, Subscription) {
        let account = Account {
            name: "amy".parse().unwrap(),
            incarnation: 1,
        };
        Subscription::new(account, 0, Position::default())
    }

    fn left(room: u64) -> Notice {
        Notice::Left {
            room,
            name: "#team".parse().unwrap(),
            reason: hark_protocol::message::LeftReason::Left,
            at: crate::store::Point::default(),
            is_own: false,
        }
    }

    fn seen(room: &str, number: u64) -> Notice {
        let room = room.parse().unwrap();
        Notice::Seen { room, number }
    }

    #[test]
    fn notices_are_bounded_and_never_lost() {
        let (publisher, subscription) = subscribe();
        for room in 0..NOTICES_MAX as u64 {
            publisher.notify(left(room));
        }
        let (account, mut events) = subscription.into_events();
        assert!(events.take_ready().has_notices());
        assert_eq!(events.next_notice(), Some(left(0)));
        publisher.notify(left(1000));
        assert_eq!(events.end(), None, "{account:?}");
        publisher.notify(left(1001));
        assert_eq!(events.end(), Some(End::Interrupted));
        assert_eq!(events.next_notice(), None);
    }

    #[test]
    fn read_marks_are_merged_and_may_be_dropped() {
        let (publisher, subscription) = subscribe();
        let (_, mut events) = subscription.into_events();
        publisher.notify(seen("#a", 1));
        publisher.notify(left(7));
        publisher.notify(seen("#a", 2));
        assert!(events.has_new_notices());
        assert_eq!(events.next_notice(), Some(seen("#a", 2)));
        assert_eq!(events.next_notice(), Some(left(7)));
        assert_eq!(events.next_notice(), None);
        assert!(!events.has_new_notices());
        for room in 0..1000 {
            publisher.notify(seen(&format!("#{room}"), 1));
        }
        publisher.notify(left(8));
        let mut count = 0;
        while let Some(notice) = events.next_notice() {
            count += 1;
            let is_last = count == NOTICES_WITH_HINTS_MAX + 1;
            assert_eq!(notice == left(8), is_last);
        }
        assert_eq!((count, events.end()), (NOTICES_WITH_HINTS_MAX + 1, None));
    }
}
