//! The display of events: each message is shown, then acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;
use hark_client::sync::lock;
use hark_client::{Event, Events, LinkState, Message, MissingMessages};
use hark_protocol::message::LeftReason;
use tokio::sync::watch;

use super::{Chat, MARK_EVERY, style};
use crate::history::Filed;
use crate::text::escape_name;

/// Largest number of messages that are filed together.
const BATCH_MAX: usize = 64;

/// Content of the last notice about the link.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    /// Address of the server, if the link is up.
    server: Option<Arc<str>>,
    /// Whether the failure is permanent.
    is_permanent: bool,
}

impl Chat {
    /// Shows events until the client has ended.
    pub(super) async fn watch(self: Arc<Self>, mut events: Events) {
        // Attempts between two states are not shown, except that a failure
        // turned out to be permanent.
        let mut shown = None;
        let mut identity_changes = self.identity_changes.subscribe();
        // Events that follow a command that changes the user and has not
        // printed its outcome. Bounded by one window, since none is
        // acknowledged.
        let mut held = VecDeque::new();
        let mut marking = tokio::time::interval(MARK_EVERY);
        loop {
            tokio::select! {
                _ = marking.tick() => self.spawn_marks(),
                event = events.next() => match event {
                    // Link states are shown at once.
                    Some(Event::Link(state)) => self.show_link(&state, &mut shown).await,
                    Some(event) => held.push_back(event),
                    None => break,
                },
                () = identity_settled(&mut identity_changes), if !held.is_empty() => {
                    while held.len() < BATCH_MAX
                        && let Some(Some(event)) = events.next().now_or_never()
                    {
                        match event {
                            Event::Link(state) => self.show_link(&state, &mut shown).await,
                            event => held.push_back(event),
                        }
                    }
                    self.show_held(&mut held).await;
                }
            }
        }
        identity_settled(&mut identity_changes).await;
        while !held.is_empty() {
            self.show_held(&mut held).await;
        }
    }

    /// Shows the first event, or the first messages, which are filed together.
    async fn show_held(self: &Arc<Self>, held: &mut VecDeque<Event>) {
        let user = match held.front() {
            Some(Event::Message(message)) => message.user.clone(),
            _ => {
                if let Some(event) = held.pop_front() {
                    self.show_event(event).await;
                }
                return;
            }
        };
        let is_next =
            |event: &Event| matches!(event, Event::Message(message) if message.user == user);
        let mut messages = Vec::new();
        while messages.len() < BATCH_MAX
            && held.front().is_some_and(is_next)
            && let Some(Event::Message(message)) = held.pop_front()
        {
            messages.push(message);
        }
        self.show_messages(messages).await;
    }

    /// Starts to mark shown messages as read, if there are any and the former marks
    /// are answered.
    fn spawn_marks(self: &Arc<Self>) {
        let is_idle = !self.is_marking.load(Ordering::Relaxed);
        let has_marks = !lock(&self.marks).is_empty() || !lock(&self.read).is_empty();
        if is_idle && has_marks && !self.jobs.is_closed() {
            self.is_marking.store(true, Ordering::Relaxed);
            let chat = Arc::clone(self);
            self.jobs.spawn(async move {
                chat.mark_records().await;
                chat.mark_read().await;
                chat.is_marking.store(false, Ordering::Relaxed);
            });
        }
    }

    async fn show_event(self: &Arc<Self>, event: Event) {
        match event {
            Event::Message(message) => self.show_messages(vec![message]).await,
            Event::TakenOver { user } => {
                let user = escape_name(user.as_str());
                self.notice(&format!(
                    "another connection now receives the messages of {user}; connect to receive them here"
                ))
                .await;
            }
            Event::IdentityLost { user, refusal } => {
                self.become_user(None);
                let (user, why) = (escape_name(user.as_str()), &refusal.explanation);
                self.notice(&format!(
                    "no longer logged in as {user}: {why}; use login, connect or disconnect"
                ))
                .await;
            }
            Event::Gap(gap) => self.show_gap(gap).await,
            Event::Joined { room, .. } => {
                self.names.learn_rooms([&room]);
                self.notice(&format!("you are now in {room}")).await;
            }
            Event::Left { room, reason } => {
                let cause = match reason {
                    LeftReason::Left => format!("you have left {room}"),
                    LeftReason::Expelled => format!("you were expelled from {room}"),
                    LeftReason::Deleted => format!("{room} was deleted"),
                };
                self.notice(&cause).await;
            }
            Event::NewDevice { name: Some(name) } => {
                self.notice(&format!("you have a new device: {name}")).await;
            }
            Event::Seen { room, sequence } => self.mark_seen_elsewhere(room, sequence).await,
            Event::NewDevice { name: None } | Event::Link(_) | Event::CaughtUp { .. } => {}
        }
    }

    /// Files messages of one user, then shows and acknowledges each.
    async fn show_messages(self: &Arc<Self>, messages: Vec<Message>) {
        let _showing = self.showing.lock().await;
        let (messages, filed) = self.file(messages).await;
        let mut filed = filed.into_iter();
        for message in messages {
            self.show_message(message, filed.next()).await;
        }
    }

    /// Shows a message unless its sender is ignored, then acknowledges it.
    async fn show_message(&self, message: Message, filed: Option<Filed>) {
        if let Some(filed) = &filed {
            let place = (message.user.clone(), filed.conversation.clone());
            lock(&self.read).insert(place, filed.id);
        }
        if filed.is_some_and(|filed| filed.is_ignored) {
            return self.acknowledge(message).await;
        }
        self.names.learn(&message.delivery.sender);
        self.names.learn_rooms(&message.room);
        let room = message.room.as_ref();
        self.terminal
            .show(self.style.message(room, &message.delivery, &style::now()))
            .await;
        if let Some(room) = &message.room {
            lock(&self.marks).insert(room.clone(), message.delivery.sequence);
        }
        self.acknowledge(message).await;
    }

    async fn acknowledge(&self, message: Message) {
        if let Err(error) = message.ack() {
            self.notice(&format!("this message will be delivered again: {error}"))
                .await;
        }
    }

    /// Shows that messages are missing, then acknowledges the gap.
    async fn show_gap(self: &Arc<Self>, gap: MissingMessages) {
        let _showing = self.showing.lock().await;
        self.file_gap(gap.user.clone(), gap.gap.clone()).await;
        self.notice(&style::missing(&gap.gap)).await;
        gap.ack();
    }

    /// Marks the messages of rooms that were shown as read. A mark is a convenience:
    /// its failure is not reported.
    pub(super) async fn mark_read(&self) {
        let marks = std::mem::take(&mut *lock(&self.marks));
        for (room, number) in marks {
            drop(self.handle.seen(room, number).await);
        }
    }

    async fn show_link(&self, state: &LinkState, shown: &mut Option<Shown>) {
        let server = match state {
            LinkState::Up { server } => Some(Arc::clone(server)),
            _ => None,
        };
        self.current_server.set(server.as_deref());
        let now = Shown {
            server,
            is_permanent: matches!(
                state,
                LinkState::Down {
                    is_permanent: true,
                    ..
                }
            ),
        };
        if *state == LinkState::Connecting || shown.as_ref() == Some(&now) {
            return;
        }
        *shown = Some(now);
        if let Some(notice) = self.style.link(state) {
            self.terminal.show(notice).await;
        }
    }
}

/// Waits until no command that changes the user is pending.
async fn identity_settled(identity_changes: &mut watch::Receiver<usize>) {
    // The chat keeps the sender while it watches.
    drop(identity_changes.wait_for(|count| *count == 0).await);
}
