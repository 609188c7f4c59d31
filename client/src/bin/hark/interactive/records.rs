//! The local history of the chat: messages are filed before they are shown and
//! acknowledged, own lines before they are sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytestring::ByteString;
use hark_client::sync::lock;
use hark_client::{Message, RequestError};
use hark_protocol::message::Gap;
use hark_protocol::{RoomName, Sequence, UserName};

use super::{Chat, style};
use crate::history::{
    Conversation, Entry, EntryId, Filed, History, HistoryError, Outcome, Received, now_ms,
};
use crate::text::escape_name;

/// Largest number of own lines that can be taken back.
const TYPED_MAX: usize = 1000;

/// Largest number of messages that `history` shows.
const SHOWN_MAX: usize = 256;

impl Chat {
    /// Runs an operation on the history of a user, on a thread that may block. A failure
    /// is shown once.
    async fn recorded<T: Send + 'static>(
        self: &Arc<Self>,
        user: UserName,
        operation: impl FnOnce(&History) -> Result<T, HistoryError> + Send + 'static,
    ) -> Option<T> {
        let (file, servers) = (self.records.clone(), self.servers.clone());
        let work = move || {
            file.of(&servers, &user)
                .and_then(|history| operation(&history))
        };
        // The task is cancelled only at the end of the process.
        match tokio::task::spawn_blocking(work).await.ok()? {
            Ok(done) => Some(done),
            Err(error) => {
                self.show_record_failure(error.to_string());
                None
            }
        }
    }

    fn show_record_failure(self: &Arc<Self>, failure: String) {
        let former = lock(&self.record_failure).replace(failure.clone());
        if former.as_ref() != Some(&failure) {
            let chat = Arc::clone(self);
            self.jobs.spawn(async move { chat.notice(&failure).await });
        }
    }

    /// Files messages of one user, in order. Returns the messages, and their places
    /// unless the history has failed.
    pub(super) async fn file(
        self: &Arc<Self>,
        messages: Vec<Message>,
    ) -> (Vec<Message>, Vec<Filed>) {
        let Some(user) = messages.first().map(|message| message.user.clone()) else {
            return (messages, Vec::new());
        };
        let shared = Arc::new(messages);
        let filing = Arc::clone(&shared);
        let filed = self.recorded(user, move |history| {
            let received = filing.iter().map(|message| Received {
                room: message.room.as_ref(),
                delivery: &message.delivery,
            });
            history.add_received(&received.collect::<Vec<_>>())
        });
        let filed = filed.await.unwrap_or_default();
        (Arc::into_inner(shared).unwrap_or_default(), filed)
    }

    /// Files the notice of missing messages.
    pub(super) async fn file_gap(self: &Arc<Self>, user: UserName, gap: Gap) {
        self.recorded(user, move |history| history.add_missing(&gap, now_ms()))
            .await;
    }

    /// Marks the entries that were shown as read in the history.
    pub(super) async fn mark_records(self: &Arc<Self>) {
        let read = std::mem::take(&mut *lock(&self.read));
        for ((user, conversation), id) in read {
            let mark = move |history: &History| history.mark_read(&conversation, id);
            self.recorded(user, mark).await;
        }
    }

    /// Marks a room as read that was read on another device.
    pub(super) async fn mark_seen_elsewhere(self: &Arc<Self>, room: RoomName, up_to: Sequence) {
        if let Some(user) = self.user.get() {
            let mark = move |history: &History| history.mark_seen(&room, up_to);
            self.recorded(user, mark).await;
        }
    }

    /// Files an own line before it is sent; `None` if the sender is anonymous.
    pub(super) async fn file_typed(
        self: &Arc<Self>,
        recipient: &UserName,
        text: &ByteString,
    ) -> Option<EntryId> {
        let user = self.expected_user.get()?;
        let (recipient, text) = (recipient.clone(), text.clone());
        let add = move |history: &History| history.add_pending(&recipient, &text, now_ms());
        let (_, id) = self.recorded(user, add).await?;
        let mut typed = lock(&self.typed);
        if typed.len() == TYPED_MAX {
            typed.remove(0);
        }
        typed.push(id);
        Some(id)
    }

    /// Files the outcome of an own line. Returns whether the line is kept for the next
    /// start instead, since hark ends.
    pub(super) async fn file_outcome(
        self: &Arc<Self>,
        id: EntryId,
        outcome: &Result<Option<Sequence>, RequestError>,
    ) -> bool {
        let is_leaving = self.is_leaving.load(Ordering::Relaxed);
        let is_in_memory = self.records.is_in_memory();
        let outcome = match outcome {
            Ok(number) => Outcome::Stored(*number),
            Err(RequestError::NotSent(_)) if is_leaving && !is_in_memory => return true,
            Err(error @ RequestError::Unknown { .. }) => Outcome::Unknown(error.to_string()),
            Err(error) => Outcome::Refused(error.to_string()),
        };
        lock(&self.typed).retain(|typed| *typed != id);
        let file = self.records.clone();
        let work = move || file.resolve(id, &outcome);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(work).await {
            self.show_record_failure(error.to_string());
        }
        false
    }

    /// Files the room of a conversation under the other user.
    pub(super) async fn file_talk(self: Arc<Self>, other: UserName, room: RoomName) {
        if let Some(user) = self.user.get() {
            let learn = move |history: &History| history.learn_talk(&other, &room);
            self.recorded(user, learn).await;
        }
    }

    /// Sends the lines of former runs, in the order in which they were typed.
    pub(super) async fn send_kept(self: Arc<Self>, user: UserName) {
        let Some(adopted) = self.recorded(user, History::adopt).await else {
            return;
        };
        if adopted.unknown > 0 {
            let count = adopted.unknown;
            self.notice(&format!(
                "hark ended before the server had answered {count} of your messages: \
                 history shows them as unknown"
            ))
            .await;
        }
        for unsent in adopted.unsent {
            let typed = style::local_time(unsent.typed_ms, &style::now());
            let recipient = escape_name(unsent.recipient.as_str()).into_owned();
            self.notice(&format!("sending what you typed to {recipient} at {typed}"))
                .await;
            let (recipient, text) = (unsent.recipient, unsent.text.into());
            Arc::clone(&self)
                .send(recipient, text, Some(unsent.id))
                .await;
        }
    }

    /// Takes back the last own line that was not written to a server.
    pub(super) async fn undo(self: Arc<Self>) {
        let last = lock(&self.typed).pop();
        let Some(id) = last else {
            return self.notice("there is no line to take back").await;
        };
        let file = self.records.clone();
        let withdrawn = tokio::task::spawn_blocking(move || file.withdraw(id)).await;
        match withdrawn {
            Ok(Ok(Some(text))) => self.notice(&format!("taken back: {text}")).await,
            Ok(Ok(None)) => self.notice("the last line is on its way already").await,
            Ok(Err(error)) => self.show_record_failure(error.to_string()),
            Err(_) => {}
        }
    }

    /// Ignores a user from now on, or no longer.
    pub(super) async fn ignore(self: Arc<Self>, other: UserName, is_ignored: bool) {
        let Some(user) = self.user.get() else {
            return self.notice("log in first: the list belongs to you").await;
        };
        let name = other.clone();
        let set = move |history: &History| history.ignore(&name, is_ignored);
        if self.recorded(user, set).await.is_some() {
            let name = escape_name(other.as_str());
            let done = if is_ignored {
                format!("messages of {name} are not shown any more; unignore {name} ends this")
            } else {
                format!("messages of {name} are shown again")
            };
            self.notice(&done).await;
        }
    }

    /// Returns the newest entries of a conversation, the oldest first.
    async fn recalled(self: &Arc<Self>, with: Conversation, count: usize) -> Vec<Entry> {
        let Some(user) = self.user.get() else {
            return Vec::new();
        };
        let page = move |history: &History| history.page(&with, None, count);
        let mut page = self.recorded(user, page).await.unwrap_or_default();
        page.reverse();
        page
    }

    /// Shows the end of the conversation with a user, as far as it was seen here.
    pub(super) async fn recall(self: Arc<Self>, other: UserName, count: u32) {
        let count = usize::try_from(count).unwrap_or(SHOWN_MAX).min(SHOWN_MAX);
        let page = self.recalled(Conversation::User(other), count).await;
        if page.is_empty() {
            return self.notice("the local history has no messages").await;
        }
        let now = style::now();
        let lines: Vec<_> = page
            .iter()
            .map(|entry| self.style.entry(entry, &now))
            .collect();
        self.terminal.show(lines.join("\n")).await;
    }
}
