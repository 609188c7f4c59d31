//! A conversation with a person or in a room: its messages in order, its unread
//! counts and its scroll position. Pure.

use std::collections::VecDeque;

use bytestring::ByteString;
use hark_client::RequestError;
use hark_protocol::{RoomName, Sequence, UserName};

use super::editor::Draft;
use crate::history::EntryId;

/// Largest number of entries kept for the conversation on the screen.
pub(crate) const ENTRIES_MAX: usize = 4_000;

/// Largest number of entries kept for each other conversation.
pub(crate) const IDLE_ENTRIES_MAX: usize = 200;

/// The other side of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// Notices of the program.
    Home,
    /// A person.
    Person(UserName),
    /// A room.
    Room(RoomName),
}

/// The state of an own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Stored,
    Failed(RequestError),
    /// Not stored, or with an unknown outcome, in a former run.
    Former(String),
}

/// Position of a message in a log of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Whether the log is a room; otherwise it is an inbox.
    pub(crate) is_room: bool,
    pub(crate) number: Sequence,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// `None` for an anonymous sender.
    pub(crate) sender: Option<UserName>,
    pub(crate) text: ByteString,
    /// `None` until the server has named it.
    pub(crate) position: Option<Position>,
    /// State of an own message; `None` for that of another user.
    pub(crate) status: Option<Status>,
    /// Whether the server delivers an own message back, and has not yet.
    pub(crate) awaits_echo: bool,
    pub(crate) is_mention: bool,
}

/// The urgency of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Bad,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Said(Said),
    /// A notice, escaped, possibly of several lines.
    Notice(String, Tone),
}

/// One message or notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number within this run.
    pub(crate) id: u64,
    pub(crate) time_ms: u64,
    pub(crate) body: Body,
    /// The acknowledgement that waits until the entry was on the screen.
    pub(crate) ack: Option<u64>,
    /// The place in the local history.
    pub(crate) filed: Option<EntryId>,
}

/// The part of a conversation that is on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Scroll {
    /// The newest entries.
    #[default]
    Bottom,
    /// The entry of this id is the last one, without so many of its last rows.
    At { id: u64, hidden_rows: usize },
}

/// The older messages of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Older {
    /// There may be some.
    #[default]
    Unknown,
    /// They have been asked for.
    Loading,
    /// There are none.
    None,
}

/// A conversation.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    pub(crate) place: Place,
    /// The room of a conversation with a person, if the server keeps one.
    pub(crate) talk: Option<RoomName>,
    /// Whether the user is a member of the room.
    pub(crate) is_member: bool,
    pub(crate) members: Option<u64>,
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) unread: u64,
    pub(crate) mentions: u64,
    pub(crate) is_muted: bool,
    pub(crate) scroll: Scroll,
    /// The first entry that was unread when the conversation was opened.
    pub(crate) new_since: Option<u64>,
    /// Number of unread messages when the conversation was opened.
    pub(crate) unread_at_open: u64,
    pub(crate) older: Older,
    pub(crate) draft: Draft,
    /// Number up to which the messages of the room are read.
    pub(crate) read_up_to: Sequence,
    /// Number up to which the unread count includes the messages of the room.
    pub(crate) counted_up_to: Sequence,
    /// The last entry of the local history that was read.
    pub(crate) read_filed: Option<EntryId>,
}

impl Entry {
    pub(crate) const fn said(&self) -> Option<&Said> {
        match &self.body {
            Body::Said(said) => Some(said),
            Body::Notice(..) => None,
        }
    }

    /// Returns whether the place of the entry in the order is not known yet.
    fn is_unconfirmed(&self) -> bool {
        self.said()
            .is_some_and(|said| said.awaits_echo || said.status == Some(Status::Pending))
    }

    fn position(&self) -> Option<Position> {
        self.said().and_then(|said| said.position)
    }
}

