//! The local history, and older messages of the server.

use hark_client::RequestError;

use super::super::archive::place_of;
use super::super::conversation::{Body, Entry, Older, Place, Said, Status, Tone};
use super::overlays::Overlay;
use super::{Action, App, Page, Past};
use crate::history::{EntryId, Summary, Unsent};
use crate::interactive::style::Style as PlainStyle;
use crate::text::escape_name;

/// Formats outcomes as the line mode does.
const PLAIN: PlainStyle = PlainStyle { is_colored: false };

/// Largest number of own messages that can be taken back.
const TYPED_MAX: usize = 1_000;

impl App {
    /// Adds the conversations of the local history, those with persons first, and shows
    /// the newest one unless another is shown.
    pub(super) fn opened(&mut self, mut summaries: Vec<Summary>) {
        let newest = summaries
            .first()
            .map(|newest| place_of(&newest.conversation));
        summaries.sort_by_key(|summary| place_of(&summary.conversation));
        for summary in summaries {
            let place = place_of(&summary.conversation);
            if let Place::Person(user) = &place {
                self.names.learn(user);
            }
            self.conversations.open(&place);
            if let Some(conversation) = self.conversations.get_mut(&place) {
                conversation.unread = summary.unread;
                conversation.mentions = summary.mentions;
                conversation.read_filed = Some(summary.read_up_to);
                if let (Some(room), Place::Person(_)) = (summary.last.room, &place) {
                    conversation.talk = Some(room);
                }
            }
        }
        let is_home = self.conversations.current().place == Place::Home;
        if let (true, Some(newest)) = (is_home && self.input.is_empty(), newest) {
            self.show(&newest);
        }
    }

    /// Sends a line of a former run.
    pub(super) fn kept(&mut self, unsent: Unsent) {
        let Unsent {
            id: filed,
            recipient,
            text,
            typed_ms,
        } = unsent;
        let place = self.place_of_recipient(&recipient);
        self.conversations.open(&place);
        let (id, sender) = (self.new_id(), self.me.clone());
        let entry = Entry {
            id,
            time_ms: typed_ms,
            ack: None,
            filed: Some(filed),
            body: Body::Said(Said {
                sender,
                text: text.as_str().into(),
                position: None,
                status: Some(Status::Pending),
                awaits_echo: recipient.as_str().starts_with('#'),
                is_mention: false,
            }),
        };
        if let Some(conversation) = self.conversations.get_mut(&place) {
            // A page of the history may have brought it.
            conversation
                .entries
                .retain(|entry| entry.filed != Some(filed));
            conversation.add_own(entry);
        }
        let name = escape_name(recipient.as_str());
        self.hint = Some(format!("sending what you typed to {name} before"));
        self.actions.push(Action::Send {
            id,
            recipient,
            text: text.into(),
            filed: Some(filed),
        });
    }

    /// Notes the place of an own message in the local history.
    pub(super) fn filed(&mut self, id: u64, filed: EntryId) {
        for conversation in self.conversations.iter_mut() {
            let mut newest_first = conversation.entries.iter_mut().rev();
            if let Some(entry) = newest_first.find(|entry| entry.id == id) {
                entry.filed = Some(filed);
                break;
            }
        }
        if self.typed.len() == TYPED_MAX {
            self.typed.remove(0);
        }
        self.typed.push(filed);
    }

    /// Takes the last own message back.
    pub(super) fn undo(&mut self) {
        match self.typed.pop() {
            Some(filed) => self.actions.push(Action::Undo(filed)),
            None => self.hint = Some("there is no line to take back".to_owned()),
        }
    }

    /// Removes a message that was taken back, and puts its text into an empty input.
    pub(super) fn undone(&mut self, filed: EntryId, text: Option<String>) {
        let Some(text) = text else {
            self.hint = Some("the last line is on its way already".to_owned());
            return;
        };
        for conversation in self.conversations.iter_mut() {
            conversation
                .entries
                .retain(|entry| entry.filed != Some(filed));
        }
        self.hint = Some("taken back".to_owned());
        if self.input.is_empty() {
            self.input.insert(&text);
        }
    }

    /// Shows the results of a search in the local history, unless the query has changed.
    pub(super) fn found(&mut self, searched: &str, hits: Vec<Past>) {
        if let Some(Overlay::Search { query, older, .. }) = &mut self.overlay
            && query == searched
        {
            *older = hits;
        }
    }

    /// Adds a page of older messages.
    pub(super) fn older(
        &mut self,
        place: &Place,
        is_of_room: bool,
        outcome: Result<Page, RequestError>,
    ) {
        let page = match outcome {
            Ok(page) => page,
            Err(error) => {
                if let Some(conversation) = self.conversations.get_mut(place) {
                    conversation.older = Older::None;
                }
                let why = PLAIN.error(&error);
                return self.notice_in(place, format!("no older messages: {why}"), Tone::Bad);
            }
        };
        let is_end = page.is_end || page.messages.is_empty();
        let messages = page.messages.into_iter();
        let entries = messages.map(|past| self.past_entry(past)).collect();
        if let Some(conversation) = self.conversations.get_mut(place) {
            conversation.add_older(entries);
            // The room of a conversation may have become known in the meantime.
            let is_end = is_end && is_of_room == conversation.room().is_some();
            conversation.older = if is_end { Older::None } else { Older::Unknown };
            conversation.place_new_since();
        }
        if self.conversations.current().place == *place {
            match self.loading_until {
                Some(filed) => self.load_until(filed),
                None => self.load_older_if_needed(),
            }
        }
    }

    fn past_entry(&mut self, past: Past) -> Entry {
        let is_own = past.sender.is_some() && past.sender == self.me;
        if let Some(sender) = &past.sender {
            self.names.learn(sender);
        }
        let body = match past.missing {
            Some(count) => Body::Notice(
                format!("{count} messages are missing: the server has removed them"),
                Tone::Bad,
            ),
            None => Body::Said(Said {
                is_mention: !is_own && self.mentions_me(&past.text),
                sender: past.sender,
                text: past.text,
                position: past.position,
                status: past.status.or(is_own.then_some(Status::Stored)),
                awaits_echo: false,
            }),
        };
        Entry {
            id: self.new_id(),
            time_ms: past.time_ms,
            ack: None,
            filed: past.filed,
            body,
        }
    }
}
