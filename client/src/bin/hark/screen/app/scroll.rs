//! The part of a conversation that is on the screen, and the conversation that is
//! shown.

use super::super::conversation::{
    Conversation, ENTRIES_MAX, IDLE_ENTRIES_MAX, Older, Place, Scroll,
};
use super::super::layout::Areas;
use super::super::rows::RowContext;
use super::{Action, App, Link};
use crate::history::EntryId;

/// A position: an entry, and the rows of it that are hidden below the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    index: usize,
    hidden_rows: usize,
}

impl App {
    /// Returns the circumstances of the layout of messages.
    pub(crate) fn row_context<'a>(
        &'a self,
        is_lookalike: &'a dyn Fn(&hark_protocol::UserName) -> bool,
    ) -> RowContext<'a> {
        RowContext {
            columns: usize::from(Areas::of(self).messages.width),
            zone: &self.setting.zone,
            theme: self.setting.theme,
            is_up: matches!(self.link, Link::Up(_)),
            is_lookalike,
        }
    }

    /// Returns the index of the last entry on the screen and its hidden rows; `None`
    /// if there is no entry.
    pub(crate) fn anchor(&self) -> Option<(usize, usize)> {
        anchor(self.conversations.current()).map(|anchor| (anchor.index, anchor.hidden_rows))
    }

    fn page_rows(&self) -> usize {
        usize::from(Areas::of(self).messages.height)
            .saturating_sub(1)
            .max(1)
    }

    pub(super) fn page_up(&mut self) {
        self.scroll_up(self.page_rows());
    }

    pub(super) fn page_down(&mut self) {
        self.scroll_down(self.page_rows());
    }

    pub(super) fn scroll_up(&mut self, rows: usize) {
        let never = |_: &hark_protocol::UserName| false;
        let (scroll, is_at_top) = {
            let context = self.row_context(&never);
            let conversation = self.conversations.current();
            let Some(mut at) = anchor(conversation) else {
                return self.load_older();
            };
            at.hidden_rows += rows;
            while at.index > 0 {
                let height = context.height(conversation, at.index);
                if at.hidden_rows < height {
                    break;
                }
                at.hidden_rows -= height;
                at.index -= 1;
            }
            let page = usize::from(Areas::of(self).messages.height);
            let is_at_top = keep_page_full(&mut at, page, conversation, &context);
            (at.scroll(conversation), is_at_top)
        };
        self.conversations.current_mut().scroll = scroll;
        if is_at_top {
            self.load_older();
        }
    }

    pub(super) fn scroll_down(&mut self, rows: usize) {
        let never = |_: &hark_protocol::UserName| false;
        let scroll = {
            let context = self.row_context(&never);
            let conversation = self.conversations.current();
            let Some(mut at) = anchor(conversation) else {
                return;
            };
            lower(&mut at, rows, conversation, &context);
            at.scroll(conversation)
        };
        self.conversations.current_mut().scroll = scroll;
    }

    pub(super) fn scroll_to_bottom(&mut self) {
        self.conversations.current_mut().scroll = Scroll::Bottom;
    }

    pub(super) fn scroll_to_top(&mut self) {
        self.scroll_up(usize::MAX / 2);
    }

    /// Shows an entry in the lower part of the screen.
    pub(super) fn scroll_to(&mut self, id: u64) {
        let conversation = self.conversations.current_mut();
        conversation.scroll = Scroll::At { id, hidden_rows: 0 };
        self.scroll_down(self.page_rows() / 2);
    }

    /// Asks for older messages, unless there are none or they have been asked for.
    pub(super) fn load_older(&mut self) {
        let conversation = self.conversations.current_mut();
        if conversation.older != Older::Unknown || conversation.place == Place::Home {
            return;
        }
        conversation.older = Older::Loading;
        let action = Action::LoadOlder {
            place: conversation.place.clone(),
            room: conversation.room().cloned(),
            before: conversation.oldest_in_room().unwrap_or_default(),
            before_filed: conversation.oldest_filed(),
        };
        self.actions.push(action);
    }

    /// Loads older messages until an entry of the local history is there, and shows it.
    pub(super) fn load_until(&mut self, filed: EntryId) {
        let conversation = self.conversations.current();
        let found = conversation
            .entries
            .iter()
            .find(|entry| entry.filed == Some(filed));
        if let Some(id) = found.map(|entry| entry.id) {
            self.loading_until = None;
            return self.scroll_to(id);
        }
        if conversation.older == Older::None || conversation.entries.len() >= ENTRIES_MAX {
            self.loading_until = None;
            self.hint = Some("the message is too old to be shown here: /history".to_owned());
            return;
        }
        self.loading_until = Some(filed);
        self.load_older();
    }

    /// Loads messages if the screen is not full.
    pub(super) fn load_older_if_needed(&mut self) {
        let conversation = self.conversations.current();
        let unread = usize::try_from(conversation.unread_at_open).unwrap_or(usize::MAX);
        if conversation.entries.len() < self.page_rows().max(unread) {
            self.load_older();
        }
    }

    /// Shows the conversation of an index.
    pub(super) fn select(&mut self, index: usize) {
        if index == self.conversations.index() || index >= self.conversations.list().len() {
            return;
        }
        let before = self.conversations.current_mut();
        before.new_since = None;
        before.scroll = Scroll::Bottom;
        before.trim(IDLE_ENTRIES_MAX);
        let draft = self.input.swap(Default::default());
        self.conversations.current_mut().draft = draft;
        self.conversations.select(index);
        self.completing = None;
        self.loading_until = None;
        let now = self.conversations.current_mut();
        now.unread_at_open = now.unread;
        now.place_new_since();
        let draft = std::mem::take(&mut now.draft);
        self.input.swap(draft);
        self.load_older_if_needed();
    }

    /// Shows the conversation at a place, which is added if it is new.
    pub(super) fn show(&mut self, place: &Place) {
        let index = self.conversations.open(place);
        self.select(index);
    }

    /// Closes a conversation; it comes back with its next message.
    pub(super) fn close(&mut self, index: usize) {
        if index == self.conversations.index() {
            let next = self.conversations.previous().unwrap_or(0);
            let next = if next == index { 0 } else { next };
            self.select(next);
        }
        self.conversations.remove(index);
    }

    /// Records that the state was drawn: what is on the screen is acknowledged, and
    /// read if the terminal has the focus.
    pub(super) fn drawn(&mut self) {
        let Some(at) = anchor(self.conversations.current()) else {
            return;
        };
        let is_focused = self.is_focused;
        let conversation = self.conversations.current_mut();
        let shown = conversation.entries.iter_mut().take(at.index + 1);
        let acks: Vec<u64> = shown.filter_map(|entry| entry.ack.take()).collect();
        self.actions.extend(acks.into_iter().map(Action::Ack));
        let conversation = self.conversations.current_mut();
        if is_focused && conversation.scroll == Scroll::Bottom && self.overlay.is_none() {
            let (number, filed) = conversation.mark_read();
            let (place, room) = (conversation.place.clone(), conversation.room().cloned());
            if let (Some(number), Some(room)) = (number, room) {
                self.actions.push(Action::Mark(room, number));
            }
            self.actions
                .extend(filed.map(|filed| Action::ReadUpTo(place, filed)));
        }
    }
}

