//! Messages and notices of the server.

use hark_client::LinkState;
use hark_protocol::message::{Gap, LeftReason};
use hark_protocol::{DeviceName, RoomName, Sequence, UserName};

use super::super::conversation::{
    Body, ENTRIES_MAX, Entry, IDLE_ENTRIES_MAX, Place, Position, Said, Scroll, Status, Tone,
};
use super::{Action, App, Link, Received};
use crate::command::Command;
use crate::interactive::style;
use crate::text::escape_name;

impl App {
    /// Adds a received message to its conversation.
    pub(super) fn received(&mut self, received: Received) {
        let Received {
            ack,
            filed,
            is_ignored,
            user,
            room,
            delivery,
        } = received;
        if self.me.as_ref() != Some(&user) {
            self.become_user(Some(user));
        }
        if is_ignored {
            self.actions.extend(ack.map(Action::Ack));
            return;
        }
        let position = Position {
            is_room: room.is_some(),
            number: delivery.sequence,
        };
        let is_own = room.is_some() && delivery.sender == self.me;
        let index = self.conversation_of(room.as_ref(), delivery.sender.as_ref());
        if let Some(sender) = &delivery.sender {
            self.names.learn(sender);
        }
        let place = match self.conversations.list().get(index) {
            Some(conversation) => conversation.place.clone(),
            None => Place::Home,
        };
        let is_here = self
            .conversations
            .get_mut(&place)
            .is_some_and(|conversation| conversation.confirm(position));
        if is_here {
            self.actions.extend(ack.map(Action::Ack));
            return;
        }
        let is_mention = !is_own && self.mentions_me(&delivery.text);
        let entry = Entry {
            id: self.new_id(),
            time_ms: delivery.time_ms,
            ack,
            filed,
            body: Body::Said(Said {
                sender: delivery.sender,
                text: delivery.text,
                position: Some(position),
                status: is_own.then_some(Status::Stored),
                awaits_echo: false,
                is_mention,
            }),
        };
        self.add_received(&place, entry, position, is_own, is_mention);
    }

    fn add_received(
        &mut self,
        place: &Place,
        entry: Entry,
        position: Position,
        is_own: bool,
        is_mention: bool,
    ) {
        let is_current = self.conversations.current().place == *place;
        let is_watched = is_current && self.is_focused;
        let excerpt = entry
            .said()
            .map(|said| said.text.clone())
            .unwrap_or_default();
        let Some(conversation) = self.conversations.get_mut(place) else {
            return;
        };
        let id = entry.id;
        conversation.add(entry);
        if is_own {
            self.trim(place);
            return;
        }
        conversation.count_unread(position, is_mention);
        if is_current && !is_watched && conversation.new_since.is_none() {
            conversation.new_since = Some(id);
        }
        let is_personal = matches!(conversation.place, Place::Person(_)) || is_mention;
        let is_loud = is_personal && !conversation.is_muted && !is_watched;
        let name = conversation.name().into_owned();
        if is_personal {
            self.last_sender = Some(place.clone());
        }
        if is_loud {
            self.alert(&name, &excerpt);
        }
        self.trim(place);
    }

    /// Rings the bell and notifies, unless messages that were queued while away are
    /// arriving.
    fn alert(&mut self, name: &str, text: &str) {
        if self.is_catching_up {
            return;
        }
        let Some(count) = self.alerts.alert(self.now_ms) else {
            return;
        };
        let shown: String = text.chars().take(120).collect();
        self.actions.push(Action::Bell);
        self.actions.push(Action::Notify(match count {
            1 => format!("{name}: {shown}"),
            count => format!("{name}: {shown} (and {} more messages)", count - 1),
        }));
    }

    /// Returns the conversation of a message, and adds it if it is new.
    fn conversation_of(&mut self, room: Option<&RoomName>, sender: Option<&UserName>) -> usize {
        let Some(room) = room else {
            return match sender {
                Some(sender) => self.conversations.open(&Place::Person(sender.clone())),
                // Anonymous messages have nobody to answer to.
                None => 0,
            };
        };
        if let Some(index) = self.conversations.of_room(room)
            && !(room.is_conversation() && self.is_unnamed(index))
        {
            return index;
        }
        if !room.is_conversation() {
            self.names.learn_room(room);
            return self.conversations.open(&Place::Room(room.clone()));
        }
        match sender.filter(|sender| Some(*sender) != self.me.as_ref()) {
            Some(person) => {
                let place = self.conversations.name_talk(room, person);
                self.conversations.open(&place)
            }
            None => self.open_unnamed(room),
        }
    }

    fn is_unnamed(&self, index: usize) -> bool {
        let conversation = self.conversations.list().get(index);
        conversation
            .is_some_and(|one| matches!(&one.place, Place::Room(room) if room.is_conversation()))
    }

    /// Adds a conversation whose other user is not known yet, and asks for the name.
    pub(super) fn open_unnamed(&mut self, room: &RoomName) -> usize {
        let place = Place::Room(room.clone());
        if let Some(index) = self.conversations.position(&place) {
            return index;
        }
        self.run_quietly(Command::Members(room.clone()));
        self.conversations.open(&place)
    }