impl Conversation {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            place,
            talk: None,
            is_member: true,
            members: None,
            entries: VecDeque::new(),
            unread: 0,
            mentions: 0,
            is_muted: false,
            scroll: Scroll::Bottom,
            new_since: None,
            unread_at_open: 0,
            older: Older::Unknown,
            draft: Draft::default(),
            read_up_to: Sequence(0),
            counted_up_to: Sequence(0),
            read_filed: None,
        }
    }

    /// Returns the room of the server that holds the conversation.
    pub(crate) const fn room(&self) -> Option<&RoomName> {
        match &self.place {
            Place::Room(room) => Some(room),
            Place::Person(_) => self.talk.as_ref(),
            Place::Home => None,
        }
    }

    /// Returns the recipient of a line that is typed here.
    pub(crate) fn recipient(&self) -> Option<UserName> {
        match (self.room(), &self.place) {
            // Every room name is a user name.
            (Some(room), _) => room.as_str().parse().ok(),
            (None, Place::Person(user)) => Some(user.clone()),
            (None, _) => None,
        }
    }

    /// Returns the name as it is shown, escaped.
    pub(crate) fn name(&self) -> std::borrow::Cow<'_, str> {
        match &self.place {
            Place::Home => "hark".into(),
            Place::Person(user) => crate::text::escape_name(user.as_str()),
            Place::Room(room) if room.is_conversation() => "(a conversation)".into(),
            Place::Room(room) => room.as_str().into(),
        }
    }

    /// Adds an entry behind the confirmed ones: own messages without a place in the
    /// order stay last.
    pub(crate) fn add(&mut self, entry: Entry) {
        let unconfirmed = self.entries.iter().rev();
        let unconfirmed = unconfirmed
            .take_while(|entry| entry.is_unconfirmed())
            .count();
        self.entries.insert(self.entries.len() - unconfirmed, entry);
    }

    /// Adds an own message that has not been answered.
    pub(crate) fn add_own(&mut self, entry: Entry) {
        self.entries.push_back(entry);
    }

    /// Returns whether the message at a position is here, and confirms it if it is an
    /// own one that waits for its place in the order.
    pub(crate) fn confirm(&mut self, position: Position) -> bool {
        let Some(index) = self.find(position) else {
            return false;
        };
        if self.entries.get(index).is_some_and(Entry::is_unconfirmed)
            && let Some(mut entry) = self.entries.remove(index)
        {
            if let Body::Said(said) = &mut entry.body {
                said.awaits_echo = false;
                said.status = Some(Status::Stored);
            }
            self.add(entry);
        }
        true
    }

    /// Returns the index of the message at a position. Confirmed messages of a log are
    /// in order, so the search ends at the first lower number.
    fn find(&self, position: Position) -> Option<usize> {
        for (index, entry) in self.entries.iter().enumerate().rev() {
            let Some(other) = entry.position() else {
                continue;
            };
            if other == position {
                return Some(index);
            }
            let is_lower = other.is_room == position.is_room && other.number < position.number;
            if is_lower && !entry.is_unconfirmed() {
                return None;
            }
        }
        None
    }

    /// Sets the outcome of an own message. If the room has sent the message back before,
    /// it is in its place already.
    pub(crate) fn answer(
        &mut self,
        id: u64,
        outcome: Result<Option<Sequence>, RequestError>,
        is_room: bool,
    ) {
        let Some(index) = self.index_of(id) else {
            return;
        };
        let position = match &outcome {
            Ok(Some(number)) => Some(Position {
                is_room,
                number: *number,
            }),
            _ => None,
        };
        if position.is_some_and(|position| self.find(position).is_some()) {
            self.entries.remove(index);
            return;
        }
        let Some(Body::Said(said)) = self.entries.get_mut(index).map(|entry| &mut entry.body)
        else {
            return;
        };
        said.position = position;
        said.awaits_echo &= position.is_some();
        said.status = Some(match outcome {
            Ok(_) => Status::Stored,
            Err(error) => Status::Failed(error),
        });
    }

    /// Adds older messages, which are given the newest first, and drops those that are
    /// here.
    pub(crate) fn add_older(&mut self, page: Vec<Entry>) {
        for entry in page {
            let position = entry.position();
            let is_same = |other: &Entry| {
                let is_there = position.is_some() && other.position() == position;
                is_there || (entry.filed.is_some() && other.filed == entry.filed)
            };
            let is_here = self.entries.iter().any(is_same);
            if is_here {
                continue;
            }
            // Entries of two logs are merged by time.
            let behind = self
                .entries
                .iter()
                .position(|other| other.time_ms > entry.time_ms);
            self.entries
                .insert(behind.unwrap_or(self.entries.len()), entry);
        }
    }

    /// Returns the lowest number of a message of the room.
    pub(crate) fn oldest_in_room(&self) -> Option<Sequence> {
        let positions = self.entries.iter().filter_map(Entry::position);
        let numbers = positions.filter(|position| position.is_room);
        numbers.map(|position| position.number).min()
    }

    /// Returns the first entry of the local history.
    pub(crate) fn oldest_filed(&self) -> Option<EntryId> {
        self.entries.iter().filter_map(|entry| entry.filed).min()
    }

    /// Drops the oldest entries beyond a bound, unless they are not acknowledged or
    /// not answered.
    pub(crate) fn trim(&mut self, entries_max: usize) {
        let is_kept = |entry: &Entry| entry.ack.is_some() || entry.is_unconfirmed();
        while self.entries.len() > entries_max {
            if self.entries.front().is_none_or(is_kept) {
                return;
            }
            self.entries.pop_front();
            self.older = Older::Unknown;
        }
    }

    /// Returns the index of an entry.
    pub(crate) fn index_of(&self, id: u64) -> Option<usize> {
        self.entries.iter().position(|entry| entry.id == id)
    }

    /// Counts a message of another user as unread.
    pub(crate) fn count_unread(&mut self, position: Position, is_mention: bool) {
        if position.is_room && position.number <= self.counted_up_to {
            return;
        }
        if position.is_room {
            self.counted_up_to = position.number;
        }
        self.unread += 1;
        self.mentions += u64::from(is_mention);
    }

    /// Places the "new since" line above the messages that were unread when the
    /// conversation was opened.
    pub(crate) fn place_new_since(&mut self) {
        let Some(back) = usize::try_from(self.unread_at_open)
            .ok()
            .filter(|count| *count > 0)
        else {
            return;
        };
        let others = |entry: &&Entry| entry.said().is_some_and(|said| said.status.is_none());
        let mut unread = self.entries.iter().rev().filter(others);
        if let Some(first) = unread.nth(back - 1) {
            self.new_since = Some(first.id);
            self.unread_at_open = 0;
        }
    }

    /// Marks everything as read. Returns the number to report for the room and the
    /// entry to record in the local history, if they have grown.
    pub(crate) fn mark_read(&mut self) -> (Option<Sequence>, Option<EntryId>) {
        self.unread = 0;
        self.mentions = 0;
        let mut confirmed = self
            .entries
            .iter()
            .rev()
            .filter(|entry| !entry.is_unconfirmed());
        let mut positions = confirmed.clone().filter_map(Entry::position);
        let number = positions.find(|position| position.is_room);
        let number = number.map(|position| position.number);
        let number = number.filter(|number| *number > self.read_up_to);
        let filed = confirmed.find_map(|entry| entry.filed);
        let filed = filed.filter(|filed| Some(*filed) > self.read_filed);
        self.read_up_to = number.unwrap_or(self.read_up_to);
        self.read_filed = filed.or(self.read_filed);
        (number, filed)
    }

    /// Applies a read mark of another device.
    pub(crate) fn seen_elsewhere(&mut self, number: Sequence) {
        self.read_up_to = self.read_up_to.max(number);
        let is_unread = |entry: &&Entry| {
            entry.said().is_some_and(|said| {
                let is_above = said
                    .position
                    .is_none_or(|position| !position.is_room || position.number > number);
                said.status.is_none() && is_above
            })
        };
        let left = self.entries.iter().filter(is_unread);
        let (unread, mentions) = left.fold((0, 0), |(unread, mentions), entry| {
            let is_mention = entry.said().is_some_and(|said| said.is_mention);
            (unread + 1, mentions + u64::from(is_mention))
        });
        if self.unread > unread || number >= self.counted_up_to {
            self.unread = self.unread.min(unread);
            self.mentions = self.mentions.min(mentions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(id: u64, number: Option<u64>, status: Option<Status>) -> Entry {
        Entry {
            id,
            time_ms: id * 1000,
            ack: None,
            filed: None,
            body: Body::Said(Said {
                sender: None,
                text: format!("{id}").into(),
                position: number.map(in_room),
                awaits_echo: status == Some(Status::Pending),
                status,
                is_mention: false,
            }),
        }
    }

    fn in_room(number: u64) -> Position {
        Position {
            is_room: true,
            number: Sequence(number),
        }
    }

    fn ids(conversation: &Conversation) -> Vec<u64> {
        conversation.entries.iter().map(|entry| entry.id).collect()
    }

    fn room() -> Conversation {
        Conversation::new(Place::Room("#team".parse().unwrap()))
    }

    #[test]
    fn own_messages_move_to_their_place_in_the_order() {
        let mut room = room();
        room.add_own(said(1, None, Some(Status::Pending)));
        room.add_own(said(2, None, Some(Status::Pending)));
        room.add(said(3, Some(10), None));
        assert_eq!(ids(&room), [3, 1, 2], "pending ones stay last");
        room.answer(2, Ok(Some(Sequence(12))), true);
        room.answer(1, Ok(Some(Sequence(14))), true);
        assert_eq!(ids(&room), [3, 1, 2], "the order is not known yet");
        assert!(room.confirm(in_room(12)));
        room.add(said(4, Some(13), None));
        assert!(room.confirm(in_room(14)));
        assert_eq!(ids(&room), [3, 2, 4, 1]);
        assert!(!room.confirm(in_room(15)));
    }

    #[test]
    fn message_that_came_back_first_is_shown_once() {
        let mut room = room();
        room.add_own(said(1, None, Some(Status::Pending)));
        room.add(said(2, Some(10), Some(Status::Stored)));
        room.answer(1, Ok(Some(Sequence(10))), true);
        assert_eq!(ids(&room), [2]);
    }

    #[test]
    fn refused_message_keeps_its_place() {
        let mut room = room();
        room.add_own(said(1, None, Some(Status::Pending)));
        room.answer(1, Err(RequestError::NotSent("x".into())), true);
        room.add(said(2, Some(10), None));
        assert_eq!(ids(&room), [1, 2]);
    }

    #[test]
    fn older_messages_are_merged_once() {
        let mut room = room();
        room.add(said(5, Some(50), None));
        room.add_older(vec![
            said(5, Some(50), None),
            said(4, Some(40), None),
            said(3, Some(30), None),
        ]);
        assert_eq!(ids(&room), [3, 4, 5]);
        assert_eq!(room.oldest_in_room(), Some(Sequence(30)));
    }

    #[test]
    fn trimming_keeps_unacknowledged_entries() {
        let mut room = room();
        (1..=9).for_each(|id| room.add(said(id, Some(id), None)));
        room.older = Older::None;
        if let Some(entry) = room.entries.get_mut(4) {
            entry.ack = Some(1);
        }
        room.trim(3);
        assert_eq!(ids(&room), [5, 6, 7, 8, 9]);
        assert_eq!(room.older, Older::Unknown);
    }

    #[test]
    fn counted_messages_are_not_counted_again() {
        let mut room = room();
        (room.unread, room.counted_up_to) = (3, Sequence(10));
        room.count_unread(in_room(9), true);
        assert_eq!((room.unread, room.mentions), (3, 0));
        room.count_unread(in_room(11), true);
        assert_eq!((room.unread, room.mentions), (4, 1));
        room.add(said(1, Some(11), None));
        assert_eq!(room.mark_read(), (Some(Sequence(11)), None));
        assert_eq!((room.unread, room.mark_read()), (0, (None, None)));
    }

    #[test]
    fn read_mark_of_another_device_lowers_the_count() {
        let mut room = room();
        for number in 1..=4 {
            room.add(said(number, Some(number), None));
            room.count_unread(in_room(number), false);
        }
        room.seen_elsewhere(Sequence(3));
        assert_eq!(room.unread, 1);
        room.seen_elsewhere(Sequence(4));
        assert_eq!(room.unread, 0);
    }
}