impl Anchor {
    fn scroll(self, conversation: &Conversation) -> Scroll {
        let is_last = self.index + 1 == conversation.entries.len();
        match conversation.entries.get(self.index) {
            Some(entry) if !is_last || self.hidden_rows > 0 => Scroll::At {
                id: entry.id,
                hidden_rows: self.hidden_rows,
            },
            _ => Scroll::Bottom,
        }
    }
}

fn anchor(conversation: &Conversation) -> Option<Anchor> {
    let last = conversation.entries.len().checked_sub(1)?;
    let bottom = Anchor {
        index: last,
        hidden_rows: 0,
    };
    Some(match conversation.scroll {
        Scroll::Bottom => bottom,
        Scroll::At { id, hidden_rows } => conversation
            .index_of(id)
            .map_or(bottom, |index| Anchor { index, hidden_rows }),
    })
}

/// Moves an anchor down by so many rows, at most to the bottom.
fn lower(at: &mut Anchor, rows: usize, conversation: &Conversation, context: &RowContext<'_>) {
    let mut left = rows;
    while left > 0 {
        if at.hidden_rows >= left {
            at.hidden_rows -= left;
            return;
        }
        left -= at.hidden_rows;
        at.hidden_rows = 0;
        if at.index + 1 >= conversation.entries.len() {
            return;
        }
        at.index += 1;
        at.hidden_rows = context.height(conversation, at.index);
    }
}

/// Moves an anchor down until a page above it is full. Returns whether the first row
/// of the conversation is on the page.
fn keep_page_full(
    at: &mut Anchor,
    page: usize,
    conversation: &Conversation,
    context: &RowContext<'_>,
) -> bool {
    let first = context.height(conversation, at.index);
    at.hidden_rows = at.hidden_rows.min(first.saturating_sub(1));
    let mut above = first - at.hidden_rows;
    let mut index = at.index;
    while above < page && index > 0 {
        index -= 1;
        above += context.height(conversation, index);
    }
    if above < page {
        lower(at, page - above, conversation, context);
    }
    index == 0 && above <= page
}