    /// Returns whether a text contains the name of the user as a word.
    pub(super) fn mentions_me(&self, text: &str) -> bool {
        let Some(me) = &self.me else {
            return false;
        };
        let (text, me) = (text.to_lowercase(), me.as_str().to_lowercase());
        text.match_indices(&me).any(|(at, found)| {
            let before = text.get(..at).and_then(|before| before.chars().next_back());
            let after = text
                .get(at + found.len()..)
                .and_then(|after| after.chars().next());
            let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
            is_edge(before) && is_edge(after)
        })
    }

    /// Drops the oldest entries of a conversation beyond its bound.
    pub(super) fn trim(&mut self, place: &Place) {
        let current = self.conversations.current();
        let entries_max = match (current.place == *place, current.scroll) {
            (false, _) => IDLE_ENTRIES_MAX,
            (true, Scroll::Bottom) => ENTRIES_MAX,
            // Older messages are being read.
            (true, Scroll::At { .. }) => 2 * ENTRIES_MAX,
        };
        if let Some(conversation) = self.conversations.get_mut(place) {
            conversation.trim(entries_max);
        }
    }

    pub(super) fn missing(&mut self, ack: Option<u64>, gap: &Gap) {
        let index = match &gap.log {
            Some(room) => self.conversation_of(Some(room), None),
            None => 0,
        };
        let entry = Entry {
            id: self.new_id(),
            time_ms: self.now_ms,
            body: Body::Notice(style::missing(gap), Tone::Bad),
            ack,
            filed: None,
        };
        let place = self
            .conversations
            .list()
            .get(index)
            .map(|one| one.place.clone());
        if let Some(conversation) = place.and_then(|place| self.conversations.get_mut(&place)) {
            conversation.add(entry);
            conversation.unread += 1;
        }
    }

    pub(super) fn link_changed(&mut self, state: &LinkState) {
        self.link = match state {
            LinkState::Connecting if matches!(self.link, Link::Down(_)) => return,
            LinkState::Connecting => Link::Connecting,
            LinkState::Up { server } => Link::Up(server.to_string()),
            LinkState::Down { reason, .. } => Link::Down(reason.clone()),
            LinkState::Closed => Link::Down("closed".to_owned()),
        };
    }

    pub(super) fn joined(&mut self, room: RoomName) {
        if room.is_conversation() {
            self.open_unnamed_talk(&room);
        } else {
            self.names.learn_room(&room);
            let place = Place::Room(room.clone());
            self.conversations.open(&place);
            if let Some(conversation) = self.conversations.get_mut(&place) {
                conversation.is_member = true;
            }
            self.notice_in(&place, format!("you are now in {room}"), Tone::Plain);
        }
        self.run_quietly(Command::Rooms(None));
    }

    fn open_unnamed_talk(&mut self, room: &RoomName) {
        if self.conversations.of_room(room).is_none() {
            self.open_unnamed(room);
        }
    }

    pub(super) fn left(&mut self, room: &RoomName, reason: LeftReason) {
        let Some(index) = self.conversations.of_room(room) else {
            return;
        };
        let text = match reason {
            LeftReason::Left => format!("you have left {room}"),
            LeftReason::Expelled => format!("you were expelled from {room}"),
            LeftReason::Deleted => format!("{room} was deleted"),
        };
        let place = self
            .conversations
            .list()
            .get(index)
            .map(|one| one.place.clone());
        if let Some(place) = place {
            if let Some(conversation) = self.conversations.get_mut(&place) {
                conversation.is_member = false;
                conversation.talk = None;
            }
            self.notice_in(&place, text, Tone::Bad);
        }
    }

    pub(super) fn seen(&mut self, room: &RoomName, number: Sequence) {
        let index = self.conversations.of_room(room);
        let conversation = index.and_then(|index| self.conversations.iter_mut().nth(index));
        if let Some(conversation) = conversation {
            conversation.seen_elsewhere(number);
        }
    }

    pub(super) fn new_device(&mut self, name: Option<DeviceName>) {
        if let Some(name) = name {
            let text = format!("you have a new device: {name}");
            self.notice_in(&Place::Home, text.clone(), Tone::Plain);
            self.hint = Some(text);
        }
    }

    pub(super) fn taken_over(&mut self, user: &UserName) {
        let user = escape_name(user.as_str());
        self.notice(
            format!("another connection now receives the messages of {user}; /connect {user} receives them here"),
            Tone::Bad,
        );
    }

    pub(super) fn identity_lost(&mut self, user: &UserName, why: &str) {
        let user = escape_name(user.as_str());
        let why = crate::text::escape(why);
        self.notice(
            format!("no longer logged in as {user}: {why}; use /connect, /login or /disconnect"),
            Tone::Bad,
        );
        self.me = None;
    }

    /// Changes the user. The conversations of another user are closed.
    pub(super) fn become_user(&mut self, user: Option<UserName>) {
        if let Some(user) = &user {
            self.names.learn(user);
        }
        let is_other = matches!((&self.me, &user), (Some(before), Some(now)) if before != now);
        if is_other {
            self.conversations.clear();
            self.last_sender = None;
        }
        if let Some(user) = user.clone().filter(|user| self.me.as_ref() != Some(user)) {
            self.actions.push(Action::Use(user));
        }
        self.me = user;
    }
}
